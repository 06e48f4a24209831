"""The parts of SmolVLA: Llama layers for the trunk, two kinds of expert layer, the image path, and who may see whom.

Beside a trunk layer stands an expert layer of one kind, and the kind is the layer's class: it travels with the layer
through surgery and is never derived from a position again.

    SelfLayer   attends to the trunk layer's keys and values and, causally, to the action tokens before it
    CrossLayer  attends to nothing but the trunk layer's keys and values, which its own projections read a second time
    Absent      no layer: an expert with fewer layers than the trunk

Sources: Llama (arXiv 2302.13971), SmolVLA (arXiv 2506.01844), LeRobot's code for conventions. Shapes: types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.families import _vision
from lithe.families._attention import MASKED, KeyValue, Rope, Widths, attend, rotate

WAVELENGTH = 10_000.0  # checkpoints were trained with this, whatever rope_theta the VLM's own configuration has
KINDS = ("self", "cross", "absent")


@dataclass(frozen=True)
class Suffix:
    """Where the action tokens of all draws stand and what they may see, for each kind of expert layer."""

    rotation: Rope  # self: positions go on behind the prefix
    mask: Tensor  # bool [B, 1, R*H, N + R*H]
    cross_rotation: Rope  # cross: positions of a draw begin at 0
    cross_mask: Tensor  # bool [B, 1, 1, N]


class RmsNorm(nn.Module):
    """Root-mean-square norm with a plain gain, computed in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (self.weight * unit.to(x.dtype)).to(x.dtype)


