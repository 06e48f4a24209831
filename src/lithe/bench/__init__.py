"""`lithe bench`: how fast policies run on this machine, as ratios first and against the machine's own measured floor.

Every policy is loaded once and sees the same at batch 1: recorded episodes, or one random observation. Two boundaries
are timed: the model (a Batch in memory to actions, split into vision, prefix and denoise) and end to end (uint8
pictures to float actions in host memory, `Runtime.infer`); router and repeated passes are inside both. All policies
take turns within each iteration, in an order drawn anew each time, so that drift hits all of them alike. What the
numbers mean, and what they do not, is in docs/measuring.md; the instruments are in measure.py, one policy's sessions in
lanes.py, other implementations of it in peers.py, what is published in rows.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lithe import api, registry, result
from lithe._tables import bench_table, peace
from lithe.bench.feed import TASK, Episodes, episodes, still
from lithe.bench.lanes import Lane, dtypes, take_turns
from lithe.bench.peers import LeRobot, PeerLane
from lithe.bench.rows import fit, fit_like, fits, ratio, rounded, row
from lithe.bench.variants import Entry, entries
from lithe.data.base import Data
from lithe.families.base import Family
from lithe.measure import Neighbours, ceilings
from lithe.measure import check as check_device
from lithe.runtimes.base import Runtime

__all__ = ["bench", "fit", "load", "ratio", "table"]

table = bench_table


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
    peers: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Time policies against each other in one run; a Result of kind "bench".

    policies: policy folders of lithe, LeRobot or openpi, hub ids, "family:preset" for random weights, loaded families,
    or runtimes already attached. names: one each (default: folder name, or family and depth). runs, warmup: iterations,
    each times every policy once at either boundary; with data whole episodes, more until each task was met. steps:
    denoise steps (None = each policy's own). views: live cameras (None = all the policy has). runtimes: for whatever is
    not a runtime yet. layers: depths to which each policy is cut (() = as it is). Of several runtimes, depths or
    numbers of steps every combination takes part. baseline: name of the policy ratios refer to (default: the first).
    threads: of torch, restored afterwards. image: side of the camera pictures (None = the model's own, nothing to
    resize). data: recorded episodes to show all of them, chosen by `seed`; None = one random observation, which tells
    nothing about a policy that decides by what it sees. peers: other implementations to stand beside every policy with
    its weights: "lerobot", "lerobot-compiled", or "lerobot-compiled:<mode of torch.compile>". device, dtype: where and
    in which type to load policies that are named, such as "cuda" and "bfloat16"; loaded ones and runtimes are taken as
    they are.

    Raises ValueError for policies that differ in views or horizon, a policy that does not fit the data, a routed one
    without data, a peer that cannot host a policy or does not agree with it, a name or device that is not there, fewer
    than 2 runs, or a number below 1.
    """
    if runs < 2 or warmup < 0:
        raise ValueError(f"bench needs at least 2 runs and no negative warm-up, not {runs} and {warmup}")
    _check_positive(threads=threads, image=image, steps=steps)
    if data is not None and image is not None:
        raise ValueError(f"image={image} is for random pictures, those of data have their own size: give only one")
    neighbours = Neighbours()  # from here on: a disturbed ceiling spoils the shares just as well
    with _threads(threads):
        counts = () if steps is None else (steps,) if isinstance(steps, int) else tuple(steps)
        placed = partial(load, device=device, dtype=dtype, depth=max(layers, default=None))
        _check_named(policies, device, dtype)
        found = entries(policies, names, placed, layers, runtimes, counts, seed, peers)
        labels, attached = [entry.name for entry in found], [entry.runtime for entry in found]
        if baseline is not None and baseline not in labels:
            raise ValueError(
                f"no policy is called {baseline!r}{registry.suggestion(baseline, labels)}: {', '.join(labels)}"
            )
        terms = [_terms(label, r, views, data) for label, r in zip(labels, attached, strict=True)]
        _check_comparable(labels, terms)
        shown = None if data is None else episodes(data, runs, attached[0].spec.replan, seed)
        lanes = [_lane(entry, its, shown, image, seed) for entry, its in zip(found, terms, strict=True)]
        limits = {(lane.device, lane.dtype): ceilings(lane.device, lane.dtype) for lane in lanes}
        for lane in lanes:
            lane.weigh()
        take_turns(lanes, warmup, "warm-up")
        for lane in lanes:
            lane.forget()
        take_turns(lanes, len(shown) if shown else runs, "bench")
        limits = {key: ceilings(*key) for key in limits}  # once more: the largest of both counts
        for lane in lanes:
            lane.count()
        fed = shown.facts() if shown else {"inputs": "random"}
        settings = {**_settings(lanes, warmup, neighbours), **fed}
    reference = next(lane for lane in lanes if lane.name == (baseline or lanes[0].name))
    met = shown.episode if shown else None
    rows = [row(lane, reference, limits[lane.device, lane.dtype], settings, met) for lane in lanes]
    machine = {f"{place}/{str(kind)[6:]}": rounded(limit) for (place, kind), limit in limits.items()}
    document = result.make(
        "bench", "bench", settings, rows, ceilings=machine, fit=fit_like(lanes, reference), **fits(lanes)
    )
    if not settings["quiet"]:
        logging.getLogger(__name__).warning(peace(settings))
    return document


