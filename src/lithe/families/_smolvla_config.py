"""Sizes and conventions of SmolVLA policies, and the presets `fresh` offers: full (SmolVLM2-500M), mini, pico.

Shape legend: types.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lithe.families._attention import Widths
from lithe.families._vision import VisionSize
from lithe.recipe import strict

MAY_BE_ZERO = ("self_attention_every", "empty_cameras", "shift")


@dataclass
class SmolVLAConfig:
    """Everything that fixes shape and conventions of a SmolVLA policy. `depth` is the one counter surgery changes.

    `self_attention_every` and `expert_every` describe the uncut model: after surgery a layer's kind is its class.
    """

    depth: int = 16
    trunk: Widths = Widths(960, 2560, 15, 5, 64)
    expert: Widths = Widths(720, 2048, 15, 5, 64)
    vision: VisionSize = VisionSize(512, 16, 768, 3072, 12, 12, merge=4)
    self_attention_every: int = 2  # self-attention beside trunk layers 0, n, 2n ..., else cross-attention; 0 = never
    expert_every: int = 1  # the expert has a layer beside trunk layers 0, n, 2n ...
    eps: float = 1e-5  # of the norms
    shortest_period: float = 4e-3  # of the flow time's sines
    longest_period: float = 4.0
    vocabulary: int = 49_280
    text: int = 48  # longest prompt in tokens
    pad_text: str = "longest"  # of a batch, or "max_length"
    image_marks: tuple[int, int] | None = None  # ids of the words around each image: the fence, and what begins it
    horizon: int = 50
    replan: int = 50  # actions executed before the next chunk
    steps: int = 10  # denoise steps
    width_action: int = 32  # padded action dimensions inside the model
    width_state: int = 32
    action_dim: int = 32  # real dimensions, taken from the data
    state_dim: int = 32
    cameras: tuple[str, ...] = ("camera1", "camera2", "camera3")
    empty_cameras: int = 0  # views without a picture, behind the others; only their marks are ever visible
    shift: int = 0  # augmentation: random shift in pixels
    relative: tuple[bool, ...] = ()  # action dimensions that count from the state; () = none
    jitter: float = 0.0  # augmentation: strength of colour jitter; 1 is openpi's
    convention: str = "lithe"  # of prompts and normalisation, or "lerobot"; pictures are always prepared as there

    @staticmethod
    def parse(data: dict[str, Any]) -> SmolVLAConfig:
        """Strict: an unknown key, a wrong type or an impossible size is a ValueError."""
        c: SmolVLAConfig = strict(SmolVLAConfig, data, "smolvla")
        parts = {part: asdict(getattr(c, part)) for part in ("trunk", "expert", "vision")}
        inner = {f"{part}.{key}": value for part, sizes in parts.items() for key, value in sizes.items()}
        for key, value in {**asdict(c), **inner}.items():
            if type(value) is int and value < (key not in MAY_BE_ZERO):
                raise ValueError(f"smolvla: {key} must be at least {int(key not in MAY_BE_ZERO)}, not {value}")
        if c.relative and len(c.relative) != c.action_dim:
            raise ValueError(f"smolvla: relative marks {len(c.relative)} of {c.action_dim} action dimensions")
        if c.convention not in ("lithe", "lerobot"):
            raise ValueError(f"smolvla: convention must be 'lithe' or 'lerobot', not {c.convention!r}")
        if not 0 < c.shortest_period < c.longest_period or c.eps <= 0:
            raise ValueError("smolvla: eps and both periods must be positive, the longest the larger one")
        if not 0 <= c.jitter <= 2:
            raise ValueError(f"smolvla: jitter must be between 0 and 2, not {c.jitter}")
        if c.pad_text not in ("longest", "max_length"):
            raise ValueError(f"smolvla: pad_text must be 'longest' or 'max_length', not {c.pad_text!r}")
        if any(parts["trunk"][key] != parts["expert"][key] for key in ("heads", "kv_heads", "head_dim")):
            raise ValueError("smolvla: trunk and expert must have the same heads, kv_heads and head_dim")
        if c.expert.width % 2 or c.trunk.heads % c.trunk.kv_heads:
            raise ValueError("smolvla: expert.width must be even, and heads a multiple of kv_heads")
        if c.vision.image // c.vision.patch % c.vision.merge:
            raise ValueError("smolvla: a picture's patches must divide into squares of vision.merge by vision.merge")
        return c


_MINI = SmolVLAConfig(
    depth=12,
    trunk=Widths(192, 512, 6, 2, 32),
    expert=Widths(144, 384, 6, 2, 32),
    vision=VisionSize(64, 8, 128, 384, 3, 4, merge=2),
    vocabulary=320,
    text=16,
    horizon=16,
    replan=8,
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
    expert=Widths(24, 32, 2, 1, 16),
    vision=VisionSize(16, 4, 16, 32, 1, 2, merge=2),
    horizon=4,
    replan=2,
    steps=3,
)
PRESETS = {"full": SmolVLAConfig(), "mini": _MINI, "pico": _PICO}
