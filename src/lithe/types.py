"""The few plain values that travel between the seams: Batch, Draw, Route, Tap, Out, Spec, Cost.

Shape legend, used by every file: B batch, V camera views, C channels, Y X image rows and columns, T text tokens,
N prefix tokens (image + text), R noise draws that share one prefix, H action horizon (chunk), A action dimensions,
S state dimensions, L layers, Q action queries of all draws (R*H), K attention heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lithe.work import Parts, Work


@dataclass(frozen=True)
class Batch:
    """Model inputs, already normalised and tokenised by the family. Absent fields are None."""

    images_BVCYX: Tensor  # uint8, or float in 0..1 for policies made by LeRobot; one size for all views
    live_BV: Tensor  # bool; False = that camera does not exist in this sample
    tokens_BT: Tensor  # int64
    text_BT: Tensor  # bool; False = padding
    state_BS: Tensor | None = None  # normalised, padded to the model's state width
    actions_BHA: Tensor | None = None  # normalised, padded to the model's action width; None when acting
    origin_BA: Tensor | None = None  # what relative actions count from, in the robot's units; None = all are absolute

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return _each(self, lambda tensor: tensor.to(device))

    def take(self, rows: slice | list[int]) -> Batch:
        """Only these samples."""
        return _each(self, lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.tokens_BT)


@dataclass(frozen=True)
class Draw:
    """All randomness of one training step, made once; teacher and student must share it.

    `features_BND` holds image tokens already computed by a vision tower that teacher and student have in common.
    """

    view_BVCYX: Tensor  # float in [-1, 1], augmented
    noise_BRHA: Tensor
    time_BR: Tensor  # 1 = pure noise, 0 = data (openpi's convention)
    features_BND: Tensor | None = None

    def with_features(self, features_BND: Tensor) -> Draw:
        return replace(self, features_BND=features_BND)

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on another device."""
        return _each(self, lambda tensor: tensor.to(device))

    def take(self, rows: slice | list[int]) -> Draw:
        """Only these samples."""
        return _each(self, lambda tensor: tensor[rows])

    @staticmethod
    def join(draws: list[Draw]) -> Draw:
        """The samples of all of these, none of which has features yet, in their order."""
        assert all(draw.features_BND is None for draw in draws)
        views, noises, times = zip(*((d.view_BVCYX, d.noise_BRHA, d.time_BR) for d in draws))
        return draws[0] if len(draws) == 1 else Draw(torch.cat(views), torch.cat(noises), torch.cat(times))

    def first(self, draws: int) -> Draw:
        """The same view with only the first noise draws. Raises ValueError when there are not that many."""
        if not 1 <= draws <= self.noise_BRHA.shape[1]:
            raise ValueError(f"cannot take {draws} noise draws of {self.noise_BRHA.shape[1]}")
        return replace(self, noise_BRHA=self.noise_BRHA[:, :draws], time_BR=self.time_BR[:, :draws])


@dataclass(frozen=True)
class Crossing:
    """A jump from the stream entering layer `start` to the one entering layer `end`, through the router's adapter.

    Hard (`share_B` None): the layers between do not run. Soft (training): they run, and `share` of what the adapter
    made is mixed in at `end`, exact at 0 and at 1.
    """

    start: int
    end: int
    share_B: Tensor | None = None


@dataclass(frozen=True)
class Route:
    """Which layers of a stack run, decided once per observation and shared by prefix and expert.

    `run` is hard: the code of a False layer is never executed. `share_BL` is soft (training only): every layer runs and
    is mixed in as `lerp(h, layer(h), share)`, exact at 0 and at 1. `asked` (training only): layers at which the
    router is asked how much to cross; its answers become soft crossings. `gates_BL` is what the router thought: the
    probability that a layer runs, with gradients, for losses to look at.
    """

    run: tuple[bool, ...]
    share_BL: Tensor | None = None
    crossings: tuple[Crossing, ...] = ()
    asked: tuple[int, ...] = ()
    gates_BL: Tensor | None = None

    @staticmethod
    def full(depth: int) -> Route:
        """Every layer, whatever a router thinks."""
        return Route((True,) * depth)

    @staticmethod
    def without(depth: int, *skipped: int) -> Route:
        """Every layer of `depth` but the skipped ones. Raises ValueError for a layer that is not there."""
        wrong = [layer for layer in skipped if not 0 <= layer < depth]
        if wrong:
            raise ValueError(f"cannot skip layer {wrong[0]}: the stack has layers 0 to {depth - 1}")
        return Route(tuple(layer not in skipped for layer in range(depth)))


