"""EfficientVLA, its layer part: remove the layers that change their stream least, and train nothing.

Paper: "EfficientVLA: Training-Free Acceleration and Compression for Vision-Language-Action Models", arXiv 2506.10100.

    I_l = 1 - mean cos(h_l, h_{l+1})        the layers with the highest importance I stay, wherever they are

Built: the pruning of whole layers by I. Not built: the sparsity of the remaining MLPs (25 %), the choice of visual
tokens, the cache of the diffusion head's features between denoise steps; so the paper's numbers are not to be expected.
Departs from the paper: it prunes the language model alone, ahead of a separate diffusion head. Here trunk and expert
lose the same layers, so I is the mean over both streams (lithe/scores.py). Guessed: the calibration set (64 frames),
and `keep`; whether the paper's "22" and "28" of 32 count layers kept is not known. No code of the authors was read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods._depth import chosen, kept
from lithe.methods.base import Method, Stage, Step
from lithe.surgery import KeepLayers, Op


@dataclass(frozen=True, kw_only=True)
class EfficientVLA(Method):
    """Keep the layers that change their stream most, train nothing."""

    paper: ClassVar[str] = "EfficientVLA (layers only), arXiv 2506.10100"
    needs_teacher: ClassVar[bool] = False

    keep: int = 6  # layers of the trunk to keep
    layers: tuple[int, ...] = ()  # the layers themselves; () = chosen by I, which needs data

    def calibrated(self, teacher: Family, data: Data) -> EfficientVLA:
        return replace(self, layers=chosen(teacher, data, self.keep, "cos", self.layers))

    def cut(self, teacher: Family) -> list[Op]:
        return [KeepLayers("trunk", kept(teacher.depth("trunk"), self.keep, "cos", self.layers))]

    def stages(self) -> list[Stage]:
        return []

    def loss(self, step: Step) -> dict[str, Tensor]:
        raise AssertionError("nothing is trained, so nobody asks for a loss")
