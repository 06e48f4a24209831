"""The packed form of pi0 and pi0.5: see _packed.py for what that is and _packing.py for its arithmetic.

    pi05  the shifts of the adaptive norms become biases of the projections behind them; per step and layer six vectors
    pi0   action_in and the half of time_in that reads actions are one product; the half that reads time is a bias

Shape legend: types.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.families._attention import block_mask, rope
from lithe.families._packed import Feed, PackedModel, Pieces, Read
from lithe.families._packing import (
    UNTIMED,
    Affine,
    Timed,
    added,
    affine,
    fold,
    gemma_keys,
    gemma_layer,
    joined_in,
    normed,
    pack,
    packed_rope,
    vision_layer,
    wide,
)
from lithe.families._routing import Asking
from lithe.families._vision import to_unit
from lithe.routers.base import Memory
from lithe.types import Route

# of one step: the way in, every layer's modulation, the way out
Now = tuple[Affine, list[Timed], tuple[Tensor | None, Tensor, Tensor | None]]


@dataclass(frozen=True)
class PiRead(Read):
    """Also pi0's state token, which is the same at every step."""

    state_BQD: Tensor | None


class PackedPi(PackedModel):
    """Made by `Pi.packed`. Raises ValueError for a policy of several dtypes, or of one that is not supported."""

    pieces: dict[str, Callable[..., Any]] = {
        "vision": vision_layer,
        "trunk": gemma_layer,
        "last": gemma_keys,
        "expert": gemma_layer,
    }

    @torch.no_grad()
    def __init__(self, model: Any, steps: int | None):
        super().__init__(model, steps)
        self.adaptive = self.config.variant == "pi05"
        self.trunk = [pack(layer, *_gains(layer)) for layer in model.trunk.layers]
        kept = 2 * self.config.trunk.kv_heads * self.config.trunk.head_dim
        self.trunk_keys = [w.qkv[-kept:] for w in self.trunk]
        self.state_in = None if model.state_in is None else affine(model.state_in)
        self._pack_expert(model)

    def _pack_expert(self, model: Any) -> None:
        layers, norm, out = model.expert.layers, model.expert.norm, affine(model.action_out)
        conds = [self.embedded_time(step) for step in range(self.steps)]
        if self.adaptive:
            conds = [F.silu(model.time_out(F.silu(model.time_in(cond)))) for cond in conds]
            self.expert = [pack(layer) for layer in layers]
            pairs = list(zip(layers, self.expert, strict=True))
            self.timed = [[self._timed(layer, w, cond) for layer, w in pairs] for cond in conds]
            self.into = [affine(model.action_in)] * self.steps
            self.then: Affine | None = None
            self.out_of = [self._modulated_out(norm, out, cond) for cond in conds]
            return
        self.expert = [pack(layer, *_gains(layer)) for layer in layers]
        self.timed = [[UNTIMED] * self.depth] * self.steps
        self.into, self.then = joined_in(model, conds), affine(model.time_out)
        self.out_of = [(None, fold(out[0], 1.0 + wide(norm.weight)), out[1])] * self.steps

    def _timed(self, layer: Any, w: Any, cond: Tensor) -> Timed:
        found: list[Tensor] = []
        for norm, weight in ((layer.input_norm, w.qkv), (layer.post_norm, w.gate_up)):
            scale, shift, gate = norm.dense(cond)[0].chunk(3)
            found += [(1.0 + wide(scale)).to(self.dtype), self._pushed(weight, shift), gate.contiguous()]
        return Timed(*found)

    def _pushed(self, weight: Tensor, shift: Tensor) -> Tensor:
        """What a shift before a projection adds behind it."""
        return (wide(weight) @ wide(shift)).to(self.dtype)

    def _modulated_out(self, norm: Any, out: Affine, cond: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        scale, shift, _ = norm.dense(cond)[0].chunk(3)
        return (1.0 + wide(scale)).to(self.dtype), out[0], out[1] + self._pushed(out[0], shift)

    @property
    def shape(self) -> Hashable:
        c = self.config
        return ("pi", c.variant, *(astuple(part) for part in (c.trunk, c.expert, c.vision)), c.horizon)

    def see(self, feed: Feed, pieces: Pieces) -> tuple[Tensor, Tensor]:
        batch, scale = feed.batch, math.sqrt(self.config.trunk.width)
        image = self.tower(to_unit(batch.images_BVCYX), pieces["vision"])
        text = F.embedding(batch.tokens_BT, self.embed) * scale
        live = batch.text_BT.new_ones(1, image.shape[1])
        return torch.cat([image, text], dim=1), torch.cat([live, batch.text_BT], dim=1)

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
    ) -> tuple[PiRead, Route]:
        c, tokens = self.config, x.shape[1]
        turn = packed_rope(rope(valid.cumsum(1) - 1, c.trunk.head_dim), self.dtype)
        mask = added(valid[:, None, None, :], self.dtype) if feed.masked else None
        walk, read = Asking(route, self.router, valid, memory, decides), self._prepare(feed, valid, route)
        queries = read.turn[0].shape[1]
        probe = None if noise_BHA is None else self.probe(noise_BHA, read, pieces)
        for i, w in enumerate(self.trunk):
            walk.ask(i, x, probe)
            x = walk.enter(i, x)
            if not walk.runs[i]:
                read.caches.append(None)
                continue
            keys, values = (x.new_empty(1, c.trunk.kv_heads, tokens + queries, c.trunk.head_dim) for _ in range(2))
            prefix = keys[:, :, :tokens], values[:, :, :tokens]
            read.caches.append((keys, values))
            if walk.may_be_last(i):
                pieces["last"](x, self.trunk_keys[i], turn, *prefix)
            else:
                x = pieces["trunk"](x, w, turn, mask, *prefix, UNTIMED)
        taken = walk.taken
        return replace(read, route=taken), taken

    def _prepare(self, feed: Feed, valid: Tensor, route: Route) -> PiRead:
        """All but the keys and values: where the suffix stands, and what it may see."""
        queries = self.config.horizon + (self.state_in is not None)
        behind = valid.sum(1, keepdim=True) + torch.arange(queries, device=valid.device)
        turn = packed_rope(rope(behind, self.config.expert.head_dim), self.dtype)
        mask = state = None
        if feed.masked or self.state_in is not None:
            mask = added(block_mask(valid, queries, 1, private_first=self.state_in is not None), self.dtype)
        if self.state_in is not None:
            assert feed.batch.state_BS is not None
            state = F.linear(feed.batch.state_BS.to(self.dtype), *self.state_in)[:, None]
        return PiRead([], turn, mask, route, state)

    def at(self, step: int) -> Now:
        return self.into[step], self.timed[step], self.out_of[step]

    def enter(self, x_BHA: Tensor, now: Now, read: PiRead) -> Tensor:
        h = F.linear(x_BHA.to(self.dtype), *now[0])
        if self.then is not None:
            h = F.linear(F.silu(h), *self.then)
        return h if read.state_BQD is None else torch.cat([read.state_BQD, h], dim=1)

    def layer(self, i: int, h: Tensor, now: Now, read: PiRead, pieces: Pieces) -> Tensor:
        cache = read.caches[i]
        if cache is None:
            return h
        return pieces["expert"](h, self.expert[i], read.turn, read.mask, *cache, now[1][i])

    def velocity(self, h: Tensor, now: Now) -> Tensor:
        scale, weight, bias = now[2]
        return F.linear(normed(h[:, -self.config.horizon :], scale), weight, bias)


def _gains(layer: Any) -> tuple[Tensor, Tensor]:
    return 1.0 + wide(layer.input_norm.weight), 1.0 + wide(layer.post_norm.weight)
