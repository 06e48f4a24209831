"""How smoothly a robot moved, and what that says about skipping layers: DySL-VLA's prior and posterior guidance.

    C_t = -(1/k) * sum over the last k executed actions of |A_j - A_(j-1)|        0 = perfectly smooth
    p_s <- clip(p_s - ceil((C_t - C_(t-1)) / eta))                            of segment s, layers before p_s must run

A policy executes several actions of a chunk before it is asked again, so C moves by whole chunks. C of a chunk is the
lowest value that it reaches at any of its executed actions: a grasp in the middle of a chunk counts in full, however
long the chunk and short the window. With one action a chunk that is the paper's C. An episode begins with p behind
every segment, where nothing may be skipped; the first C (of k + 1 actions) lifts that, p goes to the first layer of its
segment, and from the second C on p follows. Lifted by rises of C alone it would stay behind for most of an episode.
Verification is a self-check: a drop of C below -eta1 that follows none has the chunk computed again by every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lithe.routers.base import Memory

Rule = Literal["ceiling", "symmetric"]


@dataclass(frozen=True)
class Guidance:
    """Settings of a Continuity; JSON. eta, eta1 and dead_zone are lengths in model units, as C is."""

    pre_skip: bool = True  # move the allow points; False = controllers may fire everywhere, always
    post_skip: bool = True  # doubt a chunk at the first drop of C
    k: int = 5  # step lengths in the window
    eta: float = 1e-3  # change of C that moves an allow point by one layer
    eta1: float = 5e-4  # drop of C that is doubted
    cooldown: int = 0  # chunks after a doubted one that are not doubted
    rule: Rule = "ceiling"  # of a change that is no multiple of eta; symmetric: rounded away from 0 on both sides
    dead_zone: float = 0.0  # changes of C up to this move nothing
    printed_sign: bool = False  # the paper's printed sign, which contradicts its text: a drop allows more skipping

    def __post_init__(self) -> None:
        for name, value, least in (("k", self.k, 1), ("cooldown", self.cooldown, 0)):
            if value < least:
                raise ValueError(f"continuity: {name} must be at least {least}, not {value}")
        if not (self.eta > 0 and self.eta1 >= 0 and self.dead_zone >= 0):
            raise ValueError("continuity: eta must be positive, eta1 and dead_zone must not be negative")
        if self.rule not in get_args(Rule):
            raise ValueError(f"continuity: rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")

    def earlier(self, change: float) -> int:
        """By how many layers a change of C moves the allow points towards the beginning."""
        if abs(change) <= self.dead_zone:
            return 0
        ceiling = self.rule == "ceiling" or change > 0
        moved = math.ceil(change / self.eta) if ceiling else -math.ceil(-change / self.eta)
        return -moved if self.printed_sign else moved


class Continuity(Memory):
    """Of one episode. segments: (first layer, layer behind the last) of every run of layers that may be skipped."""

    def __init__(self, segments: tuple[tuple[int, int], ...], guidance: Guidance):
        self.segments, self.guidance = segments, guidance
        self.points = [behind for _, behind in segments]  # p_s; `behind` = nothing of this segment may be skipped
        self.level: float | None = None  # C
        self.change: float | None = None  # of C, by the last chunk
        self.chunks = 0
        self.last_A: np.ndarray | None = None
        self.lengths: np.ndarray = np.empty(0)  # the last k - 1 of them
        self.resting = 0  # chunks that are not doubted yet
        self.doubted = False

    @property
    def continuity(self) -> float | None:
        return self.level

    def allows(self, i: int) -> bool:
        """Whether the controller of layer i may fire."""
        if not self.guidance.pre_skip:
            return True
        return any(point <= i < behind for point, (_, behind) in zip(self.points, self.segments))

    def note(self, actions_HA: np.ndarray) -> None:
        known_J = self._known(actions_HA)
        level = self._level(known_J)
        self.change = None if level is None or self.level is None else level - self.level
        if self.change is not None:
            earlier = self.guidance.earlier(self.change)
            bounds = zip(self.points, self.segments)
            self.points = [min(max(point - earlier, first), behind) for point, (first, behind) in bounds]
        elif level is not None:
            self.points = [first for first, _ in self.segments]
        self.level, self.last_A = level, np.array(actions_HA[-1], np.float64)
        self.lengths = known_J[max(0, len(known_J) - self.guidance.k + 1) :]
        self.resting = self.guidance.cooldown if self.doubted else max(0, self.resting - 1)
        self.chunks, self.doubted = self.chunks + 1, False

    def doubts(self, actions_HA: np.ndarray) -> bool:
        level = self._level(self._known(actions_HA))
        if not self.guidance.post_skip or self.resting or level is None or self.level is None:
            return False
        falling = self.change is not None and self._drops(self.change)
        self.doubted = self._drops(level - self.level) and not falling
        return self.doubted

    def _drops(self, change: float) -> bool:
        return change < -self.guidance.eta1

    def _known(self, actions_HA: np.ndarray) -> np.ndarray:
        """The step lengths kept so far and those of these actions."""
        actions = np.asarray(actions_HA, np.float64)
        walked = actions if self.last_A is None else np.concatenate([self.last_A[None], actions])
        return np.concatenate([self.lengths, np.linalg.norm(np.diff(walked, axis=0), axis=-1)])

    def _level(self, known_J: np.ndarray) -> float | None:
        """The lowest C over windows that end in a new step; None before there are k steps."""
        if len(known_J) < self.guidance.k:
            return None
        return -float(np.lib.stride_tricks.sliding_window_view(known_J, self.guidance.k).mean(-1).max())


def changes(actions_JA: np.ndarray, replan: int, k: int) -> list[float]:
    """The changes of C along one recorded movement that is executed `replan` actions at a time."""
    memory, found = Continuity((), Guidance(k=k)), []
    for first in range(0, len(actions_JA) - replan + 1, replan):
        memory.note(actions_JA[first : first + replan])
        found.append(memory.change)
    return [change for change in found if change is not None]
