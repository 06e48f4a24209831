"""Actions counted from where the robot stands: each action of a chunk minus the state its chunk begins at.

For policies trained that way (LeRobot's `use_relative_actions`, openpi's DeltaActions), joint by joint, because a
gripper usually stays absolute. It is plain arithmetic on raw numbers, before normalisation when training and after
un-normalisation when acting, so no family needs to know of it. Statistics differ from those of absolute actions and
depend on the chunk's length. Shapes: see data/base.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lithe.data.base import Data, statistics

BLOCK = 1024  # start frames whose chunks are in memory at once


def which(names: Sequence[str], width: int, exclude: Sequence[str] = ("gripper",)) -> np.ndarray:
    """Which of `width` action dimensions are relative, bool [A]: all but those whose name contains an excluded word.

    Raises ValueError where words are excluded and the dimensions have no names to find them in.
    """
    words = [word.lower() for word in exclude if word]
    if words and len(names) != width:
        raise ValueError(
            f"{len(names)} of {width} action dimensions have names, so {', '.join(words)} cannot be left absolute: "
            "name them in meta/info.json, or exclude nothing"
        )
    return np.array([not any(word in name.lower() for word in words) for name in names] if words else [True] * width)


def to_relative(action_BHA: np.ndarray, state_BS: np.ndarray, relative_A: np.ndarray) -> np.ndarray:
    """Absolute actions as offsets from the state where `relative_A`, unchanged elsewhere."""
    return action_BHA - _offset(action_BHA, state_BS, relative_A)


def to_absolute(action_BHA: np.ndarray, state_BS: np.ndarray, relative_A: np.ndarray) -> np.ndarray:
    """The inverse: what the robot is to do, given the state it was in when the chunk was asked for."""
    return action_BHA + _offset(action_BHA, state_BS, relative_A)


def _offset(action_BHA: np.ndarray, state_BS: np.ndarray, relative_A: np.ndarray) -> np.ndarray:
    dims, states = len(relative_A), state_BS.shape[-1]
    if action_BHA.shape[-1] != dims or states < dims:
        raise ValueError(
            f"relative actions pair action dimension i with state dimension i: {action_BHA.shape[-1]} actions, "
            f"{states} states and {dims} marks do not fit; train on absolute actions, or record the joints' positions"
        )
    return (np.where(relative_A, state_BS[..., :dims], 0)[..., None, :]).astype(action_BHA.dtype)


class Relative(Data):
    """Other demonstrations with their actions relative in the dimensions `relative_A`, statistics included.

    Statistics are over all whole chunks of `horizon` actions, as LeRobot counts them.
    """

    def __init__(self, data: Data, relative_A: np.ndarray, horizon: int) -> None:
        self.data, self.relative_A, self.horizon = data, np.asarray(relative_A, bool), horizon
        self.cameras, self.fps, self.tasks = data.cameras, data.fps, data.tasks
        self.state_dim, self.action_dim = data.state_dim, data.action_dim

    def __len__(self) -> int:
        return len(self.data)

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        found = self.data.samples(indices_B, horizon)
        return {**found, "action": to_relative(found["action"], found["state"], self.relative_A)}

    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.data.vectors()

    @cached_property
    def stats(self) -> dict[str, dict[str, np.ndarray]]:  # type: ignore[override]
        chunks_MA = relative_chunks(*self.vectors(), self.relative_A, self.horizon)
        return {**self.data.stats, "action": statistics(chunks_MA)}


def relative_chunks(
    state_NS: np.ndarray,
    action_NA: np.ndarray,
    stop_N: np.ndarray,
    relative_A: np.ndarray,
    horizon: int,
    most: int | None = None,
) -> np.ndarray:
    """The relative actions [M,A] of all whole chunks, or of at most `most` of them, evenly spread.

    Raises ValueError when no episode is as long as a chunk.
    """
    start_M = np.flatnonzero(np.arange(len(stop_N)) + horizon <= stop_N)
    if not len(start_M):
        raise ValueError(f"no episode has {horizon} frames, so there is no whole chunk: choose a shorter horizon")
    if most and len(start_M) > most:
        start_M = start_M[np.linspace(0, len(start_M) - 1, most).astype(int)]
    blocks = [start_M[i : i + BLOCK] for i in range(0, len(start_M), BLOCK)]
    chunks = [to_relative(action_NA[b[:, None] + np.arange(horizon)], state_NS[b], relative_A) for b in blocks]
    return np.concatenate(chunks).reshape(-1, action_NA.shape[1])
