"""Packed weights for inference and the pure functions that run them: what fast runtimes compile and capture.

Exact in real arithmetic, so they differ from the family's own layers by rounding alone: a norm's gain is folded into
the projections behind it; queries, keys and values are one product, gate and up another; what the flow time decides
comes from a table; keys and values are written behind those of the prefix, in place. Every function takes tensors and
nothing else, so that one compiled copy of it serves every layer of its shape. Shape legend: types.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.families._attention import Rope

Affine = tuple[Tensor, Tensor]  # weight and bias


class Weights(NamedTuple):
    """One Gemma-style layer, the gains of its norms folded in unless flow time decides them."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Timed(NamedTuple):
    """What the flow time decides in one layer at one denoise step: the scales of both norms, their shifts as biases of
    the projections behind them, and the gates of both residuals."""

    scale_in: Tensor | None = None
    bias_qkv: Tensor | None = None
    gate_in: Tensor | None = None
    scale_post: Tensor | None = None
    bias_gate_up: Tensor | None = None
    gate_post: Tensor | None = None


UNTIMED = Timed()


class VisionWeights(NamedTuple):
    """One SigLIP layer."""

    norm_in: Affine
    qkv: Affine
    out: Affine
    norm_post: Affine
    up: Affine
    down: Affine


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def fold(weight: Tensor, gain: Tensor) -> Tensor:
    """The projection that does a norm's gain, too."""
    return (wide(weight) * wide(gain)).to(weight.dtype)


def pack(layer: Any, gain_in: Tensor | None = None, gain_post: Tensor | None = None) -> Weights:
    """A layer with q_proj ... down_proj as Weights, gains folded where given."""
    qkv = torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight])
    gate_up = torch.cat([layer.gate_proj.weight, layer.up_proj.weight])
    qkv = qkv if gain_in is None else fold(qkv, gain_in)
    gate_up = gate_up if gain_post is None else fold(gate_up, gain_post)
    return Weights(*(w.detach() for w in (qkv, layer.o_proj.weight, gate_up, layer.down_proj.weight)))


def gemma_layer(
    x: Tensor, w: Weights, turn: Rope, mask: Tensor | None, keys: Tensor, values: Tensor, timed: Timed
) -> Tensor:
    """The stream [B, N, width] one layer on. The layer's own keys and values are written into the end of `keys` and
    `values` [B, kv_heads, keys, head_dim]; it attends to all that stands there. mask: added to the scores."""
    query = project(normed(x, timed.scale_in), w.qkv, timed.bias_qkv, turn, keys, values)
    x = plus(x, F.linear(attention(query, keys, values, mask), w.out), timed.gate_in)
    gate, up = F.linear(normed(x, timed.scale_post), w.gate_up, timed.bias_gate_up).chunk(2, dim=-1)
    return plus(x, F.linear(F.gelu(gate, approximate="tanh") * up, w.down), timed.gate_post)


def gemma_keys(x: Tensor, kv: Tensor, turn: Rope, keys: Tensor, values: Tensor) -> None:
    """Only a layer's keys and values, written as `gemma_layer` does: all that anyone reads of the last trunk layer."""
    project(normed(x, None), kv, None, turn, keys, values)


@functools.cache
def llama(eps: float) -> dict[str, Callable[..., Any]]:
    """The same for Llama-style layers: `layer`, `keys`, and `cross`, which writes nothing and attends to `keys`."""

    def layer(x: Tensor, w: Weights, turn: Rope, mask: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
        query = project(normed(x, None, eps), w.qkv, None, turn, keys, values)
        return finish(x, attention(query, keys, values, mask), w)

    def only_keys(x: Tensor, kv: Tensor, turn: Rope, keys: Tensor, values: Tensor) -> None:
        project(normed(x, None, eps), kv, None, turn, keys, values)

    def cross(x: Tensor, w: Weights, turn: Rope, mask: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
        halves = F.linear(normed(x, None, eps), w.qkv).unflatten(-1, (-1, 2, turn[0].shape[-1]))
        return finish(x, attention(turned(halves, turn), keys, values, mask), w)

    def finish(x: Tensor, mixed: Tensor, w: Weights) -> Tensor:
        x = x + F.linear(mixed, w.out)
        gate, up = F.linear(normed(x, None, eps), w.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, w.down)

    return {"layer": layer, "keys": only_keys, "cross": cross}


def project(x: Tensor, weight: Tensor, bias: Tensor | None, turn: Rope, keys: Tensor, values: Tensor) -> Tensor:
    """Rotated queries [B, heads, N, head_dim]; rotated keys and values go into the end of the buffers."""
    heads, kv = F.linear(x, weight, bias).unflatten(-1, (-1, 2, turn[0].shape[-1])), keys.shape[1]
    asked, start = heads.shape[2] - 2 * kv, keys.shape[2] - x.shape[1]
    rotated = turned(heads[:, :, :-kv], turn)
    keys[:, :, start:].copy_(rotated[:, asked:])
    values[:, :, start:].copy_(heads[:, :, -kv:].flatten(-2).transpose(1, 2))
    return rotated[:, :asked]


def turned(halves: Tensor, turn: Rope) -> Tensor:
    """[B, N, heads, 2, half] rotated: [B, heads, N, head_dim]."""
    return torch.addcmul(halves * turn[0], halves.flip(-2), turn[1]).flatten(-2).transpose(1, 2)


def packed_rope(rotation: Rope, dtype: torch.dtype) -> Rope:
    """A rotation [B, 1, N, head_dim] as `turned` takes it: halves apart, the sign in the sine [B, N, 1, 2, half]."""
    cos, sin = (t.to(dtype).transpose(1, 2).unflatten(-1, (2, -1)) for t in rotation)
    return cos.contiguous(), torch.stack([-sin[..., 0, :], sin[..., 1, :]], dim=-2)


def normed(x: Tensor, scale: Tensor | None, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], scale, eps)


def plus(x: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    return x + update if gate is None else torch.addcmul(x, update, gate)


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N, heads * head_dim]. One key head is shown to all query heads without being copied."""
    if keys.shape[1] == 1:
        keys, values = (t.expand(-1, query.shape[1], -1, -1) for t in (keys, values))
    gqa = query.shape[1] != keys.shape[1]
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=gqa)
    return mixed.transpose(1, 2).flatten(2)


def added(may_see: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to the scores: made once, where the fused kernel would convert it in every layer."""
    zero = torch.zeros((), dtype=dtype, device=may_see.device)
    return torch.where(may_see, zero, float("-inf"))


def vision_layer(x: Tensor, w: VisionWeights, heads: int) -> Tensor:
    """One SigLIP layer over [views, patches, width]."""
    inner = F.linear(F.layer_norm(x, x.shape[-1:], *w.norm_in, 1e-6), *w.qkv)
    query, keys, values = inner.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, *w.out)
    inner = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], *w.norm_post, 1e-6), *w.up), approximate="tanh")
    return x + F.linear(inner, *w.down)


