"""CUDA graphs with matrices in 8-bit floating point where this GPU multiplies them faster; everything else as it was.

Which ones is found by timing each shape once inside a graph, when the runtime is attached: what rounds the numbers that
come is part of that, and pays only where many tokens meet a large matrix. Not yet run on a GPU: docs/runtimes.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from lithe.families.base import Family
from lithe.measure import wall_ms
from lithe.runtimes import cudagraph
from lithe.runtimes._fp8 import Float8
from lithe.runtimes._rounded import Rounded

ABLE = (8, 9)  # the compute capability that 8-bit floating point came with
REPLAYS = 20  # of a graph, to one look at the clock


class Fp8(Rounded, cudagraph.Cudagraph):
    """Raises ValueError for a GPU without such units, and where `cudagraph` does."""

    name: ClassVar[str] = "fp8"
    kind: ClassVar[Any] = Float8
    tokens: ClassVar[int] = 1 << 20  # no limit: a GPU is timed with all that meet a matrix

    def prepare(self, model: Family) -> None:
        able = torch.cuda.get_device_capability(self.place)
        if able < ABLE:
            raise ValueError(
                f"this GPU has compute capability {'.'.join(map(str, able))}, and 8-bit floating point came with "
                f"{'.'.join(map(str, ABLE))} (Ada, Hopper): use cudagraph"
            )
        super().prepare(model)

    @staticmethod
    def clock(call: Callable[[], Any]) -> float:
        graph, _ = cudagraph.captured(call, torch.cuda.graph_pool_handle())
        return wall_ms(lambda: [graph.replay() for _ in range(REPLAYS)], "cuda") / REPLAYS
