"""What a bench shows its policies: recorded episodes, the same for all, or one random observation again and again.

A recorded feed is whole episodes in order, an observation every `replan` frames, as a robot that executes `replan`
actions of each chunk would meet them. Which episodes is drawn by a seed, and tasks take turns. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lithe.data.base import Data
from lithe.types import Observation

LOOKED = 512  # episodes whose task is looked up before some are chosen
STRETCH = 2  # times the observations that were asked for, at most, so that every task is seen
TASK = "push the button"  # what a policy is told to do without data


@dataclass(frozen=True)
class Still:
    """One observation, for ever; no episode ends."""

    observation: Observation

    def __call__(self, place: int) -> tuple[Observation, bool]:
        """The observation, and whether an episode begins with it."""
        return self.observation, place == 0


def still(cameras: Sequence[str], side: int, state_dim: int, seed: int) -> Still:
    """Random pictures and a random state: enough to time a policy that computes the same whatever it sees."""
    rng = np.random.default_rng(seed)
    observation: Observation = {
        f"observation.images.{camera}": rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for camera in cameras
    }
    return Still(observation | {"observation.state": rng.uniform(-1, 1, state_dim).astype(np.float32), "task": TASK})


@dataclass(frozen=True)
class Episodes:
    """Frames of whole episodes, and the places at which one begins; after the last it begins anew. tasks: how many of
    the data's were met."""

    data: Data
    frames: tuple[int, ...]
    begins: frozenset[int]
    tasks: int

    def __len__(self) -> int:
        return len(self.frames)

    def seen_by(self, cameras: Sequence[str]) -> Recorded:
        return Recorded(self, tuple(cameras))

    @property
    def episode(self) -> list[int]:
        """Of every observation, the episode that it belongs to, by its first frame: the same where one comes again."""
        firsts = [self.frames[place] for place in sorted(self.begins)]
        number = np.cumsum([place in self.begins for place in range(len(self))]) - 1
        return [firsts[i] for i in number]

    def facts(self) -> dict[str, Any]:
        """For the settings of a Result."""
        counts = {"episodes": len(self.begins), "tasks": self.tasks, "tasks_in_data": len(self.data.tasks)}
        return {"inputs": type(self.data).__name__, **counts}


@dataclass(frozen=True)
class Recorded:
    """Episodes through the cameras of one policy."""

    episodes: Episodes
    cameras: tuple[str, ...]

    def __call__(self, place: int) -> tuple[Observation, bool]:
        """The observation, and whether an episode begins with it."""
        place %= len(self.episodes)
        sample = self.episodes.data.samples(np.array([self.episodes.frames[place]]), 1)
        found = {f"observation.images.{camera}": sample["images"][camera][0] for camera in self.cameras}
        found |= {"observation.state": sample["state"][0], "task": sample["task"][0]}
        return found, place in self.episodes.begins


def episodes(data: Data, least: int, replan: int, seed: int) -> Episodes:
    """As many whole episodes as give at least `least` observations, and more until every task was met or there are
    STRETCH times as many observations; those of a small data set come again."""
    stops = np.unique(data.vectors()[2])
    starts = np.concatenate([[0], stops[:-1]])
    order = np.random.default_rng(seed).permutation(len(starts))[:LOOKED]
    tasks = [data.samples(starts[[e]], 1)["task"][0] for e in order]
    rank = [tasks[:i].count(task) for i, task in enumerate(tasks)]
    turns = order[np.argsort(rank, kind="stable")]  # the first episode of every task, then the second, ...
    named = dict(zip(order.tolist(), tasks, strict=True))
    frames: list[int] = []
    begins: list[int] = []
    told: list[str] = []
    every = len(set(tasks))
    while len(frames) < least or (len(set(told)) < every and len(frames) < STRETCH * least):
        episode = int(turns[len(begins) % len(turns)])
        begins.append(len(frames))
        told.append(named[episode])
        frames += range(int(starts[episode]), int(stops[episode]), replan)
    return Episodes(data, tuple(frames), frozenset(begins), len(set(told)))
