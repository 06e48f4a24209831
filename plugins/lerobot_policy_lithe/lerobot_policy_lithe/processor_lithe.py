"""LeRobot's processors around a lithe student: rename, batch, device; back on the CPU. They change no number.

LeRobot's own default pipelines are taken as they are. Their normalisers are IDENTITY (see LitheConfig), and they have
to be there: lerobot-train hands them statistics by name.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors
from torch import Tensor

from .configuration_lithe import LitheConfig


def make_lithe_pre_post_processors(
    config: LitheConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[Any, Any]:
    """The pipelines before and after the policy."""
    return make_default_pre_post_processors(config, dataset_stats)
