"""A matrix in 8-bit floating point that stands where `F.linear` takes a weight: the tensor cores multiply.

    q = round(W / s),  s = max|W| / 448      x is rounded the same way when it comes, with one scale for all of it

Four bits of exponent keep small numbers beside large ones, so that one scale for a matrix is enough, which GPUs since
Ada and, slowly, CPUs multiply. Nothing of it waits for the device. Shape legend: types.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KIND = torch.float8_e4m3fn
LARGEST = torch.finfo(KIND).max
MULTIPLE = 16  # of which both sides of a matrix must be one


class Float8:
    """weight: [out, in]. The result has the type of what is multiplied."""

    def __init__(self, weight: Tensor):
        self.rounded, self.scale = rounded(weight.detach())
        self.nbytes = weight.numel() + 4

    @classmethod
    def takes(cls, weight: Tensor) -> bool:
        """Whether a matrix of this shape can be multiplied so."""
        return all(side % MULTIPLE == 0 for side in weight.shape)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is F.linear, f"an fp8 weight can only be multiplied, not {function}"
        return _product(*args, **(kwargs or {}))


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in 8 bits, and the scale that brings it back."""
    largest = torch.linalg.vector_norm(x, torch.inf, dtype=torch.float32)
    scale = largest.clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (x / scale).to(KIND), scale


def _product(input: Tensor, weight: Float8, bias: Tensor | None = None) -> Tensor:
    """With the arguments of `F.linear`."""
    x, scale = rounded(input.flatten(0, -2).contiguous())
    made: Tensor = torch._scaled_mm(x, weight.rounded.t(), scale, weight.scale, out_dtype=input.dtype)
    return (made if bias is None else made + bias).unflatten(0, input.shape[:-1])
