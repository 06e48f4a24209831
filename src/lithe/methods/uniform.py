"""Control: the same uniform cut as Shallow-pi, and no training at all: what is left without recovery.

The distance from here to `finetune` is what training recovers, and from there to `shallow_pi` what distilling adds.
Training-free, there is no loss. Source: the layer map of arXiv 2601.20262.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lithe.families.base import Family
from lithe.methods._depth import uniform
from lithe.methods.base import Method, Stage, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Keep evenly spread layers, train nothing."""

    paper: ClassVar[str] = "control: drop layers uniformly, no recovery"
    needs_teacher: ClassVar[bool] = False

    keep: int = 6  # layers of the trunk to keep

    def cut(self, teacher: Family) -> list[Op]:
        return [KeepLayers("trunk", uniform(teacher.depth("trunk"), self.keep))]

    def stages(self) -> list[Stage]:
        return []

    def loss(self, step: Step) -> dict[str, Tensor]:
        raise AssertionError("nothing is trained, so nobody asks for a loss")
