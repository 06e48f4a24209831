"""The packed form with matrices in 8 bits where this CPU multiplies them faster; everything else as it was.

Which ones is found by timing each shape once when the runtime is attached: a small policy keeps none and is what
`packed` is. Actions differ from eager's by more than rounding; `error` and `cosine` say by how much, and below
`least_cosine` the policy is refused. Embeddings, the way into and out of the expert and all norms are never rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from lithe.families.base import Family
from lithe.runtimes._int8 import Choice
from lithe.runtimes.packed import Packed


class Quantized(Packed):
    """everywhere: round all matrices whatever it brings, to look at the error. Raises ValueError away from CPUs."""

    name: ClassVar[str] = "quantized"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    least_cosine: ClassVar[float | None] = 0.99

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, everywhere: bool = False):
        self.choice = Choice(everywhere)
        super().__init__(model, steps, seed)

    @property
    def title(self) -> str:
        return f"{self.name}-everywhere" if self.choice.everywhere else self.name

    def packed(self) -> Any:
        form = super().packed()
        form.replace_matrices(self.choice)
        return form

    def held(self) -> Iterator[Tensor]:
        """Torch keeps 8-bit matrices in objects of its own: they are counted by an empty tensor of their size."""
        yield from super().held()
        yield torch.empty(self.choice.bytes, dtype=torch.uint8, device="meta")

    def facts(self) -> dict[str, Any]:
        """Also how many matrices are in 8 bits, and the shapes that were tried."""
        return {**super().facts(), "int8": self.choice.kept, "int8_speedups": self.choice.speedups}