class Layer(nn.Module):
    """What all layers share: pre-norms, projections, SwiGLU; `index` is renumbered by surgery.

    source: width of what keys and values are projected from.
    """

    def __init__(self, size: Widths, index: int, eps: float, source: int):
        super().__init__()
        w, inner, kv = size.width, size.heads * size.head_dim, size.kv_heads * size.head_dim
        self.size, self.index = size, index
        self.input_norm, self.post_norm = RmsNorm(w, eps), RmsNorm(w, eps)
        self.q_proj = nn.Linear(w, inner, bias=False)
        self.k_proj = nn.Linear(source, kv, bias=False)
        self.v_proj = nn.Linear(source, kv, bias=False)
        self.o_proj = nn.Linear(inner, w, bias=False)
        self.gate_proj = nn.Linear(w, size.mlp, bias=False)
        self.up_proj = nn.Linear(w, size.mlp, bias=False)
        self.down_proj = nn.Linear(size.mlp, w, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size.head_dim)).transpose(1, 2)

    def key_value(self, normed: Tensor, rotation: Rope) -> KeyValue:
        return rotate(self.split(self.k_proj(normed)), rotation), self.split(self.v_proj(normed))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention: the way back into the stream, then the gated MLP."""
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2)).to(x.dtype)
        normed = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed)).to(x.dtype)

    def scores(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Scaled dot products [B, heads, queries, keys] in float32, masked entries at MASKED."""
        keys = keys.repeat_interleave(self.size.heads // self.size.kv_heads, dim=1)
        with torch.autocast(query.device.type, enabled=False):
            products = query.float() @ keys.float().transpose(-1, -2) / self.size.head_dim**0.5
        return products.masked_fill(~mask, MASKED)


class TrunkLayer(Layer):
    """A layer of the language model over the prefix."""

    def __init__(self, size: Widths, index: int, eps: float):
        super().__init__(size, index, eps, size.width)

    def forward(self, x: Tensor, rotation: Rope, mask: Tensor) -> tuple[Tensor, KeyValue]:
        """The stream [B, N, width] one layer on, and this layer's keys and values."""
        normed = self.input_norm(x)
        own = self.key_value(normed, rotation)
        mixed = attend(rotate(self.split(self.q_proj(normed)), rotation), *own, mask)
        return self.finish(x, mixed), own

    def prefix_only(self, x: Tensor, rotation: Rope) -> KeyValue:
        """Just the keys and values: all that anyone reads of the last trunk layer."""
        return self.key_value(self.input_norm(x), rotation)


class SelfLayer(Layer):
    """Expert layer whose action tokens attend to the prefix and to each other, causally within a draw."""

    def __init__(self, size: Widths, index: int, eps: float):
        super().__init__(size, index, eps, size.width)

    def read(self, trunk: KeyValue) -> KeyValue:
        """What this layer keeps of the trunk layer beside it."""
        return trunk

    def forward(self, x: Tensor, suffix: Suffix, past: KeyValue, scores: bool = False) -> tuple[Tensor, Tensor | None]:
        """The stream [B, R*H, width] one layer on, and on request the masked scores over all keys."""
        normed = self.input_norm(x)
        query = rotate(self.split(self.q_proj(normed)), suffix.rotation)
        own = self.key_value(normed, suffix.rotation)
        keys, values = (torch.cat([p, o], dim=2) for p, o in zip(past, own, strict=True))
        x = self.finish(x, attend(query, keys, values, suffix.mask))
        return x, self.scores(query, keys, suffix.mask) if scores else None


class CrossLayer(Layer):
    """Expert layer that attends to the prefix alone, through its own projections of the trunk's keys and values."""

    def __init__(self, size: Widths, index: int, eps: float):
        super().__init__(size, index, eps, size.kv_heads * size.head_dim)

    def read(self, trunk: KeyValue) -> KeyValue:
        """Project the trunk layer's (already rotated) keys, and its values: once an observation, not once a step."""
        keys, values = (x.transpose(1, 2).flatten(2) for x in trunk)
        return self.split(self.k_proj(keys)), self.split(self.v_proj(values))

    def forward(self, x: Tensor, suffix: Suffix, past: KeyValue, scores: bool = False) -> tuple[Tensor, Tensor | None]:
        """As SelfLayer. The scores have a column for every action token too, all masked."""
        query = rotate(self.split(self.q_proj(self.input_norm(x))), suffix.cross_rotation)
        keys, values = past
        after = self.finish(x, attend(query, keys, values, suffix.cross_mask))
        if not scores:
            return after, None
        return after, F.pad(self.scores(query, keys, suffix.cross_mask), (0, x.shape[1]), value=MASKED)


class Absent(nn.Module):
    """The place of an expert layer that does not exist; never called."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index


class Stream(nn.Module):
    """A stack of layers and its final norm."""

    def __init__(self, layers: Sequence[nn.Module], width: int, eps: float):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = RmsNorm(width, eps)


class Vision(_vision.Vision):
    """SigLIP, then pixel shuffle (squares of `merge` patches joined into one token) and a projection without bias."""

    def __init__(self, size: _vision.VisionSize, out: int):
        super().__init__(size, out)
        self.projector = nn.Linear(size.width * size.merge**2, out, bias=False)


def kinds(depth: int, self_attention_every: int, expert_every: int) -> list[str]:
    """The kind of the expert layer beside each trunk layer of an uncut model; 0 = no self-attention anywhere."""
    found = []
    for i in range(depth):
        own = self_attention_every > 0 and i % self_attention_every == 0
        found.append("absent" if i % expert_every else "self" if own else "cross")
    return found


def expert_layer(kind: str, size: Widths, index: int, eps: float) -> nn.Module:
    """A layer of the expert by its kind."""
    assert kind in KINDS, kind
    return Absent(index) if kind == "absent" else {"self": SelfLayer, "cross": CrossLayer}[kind](size, index, eps)


def rope(positions_BN: Tensor, head_dim: int) -> Rope:
    """Cosines and sines [B, 1, N, head_dim]; positions are divided by wavelengths, which rounds as LeRobot does."""
    exponent = torch.arange(head_dim // 2, device=positions_BN.device, dtype=torch.float32) * (2.0 / head_dim)
    angle = positions_BN[:, None, :, None].float() / WAVELENGTH**exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def prefix_mask(valid_BN: Tensor) -> Tensor:
    """Bool [B, 1, N, N]: everything sees the valid prefix, but only the last token, the state, sees the state."""
    places = torch.arange(valid_BN.shape[1], device=valid_BN.device)
    state = places == places[-1]
    return valid_BN[:, None, None, :] & (~state[None, :] | state[:, None])


def suffix_view(valid_BN: Tensor, horizon: int, draws: int, head_dim: int) -> Suffix:
    """Positions and masks of `draws` chunks that share one prefix and do not see each other."""
    token = torch.arange(draws * horizon, device=valid_BN.device)
    place, owner = (token % horizon)[None], token // horizon
    within = (owner[:, None] == owner[None, :]) & (token[:, None] >= token[None, :])
    prefix = valid_BN[:, None, None, :]
    rows, batch = len(token), len(valid_BN)
    mask = torch.cat([prefix.expand(-1, 1, rows, -1), within.expand(batch, 1, rows, rows)], dim=-1)
    behind = valid_BN.sum(1, keepdim=True) + place
    return Suffix(rope(behind, head_dim), mask, rope(place, head_dim), prefix)


def square(images: Tensor, side: int) -> Tensor:
    """Pictures [..., C, Y, X], uint8 or floats in [0, 1], as squares of floats in [0, 1], rounded as LeRobot rounds.

    Proportions are kept; black fills the left and the top.
    """
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    height, width = unit.shape[-2:]
    if (height, width) == (side, side):
        return unit
    ratio = max(width / side, height / side)
    inner = (int(height / ratio), int(width / ratio))
    flat = unit.flatten(0, -4).contiguous()  # another memory layout takes another kernel, with other last bits
    small = F.interpolate(flat, size=inner, mode="bilinear", align_corners=False)
    return F.pad(small, (side - inner[1], 0, side - inner[0], 0)).unflatten(0, images.shape[:-3])
