"""Method: one paper, or one control, as a frozen dataclass of its knobs. It answers questions; the trainer asks them.

A method never names a family: it speaks of stacks, taps and outputs. Everything the paper leaves open is a knob with
its default documented in the method's own file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.surgery import Op
from lithe.types import Draw, Out, Tap


@dataclass(frozen=True)
class Stage:
    """One part of training: `share` of the recipe's steps, name prefixes of what trains, learning-rate factor."""

    name: str = "distil"
    share: float = 1.0
    train: tuple[str, ...] = ("",)
    lr: float = 1.0


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

    def asked(self, draw: Draw) -> Draw:
        """What the teacher is asked: the student's own draw, or fewer of its noise draws."""
        return draw

    def aux(self, teacher: Family) -> nn.ModuleDict:
        """Modules that are trained along and never shipped."""
        return nn.ModuleDict()

    @abstractmethod
    def loss(self, student: Family, out: Out, teacher_out: Out | None, stage: Stage) -> dict[str, Tensor]:
        """Weighted terms, named "task", "kd/..." or "reg/..."; the trainer sums and logs them.

        `teacher_out` is None exactly when `needs_teacher` is False.
        """
