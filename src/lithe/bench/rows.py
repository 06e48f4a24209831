"""What a bench publishes: a row for every policy, ratios with their intervals, and the line of time over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lithe.bench.lanes import Lane
from lithe.measure import percentiles

RESAMPLES = 2000
LINE = (
    "p50 = a + b * depth. Where the last trunk layer computes keys and values only (as in pi), one prefix layer less "
    "runs than depth says, so that a is vision and overhead minus one prefix layer"
)


def ratio(
    reference_ms: np.ndarray, other_ms: np.ndarray, seed: int = 0, episode: Sequence[int] | None = None
) -> dict[str, float]:
    """How many times faster `other` is: the ratio of medians, and its 95 % bootstrap interval.

    Both hold one time per iteration. Blocks of whole iterations are drawn: what disturbs both at once cancels, and what
    lasts for several iterations is not taken for as many independent samples (circular block bootstrap). episode: the
    one that each iteration belongs to; whole episodes are drawn then (cluster bootstrap), for a policy that decides
    itself runs alike all through one.
    """
    rng = np.random.default_rng(seed)
    times = _blocks(len(other_ms), rng) if len(set(episode or ())) < 2 else _clusters(episode or (), rng)
    ratios = _medians(reference_ms, times) / _medians(other_ms, times)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return rounded({"p50": np.median(reference_ms) / np.median(other_ms), "low": low, "high": high})


def _blocks(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n iterations is in each resample [RESAMPLES, n]."""
    block = max(1, round(n ** (1 / 3)))
    starts = rng.integers(0, n, (RESAMPLES, -(-n // block), 1))
    drawn = ((starts + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    return np.stack([np.bincount(each, minlength=n) for each in drawn])


def _clusters(episode: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The same where whole episodes are drawn, as many as there are different ones."""
    found, member = np.unique(np.array(episode), return_inverse=True)
    drawn = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), RESAMPLES)
    return drawn[:, member]


def _medians(ms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The median of every resample, in which each of these is as often as `times` says."""
    order = np.argsort(ms)
    passed = times[:, order].cumsum(axis=1)
    low, high = (np.argmax(passed > half, axis=1)[:, None] for half in ((passed[:, -1:] - 1) // 2, passed[:, -1:] // 2))
    middle: np.ndarray = ms[order][np.hstack([low, high])].mean(axis=1)
    return middle


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
    return {**rounded(line), "residuals": rounded(residuals), "note": LINE}


def row(
    lane: Lane,
    reference: Lane,
    limits: dict[str, float],
    settings: dict[str, Any],
    episode: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Everything about one policy that is not common to all of them, `settings`. episode: as `ratio` takes it."""
    totals, cost = lane.totals(), lane.cost
    floor = cost.floor_ms(**limits)
    parts = dict.fromkeys(part for times in lane.model_ms for part in times if part != "total")
    split = {part: float(np.median([times[part] for times in lane.model_ms])) for part in parts}
    latency, end_to_end = percentiles(totals), percentiles(lane.end_to_end_ms)
    against, (before, after) = {"against": reference.name}, (np.array(one.end_to_end_ms) for one in (reference, lane))
    return {
        "policy": lane.name,
        "depth": lane.runtime.model.depth(),
        "runtime": lane.runtime.title,
        **{k: v for k, v in lane.conditions.items() if k not in settings},
        "ratio": {**against, **ratio(reference.totals(), totals, episode=episode)},
        "latency_ms": rounded({**latency, **split}),
        "end_to_end_ratio": {**against, **ratio(before, after, episode=episode)},
        "end_to_end_ms": rounded(end_to_end),
        "hz": round(1e3 / end_to_end["p50"], 3),
        **_routed(lane),
        **_attached(lane),
        "flops": cost.flops,
        "flop_share": round(cost.total_flops / reference.cost.total_flops, 6),
        "bytes": cost.bytes,
        "parameters": cost.parameters,
        **({} if lane.memory_mb is None else {"memory_mb": round(lane.memory_mb, 1)}),
        "floor_ms": rounded(floor),
        "share_of_floor": round(sum(floor.values()) / latency["p50"], 4),
        **lane.told(),
    }


def _attached(lane: Lane) -> dict[str, Any]:
    """What came before the times, and what a chunk asks of the device: seconds to attach (building, compiling, checking
    against eager) and of the first chunk, what was found out meanwhile, launches and waits."""
    attach = {} if lane.attach_s is None else {"attach_s": lane.attach_s}
    told = {**attach, "warmup_s": lane.warmup_s, **lane.facts(), **lane.calls}
    return {**told, **rounded({key: value for key, value in told.items() if isinstance(value, float)})}


def _routed(lane: Lane) -> dict[str, Any]:
    """What only a policy that decides for itself has: what it ran, its two bounds, and what deciding costs."""
    if not lane.runtime.routed:
        return {}
    bounds = {key: float(np.median(times)) for key, times in lane.bounds_ms.items()}
    return {"layers_run": lane.layers_run(), **rounded(bounds), "router_flops": lane.router_flops()}


def fit_like(lanes: Sequence[Lane], reference: Lane) -> dict[str, Any] | None:
    """The line through every policy that differs from the reference in depth alone and always runs all of it."""
    alike = [lane for lane in lanes if _kind(lane) == _kind(reference) and not lane.runtime.routed]
    points = {lane.name: (lane.runtime.model.depth(), float(np.median(lane.totals()))) for lane in alike}
    return fit(points) if points else None


def fits(lanes: Sequence[Lane]) -> dict[str, Any]:
    """Such a line for every runtime and number of steps, where there are several of either."""
    kinds = dict.fromkeys(_kind(lane) for lane in lanes if not lane.runtime.routed)
    firsts = [next(lane for lane in lanes if _kind(lane) == kind) for kind in kinds]
    found = {lane.name: fit_like(lanes, lane) for lane in firsts} if len(firsts) > 1 else {}
    lines = (
        [
            {"like": name, "runtime": lane.runtime.title, "steps": lane.conditions["steps"], **line}
            for (name, line), lane in zip(found.items(), firsts, strict=True)
            if line is not None
        ]
        if found
        else []
    )
    return {"fits": lines} if lines else {}


def _kind(lane: Lane) -> tuple[Any, ...]:
    return (lane.runtime.model.name, lane.cost.parameters.get("vision"), *lane.conditions.values())


def rounded(values: dict[str, Any]) -> dict[str, float]:
    """Six significant digits: more is noise, and fixed decimals would erase a small policy's microseconds."""
    return {key: float(f"{value:.6g}") for key, value in values.items()}
