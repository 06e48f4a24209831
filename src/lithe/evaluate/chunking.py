"""Real-time chunking (Black, Galliker and Levine, arXiv 2506.07339): the rest of the old chunk steers the new one.

    v'(x, t) = v - w(t) * W * (left - (x - t*v))      w(t) = min((t^2 + (1-t)^2) / (t * (1-t)), most)   t = 1 is noise
    W_i = 1 for i < delay (executed anyway), falling to 0 at `end`, from where the new chunk is free

Departures: x - t*v is what the model expects the chunk to be, and its Jacobian by x is taken as the identity, so that
nothing is differentiated through the model; LeRobot's RTCProcessor does the same, and a test compares the two. The one
place for this arithmetic: `lithe eval` and plugins/lerobot_policy_lithe use it. Source of the formula: the paper.
Shapes: B batch, T left-over actions, H chunk, A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lithe.runtimes.base import Runtime

SCHEDULES = ("zeros", "ones", "linear", "exp")  # how W falls between delay and end; exp is the paper's


def weights(delay: int, end: int, horizon: int, schedule: str = "exp") -> Tensor:
    """W [H]. Nothing at or behind `end` counts."""
    i_H = torch.arange(horizon, dtype=torch.float32)
    delay = min(delay, end)
    fall_H = ((end - i_H) / (end - delay + 1)).clamp(0, 1)
    between_H = {
        "zeros": torch.zeros(horizon),
        "ones": torch.ones(horizon),
        "linear": fall_H,
        "exp": fall_H * torch.expm1(fall_H) / (math.e - 1),
    }[schedule]
    return torch.where(i_H < delay, torch.ones(horizon), between_H) * (i_H < end)


@dataclass(frozen=True)
class Guide:
    """What `Family.act` asks at every denoise step. left_BTA: in model units; most: the strongest pull."""

    left_BTA: Tensor
    weight_H: Tensor
    most: float

    def strength(self, time: float) -> float:
        """w(t)."""
        if time >= 1:
            return self.most
        return min((time**2 + (1 - time) ** 2) / (time * (1 - time)), self.most)

    def error(self, x_BHA: Tensor, time: float, velocity_BHA: Tensor) -> Tensor:
        """How far the expected chunk is from what is left, weighted."""
        left_BHA = torch.zeros_like(x_BHA)
        left_BHA[:, : self.left_BTA.shape[1]] = self.left_BTA.to(x_BHA)
        return (left_BHA - (x_BHA - time * velocity_BHA)) * self.weight_H.to(x_BHA)[:, None]

    def __call__(self, x_BHA: Tensor, time: float, velocity_BHA: Tensor) -> Tensor:
        return velocity_BHA - self.strength(time) * self.error(x_BHA, time, velocity_BHA)


def steered(policy: Runtime, observation: dict[str, Any], left_TA: np.ndarray, delay: int) -> np.ndarray:
    """A chunk as `policy.infer` gives it, that goes on where `left_TA`, in the robot's units, leads. float32 [H, A].

    delay: of what is left, the actions that will be executed before the chunk arrives. The strongest pull is one that a
    single denoise step makes whole. For policies without a router's memory; noise and session are the policy's own.
    """
    model, spec = policy.model, policy.spec
    samples = {
        "images": {camera: observation[f"observation.images.{camera}"][None] for camera in spec.cameras},
        "state": observation["observation.state"][None].astype(np.float32),
        "task": [observation["task"]],
        "action": left_TA[None],
    }
    device = next(model.parameters()).device
    batch = model.batch(samples).to(device)
    assert batch.actions_BHA is not None
    assert policy.memory is None
    steps = policy.steps or spec.steps
    guide = Guide(batch.actions_BHA, weights(delay, len(left_TA), spec.horizon), float(steps))
    seen, noise_BHA = replace(batch, actions_BHA=None), model.noise(1, policy.generator).to(device)
    given: dict[str, Any] = {"told": policy.taken.append, "guide": guide}
    return model.actions(model.act(seen, noise_BHA, steps=policy.steps, **given), seen)[0].numpy()
