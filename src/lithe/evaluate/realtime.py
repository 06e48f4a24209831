"""Latencies: what they are given as, how many control steps each is, and which of them cannot work.

A latency is a number that somebody states or that `lithe bench` wrote down. Here it becomes delay = ceil(latency * fps)
control steps, and from then on only steps count: an episode stays a pure function of weights, task, seed and settings,
on any machine. A policy at a latency takes part in an evaluation as `teacher@50ms`. Nothing is timed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lithe import result
from lithe.registry import suggestion

if TYPE_CHECKING:
    from lithe.families.base import Family

EXECUTIONS = {
    "sync": "the robot stands still while the policy thinks",
    "async": "the policy thinks while the rest of the old chunk is executed",
    "rtc": "as async, and the new chunk is steered to go on where the old one leads",
}
Latency = str | float | Sequence[float] | Mapping[str, float]
HINT = "write 120, or 0,50,100, or teacher=120,student=50, in milliseconds, or the path of a Result of lithe bench"


@dataclass(frozen=True)
class Timing:
    """One policy at one latency."""

    policy: str
    latency_ms: float
    delay: int  # control steps

    @property
    def name(self) -> str:
        return f"{self.policy}@{self.latency_ms:g}ms"


def check(execution: str | None, latency: Latency | None) -> None:
    """Raises ValueError for an unknown execution, or one of the two without the other."""
    if execution is not None and execution not in EXECUTIONS:
        raise ValueError(
            f"no execution {execution!r}{suggestion(execution, list(EXECUTIONS))}; choose from {', '.join(EXECUTIONS)}"
        )
    if (execution is None) != (latency is None):
        missing, given = ("latency", "execution") if latency is None else ("execution", "latency")
        raise ValueError(
            f"{given} without {missing}: in real time both are needed, and without both the simulator waits"
        )


def timings(latency: Latency, policies: Sequence[str], fps: float) -> tuple[dict[str, Timing], list[dict[str, Any]]]:
    """Every policy at every latency that it was given, by name, policies in their order; and the benches they are from.

    Raises ValueError for what is no latency, a policy that is not there, or one without a latency.
    """
    stated, sources = [], []
    for name, ms in _stated(latency, policies, sources):
        if name is not None and name not in policies:
            raise ValueError(
                f"latency of {name!r}, which is not evaluated{suggestion(name, list(policies))}; "
                f"there are {', '.join(policies)}"
            )
        if not (math.isfinite(ms) and ms >= 0):
            raise ValueError(f"a latency of {ms:g} ms cannot be: it is 0 or more; {HINT}")
        stated.append((name, ms))
    found: dict[str, Timing] = {}
    for policy in policies:
        own = sorted({ms for name, ms in stated if name in (None, policy)})
        if not own:
            raise ValueError(f"no latency is given for {policy!r}: add {policy}=<milliseconds>")
        found |= {t.name: t for ms in own for t in [Timing(policy, ms, steps(ms, fps))]}
    return found, sources


def steps(latency_ms: float, fps: float) -> int:
    """Control steps that go by until a chunk is there: the next step that begins after it."""
    return math.ceil(latency_ms * fps / 1e3 - 1e-9)  # 0.1 + 0.2 ms are no step more


def _stated(latency: Latency, policies: Sequence[str], sources: list[dict[str, Any]]) -> Iterator[tuple[Any, float]]:
    """(policy or None for all, milliseconds). Adds to `sources` what is told of Results that were read."""
    if isinstance(latency, Mapping):
        yield from ((name, float(ms)) for name, ms in latency.items())
        return
    if isinstance(latency, str):
        parts: Sequence[str | float] = latency.split(",")
    else:
        parts = [latency] if isinstance(latency, int | float) else latency
    for part in parts:
        if isinstance(part, int | float):
            yield None, float(part)
            continue
        text = part.strip()
        if text.endswith(".json") or Path(text).is_file():
            yield from _benched(Path(text), policies, sources)
            continue
        name, equals, value = text.rpartition("=")
        try:
            yield name if equals else None, float(value.strip().removesuffix("ms"))
        except ValueError as error:
            raise ValueError(f"{text!r} is no latency: {HINT}") from error


def _benched(path: Path, policies: Sequence[str], sources: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """The median from camera pictures to actions of every policy, as `lithe bench` found it."""
    document = result.load(path)
    rows = {str(row["policy"]): row for row in document["rows"] if "p50" in row.get("end_to_end_ms", {})}
    if document["kind"] != "bench" or not rows:
        raise ValueError(f"{path} holds no latency from pictures to actions: give a Result of lithe bench")
    settings, facts = document.get("settings", {}), document.get("hardware", {})
    device = str(settings.get("device", ""))
    machine = facts.get("gpu") if device.startswith("cuda") else facts.get("cpu")
    kept = {key: settings[key] for key in ("runtime", "dtype", "threads", "quiet") if key in settings}
    sources.append({"file": path.name, "device": device, "machine": machine, **kept, "figure": "end_to_end_ms p50"})
    for policy in policies:
        if policy not in rows:
            raise ValueError(
                f"{path} does not time {policy!r}{suggestion(policy, list(rows))}; it times {', '.join(rows)}: name "
                "the policies as in the bench, with name=folder"
            )
        yield policy, round(float(rows[policy]["end_to_end_ms"]["p50"]), 2)


def check_policy(model: Family, timing: Timing, execution: str, replan: int, runtime: str, horizon: int) -> None:
    """Raises ValueError when a policy cannot be executed in this way with this delay. horizon: of an episode."""
    name, delay, chunk = timing.name, timing.delay, model.spec.horizon
    late = f"{name}: chunks of {chunk} actions arrive {delay} control steps late"
    if delay >= horizon:
        raise ValueError(f"{name}: the first action comes after {delay} of {horizon} control steps; give less latency")
    if execution == "sync":
        return
    if delay >= chunk:
        raise ValueError(
            f"{late}, when every one of them is past: give less latency (fewer denoise steps, a faster runtime, a "
            f"shallower student), a policy with longer chunks, or execution sync"
        )
    if (delay or execution == "rtc") and model.router is not None and model.router.memory() is not None:
        raise ValueError(
            f"{name}: its router remembers which actions were executed, and it would be told wrong ones where chunks "
            "overlap: give execution sync"
        )
    if execution != "rtc":
        return
    if not model.guided:
        raise ValueError(f"{name}: policies of the family {model.name} cannot be steered: give execution async or sync")
    if runtime != "eager":
        raise ValueError(f"the runtime {runtime} cannot steer a chunk: give runtime eager, or execution async or sync")
    if max(replan, delay) + delay > chunk:
        fix = f"replan={chunk - delay} or less" if 2 * delay <= chunk else "less latency, execution async or sync"
        raise ValueError(
            f"{late} and the next one is asked for after {max(replan, delay)} actions, so that nothing of the old "
            f"chunk is left to go on from when the new one arrives: give {fix}"
        )
