"""One Gemma-style transformer layer and its norms, as used by the trunk and by the action expert of pi-like policies.

The trunk and the expert are separate stacks that meet only in attention: expert layer l reads the keys and values that
trunk layer l made from the prefix. Because the prefix never looks at the suffix, the two can run one after the other.
Sources: Gemma (arXiv 2403.08295), openpi's `gemma.py` for the adaptive norm. Shape legend: types.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e9  # finite, so that softmax and its logarithm stay finite for masked entries

Rope = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Widths:
    """Dimensions of one stack; trunk and expert share heads, kv_heads and head_dim."""

    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int


def rope(positions_BN: Tensor, head_dim: int, theta: float = 10_000.0) -> Rope:
    """Cosines and sines [B, 1, N, head_dim] of the rotary embedding (halves convention)."""
    exponent = torch.arange(0, head_dim, 2, device=positions_BN.device, dtype=torch.float32) / head_dim
    angle = positions_BN[:, None, :, None].float() * theta**-exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos_sin: Rope) -> Tensor:
    """Apply rotary embedding to [B, heads, N, head_dim]."""
    cos, sin = (t.to(x.dtype) for t in cos_sin)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Fused grouped-query attention. On CPUs in float32: the backward pass of the bf16 kernel is four times slower."""
    gqa = query.shape[1] != keys.shape[1]
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=gqa)
    with torch.autocast("cpu", enabled=False):
        q, k, v = query.float(), keys.float(), values.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa).to(query.dtype)


class Norm(nn.Module):
    """RMS norm with Gemma's (1 + weight) gain, in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (unit_rms(x) * (1.0 + self.weight.float())).to(x.dtype), None


class AdaptiveNorm(nn.Module):
    """RMS norm whose scale, shift and residual gate are linear in the conditioning vector (pi0.5's adaRMS)."""

    def __init__(self, width: int, cond: int):
        super().__init__()
        self.dense = nn.Linear(cond, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: [B, R*Q, width]; cond: [B, R, cond], one vector for the Q tokens of each draw."""
        modulation = self.dense(cond).repeat_interleave(x.shape[1] // cond.shape[1], dim=1)
        scale, shift, gate = modulation.chunk(3, dim=-1)
        return (unit_rms(x) * (1.0 + scale.float()) + shift.float()).to(x.dtype), gate.to(x.dtype)


def unit_rms(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


class GemmaLayer(nn.Module):
    """Attention and GeGLU with pre-norms; `index` is its position in its stack and is renumbered by surgery."""

    def __init__(self, size: Widths, index: int, cond: int | None = None):
        super().__init__()
        w, inner = size.width, size.heads * size.head_dim
        self.size, self.index = size, index
        self.input_norm = Norm(w) if cond is None else AdaptiveNorm(w, cond)
        self.q_proj = nn.Linear(w, inner, bias=False)
        self.k_proj = nn.Linear(w, size.kv_heads * size.head_dim, bias=False)
        self.v_proj = nn.Linear(w, size.kv_heads * size.head_dim, bias=False)
        self.o_proj = nn.Linear(inner, w, bias=False)
        self.post_norm = Norm(w) if cond is None else AdaptiveNorm(w, cond)
        self.gate_proj = nn.Linear(w, size.mlp, bias=False)
        self.up_proj = nn.Linear(w, size.mlp, bias=False)
        self.down_proj = nn.Linear(size.mlp, w, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rope,
        mask: Tensor,
        cond: Tensor | None = None,
        past: KeyValue | None = None,
        scores: bool = False,
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """One layer over [B, N, width].

        mask: bool, broadcastable to [B, 1, N, keys]; True = may attend. past: keys and values that stand before this
        layer's own. Returns the stream, this layer's own keys and values, and on request the masked scores in float32.
        """
        normed, gate = self.input_norm(x, cond)
        query = rotate(self.split(self.q_proj(normed)), rotation)
        own = self.key_value(normed, rotation)
        keys, values = own if past is None else (torch.cat([p, o], dim=2) for p, o in zip(past, own, strict=True))
        mixed = attend(query, keys, values, mask)
        x = residual(x, self.o_proj(mixed.transpose(1, 2).flatten(2)), gate)
        normed, gate = self.post_norm(x, cond)
        inner = F.gelu(self.gate_proj(normed), approximate="tanh") * self.up_proj(normed)
        x = residual(x, self.down_proj(inner), gate)
        return x, own, self.scores(query, keys, mask) if scores else None

    def prefix_only(self, x: Tensor, rotation: Rope) -> KeyValue:
        """Just the keys and values: all that anyone reads of the last trunk layer."""
        return self.key_value(self.input_norm(x)[0], rotation)

    def key_value(self, normed: Tensor, rotation: Rope) -> KeyValue:
        return rotate(self.split(self.k_proj(normed)), rotation), self.split(self.v_proj(normed))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size.head_dim)).transpose(1, 2)

    def scores(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Scaled dot products [B, heads, N, keys] in float32, masked entries at MASKED."""
        keys = keys.repeat_interleave(self.size.heads // self.size.kv_heads, dim=1)
        with torch.autocast(query.device.type, enabled=False):
            products = query.float() @ keys.float().transpose(-1, -2) / self.size.head_dim**0.5
        return products.masked_fill(~mask, MASKED)


class Stream(nn.Module):
    """A stack of layers and its final norm."""

    def __init__(self, size: Widths, depth: int, cond: int | None = None):
        super().__init__()
        self.layers = nn.ModuleList(GemmaLayer(size, i, cond) for i in range(depth))
        self.norm: nn.Module = Norm(size.width) if cond is None else AdaptiveNorm(size.width, cond)


def residual(x: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    return x + (update if gate is None else update * gate).to(x.dtype)


def block_mask(text: Tensor, queries: int, draws: int, private_first: bool) -> Tensor:
    """Which keys each suffix query may see: the valid prefix, and the tokens of its own draw.

    text: bool [B, N], valid prefix tokens. private_first: the first token of each draw (pi0's state token) does not see
    the action tokens behind it. Returns bool [B, 1, R*queries, N + R*queries].
    """
    owner = torch.arange(draws * queries, device=text.device) // queries
    within = owner[:, None] == owner[None, :]
    if private_first:
        first = torch.arange(draws * queries, device=text.device) % queries == 0
        within = within & ~(first[:, None] & ~first[None, :])
    rows = within.shape[0]
    prefix = text[:, None, None, :].expand(-1, 1, rows, -1)
    return torch.cat([prefix, within.expand(len(text), 1, rows, rows)], dim=-1)
