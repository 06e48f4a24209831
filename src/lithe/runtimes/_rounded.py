"""What the runtimes in 8 bits share: matrices are rounded where that was seen to win, each shape timed once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.families.base import Family
from lithe.runtimes._fast import Fast

SMALLEST = 1 << 18  # numbers in a matrix that is worth it at all
WINS, REPEATS = 1.2, 5  # so many times faster, at best of so many calls
Clock = Callable[[Callable[[], Any]], float]  # milliseconds of a call


class Choice:
    """Which matrices are kept in 8 bits. kind: what they become; tokens: with at most so many they are timed."""

    def __init__(self, kind: Any, clock: Clock, tokens: int, everywhere: bool):
        self.kind, self.clock, self.tokens, self.everywhere = kind, clock, tokens, everywhere
        self.kept = self.bytes = 0
        self.speedups: dict[str, float] = {}  # "tokens x in x out, dtype" -> how many times faster

    def __call__(self, weight: Tensor, tokens: int) -> Any:
        """The weight in 8 bits, or as it is."""
        if not self.kind.takes(weight) or (not self.everywhere and weight.numel() < SMALLEST):
            return weight
        made = self.kind(weight)
        if not self.everywhere and self._speedup(weight, made, min(tokens, self.tokens)) < WINS:
            return weight
        self.kept, self.bytes = self.kept + 1, self.bytes + made.nbytes
        return made

    def _speedup(self, weight: Tensor, made: Any, tokens: int) -> float:
        rows, columns = weight.shape
        key = f"{tokens}x{columns}x{rows}, {str(weight.dtype)[6:]}"
        if key not in self.speedups:
            self.speedups[key] = self._timed(weight, made, tokens)
        return self.speedups[key]

    def _timed(self, weight: Tensor, made: Any, tokens: int) -> float:
        x = torch.randn(1, tokens, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)

        def best_ms(matrix: Any) -> float:
            return min(self.clock(lambda: F.linear(x, matrix)) for _ in range(REPEATS))

        return round(best_ms(weight) / best_ms(made), 2)


class Rounded(Fast):
    """everywhere: round every matrix that can be, whatever it brings, to look at the error."""

    least_cosine: ClassVar[float | None] = 0.99
    kind: ClassVar[Any]  # a class that stands where F.linear takes a weight
    tokens: ClassVar[int]  # at most so many meet a matrix that is timed

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, everywhere: bool = False):
        self.choice = Choice(self.kind, self.clock, self.tokens, everywhere)
        super().__init__(model, steps, seed)

    @staticmethod
    @abstractmethod
    def clock(call: Callable[[], Any]) -> float:
        """Milliseconds of one product, executed as this runtime will."""

    @property
    def title(self) -> str:
        return f"{self.name}-everywhere" if self.choice.everywhere else self.name

    def packed(self) -> Any:
        form = super().packed()
        form.replace_matrices(self.choice)
        return form

    def held(self) -> Iterator[Tensor]:
        """Matrices in 8 bits are objects of their own: they are counted by an empty tensor of their size."""
        yield from super().held()
        yield torch.empty(self.choice.bytes, dtype=torch.uint8, device="meta")

    def facts(self) -> dict[str, Any]:
        """Also how many matrices are in 8 bits, and the shapes that were tried."""
        return {**super().facts(), "rounded": self.choice.kept, "rounded_speedups": self.choice.speedups}
