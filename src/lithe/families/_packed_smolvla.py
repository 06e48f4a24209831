"""The packed form of SmolVLA: see _packed.py for what that is and _packing.py for its arithmetic.

The expert's second projections of the trunk's keys and values leave the step loop (the family's own `act` does that,
too); action_in and the half of time_in that reads actions are one product. An empty camera's picture is not computed,
but the marks around it stay, for everything sees them. Shape legend: types.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.families import _smolvlm
from lithe.families._attention import KeyValue, Rope
from lithe.families._packed import Feed, PackedModel, Pieces, Read
from lithe.families._packing import (
    Affine,
    Weights,
    added,
    affine,
    fold,
    joined_in,
    llama,
    normed,
    pack,
    packed_rope,
    vision_layer,
)
from lithe.families._routing import Asking
from lithe.routers.base import Memory
from lithe.types import Route


@dataclass(frozen=True)
class SmolRead(Read):
    """Also what cross-attention layers see, whose positions begin at 0."""

    cross_turn: Rope
    cross_mask: Tensor | None


class PackedSmolVLA(PackedModel):
    """Made by `SmolVLA.packed`. Raises ValueError for a policy of several dtypes, or of one that is not supported."""

    behind_text: ClassVar[int] = 1  # the state
    by_prefix: ClassVar[tuple[str, ...]] = ("trunk", "trunk_keys", "again")

    @torch.no_grad()
    def __init__(self, model: Any, steps: int | None):
        super().__init__(model, steps)
        c, blocks = self.config, llama(self.config.eps)
        layer, keys, cross = (blocks[name] for name in ("layer", "keys", "cross"))
        self.pieces = {"vision": vision_layer, "trunk": layer, "last": keys, "self": layer, "cross": cross}
        self.trunk = [pack(layer, layer.input_norm.weight, layer.post_norm.weight) for layer in model.trunk.layers]
        kept = 2 * c.trunk.kv_heads * c.trunk.head_dim
        self.trunk_keys = [w.qkv[-kept:] for w in self.trunk]
        self.kinds = [type(layer) for layer in model.expert.layers]
        self.expert = [_packed(layer) for layer in model.expert.layers]
        self.again = [_second(layer) for layer in model.expert.layers]
        self.marks = None if c.image_marks is None else [self.embed[mark] for mark in c.image_marks]
        self.state_in, self.then = affine(model.state_in), affine(model.time_out)
        self.into = joined_in(model, [self.embedded_time(step) for step in range(self.steps)])
        weight, self.out_bias = affine(model.action_out)
        self.out = fold(weight, model.expert.norm.weight)

    @property
    def shape(self) -> Hashable:
        c = self.config
        return ("smolvla", c.eps, *(astuple(part) for part in (c.trunk, c.expert, c.vision)), c.horizon)

    @property
    def views(self) -> int:
        return len(self.config.cameras) + self.config.empty_cameras

    def empty(self, live: list[int], views: int) -> int:
        if self.marks is None:
            return 0
        if live != list(range(len(live))):
            raise ValueError("a packed SmolVLA with image marks takes missing cameras behind the others: use eager")
        return views - len(live)

    def see(self, feed: Feed, pieces: Pieces) -> tuple[Tensor, Tensor]:
        batch, scale = feed.batch, math.sqrt(self.config.trunk.width)
        unit = _smolvlm.square(batch.images_BVCYX, self.config.vision.image) * 2.0 - 1.0
        image = self.tower(unit, pieces["vision"]) * scale
        if self.marks is not None:
            fence, start = self.marks
            views = image.unflatten(1, (unit.shape[1], -1)).unbind(1)
            before, behind = torch.stack([fence, start])[None], fence[None, None]
            shown = [part for view in views for part in (before, view, behind)]
            image = torch.cat([*shown, *[before, behind] * feed.empty], dim=1)
        text = F.embedding(batch.tokens_BT, self.embed) * scale
        assert batch.state_BS is not None
        state = F.linear(batch.state_BS.to(self.dtype), *self.state_in)[:, None]
        known = batch.text_BT.new_ones(1, image.shape[1])
        valid = torch.cat([known, batch.text_BT, known[:, :1]], dim=1)
        return torch.cat([image, text, state], dim=1), valid

    def read(
        self,
        feed: Feed,
        x: Tensor,
        valid: Tensor,
        route: Route,
        pieces: Pieces,
        noise_BHA: Tensor | None = None,
        memory: Memory | None = None,
        decides: bool = False,
    ) -> tuple[SmolRead, Route]:
        c, tokens = self.config, x.shape[1]
        turn = packed_rope(_smolvlm.rope(valid.cumsum(1) - 1, c.trunk.head_dim), self.dtype)
        mask = added(_smolvlm.prefix_mask(valid), self.dtype)
        walk, read = Asking(route, self.router, valid, memory, decides), self._prepare(feed, valid, route)
        probe = None if noise_BHA is None else self.probe(noise_BHA, read, pieces)
        reads = [kind is not _smolvlm.Absent for kind in self.kinds]
        for i, w in enumerate(self.trunk):
            walk.ask(i, x, probe)
            x = walk.enter(i, x)
            wanted = walk.runs[i] and reads[i]
            goes_on = walk.runs[i] and any(run and seen for run, seen in zip(walk.runs[i + 1 :], reads[i + 1 :]))
            size = 1, c.trunk.kv_heads, tokens + c.horizon, c.trunk.head_dim  # equal strides for every kind of layer
            whole = x.new_empty(size), x.new_empty(size)
            prefix = whole[0][:, :, :tokens], whole[1][:, :, :tokens]
            if goes_on:
                x = pieces["trunk"](x, w, turn, mask, *prefix)
            elif wanted:
                pieces["last"](x, self.trunk_keys[i], turn, *prefix)
            read.caches.append((self._read_again(i, prefix) or whole) if wanted else None)
        taken = walk.taken
        return replace(read, route=taken), taken

    def _read_again(self, i: int, prefix: KeyValue) -> KeyValue | None:
        """What a cross-attention layer makes of the keys and values beside it; None for another kind."""
        weights, size = self.again[i], self.config.expert.head_dim
        if weights is None:
            return None
        pairs = zip(prefix, weights, strict=True)
        first, second = (F.linear(t.transpose(1, 2).flatten(2), w).unflatten(-1, (-1, size)) for t, w in pairs)
        return first.transpose(1, 2), second.transpose(1, 2)

    def _prepare(self, feed: Feed, valid: Tensor, route: Route) -> SmolRead:
        """All but the keys and values: where the suffix stands, and what it may see."""
        view = _smolvlm.suffix_view(valid, self.config.horizon, 1, self.config.expert.head_dim)
        turn, cross_turn = (packed_rope(rotation, self.dtype) for rotation in (view.rotation, view.cross_rotation))
        cross_mask = added(view.cross_mask, self.dtype) if feed.masked else None
        return SmolRead([], turn, added(view.mask, self.dtype), route, cross_turn, cross_mask)

    def at(self, step: int) -> Affine:
        return self.into[step]

    def enter(self, x_BHA: Tensor, now: Affine, read: SmolRead) -> Tensor:
        return F.linear(F.silu(F.linear(x_BHA.to(self.dtype), *now)), *self.then)

    def layer(self, i: int, h: Tensor, now: Affine, read: SmolRead, pieces: Pieces) -> Tensor:
        cache, w = read.caches[i], self.expert[i]
        if cache is None:
            return h
        if self.again[i] is None:
            return pieces["self"](h, w, read.turn, read.mask, *cache)
        return pieces["cross"](h, w, read.cross_turn, read.cross_mask, *cache)

    def velocity(self, h: Tensor, now: Affine) -> Tensor:
        return F.linear(normed(h, None, self.config.eps), self.out, self.out_bias)


def _packed(layer: Any) -> Weights | None:
    """An expert layer's weights; of a cross-attention layer the queries alone are made from its own stream."""
    if isinstance(layer, _smolvlm.Absent):
        return None
    if isinstance(layer, _smolvlm.SelfLayer):
        return pack(layer, layer.input_norm.weight, layer.post_norm.weight)
    gate_up = torch.cat([layer.gate_proj.weight, layer.up_proj.weight])
    query, inner = fold(layer.q_proj.weight, layer.input_norm.weight), fold(gate_up, layer.post_norm.weight)
    return Weights(query, layer.o_proj.weight.detach(), inner, layer.down_proj.weight.detach())


def _second(layer: Any) -> tuple[Tensor, Tensor] | None:
    """The second projections of keys and values, of a layer that has them."""
    if not isinstance(layer, _smolvlm.CrossLayer):
        return None
    return layer.k_proj.weight.detach(), layer.v_proj.weight.detach()
