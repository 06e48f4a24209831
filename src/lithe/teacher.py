"""Where the training signal comes from: a frozen model that is asked with the student's own draw.

The teacher stays in eval mode and without gradients. Where teacher and student have the same frozen vision path, its
features are computed once, by the teacher, and handed to both inside the draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lithe.families.base import Family
from lithe.types import Batch, Draw, Out, Tap


class Teacher:
    """A live teacher. Calling it returns the same Out a training pass would, without a graph."""

    def __init__(self, model: Family):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, draw: Draw, taps: Sequence[Tap] = ()) -> Out:
        return self.model(batch, draw, taps)

    @torch.no_grad()
    def see(self, draw: Draw) -> Draw:
        """The draw with the image features in it; only for a student whose vision path is this one, frozen."""
        return draw.with_features(self.model.see(draw.view_BVCYX))


def same_vision(student: Family, teacher: Family) -> bool:
    """Whether the student's vision path is frozen and equal, tensor for tensor, to the teacher's."""
    mine, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    keys = [key for key in mine if key.startswith(student.vision_prefixes)]
    return all(not mine[k].requires_grad and k in theirs and torch.equal(mine[k], theirs[k]) for k in keys)
