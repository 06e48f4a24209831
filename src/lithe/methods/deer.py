"""DeeR: leave the model at the layer where the actions stop changing; train all exits to be good enough to leave at.

Paper: "DeeR-VLA: Dynamic Inference of Multimodal LLMs for Efficient Robot Execution", arXiv 2411.02359.

    L    = mean over all exits k of  task * |v_k - u|^2  +  velocity * |v_k - v_T|^2
    exit : the first k whose estimate of the actions is at most eta_k from that of the exit before;  P_k ~ ratio^k of
           the calibration set stop there, which fits eta_k

v_k is the velocity where trunk and expert end behind layer k, v_T the teacher's through every layer. The estimate is
the chunk after one denoise step (routers/exits.py).

Departs from the paper: a flow policy has no pose head, so the action expert ends where the trunk does, and its norm and
output layer serve every exit, as the paper's shared head does, and no LSTM. That makes the losses of a random exit and
the equally weighted auxiliary one the same: a pass through all layers holds every exit's velocity, so each step trains
all of them, and the estimate before the first exit's as well. The distillation term is ours: velocity 0 is the paper's
loss. Thresholds are fitted to single frames of the training data, without augmentation. What is frozen is left to the
recipe; no phase trains heads alone.
Guessed: all real action dimensions count, the gripper's too. The paper's exits are `every: 2`, `keep` 12 (or 4) of 24.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods._depth import first
from lithe.methods.base import Method, Stage, Step
from lithe.routers.exits import Exits, fit
from lithe.surgery import InstallRouter, KeepLayers, Op
from lithe.types import Batch, Route, Tap


@dataclass(frozen=True, kw_only=True)
class Deer(Method):
    """Early exit by action consistency."""

    paper: ClassVar[str] = "DeeR-VLA, arXiv 2411.02359"

    keep: int = 0  # the largest exit; layers behind it are removed. 0 = all stay
    least: int = 1  # layers that run at least
    every: int = 1  # an exit behind every so many layers, counted back from the largest
    opening: Literal["layer_before", "never"] = "layer_before"  # what the first exit is compared with; never: it is not
    # taken, as where there is no layer before: a model of no layers has not seen the observation
    ratio: float = 1.0  # q, the exit ratio: how many observations stop at an exit for one at the exit before
    task: float = 1.0
    velocity: float = 1.0  # of distillation; the paper has none
    samples: int = 224  # observations that thresholds are fitted to
    seed: int = 0  # of those observations and their noise

    def calibrated(self, teacher: Family, data: Data) -> Deer:
        """Itself: thresholds are fitted at the end, but data that cannot do it is refused before any training."""
        exits = self._exits(self.keep or teacher.depth("trunk"))[1]
        self._demand_frames(len(exits), min(self.samples, len(data)))
        return self

    def cut(self, teacher: Family) -> list[Op]:
        depth = teacher.depth("trunk")
        ops: list[Op] = [KeepLayers("trunk", first(depth, self.keep))] if self.keep else []
        reference, exits = self._exits(self.keep or depth)
        self._demand_frames(len(exits), self.samples)
        shares = tuple(self.ratio**k for k in range(1, len(exits) + 2))
        settings = {"exits": exits, "shares": shares, "reference": reference, "action_dim": teacher.spec.action_dim}
        return [*ops, InstallRouter("exits", settings)]

    def _exits(self, depth: int) -> tuple[int, tuple[int, ...]]:
        """Behind how many layers the first estimate is made that exits are compared with, and the exits."""
        stops = self.stops(depth)
        if len(stops) == 1:  # nothing to compare
            return 0, ()
        before = self.opening == "layer_before" and stops[0] > 1
        return (stops[0] - 1, stops[:-1]) if before else (stops[0], stops[1:-1])

    def stops(self, depth: int) -> tuple[int, ...]:
        """Numbers of layers behind which the model may end, the last one included. Raises ValueError for bad knobs."""
        for name in ("least", "every", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name} must be at least 1, not {getattr(self, name)}")
        if self.least > depth:
            raise ValueError(f"method.least is {self.least}, but only {depth} layers are kept: lower it")
        if not 0 < self.ratio < float("inf"):
            raise ValueError(f"method.ratio must be above 0, not {self.ratio}: 1 lets equally many stop at every exit")
        return tuple(range(depth, self.least - 1, -self.every))[::-1]

    def route(self, student: Family, stage: Stage, generator: torch.Generator) -> Route:
        return Route.without(student.depth("trunk"))

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        reference, exits = self._exits(student.depth("trunk"))
        return tuple(Tap("velocity", k) for k in (reference, *exits) if exits), ()

    def loss(self, step: Step) -> dict[str, Tensor]:
        out, teacher_out = step.outs
        early = [replace(out, pred_BRHA=velocity) for velocity in out.taps.values()]
        tasks = [step.student.task_loss(end) for end in (*early, out)]
        terms = {"task": self.task * torch.stack(tasks).mean()}
        if self.velocity:
            weight = self.velocity / len(tasks)
            terms["kd/velocity"] = weight * step.student.imitation_loss(out, teacher_out)
            if early:
                near = [step.student.imitation_loss(end, teacher_out) for end in early]
                terms["reg/early"] = weight * torch.stack(near).sum()  # above 0 however whole the student is
        return terms

    def finish(self, student: Family, data: Data, device: torch.device) -> dict[str, Tensor]:
        """The thresholds, from frames that are looked at one by one, so that the numbers are those of acting."""
        router = student.router
        assert isinstance(router, Exits)
        if not router.exits:
            return {}
        count = min(self.samples, len(data))
        self._demand_frames(len(router.exits), count)
        frames = np.random.default_rng(self.seed).choice(len(data), count, replace=False)
        generator, rows, home = torch.Generator().manual_seed(self.seed), [], next(student.parameters()).device
        student.to(device)
        for frame in tqdm(frames, desc="calibrate", unit="frame", disable=None):
            batch = student.batch(data.samples(np.array([frame]), student.spec.horizon)).to(device)
            rows.append(moved(student, router, batch, student.noise(1, generator).to(device)))
        student.to(home)
        moved_NE = torch.cat(rows).cpu()
        thresholds = fit(moved_NE, router.shares)
        if told := collapsed(router, moved_NE, thresholds):
            tqdm.write(f"lithe: {told}", file=sys.stderr)
        return {"router.thresholds": thresholds}

    def _demand_frames(self, exits: int, frames: int) -> None:
        if exits and frames <= exits:
            raise ValueError(
                f"{exits + 1} exits cannot be fitted to {frames} frames: calibrate with more (method.samples is "
                f"{self.samples}), or have fewer exits with method.every or method.least"
            )


def collapsed(router: Exits, moved_NE: Tensor, thresholds_E: Tensor) -> str:
    """What a user should hear when all observations stop at one place though several were meant; "" = nothing."""
    stopping_NE = torch.cat([moved_NE <= thresholds_E, torch.ones(len(moved_NE), 1, dtype=torch.bool)], dim=1)
    places = set(stopping_NE.int().argmax(dim=1).tolist())  # the first exit of each whose threshold holds
    meant = sum(share > 0.5 / len(moved_NE) * sum(router.shares) for share in router.shares)
    if len(places) > 1 or meant < 2:
        return ""
    layers = (*router.exits, router.sizes.depth)[places.pop()]
    return (
        f"all {len(moved_NE)} frames stop after {layers} of {router.sizes.depth} layers, because the actions move "
        "equally far for each of them: look for layers that do nothing, train longer, or name fewer exits "
        "(method.every, method.least)"
    )


def moved(student: Family, router: Exits, batch: Batch, noise_BHA: Tensor) -> Tensor:
    """How far the estimate of each exit is from the one before it, [B, E]."""
    depth = student.depth("trunk")
    ends = [Route.without(depth, *range(end, depth)) for end in (router.reference, *router.exits)]
    estimates = [student.act(batch, noise_BHA, 1, route) for route in ends]
    return torch.stack([router.distance(b, a) for a, b in pairwise(estimates)], dim=1)
