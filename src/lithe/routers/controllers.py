"""Controllers: layers are static or dynamic; before a dynamic one, a controller may jump to the next static layer.

    q_i = sigmoid(w2 . SiLU(W1 pool(LN(h_i))) + b)       the probability to skip, from the prefix stream
    E_i(h) = h + W2 SiLU(W1 LN(h)),  W2 = 0 at first     an adapter of layer i for each of the two streams

A jump from layer i enters the next static layer with E_i(h_i) and replaces the rest of the segment, so there is at most
one jump a segment. Trunk and expert jump together: no denoise step misses keys and values. A new router has w2 = 0 and
b = 0: every q is exactly 0.5, no controller fires, and the policy acts as it did before. What ships of DySL-VLA (arXiv
2602.22896); which controllers may fire is decided by the smoothness of the movement (`_continuity.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.routers._continuity import Continuity, Guidance
from lithe.routers.base import Memory, Router, Sizes, pooled
from lithe.types import Route
from lithe.work import Parts, Work

Jump = Literal["learned", "always", "random"]


class Controllers(Router):
    """static: layers that always run, the last one among them. rank: of the adapters. hidden: width of a controller.

    jump: "learned" asks the controllers; "always" and "random" (with probability `rate` at every dynamic layer that is
    reached) are controls and have none. guidance: a Guidance as data; it holds for all three.
    """

    name: ClassVar[str] = "controllers"

    def __init__(
        self,
        sizes: Sizes,
        static: tuple[int, ...],
        rank: int,
        hidden: int,
        threshold: float = 0.5,
        jump: Jump = "learned",
        rate: float = 0.0,
        guidance: dict[str, Any] | None = None,
    ):
        super().__init__(sizes)
        if min(rank, hidden) < 1:
            raise ValueError(f"controllers: rank and hidden must be at least 1, not {rank} and {hidden}")
        if jump not in get_args(Jump) or not (0 < rate <= 1 if jump == "random" else rate == 0):
            raise ValueError(
                f"controllers: jump must be one of {', '.join(get_args(Jump))}, not {jump!r}, and rate (found {rate}) "
                "a probability above 0 for random jumps and 0 for all others"
            )
        self.segments = segments(sizes.depth, static)
        self.static, self.threshold, self.jump, self.rate = tuple(static), threshold, jump, rate
        self.guidance = Guidance(**(guidance or {}))
        self.landings = {i: behind for first, behind in self.segments for i in range(first, behind)}
        widths = {"prefix": sizes.prefix, "suffix": sizes.suffix}
        self.adapters = nn.ModuleDict(
            {
                stream: nn.ModuleDict({str(i): _Adapter(width, rank) for i in self.landings})
                for stream, width in widths.items()
            }
        )
        asked = self.landings if jump == "learned" else ()
        self.controllers = nn.ModuleDict({str(i): _Controller(sizes.prefix, hidden) for i in asked})

    def memory(self) -> Memory | None:
        guided = self.guidance.pre_skip or self.guidance.post_skip
        return Continuity(self.segments, self.guidance) if guided or self.jump == "random" else None

    def landing(self, i: int) -> int | None:
        return self.landings.get(i)

    def allows(self, i: int, memory: Memory | None) -> bool:
        """Without a memory, outside of an episode, every controller may fire."""
        assert memory is None or isinstance(memory, Continuity), "this memory is of another router"
        if memory is not None and not memory.allows(i):
            return False
        return self.jump != "random" or _chance(i, memory) < self.rate

    def share(self, i: int, x_BND: Tensor, valid_BN: Tensor) -> Tensor:
        return self.controllers[str(i)](x_BND, valid_BN)

    def crosses(self, i: int, x_BND: Tensor, valid_BN: Tensor, probe: Callable[[], Tensor] | None) -> bool:
        return self.jump != "learned" or bool(self.share(i, x_BND, valid_BN)[0] > self.threshold)

    def bridge(self, stream: str, i: int, x: Tensor) -> Tensor:
        return self.adapters.get_submodule(f"{stream}.{i}")(x)

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        """Every controller that was reached counts as asked, also one that the memory did not let speak."""
        jumps = [crossing.start for crossing in route.crossings]
        asked = [layer for i, layer in self.controllers.items() if route.run[int(i)] or int(i) in jumps]
        prefix = [Work.of(layer, 1) for layer in asked]
        prefix += [Work.of(self.adapters.get_submodule(f"prefix.{i}"), parts.prefix) for i in jumps]
        suffix = [Work.of(self.adapters.get_submodule(f"suffix.{i}"), parts.suffix, parts.steps) for i in jumps]
        return {"prefix": sum(prefix, Work()), "denoise": sum(suffix, Work())}


def segments(depth: int, static: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(first layer, layer behind the last) of every run of dynamic layers. Raises ValueError for no sound split."""
    if list(static) != sorted(set(static)) or not static or static[0] < 0 or static[-1] != depth - 1:
        raise ValueError(
            f"static layers must be increasing and end with the last layer, {depth - 1}, which reads what the others "
            f"made; not {list(static)}"
        )
    found = tuple((a + 1, b) for a, b in zip((-1, *static), static) if b > a + 1)
    if not found:
        raise ValueError(f"all {depth} layers are static: leave some that may be skipped")
    return found


def parameters(sizes: Sizes, dynamic: int, rank: int, hidden: int) -> int:
    """How many a router with learned jumps has, `dynamic` layers of which may be skipped."""
    adapters = 2 * (sizes.prefix + sizes.suffix) * (rank + 1)  # two matrices, and scale and shift of the norm
    return dynamic * (adapters + sizes.prefix * (hidden + 2) + hidden + 1)


class _Adapter(nn.Module):
    """h + W2 SiLU(W1 LN(h)); the identity, bit for bit, until it is trained."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            h = x.float()
            return (h + _linear(self.up, F.silu(_linear(self.down, _normed(self.norm, h))))).to(x.dtype)


class _Controller(nn.Module):
    """The probability to skip, float32 [B]; 0.5 until it is trained."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BND: Tensor, valid_BN: Tensor) -> Tensor:
        with torch.autocast(x_BND.device.type, enabled=False):
            seen_BD = pooled(_normed(self.norm, x_BND.float()), valid_BN)
            return torch.sigmoid(_linear(self.up, F.silu(_linear(self.down, seen_BD))))[:, 0]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In float32, also where the policy as a whole was cast to another dtype."""
    return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


def _chance(i: int, memory: Continuity | None) -> float:
    """Uniform in 0..1 for layer i: a function of the episode so far, so a session repeats itself exactly."""
    last_A = None if memory is None else memory.last_A
    past = (0, 0) if memory is None or last_A is None else (memory.chunks, zlib.crc32(last_A.tobytes()))
    return float(np.random.default_rng((*past, i)).random())
