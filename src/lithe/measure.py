"""The only place with timers and device synchronisation: split timing, machine ceilings, memory, load by others.

A time is wall clock on the CPU and CUDA events on a GPU, always after the device was synchronised; it says something
only beside other times of the same sitting. `bench.py` turns these instruments into a Result; nothing here knows a
policy. Units: ms, s, FLOP/s, bytes/s, MiB.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

now = time.perf_counter
MIB = 2**20
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of the square matrices that are multiplied
COPY_MIB = {"cpu": 256, "cuda": 1024}  # far beyond any cache
BEST_OF, AT_MOST_S = 5, 1.0  # repetitions of each probe, cut short on slow machines
BEST: dict[tuple[str, torch.dtype, int], dict[str, float]] = {}  # ceilings so far
T = TypeVar("T")


def synchronize(device: torch.device | str) -> None:
    """Wait until everything launched on `device` is done. Raises ValueError for a device lithe cannot time."""
    if check(device).type == "cuda":
        torch.cuda.synchronize(device)


def check(device: torch.device | str) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError as error:  # torch's way to say that it knows no such kind
        raise ValueError(f"there is no device {device!r}: lithe measures on cpu and cuda, such as 'cuda:0'") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"lithe measures on cpu and cuda devices, not on {device.type!r}: move the policy to one of them"
        )
    return device


class Stopwatch:
    """Times one call and the parts it announces: `start()`, `mark("vision")` after each part, `stop()`.

    `mark` has the signature of a runtime's `trace`. On CUDA it only records an event, so that splitting does not slow
    the call; a part is then the time on the device's own time line, launch gaps included.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = check(device)
        self.marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        synchronize(self.device)
        self.marks = [("", self._instant())]

    def mark(self, part: str) -> None:
        """`part` ends here; it began at the previous mark. A part marked again adds up."""
        self.marks.append((part, self._instant()))

    def stop(self) -> dict[str, float]:
        """Milliseconds of every part, and "total" from start to now."""
        end = self._instant()
        synchronize(self.device)
        passed = {"total": self._ms(self.marks[0][1], end)}
        for (_, before), (part, after) in zip(self.marks, self.marks[1:]):
            passed[part] = passed.get(part, 0.0) + self._ms(before, after)
        return passed

    def _instant(self) -> Any:
        if self.device.type == "cpu":
            return now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _ms(self, before: Any, after: Any) -> float:
        return 1e3 * (after - before) if self.device.type == "cpu" else before.elapsed_time(after)


