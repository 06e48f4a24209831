"""CUDA graphs over the packed form: what the host does for one chunk is to copy one observation and start three graphs.

One graph sees, one reads the prefix, one takes all denoise steps; buffers are static and the keys and values of the
suffix are overwritten in place. Graphs are kept for each number of views, text bucket and route, the latest few of
them. A router that decides ahead is asked between the first and the second graph, the only time the host waits for the
device; one that decides on the way is refused. Not yet run on a GPU: docs/runtimes.md says what was tested.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lithe.families._packed import Feed, Pieces
from lithe.families.base import Family
from lithe.runtimes._fast import Fast
from lithe.runtimes._kernels import kernels, need_compiler
from lithe.runtimes._recent import Recent
from lithe.types import Batch, Route

SHAPES, ROUTES = 8, 16  # graphs kept: shapes of observations, and routes of each of them
WARMUP = 3  # passes before a capture, in which libraries set up what must not be set up inside it
BROKEN: list[Any] = []  # graphs whose capture failed, to which torch's allocators may still point


class Shape:
    """The graphs of one shape of observations, and the memory that they read."""

    def __init__(self, form: Any, feed: Feed, noise_BHA: Tensor, pieces: Pieces, pool: Any):
        self.form, self.pieces, self.pool = form, pieces, pool
        self.feed, self.noise_BHA = replace(feed, batch=_each(feed.batch, torch.clone)), noise_BHA.clone()
        self.see, (self.x, self.valid) = captured(lambda: form.see(self.feed, pieces), pool)
        self.routes: Recent[tuple[Any, Any, Tensor]] = Recent(ROUTES)

    def fill(self, feed: Feed, noise_BHA: Tensor) -> None:
        for field in fields(Batch):
            mine, theirs = getattr(self.feed.batch, field.name), getattr(feed.batch, field.name)
            if mine is not None:
                mine.copy_(theirs)
        self.noise_BHA.copy_(noise_BHA)

    def way(self, route: Route) -> tuple[Any, Any, Tensor]:
        """Graphs of prefix and denoise for a route, and where the actions will be."""
        return self.routes.get(way_key(route), lambda: self._capture(route))

    def _capture(self, route: Route) -> tuple[Any, Any, Tensor]:
        form, pieces = self.form, self.pieces
        first, (read, _) = captured(lambda: form.read(self.feed, self.x, self.valid, route, pieces), self.pool)
        second, chunk = captured(lambda: form.denoise(self.noise_BHA, read, pieces), self.pool)
        return first, second, chunk


class Cudagraph(Fast):
    """fuse: capture compiled layers, which takes Triton. Raises ValueError away from CUDA, for a router that decides on
    the way, and where a capture fails."""

    name: ClassVar[str] = "cudagraph"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, fuse: bool = False):
        self.fuse = fuse
        super().__init__(model, steps, seed)

    def prepare(self, model: Family) -> None:
        self.refuse_on_the_way(model)
        if self.place.index is not None and self.place.index != torch.cuda.current_device():
            raise ValueError(
                f"the policy is on {self.place}, not the current GPU: torch.cuda.set_device({self.place.index}) first"
            )
        if self.fuse:
            need_compiler(self.name, "cuda")
        self.shapes: Recent[Shape] = Recent(SHAPES)
        self.pool = torch.cuda.graph_pool_handle()

    @property
    def title(self) -> str:
        return f"{self.name}-fused" if self.fuse else self.name

    def facts(self) -> dict[str, Any]:
        ways = sum(len(shape.routes.kept) for shape in self.shapes.kept.values())
        return {**super().facts(), "graphs": len(self.shapes.kept) + 2 * ways}

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        for shape in self.shapes.kept.values():
            yield from _present(shape.feed.batch).values()
            yield shape.noise_BHA

    def pools(self) -> Sequence[Any]:
        return (self.pool,)

    def _pieces(self, feed: Feed) -> Pieces:
        return kernels(self.form, feed) if self.fuse else self.form.pieces

    @torch.no_grad()
    def play(self, feed: Feed, noise_BHA: Tensor, trace: Callable[[str], Any] | None, route: Route | None) -> Tensor:
        mark = trace or (lambda part: None)
        shape = self.shapes.get(feed.key, lambda: Shape(self.form, feed, noise_BHA, self._pieces(feed), self.pool))
        shape.fill(feed, noise_BHA)
        shape.see.replay()
        mark("vision")
        taken = self.form.choose(shape.feed, shape.x, shape.valid, self.memory) if route is None else route
        prefix, denoise, chunk = shape.way(taken)
        prefix.replay()
        mark("prefix")
        self.taken.append(taken)
        denoise.replay()
        answer = chunk.clone()
        mark("denoise")
        return answer


def captured(function: Callable[[], Any], pool: Any) -> tuple[Any, Any]:
    """A graph of the function, and the static outputs that replaying it fills. Raises ValueError when that fails."""
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                function()
        before.wait_stream(stream)
        with torch.cuda.graph(graph, pool=pool):
            outputs = function()
    except RuntimeError as error:  # out of memory, or an operation that a graph cannot hold
        _give_back(graph, before, pool)
        cause = error.__context__ or error  # to end a capture that went wrong is a second error
        raise ValueError(f"capturing a CUDA graph failed ({cause}): use the runtime packed or compiled") from error
    return graph, outputs


def _give_back(graph: Any, before: Any, pool: Any) -> None:
    """What torch leaves undone when a capture cannot be ended: its stream stays the current one and its pool under way,
    and then every later capture of the process fails."""
    BROKEN.append(graph)
    torch.cuda.set_stream(before)
    core: Any = torch._C
    end = getattr(core, "_cuda_endAllocateToPool", None) or core._cuda_endAllocateCurrentStreamToPool  # torch 2.7
    with suppress(RuntimeError):  # the pool is not under way: the capture had not begun, or it was ended
        end(torch.cuda.current_device(), pool)


def way_key(route: Route) -> Hashable:
    """What two routes must have in common to be one graph."""
    return route.run, tuple((crossing.start, crossing.end) for crossing in route.crossings)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return replace(batch, **{name: change(tensor) for name, tensor in _present(batch).items()})


def _present(batch: Batch) -> dict[str, Tensor]:
    return {f.name: getattr(batch, f.name) for f in fields(Batch) if getattr(batch, f.name) is not None}
