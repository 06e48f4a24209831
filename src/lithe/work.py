"""The arithmetic and traffic of one chunk, part by part: what a family counts, a route charges and a router adds to.

`types.Cost` is the sum that everybody reads; here is what it is made of. Nothing here knows a family or a router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lithe.types import Route


@dataclass(frozen=True)
class Work:
    """Arithmetic and traffic of a part of one chunk."""

    flops: float = 0.0
    bytes: float = 0.0

    @staticmethod
    def of(module: nn.Module, tokens: int, passes: int = 1) -> Work:
        """Every linear and convolution inside `module`, itself included; weights are read once a pass."""
        weights = [m.weight for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        flops = 2 * tokens * sum(weight.numel() for weight in weights)
        return Work(float(flops), float(sum(w.numel() * w.element_size() for w in weights))) * passes

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class LayerWork:
    """One trunk layer with the expert layer beside it."""

    stream: Work  # the whole trunk layer, and what the expert layer makes of its keys and values once
    keys: Work  # the same where nothing reads the stream behind it; nothing without an expert layer
    step: Work  # the expert layer, in one denoise step


@dataclass(frozen=True)
class Parts:
    """What a chunk's cost is made of, so that a route is charged for what runs."""

    vision: Work
    start: Work  # of the prefix, before the first layer
    layers: tuple[LayerWork, ...]
    embed: Work  # of each denoise step, before the expert's first layer
    head: Work  # of each denoise step, behind the expert's last layer
    steps: int
    prefix: int  # tokens
    suffix: int  # tokens

    def along(self, route: Route) -> dict[str, Work]:
        """Work of one pass per component, without the router's. A crossing is found on the way: the layers before it
        did not know that theirs would be the last stream to be read."""
        found_at = {i: crossing.start for crossing in route.crossings for i in range(crossing.start, crossing.end)}
        prefix, step, expected = self.start, self.embed + self.head, [-1]
        for i, layer in reversed(list(enumerate(self.layers))):
            if route.run[i]:
                prefix += layer.stream if max(expected) > i else layer.keys
                step += layer.step
            if layer.keys.flops and (route.run[i] or i in found_at):
                expected.append(i if route.run[i] else found_at[i])
        return {"vision": self.vision, "prefix": prefix, "denoise": step * self.steps}

    def probed(self, route: Route, places: Sequence[int]) -> Work:
        """One denoise step on the way: asked before each of these layers which actions those so far would give."""
        ran = [layer.step for i, layer in enumerate(self.layers) if route.run[i] and i < max(places, default=0)]
        return sum(ran, self.embed + self.head * len(places)) if places else Work()
