"""Actions counted from where the robot stands: each action of a chunk minus the state its chunk begins at.

For policies trained that way (LeRobot's `use_relative_actions`, openpi's DeltaActions), joint by joint, because a
gripper usually stays absolute. It is plain arithmetic on raw numbers: before normalisation when training, after
un-normalisation when acting. The policy's statistics are those of relative actions. Shape legend: types.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def which(names: Sequence[str] | None, width: int, exclude: Sequence[str]) -> tuple[bool, ...]:
    """Which of `width` action dimensions are relative: all but those whose name contains an excluded word.

    As LeRobot does it: where dimensions have no names, nothing is left absolute.
    """
    words = [word.lower() for word in exclude if word]
    named = [name.lower() for name in names or ()][:width]
    marks = [not any(word in name for word in words) for name in named]
    return tuple(marks + [True] * (width - len(marks)))


def origin(state_BS: np.ndarray, relative_A: Sequence[bool]) -> np.ndarray:
    """What the actions of a chunk count from, [B, A]: the state where they are relative, else 0. ValueError."""
    dims, states = len(relative_A), state_BS.shape[-1]
    if states < dims:
        raise ValueError(
            f"relative actions pair action dimension i with state dimension i: {dims} actions and {states} states do "
            "not fit; train on absolute actions, or record the joints' positions"
        )
    return np.where(np.asarray(relative_A, bool), state_BS[..., :dims], 0).astype(state_BS.dtype)
