"""pi0 and pi0.5: a PaliGemma-like trunk over images and text, and an action expert that denoises by flow matching.

Expert layer l reads the keys and values of trunk layer l, so both stacks are one lockstep Stack. The prefix never looks
at the suffix; therefore the trunk runs first, once per observation, and its keys and values serve every denoise step
and every noise draw of a training step. The last trunk layer computes keys and values only: nothing reads the rest.

    pi05  state written into the prompt as 256 bins; flow time enters through adaptive norms (adaRMS)
    pi0   state is the first suffix token; flow time is concatenated to each noisy action

Sources: arXiv 2410.24164 (pi0), 2504.16054 (pi0.5); openpi's code for conventions. Shape legend: types.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from lithe import source
from lithe.families import _cost, _flow, _lerobot, _openpi, _pi_names, _prompt, _vision
from lithe.families._attention import GemmaLayer, KeyValue, Rope, Stream, Widths, block_mask, rope
from lithe.families._augment import colour_jitter
from lithe.families._flow_family import FlowFamily
from lithe.families._outline import Outline
from lithe.families._packed_pi import PackedPi
from lithe.families._routing import Asking, Walk, ahead, check, one_by_one, record
from lithe.recipe import strict
from lithe.routers.base import Memory, Sight
from lithe.surgery import Stack
from lithe.types import Batch, Cost, Draw, Out, Route, Tap


@dataclass
class PiConfig:
    """Everything that fixes shape and conventions of a pi policy. `depth` is the one counter surgery changes."""

    variant: str = "pi05"  # or "pi0"
    depth: int = 18
    trunk: Widths = Widths(2048, 16384, 8, 1, 256)
    expert: Widths = Widths(1024, 4096, 8, 1, 256)
    vision: _vision.VisionSize = _vision.VisionSize(224, 14, 1152, 4304, 27, 16)
    vocabulary: int = 257_152
    text: int = 200  # longest prompt in tokens
    horizon: int = 50
    replan: int = 10  # actions executed before the next chunk
    steps: int = 10  # denoise steps
    width_action: int = 32  # padded action dimensions inside the model
    width_state: int = 32
    action_dim: int = 32  # real dimensions, taken from the data
    state_dim: int = 32
    cameras: tuple[str, ...] = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    state_in_prompt: bool = True  # pi05 only
    real_dims_only: bool = False  # leave padded action dimensions out of the losses
    relative: tuple[bool, ...] = ()  # action dimensions that count from the state; () = none
    shift: int = 0  # augmentation: random shift in pixels
    jitter: float = 0.0  # augmentation: strength of colour jitter; 1 is openpi's
    convention: str = "lithe"  # whose preprocessing: images, prompt and long prompts; see _prompt.CONVENTIONS
    shortest_period: float = 4e-3  # of the time embedding
    longest_period: float = 4.0

    @staticmethod
    def parse(data: dict[str, Any]) -> PiConfig:
        """Strict: an unknown key, a wrong type or an impossible size is a ValueError."""
        config: PiConfig = strict(PiConfig, data, "pi")
        if config.variant not in ("pi0", "pi05"):
            raise ValueError(f"pi: variant must be 'pi0' or 'pi05', not {config.variant!r}")
        if config.convention not in _prompt.CONVENTIONS:
            known = ", ".join(_prompt.CONVENTIONS)
            raise ValueError(f"pi: convention must be one of {known}, not {config.convention!r}")
        if not 0 < config.shortest_period < config.longest_period:
            raise ValueError("pi: the periods of the time embedding must be positive, the longest the larger one")
        if not 0 <= config.jitter <= 2:
            raise ValueError(f"pi: jitter must be between 0 and 2, not {config.jitter}")
        if config.relative and len(config.relative) != config.action_dim:
            raise ValueError(f"pi: relative marks {len(config.relative)} of {config.action_dim} action dimensions")
        parts = {part: asdict(getattr(config, part)) for part in ("trunk", "expert", "vision")}
        inner = {f"{part}.{key}": value for part, sizes in parts.items() for key, value in sizes.items()}
        for key, value in {**asdict(config), **inner}.items():
            if type(value) is int and value < (key != "shift"):
                raise ValueError(f"pi: {key} must be at least {int(key != 'shift')}, not {value}")
        return config


_MINI = PiConfig(
    depth=12,
    trunk=Widths(192, 512, 4, 1, 48),
    expert=Widths(96, 288, 4, 1, 48),
    vision=_vision.VisionSize(64, 8, 128, 384, 3, 4, merge=2),
    vocabulary=320,
    text=16,
    horizon=16,
    replan=4,
    steps=5,
    width_action=4,
    width_state=4,
    action_dim=4,
    state_dim=4,
    cameras=("corner2", "gripperPOV"),
    shift=2,
)
_PICO = replace(
    _MINI,
    depth=4,
    trunk=Widths(32, 48, 2, 1, 16),
    expert=Widths(16, 32, 2, 1, 16),
    vision=_vision.VisionSize(16, 4, 16, 32, 1, 2, merge=2),
    horizon=4,
    replan=2,
    steps=3,
)
PRESETS = {"full": PiConfig(), "mini": _MINI, "pico": _PICO}


class Pi(FlowFamily):
    """pi0 / pi0.5 policy with its preprocessing. Build it with `fresh`, or load one with `lithe.load`."""

    name: ClassVar[str] = "pi"
    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)
    stacks: ClassVar[tuple[Stack, ...]] = (
        Stack("trunk", ("trunk.layers", "expert.layers"), ("config.depth",), index="index"),
    )
    vision_prefixes: ClassVar[tuple[str, ...]] = ("vision.",)
    lerobot_types: ClassVar[tuple[str, ...]] = ("pi0", "pi05")
    config_type: ClassVar[type] = PiConfig
    sizes: ClassVar[dict[str, PiConfig]] = PRESETS
    config: PiConfig

    def __init__(self, config: PiConfig):
        super().__init__(config)
        width, adaptive = config.expert.width, config.variant == "pi05"
        self.vision = _vision.Vision(config.vision, config.trunk.width)
        self.embed = nn.Embedding(config.vocabulary, config.trunk.width)
        self.trunk = Stream(config.trunk, config.depth)
        self.expert = Stream(config.expert, config.depth, width if adaptive else None)
        self.action_in = nn.Linear(config.width_action, width)
        self.action_out = nn.Linear(width, config.width_action)
        self.time_in = nn.Linear(width if adaptive else 2 * width, width)
        self.time_out = nn.Linear(width, width)
        self.state_in = None if adaptive else nn.Linear(config.width_state, width)

    # -- making, describing ------------------------------------------------------------------------------------------

    @classmethod
    def from_lerobot(cls, policy: _lerobot.PolicyFolder) -> Pi:
        """The policy of a LeRobot folder, in float32. Raises ValueError for one that would act differently here."""
        return cls.outline(policy).filled()

    @classmethod
    def outline(cls, policy: _lerobot.PolicyFolder) -> Outline:
        """The same without its weights."""
        config = _pi_names.settings(policy, source.shapes(policy.folder))
        modes = {"observation.state": policy.modes["STATE"].lower(), "action": policy.modes["ACTION"].lower()}
        normalizer = _prompt.Normalizer(modes, policy.stats, "lerobot")
        return cls._outlined(config, policy.folder, normalizer, policy.tokenizer)

    @classmethod
    def from_openpi(cls, folder: str | Path, **settings: Any) -> Pi:
        """The policy of an openpi PyTorch checkpoint, in float32. Raises ValueError for what the folder leaves open.

        settings: horizon (openpi's action_horizon), replan, asset (whose statistics), cameras (the observation's names
        for base, left and right wrist), state_in_prompt (pi05's discrete_state_input; its LIBERO models have False).
        """
        return cls.outline_openpi(folder, **settings).filled()

    @classmethod
    def outline_openpi(cls, folder: str | Path, **settings: Any) -> Outline:
        """The same without its weights."""
        return cls._outlined(*_openpi.read(Path(folder), **settings))

    @classmethod
    def _outlined(
        cls, config: dict[str, Any], folder: Path, normalizer: _prompt.Normalizer, tokenizer: Tokenizer
    ) -> Outline:
        with torch.device("meta"):
            model = cls(PiConfig.parse(config))
        model.normalizer, model.tokenizer = normalizer, tokenizer
        return Outline(model, folder, _pi_names.names(model.state_dict(), model.config.variant, source.shapes(folder)))

    @property
    def default_mode(self) -> str:
        return "quantiles" if self.config.variant == "pi05" else "mean_std"

    @property
    def loss_dims(self) -> int:
        return self.config.action_dim if self.config.real_dims_only else self.config.width_action

    # -- data in and out ---------------------------------------------------------------------------------------------

    def batch(self, samples: dict[str, Any]) -> Batch:
        c, images, numbers = self.config, [], self.numbers(samples)
        live = [camera in samples["images"] for camera in c.cameras]
        for camera in c.cameras:
            raw = samples["images"].get(camera)
            if raw is None:  # a camera that does not exist is masked, never guessed
                raw = np.zeros((len(samples["task"]), c.vision.image, c.vision.image, 3), np.uint8)
            images.append(_vision.prepare(torch.from_numpy(raw).permute(0, 3, 1, 2), c.vision.image, c.convention))
        if not any(live):
            raise ValueError(f"none of the policy's cameras ({', '.join(c.cameras)}) is in the observation")
        state = numbers["state_BS"][:, : c.state_dim].numpy()
        in_prompt = state if c.variant == "pi05" and c.state_in_prompt else [None] * len(state)
        prompts = [_prompt.prompt(text, s, c.convention) for text, s in zip(samples["task"], in_prompt, strict=True)]
        ids, valid = _prompt.encode(self._tokenizer(), prompts, c.text, cut=c.convention != "lithe")
        if ids.max() >= c.vocabulary:  # not asked of the tokenizer: PaliGemma's has words that pi cannot embed
            raise ValueError(
                f"a word of the prompt has number {ids.max()}, the model knows {c.vocabulary}: rephrase it"
            )
        return Batch(
            images_BVCYX=torch.stack(images, dim=1),
            live_BV=torch.tensor(live).expand(len(ids), -1),
            tokens_BT=torch.from_numpy(ids),
            text_BT=torch.from_numpy(valid),
            **numbers,
        )

    def example(self, batch: int = 2, generator: torch.Generator | None = None) -> Batch:
        c, g = self.config, generator or torch.Generator().manual_seed(0)
        pixels = (batch, len(c.cameras), 3, c.vision.image, c.vision.image)
        lengths = torch.randint(c.text // 2, c.text + 1, (batch, 1), generator=g)
        images = torch.randint(0, 256, pixels, generator=g, dtype=torch.uint8)
        return Batch(
            images_BVCYX=images / 255 if c.convention == "lerobot" else images,
            live_BV=torch.ones(batch, len(c.cameras), dtype=torch.bool),
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
        if augment and self.config.shift:
            images = _vision.random_shift(images, self.config.shift, generator)
        shape = (len(actions), draws, *actions.shape[1:])
        noise = torch.randn(shape, generator=generator).to(actions.device)
        time = _flow.sample_time(shape[:2], generator).to(actions.device)
        return Draw(_vision.to_unit(images), noise, time)

    # -- computing ---------------------------------------------------------------------------------------------------

    def see(self, view_BVCYX: Tensor) -> Tensor:
        return self.vision(view_BVCYX.to(self.embed.weight.dtype))

    def forward(self, batch: Batch, draw: Draw, taps: Sequence[Tap] = (), route: Route | None = None) -> Out:
        assert batch.actions_BHA is not None, "a training batch needs actions"
        x, target = _flow.interpolate(batch.actions_BHA[:, None], draw.noise_BRHA, draw.time_BR)
        seen: dict[Tap, Tensor] = {}
        image = self.see(draw.view_BVCYX) if draw.features_BND is None else draw.features_BND
        stream, valid = self._embed_prefix(batch, image)
        chosen = self._chosen(batch, stream, valid, route, None, hard=False)
        caches, taken = self._run_trunk(stream, valid, Asking(chosen, self.router, valid, None, False), taps, seen)
        pred = self._velocity(batch, x, draw.time_BR, caches, valid, taken, taps, seen)
        return Out(pred.float(), target, valid, seen, taken)

    def _chosen(
        self, batch: Batch, x: Tensor, valid: Tensor, route: Route | None, memory: Memory | None, hard: bool
    ) -> Route:
        """The given route, or what the router decides ahead."""
        if route is not None:
            return check(route, self.config.depth)
        text = F.pad(batch.text_BT, (x.shape[1] - batch.text_BT.shape[1], 0))
        return ahead(self.router, Sight(x, valid, text), memory, hard, self.config.depth)

    def _embed_prefix(self, batch: Batch, image_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix stream [B, N, D] and its validity [B, N]; masked cameras and padded text stay in, but invisible."""
        text = self.embed(batch.tokens_BT) * math.sqrt(self.config.trunk.width)
        live = batch.live_BV.repeat_interleave(self.config.vision.tokens, dim=1)
        return torch.cat([image_BND.to(text.dtype), text], dim=1), torch.cat([live, batch.text_BT], dim=1)

    def _run_trunk(
        self, x: Tensor, valid: Tensor, walk: Asking, taps: Sequence[Tap], seen: dict[Tap, Tensor], probe: Any = None
    ) -> tuple[list[KeyValue | None], Route]:
        """Keys and values of every trunk layer that runs, and the way taken. The last layer that runs does no more
        than its keys and values, unless the stream behind it is tapped."""
        rotation = rope((valid.cumsum(1) - 1), self.config.trunk.head_dim)
        mask = valid[:, None, None, :]
        caches: list[KeyValue | None] = []
        watched = max((tap.layer for tap in taps if tap.kind == "prefix"), default=0)
        for i, layer in enumerate(self.trunk.layers):
            walk.ask(i, x, partial(probe, caches) if probe else None)
            x = walk.enter(i, x)
            record(seen, taps, Tap("prefix", i), x)
            if not walk.runs[i]:
                caches.append(None)
            elif walk.may_be_last(i) and watched <= i:
                assert isinstance(layer, GemmaLayer)
                caches.append(layer.prefix_only(x, rotation))
            else:
                after, cache, _ = layer(x, rotation, mask)
                x = walk.leave(i, x, after)
                caches.append(cache)
        if watched == self.config.depth:
            record(seen, taps, Tap("prefix", self.config.depth), walk.end(x))
        return caches, walk.taken

    def _velocity(
        self,
        batch: Batch,
        x_BRHA: Tensor,
        time_BR: Tensor,
        caches: list[KeyValue | None],
        valid: Tensor,
        route: Route,
        taps: Sequence[Tap] = (),
        seen: dict[Tap, Tensor] | None = None,
    ) -> Tensor:
        """Velocity [B, R, H, A] of R noisy chunks over one cached prefix."""
        draws, horizon = x_BRHA.shape[1:3]
        walk = Walk(route, self.router, "suffix")
        x, cond, queries = self._embed_suffix(batch, x_BRHA, time_BR)
        rotation = self._suffix_rope(valid, queries, draws)
        mask = block_mask(valid, queries, draws, private_first=self.config.variant == "pi0")
        for i, (layer, cache) in enumerate(zip(self.expert.layers, caches, strict=True)):
            x = walk.enter(i, x)
            record(seen, taps, Tap("suffix", i), x)
            if Tap("velocity", i) in taps:
                record(seen, taps, Tap("velocity", i), self._answer(x, cond, draws, horizon).float())
            if cache is None:
                continue
            wanted = Tap("attention", i) in taps
            after, _, scores = layer(x, rotation, mask, cond, cache, scores=wanted)
            if wanted:
                seen[Tap("attention", i)] = self._action_rows(scores, queries, draws, horizon)  # type: ignore[index]
            x = walk.leave(i, x, after)
        x = walk.end(x)
        record(seen, taps, Tap("suffix", self.config.depth), x)
        return self._answer(x, cond, draws, horizon)

    def _answer(self, x: Tensor, cond: Tensor | None, draws: int, horizon: int) -> Tensor:
        """Velocity [B, R, H, A] out of the suffix stream [B, R*queries, width]."""
        x = self.expert.norm(x, cond)[0].unflatten(1, (draws, -1))[:, :, -horizon:]
        return self.action_out(x.contiguous())  # of a strided input, frozen and trained weights give other last bits

    def _embed_suffix(self, batch: Batch, x_BRHA: Tensor, time_BR: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """Suffix stream [B, R*queries, width], conditioning of the norms, and tokens per draw."""
        tokens = self.action_in(x_BRHA.to(self.embed.weight.dtype))
        periods = self.config.shortest_period, self.config.longest_period
        time = _flow.time_embedding(time_BR, self.config.expert.width, *periods).to(tokens.dtype)
        if self.state_in is None:
            cond = F.silu(self.time_out(F.silu(self.time_in(time))))
            queries = tokens.shape[2]
            return tokens.flatten(1, 2), cond, queries
        joined = torch.cat([tokens, time[:, :, None].expand_as(tokens)], dim=-1)
        tokens = self.time_out(F.silu(self.time_in(joined)))
        state = self.state_in(batch.state_BS.to(self.embed.weight.dtype))[:, None, None].expand(
            -1, tokens.shape[1], -1, -1
        )
        tokens = torch.cat([state.to(tokens.dtype), tokens], dim=2)
        return tokens.flatten(1, 2), None, tokens.shape[2]

    def _suffix_rope(self, valid: Tensor, queries: int, draws: int) -> Rope:
        """Every draw takes the positions right behind the valid prefix."""
        places = torch.arange(queries, device=valid.device).repeat(draws)
        return rope(valid.sum(1, keepdim=True) + places, self.config.expert.head_dim)

    def _action_rows(self, scores: Tensor, queries: int, draws: int, horizon: int) -> Tensor:
        """Only the rows of action tokens: pi0's state token is not an action query."""
        return scores.unflatten(2, (draws, queries))[:, :, :, -horizon:].flatten(2, 3)

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
        image = self.see(_vision.to_unit(batch.images_BVCYX))
        trace("vision")
        stream, valid = self._embed_prefix(batch, image)
        chosen = self._chosen(batch, stream, valid, route, memory, hard=True)
        walk = Asking(chosen, self.router, valid, memory, decides=route is None)
        caches, taken = self._run_trunk(stream, valid, walk, (), {}, self._probe(batch, noise_BHA, valid))
        trace("prefix")
        if told:
            told(taken)

        def velocity(x: Tensor, time: Tensor, step: int) -> Tensor:
            return self._velocity(batch, x[:, None], time[:, None], caches, valid, taken)[:, 0].float()

        chunk = _flow.euler(velocity, noise_BHA, self.config.steps if steps is None else steps, guide)
        trace("denoise")
        return chunk

    def _probe(self, batch: Batch, noise_BHA: Tensor, valid: Tensor) -> Callable[[list[KeyValue | None]], Tensor]:
        """A function that says which actions the layers so far would give in one denoise step; it runs each expert
        layer once, however often it is asked."""
        start: list[tuple[Tensor, Tensor | None, int, Rope, Tensor]] = []
        done = 0

        def probe(caches: list[KeyValue | None]) -> Tensor:
            nonlocal done
            if not start:
                x, cond, queries = self._embed_suffix(batch, noise_BHA[:, None], noise_BHA.new_ones(len(noise_BHA), 1))
                mask = block_mask(valid, queries, 1, private_first=self.config.variant == "pi0")
                start.append((x, cond, queries, self._suffix_rope(valid, queries, 1), mask))
            x, cond, queries, rotation, mask = start.pop()
            for layer, cache in zip(self.expert.layers[done : len(caches)], caches[done:], strict=True):
                if cache is not None:
                    x = layer(x, rotation, mask, cond, cache)[0]
            done = len(caches)
            start.append((x, cond, queries, rotation, mask))
            normed = self.expert.norm(x, cond)[0][:, -self.config.horizon :]
            return noise_BHA - self.action_out(normed.contiguous()).float()

        return probe

    def packed(self, steps: int | None = None) -> PackedPi:
        return PackedPi(self, steps)

    def cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        return _cost.pi_cost(self, views, text, steps)

    def packed_cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        return _cost.pi_cost(self, views, text, steps, packed=True)
