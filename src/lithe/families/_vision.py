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
    """Pixels to floats in [-1, 1]: from uint8, or from floats in [0, 1] (LeRobot's convention)."""
    if images_BVCYX.is_floating_point():
        return images_BVCYX * 2.0 - 1.0
    return images_BVCYX.float() / 127.5 - 1.0


def prepare(images_BCYX: Tensor, side: int, convention: str) -> Tensor:
    """uint8 images fitted into a square: uint8 pixels, or floats in [0, 1] in LeRobot's convention."""
    if convention == "lerobot":
        return resize_in_unit(images_BCYX, side)
    return resize_with_pad(images_BCYX, side, smooth=convention == "openpi")


def resize_with_pad(images_BCYX: Tensor, side: int, smooth: bool = False) -> Tensor:
    """Fit into a square without changing proportions, black bars around; uint8 in and out, unchanged if it fits.

    smooth: average over the pixels that shrink into one, as Pillow and therefore openpi do.
    """
    if images_BCYX.shape[-2:] == (side, side):
        return images_BCYX
    inner, bars = _fit(images_BCYX, side)
    if smooth:  # the kernel for whole numbers is Pillow's own arithmetic
        small = F.interpolate(images_BCYX, size=inner, mode="bilinear", antialias=True)
    else:
        small = F.interpolate(images_BCYX.float(), size=inner, mode="bilinear", align_corners=False)
        small = small.round().clamp(0, 255).to(torch.uint8)
    return F.pad(small, bars)


def resize_in_unit(images_BCYX: Tensor, side: int) -> Tensor:
    """LeRobot's order: uint8 to floats in [0, 1] first, then fit into a square with black bars, never rounding."""
    unit = images_BCYX.contiguous().float() / 255
    if unit.shape[-2:] == (side, side):
        return unit
    inner, bars = _fit(unit, side)
    return F.pad(F.interpolate(unit, size=inner, mode="bilinear", align_corners=False).clamp(0.0, 1.0), bars)


def _fit(images_BCYX: Tensor, side: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Rows and columns inside a square, and the bars left, right, above and below."""
    height, width = images_BCYX.shape[-2:]
    ratio = max(height, width) / side
    inner = (int(height / ratio), int(width / ratio))
    top, left = (side - inner[0]) // 2, (side - inner[1]) // 2
    return inner, (left, side - inner[1] - left, top, side - inner[0] - top)


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
