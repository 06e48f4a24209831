"""Control: the same uniform cut as Shallow-pi, then the family's own task loss and nothing else.

What plain fine-tuning recovers at the same budget is what a distillation method has to beat. With `keep: 0` nothing is
cut: that is ordinary training, and how the shipped teacher was made from scratch.

    L = L_task

Source: the drop-then-recover control of arXiv 2606.27755 (VLADrop), with the layer map of arXiv 2601.20262.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lithe.families.base import Family
from lithe.methods._depth import uniform
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """Cut uniformly, fine-tune on the task loss."""

    paper: ClassVar[str] = "control: drop layers uniformly, then fine-tune"
    needs_teacher: ClassVar[bool] = False

    keep: int = 0  # layers of the trunk to keep; 0 = all, no surgery

    def cut(self, teacher: Family) -> list[Op]:
        return [KeepLayers("trunk", uniform(teacher.depth("trunk"), self.keep))] if self.keep else []

    def loss(self, step: Step) -> dict[str, Tensor]:
        assert step.out is not None
        return {"task": step.student.task_loss(step.out)}
