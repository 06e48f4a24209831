"""The image path of pi-like policies: a SigLIP tower (from transformers), a projection, and the augmented view.

`merge` joins squares of neighbouring patches into one token before the projection (1 in the published models; the small
preset uses it so that fine patches do not make a long prefix). Shape legend: types.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel


@dataclass(frozen=True)
class VisionSize:
    """Dimensions of the SigLIP tower."""

    image: int  # side in pixels
    patch: int
    width: int
    mlp: int
    layers: int
    heads: int
    merge: int = 1

    @property
    def tokens(self) -> int:
        """Image tokens a view after merging."""
        return (self.image // self.patch // self.merge) ** 2


class Vision(nn.Module):
    """SigLIP without pooling head, then a linear projection to the trunk's width."""

    def __init__(self, size: VisionSize, out: int):
        super().__init__()
        self.size = size
        config = SiglipVisionConfig(
            image_size=size.image,
            patch_size=size.patch,
            hidden_size=size.width,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            vision_use_head=False,
        )
        self.tower = SiglipVisionModel(config)
        self.projector = nn.Linear(size.width * size.merge**2, out)

    def forward(self, view_BVCYX: Tensor) -> Tensor:
        """Image tokens [B, V*tokens, out]; all views go through the tower in one call."""
        batch, views = view_BVCYX.shape[:2]
        patches = self.tower(pixel_values=view_BVCYX.flatten(0, 1)).last_hidden_state
        side, m = self.size.image // self.size.patch, self.size.merge
        if m > 1:
            grid = patches.view(-1, side // m, m, side // m, m, patches.shape[-1])
            patches = grid.permute(0, 1, 3, 2, 4, 5).reshape(len(patches), self.size.tokens, -1)
        return self.projector(patches).view(batch, views * self.size.tokens, -1)


def to_unit(images_BVCYX: Tensor) -> Tensor:
    """uint8 pixels to floats in [-1, 1]."""
    return images_BVCYX.float() / 127.5 - 1.0


def resize_with_pad(images_BCYX: Tensor, side: int) -> Tensor:
    """Fit into a square without changing proportions, black bars around; uint8 in and out, unchanged if it fits."""
    height, width = images_BCYX.shape[-2:]
    if (height, width) == (side, side):
        return images_BCYX
    ratio = max(height, width) / side
    inner = (int(height / ratio), int(width / ratio))
    small = F.interpolate(images_BCYX.float(), size=inner, mode="bilinear", align_corners=False)
    small = small.round().clamp(0, 255).to(torch.uint8)
    top, left = (side - inner[0]) // 2, (side - inner[1]) // 2
    return F.pad(small, (left, side - inner[1] - left, top, side - inner[0] - top))


def random_shift(images_BVCYX: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each view of each sample by up to `pixels` in both directions, edges repeated."""
    batch, views, _, rows, columns = images_BVCYX.shape
    shift = torch.randint(-pixels, pixels + 1, (2, batch * views, 1), generator=generator).to(images_BVCYX.device)
    row = (torch.arange(rows, device=shift.device) + shift[0]).clamp(0, rows - 1)
    column = (torch.arange(columns, device=shift.device) + shift[1]).clamp(0, columns - 1)
    flat = images_BVCYX.flatten(0, 1)
    image = torch.arange(len(flat), device=shift.device)[:, None, None]
    moved = flat.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None, :]]
    return moved.permute(0, 3, 1, 2).unflatten(0, (batch, views))
