"""`lithe check`, last part: does a policy fit a data set? No weights are read.

Normalisation is judged by what it does, not by how it is stored: the policy's own preprocessing is given the data's 1 %
and 99 % quantiles, and what comes out should be of the size networks are trained on. That finds an inert normaliser,
other units and another robot's statistics alike, in every family. Shapes: B samples, S state, A action, D either.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lithe.check.damage import Contents
from lithe.check.findings import Findings, dimensions, listed
from lithe.check.pictures import size_of
from lithe.check.subject import Subject
from lithe.data._cache import feature_key
from lithe.data.lerobot import VECTORS, names_of
from lithe.registry import suggestion

# Narrowest, widest, farthest from zero: sound data normalises its 1 % and 99 % to -1 and 1 by quantiles, to about -2
# and 2 by mean and deviation, and to a distance of 10 where one frame in a hundred is an outlier.
WILD, STRANGE = (0.1, 40.0, 5.0), (0.25, 12.0, 2.0)
SMALLER = 2.0  # times a picture may be smaller than what the policy looks at
LONGER = 2.0  # ratio of sides beyond which most of a square is padding
EMPTY = "empty_camera"  # LeRobot's cameras that exist nowhere


def check(
    policy: Subject,
    contents: Contents,
    values: dict[str, np.ndarray],
    found: Findings,
    fps: float | None,
    rename: dict[str, str],
) -> None:
    """Every misfit as a finding. values: the finite rows of the vector features. rename: dataset camera -> policy's."""
    _check_cameras(policy, contents, rename, found)
    _check_pictures(policy, contents, rename, found)
    _check_rate(policy, contents, fps, found)
    _check_words(policy, contents, found)
    if _check_widths(policy, contents, found) and len(values) == len(VECTORS) and all(map(len, values.values())):
        _check_prompts(policy, contents, values["observation.state"], found)
        _check_units(policy, contents, values, found)


def _check_cameras(policy: Subject, contents: Contents, rename: dict[str, str], found: Findings) -> None:
    names = {camera: rename.get(camera, camera) for camera in contents.cameras}
    for camera in rename:
        if camera not in names:
            what = f"there is no camera {camera!r} to rename{suggestion(camera, tuple(names))}"
            found.error("cameras", what, f"rename one of {', '.join(names)}", camera=camera)
    free = [camera for camera, name in names.items() if name not in policy.cameras]
    missing = [c for c in policy.cameras if c not in names.values() and not c.startswith(EMPTY)]
    for camera in missing:
        guess = suggestion(camera, free)
        near = next((c for c in free if repr(c) in guess), free[0] if len(free) == len(missing) == 1 else None)
        there = ", ".join(names.values()) or "none"
        what = f"the policy looks through camera {camera!r}, which the data set does not have{guess} (it has {there})"
        fix = f"rename it: data.rename.{near}={camera}" if near else "record this camera, or rename one: data.rename"
        found.error("cameras", what, fix, camera=camera)


def _check_pictures(policy: Subject, contents: Contents, rename: dict[str, str], found: Findings) -> None:
    for camera in contents.cameras:
        name, key = rename.get(camera, camera), feature_key(contents.info, camera)
        if name not in policy.cameras:
            continue
        size, told = size_of(contents.info["features"][key]), {"feature": key, "camera": camera}
        trained = policy.sizes.get(name)
        pixels = f"{size[0]} x {size[1]} pixels"
        if trained and abs(size[0] / size[1] * trained[1] / trained[0] - 1) > 0.05:
            what = f"camera {camera} has {pixels}, the policy was trained on {trained[0]} x {trained[1]}"
            fix = "crop or record to the same proportions; other ones are padded differently"
            found.warning("picture-aspect", what, fix, **told)
        elif max(size) / min(size) > LONGER:
            what = f"camera {camera} has {pixels}: most of the square that the policy sees will be black"
            found.warning("picture-aspect", what, "crop the pictures", **told)
        if policy.looks and max(size) * SMALLER < max(policy.looks):
            what = f"camera {camera} has {pixels}, the policy looks at {policy.looks[0]} x {policy.looks[1]}"
            found.warning("picture-small", what, "record larger pictures; these are blown up", **told)


def _check_rate(policy: Subject, contents: Contents, fps: float | None, found: Findings) -> None:
    wanted, there = fps or policy.fps, float(contents.info["fps"])
    if wanted and abs(wanted - there) > 0.01 * there:
        what = f"the policy acts at {wanted:g} actions a second, the data set was recorded at {there:g}"
        fix = f"resample the data set to {wanted:g} fps, or let the robot act at {there:g}; nothing is resampled here"
        found.error("fps", what, fix, file="meta/info.json")