@dataclass(frozen=True)
class Tap:
    """A place inside the model that a loss or an analysis wants to see.

    kind: "attention" = scores of action queries over all keys before the softmax, [B, K, Q, N + Q], masked entries at
    -1e9; "prefix" = residual stream entering a trunk layer, [B, N, D]; "suffix" = the same in the expert, [B, Q, D];
    "velocity" = what the model would answer if it ended before that layer, [B, R, H, A].
    layer: 0 ... L-1; for the streams also L, the stream after the last layer, before the final norm.
    """

    kind: str
    layer: int


@dataclass(frozen=True)
class Out:
    """What one training forward pass returns."""

    pred_BRHA: Tensor
    target_BRHA: Tensor
    prefix_BN: Tensor  # bool; valid prefix tokens
    taps: dict[Tap, Tensor] = field(default_factory=dict)
    route: Route | None = None  # the way that was taken

    @property
    def draws(self) -> int:
        return self.pred_BRHA.shape[1]

    def take(self, rows: slice) -> Out:
        """Only these samples."""
        taps = {tap: x[rows] for tap, x in self.taps.items()}
        some = {key: getattr(self, key)[rows] for key in ("pred_BRHA", "target_BRHA", "prefix_BN")}
        return replace(self, **some, taps=taps)

    def first(self, draws: int) -> Out:
        """What came of the first noise draws; taps of the prefix, and keys, stay whole."""
        if draws == self.draws:
            return self
        rows = {"attention": 2, "suffix": 1, "velocity": 1}  # the axis that holds all draws, or their queries
        taps = {
            tap: x.narrow(rows[tap.kind], 0, x.shape[rows[tap.kind]] * draws // self.draws) if tap.kind in rows else x
            for tap, x in self.taps.items()
        }
        return replace(self, pred_BRHA=self.pred_BRHA[:, :draws], target_BRHA=self.target_BRHA[:, :draws], taps=taps)


@dataclass(frozen=True)
class Spec:
    """What a policy needs to see and what it answers with; enough to check it against data, a simulator or a robot."""

    cameras: tuple[str, ...]  # LeRobot keys without the "observation.images." prefix
    state_dim: int
    action_dim: int  # real dimensions, without padding
    horizon: int  # actions per chunk
    replan: int  # actions executed before the next chunk is asked for
    steps: int  # denoise steps (or decoding passes) of one chunk


@dataclass(frozen=True)
class Cost:
    """Arithmetic and traffic of one chunk at batch 1, per component; the model owns this accounting."""

    flops: dict[str, float]  # "vision", "prefix", "denoise"
    bytes: dict[str, float]  # weights and caches streamed, same keys
    parameters: dict[str, int]
    parts: Parts | None = None  # of a family that can be asked about routes

    @staticmethod
    def of(work: dict[str, Work], parameters: dict[str, int], parts: Parts | None = None) -> Cost:
        flops, traffic = ({key: getattr(w, unit) for key, w in work.items()} for unit in ("flops", "bytes"))
        return Cost(flops, traffic, parameters, parts)

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())

    def floor_ms(self, flops_per_s: float, bytes_per_s: float) -> dict[str, float]:
        """Roofline per component in ms: the slower of arithmetic and traffic; launches and activations are free."""
        return {k: 1e3 * max(self.flops[k] / flops_per_s, self.bytes[k] / bytes_per_s) for k in self.flops}


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A Batch or a Draw with every tensor that it has changed."""
    present = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}
    return replace(value, **{name: change(tensor) for name, tensor in present.items()})


Observation = dict[str, Any]  # LeRobot keys: "observation.images.<camera>" uint8 HWC, "observation.state", "task"
