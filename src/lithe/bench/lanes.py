"""One policy on the stopwatch: its sessions, the times it took at every boundary, and what it ran meanwhile.

The two boundaries advance the memory of a routed policy, so each has a session of its own; both see the same
observations with the same noise and take the same routes. A routed policy is also timed with its router overruled,
which gives the bounds of what it can do. Nothing but the call itself is inside a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lithe._layers import layers_run
from lithe.bench.launches import launches
from lithe.measure import PeakMemory, Stopwatch, held_mib, pools_mib, wall_ms
from lithe.routers._overruled import Overruled
from lithe.routers.base import Router
from lithe.runtimes.base import Runtime
from lithe.types import Batch, Cost, Observation, Route
from lithe.work import Work

Feed = Callable[[int], tuple[Observation, bool]]  # place -> what is seen there, and whether an episode begins
BOUNDS = {"closed_ms": True, "open_ms": False}  # the router overruled to skip all it may, and to skip nothing


@dataclass
class Spent:
    """What one observation cost, repeated passes included, and how much of that the router did itself."""

    cost: Cost
    router: float


class Lane:
    """One policy under test: `face` an observation, then `run_...` at each boundary."""

    def __init__(self, name: str, runtime: Runtime, feed: Feed, views: int, conditions: dict[str, Any], seed: int):
        self.name, self.runtime, self.feed, self.views, self.seed = name, runtime, feed, views, seed
        weights = next(runtime.model.parameters())
        self.device, self.dtype = weights.device, weights.dtype
        self.inner, self.outer = runtime.twin(seed), runtime.twin(seed)
        self.bounds = {key: runtime.twin(seed) for key in BOUNDS} if runtime.routed else {}
        self.conditions = conditions
        self.attach_s: float | None = None  # seconds, where it was attached for this run
        self.check_s = 0.0  # of them for a comparison that the lane makes itself
        self.memory_mb: float | None = None
        self.warmup_s = 0.0  # of the first chunk, in which code is loaded and shapes are compiled or captured
        self.calls: dict[str, int] = {}
        self.costs: dict[int, Cost] = {}
        self.forget()
        self.face(0)
        padded, words = runtime.text(self.batch), int(self.batch.text_BT.sum())
        self.conditions |= {"text_tokens": padded, "text_tokens_real": words}

    def forget(self) -> None:
        """Begin to measure anew."""
        self.model_ms: list[dict[str, float]] = []
        self.end_to_end_ms: list[float] = []
        self.bounds_ms: dict[str, list[float]] = {key: [] for key in self.bounds}
        self.spent: list[Spent] = []
        self.episodes: list[dict[str, Any]] = []
        self.words: list[tuple[int, int]] = []

    def face(self, place: int) -> None:
        """See what is at this place of the feed, where a new episode may begin."""
        self.observation, begins = self.feed(place)
        if begins:
            self.end_episode()
            for session in (self.inner, self.outer, *self.bounds.values()):
                session.reset(self.seed + place)
        self.batch: Batch = self.runtime.model.observe([self.observation]).to(self.device)
        self.words.append((self.runtime.text(self.batch), int(self.batch.text_BT.sum())))

    def end_episode(self) -> None:
        """Write down which layers ran in it."""
        if self.inner.taken:
            self.episodes.append(self.inner.layers())
            self.inner.taken, self.inner.repeated = [], 0

    def run_model(self) -> None:
        """A batch in memory to actions in model units: the router, and whatever it has computed again."""
        noise_BHA, before, watch = self._noise(self.inner), len(self.inner.taken), Stopwatch(self.device)
        watch.start()
        self.answer(noise_BHA, watch.mark)
        self.model_ms.append(watch.stop())
        self.spent.append(self._spent(self.inner.taken[before:]))

    def answer(self, noise_BHA: Tensor, mark: Callable[[str], Any]) -> None:
        """What is timed at the model's boundary."""
        self.inner.answer(self.batch, noise_BHA, mark)

    def run_end_to_end(self) -> None:
        """Pictures to actions in the robot's units."""
        self.end_to_end_ms.append(wall_ms(lambda: self.outer.infer(self.observation), self.device))

    def run_bounds(self) -> None:
        """The same as `run_model` with the router overruled; a policy without a router has no bounds."""
        for key, session in self.bounds.items():
            noise_BHA, watch = self._noise(session), Stopwatch(self.device)
            with overruled(session, BOUNDS[key]):
                watch.start()
                session.chunk(self.batch, noise_BHA, watch.mark)
                self.bounds_ms[key].append(watch.stop()["total"])

    def weigh(self) -> None:
        """What it holds, and what one chunk adds at its peak; the first chunk is left out, for it also loads code."""
        self.run_model()
        self.warmup_s = self.model_ms[0]["total"] / 1e3
        with PeakMemory(self.device) as peak:
            self.run_model()
        held = held_mib(self.runtime.held()) + pools_mib(self.runtime.pools())
        self.memory_mb = None if peak.mib is None else held + peak.mib

    def count(self) -> None:
        """What one more chunk launches on CUDA. To be asked last: a profiler that was once attached may slow what
        follows."""
        noise_BHA = self._noise(self.inner)
        self.calls = launches(lambda: self.answer(noise_BHA, _unmarked), self.device)

    def facts(self) -> dict[str, Any]:
        """What attaching found out, such as the error against eager, and what running has counted."""
        return self.runtime.facts()

    def told(self) -> dict[str, Any]:
        """What else its row says; of a policy of lithe, nothing."""
        return {}

    def finish(self) -> None:
        """Close the last episode; conditions that vary from one observation to the next become their medians."""
        self.end_episode()
        padded, real = (int(np.median(column)) for column in zip(*self.words, strict=True))
        self.conditions |= {"text_tokens": padded, "text_tokens_real": real}

    def totals(self) -> np.ndarray:
        return np.array([times["total"] for times in self.model_ms])

    def layers_run(self) -> dict[str, Any] | None:
        """Of a routed policy, over everything that was timed at the model's boundary."""
        return layers_run(self.episodes) if self.runtime.routed else None

    @property
    def cost(self) -> Cost:
        """The mean over what was timed."""
        each = [spent.cost for spent in self.spent]
        flops, traffic = (
            {part: sum(getattr(c, unit)[part] for c in each) / len(each) for part in each[0].flops}
            for unit in ("flops", "bytes")
        )
        return Cost(flops, traffic, each[0].parameters)

    def router_flops(self) -> float:
        return sum(spent.router for spent in self.spent) / len(self.spent)

    def _noise(self, session: Runtime) -> Tensor:
        """What `infer` would draw next in this session."""
        return session.model.noise(1, session.generator).to(self.device)

    def _spent(self, passes: Sequence[Route]) -> Spent:
        text = self.runtime.text(self.batch)
        if text not in self.costs:
            self.costs[text] = self.runtime.cost(self.views, text)
        return spent(self.costs[text], passes, self.runtime.model.router)


