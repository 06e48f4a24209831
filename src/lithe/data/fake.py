"""Random demonstrations that exist only in memory: instant, deterministic, and valid wherever real data is.

For tests and shape checks. Nothing can be learned from it beyond its mean. Shapes: see data/base.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lithe.data.base import Data, chunk_indices, statistics


class FakeData(Data):
    """`episodes` episodes of `length` frames; the same arguments give the same numbers."""

    def __init__(
        self,
        *,
        cameras: tuple[str, ...] = ("left", "right"),
        episodes: int = 4,
        length: int = 10,
        size: int = 32,
        state_dim: int = 4,
        action_dim: int = 4,
        fps: float = 10.0,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        frames = episodes * length
        self.cameras, self.fps = tuple(cameras), fps
        self.state_dim, self.action_dim = state_dim, action_dim
        self._length = length
        self.tasks = ("reach the red block", "reach the blue block")
        self._images = {c: rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8) for c in self.cameras}
        self._state_NS = rng.normal(size=(frames, state_dim)).astype(np.float32)
        self._action_NA = rng.uniform(-1, 1, (frames, action_dim)).astype(np.float32)
        self.stats = {"observation.state": statistics(self._state_NS), "action": statistics(self._action_NA)}

    def __len__(self) -> int:
        return len(self._state_NS)

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        indices_B = np.asarray(indices_B)
        episode_B = indices_B // self._length
        index_BH, padded_BH = chunk_indices(indices_B, (episode_B + 1) * self._length, horizon)
        return {
            "images": {camera: images[indices_B] for camera, images in self._images.items()},
            "state": self._state_NS[indices_B],
            "action": self._action_NA[index_BH],
            "padded": padded_BH,
            "task": [self.tasks[e % 2] for e in episode_B],
        }
