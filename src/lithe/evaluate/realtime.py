"""Latencies: what they are given as, how many control steps each is, and which of them cannot work.

A latency is a number that somebody states or that `lithe bench` wrote down. Here it becomes delay = ceil(latency * fps)
control steps, and from then on only steps count: an episode stays a pure function of weights, task, seed and settings,
on any machine. A policy at a latency takes part in an evaluation as `teacher@50ms`. Nothing is timed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
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
RULES = 1  # of stream.py, chunking.py and a sim's `hold`: another number where the same chunks become other actions
Latency = str | Path | float | Sequence[str | Path | float] | Mapping[str, float]
Stated = tuple[str | None, float, Mapping[str, Any] | None]  # policy, None = all; ms; how a bench ran it
HINT = "write 120, or 0,50,100, or teacher=120,student=50, in milliseconds, or the path of a Result of lithe bench"


@dataclass(frozen=True)
class Timing:
    """One policy at one latency."""

    policy: str
    latency_ms: float
    delay: int  # control steps
    timed: Mapping[str, Any] | None = None  # how `lithe bench` ran it, where the latency is from there

    @property
    def name(self) -> str:
        return f"{self.policy}@{self.latency_ms:.12g}ms"


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


def timings(
    latency: Latency, policies: Sequence[str], fps: float, runtime: str = "eager"
) -> tuple[dict[str, Timing], list[dict[str, Any]]]:
    """Every policy at every latency that it was given, by name, policies in their order; and the benches they are from.

    runtime: whose row is taken from a bench of several. Raises ValueError for what is no latency, a policy that is not
    there, or one without a latency.
    """
    sources: list[dict[str, Any]] = []
    stated = list(_stated(latency, policies, runtime, sources))
    for name, ms, _ in stated:
        if name is not None and name not in policies:
            raise ValueError(
                f"latency of {name!r}, which is not evaluated{suggestion(name, list(policies))}; "
                f"there are {', '.join(policies)}"
            )
        if not (math.isfinite(ms) and ms >= 0):
            raise ValueError(f"a latency of {ms:g} ms cannot be: it is 0 or more; {HINT}")
    found: dict[str, Timing] = {}
    for policy in policies:
        own = sorted((ms, i) for i, (name, ms, _) in enumerate(stated) if name in (None, policy))
        if not own:
            raise ValueError(f"no latency is given for {policy!r}: add {policy}=<milliseconds>")
        for ms, i in own:
            timed = stated[i][2]
            timing = Timing(policy, ms if timed is None else _shown(ms, fps), steps(ms, fps), timed)
            if timed is not None or timing.name not in found:  # what a bench says is checked
                found[timing.name] = timing
    return found, sources


def steps(latency_ms: float, fps: float) -> int:
    """Control steps that go by until a chunk is there: the next step that begins after it."""
    return math.ceil(latency_ms * fps / 1e3 - 1e-9)  # 0.1 + 0.2 ms are no step more


def _shown(latency_ms: float, fps: float) -> float:
    """Two decimals, or all where those would be another number of steps."""
    short = round(latency_ms, 2)
    return short if steps(short, fps) == steps(latency_ms, fps) else latency_ms


def _stated(latency: Latency, policies: Sequence[str], runtime: str, sources: list[dict[str, Any]]) -> Iterator[Stated]:
    """What was given, one by one. Adds to `sources` what is told of Results that were read."""
    if isinstance(latency, Mapping):
        yield from ((name, float(ms), None) for name, ms in latency.items())
        return
    if isinstance(latency, str):
        parts: Sequence[str | Path | float] = latency.split(",")
    else:
        parts = [latency] if isinstance(latency, int | float | Real | Path) else latency
    benches, named = list[Path](), set[str]()
    for part in parts:
        text = str(part).strip()
        if isinstance(part, str | Path) and (text.endswith(".json") or Path(text).is_file()):
            benches.append(Path(text))
            continue
        name, equals, value = text.rpartition("=")
        named |= {name} if equals else set()
        try:
            yield name if equals else None, float(value.strip().removesuffix("ms")), None
        except ValueError as error:
            raise ValueError(f"{text!r} is no latency: {HINT}") from error
    for path in benches:
        yield from _benched(path, policies, named, runtime, sources)


def _benched(
    path: Path, policies: Sequence[str], named: set[str], runtime: str, sources: list[dict[str, Any]]
) -> Iterator[Stated]:
    """The median from camera pictures to actions of every policy, as `lithe bench` found it. named: policies that were
    given milliseconds of their own and can do without a row."""
    document = result.load(path)
    rows = {str(row["policy"]): row for row in document["rows"] if "p50" in row.get("end_to_end_ms", {})}
    if document["kind"] != "bench" or not rows:
        raise ValueError(f"{path} holds no latency from pictures to actions: give a Result of lithe bench")
    for policy in policies:
        row = rows.get(policy, rows.get(f"{policy}/{runtime}"))
        if policy in named and (row is None or "layers_run" in row):
            continue
        if row is None:
            raise ValueError(
                f"{path} does not time {policy!r}{suggestion(policy, list(rows))}; it times {', '.join(rows)}: give "
                f"the policies the names that they have there before any '/', with name=folder, of a bench in several "
                f"runtimes one that timed {runtime}, or the time itself, {policy}=<milliseconds>"
            )
        if "layers_run" in row:
            raise ValueError(
                f"{policy!r} decides for every chunk how many layers run, and one median from {path} would hide its "
                f"slow chunks: give the time that its chunks can be relied on to take, {policy}=<milliseconds>"
            )
        timed = {**document.get("settings", {}), **row}
        _credit(sources, path, policy, timed, document.get("hardware", {}))
        yield policy, float(row["end_to_end_ms"]["p50"]), timed


def _credit(
    sources: list[dict[str, Any]], path: Path, policy: str, timed: dict[str, Any], hardware: dict[str, Any]
) -> None:
    """Notes where a latency is from: one source for all policies that were timed alike."""
    device = str(timed.get("device", ""))
    machine = hardware.get("gpu") if device.startswith("cuda") else hardware.get("cpu")
    kept: dict[str, Any] = {key: timed[key] for key in ("runtime", "dtype", "threads", "quiet") if key in timed}
    source = {"file": path.name, "device": device, "machine": machine, **kept, "figure": "end_to_end_ms p50"}
    for other in sources:
        if {**source, "policies": other["policies"]} == other:
            other["policies"].append(policy)
            return
    sources.append({**source, "policies": [policy]})


def check_policy(
    model: Family, timing: Timing, execution: str, replan: int, runtime: str, horizon: int, steps: int | None = None
) -> None:
    """Raises ValueError when a policy cannot be executed in this way with this delay, or its latency is another one's.
    horizon: of an episode; steps: denoise steps, None = the policy's own."""
    _check_timed(model, timing, execution, steps)
    name, delay, chunk = timing.name, timing.delay, model.spec.horizon
    late = f"{name}: chunks of {chunk} actions arrive {delay} control steps late"
    if delay >= horizon:
        raise ValueError(f"{name}: the first action comes after {delay} of {horizon} control steps; give less latency")
    if execution == "sync":
        return
    if delay >= chunk:
        raise ValueError(
            f"{late}, so that none lasts until the next is there, and the robot would stand still as with sync, but "
            "act on older pictures: give less latency (fewer denoise steps, a faster runtime, a shallower student), a "
            "policy with longer chunks, or execution sync"
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


def _check_timed(model: Family, timing: Timing, execution: str, steps: int | None) -> None:
    """Raises ValueError where a bench timed another policy than the one that plays."""
    spec, timed = model.spec, timing.timed or {}
    plays = {"depth": model.depth(), "steps": steps or spec.steps, "horizon": spec.horizon, "views": len(spec.cameras)}
    for key, value in plays.items():
        if timed.get(key, value) != value:
            raise ValueError(
                f"{timing.name}: the bench timed it with {key}={timed[key]}, and what plays has {key}={value}: bench "
                "what plays, or give milliseconds"
            )
    if execution == "rtc" and timed.get("runtime", "eager") != "eager":
        raise ValueError(
            f"{timing.name}: it was timed in the runtime {timed['runtime']}, which cannot steer a chunk: give a bench "
            "in eager, or execution async or sync"
        )
