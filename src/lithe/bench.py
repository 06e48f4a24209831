"""`lithe bench`: how fast policies run on this machine, as ratios first and against the machine's own measured floor.

Every policy is loaded once and sees one random observation at batch 1. Two boundaries are timed: the model (a Batch in
memory to actions, split into vision, prefix and denoise) and end to end (uint8 pictures to float actions in host
memory, `Runtime.infer`). All policies take turns within each iteration, in rotated order, so that drift hits all of
them alike. What the numbers mean, and what they do not, is in docs/measuring.md; the instruments are in measure.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lithe import api, registry, result
from lithe._tables import bench_table, peace
from lithe.families.base import Family
from lithe.measure import MIB, Neighbours, PeakMemory, Stopwatch, ceilings, percentiles, wall_ms
from lithe.runtimes.base import Runtime
from lithe.types import Batch, Cost, Observation

table = bench_table
TASK = "push the button"  # what every policy is told to do
RESAMPLES = 2000
LINE = (
    "p50 = a + b * depth. Where the last trunk layer computes keys and values only (as in pi), one prefix layer less "
    "runs than depth says, so that a is vision and overhead minus one prefix layer"
)


@dataclass
class Lane:
    """One policy under test: what it is fed, what it costs, and the times it took."""

    name: str
    runtime: Runtime
    observation: Observation
    batch: Batch
    noise_BHA: Tensor
    cost: Cost
    conditions: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    memory_mb: float | None = None
    model_ms: list[dict[str, float]] = field(default_factory=list)
    end_to_end_ms: list[float] = field(default_factory=list)

    def run_model(self) -> None:
        watch = Stopwatch(self.device)
        watch.start()
        self.runtime.chunk(self.batch, self.noise_BHA, trace=watch.mark)
        self.model_ms.append(watch.stop())

    def run_end_to_end(self) -> None:
        self.end_to_end_ms.append(wall_ms(lambda: self.runtime.infer(self.observation), self.device))

    def totals(self) -> np.ndarray:
        return np.array([times["total"] for times in self.model_ms])


def bench(
    policies: Sequence[str | Path | Family | Runtime],
    names: Sequence[str] | None = None,
    runs: int = 100,
    warmup: int = 20,
    steps: int | None = None,
    views: int | None = None,
    runtime: str = "eager",
    baseline: str | None = None,
    threads: int | None = None,
    image: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time policies against each other in one run; a Result of kind "bench".

    policies: policy folders of lithe, LeRobot or openpi, hub ids, "family:preset" for random weights, loaded families,
    or runtimes already attached. names: one each (default: folder name, or family and depth). runs, warmup: iterations,
    each times every policy once at either boundary. steps: denoise steps (None = each policy's own). views: live
    cameras (None = all the policy has). runtime: for whatever is not a runtime yet. baseline: name of the policy ratios
    refer to (default: the first). threads: of torch, restored afterwards. image: side of the camera pictures (None =
    the model's own, nothing to resize). Device and dtype are those of the policies: attach a runtime beforehand to
    choose them.

    Raises ValueError for policies that differ in views or horizon, a name that is not there, or fewer than 2 runs.
    """
    if runs < 2 or warmup < 0:
        raise ValueError(f"bench needs at least 2 runs and no negative warm-up, not {runs} and {warmup}")
    neighbours = Neighbours()  # from here on: a disturbed ceiling spoils the shares just as well
    with _threads(threads):
        attached = [_attach(p, runtime, steps, seed) for p in policies]
        labels = _names(policies, attached, names)
        if baseline is not None and baseline not in labels:
            raise ValueError(
                f"no policy is called {baseline!r}{registry.suggestion(baseline, labels)}: {', '.join(labels)}"
            )
        lanes = [_lane(label, r, views, image, seed) for label, r in zip(labels, attached, strict=True)]
        _check_comparable(lanes)
        limits = {(lane.device, lane.dtype): ceilings(lane.device, lane.dtype) for lane in lanes}
        for lane in lanes:
            lane.memory_mb = _memory_mib(lane)
        take_turns(lanes, warmup, "warm-up")
        for lane in lanes:
            lane.model_ms, lane.end_to_end_ms = [], []
        take_turns(lanes, runs, "bench")
        settings = _settings(lanes, runs, warmup, neighbours)
    reference = next(lane for lane in lanes if lane.name == (baseline or lanes[0].name))
    rows = [_row(lane, reference, limits[lane.device, lane.dtype], settings) for lane in lanes]
    machine = {f"{place}/{str(kind)[6:]}": _rounded(limit) for (place, kind), limit in limits.items()}
    document = result.make("bench", "bench", settings, rows, ceilings=machine, fit=_fit(lanes, reference))
    if not settings["quiet"]:
        logging.getLogger(__name__).warning(peace(settings))
    return document


