"""What pi and SmolVLA have in common around their networks: words and numbers in and out, side files, losses.

A family that denoises a chunk of actions, reads a prompt and normalises by statistics adds its configuration, its
network and its preprocessing of images. Nothing here knows which of them it serves. Shape legend: types.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from lithe.families import _prompt, _relative
from lithe.families.base import Family
from lithe.registry import suggestion
from lithe.routers.base import Router, Sizes
from lithe.types import Batch, Observation, Out, Spec

NORMALIZER, TOKENIZER = "normalization.json", "tokenizer.json"


class FlowFamily(Family):
    """Subclass with `config_type` (a dataclass with a strict `parse`) and `sizes` (preset -> configuration)."""

    guided: ClassVar[bool] = True
    config_type: ClassVar[Any]
    sizes: ClassVar[dict[str, Any]]
    config: Any
    embed: nn.Embedding

    def __init__(self, config: Any):
        super().__init__()
        self.config, self.history = config, []
        self.uncut_depth: int = config.depth
        self.normalizer: _prompt.Normalizer | None = None
        self.tokenizer: Tokenizer | None = None
        self.router: Router | None = None

    @property
    @abstractmethod
    def default_mode(self) -> str:
        """How a policy trained from random weights normalises, a key of _prompt.NEEDED."""

    @property
    @abstractmethod
    def loss_dims(self) -> int:
        """How many action dimensions the losses compare."""

    # -- making, describing ------------------------------------------------------------------------------------------

    @classmethod
    def fresh(cls, preset: str, seed: int = 0, **overrides: Any) -> FlowFamily:
        if preset not in cls.sizes:
            raise ValueError(
                f"{cls.name} has no preset {preset!r}{suggestion(preset, list(cls.sizes))}; "
                f"choose from {list(cls.sizes)}"
            )
        config = cls.config_type.parse({**asdict(cls.sizes[preset]), **overrides})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
            nn.init.normal_(model.embed.weight, std=config.trunk.width**-0.5)
        return model

    @classmethod
    def blank(cls, config: dict[str, Any], folder: Path) -> FlowFamily:
        model = cls(cls.config_type.parse(config))
        model.normalizer = _prompt.Normalizer.load(folder / NORMALIZER)
        try:
            model.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(f"{folder / TOKENIZER} cannot be read ({error}): fetch the policy again") from error
        return model

    def describe(self) -> dict[str, Any]:
        return {**asdict(self.config), "depth": self.uncut_depth}

    def save_extras(self, folder: Path) -> None:
        self._fitted().save(folder / NORMALIZER)
        self._tokenizer().save(str(folder / TOKENIZER))

    @property
    def streams(self) -> Sizes:
        return Sizes(self.config.depth, self.config.trunk.width, self.config.expert.width)

    @property
    def spec(self) -> Spec:
        c = self.config
        return Spec(tuple(c.cameras), c.state_dim, c.action_dim, c.horizon, c.replan, c.steps)

    def fit_to(self, stats: dict[str, dict[str, Any]], texts: Sequence[str], cameras: Sequence[str]) -> None:
        missing = [camera for camera in self.config.cameras if camera not in cameras]
        if missing:
            raise ValueError(
                f"the policy looks through camera {missing[0]!r}, which the data set does not have (it has "
                f"{', '.join(cameras)}): record it, or set teacher.cameras in the recipe"
            )
        # a loaded policy keeps the maps that it was trained with
        mode: Any = self.default_mode if self.normalizer is None else self.normalizer.modes
        normalizer = _prompt.Normalizer(mode, stats, self.config.convention)
        widths = {"observation.state": self.config.width_state, "action": self.config.width_action}
        sizes = {feature: normalizer.size(feature) or np.size(stats[feature]["mean"]) for feature in widths}
        for feature, size in sizes.items():
            if size > widths[feature]:
                raise ValueError(
                    f"{feature} has {size} dimensions in the data, the model takes at most {widths[feature]}"
                )
        self.config.state_dim, self.config.action_dim = sizes["observation.state"], sizes["action"]
        self.normalizer = normalizer
        self.tokenizer = self.tokenizer or _prompt.word_tokenizer(texts, self.config.vocabulary)

    def _fitted(self) -> _prompt.Normalizer:
        if self.normalizer is None:
            raise ValueError(
                "this policy has random weights and no statistics yet: train it, or call fit_to(stats, ...)"
            )
        return self.normalizer

    def _tokenizer(self) -> Tokenizer:
        self._fitted()
        assert self.tokenizer is not None
        return self.tokenizer

    # -- data in and out ---------------------------------------------------------------------------------------------

    def observe(self, observations: Sequence[Observation]) -> Any:
        key = "observation.images."
        cameras = [name[len(key) :] for name in observations[0] if name.startswith(key)]
        return self.batch(
            {
                "images": {camera: np.stack([o[key + camera] for o in observations]) for camera in cameras},
                "state": np.stack([o["observation.state"] for o in observations]).astype(np.float32),
                "task": [o["task"] for o in observations],
            }
        )

    def actions(self, actions_BHA: Tensor, batch: Batch) -> Tensor:
        real = actions_BHA[..., : self.config.action_dim].detach().float().cpu().numpy()
        made = torch.from_numpy(self._fitted().decode("action", real))
        return made if batch.origin_BA is None else made + batch.origin_BA.cpu()[:, None]

    def path(self, actions_BHA: Tensor, batch: Batch) -> Tensor:
        made = super().path(actions_BHA, batch)
        if batch.origin_BA is None:
            return made
        origin_BA, encode = batch.origin_BA.cpu().numpy(), self._fitted().encode
        moved_BA = encode("action", origin_BA) - encode("action", np.zeros_like(origin_BA))  # all maps are affine
        return made + torch.from_numpy(moved_BA).to(made)[:, None]

    def numbers(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The fields of a Batch that are neither seen nor read: state, actions, and what actions count from."""
        c, normalizer, actions, origin = self.config, self._fitted(), samples.get("action"), None
        if any(c.relative):
            origin = _relative.origin(samples["state"], c.relative)
            actions = None if actions is None else actions - origin[:, None]
        state = torch.from_numpy(normalizer.encode("observation.state", samples["state"]))
        target = None if actions is None else torch.from_numpy(normalizer.encode("action", actions))
        return {
            "state_BS": pad(state, c.width_state),
            "actions_BHA": None if target is None else pad(target, c.width_action),
            "origin_BA": None if origin is None else torch.from_numpy(origin),
        }

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, self.config.horizon, self.config.width_action, generator=generator)

    # -- losses ------------------------------------------------------------------------------------------------------

    def task_loss(self, out: Out) -> Tensor:
        return self._distance(out.pred_BRHA, out.target_BRHA)

    def imitation_loss(self, student: Out, teacher: Out) -> Tensor:
        return self._distance(student.pred_BRHA, teacher.pred_BRHA)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return F.mse_loss(a[..., : self.loss_dims], b[..., : self.loss_dims])


def pad(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last axis, up to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))
