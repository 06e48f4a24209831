"""`lithe bench`: how fast policies run on this machine, as ratios first and against the machine's own measured floor.

Every policy is loaded once and sees the same at batch 1: recorded episodes, or one random observation. Two boundaries
are timed: the model (a Batch in memory to actions, split into vision, prefix and denoise) and end to end (uint8
pictures to float actions in host memory, `Runtime.infer`); router and repeated passes are inside both. All policies
take turns within each iteration, in rotated order, so that drift hits all of them alike. What the numbers mean, and
what they do not, is in docs/measuring.md; the instruments are in measure.py, one policy's sessions in lanes.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lithe import api, registry, result
from lithe._tables import bench_table, peace
from lithe.bench.feed import TASK, Episodes, episodes, still
from lithe.bench.lanes import Lane, dtypes, take_turns
from lithe.bench.variants import entries
from lithe.data.base import Data
from lithe.families.base import Family
from lithe.measure import Neighbours, ceilings, percentiles
from lithe.runtimes.base import Runtime

table = bench_table
RESAMPLES = 2000
LINE = (
    "p50 = a + b * depth. Where the last trunk layer computes keys and values only (as in pi), one prefix layer less "
    "runs than depth says, so that a is vision and overhead minus one prefix layer"
)


def bench(
    policies: Sequence[str | Path | Family | Runtime],
    names: Sequence[str] | None = None,
    runs: int = 100,
    warmup: int = 20,
    steps: int | Sequence[int] | None = None,
    views: int | None = None,
    runtimes: Sequence[str] = ("eager",),
    layers: Sequence[int] = (),
    baseline: str | None = None,
    threads: int | None = None,
    image: int | None = None,
    seed: int = 0,
    data: Data | None = None,
) -> dict[str, Any]:
    """Time policies against each other in one run; a Result of kind "bench".

    policies: policy folders of lithe, LeRobot or openpi, hub ids, "family:preset" for random weights, loaded families,
    or runtimes already attached. names: one each (default: folder name, or family and depth). runs, warmup: iterations,
    each times every policy once at either boundary; with data the last episode is finished, too. steps: denoise steps
    (None = each policy's own). views: live cameras (None = all the policy has). runtimes: for whatever is not a runtime
    yet. layers: depths to which each policy is cut (() = as it is). Of several runtimes, depths or numbers of steps
    every combination takes part. baseline: name of the policy ratios refer to (default: the first). threads: of torch,
    restored afterwards. image: side of the camera pictures (None = the model's own, nothing to resize). data: recorded
    episodes to show all of them, chosen by `seed`; None = one random observation, which tells nothing about a policy
    that decides by what it sees. Device and dtype are those of the policies: attach runtimes beforehand to choose them.

    Raises ValueError for policies that differ in views or horizon, a policy that does not fit the data, a routed one
    without data, a name that is not there, or fewer than 2 runs.
    """
    if runs < 2 or warmup < 0:
        raise ValueError(f"bench needs at least 2 runs and no negative warm-up, not {runs} and {warmup}")
    if data is not None and image is not None:
        raise ValueError(f"image={image} is for random pictures, those of data have their own size: give only one")
    neighbours = Neighbours()  # from here on: a disturbed ceiling spoils the shares just as well
    with _threads(threads):
        counts = () if steps is None else (steps,) if isinstance(steps, int) else tuple(steps)
        found = entries(policies, names, load, layers, runtimes, counts, seed)
        labels, attached = [name for name, _ in found], [runtime for _, runtime in found]
        if baseline is not None and baseline not in labels:
            raise ValueError(
                f"no policy is called {baseline!r}{registry.suggestion(baseline, labels)}: {', '.join(labels)}"
            )
        terms = [_terms(label, r, views, data) for label, r in zip(labels, attached, strict=True)]
        _check_comparable(labels, terms)
        shown = None if data is None else episodes(data, runs, attached[0].spec.replan, seed)
        lanes = [_lane(*who, shown, image, seed) for who in zip(labels, attached, terms, strict=True)]
        limits = {(lane.device, lane.dtype): ceilings(lane.device, lane.dtype) for lane in lanes}
        for lane in lanes:
            lane.weigh()
        take_turns(lanes, warmup, "warm-up")
        for lane in lanes:
            lane.forget()
        take_turns(lanes, len(shown) if shown else runs, "bench")
        fed = shown.facts() if shown else {"inputs": "random"}
        settings = {**_settings(lanes, warmup, neighbours), **fed}
    reference = next(lane for lane in lanes if lane.name == (baseline or lanes[0].name))
    rows = [_row(lane, reference, limits[lane.device, lane.dtype], settings) for lane in lanes]
    machine = {f"{place}/{str(kind)[6:]}": _rounded(limit) for (place, kind), limit in limits.items()}
    document = result.make(
        "bench", "bench", settings, rows, ceilings=machine, fit=_fit(lanes, reference), **_fits(lanes)
    )
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


def _terms(name: str, runtime: Runtime, views: int | None, data: Data | None) -> dict[str, Any]:
    """How a policy will be run. Raises ValueError where that cannot be."""
    spec, routed = runtime.spec, runtime.routed
    views = len(spec.cameras) if views is None else views
    if not 1 <= views <= len(spec.cameras):
        raise ValueError(
            f"{name} has {len(spec.cameras)} cameras: views must be from 1 to {len(spec.cameras)}, not {views}"
        )
    if data is None and routed:
        raise ValueError(
            f"{name} decides by what it sees how many layers run, and a random picture says nothing about that: give "
            "--data with recorded episodes of its robot"
        )
    if data is not None:
        _check_fits(name, runtime, spec.cameras[:views], data)
    terms = {
        "runtime": runtime.name,
        "dtype": dtypes(runtime.model),
        "device": str(next(runtime.model.parameters()).device),
        "views": views,
        "masked_views": len(spec.cameras) - views,
        "horizon": spec.horizon,
        "steps": runtime.steps or spec.steps,
    }
    return terms if data is None else {**terms, "replan": spec.replan}


def _check_fits(name: str, runtime: Runtime, cameras: Sequence[str], data: Data) -> None:
    for camera in cameras:
        if camera not in data.cameras:
            raise ValueError(
                f"{name} looks through camera {camera!r}, the data has {', '.join(data.cameras)}: give --data of the "
                "robot that it was trained for"
            )
    if runtime.spec.state_dim != data.state_dim:
        raise ValueError(
            f"{name} is for {runtime.spec.state_dim} state dimensions, the data has {data.state_dim}: give --data of "
            "the robot that it was trained for"
        )


def _check_comparable(names: Sequence[str], terms: Sequence[dict[str, Any]]) -> None:
    for key in ("views", "horizon", "replan"):  # replan: only where recorded episodes are gone through
        found = {name: its[key] for name, its in zip(names, terms, strict=True) if key in its}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"policies of different {key} cannot be compared ({told}): bench them in separate runs")


def _lane(
    name: str, runtime: Runtime, terms: dict[str, Any], shown: Episodes | None, image: int | None, seed: int
) -> Lane:
    """A policy with its feed: the same for every policy of the same shape."""
    spec, views = runtime.spec, terms["views"]
    cameras = spec.cameras[:views]
    if shown is None:
        side = image or runtime.model.example(1).images_BVCYX.shape[-1]
        return Lane(name, runtime, still(cameras, side, spec.state_dim, seed), views, {**terms, "image": side}, seed)
    feed = shown.seen_by(cameras)
    height, width = feed(0)[0][f"observation.images.{cameras[0]}"].shape[:2]
    size = height if height == width else f"{width}x{height}"
    return Lane(name, runtime, feed, views, {**terms, "image": size}, seed)


def _settings(lanes: Sequence[Lane], warmup: int, neighbours: Neighbours) -> dict[str, Any]:
    """What holds for all lanes; a condition in which they differ goes into the rows instead."""
    busy = neighbours.busy_cores()
    return {
        "runs": len(lanes[0].model_ms),
        "warmup": warmup,
        "batch": 1,
        "threads": torch.get_num_threads(),
        **{k: v for k, v in lanes[0].conditions.items() if all(o.conditions[k] == v for o in lanes)},
        "load_average": round(neighbours.load_average, 2),
        **({} if busy is None else {"busy_cores_elsewhere": round(busy, 2)}),
        "quiet": neighbours.quiet(),
    }


def _row(lane: Lane, reference: Lane, limits: dict[str, float], settings: dict[str, Any]) -> dict[str, Any]:
    totals, cost = lane.totals(), lane.cost
    floor = cost.floor_ms(**limits)
    parts = dict.fromkeys(part for times in lane.model_ms for part in times if part != "total")
    split = {part: float(np.median([times[part] for times in lane.model_ms])) for part in parts}
    latency, end_to_end = percentiles(totals), percentiles(lane.end_to_end_ms)
    against = {"against": reference.name}
    return {
        "policy": lane.name,
        "depth": lane.runtime.model.depth(),
        "runtime": lane.runtime.name,
        **{k: v for k, v in lane.conditions.items() if k not in settings},
        "ratio": {**against, **ratio(reference.totals(), totals)},
        "latency_ms": _rounded({**latency, **split}),
        "end_to_end_ratio": {**against, **ratio(np.array(reference.end_to_end_ms), np.array(lane.end_to_end_ms))},
        "end_to_end_ms": _rounded(end_to_end),
        "hz": round(1e3 / end_to_end["p50"], 3),
        **_routed(lane),
        "flops": cost.flops,
        "flop_share": round(cost.total_flops / reference.cost.total_flops, 6),
        "bytes": cost.bytes,
        "parameters": cost.parameters,
        **({} if lane.memory_mb is None else {"memory_mb": round(lane.memory_mb, 1)}),
        "floor_ms": _rounded(floor),
        "share_of_floor": round(sum(floor.values()) / latency["p50"], 4),
    }


def _routed(lane: Lane) -> dict[str, Any]:
    """What only a policy that decides for itself has: what it ran, its two bounds, and what deciding costs."""
    if not lane.runtime.routed:
        return {}
    bounds = {key: float(np.median(times)) for key, times in lane.bounds_ms.items()}
    return {"layers_run": lane.layers_run(), **_rounded(bounds), "router_flops": lane.router_flops()}


def _fit(lanes: Sequence[Lane], reference: Lane) -> dict[str, Any] | None:
    """The line through every policy that differs from the reference in depth alone and always runs all of it."""
    alike = [lane for lane in lanes if _kind(lane) == _kind(reference) and not lane.runtime.routed]
    points = {lane.name: (lane.runtime.model.depth(), float(np.median(lane.totals()))) for lane in alike}
    return fit(points) if points else None


def _fits(lanes: Sequence[Lane]) -> dict[str, Any]:
    """Such a line for every runtime and number of steps, where there are several of either."""
    kinds = dict.fromkeys(_kind(lane) for lane in lanes if not lane.runtime.routed)
    firsts = [next(lane for lane in lanes if _kind(lane) == kind) for kind in kinds]
    found = {lane.name: _fit(lanes, lane) for lane in firsts} if len(firsts) > 1 else {}
    lines = (
        [
            {"like": name, "runtime": lane.runtime.name, "steps": lane.conditions["steps"], **line}
            for (name, line), lane in zip(found.items(), firsts, strict=True)
            if line is not None
        ]
        if found
        else []
    )
    return {"fits": lines} if lines else {}


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
