"""Runtime: how a policy is executed. Every runtime must give the same actions for the same noise as `eager`.

A runtime is a policy: `infer(observation)` and `reset()`. It owns the noise generator, so that a session is a function
of its seed; it holds per-episode state (router memory) and `reset` clears it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lithe.families.base import Family
from lithe.types import Batch, Cost, Observation, Route, Spec


class Runtime(ABC):
    """Attach a way of running to a model. Raises ValueError when device or model do not allow it."""

    name: ClassVar[str]
    compiles: ClassVar[bool] = False  # attaching takes tens of seconds, the same for every policy of one shape

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0):
        self.model, self.steps = model.eval(), steps
        self.replan = self.spec.replan  # actions that the robot executes of each chunk: set it where that differs
        self.reset(seed)

    @property
    def spec(self) -> Spec:
        return self.model.spec

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: the noise stream restarts at `seed` and all memory of the last episode is gone."""
        self.generator = torch.Generator().manual_seed(seed)
        self.memory = self.model.router.memory() if self.model.router else None
        self.taken: list[Route] = []  # one for each pass of this episode
        self.repeated = 0  # passes of this episode that were done again by every layer

    def twin(self, seed: int = 0) -> Runtime:
        """Another session of the same model, run by the same machinery.

        What an episode leaves behind must therefore be set in `reset`, as new objects, and nowhere else.
        """
        other = copy.copy(self)
        other.reset(seed)
        return other

    def infer(self, observation: Observation) -> np.ndarray:
        """One chunk of actions in the robot's units, float32 [H, A]."""
        device = next(self.model.parameters()).device
        batch = self.model.observe([observation]).to(device)
        chunk = self.answer(batch, self.model.noise(1, self.generator).to(device))
        return self.model.actions(chunk, batch)[0].numpy()

    def answer(self, batch: Batch, noise_BHA: Tensor, trace: Callable[[str], Any] | None = None) -> Tensor:
        """The chunk to execute, for one observation: what the router's memory doubts is computed by every layer."""
        chunk = self.chunk(batch, noise_BHA, trace)
        if self.memory is None:
            return chunk
        shortened = not all(self.taken[-1].run)  # a pass through every layer would only be repeated
        if shortened and self.memory.doubts(self._executed(chunk, batch)):
            self.repeated += 1
            chunk = self.chunk(batch, noise_BHA, trace, Route.full(self.model.depth()))
        self.memory.note(self._executed(chunk, batch))
        return chunk

    @property
    def routed(self) -> bool:
        """Whether the model decides itself which layers run."""
        return self.model.router is not None

    @property
    def title(self) -> str:
        """How a bench calls it: its name, and the variant where it was attached with settings that make it another."""
        return self.name

    def cost(self, views: int | None = None, text: int | None = None) -> Cost:
        """What one chunk costs in this runtime: `views` cameras, `text` prompt tokens that are computed."""
        return self.model.cost(views, text, self.steps)

    def text(self, batch: Batch) -> int:
        """Prompt tokens that are computed for one observation, padding included where the runtime keeps it."""
        return batch.text_BT.shape[1]

    def facts(self) -> dict[str, Any]:
        """What attaching found out and running has counted, by the names that a bench publishes it under."""
        return {}

    def held(self) -> Iterator[Tensor]:
        """Every tensor that it needs between two chunks, the model's own included; some may share memory."""
        yield from self.model.parameters()
        yield from self.model.buffers()

    def pools(self) -> Sequence[Any]:
        """Pools of CUDA memory that it keeps for captured graphs, beside what it holds."""
        return ()

    def layers(self) -> dict[str, Any]:
        """Which layers ran in this episode: {"passes", "repeated", "ran" [L]: passes in which each layer ran,
        "counts" [L+1]: passes with so many layers}. A pass that was repeated counts twice, as it costs twice."""
        depth, runs = self.model.depth(), [route.run for route in self.taken]
        counts = [sum(sum(run) == n for run in runs) for n in range(depth + 1)]
        ran = [sum(run[i] for run in runs) for i in range(depth)]
        return {"passes": len(runs), "repeated": self.repeated, "ran": ran, "counts": counts}

    def _executed(self, chunk_BHA: Tensor, batch: Batch) -> np.ndarray:
        """The actions that a robot executes before it asks again, on one scale for the whole episode."""
        return self.model.path(chunk_BHA.float(), batch)[0, : self.replan].cpu().numpy()

    @abstractmethod
    def chunk(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        trace: Callable[[str], Any] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        """One chunk in model units. `trace(part)` is called after "vision", "prefix" and "denoise". route: None lets
        the model's router decide."""
