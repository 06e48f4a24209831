"""Watching a router in training: since when it has decided the same for every observation, and so decided nothing.

A router that has collapsed costs its own time and gives what a static cut gives. Methods that have one keep a Watch
among their auxiliary modules, log what it says as "note/collapsed", and put it into words in `remark`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PATIENCE = 0.1  # a router that does not choose for this share of its stage has collapsed


class Watch(nn.Module):
    """Since when the router has not chosen. In a buffer, so that a resumed run goes on counting."""

    since: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("since", torch.zeros(()))

    @torch.no_grad()
    def forward(self, decisions: Tensor, progress: float, watching: bool) -> Tensor:
        """For how much of the stage all of these decisions were 1 (> 0), or all of them 0 (< 0); else 0."""
        stuck = (decisions == 1).all().float() - (decisions == 0).all().float()
        held = (stuck != 0) & watching
        self.since.copy_(torch.where(held, self.since, torch.full_like(self.since, progress)))
        return stuck * (progress - self.since)
