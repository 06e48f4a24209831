"""A lithe student as a LeRobot policy: a thin coat around a lithe Family, which does everything in its own way.

Raw pictures, state and sentence go in, actions in the robot's units come out, as in `lithe eval`. Loading and saving
are lithe's (strict, checksums, no pickle), so a folder that LeRobot saved is a whole student again.
Shapes: B batch, H chunk, A action, C channels, Y X rows and columns.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from lithe import _home, checkpoint
from lithe.families.base import Family
from lithe.source import resolve

from . import _rtc
from ._noise import Noise
from .configuration_lithe import LitheConfig

STATE, ACTION, TASK = "observation.state", "action", "task"
WRITTEN = {"format", "family", "config", "history", "sha256", "files"}  # what lithe says of every student


class LithePolicy(PreTrainedPolicy):
    """Open one with `LithePolicy.from_pretrained(folder)`; LeRobot's tools do that for --policy.path=<folder>."""

    config_class = LitheConfig
    name = "lithe"

    def __init__(
        self,
        config: LitheConfig,
        model: Family | None = None,
        parent: dict[str, Any] | None = None,
        dataset_stats: Any = None,  # given by LeRobot; a student keeps its own
        dataset_meta: Any = None,
    ) -> None:
        if model is None:
            raise ValueError(
                "a lithe policy is a student and never begins from nothing: give --policy.path=<its folder>"
            )
        super().__init__(config)
        config.validate_features()
        _check(config, model)
        self.model, self.parent = model, parent or {}
        self.cameras = _home.cameras(model.spec.cameras)
        self._noise = Noise(config.seed)
        self.init_rtc_processor()
        self.reset()

    # -- folders -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **made_of: Any,
    ) -> LithePolicy:
        """The student in a folder or a hub repository, in eval mode on `config.device`. Always strict.

        Raises ValueError for a folder that is no whole student, or whose config.json is about another one.
        """
        folder = resolve(pretrained_name_or_path, revision).folder
        if not (folder / checkpoint.CARD).is_file():
            raise ValueError(
                f"{pretrained_name_or_path} has no {checkpoint.CARD}, without which nobody knows how its layers were "
                "cut: fetch or save the whole student folder again"
            )
        card = checkpoint.read_card(folder)
        config = config or PreTrainedConfig.from_pretrained(folder)
        about = {key: value for key, value in card.items() if key not in WRITTEN}
        policy = cls(config, checkpoint.load(folder), {"weights": card["sha256"], **about}, **made_of)
        return policy.to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """A whole student beside whatever is in the folder, with this configuration's config.json."""
        if state_dict is not None:
            raise ValueError("a lithe student cannot be gathered from shards: train it without FSDP")
        with TemporaryDirectory(dir=save_directory, prefix=".lithe-") as stage:
            made = checkpoint.save(self.model, Path(stage) / "student", parent=self.parent)
            self.config._save_pretrained(made)
            for path in sorted(made.iterdir()):
                os.replace(path, save_directory / path.name)

    # -- training ------------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> Any:
        return self.parameters()

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The student's own loss on one batch. Randomness is torch's global one, which LeRobot seeds and restores."""
        if reduction != "mean":
            raise ValueError("a lithe student's loss is a mean over the batch: leave sample_weighting out")
        actions_BHA = batch[ACTION].detach().float().cpu().numpy()
        inputs = self.model.batch({**self._samples(batch), "action": actions_BHA}).to(self._device)
        draw = self.model.draw(inputs, torch.default_generator, augment=self.training)
        loss = self.model.task_loss(self.model(inputs, draw))
        return loss, {"task_loss": loss.item()}

    # -- acting --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """An episode begins: no action is left of the last one, and noise starts anew."""
        self._queue: deque[Tensor] = deque()
        self._noise.reset()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next action [B, A]; a new chunk is made when `n_action_steps` of the last one are done."""
        if not self._queue:
            chunk_BHA = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk_BHA[:, : self.config.n_action_steps].unbind(dim=1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Actions [B, H, A] in the robot's units.

        noise: [B, H, A] in model units, instead of the episode's own. The rest is real-time chunking: actions [T, A] or
        [B, T, A] that are left of the last chunk, and how many of them will be done before this one arrives.
        """
        samples, given = self._samples(batch), {}
        left_BTA = _rtc.left_over(prev_chunk_left_over, self.model.spec.horizon) if self._steered else None
        inputs = self.model.batch(samples if left_BTA is None else {**samples, "action": left_BTA}).to(self._device)
        if inputs.actions_BHA is not None:
            delay = inference_delay or 0
            given["guide"] = _rtc.guide(self.rtc_processor, inputs.actions_BHA, delay, execution_horizon)
        start = self._noise(self.model, samples[TASK]) if noise is None else noise
        seen = replace(inputs, actions_BHA=None)
        chunk = self.model.act(seen, start.to(self._device), steps=self.config.num_steps, **given)
        return self.model.actions(chunk, seen).to(self._device)

    def supports_rtc(self) -> bool:
        """Whether `prev_chunk_left_over` is obeyed: by every student that denoises its chunk."""
        return self.model.guided

    def init_rtc_processor(self) -> None:
        """LeRobot calls this after it has set `config.rtc_config`."""
        self.rtc_processor = RTCProcessor(self.config.rtc_config or RTCConfig())

    @property
    def _steered(self) -> bool:
        return self.supports_rtc() and self.rtc_processor.rtc_config.enabled

    # -- batches -------------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _samples(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What lithe's families prepare by themselves, from what LeRobot's preprocessor gives."""
        for key in (*self.cameras.values(), STATE, TASK):
            if key not in batch:
                there = ", ".join(sorted(name for name in batch if name.startswith("observation.")))
                fix = f'give --rename_map={{"<its name here>": "{key}"}}' if key != TASK else "give the instruction"
                raise ValueError(f"the student needs {key!r}, which is not in the batch (it has {there}): {fix}")
        return {
            "images": {camera: _pixels(batch[key]) for camera, key in self.cameras.items()},
            "state": batch[STATE].detach().float().cpu().numpy(),
            "task": list(batch[TASK]),
        }


def _pixels(picture_BCYX: Tensor) -> Any:
    """uint8 [B, Y, X, C]; LeRobot's pictures are floats in 0 to 1 made of such, so nothing is lost."""
    if picture_BCYX.is_floating_point():
        picture_BCYX = (picture_BCYX.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return picture_BCYX.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _check(config: LitheConfig, model: Family) -> None:
    """Raises ValueError when the configuration, or what LeRobot put into it of data or environment, does not fit."""
    spec = model.spec
    wanted = set(_home.cameras(spec.cameras).values())
    if wanted != set(config.image_features):
        raise ValueError(
            f"the student looks through {', '.join(sorted(wanted))}, config.json names "
            f"{', '.join(sorted(config.image_features))}: restore config.json, and rename with --rename_map instead"
        )
    features = {
        "state": (config.robot_state_feature, (spec.state_dim,)),
        "action": (config.action_feature, (spec.action_dim,)),
    }
    for what, (feature, shape) in features.items():
        if feature is not None and tuple(feature.shape) != shape:
            raise ValueError(
                f"the student has {shape[0]} {what} dimensions, {feature.shape[0]} are asked for: it was trained for "
                "another robot than this data set or environment has"
            )
    if config.chunk_size != spec.horizon:
        raise ValueError(
            f"the student's chunks have {spec.horizon} actions, chunk_size={config.chunk_size} cannot be had"
        )
