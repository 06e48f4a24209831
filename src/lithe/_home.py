"""The face that a policy folder shows LeRobot: config.json and two processor files, so that LeRobot's tools open it.

Written without LeRobot and never read by lithe: `student.json` alone says what a policy is. LeRobot rewrites these
files whenever it saves a policy, with the settings of that run in them, so they are no part of the folder's checksums;
what they say about cameras and dimensions is compared with the policy when plugins/lerobot_policy_lithe opens it.
The processors change no number, because a lithe policy prepares and normalises by itself. The normalisers among them
are IDENTITY; LeRobot's trainer insists that they are there. Format: LeRobot 0.6.1, `configs/` and `processor/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lithe.families._lerobot import ACTION, AFTER, BEFORE, CAMERA, CONFIG, DEVICE, NORMALIZE, RENAME, STATE, UNNORMALIZE

if TYPE_CHECKING:
    from lithe.families.base import Family

TYPE = "lithe"  # LeRobot's name for what the plug-in registers
FILES = (CONFIG, BEFORE, AFTER)
EMPTY = "empty_camera"  # cameras of LeRobot's that exist nowhere
IDENTITY = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}


def write(model: Family, folder: Path) -> None:
    """Write FILES for a policy; an older folder becomes a LeRobot policy by this alone."""
    inputs, outputs = _features(model)
    config = {
        "type": TYPE,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": IDENTITY,
        "chunk_size": model.spec.horizon,
        "n_action_steps": model.spec.replan,
    }
    before = [
        _step(RENAME, rename_map={}),
        _step("to_batch_processor"),
        _step(DEVICE, device="cpu", float_dtype=None),
        _step(NORMALIZE, eps=1e-8, features={**inputs, **outputs}, norm_map=IDENTITY),
    ]
    after = [
        _step(UNNORMALIZE, eps=1e-8, features=outputs, norm_map=IDENTITY),
        _step(DEVICE, device="cpu", float_dtype=None),
    ]
    _write(folder / CONFIG, config)
    for name, steps in ((BEFORE, before), (AFTER, after)):
        _write(folder / name, {"name": name.removesuffix(".json"), "steps": steps})


def feature_key(camera: str) -> str:
    """LeRobot's feature of a camera: its name behind the usual prefix, or as it is where that is a feature already."""
    return camera if camera.startswith("observation.") else CAMERA + camera


def cameras(names: tuple[str, ...]) -> dict[str, str]:
    """Camera -> feature, for those of a policy's cameras that somebody has to provide."""
    return {camera: feature_key(camera) for camera in names if not camera.startswith(EMPTY)}


def _features(model: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs. A policy takes pictures of any size; its own look is what is written down."""
    spec, picture = model.spec, model.example(1).images_BVCYX.shape[-3:]
    inputs = {key: {"type": "VISUAL", "shape": list(picture)} for key in cameras(spec.cameras).values()}
    inputs[STATE] = {"type": "STATE", "shape": [spec.state_dim]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [spec.action_dim]}}


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
