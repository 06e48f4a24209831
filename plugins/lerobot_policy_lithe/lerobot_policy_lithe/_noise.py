"""Where the noise of an episode comes from, so that LeRobot's tools and `lithe eval` play the same episodes.

`lithe eval` begins the noise of an episode at (key, seed), and for LeRobot's simulators the key is the sentence. Here
the sentence is in the batch, and the seed is counted: lerobot-eval resets the policy once a rollout, and row i of the
batch in a task's rollout n is episode n * batch + i, which starts from its --seed plus that number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lithe.evaluate.rollout import noise_seed
from lithe.families.base import Family


class Noise:
    """One stream a row. seed: of a task's first episode; None = what LeRobot seeded torch with, its own --seed."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._sentences: list[str] = []
        self._played = 0  # episodes of these sentences
        self._streams: list[torch.Generator] = []

    def reset(self) -> None:
        """The next chunk is the first of an episode."""
        self._streams = []

    def __call__(self, model: Family, sentences: Sequence[str]) -> Tensor:
        """Starting noise [B, H, A] of the next chunk."""
        if len(self._streams) != len(sentences):
            self._begin(list(sentences))
        return torch.cat([model.noise(1, stream) for stream in self._streams])

    def _begin(self, sentences: list[str]) -> None:
        if sentences != self._sentences:  # another task, whose episodes are counted from the first seed again
            self._sentences, self._played = sentences, 0
        first = (torch.initial_seed() if self._seed is None else self._seed) + self._played
        self._played += len(sentences)
        seeds = [noise_seed(sentence, first + row) for row, sentence in enumerate(sentences)]
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
