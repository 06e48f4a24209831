"""Control: the same cut as Shallow-pi, then the family's own task loss and nothing else.

What plain fine-tuning recovers at the same budget is what a distillation method has to beat. With `keep: 0` nothing is
cut: that is ordinary training, and how the shipped teacher was made from scratch.

    L = L_task

Source: the drop-then-recover control of arXiv 2606.27755 (VLADrop), with the layer map of arXiv 2601.20262. Layers can
also be chosen by a score, as VLADrop (`by: gate`, our reading of its GateProbe; `fisher`, `cos`) and CLP (`by: cka`,
arXiv 2606.20246) do. Departs from them: trunk and expert lose the same layers; CLP's grouping by a threshold is left
out, the lowest scores go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods._depth import By, chosen, kept
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """Cut, fine-tune on the task loss."""

    paper: ClassVar[str] = "control: drop layers uniformly, then fine-tune"
    needs_teacher: ClassVar[bool] = False

    keep: int = 0  # layers of the trunk to keep; 0 = all, no surgery
    by: By = "uniform"  # how they are chosen: by place, or by a score of lithe.scores
    layers: tuple[int, ...] = ()  # the layers themselves; () = chosen `by`

    def calibrated(self, teacher: Family, data: Data) -> Finetune:
        return replace(self, layers=chosen(teacher, data, self.keep, self.by, self.layers))

    def cut(self, teacher: Family) -> list[Op]:
        if not self.keep and not self.layers and self.by == "uniform":
            return []
        return [KeepLayers("trunk", kept(teacher.depth("trunk"), self.keep, self.by, self.layers))]

    def loss(self, step: Step) -> dict[str, Tensor]:
        assert step.out is not None
        return {"task": step.student.task_loss(step.out)}
