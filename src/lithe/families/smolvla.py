"""SmolVLA: SmolVLM2's vision tower and the first layers of its language model, and a small flow-matching expert.

Expert layer l reads the keys and values of trunk layer l, so both stacks are one lockstep Stack; layers with causal
self-attention alternate with layers that only cross-attend to the prefix (_smolvlm.py). The prefix is images, text and
one state token, and never looks at the actions; therefore the trunk runs first, once per observation. So do the second
key and value projections of the cross-attention layers, which LeRobot repeats at every denoise step. What comes after
the last keys and values that anyone reads is not computed.

Sources: arXiv 2506.01844; LeRobot's code for conventions (results differ by rounding alone). Shapes: types.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe import source
from lithe.families import _cost, _flow, _lerobot, _prompt, _smolvla_names, _smolvlm, _vision
from lithe.families._attention import KeyValue
from lithe.families._augment import colour_jitter
from lithe.families._flow_family import FlowFamily
from lithe.families._outline import Outline
from lithe.families._packed_smolvla import PackedSmolVLA
from lithe.families._routing import Asking, Walk, ahead, check, one_by_one, record
from lithe.families._smolvla_config import PRESETS, SmolVLAConfig
from lithe.routers.base import Memory, Sight
from lithe.surgery import Stack
from lithe.types import Batch, Cost, Draw, Out, Route, Tap


@dataclass(frozen=True)
class Read:
    """What the expert reads at every denoise step, made once an observation: per layer keys and values, or None."""

    caches: list[KeyValue | None]
    suffix: _smolvlm.Suffix
    route: Route


class SmolVLA(FlowFamily):
    """SmolVLA policy with its preprocessing. Build it with `fresh`, or load one with `lithe.load`."""

    name: ClassVar[str] = "smolvla"
    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)
    lerobot_types: ClassVar[tuple[str, ...]] = ("smolvla",)
    stacks: ClassVar[tuple[Stack, ...]] = (
        Stack("trunk", ("trunk.layers", "expert.layers"), ("config.depth",), index="index"),
    )
    vision_prefixes: ClassVar[tuple[str, ...]] = ("vision.",)
    config_type: ClassVar[type] = SmolVLAConfig
    sizes: ClassVar[dict[str, SmolVLAConfig]] = PRESETS
    default_mode: ClassVar[str] = "mean_std"  # type: ignore[assignment]
    config: SmolVLAConfig

    def __init__(self, config: SmolVLAConfig):
        super().__init__(config)
        c = config
        kinds = _smolvlm.kinds(c.depth, c.self_attention_every, c.expert_every)
        trunk = [_smolvlm.TrunkLayer(c.trunk, i, c.eps) for i in range(c.depth)]
        expert = [_smolvlm.expert_layer(kind, c.expert, i, c.eps) for i, kind in enumerate(kinds)]
        self.vision = _smolvlm.Vision(c.vision, c.trunk.width)
        self.embed = nn.Embedding(c.vocabulary, c.trunk.width)
        self.trunk = _smolvlm.Stream(trunk, c.trunk.width, c.eps)
        self.expert = _smolvlm.Stream(expert, c.expert.width, c.eps)
        self.state_in = nn.Linear(c.width_state, c.trunk.width)
        self.action_in = nn.Linear(c.width_action, c.expert.width)
        self.action_out = nn.Linear(c.expert.width, c.width_action)
        self.time_in = nn.Linear(2 * c.expert.width, c.expert.width)
        self.time_out = nn.Linear(c.expert.width, c.expert.width)

    # -- making, describing ------------------------------------------------------------------------------------------

    @classmethod
    def from_lerobot(cls, policy: _lerobot.PolicyFolder) -> SmolVLA:
        """The policy of a LeRobot folder, in float32 (also where LeRobot itself runs the VLM in bfloat16).

        Raises ValueError for one that would act differently here.
        """
        return cls.outline(policy).filled()

    @classmethod
    def outline(cls, policy: _lerobot.PolicyFolder) -> Outline:
        """The same without its weights."""
        shapes = source.shapes(policy.folder)
        config = SmolVLAConfig.parse(_smolvla_names.settings(policy, shapes))
        words = policy.tokenizer.get_vocab_size()
        if words > config.vocabulary:
            raise ValueError(f"{policy.folder}: the tokenizer knows {words} words, the model {config.vocabulary}")
        with torch.device("meta"):
            model = cls(config)
        modes = {"observation.state": policy.modes["STATE"].lower(), "action": policy.modes["ACTION"].lower()}
        model.normalizer = _prompt.Normalizer(modes, policy.stats, config.convention)
        model.tokenizer = policy.tokenizer
        across = config.vision.image // config.vision.patch
        places = partial(_smolvla_names.place_patches, across=across)
        convert = {name: places for name in model.state_dict() if name.endswith(_smolvla_names.PLACES)}
        names = _smolvla_names.names(shapes, model.state_dict(), config.expert_every)
        return Outline(model, policy.folder, names, convert)

    @property
    def loss_dims(self) -> int:
        """The real ones: what the model says in padded ones is never trained."""
        return self.config.action_dim

    # -- data in and out ---------------------------------------------------------------------------------------------

    def batch(self, samples: dict[str, Any]) -> Batch:
        c, numbers = self.config, self.numbers(samples)
        images, live = self._images(samples["images"])
        prompts = [_prompt.prompt(task, None, c.convention) for task in samples["task"]]
        ids, valid = _prompt.encode(self._tokenizer(), prompts, c.text, cut=c.convention == "lerobot")
        if c.pad_text == "longest":
            longest = max(1, int(valid.sum(axis=1).max()))
            ids, valid = ids[:, :longest], valid[:, :longest]
        return Batch(
            images_BVCYX=images,
            live_BV=torch.tensor(live).expand(len(ids), -1),
            tokens_BT=torch.from_numpy(ids),
            text_BT=torch.from_numpy(valid),
            **numbers,
        )

    def _images(self, images: dict[str, np.ndarray]) -> tuple[Tensor, list[bool]]:
        """Pictures of the cameras that are there, and which views are real.

        As they came where all have one size, so that they travel small and are fitted on the device; else fitted here.
        A camera that is not there is left out: masked tokens change nothing, but the marks of an empty camera do.
        """
        c = self.config
        shown = [torch.from_numpy(images[name]).permute(0, 3, 1, 2) for name in c.cameras if name in images]
        if not shown:
            raise ValueError(f"none of the policy's cameras ({', '.join(c.cameras)}) is in the observation")
        if len({picture.shape for picture in shown}) > 1:
            shown = [_smolvlm.square(picture, c.vision.image) for picture in shown]
        live = [True] * len(shown)
        if c.image_marks is not None:
            shown += [torch.zeros_like(shown[0])] * c.empty_cameras
            live += [False] * c.empty_cameras
        return torch.stack(shown, dim=1), live

    def example(self, batch: int = 2, generator: torch.Generator | None = None) -> Batch:
        c, g = self.config, generator or torch.Generator().manual_seed(0)
        views = len(c.cameras) + (c.empty_cameras if c.image_marks is not None else 0)
        pixels = (batch, views, 3, c.vision.image, c.vision.image)
        lengths = torch.randint(c.text // 2, c.text + 1, (batch, 1), generator=g)
        return Batch(
            images_BVCYX=torch.randint(0, 256, pixels, generator=g, dtype=torch.uint8),
            live_BV=(torch.arange(views) < len(c.cameras)).expand(batch, -1),
            tokens_BT=torch.randint(0, c.vocabulary, (batch, c.text), generator=g),
            text_BT=torch.arange(c.text) < lengths,
            state_BS=torch.rand(batch, c.width_state, generator=g) * 2 - 1,
            actions_BHA=torch.rand(batch, c.horizon, c.width_action, generator=g) * 2 - 1,
        )

    def draw(self, batch: Batch, generator: torch.Generator, draws: int = 1, augment: bool = True) -> Draw:
        assert batch.actions_BHA is not None, "a training batch needs actions"
        images, actions = batch.images_BVCYX, batch.actions_BHA
        if augment:
            images = colour_jitter(images, generator, self.config.jitter)
        view = self._view(images)
        if augment and self.config.shift:
            view = _vision.random_shift(view, self.config.shift, generator)
        shape = (len(actions), draws, *actions.shape[1:])
        noise = torch.randn(shape, generator=generator).to(actions.device)
        time = _flow.sample_time(shape[:2], generator).to(actions.device)
        return Draw(view, noise, time)

    def _view(self, images_BVCYX: Tensor) -> Tensor:
        return _smolvlm.square(images_BVCYX, self.config.vision.image) * 2.0 - 1.0

    # -- computing ---------------------------------------------------------------------------------------------------

    def see(self, view_BVCYX: Tensor) -> Tensor:
        return self.vision(view_BVCYX.to(self.embed.weight.dtype))

    def forward(self, batch: Batch, draw: Draw, taps: Sequence[Tap] = (), route: Route | None = None) -> Out:
        assert batch.actions_BHA is not None, "a training batch needs actions"
        x, target = _flow.interpolate(batch.actions_BHA[:, None], draw.noise_BRHA, draw.time_BR)
        seen: dict[Tap, Tensor] = {}
        self._check_taps(taps)
        image = self.see(draw.view_BVCYX) if draw.features_BND is None else draw.features_BND
        stream, valid = self._embed_prefix(batch, image)
        chosen = self._chosen(batch, stream, valid, route, None, hard=False)
        walk = Asking(chosen, self.router, valid, None, decides=False)
        read = self._run_trunk(stream, valid, x.shape[1], walk, taps, seen)
        pred = self._velocity(x, draw.time_BR, read, taps, seen)
        return Out(pred.float(), target, valid, seen, read.route)

    def _chosen(
        self, batch: Batch, x: Tensor, valid: Tensor, route: Route | None, memory: Memory | None, hard: bool
    ) -> Route:
        """The given route, or what the router decides ahead."""
        if route is not None:
            return check(route, self.config.depth)
        text = F.pad(batch.text_BT, (x.shape[1] - batch.text_BT.shape[1] - 1, 1))  # the state token stands behind it
        return ahead(self.router, Sight(x, valid, text), memory, hard, self.config.depth)

    def _check_taps(self, taps: Sequence[Tap]) -> None:
        has = [i for i, layer in enumerate(self.expert.layers) if not isinstance(layer, _smolvlm.Absent)]
        for tap in taps:
            if tap.kind == "attention" and tap.layer not in has:
                raise ValueError(
                    f"the expert has no layer {tap.layer} whose attention could be seen: choose from {has}"
                )

    def _embed_prefix(self, batch: Batch, image_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix stream [B, N, D] and its validity [B, N]: images with their marks, text, state."""
        c, table = self.config, self.embed.weight
        scale = math.sqrt(c.trunk.width)
        text = self.embed(batch.tokens_BT) * scale
        image = (image_BND * scale).to(text.dtype).unflatten(1, (batch.live_BV.shape[1], -1))
        live = batch.live_BV[:, :, None].expand(image.shape[:3])
        if c.image_marks is not None:  # not scaled, and visible even around a camera that is not
            fence, start = c.image_marks
            around = (torch.stack([table[fence], table[start]]), table[fence][None])
            before, behind = (mark.to(text.dtype).expand(*image.shape[:2], -1, -1) for mark in around)
            image, live = torch.cat([before, image, behind], dim=2), F.pad(live, (2, 1), value=True)
        state = self.state_in(batch.state_BS.to(table.dtype))[:, None].to(text.dtype)
        valid = torch.cat([live.flatten(1), F.pad(batch.text_BT, (0, 1), value=True)], dim=1)
        return torch.cat([image.flatten(1, 2), text, state], dim=1), valid

    def _run_trunk(
        self,
        x: Tensor,
        valid: Tensor,
        draws: int,
        walk: Asking,
        taps: Sequence[Tap],
        seen: dict[Tap, Tensor],
        probe: Any = None,
    ) -> Read:
        """What every expert layer that runs reads. A trunk layer does no more than its keys and values when nothing
        reads its stream, and nothing at all when nobody reads those either."""
        c = self.config
        rotation, mask = _smolvlm.rope(valid.cumsum(1) - 1, c.trunk.head_dim), _smolvlm.prefix_mask(valid)
        reads = [not isinstance(expert, _smolvlm.Absent) for expert in self.expert.layers]
        watched = max((tap.layer for tap in taps if tap.kind == "prefix"), default=0)
        suffix = _smolvlm.suffix_view(valid, c.horizon, draws, c.expert.head_dim)
        caches: list[KeyValue | None] = []
        pairs: list[Any] = list(zip(self.trunk.layers, self.expert.layers, strict=True))
        for i, (layer, expert) in enumerate(pairs):
            walk.ask(i, x, partial(probe, caches, suffix) if probe else None)
            x = walk.enter(i, x)
            record(seen, taps, Tap("prefix", i), x)
            wanted, own = walk.runs[i] and reads[i], None
            goes_on = watched > i or any(run and read for run, read in zip(walk.runs[i + 1 :], reads[i + 1 :]))
            if walk.runs[i] and goes_on:
                after, own = layer(x, rotation, mask)
                x = walk.leave(i, x, after)
            elif wanted:
                own = layer.prefix_only(x, rotation)
            caches.append(expert.read(own) if wanted else None)
        if watched == c.depth:
            record(seen, taps, Tap("prefix", c.depth), walk.end(x))
        return Read(caches, suffix, walk.taken)

    def _velocity(
        self,
        x_BRHA: Tensor,
        time_BR: Tensor,
        read: Read,
        taps: Sequence[Tap] = (),
        seen: dict[Tap, Tensor] | None = None,
    ) -> Tensor:
        """Velocity [B, R, H, A] of R noisy chunks over one prefix."""
        x, walk = self._embed_suffix(x_BRHA, time_BR), Walk(read.route, self.router, "suffix")
        for i, (layer, cache) in enumerate(zip(self.expert.layers, read.caches, strict=True)):
            x = walk.enter(i, x)
            record(seen, taps, Tap("suffix", i), x)
            if Tap("velocity", i) in taps:
                record(seen, taps, Tap("velocity", i), self._answer(x, x_BRHA).float())
            if cache is None:
                continue
            after, scores = layer(x, read.suffix, cache, Tap("attention", i) in taps)
            if scores is not None and seen is not None:
                seen[Tap("attention", i)] = scores
            x = walk.leave(i, x, after)
        x = walk.end(x)
        record(seen, taps, Tap("suffix", self.config.depth), x)
        return self._answer(x, x_BRHA)

    def _answer(self, x: Tensor, x_BRHA: Tensor) -> Tensor:
        """Velocity, of the shape of the noisy chunks, out of the suffix stream [B, R*H, width]."""
        return self.action_out(self.expert.norm(x)).unflatten(1, x_BRHA.shape[1:3])

    def _embed_suffix(self, x_BRHA: Tensor, time_BR: Tensor) -> Tensor:
        """Suffix stream [B, R*H, width]: every noisy action together with the flow time of its draw."""
        c = self.config
        tokens = self.action_in(x_BRHA.to(self.embed.weight.dtype))
        time = _flow.time_embedding(time_BR, c.expert.width, c.shortest_period, c.longest_period).to(tokens.dtype)
        joined = torch.cat([tokens, time[:, :, None].expand_as(tokens)], dim=-1)
        return self.time_out(F.silu(self.time_in(joined))).flatten(1, 2)

    @torch.no_grad()
    def act(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        steps: int | None = None,
        route: Route | None = None,
        trace: Callable[[str], None] | None = None,
        memory: Memory | None = None,
        told: Callable[[Route], None] | None = None,
        guide: _flow.Guide | None = None,
    ) -> Tensor:
        if route is None and self.router is not None and len(batch) > 1:
            rest = {"steps": steps, "trace": trace, "memory": memory, "told": told, "guide": guide}
            return one_by_one(self.act, batch, noise_BHA, **rest)
        trace = trace or (lambda part: None)
        image = self.see(self._view(batch.images_BVCYX))
        trace("vision")
        stream, valid = self._embed_prefix(batch, image)
        chosen = self._chosen(batch, stream, valid, route, memory, hard=True)
        walk = Asking(chosen, self.router, valid, memory, decides=route is None)
        read = self._run_trunk(stream, valid, 1, walk, (), {}, self._probe(noise_BHA))
        trace("prefix")
        if told:
            told(read.route)

        def velocity(x: Tensor, time: Tensor, step: int) -> Tensor:
            return self._velocity(x[:, None], time[:, None], read)[:, 0].float()

        chunk = _flow.euler(velocity, noise_BHA, self.config.steps if steps is None else steps, guide)
        trace("denoise")
        return chunk

    def _probe(self, noise_BHA: Tensor) -> Callable[[list[KeyValue | None], _smolvlm.Suffix], Tensor]:
        """A function that says which actions the layers so far would give in one denoise step; it runs each expert
        layer once, however often it is asked."""
        stream: list[Tensor] = []
        done = 0

        def probe(caches: list[KeyValue | None], suffix: _smolvlm.Suffix) -> Tensor:
            nonlocal done
            start = noise_BHA[:, None], noise_BHA.new_ones(len(noise_BHA), 1)
            x = stream.pop() if stream else self._embed_suffix(*start)
            for layer, cache in zip(self.expert.layers[done : len(caches)], caches[done:], strict=True):
                x = x if cache is None else layer(x, suffix, cache, False)[0]
            done = len(caches)
            stream.append(x)
            return noise_BHA - self.action_out(self.expert.norm(x)).float()

        return probe

    def packed(self, steps: int | None = None) -> PackedSmolVLA:
        return PackedSmolVLA(self, steps)

    def cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        return _cost.smolvla_cost(self, views, text, steps)

    def packed_cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        return _cost.smolvla_cost(self, views, text, steps, packed=True)
