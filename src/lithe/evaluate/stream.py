"""What a robot does while its policy thinks: chunks that arrive late become one stream of executed actions.

    waits (delay 0)   the world waits for the policy: nothing is late
    sync              the robot stands still until the chunk is there, then executes `replan` actions of it
    async, rtc        the policy is asked while the rest of the old chunk is executed; that the new chunk of rtc agrees
                      with that rest is up to `ask` (chunking.py)

One rule covers all: a chunk loses as many of its first actions as were executed while it was computed. A robot that
stood still (at the beginning of an episode, or because its chunk was used up) has lost none. The policy works on one
chunk at a time and is asked again as soon as it is free and `replan` actions were executed since it last looked. Time
is counted in control steps; no clock is read. Shapes: A action, H chunk, T actions that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Ask = Callable[[np.ndarray | None], np.ndarray]  # what is left of the present chunk [T, A] -> a chunk [H, A]
Hold = Callable[[np.ndarray | None], np.ndarray]  # the action before -> the action that keeps the robot where it is


@dataclass(frozen=True)
class _Chunk:
    actions_HA: np.ndarray
    base: int  # actions executed before its observation was made
    due: int  # the step at which it is there


class Stream:
    """The actions of one episode; call `next` once a control step."""

    def __init__(self, ask: Ask, hold: Hold, replan: int, delay: int = 0, stands: bool = False):
        self.ask, self.hold, self.replan, self.delay, self.stands = ask, hold, replan, delay, stands
        self.step = self.asked = self.held = 0  # control steps, chunks asked for, steps without an action
        self._done = 0  # actions executed
        self._now: _Chunk | None = None
        self._coming: _Chunk | None = None
        self._last_A: np.ndarray | None = None

    def next(self) -> np.ndarray:
        """The action of this step [A]."""
        self._receive()
        if self._coming is None and (self._now is None or self._done - self._now.base >= self.replan):
            left_TA = None if self._now is None else self._now.actions_HA[self._done - self._now.base :]
            self._coming = _Chunk(self.ask(left_TA), self._done, self.step + self.delay)
            self.asked += 1
            self._receive()
        action_A = self._planned()
        if action_A is None:
            self.held += 1
            action_A = self.hold(self._last_A)
        else:
            self._done += 1
        self.step, self._last_A = self.step + 1, action_A
        return action_A

    def _receive(self) -> None:
        if self._coming is not None and self._coming.due <= self.step:
            self._now, self._coming = self._coming, None

    def _planned(self) -> np.ndarray | None:
        """None: there is no action to execute, or the robot stands while the policy thinks."""
        if self._now is None or (self.stands and self._coming is not None):
            return None
        left_TA = self._now.actions_HA[self._done - self._now.base :]
        return left_TA[0] if len(left_TA) else None
