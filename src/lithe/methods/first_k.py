"""Control: keep the first layers instead of uniformly spread ones, then fine-tune on the task loss.

Fixed truncation is what routers that learn "keep the early layers" have to be compared with, and shows what the choice
of layers alone is worth at the budget of `finetune`.

    L = L_task

Source: the truncation control of SmolVLA (arXiv 2506.01844), which reads only the first half of its VLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lithe.families.base import Family
from lithe.methods._depth import first
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class FirstK(Method):
    """Keep the first layers, fine-tune on the task loss."""

    paper: ClassVar[str] = "control: keep the first layers, then fine-tune"
    needs_teacher: ClassVar[bool] = False

    keep: int = 6  # layers of the trunk to keep

    def cut(self, teacher: Family) -> list[Op]:
        return [KeepLayers("trunk", first(teacher.depth("trunk"), self.keep))]

    def loss(self, step: Step) -> dict[str, Tensor]:
        assert step.out is not None
        return {"task": step.student.task_loss(step.out)}
