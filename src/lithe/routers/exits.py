"""Exits: stop both streams as soon as one layer more no longer changes the actions.

Before layer i, for every i in `exits`, one denoise step from the sampled noise through the layers so far gives an
estimate of the actions. Where it is no farther than the exit's threshold from the estimate before it, no later layer
runs. The distance is the root mean square over the chunk's real action dimensions, in model units. The estimate before
the first exit's is that of the first `reference` layers. Thresholds are fitted to data once training has ended; until
then the router refuses to act. Source: DeeR-VLA (arXiv 2411.02359), "action consistency".

Costs: the probes of a whole pass are one denoise step more, and every exit reads one number back from the device. The
trunk layer before an exit has run whole although its keys and values would have been enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lithe.routers.base import Probe, Router, Sizes
from lithe.types import Route
from lithe.work import Parts, Work

UNFITTED, NEVER = float("-inf"), -1.0  # thresholds below every distance


class Exits(Router):
    """exits: numbers of layers behind which it may stop. shares: how many observations are meant to stop at each of
    them, and how many at none. action_dim: real action dimensions."""

    name: ClassVar[str] = "exits"

    def __init__(self, sizes: Sizes, exits: Sequence[int], shares: Sequence[float], reference: int, action_dim: int):
        super().__init__(sizes)
        rising = [reference, *exits, sizes.depth]
        seen = reference > 0 or not exits  # an estimate of no layers is the same for all observations
        if rising != sorted(set(rising)) or reference < 0 or not seen or len(shares) != len(exits) + 1:
            raise ValueError(
                f"exits behind {list(exits)} layers of {sizes.depth}, with the estimate of {reference} layers before "
                f"them and {len(shares)} shares, make no sense: give increasing numbers from 1, and a share more than "
                "exits"
            )
        self.exits, self.shares, self.reference, self.action_dim = tuple(exits), tuple(shares), reference, action_dim
        self.register_buffer("thresholds", torch.full((len(exits),), UNFITTED))
        self.thresholds: Tensor

    def landing(self, i: int) -> int | None:
        return self.sizes.depth if self.exits and i in (self.reference, *self.exits) else None

    def may_cross(self, i: int) -> bool:
        return i in self.exits

    def crosses(self, i: int, x_BND: Tensor, valid_BN: Tensor, probe: Probe | None) -> bool:
        assert probe is not None, "exits are for acting"
        if not probe.before:
            self._demand_thresholds()
            probe()
            return False
        moved_B = self.distance(probe(), probe.before[-2])
        return bool(moved_B[0] <= self.thresholds[self.exits.index(i)])

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        """The probes up to the one that said stop."""
        asked = (self.reference, *self.exits) if self.exits else ()
        return {"prefix": parts.probed(route, [i for i in asked if i <= sum(route.run)])}

    def distance(self, a_BHA: Tensor, b_BHA: Tensor) -> Tensor:
        """Root mean square difference of two chunks over real action dimensions, [B]."""
        return (a_BHA - b_BHA)[..., : self.action_dim].float().square().mean(dim=(1, 2)).sqrt()

    def _demand_thresholds(self) -> None:
        if bool((self.thresholds == UNFITTED).any()):
            raise ValueError(
                "this student's exits have no thresholds yet: they are fitted to data when training ends, so let its "
                "run go on to its last step, or act with a route of your own"
            )


def fit(moved_NE: Tensor, shares: Sequence[float]) -> Tensor:
    """Thresholds [E] at which `shares` of the N observations stop at each exit, each within 1/N unless distances tie.

    moved_NE: every observation's distance at every exit. Exit by exit, among the observations that are still there,
    the threshold is the distance of the last one that is to stop. Raises ValueError for fewer observations than shares.
    """
    total, left = len(moved_NE), torch.ones(len(moved_NE), dtype=torch.bool)
    if total < len(shares):
        raise ValueError(
            f"{len(shares)} exits cannot be fitted to {total} observations: calibrate with more of them, or have fewer "
            "exits"
        )
    found = []
    for k in range(len(shares) - 1):
        due = math.floor(total * sum(shares[: k + 1]) / sum(shares) + 0.5) - int((~left).sum())
        found.append(float(moved_NE[left, k].sort().values[due - 1]) if due > 0 else NEVER)
        left &= moved_NE[:, k] > found[-1]
    return torch.tensor(found)
