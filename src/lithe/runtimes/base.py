"""Runtime: how a policy is executed. Every runtime must give the same actions for the same noise as `eager`.

A runtime is a policy: `infer(observation)` and `reset()`. It owns the noise generator, so that a session is a function
of its seed; it holds per-episode state (router memory) and `reset` clears it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lithe.families.base import Family
from lithe.types import Batch, Observation, Spec


class Runtime(ABC):
    """Attach a way of running to a model. Raises ValueError when device or model do not allow it."""

    name: ClassVar[str]

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0):
        self.model, self.steps = model.eval(), steps
        self.reset(seed)

    @property
    def spec(self) -> Spec:
        return self.model.spec

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: the noise stream restarts at `seed` and all memory of the last episode is gone."""
        self.generator = torch.Generator().manual_seed(seed)

    def infer(self, observation: Observation) -> np.ndarray:
        """One chunk of actions in the robot's units, float32 [H, A]."""
        device = next(self.model.parameters()).device
        batch = self.model.observe([observation]).to(device)
        chunk = self.chunk(batch, self.model.noise(1, self.generator).to(device))
        return self.model.actions(chunk, batch)[0].numpy()

    @abstractmethod
    def chunk(self, batch: Batch, noise_BHA: Tensor, trace: Callable[[str], Any] | None = None) -> Tensor:
        """One chunk in model units. `trace(part)` is called after "vision", "prefix" and "denoise"."""