def spent(cost: Cost, passes: Sequence[Route], router: Router | None) -> Spent:
    """What an observation cost. cost: of the policy by every layer. passes: the one that the router decided, then those
    of given routes, for which nobody is asked."""
    if router is None:
        return Spent(cost, 0.0)
    assert cost.parts is not None, "a family whose policies may be routed keeps the parts of a cost apart"
    own = router.work(passes[0], cost.parts)
    works = [*(cost.parts.along(route) for route in passes), own]
    whole = {part: sum((work[part] for work in works if part in work), Work()) for part in cost.flops}
    return Spent(Cost.of(whole, cost.parameters), sum(work.flops for work in own.values()))


@contextmanager
def overruled(session: Runtime, short: bool) -> Iterator[None]:
    """The session's model with its router overruled, for as long as this lasts."""
    model, router = session.model, session.model.router
    assert router is not None
    model.router = Overruled(router, short)
    try:
        yield
    finally:
        model.router = router


def take_turns(lanes: Sequence[Lane], places: int, label: str) -> None:
    """Every lane once per place and boundary, in an order drawn anew for each place, the same for equal seeds: what a
    lane leaves behind (threads that spin, a warm cache) then meets all the others alike."""
    rng = np.random.default_rng(lanes[0].seed)
    for place in tqdm(range(places), desc=label, disable=None, leave=False):
        order = [lanes[i] for i in rng.permutation(len(lanes))]
        for lane in order:
            lane.face(place)
        for run in (Lane.run_model, Lane.run_end_to_end, Lane.run_bounds):
            for lane in order:
                run(lane)
    for lane in lanes:
        lane.finish()


def _unmarked(part: str) -> None:
    """Nobody wants to know where a part ends."""


def dtypes(model: torch.nn.Module) -> str:
    """All types of its parameters."""
    return "+".join(sorted({str(p.dtype)[6:] for p in model.parameters()}))