def load(source: str | Path, device: str | None = None, dtype: str | None = None, depth: int | None = None) -> Family:
    """As `lithe.load`, then moved; a preset, never fitted to data, also gets statistics, so that it can run end to end.

    depth: layers that a preset is made with, for who needs no more of them; policies of a folder have their own.
    What a preset begins with at zero (adaptive norms, biases) is moved too: a policy whose layers do nothing says the
    same whatever its weights, and comparing its actions would compare nothing.
    """
    wanted = api.preset(source)
    if wanted is not None and depth is not None:
        model = api.fresh(replace(wanted, settings={**wanted.settings, "depth": depth}))
    else:
        model = api.load(source)
    if wanted is not None:
        spec, spread = model.spec, {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
        sizes = {"observation.state": spec.state_dim, "action": spec.action_dim}
        stats = {key: {name: np.full(size, x, np.float32) for name, x in spread.items()} for key, size in sizes.items()}
        model.fit_to(stats, [TASK], spec.cameras)
        _stir(model)
    return model.to(device=device, dtype=_dtype(dtype))


def _stir(model: Family) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                spread = 0.3 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
                parameter.normal_(0, spread, generator=generator)


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name is not None and name not in known:
        raise ValueError(
            f"dtype must be one of {', '.join(known)}, not {name!r}{registry.suggestion(name, list(known))}"
        )
    return None if name is None else known[name]


def _check_positive(**settings: int | Sequence[int] | None) -> None:
    for name, value in settings.items():
        numbers = [] if value is None else [value] if isinstance(value, int) else value
        if any(number < 1 for number in numbers):
            raise ValueError(f"{name} must be at least 1, not {value}: leave it out for the default")


def _check_named(policies: Sequence[Any], device: str | None, dtype: str | None) -> None:
    """Raises ValueError for settings that would be ignored, and a device that is not there."""
    _dtype(dtype)
    if device is not None:
        place, there = check_device(device), torch.cuda.device_count()
        if place.type == "cuda" and (place.index or 0) >= there:
            raise ValueError(
                f"device={device!r} is not among the {there} CUDA devices here: leave it out, or choose one"
            )
    if (device or dtype) and any(isinstance(policy, (Family, Runtime)) for policy in policies):
        raise ValueError("device and dtype are for policies that are loaded by name: move loaded ones with .to(...)")


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
        "runtime": runtime.title,
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


def _lane(entry: Entry, terms: dict[str, Any], shown: Episodes | None, image: int | None, seed: int) -> Lane:
    """A policy with its feed: the same for every policy of the same shape."""
    runtime, views = entry.runtime, terms["views"]
    spec = runtime.spec
    cameras = spec.cameras[:views]
    if shown is None:
        side = image or runtime.model.example(1).images_BVCYX.shape[-1]
        feed: Any = still(cameras, side, spec.state_dim, seed)
        size: Any = side
    else:
        feed = shown.seen_by(cameras)
        height, width = feed(0)[0][f"observation.images.{cameras[0]}"].shape[:2]
        size = height if height == width else f"{width}x{height}"
    rest = (feed, views, {**terms, "image": size}, seed)
    lane = (
        PeerLane(entry.name, runtime, *rest, beside=entry.beside)
        if isinstance(runtime, LeRobot)
        else Lane(entry.name, runtime, *rest)
    )
    lane.attach_s = None if entry.attach_s is None else entry.attach_s + lane.check_s
    return lane


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


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
