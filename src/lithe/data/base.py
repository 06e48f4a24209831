"""What training asks of a dataset: random access to (images, state, action chunk, task), and its statistics.

The order of samples is a pure function of (seed, step), so a resumed run sees exactly the batches it would have seen.
Numpy only: no torch, no LeRobot.
Shapes: B batch, H action horizon, A action, S state, N frames, E episodes, Y X image rows and columns, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


class Data(ABC):
    """Demonstrations. Every frame is a possible start of a sample."""

    cameras: tuple[str, ...]  # without the prefix "observation.images."
    fps: float
    tasks: tuple[str, ...]  # every different task sentence
    state_dim: int
    action_dim: int
    stats: dict[str, dict[str, np.ndarray]]  # "observation.state" and "action" -> STATISTICS -> [S] or [A]

    @abstractmethod
    def __len__(self) -> int:
        """Number of start frames."""

    @abstractmethod
    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        """One batch, not normalised, in the order of `indices_B`.

        images: {camera: uint8 [B,Y,X,3]}; state: float32 [B,S]; action: float32 [B,H,A], the last action of an episode
        is repeated beyond its end; padded: bool [B,H], True for the repeats; task: list of B sentences.
        """

    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All states float32 [N,S], all actions float32 [N,A], and one past the last frame of each one's episode [N].

        Read through `samples`, pictures and all; a source that has the numbers apart should give them directly.
        """
        blocks = [np.arange(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        found = [self.samples(block, 2) for block in blocks]
        state_NS, action_NA = (
            np.concatenate([f["state"] for f in found]),
            np.concatenate([f["action"] for f in found]),
        )
        return state_NS, action_NA[:, 0], stops(np.concatenate([f["padded"] for f in found])[:, 1])


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation [N] of one epoch; read-only, because it is shared between calls."""
    order_N = np.random.default_rng([seed, epoch]).permutation(n)
    order_N.setflags(write=False)
    return order_N


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """The frames [B] of one training step. Epochs follow each other without a gap, so no frame is dropped."""
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"cannot draw a batch: n={n} frames, batch_size={batch_size}, step={step}")
    position_B = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch_B, offset_B = position_B // n, position_B % n
    return np.concatenate([order(seed, int(e), n)[offset_B[epoch_B == e]] for e in np.unique(epoch_B)])


def stops(last_N: np.ndarray) -> np.ndarray:
    """For every frame, one past the last frame of its episode; `last_N` marks the last frames."""
    ends_E = np.flatnonzero(last_N)
    return (ends_E + 1)[np.searchsorted(ends_E, np.arange(len(last_N)))]


def statistics(values_ND: np.ndarray) -> dict[str, np.ndarray]:
    """The six statistics over the first axis, by the names of STATISTICS."""
    quantiles = np.quantile(values_ND, (0.01, 0.99), axis=0)
    found = (values_ND.mean(0), values_ND.std(0), values_ND.min(0), values_ND.max(0), *quantiles)
    return {name: value.astype(np.float32) for name, value in zip(STATISTICS, found, strict=True)}


def chunk_indices(start_B: np.ndarray, stop_B: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames [B,H] of each chunk, held at the last frame before `stop_B`, and which of them [B,H] are such repeats."""
    index_BH = start_B[:, None] + np.arange(horizon)
    last_B1 = stop_B[:, None] - 1
    return np.minimum(index_BH, last_B1), index_BH > last_B1
