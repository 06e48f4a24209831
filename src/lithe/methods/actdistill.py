"""ActDistill: a router that skips layers, distilled through what small graph heads read in the tokens of every layer.

Paper: "ActDistill: General Action-Guided Self-Derived Distillation for Efficient Vision-Language-Action Models",
arXiv 2511.18082. Stage "heads" fits one head a layer to the frozen teacher: mean over layers of |a_l - a|^2. Stage
"distil" trains student, router and a copy of the heads; s is a head's capsule, C the cosines of a batch's capsules:

    L = task L_task + lambda_budget (mean g - rho)^2 + balance Var_l(g)
        + mean_l omega_l [ alpha (|s_l/|s_l| - t_l/|t_l||^2 / 2 + eta MSE(C_S, C_T))
                           + beta (|a_l - a|^2 + |a_l - a_T,l|^2 + |a_l - sg a_l-1|^2) ]

Departs from the released code, whose defects sections 6 to 8 of our notes list: the teacher has neither router nor
dropout; a gate is 0 or 1 with a straight-through gradient and mixes a layer with its input, so that training computes
what skipping does; a budget asks for sparsity; heads have a bottleneck (`_graph.py`); half a squared distance stands
for 1 - cos, which rounding keeps from 0; layers are averaged, and a head answers with the current action. Guessed: the
budget counts layers that run (`budget_on`), because gates that all wait just below the threshold meet a budget of 0.45
and run nothing; it grows over a warm-up. In flow policies the tokens are the prefix's, and a skipped layer's capsule is
that of its input. Nothing reads the stream behind the last layer that runs, where the paper's weights omega count most:
the mean over layers is one over streams that are read (`counted`), and `features: final` compares the deepest of them.
Not here: `released` gates that scale the stream, and annealed ones. The router's last layer begins at 0 and `start`,
not at N(0, .02), so that every layer runs at first.
Guessed too: `heads_share` and `heads_lr`. The paper freezes the vision tower: set `train.freeze: [vision.]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.families.base import Family
from lithe.methods._graph import Heads, HeadSizes, depth_weights, frozen, squares
from lithe.methods._read import before, deepest, read, runs
from lithe.methods._watch import PATIENCE, Watch
from lithe.methods.base import Method, Stage, Step
from lithe.routers import gates
from lithe.surgery import InstallRouter, Op
from lithe.types import Batch, Draw, Out, Route, Tap

TINY = 1e-6  # where nothing counts, the mean over it is 0
FIRST = 1e-3  # of the stage: the budget's warm-up begins just above 0, as that of the learning rate does


@dataclass(frozen=True, kw_only=True)
class ActDistill(Method):
    """Skip layers by observation; distil per layer, guided by actions."""

    paper: ClassVar[str] = "ActDistill, arXiv 2511.18082"

    budget: float = 0.45  # rho, share of the layers that run
    lambda_budget: float = 1.0
    budget_on: Literal["share", "gate"] = "share"  # mean of the hard decisions, or of the probabilities
    warmup: float = 0.1  # share of the stage over which lambda_budget grows
    balance: float = 0.0  # lambda_bal; released: 0.3, which asks for equal gates and not for few
    task: float = 1.0
    alpha: float = 1.0  # weight of the capsules
    eta: float = 0.5  # of their structure, relative to alpha
    beta: float = 1.0  # beta_a, weight of the actions
    gamma: float = 2.0  # deeper layers weigh more; 0 = all the same
    layers: Literal["mean", "sum"] = "mean"  # released: sum
    counted: Literal["read", "run", "all"] = "read"  # streams that a later layer reads; those of layers that run; all
    features: Literal["capsules", "final", "none"] = "capsules"  # final: only the deepest stream that is read
    graph: Literal["gat", "mlp_pool"] = "gat"  # mlp_pool: no graph
    target: Literal["current", "chunk", "last"] = "current"  # what heads predict; released: last
    neighbours: int = 8  # k
    inner: int = 256  # d_g
    capsule: int = 512  # d_s
    heads_share: float = 0.15  # of the steps, for the first stage
    heads_lr: float = 4.0  # its learning rate, as a factor
    start: float = 2.0  # logit of every gate before training
    threshold: float = 0.5
    always_on: tuple[int, ...] = ()  # layers that the router may not skip
    router_width: int = 512
    train: tuple[str, ...] = ("",)  # what of the student the second stage trains, by prefix; "" = all
    teacher_draws: int = 0  # noise draws that the teacher is asked about; 0 = all, 1 = cheapest and the same losses
    seed: int = 0

    def __post_init__(self) -> None:
        gates.check(self.start, self.threshold)
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget is the share of layers that run: choose it above 0, at most 1, not {self.budget}")
        if not 0 < self.heads_share < 1 or not 0 <= self.warmup < 1:
            raise ValueError("heads_share and warmup are shares of the training: choose them between 0 and 1")
        if self.inner < 2 or min(self.neighbours, self.capsule, self.router_width) < 1:
            raise ValueError("neighbours, capsule and router_width must be at least 1, inner at least 2")
        if self.features == "capsules" and not (self.alpha or self.beta):
            raise ValueError("with alpha and beta 0 no head is read: say features: none")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.features != "none"

    def cut(self, teacher: Family) -> list[Op]:
        depth, always = teacher.depth("trunk"), len(set(self.always_on))
        if self.lambda_budget and self.budget < always / depth:
            raise ValueError(
                f"no route can meet method.budget {self.budget}: always_on runs {always} of {depth} layers whatever "
                f"the router says; set budget to at least {always / depth:.2f}, or name fewer layers in always_on"
            )
        settings = {"start": self.start, "threshold": self.threshold, "always_on": self.always_on}
        return [InstallRouter("gates", {"width": self.router_width, **settings}, self.seed)]

    def stages(self) -> list[Stage]:
        trained = (*self.train, "router.")
        if self.features != "capsules":
            return [Stage("distil", train=trained)]
        heads = ("aux.heads.",)
        return [
            Stage("heads", self.heads_share, heads, self.heads_lr, student=False),
            Stage("distil", 1 - self.heads_share, trained + heads),
        ]

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        depth = teacher.depth("trunk")
        behind = tuple(Tap("prefix", layer) for layer in range(1, depth + 1))
        seen = {"capsules": behind, "final": before(depth), "none": ()}[self.features]
        return seen, seen

    def asked(self, batch: Batch, draw: Draw) -> tuple[Batch, Draw]:
        return batch, draw.first(self.teacher_draws) if self.teacher_draws else draw

    def aux(self, teacher: Family) -> nn.ModuleDict:
        held: dict[str, nn.Module] = {"watch": Watch()}
        if self.features == "capsules":
            spec, k = teacher.spec, self.neighbours if self.graph == "gat" else 0
            outputs = spec.action_dim * (spec.horizon if self.target == "chunk" else 1)
            sizes = HeadSizes(teacher.streams.prefix, self.inner, self.capsule, outputs, k)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                held["heads"], other = (Heads(sizes, teacher.depth("trunk")) for _ in range(2))
            held["teacher_heads"] = frozen(other)  # of no use before `enter`
        return nn.ModuleDict(held)

    def enter(self, stage: Stage, student: Family, aux: nn.ModuleDict) -> None:
        """What was fitted to the teacher becomes the teacher's for good; the student's heads go on from there."""
        if stage.name == "distil" and self.features == "capsules":
            aux["teacher_heads"].load_state_dict(aux["heads"].state_dict())

    def loss(self, step: Step) -> dict[str, Tensor]:
        if not step.stage.student:
            assert step.teacher_out is not None
            actions_LBF = step.aux["heads"](*_read(step.teacher_out))[1]
            return {"reg/heads": squares(actions_LBF, self._wanted(step)).mean()}
        assert step.out is not None
        assert step.out.route is not None
        terms = {"task": self.task * step.student.task_loss(step.out)}
        if self.features == "capsules":
            terms |= self._capsules(step)
        elif self.features == "final":
            out, teacher_out = step.outs
            streams = deepest(out, teacher_out, step.student.depth("trunk"))
            terms["kd/final"] = self.alpha * final(*streams, teacher_out.prefix_BN)
        return terms | self._gates(step.out.route, step)

    def _wanted(self, step: Step) -> Tensor:
        """The true action that heads answer with [B, F], in model units without padded dimensions."""
        assert step.batch.actions_BHA is not None
        real_BHA = step.batch.actions_BHA[..., : step.student.spec.action_dim].float()
        return {"current": real_BHA[:, 0], "last": real_BHA[:, -1], "chunk": real_BHA.flatten(1)}[self.target]

    def _capsules(self, step: Step) -> dict[str, Tensor]:
        out, teacher_out = step.outs
        with torch.no_grad():
            theirs_LBJ, taught_LBF = step.aux["teacher_heads"](*_read(teacher_out))
        mine_LBJ, made_LBF = step.aux["heads"](*_read(out))
        previous_LBF = torch.cat([torch.zeros_like(made_LBF[:1]), made_LBF[:-1].detach()])
        mine_LBJ, theirs_LBJ = (F.normalize(x, dim=-1) for x in (mine_LBJ, theirs_LBJ))
        structure_LBB = (mine_LBJ @ mine_LBJ.mT - theirs_LBJ @ theirs_LBJ.mT).square()
        counted_LB = self._counted(out, len(mine_LBJ)).to(mine_LBJ)
        others_L1B = counted_LB[:, None, :] / counted_LB.sum(dim=1).clamp_min(1)[:, None, None]
        found = {
            "kd/align": (self.alpha, (mine_LBJ - theirs_LBJ).square().sum(dim=-1) / 2),
            "kd/structure": (self.alpha * self.eta, (others_L1B * structure_LBB).sum(dim=-1)),
            "kd/action": (self.beta, squares(made_LBF, taught_LBF)),
            "reg/action": (self.beta, squares(made_LBF, self._wanted(step))),
            "reg/neighbour": (self.beta, squares(made_LBF, previous_LBF)),
        }
        return {name: weight * self._over_layers(x, counted_LB) for name, (weight, x) in found.items() if weight}

    def _counted(self, out: Out, depth: int) -> Tensor:
        """Which capsules count, [L, B]."""
        ran_BL = runs(out, depth)
        return {"read": read(out, depth), "run": ran_BL, "all": torch.ones_like(ran_BL)}[self.counted].T

    def _over_layers(self, loss_LB: Tensor, counted_LB: Tensor) -> Tensor:
        """One number: the mean over samples of the mean (or sum) over what counts, weighted by depth."""
        weight_LB = depth_weights(self.gamma, len(loss_LB)).to(loss_LB)[:, None] * counted_LB
        loss_B = (weight_LB * loss_LB).sum(dim=0)
        if self.layers == "mean":
            loss_B = loss_B / weight_LB.sum(dim=0).clamp_min(TINY)
        return loss_B.mean()

    def _gates(self, route: Route, step: Step) -> dict[str, Tensor]:
        """What is asked of the router, and what a user should see of it; nothing where the route was given."""
        share_BL, gates_BL = route.share_BL, route.gates_BL
        if share_BL is None or gates_BL is None:
            return {}
        terms = {}
        if self.lambda_budget:
            grown = min(1.0, (step.progress + FIRST) / (self.warmup + FIRST))
            mean = (share_BL if self.budget_on == "share" else gates_BL).mean()
            terms["reg/budget"] = self.lambda_budget * grown * (mean - self.budget).square()
        if self.balance:
            terms["reg/balance"] = self.balance * gates_BL.mean(dim=0).var(correction=0)
        terms["note/layers_run"], terms["note/gate"] = share_BL.detach().mean(), gates_BL.detach().mean()
        free_BL = share_BL.detach()[:, [layer for layer in range(share_BL.shape[1]) if layer not in self.always_on]]
        terms["note/collapsed"] = step.aux["watch"](free_BL, step.progress, watching=step.progress > self.warmup)
        return terms

    def remark(self, values: dict[str, float]) -> str:
        collapsed = values.get("note/collapsed", 0.0)
        if collapsed > PATIENCE and self.budget < 1:
            return "the router runs every layer for every observation: raise method.lambda_budget or lower method.start"
        if collapsed < -PATIENCE:
            return "the router skips every layer that it may skip: lower method.lambda_budget, or raise method.budget"
        return ""


def _read(out: Out) -> tuple[list[Tensor], Tensor]:
    """The streams behind all layers, and which of their tokens are real."""
    return [out.taps[Tap("prefix", layer)] for layer in range(1, len(out.taps) + 1)], out.prefix_BN


def final(mine_BND: Tensor, theirs_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Squared error of two streams, real tokens only, relative to the teacher's size."""
    mine, theirs, valid_BN = mine_BND.float(), theirs_BND.float(), valid_BN.float()
    error_BN, size_BN = squares(mine, theirs), theirs.square().mean(dim=-1)
    return (error_BN * valid_BN).sum() / (size_BN * valid_BN).sum()