def wall_ms(call: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Wall clock of one call in ms, with the device idle before and after."""
    synchronize(device)
    began = now()
    call()
    synchronize(device)
    return 1e3 * (now() - began)


def timed(call: Callable[[], T], device: torch.device | str = "cpu") -> tuple[T, float]:
    """What a call returns, and how many seconds it took, with the device idle before and after."""
    synchronize(device)
    began = now()
    found = call()
    synchronize(device)
    return found, now() - began


def profiled(call: Callable[[], Any], device: torch.device | str, label: str) -> list[Any]:
    """The events that torch.profiler saw of one call on a CUDA device, all its kernels included; the call's own span is
    the event `label`. What is seen after that span is the wait for the device, not the call's."""
    from torch.profiler import ProfilerActivity, profile, record_function

    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        with record_function(label):
            call()
        synchronize(device)
    return list(seen.events() or ())


class Clock:
    """Where a long loop spends its time: `lap(part)` adds the time since the previous lap to `part`.

    Give the CUDA device the loop works on, or the wait for the device is charged to whichever part happens to wait.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = check(device)
        self.seconds: dict[str, float] = {}
        self.last = now()

    def lap(self, part: str) -> None:
        synchronize(self.device)
        instant = now()
        self.seconds[part] = self.seconds.get(part, 0.0) + instant - self.last
        self.last = instant

    def share(self, part: str) -> float:
        """Share of all time so far, 0 to 1; 0 before the first lap."""
        total = sum(self.seconds.values())
        return self.seconds.get(part, 0.0) / total if total else 0.0

    def take(self) -> dict[str, float]:
        """Seconds per part since the last `take`; counting begins anew, the current lap goes on."""
        taken, self.seconds = self.seconds, {}
        return taken


def percentiles(samples_ms: list[float] | np.ndarray) -> dict[str, float]:
    """p50, p95 and p99, linearly interpolated. Of fewer than 100 samples, p99 is little more than the largest."""
    return {f"p{q}": float(np.percentile(samples_ms, q)) for q in (50, 95, 99)}


def ceilings(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Best arithmetic and traffic this process has seen the device do: {"flops_per_s", "bytes_per_s"}.

    A square matrix product and a copy (bytes read plus bytes written) of random data, best of several. Every call
    probes anew and what it returns never falls: a moment in which others used the memory shows as a low rate, and only
    another look tells. Kept per device, dtype and number of threads. Seconds on a CPU. Do not call it while anything
    else runs.
    """
    key = (str(check(device)), dtype, torch.get_num_threads())
    found, before = _probed(*key[:2]), BEST.get(key, {})
    BEST[key] = {name: max(rate, before.get(name, 0.0)) for name, rate in found.items()}
    return dict(BEST[key])


def _probed(device: str, dtype: torch.dtype) -> dict[str, float]:
    kind, generator = torch.device(device).type, torch.Generator(device)  # torch's own is not disturbed
    rates = []
    for side in SIDES[kind]:
        a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        rates.append(2 * side**3 / _best_s(functools.partial(torch.mm, a, b, out=product), device))
    source = torch.randn(COPY_MIB[kind] * MIB // 4, device=device, generator=generator)
    target = torch.empty_like(source)
    traffic = 2 * source.numel() * source.element_size()
    return {"flops_per_s": max(rates), "bytes_per_s": traffic / _best_s(lambda: target.copy_(source), device)}


def _best_s(call: Callable[[], Any], device: str) -> float:
    call()
    best, began = float("inf"), now()
    for _ in range(BEST_OF):
        best = min(best, wall_ms(call, device) / 1e3)
        if now() - began > AT_MOST_S:
            break
    return best


def held_mib(tensors: Iterable[torch.Tensor]) -> float:
    """Memory behind these tensors in MiB. What several of them share, or are views of, counts once and whole."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / MIB


def pools_mib(pools: Sequence[Any]) -> float:
    """Memory in MiB that captured CUDA graphs keep for themselves in these pools, used at the moment or not."""
    if not pools:
        return 0.0
    wanted = {tuple(pool) for pool in pools}
    segments = torch.cuda.memory_snapshot()
    return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) in wanted) / MIB


class PeakMemory:
    """`with PeakMemory(device) as peak: ...` and then `peak.mib`: how far memory rose above where it stood.

    On CUDA memory of torch's allocator, on the CPU the resident set of this process, there only on Linux: elsewhere
    `mib` stays None. Memory that was free inside the process before is used again unseen, so the CPU figure is a lower
    bound.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = check(device)
        self.mib: float | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before: float | None = torch.cuda.memory_allocated(self.device) / MIB
        else:
            self.before = _resident_mib("VmRSS") if _forget_peak() else None
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            after: float | None = torch.cuda.max_memory_allocated(self.device) / MIB
        else:
            after = _resident_mib("VmHWM")
        if self.before is not None and after is not None:
            self.mib = max(0.0, after - self.before)


def _forget_peak() -> bool:
    """Give free memory back and restart the kernel's high-water mark; False where that cannot be done."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # not glibc, not Linux, or not allowed
        return False
    return True


def _resident_mib(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None


class Neighbours:
    """What other processes did to this machine while this one was measuring."""

    def __init__(self) -> None:
        self.load_average = os.getloadavg()[0]  # of the last minute, this process included
        self.began = (now(), _machine_s(), _own_s())

    def busy_cores(self) -> float | None:
        """Processor time of everyone else per second since the start, in cores; None where the kernel does not tell."""
        began, machine, own = self.began
        passed, total = now() - began, _machine_s()
        if machine is None or total is None or passed < 0.2:  # the kernel counts in hundredths of a second
            return None
        return max(0.0, (total - machine) - (_own_s() - own)) / passed

    def quiet(self) -> bool:
        """True when times taken meanwhile mean something: others used less than a tenth of a core, or 2 % of many."""
        cores, busy = os.cpu_count() or 1, self.busy_cores()
        return (self.load_average if busy is None else busy) < max(0.1, 0.02 * cores)


def _machine_s() -> float | None:
    """Processor time of all processes since boot, stolen time included."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
