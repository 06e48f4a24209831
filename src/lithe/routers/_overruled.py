"""A router that is asked as ever, and overruled: to time what the shortest and the longest of its answers cost.

Whatever it computes to decide, its probes and adapters included, still runs; only the decision is another one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lithe.routers.base import Memory, Probe, Router, Sight


class Overruled(Router):
    """short: skip all that `router` may ever skip, crossing wherever it can as early as it can; else skip nothing."""

    name: ClassVar[str] = "overruled"

    def __init__(self, router: Router, short: bool):
        super().__init__(router.sizes)
        self.router, self.short = router, short

    def ahead(self, sight: Sight, memory: Memory | None) -> Tensor | None:
        return self.router.ahead(sight, memory)

    def harden(self, gates_BL: Tensor) -> Tensor:
        return self.router.closed(gates_BL) if self.short else torch.ones_like(self.router.harden(gates_BL))

    def landing(self, i: int) -> int | None:
        return self.router.landing(i)

    def crosses(self, i: int, x_BND: Tensor, valid_BN: Tensor, probe: Probe | None) -> bool:
        self.router.crosses(i, x_BND, valid_BN, probe)
        return self.short and self.router.may_cross(i)

    def bridge(self, stream: str, i: int, x: Tensor) -> Tensor:
        return self.router.bridge(stream, i, x)
