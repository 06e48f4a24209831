"""Method: one paper, or one control, as a frozen dataclass of its knobs. It answers questions; the trainer asks them.

A method never names a family: it speaks of stacks, taps and outputs. Everything the paper leaves open is a knob with
its default documented in the method's own file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.surgery import Op
from lithe.types import Batch, Draw, Out, Route, Tap


@dataclass(frozen=True)
class Stage:
    """One part of training: `share` of the recipe's steps, name prefixes of what trains, learning-rate factor."""

    name: str = "distil"
    share: float = 1.0
    train: tuple[str, ...] = ("",)
    lr: float = 1.0
    student: bool = True  # False: only the teacher runs, and what trains is fitted to it


@dataclass(frozen=True)
class Step:
    """What a loss may look at in one training step."""

    student: Family
    batch: Batch
    out: Out | None  # the student's; None exactly when the stage says that it does not run
    teacher_out: Out | None  # None exactly when `needs_teacher` is False
    stage: Stage
    aux: nn.ModuleDict
    progress: float = 0.0  # 0 ... 1 through the stage

    @property
    def outs(self) -> tuple[Out, Out]:
        """The student's and the teacher's, both of which are there."""
        assert self.out is not None
        assert self.teacher_out is not None
        return self.out, self.teacher_out


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Subclass, add the paper's knobs as fields with defaults, and put the file into `methods/`."""

    paper: ClassVar[str]  # where it comes from, in one line
    needs_teacher: ClassVar[bool] = True  # False: the loss reads nothing from the teacher, which then does not run

    def calibrated(self, teacher: Family, data: Data) -> Method:
        """This method, or a copy with what its cut needs to know from data filled into its knobs.

        The trainer asks once, before `cut`, which so stays pure data: it raises ValueError while something is missing.
        """
        return self

    @abstractmethod
    def cut(self, teacher: Family) -> list[Op]:
        """The surgery, as data; touches no weights. Raises ValueError when this teacher cannot be cut so."""

    def stages(self) -> list[Stage]:
        """Training stages in order; an empty list means training-free."""
        return [Stage()]

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        """What the loss wants to see inside the student and inside the teacher."""
        return (), ()

    def asked(self, batch: Batch, draw: Draw) -> tuple[Batch, Draw]:
        """What the teacher is asked: the student's own batch and draw, or a part of either."""
        return batch, draw

    def route(self, student: Family, stage: Stage, generator: torch.Generator) -> Route | None:
        """Which layers run in this training step; None = all of them, or what the student's router decides."""
        return None

    def aux(self, teacher: Family) -> nn.ModuleDict:
        """Modules that are trained along and never shipped."""
        return nn.ModuleDict()

    def enter(self, stage: Stage, student: Family, aux: nn.ModuleDict) -> None:
        """Called once when a stage begins; a place to copy weights from one module to another."""
        return

    def finish(self, student: Family, data: Data, device: torch.device) -> dict[str, Tensor]:
        """What only the finished student and data can tell: values for buffers of the student, by their names.

        Called once training has ended, with the student as it will be used, in eval mode; it has to stay where it is,
        but may be moved to `device` meanwhile, where it was trained. Must be a function of its arguments: every process
        asks, and so does a run that is resumed behind its end.
        """
        return {}

    @abstractmethod
    def loss(self, step: Step) -> dict[str, Tensor]:
        """Weighted terms, named "task", "kd/..." or "reg/..."; the trainer sums and logs them. Those named "note/..."
        are only logged."""

    def remark(self, values: dict[str, float]) -> str:
        """What a user should hear now, seeing these terms; told once for as long as it stays the same. "" = nothing."""
        return ""
