"""PackedModel: a policy's inference-only form, built from a Family that it leaves alone; what fast runtimes execute.

It answers one observation at a time and gives the family's own actions up to rounding: cameras that are not there and
padded words are left out, all views are seen in one call, weights are packed, and what the flow time decides is a
table for the step grid it was made for. It is a picture of the weights at that moment: pack again after training.
Shape legend: types.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.families import _flow
from lithe.families._attention import KeyValue, Rope
from lithe.families._packing import Tower, check_dtype
from lithe.families._routing import Walk, ahead, check
from lithe.routers.base import Memory, Router, Sight
from lithe.types import Batch, Route

Pieces = Mapping[str, Callable[..., Any]]
SHORTEST_BUCKET = 16


@dataclass(frozen=True)
class Feed:
    """One observation as a packed model takes it: the cameras that are there, and the words."""

    batch: Batch
    masked: bool  # whether padding is left behind the words, up to a bucket's length
    empty: int = 0  # cameras that are not there, where their absence is marked

    @property
    def key(self) -> Hashable:
        """Everything about it that shapes and types depend on; views and words first."""
        images = self.batch.images_BVCYX
        return images.shape[1], self.batch.text_BT.shape[1], self.masked, self.empty, images.shape[2:], images.dtype


@dataclass(frozen=True)
class Read:
    """What the expert reads at every step: buffers of keys and values, whose end every step may write anew."""

    caches: list[KeyValue | None]
    turn: Rope
    mask: Tensor | None  # added to the scores
    route: Route


class PackedModel(ABC):
    """`see`, `choose`, `read` and `denoise` in this order are one chunk. Between them lies nothing but tensors and the
    route, so that a runtime may compile `pieces` or capture whole parts."""

    pieces: dict[str, Callable[..., Any]]  # pure functions of tensors that a runtime may replace
    behind_text: ClassVar[int] = 0  # prefix tokens behind the words
    by_prefix: ClassVar[tuple[str, ...]] = ("trunk", "trunk_keys")  # attributes with the layers that prefix tokens meet

    def __init__(self, model: Any, steps: int | None):
        check_dtype(t for name, t in model.named_parameters() if not name.startswith("router."))
        self.steps = model.config.steps if steps is None else steps
        if self.steps < 1:
            raise ValueError(f"the number of denoise steps must be at least 1, not {steps}")
        self.model, self.config, self.depth = model, model.config, model.depth()
        self.device: torch.device = model.embed.weight.device
        self.dtype: torch.dtype = model.embed.weight.dtype
        self.embed, self.tower = model.embed.weight.detach(), Tower(model.vision)

    @property
    def router(self) -> Router | None:
        """The model's own, looked up whenever it is asked: a bench overrules it for a while."""
        router: Router | None = self.model.router
        return router

    @property
    @abstractmethod
    def shape(self) -> Hashable:
        """Everything about the policy that the shapes of `pieces` depend on, beside the feed's key."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that a prompt is padded to where shapes have to be static: doubling, then the longest."""
        longest, found = self.config.text, []
        while not found or found[-1] < longest:
            found.append(min(longest, SHORTEST_BUCKET << len(found)))
        return tuple(found)

    @property
    def views(self) -> int:
        """The most cameras an observation can have."""
        return len(self.config.cameras)

    def trim(self, batch: Batch, bucketed: bool) -> Feed:
        """What is left of one observation without masked cameras and padding; looks at the masks once, on the host.

        bucketed: pad the words to the next bucket. Raises ValueError for more cameras than the policy has, or none.
        """
        assert len(batch) == 1, "a packed model answers one observation at a time"
        views, longest = batch.live_BV.shape[1], batch.text_BT.shape[1]
        masks = torch.cat([batch.live_BV[0], batch.text_BT[0]]).tolist()
        live, words = [i for i in range(views) if masks[i]], sum(masks[views:])
        if not 0 < len(live) <= views <= self.views:
            raise ValueError(
                f"this observation has {views} cameras, {len(live)} of them live: the policy was made for {self.views} "
                "and needs at least one"
            )
        assert all(masks[views : views + words]), "padding stands behind the words"
        size = next(bucket for bucket in self.buckets if bucket >= words) if bucketed else words
        images = batch.images_BVCYX
        return Feed(
            replace(
                batch,
                images_BVCYX=images if len(live) == views else torch.stack([images[:, i] for i in live], dim=1),
                live_BV=batch.live_BV[:, : len(live)].new_ones(1, len(live)),
                tokens_BT=_sized(batch.tokens_BT, size, longest),
                text_BT=_sized(batch.text_BT, size, longest),
                actions_BHA=None,
                origin_BA=None,  # what is done with it is done after the chunk
            ),
            bucketed,
            self.empty(live, views),
        )

    def empty(self, live: list[int], views: int) -> int:
        """How many of the missing cameras are to be marked."""
        return 0

    @torch.no_grad()
    def act(
        self,
        feed: Feed,
        noise_BHA: Tensor,
        route: Route | None = None,
        trace: Callable[[str], Any] | None = None,
        memory: Memory | None = None,
        told: Callable[[Route], None] | None = None,
        pieces: Pieces | None = None,
    ) -> Tensor:
        """One chunk [1, H, A], as Family.act makes it."""
        pieces, mark = pieces or self.pieces, trace or (lambda part: None)
        x, valid = self.see(feed, pieces)
        mark("vision")
        chosen = self.choose(feed, x, valid, memory) if route is None else check(route, self.depth)
        read, taken = self.read(feed, x, valid, chosen, pieces, noise_BHA, memory, route is None)
        mark("prefix")
        if told:
            told(taken)
        chunk = self.denoise(noise_BHA, read, pieces)
        mark("denoise")
        return chunk

    def choose(self, feed: Feed, x: Tensor, valid: Tensor, memory: Memory | None) -> Route:
        """What the router decides ahead; every layer where it decides on the way, or there is none."""
        text = feed.batch.text_BT
        words = F.pad(text, (x.shape[1] - text.shape[1] - self.behind_text, self.behind_text))
        return ahead(self.router, Sight(x, valid, words), memory, True, self.depth)

    @abstractmethod
    def see(self, feed: Feed, pieces: Pieces) -> tuple[Tensor, Tensor]:
        """The embedded prefix [1, N, D] and its validity [1, N]."""

    @abstractmethod
    def read(
        self,
        feed: Feed,
        x: Tensor,
        valid: Tensor,
        route: Route,
        pieces: Pieces,
        noise_BHA: Tensor | None = None,
        memory: Memory | None = None,
        decides: bool = False,
    ) -> tuple[Any, Route]:  # a Read
        """What the denoise steps need of the prefix, and the way taken. noise_BHA, memory and decides are for routers
        that decide on the way; without them the way is `route`."""

    def denoise(self, noise_BHA: Tensor, read: Any, pieces: Pieces) -> Tensor:
        """All steps, from noise to actions [1, H, A]. Nothing in it waits for the device."""
        x = noise_BHA
        for step in range(self.steps):
            x = self.step(x, self.at(step), read, pieces)
        return x

    def step(self, x_BHA: Tensor, now: Any, read: Any, pieces: Pieces) -> Tensor:
        """One step down the grid. now: what `at` says of it."""
        walk, h = Walk(read.route, self.router, "suffix"), self.enter(x_BHA, now, read)
        for i in range(self.depth):
            h = self.layer(i, walk.enter(i, h), now, read, pieces)
        return torch.add(x_BHA, self.velocity(walk.end(h), now), alpha=-1.0 / self.steps)

    def probe(self, noise_BHA: Tensor, read: Any, pieces: Pieces) -> Callable[[], Tensor]:
        """A function that says which actions the layers so far would give in one denoise step, at time 1, the first of
        the grid; it runs each expert layer once, however often it is asked."""
        stream: list[Tensor] = []
        done, now = 0, self.at(0)

        def ask() -> Tensor:
            nonlocal done
            h = stream.pop() if stream else self.enter(noise_BHA, now, read)
            for i in range(done, len(read.caches)):
                h = self.layer(i, h, now, read, pieces)
            done = len(read.caches)
            stream.append(h)
            return noise_BHA - self.velocity(h, now)

        return ask

    @abstractmethod
    def at(self, step: int) -> Any:
        """What the flow time of a step of the grid decides: tensors, in tuples and lists."""

    @abstractmethod
    def enter(self, x_BHA: Tensor, now: Any, read: Any) -> Tensor:
        """The suffix stream [1, Q, D] as it enters the expert."""

    @abstractmethod
    def layer(self, i: int, h: Tensor, now: Any, read: Any, pieces: Pieces) -> Tensor:
        """The suffix stream behind expert layer i; as it was where the route leaves that out."""

    @abstractmethod
    def velocity(self, h: Tensor, now: Any) -> Tensor:
        """What the stream behind the last layer says, [1, H, A]."""

    def replace_matrices(self, change: Callable[[Tensor, int], Any]) -> None:
        """Give every matrix of the vision, trunk and expert layers, and how many tokens meet it, to `change`; what it
        returns stands in its place where `F.linear` takes a weight."""
        size = self.tower.size
        patches, prefix = (size.image // size.patch) ** 2, self.views * size.tokens + self.config.text
        self.tower.layers = _matrices(self.tower.layers, change, self.views * patches)
        met = {**dict.fromkeys(self.by_prefix, prefix), "expert": self.config.horizon}
        for name, tokens in met.items():
            setattr(self, name, _matrices(getattr(self, name), change, tokens))

    def embedded_time(self, step: int) -> Tensor:
        """The flow time of a step as the family embeds it, [1, width]."""
        c, now = self.config, 1.0 + step * (-1.0 / self.steps)
        time = torch.full((1,), now, dtype=torch.float32, device=self.device)
        return _flow.time_embedding(time, c.expert.width, c.shortest_period, c.longest_period).to(self.dtype)


def _matrices(part: Any, change: Callable[[Tensor, int], Any], tokens: int) -> Any:
    """The same lists and tuples with every matrix in them changed, and vectors left alone."""
    if isinstance(part, Tensor):
        return change(part, tokens) if part.dim() == 2 else part
    if isinstance(part, (list, tuple)):
        made = [_matrices(inner, change, tokens) for inner in part]
        return made if isinstance(part, list) else tuple(made) if type(part) is tuple else type(part)(*made)
    return part


def _sized(x_BT: Tensor, size: int, longest: int) -> Tensor:
    return x_BT[:, :size] if size <= longest else F.pad(x_BT, (0, size - longest))
