"""The packed form with matrices in 8-bit integers where this CPU multiplies them faster; everything else as it was.

Which ones is found by timing each shape once when the runtime is attached: a small policy keeps none and is what
`packed` is. Actions differ from eager's by more than rounding; `error` and `cosine` say by how much, and below
`least_cosine` the policy is refused. Embeddings, the way into and out of the expert and all norms are never rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from lithe.measure import wall_ms
from lithe.runtimes._int8 import Int8
from lithe.runtimes._rounded import Rounded
from lithe.runtimes.packed import Packed


class Quantized(Rounded, Packed):
    """Raises ValueError away from CPUs: `fp8` is for GPUs."""

    name: ClassVar[str] = "quantized"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    kind: ClassVar[Any] = Int8
    tokens: ClassVar[int] = 256

    @staticmethod
    def clock(call: Callable[[], Any]) -> float:
        return wall_ms(call)
