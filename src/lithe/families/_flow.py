"""Flow matching in openpi's convention: x_t = t*noise + (1-t)*actions, target velocity noise - actions, t = 1 is noise.

The papers that write tau = 1 - t with the opposite sign of the velocity describe the same thing; `from_tau` converts.
Source: openpi's `pi0.py`, read for its conventions. Shape legend: types.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Guide = Callable[[Tensor, float, Tensor], Tensor]  # (noisy chunk, its time, its velocity) -> the velocity to follow


def sample_time(shape: tuple[int, ...], generator: torch.Generator, alpha: float = 1.5) -> Tensor:
    """Times from Beta(alpha, 1) * 0.999 + 0.001, by inverting the distribution function u = x**alpha."""
    return torch.rand(shape, generator=generator).pow(1.0 / alpha) * 0.999 + 0.001


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy chunk x_t and the target velocity; time broadcasts over the last two axes."""
    t = time[..., None, None]
    return t * noise + (1.0 - t) * actions, noise - actions


def from_tau(velocity_tau: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity and time of the tau convention (tau = 1 is data) in ours: the sign flips, t = 1 - tau."""
    return -velocity_tau, 1.0 - tau


def euler(
    velocity: Callable[[Tensor, Tensor, int], Tensor], noise: Tensor, steps: int, guide: Guide | None = None
) -> Tensor:
    """Integrate from t = 1 to t = 0 in `steps` equal steps. `velocity(x, time_B, step)`; no host synchronisation."""
    if steps < 1:
        raise ValueError(f"the number of denoise steps must be at least 1, not {steps}")
    x, dt = noise, -1.0 / steps
    for step in range(steps):
        now = 1.0 + step * dt
        flow = velocity(x, torch.full((len(x),), now, dtype=torch.float32, device=x.device), step)
        x = x + dt * (flow if guide is None else guide(x, now, flow))
    return x


def time_embedding(time: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Sines and cosines of the time at geometrically spaced periods, [..., width]; computed in float64."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = shortest * (longest / shortest) ** fraction
    angle = time.double()[..., None] * (2.0 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()
