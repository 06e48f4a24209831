"""Gates: one probability a layer, decided once from the embedded prefix. Layers at or above the threshold run.

    g = sigmoid( R [mean || max of LN(P_v V) over seen tokens || mean || max of LN(P_t T) over words] / sqrt(4 width) )

Source: ActDistill's router (arXiv 2511.18082, sections 2.1 and 8 of our notes). Seen tokens are all valid ones that are
no words (a state token, too). Departures: R starts at 0 with a bias of `start`, so that whatever is seen, every layer
runs before training; features are divided by the root of their number, because Adam moves every weight by its whole
rate, and 2048 at once would throw a gate from open to shut in one step; no dropout; padding is masked; `always_on`
layers. Shape legend: types.py.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from lithe.routers.base import Memory, Router, Sight, Sizes, peak, pooled, straight_through
from lithe.types import Route
from lithe.work import Parts, Work


class Gates(Router):
    """Decides ahead, for each sample by itself, in float32."""

    name: ClassVar[str] = "gates"

    def __init__(
        self,
        sizes: Sizes,
        width: int = 512,
        start: float = 2.0,
        threshold: float = 0.5,
        always_on: tuple[int, ...] = (),
    ):
        """start: the logit of every gate before training. Raises ValueError for settings that contradict each other."""
        super().__init__(sizes)
        check(start, threshold)
        wrong = [layer for layer in always_on if not 0 <= layer < sizes.depth]
        if wrong:
            raise ValueError(f"always_on names layer {wrong[0]}: the policy has layers 0 to {sizes.depth - 1}")
        self.threshold, self.always_on = threshold, sorted(set(always_on))
        self.seen, self.seen_norm = nn.Linear(sizes.prefix, width), nn.LayerNorm(width)
        self.words, self.words_norm = nn.Linear(sizes.prefix, width), nn.LayerNorm(width)
        self.gate = nn.Linear(4 * width, sizes.depth)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, start)

    def ahead(self, sight: Sight, memory: Memory | None) -> Tensor:
        x = sight.stream_BND.float()
        with torch.autocast(x.device.type, enabled=False):
            seen, words = self.seen_norm(self.seen(x)), self.words_norm(self.words(x))
            no_words_BN = sight.valid_BN & ~sight.text_BN
            parts = [pooled(seen, no_words_BN), peak(seen, no_words_BN)]
            parts += [pooled(words, sight.text_BN), peak(words, sight.text_BN)]
            features = torch.cat(parts, dim=-1)
            gates_BL = self.gate(features / math.sqrt(features.shape[-1])).sigmoid()
        if not self.always_on:
            return gates_BL
        return gates_BL.index_fill(1, torch.tensor(self.always_on, device=x.device), 1.0)

    def harden(self, gates_BL: Tensor) -> Tensor:
        return straight_through(gates_BL >= self.threshold, gates_BL)

    def closed(self, gates_BL: Tensor) -> Tensor:
        always = torch.tensor(self.always_on, dtype=torch.long, device=gates_BL.device)
        return torch.zeros_like(gates_BL).index_fill(1, always, 1.0)

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        mapped = Work.of(self.seen, parts.prefix) + Work.of(self.words, parts.prefix)
        return {"prefix": mapped + Work.of(self.gate, 1)}


def check(start: float, threshold: float) -> None:
    """Raises ValueError unless every layer runs at the start."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, not {threshold}")
    gate = 1 / (1 + math.exp(-start))
    if gate <= threshold:
        raise ValueError(
            f"start {start} is a gate of {gate:.2f}, which the threshold {threshold} closes: before training every "
            "layer has to run, so raise start or lower threshold"
        )
