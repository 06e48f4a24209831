"""Reads an openpi PyTorch checkpoint of pi0 or pi0.5: model.safetensors beside assets/<id>/norm_stats.json.

Such a folder does not say everything that openpi's training configuration says. The length of a chunk is in config.json
where the checkpoint was converted from JAX, else it must be given; the rest is openpi's default and can be given too.
Robot-specific transforms (delta actions, joint flips of Aloha, gripper conventions) are in no file and are not applied.

Verified: names and shapes against LeRobot's port of the same network, formulas against openpi's source as read. Not
verified, for want of openpi's environment: a published checkpoint end to end; that PaliGemma's tokenizer.json splits
prompts as its SentencePiece model does; images, which agree with Pillow's resizing to one level in 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lithe import source
from lithe.families import _pi_names, _prompt

STATS = "norm_stats.json"
PALIGEMMA = "google/paligemma-3b-pt-224"
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
IMAGE = 224
TEXT = {"pi05": 200, "pi0": 48}
MODES = {"pi05": "quantiles", "pi0": "mean_std"}
NAMES = {"observation.state": "state", "action": "actions"}  # ours to theirs


def recognise(folder: Path) -> bool:
    """Whether a folder looks like an openpi checkpoint in PyTorch's format."""
    return (folder / source.WEIGHTS).is_file() and any((folder / "assets").rglob(STATS))


def read(
    folder: Path,
    horizon: int | None = None,
    replan: int | None = None,
    asset: str | None = None,
    cameras: Sequence[str] = CAMERAS,
    state_in_prompt: bool = True,
) -> tuple[dict[str, Any], Path, _prompt.Normalizer, Tokenizer]:
    """PiConfig's settings, the folder again, normaliser and tokenizer; see Pi.from_openpi. Raises ValueError."""
    shapes = source.shapes(folder)
    variant = _pi_names.variant(shapes)
    written = source.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    horizon = horizon or written.get("action_horizon")
    if horizon is None:
        raise ValueError(
            f"{folder} does not say how many actions a chunk has: give openpi's action_horizon, as in "
            'Pi.from_openpi(folder, horizon=50), or write {"action_horizon": 50} into its config.json'
        )
    stats = _statistics(folder, asset)
    found = _pi_names.sizes(shapes, variant, IMAGE)
    state_dim, action_dim = (len(next(iter(its.values()))) for its in stats.values())
    wide = shapes[_pi_names.stored("state_in.weight", variant)][1] if variant == "pi0" else state_dim
    if state_dim > wide or action_dim > found["width_action"]:
        raise ValueError(
            f"the statistics in {folder} are for {state_dim} state and {action_dim} action dimensions, the model takes "
            f"at most {wide} and {found['width_action']}: they are another robot's"
        )
    settings = {
        **found,
        "text": TEXT[variant],
        "horizon": horizon,
        "replan": replan or horizon,
        "width_state": wide,
        "action_dim": action_dim,
        "state_dim": state_dim,
        "cameras": tuple(cameras),
        "state_in_prompt": state_in_prompt,
        "convention": "openpi",
    }
    normalizer = _prompt.Normalizer(MODES[variant], stats, "openpi")
    return settings, folder, normalizer, source.tokenizer(folder, PALIGEMMA)


def _statistics(folder: Path, asset: str | None) -> dict[str, dict[str, np.ndarray]]:
    assets = folder / "assets"
    found = {path.parent.relative_to(assets).as_posix(): path for path in sorted(assets.rglob(STATS))}
    if asset is None and len(found) == 1:
        asset = next(iter(found))
    if asset not in found:
        raise ValueError(
            f"say which statistics of {folder} to use: asset= one of {', '.join(found) or 'none there are'}"
        )
    path = found[asset]
    data = source.read_json(path).get("norm_stats")
    stats: dict[str, dict[str, np.ndarray]] = {}
    for ours, theirs in NAMES.items():
        if not isinstance(data, dict) or not isinstance(data.get(theirs), dict):
            raise ValueError(f"{path} has no norm_stats for {theirs!r}: compute them again with openpi")
        stats[ours] = {
            key: np.asarray(values, np.float32) for key, values in data[theirs].items() if values is not None
        }
        if not stats[ours] or any(x.ndim != 1 or not np.isfinite(x).all() or len(x) == 0 for x in stats[ours].values()):
            raise ValueError(f"{path} holds other things than finite numbers for {theirs!r}: compute them again")
    return stats
