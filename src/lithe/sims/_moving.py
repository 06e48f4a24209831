"""Where and when something moves by itself in an episode: drawn from (task, seed) and from nothing else.

A motion begins after `begin` steps and is over `steps` steps later: 1 is a jump, more a drift at constant velocity.
What moves goes from one of its own starting places to another, so that the scene stays one that the task could begin
with.
Shapes: D dimensions of a place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

FAR = 0.4  # of the diagonal of the box of places: a nearer new place would be no disturbance


@dataclass(frozen=True)
class Motion:
    """One displacement of one episode."""

    begin: int  # steps after which the world is another one
    steps: int
    way_D: np.ndarray

    def done(self, step: int) -> np.ndarray:
        """The part of the way [D] that lies behind after so many steps of the episode."""
        return self.way_D * min(max((step - self.begin + 1) / self.steps, 0.0), 1.0)

    def begun(self, step: int) -> bool:
        return step >= self.begin

    def under_way(self, step: int) -> bool:
        """Whether this step moves anything."""
        return self.begin <= step < self.begin + self.steps


def dice(task: str, seed: int) -> np.random.Generator:
    """The random numbers of an episode's motion; Meta-World and the toy draw their scenes from others."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"moving/{task}/{seed}".encode()).digest()[:8], "big"))


def elsewhere(place_D: np.ndarray, low_D: np.ndarray, high_D: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another place in the box, at least FAR of its diagonal away; the opposite corner is half of it away at least."""
    least = FAR * np.linalg.norm(high_D - low_D)
    while True:
        found = rng.uniform(low_D, high_D)
        if np.linalg.norm(found - place_D) >= least:
            return found
