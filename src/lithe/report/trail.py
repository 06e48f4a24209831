"""Which layers ran in each chunk of one episode, written down while it is played, and read back.

Of a policy that decides itself. What stands here really ran: it is taken from the passes that the runtime reports, and
from what the router's memory says of the movement, never from what a router was meant to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lithe.runtimes.base import Runtime


@dataclass(frozen=True)
class Chunk:
    """One answer of the policy. step: executed before it was asked. passes: the layers of its one pass; or of two,
    where the first was doubted and done again by every layer. continuity: C, this chunk's actions included."""

    step: int
    passes: tuple[tuple[int, ...], ...]
    continuity: float | None = None

    @property
    def ran(self) -> tuple[int, ...]:
        """The layers of the pass that the router decided."""
        return self.passes[0]

    @property
    def repeated(self) -> bool:
        return len(self.passes) > 1


@dataclass(frozen=True)
class Trail:
    """The chunks of one episode of a policy of `depth` layers."""

    depth: int
    chunks: tuple[Chunk, ...]


class Tracker:
    """Watches an episode; a chunk is noted when the first of its actions has been executed."""

    def __init__(self, policy: Runtime):
        self.policy, self.chunks = policy, list[Chunk]()
        self.passes = self.repeated = 0

    def __call__(self, step: int, over: bool) -> None:
        taken, repeated = self.policy.taken[self.passes :], self.policy.repeated - self.repeated
        if not self.policy.routed or not taken:
            return
        assert len(taken) == 1 + repeated, "one chunk is one pass, or two where it was repeated"
        passes = tuple(tuple(i for i, run in enumerate(route.run) if run) for route in taken)
        memory = self.policy.memory
        self.chunks.append(Chunk(step - 1, passes, memory.continuity if memory else None))
        self.passes, self.repeated = self.passes + len(taken), self.repeated + repeated

    @property
    def trail(self) -> Trail | None:
        """What was seen; None of a policy that decides nothing."""
        return Trail(self.policy.model.depth(), tuple(self.chunks)) if self.policy.routed else None


def written(trail: Trail) -> dict[str, Any]:
    """{"depth", "chunks": [{"step", "passes": [[layer, ...], ...], "continuity"}]}; C is absent where not known."""
    chunks = []
    for chunk in trail.chunks:
        known = {} if chunk.continuity is None else {"continuity": round(chunk.continuity, 6)}
        chunks.append({"step": chunk.step, "passes": [list(layers) for layers in chunk.passes], **known})
    return {"depth": trail.depth, "chunks": chunks}


def read(entry: Mapping[str, Any]) -> Trail:
    """Back from `written`. Raises ValueError, KeyError or TypeError for what cannot have been a trail."""
    depth, chunks = entry["depth"], tuple(_chunk(chunk) for chunk in entry["chunks"])
    for chunk in chunks:
        if chunk.continuity is not None and not isfinite(chunk.continuity):
            raise ValueError(f"the continuity after step {chunk.step} is no number")
        if not 1 <= len(chunk.passes) <= 2 or not all(_possible(layers, depth) for layers in chunk.passes):
            raise ValueError(f"the chunk of step {chunk.step} ran layers that a policy of {depth} layers cannot run")
        if chunk.repeated and len(chunk.passes[1]) < depth:
            raise ValueError(f"the chunk of step {chunk.step} was done again by less than every layer")
    if (chunks and chunks[0].step) or any(b.step <= a.step for a, b in pairwise(chunks)):
        raise ValueError("the chunks of an episode begin at step 0 and follow each other")
    return Trail(depth, chunks)


def _chunk(entry: Mapping[str, Any]) -> Chunk:
    told = entry.get("continuity")
    passes = tuple(tuple(int(layer) for layer in layers) for layers in entry["passes"])
    return Chunk(int(entry["step"]), passes, None if told is None else float(told))


def _possible(layers: tuple[int, ...], depth: int) -> bool:
    return list(layers) == sorted(set(layers)) and all(0 <= layer < depth for layer in layers)
