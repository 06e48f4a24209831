"""Router: the part of a student that decides, once per observation, which layers run. It is shipped with the student.

One kind a file. Some decide ahead, from the embedded prefix (`ahead`); some on the way, at a layer, whether to cross to
a later one (`landing`, `share`, `crosses`, `bridge`). What a router remembers within an episode lives in a Memory that
the session owns, so that one model serves many robots. Everything a router computes is float32 and per sample.
Shape legend: types.py.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lithe.types import Route
from lithe.work import Parts, Work


@dataclass(frozen=True)
class Sizes:
    """What a router has to know about the model that it is installed in."""

    depth: int
    prefix: int  # width of the trunk's stream
    suffix: int  # width of the expert's stream


@dataclass(frozen=True)
class Sight:
    """The prefix as it enters the first layer."""

    stream_BND: Tensor
    valid_BN: Tensor  # bool
    text_BN: Tensor  # bool; valid tokens of the prompt


class Memory:
    """What a router keeps between the observations of one episode. A new one is made at every reset."""

    def note(self, actions_HA: np.ndarray) -> None:
        """These actions, in model units, are executed next."""

    def doubts(self, actions_HA: np.ndarray) -> bool:
        """Whether these actions, of a shortened pass, should be computed again by every layer before they are used."""
        return False

    @property
    def continuity(self) -> float | None:
        """For whoever watches: how smooth the movement is that was noted so far, 0 = perfectly, rougher = lower.

        None where it is not known yet, or where the router does not look at movements.
        """
        return None


class Probe:
    """Asks which actions the layers so far would give, [B, H, A]; `before` holds what was answered in this pass."""

    def __init__(self, ask: Callable[[], Tensor], before: list[Tensor]):
        self.ask, self.before = ask, before

    def __call__(self) -> Tensor:
        self.before.append(self.ask())
        return self.before[-1]


class Router(nn.Module, ABC):
    """Subclass with `__init__(self, sizes, **settings)`; settings are JSON and travel in the student's history."""

    name: ClassVar[str]

    def __init__(self, sizes: Sizes, **settings: Any):
        super().__init__()
        self.sizes = sizes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Moves with the model, but stays float32 when that is cast: rounded weights would take other ways."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    def memory(self) -> Memory | None:
        """A fresh memory, for a router that has one."""
        return None

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        """What asking it, its adapters and its probes cost in a pass that it sent this way: what falls into "prefix"
        and what into "denoise". parts: of the policy."""
        raise NotImplementedError(f"the router {type(self).__name__} does not say what it costs: give it `work`")

    # -- deciding ahead ----------------------------------------------------------------------------------------------

    def ahead(self, sight: Sight, memory: Memory | None) -> Tensor | None:
        """The probability that each layer runs, [B, L]; None for a router that decides on the way."""
        return None

    def harden(self, gates_BL: Tensor) -> Tensor:
        """0 or 1 for every layer, with the gradient of the probability (straight-through)."""
        return straight_through(gates_BL >= 0.5, gates_BL)

    def closed(self, gates_BL: Tensor) -> Tensor:
        """As `harden`, if the router skipped as much as it ever may: what its fastest answer looks like."""
        raise NotImplementedError(f"the router {type(self).__name__} does not say what it may skip: give it `closed`")

    # -- deciding on the way -----------------------------------------------------------------------------------------

    def landing(self, i: int) -> int | None:
        """Where a crossing that begins at layer i ends (`depth` = behind the last layer); None = none begins here."""
        return None

    def may_cross(self, i: int) -> bool:
        """Whether a crossing can begin at layer i at all, whatever is seen."""
        return self.landing(i) is not None

    def allows(self, i: int, memory: Memory | None) -> bool:
        """Whether a crossing may begin at layer i now; costs nothing on the device."""
        return True

    def share(self, i: int, x_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """How much to cross at layer i, [B] in 0..1."""
        raise NotImplementedError(f"{type(self).__name__} decides ahead")

    def crosses(self, i: int, x_BND: Tensor, valid_BN: Tensor, probe: Probe | None) -> bool:
        """The hard decision at layer i, for one observation. probe: the action that the layers so far would give."""
        return bool(self.share(i, x_BND, valid_BN)[0] > 0.5)

    def bridge(self, stream: str, i: int, x: Tensor) -> Tensor:
        """What enters layer `landing(i)` when `x` enters layer i and crosses. stream: "prefix" or "suffix"."""
        return x


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of `hard`, the gradient of `soft`; exact, unlike hard + soft - soft.detach()."""
    return _StraightThrough.apply(hard.to(soft.dtype), soft)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def pooled(x_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean over the valid tokens, float32 [B, D]; 0 where none is."""
    weight = valid_BN.to(torch.float32)[..., None]
    return (x_BND.float() * weight).sum(1) / weight.sum(1).clamp_min(1)


def peak(x_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Maximum over the valid tokens, float32 [B, D]; 0 where none is."""
    held = x_BND.float().masked_fill(~valid_BN[..., None], float("-inf")).amax(1)
    return torch.where(valid_BN.any(1, keepdim=True), held, torch.zeros_like(held))
