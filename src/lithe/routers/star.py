"""STAR: decides before the first layer, from pictures and prompt, which `keep` layers an observation runs (MoLe-VLA).

    spatial   the image tokens, mapped to `width`, averaged, through a two-layer perceptron:            S [B, L]
    temporal  the prompt's tokens, by the same map, through one Transformer encoder layer, averaged:    T [B, L]
    gates     softmax((S + T) * sigmoid(a . first prompt token + b));  the `keep` largest run, all tokens alike

Source: arXiv 2503.20384 and its code, of which this keeps the plain softmax (the paper draws Gumbel noise), the sizes
relative to the trunk's width and the start at b = 1. Ours: every token is brought to unit root mean square first (the
paper says "normalised"), no dropout, and what is neither padding nor prompt counts as image. Ties go to the earlier
layer. All in float32, whatever the policy's type. Shape legend: types.py.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.routers.base import Memory, Router, Sight, Sizes, pooled, straight_through
from lithe.types import Route
from lithe.work import Parts, Work

HIDDEN = -1e9  # finite: a prompt without any token must not give NaN


class Star(Router):
    """keep: layers that run, for every observation. width, heads: of the encoder layer."""

    name: ClassVar[str] = "star"

    def __init__(self, sizes: Sizes, keep: int, width: int, heads: int = 8):
        super().__init__(sizes)
        if not 1 <= keep <= sizes.depth:
            raise ValueError(f"cannot run {keep} layers of {sizes.depth}: keep a number from 1 to {sizes.depth}")
        if width < 2 or width % heads:
            raise ValueError(f"a router of width {width} has no {heads} equal heads: choose a multiple of {heads}")
        self.keep = keep
        self.shared = nn.Linear(sizes.prefix, width)
        self.spatial_in = nn.Linear(width, width // 2)
        self.spatial_out = nn.Linear(width // 2, sizes.depth, bias=False)
        self.encoder = _Encoder(width, heads)
        self.temporal_out = nn.Linear(width, sizes.depth)
        self.scale = nn.Linear(sizes.prefix, 1)
        nn.init.ones_(self.scale.bias)

    def ahead(self, sight: Sight, memory: Memory | None) -> Tensor:
        """Softmax over the layers, [B, L]: what the choice is made from. It sums to 1, not to `keep`."""
        with torch.autocast(sight.stream_BND.device.type, enabled=False):
            x = sight.stream_BND.float()
            x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
            tokens, text = _linear(self.shared, x), sight.text_BN & sight.valid_BN
            spatial = _linear(self.spatial_in, pooled(tokens, sight.valid_BN & ~text))
            spatial = _linear(self.spatial_out, F.gelu(spatial))
            temporal = _linear(self.temporal_out, pooled(self.encoder(tokens, text), text))
            first = x[torch.arange(len(x), device=x.device), text.int().argmax(dim=1)]
            return ((spatial + temporal) * _linear(self.scale, first).sigmoid()).softmax(dim=-1)

    def harden(self, gates_BL: Tensor) -> Tensor:
        best = gates_BL.sort(dim=-1, descending=True, stable=True).indices[:, : self.keep]
        return straight_through(torch.zeros_like(gates_BL).scatter(1, best, 1.0), gates_BL)

    def closed(self, gates_BL: Tensor) -> Tensor:
        """It always skips as much as it may."""
        return self.harden(gates_BL)

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        once = (self.spatial_in, self.spatial_out, self.temporal_out, self.scale)
        mapped = Work.of(self.shared, parts.prefix) + Work.of(self.encoder, parts.prefix)
        attention = Work(4 * parts.prefix**2 * self.shared.out_features)
        return {"prefix": sum((Work.of(layer, 1) for layer in once), mapped + attention)}


class _Encoder(nn.Module):
    """A Transformer encoder layer with norms behind the sums, as PyTorch's is by default; that one takes another path
    in eval mode, with other last digits, and a choice must not depend on the mode."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up_proj, self.down_proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.post_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BND: Tensor, seen_BN: Tensor) -> Tensor:
        """Tokens [B, N, D] one layer on; they look at those that are `seen`."""
        query, key, value = _linear(self.in_proj, x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = torch.zeros_like(seen_BN, dtype=torch.float32).masked_fill(~seen_BN, HIDDEN)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        x = _norm(self.norm, x_BND + _linear(self.out_proj, mixed))
        return _norm(self.post_norm, x + _linear(self.down_proj, F.relu(_linear(self.up_proj, x))))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
