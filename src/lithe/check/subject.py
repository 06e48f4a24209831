"""The policy of a `lithe check`: what its folder says about inputs, and its preprocessing as a function. No weights.

A policy that lithe saved is asked itself: its skeleton on the meta device still prepares batches. Of a LeRobot folder
the checked configuration, statistics and tokenizer are read. Shapes: B samples, S state, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lithe import checkpoint, source
from lithe.families import _lerobot
from lithe.families.base import Family

SIDE = 8  # of the black pictures that stand in where only numbers and words matter


@dataclass(frozen=True)
class Subject:
    """What a check needs to know of a policy."""

    name: str
    cameras: tuple[str, ...]  # as the robot calls them
    state_dim: int
    action_dim: int
    normalise: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # [B,S], [B,A] in the robot's units
    tokenizer: Tokenizer | None = None
    fps: float | None = None
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the pictures it was trained on
    looks: tuple[int, int] | None = None  # rows and columns its vision tower gets
    cut: Callable[[str, np.ndarray], bool] | None = None  # whether a prompt loses its end; ValueError if refused


def open_subject(name: str | Path) -> Subject:
    """A folder that lithe or LeRobot saved, or a hub id of one. Raises ValueError, with the fix."""
    folder = source.resolve(name).folder
    if (folder / checkpoint.CARD).is_file():
        return _own(str(name), folder)
    if (folder / _lerobot.CONFIG).is_file():
        return _foreign(str(name), folder)
    raise ValueError(f"{folder} holds no policy: neither {checkpoint.CARD} nor {_lerobot.CONFIG}; check the path")


def _own(name: str, folder: Path) -> Subject:
    card, model = checkpoint.read_card(folder), checkpoint.skeleton(folder)
    spec, path = model.spec, folder / source.TOKENIZER
    example = model.example(1).images_BVCYX.shape
    return Subject(
        name,
        spec.cameras,
        spec.state_dim,
        spec.action_dim,
        normalise=lambda state_BS, action_BA: _by_itself(model, state_BS, action_BA),
        tokenizer=source.tokenizer(folder, None) if path.is_file() else None,
        fps=card.get("fps"),
        looks=(example[-2], example[-1]),
        cut=lambda text, state_S: _is_cut(model, text, state_S),
    )


def _batch(model: Family, texts: list[str], state_BS: np.ndarray, action_BHA: np.ndarray | None = None) -> Any:
    images = {camera: np.zeros((len(texts), SIDE, SIDE, 3), np.uint8) for camera in model.spec.cameras}
    samples: dict[str, Any] = {"images": images, "state": state_BS, "task": texts}
    return model.batch(samples if action_BHA is None else {**samples, "action": action_BHA})


def _by_itself(model: Family, state_BS: np.ndarray, action_BA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The policy's own normalisation, through the batches it trains on."""
    spec, chunks = model.spec, np.repeat(action_BA[:, None], model.spec.horizon, axis=1)
    batch = _batch(model, [""] * len(state_BS), state_BS, chunks)
    state = state_BS if batch.state_BS is None else batch.state_BS[:, : spec.state_dim].numpy()
    return state, batch.actions_BHA[:, 0, : spec.action_dim].numpy()


def _is_cut(model: Family, text: str, state_S: np.ndarray) -> bool:
    """A prompt that fills the window to the last token even with a word less has lost its end."""
    less = text.rpartition(" ")[0]
    return bool(_batch(model, [text, less], np.stack([state_S, state_S])).text_BT.all())


def _foreign(name: str, folder: Path) -> Subject:
    policy = _lerobot.read(folder)
    given = {camera: _lerobot.shown_as(policy, _lerobot.CAMERA + camera) for camera in policy.cameras}
    names = {camera: key.removeprefix(_lerobot.CAMERA) for camera, key in given.items()}
    shapes = {camera: _shape(policy, camera) for camera in policy.cameras}
    longest = policy.config.get("tokenizer_max_length")

    def cut(text: str, state_S: np.ndarray) -> bool:
        return longest is not None and len(policy.tokenizer.encode(text).ids) > longest

    return Subject(
        name,
        tuple(names.values()),
        policy.state_dim,
        policy.action_dim,
        normalise=lambda state_BS, action_BA: (
            _by_statistics(policy, "STATE", _lerobot.STATE, state_BS),
            _by_statistics(policy, "ACTION", _lerobot.ACTION, action_BA),
        ),
        tokenizer=policy.tokenizer,
        sizes={names[camera]: shape for camera, shape in shapes.items() if shape},
        cut=cut,
    )


def _shape(policy: _lerobot.PolicyFolder, camera: str) -> tuple[int, int] | None:
    """Rows and columns in the configuration, which LeRobot writes channels first."""
    shape = (policy.config["input_features"].get(_lerobot.CAMERA + camera) or {}).get("shape") or []
    return (shape[1], shape[2]) if len(shape) == 3 else None


def _by_statistics(policy: _lerobot.PolicyFolder, kind: str, feature: str, values_BD: np.ndarray) -> np.ndarray:
    mode = policy.modes[kind]
    if mode == "IDENTITY":
        return values_BD
    first, second = (policy.stats[feature][name] for name in _lerobot.NEEDED[mode])
    if mode == "MEAN_STD":
        return (values_BD - first) / (second + _lerobot.EPS)
    span = np.where(second == first, _lerobot.EPS, second - first)
    return 2 * (values_BD - first) / span - 1
