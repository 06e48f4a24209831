"""torch.compile over the packed form: every kind of layer is compiled once for each number of views and text bucket.

What is compiled are layers, not whole passes, so that compiling takes as long for 18 layers as for one, and routes of
every kind cost no compilation. The first observation of a shape waits for it; `graphs` and `recompiled` count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lithe.families._packed import Feed
from lithe.families.base import Family
from lithe.runtimes._fast import Fast
from lithe.runtimes._kernels import Kernel, kernels, need_compiler
from lithe.types import Route


class Compiled(Fast):
    """Raises ValueError without a C++ compiler (on a GPU: without Triton), and where compiling fails."""

    name: ClassVar[str] = "compiled"
    compiles: ClassVar[bool] = True

    def prepare(self, model: Family) -> None:
        need_compiler(self.name, self.place.type)
        self.used: set[Kernel] = set()

    def play(self, feed: Feed, noise_BHA: Tensor, trace: Callable[[str], Any] | None, route: Route | None) -> Tensor:
        pieces = kernels(self.form, feed)
        self.used.update(pieces.values())
        return self.form.act(feed, noise_BHA, route, trace, self.memory, self.taken.append, pieces)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "graphs": self.graphs, "recompiled": self.recompiled}

    @property
    def graphs(self) -> int:
        """Graphs compiled for the pieces this runtime has used, by it or by another runtime of equal shapes."""
        return sum(one.graphs for one in self.used)

    @property
    def recompiled(self) -> int:
        """How many of them were compiled again, which a static shape never needs: 0, or a defect."""
        return sum(max(0, one.graphs - 1) for one in self.used)
