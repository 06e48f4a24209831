"""What LeRobot's command line may set of a lithe student. Everything else is the student's own, in its student.json.

Defaults of the optimiser are lithe's. LeRobot parses this from config.json, which lithe writes (lithe/_home.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig


@PreTrainedConfig.register_subclass("lithe")
@dataclass
class LitheConfig(PreTrainedConfig):
    """chunk_size, features and normalization_mapping describe the student and cannot be changed."""

    chunk_size: int = 50
    n_action_steps: int = 10  # actions executed of each chunk
    num_steps: int | None = None  # denoise steps; None: the student's own
    seed: int | None = None  # of the noise; None: LeRobot's own --seed
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    rtc_config: RTCConfig | None = None
    compile_model: bool = False  # LeRobot sets it from --use_torch_compile
    push_to_hub: bool = False

    optimizer_lr: float = 2.5e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1_000
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 2.5e-6

    def validate_features(self) -> None:
        """Raises ValueError for what no student can follow.

        The policy asks for this when it is made. The parser, which makes the configuration, would hide the sentence.
        """
        there = {
            "picture": self.image_features,
            "observation.state": self.robot_state_feature,
            "action": self.action_feature,
        }
        for what, feature in there.items():
            if not feature:
                raise ValueError(f"config.json names no {what}: save the student again with this version of lithe")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} must be between 1 and the {self.chunk_size} actions of a chunk"
            )
        if any(mode != NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ValueError("a lithe student normalises by itself: leave normalization_mapping at IDENTITY")
        if self.use_peft:
            raise ValueError("a lithe student takes no adapters: leave use_peft out")
        if self.n_obs_steps != 1:
            raise ValueError(
                f"a lithe student sees one observation at a time: n_obs_steps is 1, not {self.n_obs_steps}"
            )
        if self.compile_model:
            raise ValueError("LeRobot cannot compile a lithe student: leave --use_torch_compile out")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