def _check_widths(policy: Subject, contents: Contents, found: Findings) -> bool:
    """Whether states and actions have the policy's dimensions."""
    wanted = dict(zip(VECTORS, (policy.state_dim, policy.action_dim), strict=True))
    fits = True
    for key, width in wanted.items():
        shape = contents.columns[key].shape[1:] if key in contents.columns else contents.info["features"][key]["shape"]
        if shape[0] != width:
            names = names_of(contents.info["features"][key])
            what = f"the policy's {key} has {width} dimensions, the data set's {shape[0]}"
            what += f" ({listed(names, 8)})" if names else ""
            found.error("dimensions", what, "use a policy or a data set of this robot", feature=key)
            fits = False
    return fits


# -- words -------------------------------------------------------------------------------------------------------------


def _check_words(policy: Subject, contents: Contents, found: Findings) -> None:
    """Words that a tokenizer of whole words has no number for."""
    if policy.tokenizer is None:
        return
    model = json.loads(policy.tokenizer.to_str())["model"]
    if model["type"] != "WordLevel":
        return
    unknown = {text: words for text in contents.tasks.values() if (words := _unknown(policy.tokenizer, model, text))}
    words = sorted({word for found_here in unknown.values() for word in found_here})
    if words:
        text = next(iter(unknown))
        share = f"{len(unknown)} of {len(contents.tasks)} instructions"
        what = f"the policy does not know the word {listed(words)}, in {share}"
        fix = "say it in words the policy was trained on, or train it on these"
        found.error("vocabulary", what, fix, task=text)


def _unknown(tokenizer: Tokenizer, model: dict[str, Any], text: str) -> list[str]:
    text = str(text or "").replace("_", " ")  # as every family's prompt does
    encoded = tokenizer.encode(text)
    pairs = zip(encoded.tokens, encoded.offsets, strict=True)
    return [text[start:stop] for token, (start, stop) in pairs if token == model["unk_token"]]


def _check_prompts(policy: Subject, contents: Contents, state_NS: np.ndarray, found: Findings) -> None:
    """Instructions that do not fit into the policy's prompt."""
    if policy.cut is None:
        return
    for text in dict.fromkeys(contents.tasks.values()):
        try:
            cut = policy.cut(str(text or ""), state_NS[0])
        except ValueError as error:
            found.error("prompt", str(error), "shorten the instruction in meta/tasks.parquet", task=text)
            continue
        if cut:
            what = "the instruction is longer than the policy's prompt, and its end is cut off"
            found.warning("prompt", what, "shorten the instruction in meta/tasks.parquet", task=text)


# -- units -------------------------------------------------------------------------------------------------------------


def _check_units(policy: Subject, contents: Contents, values: dict[str, np.ndarray], found: Findings) -> None:
    """What the policy's normalisation makes of the data's quantiles."""
    raw = {key: np.quantile(values[key].astype(np.float64), (0.01, 0.99), axis=0).astype(np.float32) for key in VECTORS}
    try:
        seen = dict(zip(VECTORS, policy.normalise(raw["observation.state"], raw["action"]), strict=True))
    except ValueError as error:
        found.error("policy", str(error), "fetch or save the policy again", file=policy.name)
        return
    for key in VECTORS:
        names = names_of(contents.info["features"][key])
        names = names if len(names) == raw[key].shape[1] else ()
        low, high = seen[key][0].astype(np.float64), seen[key][1].astype(np.float64)
        moving_D = raw[key][1] > raw[key][0]
        inert = np.array_equal(seen[key], raw[key])
        wild = np.flatnonzero(moving_D & _beyond(low, high, WILD))
        strange = np.flatnonzero(moving_D & _beyond(low, high, STRANGE))
        dims = wild if len(wild) else strange
        if not len(dims):
            continue
        tell = found.error if len(wild) else found.warning
        dim = int(dims[0])
        span = f"the data's 1 % to 99 % ({raw[key][0, dim]:.4g} to {raw[key][1, dim]:.4g})"
        what = f"{key}, {dimensions(dims, names)}: {span} becomes {low[dim]:.3g} to {high[dim]:.3g} for the network"
        if inert:
            kind, fix = "inert-normaliser", "give the policy the statistics of its data; it passes on what it is given"
        else:
            kind = "units"
            fix = "check units, order and signs of the dimensions; the policy's statistics are of other data"
        tell(kind, what, fix, feature=key, dimension=dims)


def _beyond(low_D: np.ndarray, high_D: np.ndarray, limits: tuple[float, float, float]) -> np.ndarray:
    """Where a normalised range is too narrow, too wide, too far from zero, or no number."""
    narrow, wide, far = limits
    width_D = high_D - low_D
    return ~((width_D >= narrow) & (width_D <= wide) & (low_D <= far) & (high_D >= -far))
