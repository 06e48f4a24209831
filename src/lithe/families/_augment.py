"""Colour jitter: brightness, contrast and saturation, drawn once for each view of each sample.

All randomness comes from the generator it is given, so it belongs inside a Draw, where teacher and student share it.
At strength 1 the ranges are openpi's (brightness 0.3, contrast 0.4, saturation 0.5). Shape legend: types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANGES = (0.3, 0.4, 0.5)  # brightness, contrast, saturation: factors in 1 ± range
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)


def colour_jitter(images_BVCYX: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """uint8 in and out, or floats from 0 to 1 in and out; strength 0 changes nothing and draws nothing.

    Further axes between V and C, such as a history of frames, share the factors of their view. ValueError for a
    strength outside 0 to 2, where a factor would be negative.
    """
    if not 0 <= strength <= 2:
        raise ValueError(f"the strength of colour jitter is between 0 and 2, not {strength}")
    if strength == 0:
        return images_BVCYX
    drawn_3BV = torch.rand(len(RANGES), *images_BVCYX.shape[:2], generator=generator) * 2 - 1
    factors_3BV = 1 + strength * drawn_3BV * torch.tensor(RANGES)[:, None, None]
    shape = (*images_BVCYX.shape[:2], *[1] * (images_BVCYX.ndim - 2))
    brightness, contrast, saturation = (f.to(images_BVCYX.device).view(shape) for f in factors_3BV)
    whole = images_BVCYX.dtype == torch.uint8
    x = images_BVCYX.float() * brightness
    x = torch.lerp(_grey(x).mean(dim=(-3, -2, -1), keepdim=True), x, contrast)
    x = torch.lerp(_grey(x), x, saturation)
    return x.round().clamp(0, 255).to(torch.uint8) if whole else x.clamp(0, 1).to(images_BVCYX.dtype)


def _grey(x: Tensor) -> Tensor:
    """[..., C, Y, X] to [..., 1, Y, X]."""
    weights = torch.tensor(LUMA, device=x.device, dtype=x.dtype)[:, None, None]
    return (x * weights).sum(-3, keepdim=True)
