"""Family: how one kind of VLA is cut open. One file per kind; the model owns its trunk loop and its accounting.

A family answers questions about itself (where are the stacks, what is one training step, one chunk, what does it cost)
and knows nothing about methods, data sets or simulators. Shape legend: types.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lithe.families._packed import PackedModel
from lithe.routers.base import Memory, Router, Sizes
from lithe.surgery import Stack
from lithe.types import Batch, Cost, Draw, Observation, Out, Route, Spec, Tap


class Family(nn.Module, ABC):
    """A VLA policy network together with the preprocessing it was trained with."""

    name: ClassVar[str]  # the file's name
    presets: ClassVar[tuple[str, ...]]  # ready-made sizes for `fresh`
    stacks: ClassVar[tuple[Stack, ...]]
    vision_prefixes: ClassVar[tuple[str, ...]]  # parameters of the vision path that `see` uses
    lerobot_types: ClassVar[tuple[str, ...]] = ()  # "type" of the LeRobot policies that `outline` reads
    guided: ClassVar[bool] = False  # whether `act` takes a `guide`

    history: list[dict[str, Any]]  # surgery so far, in the form surgery.dump writes
    origin: dict[str, Any] | None = None  # where foreign weights came from: source and revision
    router: Router | None  # installed by surgery; decides which layers run

    @classmethod
    @abstractmethod
    def fresh(cls, preset: str, seed: int = 0, **overrides: Any) -> Family:
        """Random weights in a named size. Raises ValueError for an unknown preset or setting."""

    @classmethod
    @abstractmethod
    def blank(cls, config: dict[str, Any], folder: Path) -> Family:
        """The empty module (on the current default device) that `describe` described, with side files from `folder`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able configuration *before* any surgery; `blank` plus the history rebuild the module."""

    @abstractmethod
    def save_extras(self, folder: Path) -> None:
        """Write what is not a tensor (tokenizer, normalisation statistics) into `folder`."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Cameras, dimensions, horizon."""

    @property
    @abstractmethod
    def streams(self) -> Sizes:
        """Depth and widths, for a router to be made."""

    @abstractmethod
    def fit_to(self, stats: dict[str, dict[str, Any]], texts: Sequence[str], cameras: Sequence[str]) -> None:
        """Adopt a data set's statistics (and, when trained from scratch, its words). Raises ValueError on a misfit."""

    @abstractmethod
    def batch(self, samples: dict[str, Any]) -> Batch:
        """Raw samples (`data/base.py`) to model inputs: resize, normalise, tokenise. On the CPU."""

    @abstractmethod
    def observe(self, observations: Sequence[Observation]) -> Batch:
        """Raw observations to model inputs, by the same code as `batch`."""

    @abstractmethod
    def actions(self, actions_BHA: Tensor, batch: Batch) -> Tensor:
        """Model outputs back to the robot's units, real dimensions only. batch: what they answer to."""

    def path(self, actions_BHA: Tensor, batch: Batch) -> Tensor:
        """Model outputs without padded dimensions, in model units from one origin: chunks that follow each other are
        one movement. A family whose chunks count from where the robot stands adds that."""
        return actions_BHA[..., : self.spec.action_dim]

    @abstractmethod
    def example(self, batch: int = 2, generator: torch.Generator | None = None) -> Batch:
        """Random valid inputs."""

    @abstractmethod
    def draw(self, batch: Batch, generator: torch.Generator, draws: int = 1, augment: bool = True) -> Draw:
        """All randomness of one training step."""

    @abstractmethod
    def see(self, view_BVCYX: Tensor) -> Tensor:
        """Image tokens [B, V*tokens, D] from a view in [-1, 1]: the part teacher and student may share."""

    @abstractmethod
    def forward(self, batch: Batch, draw: Draw, taps: Sequence[Tap] = (), route: Route | None = None) -> Out:
        """One training pass."""

    @abstractmethod
    def task_loss(self, out: Out) -> Tensor:
        """The family's own supervised loss, a scalar."""

    @abstractmethod
    def imitation_loss(self, student: Out, teacher: Out) -> Tensor:
        """Distance of two outputs in the family's own output space, a scalar; 0 for equal outputs."""

    @abstractmethod
    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Starting noise [B, H, A] for `act`."""

    @abstractmethod
    def act(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        steps: int | None = None,
        route: Route | None = None,
        trace: Any = None,
        memory: Memory | None = None,
        told: Callable[[Route], None] | None = None,
    ) -> Tensor:
        """One action chunk [B, H, A] in model units. `trace(part)` is called after "vision", "prefix" and "denoise".

        route: None lets the router decide, for each observation by itself. memory: the router's, of this episode.
        told: called with the route that was taken, once an observation where the router decided.

        A family that is `guided` also takes guide(x_BHA, time, velocity_BHA) -> velocity_BHA, asked at every denoise
        step for the velocity to follow instead of the model's own: real-time chunking is made of that.
        """

    def packed(self, steps: int | None = None) -> PackedModel:
        """This policy's inference-only form for fast runtimes, made for one step grid; changes nothing here. Raises
        ValueError where there is none, or it does not fit this policy's dtype."""
        raise ValueError(f"the family {self.name} has no packed form, which fast runtimes need: use the runtime eager")

    @abstractmethod
    def cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        """FLOPs, bytes and parameters per component for one chunk at batch 1."""

    def packed_cost(self, views: int | None = None, text: int | None = None, steps: int | None = None) -> Cost:
        """The same in the packed form. A family whose packed form leaves out work that `act` does says so here: else
        the floor of its fast runtimes is that of eager, and too high."""
        return self.cost(views, text, steps)

    def depth(self, stack: str = "trunk") -> int:
        """Layers of a stack."""
        from lithe.surgery import find_stack, stack_depth

        return stack_depth(self, find_stack(self, stack))