class Tower:
    """The image path of a `_vision.Vision`: every view of an observation in one call, packed layer by layer."""

    def __init__(self, vision: Any):
        tower = dict(vision.tower.named_modules()).get("vision_model", vision.tower)  # older transformers nest it
        config = vision.tower.config
        assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6), "not SigLIP as published"
        self.size, self.heads = vision.size, config.num_attention_heads
        self.patch = affine(tower.embeddings.patch_embedding)
        self.places = tower.embeddings.position_embedding.weight.detach()
        self.layers = [self._layer(layer) for layer in tower.encoder.layers]
        self.norm = affine(tower.post_layernorm)
        bias = vision.projector.bias
        self.projector = vision.projector.weight.detach(), None if bias is None else bias.detach()

    def _layer(self, layer: Any) -> VisionWeights:
        parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        weight, bias = (torch.cat([getattr(part, kind).detach() for part in parts]) for kind in ("weight", "bias"))
        around = (layer.self_attn.out_proj, layer.layer_norm2, layer.mlp.fc1, layer.mlp.fc2)
        return VisionWeights(affine(layer.layer_norm1), (weight, bias), *map(affine, around))

    def __call__(self, unit_BVCYX: Tensor, run: Callable[..., Tensor] = vision_layer) -> Tensor:
        """Image tokens [B, V*tokens, out] of pictures in [-1, 1]."""
        batch, views = unit_BVCYX.shape[:2]
        pixels = unit_BVCYX.flatten(0, 1).to(self.places.dtype)
        x = F.conv2d(pixels, *self.patch, stride=self.size.patch).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = run(x, layer, self.heads)
        x = F.layer_norm(x, x.shape[-1:], *self.norm, 1e-6)
        side, m = self.size.image // self.size.patch, self.size.merge
        if m > 1:
            grid = x.view(-1, side // m, m, side // m, m, x.shape[-1])
            x = grid.permute(0, 1, 3, 2, 4, 5).reshape(len(x), self.size.tokens, -1)
        return F.linear(x, *self.projector).view(batch, views * self.size.tokens, -1)


def affine(module: Any) -> Affine:
    return module.weight.detach(), module.bias.detach()


def joined_in(model: Any, times: list[Tensor]) -> list[Affine]:
    """time_in over [action_in(x), time], a step each: one product of x, and what the time says as its bias."""
    w, b = (wide(t) for t in affine(model.action_in))
    into = wide(model.time_in.weight.detach())
    for_action, for_time = into[:, : len(w)], into[:, len(w) :]
    bias, dtype = for_action @ b + wide(model.time_in.bias.detach()), model.time_in.weight.dtype
    return [((for_action @ w).to(dtype), (bias + for_time @ wide(time[0])).to(dtype)) for time in times]


def check_dtype(tensors: Iterable[Tensor]) -> None:
    """Raises ValueError where a policy has several types, or one that no fast runtime knows."""
    found = sorted({str(t.dtype)[6:] for t in tensors})
    if len(found) > 1:
        raise ValueError(f"a packed policy has one dtype, this one has {', '.join(found)}: cast it with .to(...)")
    if found[0] not in ("float64", "float32", "bfloat16"):
        raise ValueError(f"packed policies are float32 or bfloat16, not {found[0]}: cast it with .to(torch.bfloat16)")
