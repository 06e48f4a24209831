"""`lithe check`, third part: are states and actions usable numbers, and do the stored statistics describe them?

LeRobot keeps statistics while it records: mean, standard deviation and extremes exactly, quantiles as the mean of every
episode's own quantiles, which are narrower than the data's. Either kind of quantile passes; what was left over from
before an edit, or belongs to other units, does not. Shapes: N frames, D dimensions of a feature, E episodes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from lithe.check.damage import AGAIN, Contents
from lithe.check.findings import Findings, dimensions, listed
from lithe.data.base import STATISTICS
from lithe.data.lerobot import VECTORS, names_of

FILE = "meta/stats.json"
RECOMPUTE = "recompute them: lerobot-edit-dataset's recompute_stats, or data.statistics=computed in a recipe"
OUTSIDE = 0.2  # share of frames beyond q01 and q99 that quantiles of whole data never leave (0.02)
BEYOND = 30.0  # a normalised value that no network learns from
NUMERIC = ("float", "int", "image", "video")


def check(contents: Contents, found: Findings) -> dict[str, np.ndarray]:
    """Looks at values and statistics; returns the finite values of the vector features, [N,D]."""
    values = {key: contents.columns[key] for key in VECTORS if key in contents.columns}
    names = {key: names_of(contents.info["features"][key]) for key in VECTORS}
    constant: dict[str, np.ndarray] = {}
    for key, values_ND in values.items():
        names[key] = names[key] if len(names[key]) == values_ND.shape[1] else ()
        values[key], constant[key] = _check_values(contents, key, values_ND, names[key], found)
    if contents.whole and len(values) == len(VECTORS):
        _check_duplicates(contents, values, found)
    stats = _stats(contents, found)
    for key, about in contents.info["features"].items():
        if stats is None or not str(about.get("dtype", "")).startswith(NUMERIC):
            continue
        whole = contents.whole and key in values and len(values[key]) == len(contents.columns[key])
        picture = about["dtype"] in ("image", "video")
        own = _check_presence(key, picture, stats.get(key), values.get(key), found)
        sound = _check_sense(key, own, names.get(key, ()), constant.get(key), found)
        if whole and sound is not None and all(name in own for name in STATISTICS):
            _check_truth(contents, key, own, names[key], sound & ~constant[key], found)
    return values


# -- values ------------------------------------------------------------------------------------------------------------


def _check_values(
    contents: Contents, key: str, values_ND: np.ndarray, names: tuple[str, ...], found: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """The finite rows, and which dimensions [D] never change."""
    finite_N = np.isfinite(values_ND).all(axis=1)
    if not finite_N.all():
        bad = np.flatnonzero(~finite_N)
        dims = np.flatnonzero(~np.isfinite(values_ND).all(axis=0))
        what = f"{key} is not a finite number in {len(bad)} frames, {dimensions(dims, names)}"
        fix = "leave these episodes out (lerobot-edit-dataset), or repair what records them"
        found.error("not-finite", what, fix, feature=key, dimension=dims, **contents.place(int(bad[0])))
    values_ND = values_ND[finite_N]
    constant_D = (values_ND == values_ND[:1]).all(axis=0) if len(values_ND) > 1 else np.zeros(values_ND.shape[1], bool)
    dead = np.flatnonzero(constant_D)
    if len(dead):
        told = dimensions(dead, names)
        what = f"{key}, {told}, is {listed([f'{v:.4g}' for v in values_ND[0, dead]])} in every frame"
        fix = "check that this joint was recorded; any other value will be normalised to a huge number when acting"
        found.warning("constant", what, fix, feature=key, dimension=dead)
    return values_ND, constant_D


def _check_duplicates(contents: Contents, values: dict[str, np.ndarray], found: Findings) -> None:
    """Two episodes with the same states and actions."""
    if any(len(values[key]) != len(contents.columns[key]) for key in VECTORS):
        return
    first: dict[bytes, int] = {}
    pairs = []
    for row in contents.episodes:
        span = slice(row["dataset_from_index"], row["dataset_to_index"])
        digest = hashlib.sha256(b"".join(values[key][span].tobytes() for key in VECTORS)).digest()
        if digest in first:
            pairs.append((first[digest], row["episode_index"]))
        first.setdefault(digest, row["episode_index"])
    if pairs:
        told = listed([f"{again} repeats {one}" for one, again in pairs])
        fix = "delete the repeats (lerobot-edit-dataset): they count twice, and leak from training into validation"
        found.warning(
            "duplicate-episode", f"the same states and actions again: episode {told}", fix, episode=pairs[0][1]
        )


# -- statistics --------------------------------------------------------------------------------------------------------


def _stats(contents: Contents, found: Findings) -> dict[str, Any] | None:
    path = contents.root / FILE
    if not path.is_file():
        found.error("missing-statistics", f"the data set has no statistics ({FILE})", RECOMPUTE, file=FILE)
        return None
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found.error("missing-statistics", f"{FILE} is not valid JSON ({error})", AGAIN, file=FILE)
        return None
    return stats if isinstance(stats, dict) else {}


def _check_presence(
    key: str, picture: bool, stored: Any, values_ND: np.ndarray | None, found: Findings
) -> dict[str, np.ndarray]:
    """The statistics of a feature that are there and have its width, as [D]."""
    tell = found.error if key in VECTORS else found.warning
    stored = stored if isinstance(stored, dict) else {}
    wanted = STATISTICS if key in VECTORS else ("mean", "std", "min", "max")
    lacking = [name for name in wanted if name not in stored]
    if lacking and (key in VECTORS or picture):
        fix = "add them with lerobot's augment_dataset_quantile_stats" if {"q01", "q99"} >= set(lacking) else RECOMPUTE
        what = f"{FILE} has no {listed(lacking, 6)} for {key}"
        tell("missing-statistics", what, fix, file=FILE, feature=key, statistic=lacking)
    own = {}
    for name in STATISTICS:
        if name not in stored:
            continue
        flat = _flat(stored[name])
        if values_ND is not None and len(flat) != values_ND.shape[1]:
            what = f"{name} of {key} has {len(flat)} numbers, the data has {values_ND.shape[1]} dimensions"
            tell("degenerate-statistics", what, RECOMPUTE, file=FILE, feature=key, statistic=name)
        else:
            own[name] = flat
    return own


def _flat(value: Any) -> np.ndarray:
    """Nested lists as one row of numbers; what is no number is NaN."""
    if isinstance(value, list):
        return np.concatenate([_flat(inner) for inner in value]) if value else np.zeros(0)
    return np.array([value if isinstance(value, int | float) else np.nan], np.float64)


def _check_sense(
    key: str, own: dict[str, np.ndarray], names: tuple[str, ...], constant_D: np.ndarray | None, found: Findings
) -> np.ndarray | None:
    """Tells statistics that no data can have; returns which dimensions [D] have none, None when widths differ."""
    sizes = {len(x) for x in own.values()}
    if len(sizes) != 1:
        return None
    tell = found.error if key in VECTORS else found.warning
    good_D = np.ones(sizes.pop(), bool)

    def refuse(bad_D: np.ndarray, what: str, fix: str, *statistics: str) -> None:
        dims = np.flatnonzero(bad_D)
        if len(dims):
            told = f"{what} for {key}, {dimensions(dims, names)}"
            where = {"file": FILE, "feature": key, "statistic": list(statistics), "dimension": dims}
            tell("degenerate-statistics", told, fix, **where)
            good_D[dims] = False

    for name, x in own.items():
        refuse(~np.isfinite(x), f"{name} is not a finite number", RECOMPUTE, name)
    for low, high in (("min", "max"), ("q01", "q99"), ("min", "mean"), ("mean", "max")):
        if low in own and high in own:
            slack = 1e-5 * np.maximum(np.abs(own[low]), np.abs(own[high])) + 1e-8  # float32 on the way
            refuse(good_D & (own[low] > own[high] + slack), f"{low} is larger than {high}", RECOMPUTE, low, high)
    if "std" in own:
        refuse(good_D & (own["std"] < 0), "std is negative", RECOMPUTE, "std")
    if constant_D is not None:
        mean_std = "this dimension hardly ever changes: leave it out, or normalise by min and max"
        for low, high, what in (("min", "max", "min equals max"), ("q01", "q99", "q01 equals q99")):
            if low in own and high in own:
                refuse(good_D & ~constant_D & (own[low] == own[high]), what, f"{RECOMPUTE}; or {mean_std}", low, high)
        if "std" in own:
            refuse(good_D & ~constant_D & (own["std"] == 0), "std is zero", RECOMPUTE, "std")
    if key.startswith("observation.image") and {"min", "max"} <= own.keys():
        out_D = good_D & ((own["min"] < -1e-6) | (own["max"] > 1 + 1e-6))
        refuse(out_D, "picture statistics lie outside 0 to 1", RECOMPUTE, "min", "max")
    return good_D


def _check_truth(
    contents: Contents,
    key: str,
    own: dict[str, np.ndarray],
    names: tuple[str, ...],
    look_D: np.ndarray,
    found: Findings,
) -> None:
    """Stored statistics against those of the data itself, in the dimensions `look_D`."""
    values_ND = contents.columns[key].astype(np.float64)
    mean, std, low, high = values_ND.mean(0), values_ND.std(0), values_ND.min(0), values_ND.max(0)
    span, big = high - low, np.abs(values_ND).max(0)
    slack = {"mean": 0.05 * std + 1e-4 * big, "std": 0.05 * std + 1e-3 * big}  # float32 sums of squares cancel
    slack |= dict.fromkeys(("min", "max"), 1e-3 * span + 1e-5 * big)
    stale: dict[str, np.ndarray] = {}
    for name, truth in {"mean": mean, "std": std, "min": low, "max": high}.items():
        stale[name] = look_D & (np.abs(own[name] - truth) > slack[name])
    for name, share in {"q01": 0.01, "q99": 0.99}.items():
        whole = np.quantile(values_ND, share, axis=0)
        mixed = _episode_quantiles(contents, values_ND, share)
        below, above = np.minimum(whole, mixed) - 0.05 * span, np.maximum(whole, mixed) + 0.05 * span
        stale[name] = look_D & ((own[name] < below) | (own[name] > above))
    wrong = [name for name in STATISTICS if stale[name].any()]
    if wrong:
        dims = np.flatnonzero(np.any([stale[name] for name in wrong], axis=0))
        name, dim = wrong[0], int(np.flatnonzero(stale[wrong[0]])[0])
        truth = {"mean": mean, "std": std, "min": low, "max": high}.get(name)
        right = np.quantile(values_ND[:, dim], 0.01 if name == "q01" else 0.99) if truth is None else truth[dim]
        what = f"{listed(wrong, 6)} of {key} do not describe the data in {dimensions(dims, names)}: "
        what += f"{name} of dimension {dim} is {own[name][dim]:.4g}, in the data {right:.4g}"
        hint = " (statistics of relative actions are no description of the absolute ones stored here)"
        fix = RECOMPUTE + (hint if key == "action" else "")
        found.error("stale-statistics", what, fix, file=FILE, feature=key, statistic=wrong, dimension=dims)
    else:
        _check_reach(key, own, names, values_ND, look_D, found)


def _episode_quantiles(contents: Contents, values_ND: np.ndarray, share: float) -> np.ndarray:
    """The mean over episodes, weighted with their lengths, of each one's own quantile: what LeRobot's writer keeps."""
    total_D = np.zeros(values_ND.shape[1])
    for row in contents.episodes:
        part = values_ND[row["dataset_from_index"] : row["dataset_to_index"]]
        total_D += len(part) * np.quantile(part, share, axis=0, method="inverted_cdf")
    return total_D / len(values_ND)


def _check_reach(
    key: str,
    own: dict[str, np.ndarray],
    names: tuple[str, ...],
    values_ND: np.ndarray,
    look_D: np.ndarray,
    found: Findings,
) -> None:
    """Quantiles that leave much of the data outside, or some of it very far."""
    low, high = own["q01"], own["q99"]
    slack = 1e-5 * np.maximum(np.abs(low), np.abs(high))
    outside_D = ((values_ND < low - slack) | (values_ND > high + slack)).mean(0)
    reach_D = np.abs(2 * (values_ND - low) / np.maximum(high - low, 1e-12) - 1).max(0)
    dims = np.flatnonzero(look_D & ((outside_D > OUTSIDE) | (reach_D > BEYOND)))
    if len(dims):
        worst = dims[np.argmax(outside_D[dims])]
        far = dims[np.argmax(reach_D[dims])]
        what = (
            f"q01 and q99 of {key} are too narrow in {dimensions(dims, names)}: {100 * outside_D[worst]:.0f} % of the "
            f"frames lie outside, and values normalise to {reach_D[far]:.3g}"
        )
        fix = "LeRobot averages them over episodes: compute them over all frames (data.statistics=computed in a recipe)"
        where = {"file": FILE, "feature": key, "statistic": ["q01", "q99"], "dimension": dims}
        found.warning("narrow-quantiles", what, fix, **where)
