"""MoLe: a router picks `keep` layers for every observation, ahead; the un-gated teacher's features guide what is left.

Paper: "MoLe-VLA: Dynamic Layer-skipping Vision Language Action Model", arXiv 2503.20384.

    L     = L_task + cog * L_cog + balance * mean_l(hard_l * soft_l)
    L_cog = sum_n M_n ((1 - reverse) * mean_d (f_S - f_T)^2 + reverse * KL(softmax_d f_S || softmax_d f_T))

f is the prefix stream entering the last layer that runs, the deepest that anything reads, and the teacher's there, each
token at unit root mean square; M says which tokens are of interest; soft is the router's softmax over layers and hard
its `keep` largest, 1 or 0, with the gradient of soft (`routers/star.py`). Router and all else train in one stage.

Departs from the released code on purpose: skipped layers do not run (that code runs all of them and masks), and the
balance term has its weight once (there .1 times .1). The teacher is the frozen, un-gated policy; the paper's is an
average of the student's weights (EMA .999), run un-gated, which begins as the same. Guessed: L_cog is on the prefix,
because a flow policy has no cognition token that it could be on. In its place, M compares every token to the mean token
of teacher and student: M ~ softmax_n(f_T . e_T + f_S . e_S) / sqrt(D), without a gradient. The expert skips along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lithe.families.base import Family
from lithe.methods._depth import check
from lithe.methods._read import before, deepest
from lithe.methods._watch import PATIENCE, Watch
from lithe.methods.base import Method, Step
from lithe.routers.base import pooled
from lithe.surgery import InstallRouter, Op
from lithe.types import Batch, Draw, Route, Tap

HEADS = 8


@dataclass(frozen=True, kw_only=True)
class Mole(Method):
    """Layer router with cognition self-distillation."""

    paper: ClassVar[str] = "MoLe-VLA, arXiv 2503.20384"

    keep: int = 0  # k, layers that run for every observation; 0 = half of them
    cog: float = 0.5  # lambda_2
    reverse: float = 0.5  # lambda_1, the part of reverse KL in L_cog
    balance: float = 0.1  # lambda_3
    interest: Literal["both", "uniform"] = "both"  # uniform = every valid token counts alike
    width: int = 0  # of the router; 0 = a quarter of the trunk's, as in the paper
    teacher_draws: int = 0  # noise draws that the teacher is asked about; 0 = all, 1 = cheapest and the same losses
    seed: int = 0  # of the router's weights

    def cut(self, teacher: Family) -> list[Op]:
        depth, quarter = teacher.depth("trunk"), teacher.streams.prefix // 4
        keep = self._kept(depth)
        check(depth, keep)
        if not 0 <= self.reverse <= 1:
            raise ValueError(f"method.reverse is the part of one of two terms: between 0 and 1, not {self.reverse}")
        if self.width < 0 or self.width % HEADS:
            raise ValueError(f"method.width must be a multiple of {HEADS}, the router's heads, not {self.width}")
        width = self.width or max(HEADS, quarter - quarter % HEADS)
        return [InstallRouter("star", {"keep": keep, "width": width, "heads": HEADS}, self.seed)]

    def _kept(self, depth: int) -> int:
        return self.keep or (depth + 1) // 2

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        seen = before(teacher.depth("trunk")) if self.cog else ()
        return seen, seen

    def asked(self, batch: Batch, draw: Draw) -> tuple[Batch, Draw]:
        return batch, draw.first(self.teacher_draws) if self.teacher_draws else draw

    def aux(self, teacher: Family) -> nn.ModuleDict:
        return nn.ModuleDict({"watch": Watch()})

    def loss(self, step: Step) -> dict[str, Tensor]:
        out, teacher_out = step.outs
        terms = {"task": step.student.task_loss(out)}
        if self.cog:
            mine, theirs = deepest(out, teacher_out, step.student.depth("trunk"))
            mimic, divergence = cognition(mine, theirs, out.prefix_BN, self.interest == "both")
            terms["kd/mimic"] = self.cog * (1 - self.reverse) * mimic
            terms["kd/reverse"] = self.cog * self.reverse * divergence
        assert out.route is not None
        return terms | self._gates(out.route, step)

    def _gates(self, route: Route, step: Step) -> dict[str, Tensor]:
        """What is asked of the router, and whether it chooses at all; nothing where the route was given."""
        share_BL, gates_BL = route.share_BL, route.gates_BL
        if share_BL is None or gates_BL is None:
            return {}
        terms = {"reg/balance": self.balance * (share_BL.detach() * gates_BL).mean()} if self.balance else {}
        alike_BL = (share_BL.detach() == share_BL.detach()[:1]).float()
        choosing = len(share_BL) > 1 and self._kept(share_BL.shape[1]) < share_BL.shape[1]  # else there is no choice
        terms["note/collapsed"] = step.aux["watch"](alike_BL, step.progress, choosing and step.progress > PATIENCE)
        return terms

    def remark(self, values: dict[str, float]) -> str:
        if values.get("note/collapsed", 0.0) > PATIENCE:
            return (
                "the router runs the same layers for every observation, as a static cut would without it: raise "
                "method.balance, or train longer before you judge it"
            )
        return ""


def cognition(student_BND: Tensor, teacher_BND: Tensor, valid_BN: Tensor, weigh: bool) -> tuple[Tensor, Tensor]:
    """Squared difference and reverse KL of two streams, each a mean over samples of the mean over tokens of interest.

    Both are 0 with no gradient for equal streams, to the last bit.
    """
    mine, theirs = _unit(student_BND), _unit(teacher_BND)
    weight_BN = _interest(mine.detach(), theirs, valid_BN) if weigh else valid_BN / valid_BN.sum(1, keepdim=True)
    squared_BN = (mine - theirs).square().mean(dim=-1)
    log_s, log_t = mine.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    p_s, p_t = log_s.exp(), log_t.exp()
    divergence_BN = (p_s * (log_s - log_t) - p_s + p_t).sum(dim=-1)  # the last two cancel, and keep it above 0
    return (weight_BN * squared_BN).sum(1).mean(), (weight_BN * divergence_BN).sum(1).mean()


def _interest(mine_BND: Tensor, theirs_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """The product of two attentions of a mean token over all tokens, [B, N], normalised; 0 for padding."""
    scores = torch.zeros_like(valid_BN, dtype=torch.float32)
    for x in (mine_BND, theirs_BND):
        scores = scores + (x * pooled(x, valid_BN)[:, None]).sum(dim=-1) / x.shape[-1] ** 0.5
    return scores.masked_fill(~valid_BN, float("-inf")).softmax(dim=-1)


def _unit(x_BND: Tensor) -> Tensor:
    """Every token at unit root mean square, in float32."""
    x = x_BND.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
