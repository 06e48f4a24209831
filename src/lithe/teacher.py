"""Where the training signal comes from: a frozen model that is asked with the student's own draw.

The teacher stays in eval mode and without gradients. Where teacher and student have the same frozen vision path, its
features are computed once, by the teacher, and handed to both inside the draw. A teacher is never in shards.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lithe._shards import whole
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


def light(model: Family, device: torch.device) -> Family:
    """A frozen copy on `device` that holds the weights of its matrix products in bfloat16: half the memory.

    Only for use under autocast, which rounds these weights before every product anyway: no number changes. Embeddings
    and norms, which autocast leaves alone, stay as they are.
    """
    products = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    rounded = {id(p) for module in products for p in module.parameters(recurse=False)}
    others = [module for module in model.modules() if not isinstance(module, (nn.Linear, nn.Conv2d))]
    rounded -= {id(p) for module in others for p in module.parameters(recurse=False)}  # tied to an embedding
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        own = tensor.detach().to(device, torch.bfloat16 if id(tensor) in rounded else tensor.dtype, copy=True)
        memo[id(tensor)] = nn.Parameter(own, False) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(model, memo)


def same_vision(student: Family, teacher: Family) -> bool:
    """Whether the student's vision path is frozen and equal, tensor for tensor, to the teacher's as that is held."""
    mine, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    keys = [key for key in mine if key.startswith(student.vision_prefixes)]
    return all(
        not mine[k].requires_grad and k in theirs and torch.equal(whole(mine[k]).to(theirs[k].dtype), theirs[k])
        for k in keys
    )
