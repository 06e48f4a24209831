"""What every trunk loop does with a route and with taps: which layers run, how a soft one is mixed in, what is seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lithe.types import Route, Tap


def running(route: Route | None, depth: int) -> tuple[bool, ...]:
    """Which layers run. Raises ValueError for a route of another depth."""
    chosen = (True,) * depth if route is None else route.run
    if len(chosen) != depth:
        raise ValueError(f"the route is for {len(chosen)} layers, the model has {depth}")
    return chosen


def mix(before: Tensor, after: Tensor, route: Route | None, layer: int) -> Tensor:
    """Soft routing: exact at share 0 and at share 1, in every dtype."""
    if route is None or route.share_BL is None:
        return after
    return torch.lerp(before, after, route.share_BL[:, layer, None, None].to(after.dtype))


def record(seen: dict[Tap, Tensor] | None, taps: Sequence[Tap], tap: Tap, x: Tensor) -> None:
    """Keep `x` where it was asked for."""
    if seen is not None and tap in taps:
        seen[tap] = x