def load(source: str | Path) -> Family:
    """As `lithe.load`; a preset, never fitted to data, also gets statistics, so that it can run end to end."""
    model = api.load(source)
    if api.preset(source) is not None:
        spec, spread = model.spec, {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
        sizes = {"observation.state": spec.state_dim, "action": spec.action_dim}
        stats = {key: {name: np.full(size, x, np.float32) for name, x in spread.items()} for key, size in sizes.items()}
        model.fit_to(stats, [TASK], spec.cameras)
    return model


def take_turns(lanes: Sequence[Lane], iterations: int, label: str) -> None:
    """Every lane once per iteration and boundary, the first place passed on each time: ABC, BCA, CAB, ..."""
    for i in tqdm(range(iterations), desc=label, disable=None, leave=False):
        first = i % len(lanes)
        order = [*lanes[first:], *lanes[:first]]
        for lane in order:
            lane.run_model()
        for lane in order:
            lane.run_end_to_end()


def ratio(reference_ms: np.ndarray, other_ms: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How many times faster `other` is: the ratio of medians, and its 95 % bootstrap interval.

    Both hold one time per iteration. Blocks of whole iterations are drawn: what disturbs both at once cancels, and what
    lasts for several iterations is not taken for as many independent samples (circular block bootstrap).
    """
    n = len(other_ms)
    block = max(1, round(n ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, n, (RESAMPLES, -(-n // block), 1))
    drawn = ((starts + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    ratios = np.median(reference_ms[drawn], axis=1) / np.median(other_ms[drawn], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return _rounded({"p50": np.median(reference_ms) / np.median(other_ms), "low": low, "high": high})


def fit(points: dict[str, tuple[int, float]]) -> dict[str, Any] | None:
    """Least squares of ms over depth, from {name: (depth, ms)}; None with fewer than two different depths.

    "ceiling" is the speed-up that no cut can pass, the deepest policy's time on the line over a; absent where a <= 0,
    which means that noise or another difference between the policies spoilt the line.
    """
    depths, ms = (np.array(x, float) for x in zip(*points.values(), strict=True))
    if len(set(depths)) < 2:
        return None
    slope, offset = np.polyfit(depths, ms, 1)
    line = {"a_ms": offset, "b_ms_per_layer": slope}
    if offset > 0:
        line["ceiling"] = (offset + slope * depths.max()) / offset
    residuals = {name: t - offset - slope * depth for name, (depth, t) in points.items()}
    return {**_rounded(line), "residuals": _rounded(residuals), "note": LINE}


def _attach(policy: str | Path | Family | Runtime, runtime: str, steps: int | None, seed: int) -> Runtime:
    if isinstance(policy, Runtime):
        if steps is not None and policy.steps != steps:
            raise ValueError(
                f"a runtime attached with steps={policy.steps} was given to a bench of steps={steps}: leave one out"
            )
        return policy
    model = policy if isinstance(policy, Family) else load(policy)
    cls: Any = registry.get("runtimes", runtime)
    return cls(model, steps=steps, seed=seed)


def _names(policies: Sequence[Any], attached: Sequence[Runtime], names: Sequence[str] | None) -> list[str]:
    if not policies:
        raise ValueError("bench needs at least one policy")
    if names is not None:
        if len(names) != len(policies) or len(set(names)) != len(names):
            raise ValueError(
                f"give every policy a name of its own: {len(names)} names ({', '.join(names)}) for {len(policies)}"
            )
        return list(names)
    found: list[str] = []
    for policy, runtime in zip(policies, attached, strict=True):
        plain = f"{runtime.model.name}-L{runtime.model.depth()}"
        name = Path(policy).name if isinstance(policy, (str, Path)) else plain
        taken = sum(other == name or other.startswith(f"{name}#") for other in found)
        found.append(f"{name}#{taken + 1}" if taken else name)
    return found


def _lane(name: str, runtime: Runtime, views: int | None, image: int | None, seed: int) -> Lane:
    """Feed for one policy: the same random pictures, state and noise for every policy of the same shape."""
    model, spec, rng = runtime.model, runtime.spec, np.random.default_rng(seed)
    views = len(spec.cameras) if views is None else views
    if not 1 <= views <= len(spec.cameras):
        raise ValueError(
            f"{name} has {len(spec.cameras)} cameras: views must be from 1 to {len(spec.cameras)}, not {views}"
        )
    example = model.example(1)
    side = image or example.images_BVCYX.shape[-1]
    observation: Observation = {
        f"observation.images.{camera}": rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        for camera in spec.cameras[:views]
    }
    observation |= {"observation.state": rng.uniform(-1, 1, spec.state_dim).astype(np.float32), "task": TASK}
    weights = next(model.parameters())
    batch = model.observe([observation]).to(weights.device)
    noise_BHA = model.noise(1, torch.Generator().manual_seed(seed)).to(weights.device)
    padded = batch.text_BT.shape[1]
    cost = model.cost(views, padded, runtime.steps)
    conditions = {
        "runtime": runtime.name,
        "dtype": "+".join(sorted({str(p.dtype)[6:] for p in model.parameters()})),
        "device": str(weights.device),
        "views": views,
        "masked_views": len(spec.cameras) - views,
        "image": side,
        "text_tokens": padded,
        "text_tokens_real": int(batch.text_BT.sum()),
        "horizon": spec.horizon,
        "steps": runtime.steps or spec.steps,
    }
    return Lane(name, runtime, observation, batch, noise_BHA, cost, conditions, weights.device, weights.dtype)


def _check_comparable(lanes: Sequence[Lane]) -> None:
    for key in ("views", "horizon"):
        found = {lane.name: lane.conditions[key] for lane in lanes}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"policies of different {key} cannot be compared ({told}): bench them in separate runs")


def _memory_mib(lane: Lane) -> float | None:
    """Weights, and what one chunk adds at its peak; the first chunk is left out, for it also loads code."""
    lane.run_model()
    with PeakMemory(lane.device) as peak:
        lane.run_model()
    model = lane.runtime.model
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / MIB
    return None if peak.mib is None else weights + peak.mib


def _settings(lanes: Sequence[Lane], runs: int, warmup: int, neighbours: Neighbours) -> dict[str, Any]:
    """What holds for all lanes; a condition in which they differ goes into the rows instead."""
    busy = neighbours.busy_cores()
    return {
        "runs": runs,
        "warmup": warmup,
        "batch": 1,
        "threads": torch.get_num_threads(),
        **{k: v for k, v in lanes[0].conditions.items() if v is not None and all(o.conditions[k] == v for o in lanes)},
        "load_average": round(neighbours.load_average, 2),
        **({} if busy is None else {"busy_cores_elsewhere": round(busy, 2)}),
        "quiet": neighbours.quiet(),
    }


def _row(lane: Lane, reference: Lane, limits: dict[str, float], settings: dict[str, Any]) -> dict[str, Any]:
    totals, floor = lane.totals(), lane.cost.floor_ms(**limits)
    parts = dict.fromkeys(part for times in lane.model_ms for part in times if part != "total")
    split = {part: float(np.median([times[part] for times in lane.model_ms])) for part in parts}
    latency, end_to_end = percentiles(totals), percentiles(lane.end_to_end_ms)
    against = {"against": reference.name}
    return {
        "policy": lane.name,
        "depth": lane.runtime.model.depth(),
        "runtime": lane.runtime.name,
        **{k: v for k, v in lane.conditions.items() if v is not None and k not in settings},
        "ratio": {**against, **ratio(reference.totals(), totals)},
        "latency_ms": _rounded({**latency, **split}),
        "end_to_end_ratio": {**against, **ratio(np.array(reference.end_to_end_ms), np.array(lane.end_to_end_ms))},
        "end_to_end_ms": _rounded(end_to_end),
        "hz": round(1e3 / end_to_end["p50"], 3),
        "flops": lane.cost.flops,
        "bytes": lane.cost.bytes,
        "parameters": lane.cost.parameters,
        **({} if lane.memory_mb is None else {"memory_mb": round(lane.memory_mb, 1)}),
        "floor_ms": _rounded(floor),
        "share_of_floor": round(sum(floor.values()) / latency["p50"], 4),
    }


def _fit(lanes: Sequence[Lane], reference: Lane) -> dict[str, Any] | None:
    """The line through every policy that differs from the reference in depth alone."""
    alike = [lane for lane in lanes if _kind(lane) == _kind(reference)]
    return fit({lane.name: (lane.runtime.model.depth(), float(np.median(lane.totals()))) for lane in alike})


def _kind(lane: Lane) -> tuple[Any, ...]:
    return (lane.runtime.model.name, lane.cost.parameters.get("vision"), *lane.conditions.values())


def _rounded(values: dict[str, Any]) -> dict[str, float]:
    """Six significant digits: more is noise, and fixed decimals would erase a small policy's microseconds."""
    return {key: float(f"{value:.6g}") for key, value in values.items()}


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
