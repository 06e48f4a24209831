"""The reference runtime: the family's own `act`, layer by layer. Every other runtime is checked against this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lithe.runtimes.base import Runtime
from lithe.types import Batch, Route


class Eager(Runtime):
    """Plain PyTorch."""

    name: ClassVar[str] = "eager"

    def chunk(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        trace: Callable[[str], Any] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        given: dict[str, Any] = {"route": route, "memory": self.memory, "told": self.taken.append}
        return self.model.act(batch, noise_BHA, steps=self.steps, trace=trace, **given)
