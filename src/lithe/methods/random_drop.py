"""Control: keep random layers, then fine-tune on the task loss.

A way of choosing layers that does not beat a few of these seeds has chosen nothing. All layers are alike in the draw,
the first and the last one too.

    L = L_task

Source: the random control that CLP (arXiv 2606.20246) and MoLe-VLA (2503.20384) compare with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lithe.families.base import Family
from lithe.methods._depth import highest
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class RandomDrop(Method):
    """Keep random layers, fine-tune on the task loss."""

    paper: ClassVar[str] = "control: drop random layers, then fine-tune"
    needs_teacher: ClassVar[bool] = False

    keep: int = 6  # layers of the trunk to keep
    seed: int = 0  # which ones; nothing else depends on it

    def cut(self, teacher: Family) -> list[Op]:
        depth, generator = teacher.depth("trunk"), random.Random(self.seed)
        # of all that Python draws, only random() promises to stay the same in later versions
        return [KeepLayers("trunk", highest([generator.random() for _ in range(depth)], self.keep))]

    def loss(self, step: Step) -> dict[str, Tensor]:
        assert step.out is not None
        return {"task": step.student.task_loss(step.out)}
