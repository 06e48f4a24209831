"""Reaction: how long after something has moved a policy's executed actions begin to answer it.

The disturbed episode is played again with nothing moving: the same initial state, noise and delays. Both are the same
to the bit until the policy acts on the first observation that shows the change, so the first step at which their
actions differ is the reaction, and nothing has to be guessed about what a sensible answer would look like. Differences
up to REACTS of an action unit do not count, or a single pixel would be an answer. The twin ends where it is told apart,
with success, or where the disturbed episode ended; then no reaction was seen, which is not the same as a slow one.
Whether the answer was a good one is what success says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

REACTS = 0.1  # of the action limits' unit, in any dimension
MEANING = (
    f"control steps from the disturbance to the first executed action that differs by more than {REACTS:g} in any "
    "dimension from that of the same episode in which nothing moves"
)


class Twin:
    """Compares an undisturbed episode with a disturbed one, action by action."""

    def __init__(self, disturbed: Sequence[np.ndarray], event: int, where: Callable[[], str]):
        self.disturbed, self.event, self.where = disturbed, event, where
        self.step = 0
        self.reaction: int | None = None

    def goes_on(self, action_A: np.ndarray) -> bool:
        """Takes the undisturbed action of the next step; False when there is nothing more to find out."""
        apart = float(np.abs(np.asarray(action_A, np.float64) - self.disturbed[self.step]).max())
        if apart > 0 and self.step < self.event:
            raise ValueError(
                f"{self.where()}: played again it went differently before anything moved, so the sim or the runtime is "
                "not deterministic here and no reaction can be told"
            )
        if apart > REACTS:
            self.reaction = self.step - self.event
        self.step += 1
        return self.reaction is None and self.step < len(self.disturbed)
