"""Shallow-pi: cut the VLM and the action expert together, then distil with task, velocity and attention losses.

Paper: "Shallow-pi: Knowledge Distillation for Flow-based VLAs", arXiv 2601.20262.

    L = task * |v_S - u|^2  +  velocity * |v_S - v_T|^2  +  attention * KL(P_T || P_S)

v is the velocity for the same view, noise and time, u the flow-matching target, and P the attention of action queries
over vision-language keys in one middle layer. Student layer i starts as teacher layer round(i (L_T-1)/(L_S-1)).

Guessed, because the paper does not say (each is a knob): the weight of the attention term (0.1), its layer (the
student's middle one and the teacher layer that one came from), heads compared one by one, probabilities renormalised
over vision-language keys, temperature 1, direction teacher to student. The number of padded action dimensions inside
the errors belongs to the family. Departs from the authors' code on purpose: that code renumbers the expert only
(`scope: expert_only` rebuilds this), draws separate views for teacher and student, and has no attention term.
Our own knobs: `teacher_draws` asks the teacher about fewer noise draws of a step, which saves most of its expert's
time; `by` and `layers` keep other layers than the evenly spread ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods._depth import By, chosen, first, kept
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers, Op, find_stack
from lithe.types import Batch, Draw, Tap


@dataclass(frozen=True, kw_only=True)
class ShallowPi(Method):
    """Joint depth cut with knowledge distillation."""

    paper: ClassVar[str] = "Shallow-pi, arXiv 2601.20262"

    keep: int = 6  # L_S, layers kept in trunk and expert alike
    by: By = "uniform"  # how they are chosen: by place, or by a score of lithe.scores
    layers: tuple[int, ...] = ()  # the layers themselves; () = chosen `by`
    task: float = 1.0  # lambda_task
    velocity: float = 1.0  # lambda_kd
    attention: float = 0.1  # lambda_attn; 0 turns the term off
    attention_layers: tuple[int, int] | None = (
        None  # (student, teacher); None = the middle of the student and its origin
    )
    heads: Literal["separate", "mean"] = "separate"  # KL per head, or of the head-averaged attention
    renormalise: bool = True  # softmax over vision-language keys only; False = their slice of the full softmax
    temperature: float = 1.0
    direction: Literal["forward", "reverse"] = "forward"  # KL(teacher || student), or the other way round
    teacher_draws: int = 0  # noise draws of a step that the teacher is asked about; 0 = all of train.draws
    teacher_every: int = 1  # ... and only about every so many samples of a batch; 1 = all
    scope: Literal["both", "expert_only"] = "both"  # expert_only: the VLM keeps its first layers, a released defect

    def calibrated(self, teacher: Family, data: Data) -> ShallowPi:
        return replace(self, layers=chosen(teacher, data, self.keep, self.by, self.layers))

    def cut(self, teacher: Family) -> list[Op]:
        layers, wrong = self._kept(teacher), None
        if self.scope == "expert_only":
            wrong = {find_stack(teacher, "trunk").paths[0]: first(teacher.depth("trunk"), len(layers))}
        return [KeepLayers("trunk", layers, wrong)]

    def _kept(self, teacher: Family) -> tuple[int, ...]:
        return kept(teacher.depth("trunk"), self.keep, self.by, self.layers)

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        if not self.attention:
            return (), ()
        layers, middle = self._kept(teacher), len(self._kept(teacher)) // 2
        mine, theirs = self.attention_layers or (middle, layers[middle])
        for name, layer, depth in (("student", mine, len(layers)), ("teacher", theirs, teacher.depth("trunk"))):
            if not 0 <= layer < depth:
                raise ValueError(f"method.attention_layers: the {name} has layers 0 to {depth - 1}, not {layer}")
        return (Tap("attention", mine),), (Tap("attention", theirs),)

    def asked(self, batch: Batch, draw: Draw) -> tuple[Batch, Draw]:
        draw = draw.first(self.teacher_draws) if self.teacher_draws else draw
        return batch.take(self._rows), draw.take(self._rows)

    @property
    def _rows(self) -> slice:
        return slice(None, None, self.teacher_every)

    def loss(self, step: Step) -> dict[str, Tensor]:
        student, (out, teacher_out) = step.student, step.outs
        both = out.take(self._rows).first(teacher_out.draws)  # what was asked of both
        terms = {
            "task": self.task * student.task_loss(out),
            "kd/velocity": self.velocity * student.imitation_loss(both, teacher_out),
        }
        if self.attention:
            (mine,), (theirs,) = both.taps.values(), teacher_out.taps.values()
            terms["kd/attention"] = self.attention * self.transfer(mine, theirs, out.prefix_BN.shape[1])
        return terms

    def transfer(self, student_BKQN: Tensor, teacher_BKQN: Tensor, prefix: int) -> Tensor:
        """KL divergence of attention over the `prefix` vision-language keys: mean over samples, heads and queries.

        Inputs are masked scores over all keys; a key masked in one is masked in both and adds exactly 0.
        """
        log_s, log_t = (self._log_attention(x, prefix) for x in (student_BKQN, teacher_BKQN))
        if self.direction == "reverse":
            log_s, log_t = log_t, log_s
        p_t, p_s = log_t.exp(), log_s.exp()
        return (p_t * (log_t - log_s) - p_t + p_s).sum(dim=-1).mean()  # the last two cancel where both sum to 1

    def _log_attention(self, scores: Tensor, prefix: int) -> Tensor:
        scores = scores / self.temperature
        log_p = (scores[..., :prefix] if self.renormalise else scores).log_softmax(dim=-1)[..., :prefix]
        if self.heads == "mean":
            return torch.logsumexp(log_p, dim=1, keepdim=True) - math.log(log_p.shape[1])
        return log_p
