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


class Int8:
    """weight: [out, in]. The result has the type of what is multiplied."""

    def __init__(self, weight: Tensor):
        wide = weight.detach().float()
        scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny).double() / 127
        zero = torch.zeros(len(wide), dtype=torch.int64)
        rounded = torch.quantize_per_channel(wide, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.nbytes = wide.numel() + 8 * len(wide)

    @classmethod
    def takes(cls, weight: Tensor) -> bool:
        """Whether a matrix of this shape can be multiplied so."""
        return True

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
