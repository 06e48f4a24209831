"""Plain PyTorch over the packed form: fewer operations and no padding at all, nothing to compile or to wait for.

Prompts are not padded to buckets here, so most policies run without any mask. Routers of every kind work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lithe.families._packed import Feed
from lithe.runtimes._fast import Fast
from lithe.types import Route


class Packed(Fast):
    """The fast eager runtime."""

    name: ClassVar[str] = "packed"
    bucketed: ClassVar[bool] = False

    def play(self, feed: Feed, noise_BHA: Tensor, trace: Callable[[str], Any] | None, route: Route | None) -> Tensor:
        return self.form.act(feed, noise_BHA, route, trace, self.memory, self.taken.append)
