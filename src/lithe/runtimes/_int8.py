"""A matrix in 8 bits that stands where `F.linear` takes a weight: the CPU's integer units multiply.

    q = round(W / s),  s = max|W| / 127 for each output      x is rounded to 8 bits (7 on a CPU without VNNI) when it
                                                             comes, with one scale for all of it

Torch's own kernels (FBGEMM, oneDNN) do both. Measured here beside torchao 0.18 for 50 tokens through 1024 x 8192:
docs/log.md. Shape legend: types.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.measure import wall_ms

SMALLEST = 1 << 18  # numbers in a matrix that is worth it at all
WINS, REPEATS, TOKENS = 1.2, 5, 256  # so many times faster, at best of so many calls, of at most so many tokens


class Int8:
    """weight: [out, in]. The result has the type of what is multiplied."""

    def __init__(self, weight: Tensor):
        wide = weight.detach().float()
        scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny).double() / 127
        zero = torch.zeros(len(wide), dtype=torch.int64)
        rounded = torch.quantize_per_channel(wide, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.shape, self.nbytes = weight.shape, wide.numel() + 8 * len(wide)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is F.linear, f"an int8 weight can only be multiplied, not {function}"
        return _product(*args, **(kwargs or {}))


def _product(input: Tensor, weight: Int8, bias: Tensor | None = None) -> Tensor:
    """With the arguments of `F.linear`."""
    made: Tensor = torch.ops.quantized.linear_dynamic(input.float(), weight.packed, reduce_range=not vnni())
    return (made if bias is None else made + bias).to(input.dtype)


@functools.cache
def vnni() -> bool:
    """Whether the sums of two 8-bit products have room, or 7 bits must do."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_vnni") or able.get("avx_vnni"))


class Choice:
    """Which matrices are kept in 8 bits: those that were seen to win, each shape timed once."""

    def __init__(self, everywhere: bool):
        self.everywhere, self.kept, self.bytes = everywhere, 0, 0
        self.speedups: dict[str, float] = {}  # "tokens x in x out, dtype" -> how many times faster

    def __call__(self, weight: Tensor, tokens: int) -> Any:
        """The weight in 8 bits, or as it is."""
        if not self.everywhere and weight.numel() < SMALLEST:
            return weight
        made = Int8(weight)
        if not self.everywhere and self._speedup(weight, made, min(tokens, TOKENS)) < WINS:
            return weight
        self.kept, self.bytes = self.kept + 1, self.bytes + made.nbytes
        return made

    def _speedup(self, weight: Tensor, made: Int8, tokens: int) -> float:
        rows, columns = weight.shape
        key = f"{tokens}x{columns}x{rows}, {str(weight.dtype)[6:]}"
        if key not in self.speedups:
            self.speedups[key] = self._timed(weight, made, tokens)
        return self.speedups[key]

    def _timed(self, weight: Tensor, made: Int8, tokens: int) -> float:
        x = torch.randn(1, tokens, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)

        def best_ms(matrix: Any) -> float:
            return min(wall_ms(lambda: F.linear(x, matrix)) for _ in range(REPEATS))

        return round(best_ms(weight) / best_ms(made), 2)
