"""What every layer loop does with a route and with taps: which layers run, how soft ones are mixed in, what is seen.

The trunk walks first and may ask the model's router, before the first layer or on the way. The route it took is then
the expert's: no denoise step misses keys and values, and no step decides for itself. Shape legend: types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lithe.routers.base import Memory, Probe, Router, Sight
from lithe.types import Crossing, Route, Tap


def check(route: Route | None, depth: int) -> Route:
    """The route, or the one through every layer. Raises ValueError for a route of another depth."""
    route = route or Route.full(depth)
    if len(route.run) != depth:
        raise ValueError(f"the route is for {len(route.run)} layers, the model has {depth}")
    return route


def ahead(router: Router | None, sight: Sight, memory: Memory | None, hard: bool, depth: int) -> Route:
    """What the router decides before the first layer; every layer where it decides on the way, or there is none.

    hard: for acting, batch 1; else every layer runs and the router's decision is mixed in.
    """
    gates_BL = router.ahead(sight, memory) if router else None
    if router is None or gates_BL is None:
        return Route.full(depth)
    share_BL = router.harden(gates_BL)
    if not hard:
        return Route((True,) * depth, share_BL, gates_BL=gates_BL)
    assert len(share_BL) == 1, "a hard route is for one observation"
    return Route(tuple(bool(open) for open in share_BL[0].tolist()), gates_BL=gates_BL)


class Walk:
    """One pass over the layers of one stream: `enter` before a layer, `leave` behind it, `end` behind the last."""

    def __init__(self, route: Route, router: Router | None, stream: str):
        self.route, self.router, self.stream = route, router, stream
        self.runs, self.crossings = list(route.run), {crossing.start: crossing for crossing in route.crossings}
        self.landing: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def enter(self, i: int, x: Tensor) -> Tensor:
        """The stream that layer i sees, crossings that end or start here done."""
        for made, share_B in self.landing.pop(i, ()):
            x = torch.lerp(x, made, share_B[:, None, None].to(x.dtype))
        crossing = self.crossings.get(i)
        if crossing is None:
            return x
        assert self.router is not None, "a crossing needs the router whose adapter it takes"
        made = self.router.bridge(self.stream, i, x)
        if crossing.share_B is None:
            return made
        self.landing.setdefault(crossing.end, []).append((made, crossing.share_B))
        return x

    def leave(self, i: int, before: Tensor, after: Tensor) -> Tensor:
        """The stream behind layer i: soft routing is exact at share 0 and at share 1, in every dtype."""
        if self.route.share_BL is None:
            return after
        return torch.lerp(before, after, self.route.share_BL[:, i, None, None].to(after.dtype))

    def end(self, x: Tensor) -> Tensor:
        """The stream behind the last layer."""
        return self.enter(len(self.runs), x)


class Asking(Walk):
    """The trunk's walk: asks a router that decides on the way, and remembers what was taken."""

    def __init__(self, route: Route, router: Router | None, valid_BN: Tensor, memory: Memory | None, decides: bool):
        super().__init__(route, router, "prefix")
        self.valid_BN, self.memory, self.decides = valid_BN, memory, decides and router is not None
        self.busy_until = 0  # no crossing begins before the last one has ended
        self.answers: list[Tensor] = []  # to the router's probes, of this pass alone

    def ask(self, i: int, x: Tensor, probe: Callable[[], Tensor] | None = None) -> None:
        """Before `enter`: let the router begin a crossing at layer i."""
        router = self.router
        if router is None or i < self.busy_until:
            return
        end = router.landing(i)
        if end is None:
            return
        asking = Probe(probe, self.answers) if probe else None
        if i in self.route.asked:
            self._cross(Crossing(i, end, router.share(i, x, self.valid_BN)))
        elif self.decides and router.allows(i, self.memory) and router.crosses(i, x, self.valid_BN, asking):
            self._cross(Crossing(i, end))
            self.runs[i:end] = [False] * (end - i)

    def _cross(self, crossing: Crossing) -> None:
        self.crossings[crossing.start], self.busy_until = crossing, crossing.end

    def may_be_last(self, i: int) -> bool:
        """Whether no layer behind i runs, as far as is known before layer i."""
        return not any(self.runs[i + 1 :])

    @property
    def taken(self) -> Route:
        """The way that was gone; nothing is left to ask."""
        ways = tuple(self.crossings[start] for start in sorted(self.crossings))
        return replace(self.route, run=tuple(self.runs), crossings=ways, asked=())


def record(seen: dict[Tap, Tensor] | None, taps: Sequence[Tap], tap: Tap, x: Tensor) -> None:
    """Keep `x` where it was asked for."""
    if seen is not None and tap in taps:
        seen[tap] = x


def one_by_one(act: Callable[..., Tensor], batch: Any, noise_BHA: Tensor, **rest: Any) -> Tensor:
    """`act` for each observation alone, because each may take another route."""
    rows = [act(batch.take([i]), noise_BHA[i : i + 1], **rest) for i in range(len(batch))]
    return torch.cat(rows)
