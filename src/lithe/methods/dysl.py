"""DySL-VLA: a frozen policy learns to jump over layers, observation by observation, and less where it moves abruptly.

Paper: "DySL-VLA", arXiv 2602.22896. We know neither its losses nor its sizes and thresholds: each guess is a knob.
    adapters     sum |E_i(h_i) - h_nxt(i)|^2 / sum |h_nxt(i) - h_i|^2       on the teacher's streams; mean over i
    jumps        L_task + |v_S - v_T|^2 + |h_S - h_T|^2 / |h_T|^2   jumping as acting does, from one random i a segment
    controllers  the same - skip * mean q_i          where layer nxt(i) reads q_i E_i(h_i) + (1 - q_i) F(h_i) instead
Guessed: all of `routers/controllers.py`; the score; adapters for the expert too, blind to flow time; hidden states seen
where the last layer reads the prefix and where actions leave the expert. Departs: `jumps` is ours (`second: 0` is the
paper's two stages); the velocity, not the action, is imitated; all stages train at one rate; a step asks the same
positions of all samples; eta and eta1 are the 0.9 quantile of |dC| in demonstrations, not in rollouts, and before
`calibrated` those of a port to another policy, while static layers are then spread evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods._watch import PATIENCE, Watch
from lithe.methods.base import Method, Stage, Step
from lithe.routers._continuity import Guidance, Rule, changes
from lithe.routers.controllers import Controllers, Jump, parameters, segments
from lithe.scores import agreed
from lithe.surgery import InstallRouter, Op
from lithe.types import Crossing, Out, Route, Tap

STREAMS = ("prefix", "suffix")
JUMPS = "jumps"  # the stage
MOST = 30  # the router may have one parameter for so many of the policy's
RANK, HIDDEN = 128, 104  # those that fit what is known of the paper's 14 M parameters at width 2048
FITTED = ("tokens", "clip", "prefix", "suffix")  # what stage `adapters` reads,
COMPARED = ("task", "velocity", "hidden", "positions")  # a stage in which the student runs,
ASKED = ("skip", "threshold")  # and one in which controllers are asked
CALLS = 8  # chunks of a demonstration that eta is estimated from, after those that fill the window


@dataclass(frozen=True, kw_only=True)
class Dysl(Method):
    """Adapters and controllers on a frozen policy: adapters first, then controllers with them."""

    paper: ClassVar[str] = "DySL-VLA, arXiv 2602.22896"

    share: float = 0.2  # of the layers, the most informative ones: static, as is the last
    static: tuple[int, ...] = ()  # these instead; filled in by calibration
    split: bool = True  # False, an ablation: every layer but the last is dynamic
    scores: Literal["cos", "cka", "gate", "fisher", "taylor"] = "cos"  # high = informative
    samples: int = 64  # frames to calibrate on
    rank: int = 0  # of the adapters; 0 = the largest power of two up to 128 that the limit on parameters allows
    controller: int = 0  # hidden width of a controller; 0 = 104, or an eighth of a prefix narrower than that
    threshold: float = 0.5  # q above which a controller fires

    jump: Jump = "learned"  # always, random: controls with trained adapters and no controllers, nor their steps
    rate: float = 0.0  # of random jumps, at every dynamic layer that is reached

    pre_skip: bool = True  # allow points follow the smoothness C of the movement
    post_skip: bool = True  # a chunk at which C begins to drop is computed again by every layer
    k: int = 5  # steps in C
    eta: float | None = None  # change of C for one layer, in model units; None = calibrated
    eta1: float | None = None  # drop of C that is verified; None = calibrated
    cooldown: int = 0  # chunks without verification after one
    rule: Rule = "ceiling"  # how allow points round; see routers/_continuity.py
    dead_zone: float = 0.0  # changes of C that move no allow point
    printed_sign: bool = False  # an ablation: allow points move as printed, against the paper's text

    first: float = 0.3  # share of the steps in which adapters are fitted to the teacher's streams
    second: float = 0.4  # share in which they alone are trained by jumping; controllers have the rest of the steps
    one_stage: bool = False  # an ablation: everything at once, from untrained adapters
    tokens: Literal["together", "each"] = "together"  # each: every token's error relative to its own distance
    clip: float = 0.0  # a token weighs no more than one that goes `clip` times the median squared distance; 0 = off
    prefix: float = 1.0  # weights of the adapters' losses
    suffix: float = 1.0
    task: float = 1.0
    velocity: float = 1.0  # lambda_kd
    hidden: float = 1.0  # beta
    skip: float = 1e-3  # lambda_skip; raise it until the held-out action error grows
    positions: Literal["segment", "model"] = "segment"  # one random position for each segment, or one in all

    # -- the cut -----------------------------------------------------------------------------------------------------

    def calibrated(self, teacher: Family, data: Data) -> Dysl:
        """With the knobs that were left to the data filled in. Raises ValueError for data that cannot say."""
        self._check()
        static, eta, eta1 = self.static, self.eta, self.eta1
        if self.split and not static:
            static = informative(agreed(teacher, data, self.scores, self.samples), self.share)
        if (self.pre_skip and eta is None) or (self.post_skip and eta1 is None):
            large = self._large_change(teacher, data)
            eta, eta1 = (large if eta is None else eta), (large if eta1 is None else eta1)
        return replace(self, static=static, eta=eta, eta1=eta1)

    def _large_change(self, teacher: Family, data: Data) -> float:
        """The |dC| that one change in ten exceeds, over demonstrations executed like the policy's chunks, each within
        one episode. Smaller ones are how any movement goes: measured by their median, allow points would take back
        most of the jumps, against what the paper's times say."""
        replan = teacher.spec.replan
        frames = np.random.default_rng(0).choice(len(data), min(self.samples, len(data)), replace=False)
        raw = data.samples(frames, (-(-(self.k + 1) // replan) + CALLS) * replan)
        actions = teacher.batch(raw).actions_BHA
        assert actions is not None, "demonstrations have actions"
        moved_BHA = actions[..., : teacher.spec.action_dim].numpy()
        rows = [row[~padded] for row, padded in zip(moved_BHA, raw["padded"], strict=True)]
        found = [abs(change) for row in rows for change in changes(row, replan, self.k)]
        large = float(np.quantile(found, 0.9)) if found else 0.0
        if not large > 0:
            raise ValueError(
                "the demonstrations do not say how smoothness changes (episodes too short, or actions that stand "
                "still): set method.eta and method.eta1, or method.pre_skip and method.post_skip to false"
            )
        return large

    def cut(self, teacher: Family) -> list[Op]:
        self._check()
        depth = teacher.depth("trunk")
        static = self.static or (spread(depth, part(depth, self.share)) if self.split else (depth - 1,))
        dynamic = sum(behind - first for first, behind in segments(depth, static))
        hidden = self.controller or max(1, min(HIDDEN, teacher.streams.prefix // 8))
        known = ("pre_skip", "post_skip", "k", "eta", "eta1", "cooldown", "rule", "dead_zone", "printed_sign")
        values: dict[str, Any] = {name: getattr(self, name) for name in known}
        guidance = Guidance(**{name: value for name, value in values.items() if value is not None})
        settings = {
            "static": tuple(static),
            "rank": self._fitting(teacher, dynamic, hidden),
            "hidden": hidden,
            "threshold": self.threshold,
            "jump": self.jump,
            "rate": self.rate,
            "guidance": asdict(guidance),
        }
        return [InstallRouter("controllers", settings)]

    def _fitting(self, teacher: Family, dynamic: int, hidden: int) -> int:
        """The rank. Raises ValueError when the router would be too large a part of the policy."""
        most = sum(p.numel() for p in teacher.parameters()) / MOST
        tried = [self.rank] if self.rank else [RANK >> n for n in range(RANK.bit_length())]
        for rank in tried:
            if parameters(teacher.streams, dynamic, rank, hidden) <= most:
                return rank
        size = parameters(teacher.streams, dynamic, tried[-1], hidden)
        raise ValueError(
            f"adapters of rank {tried[-1]} and controllers of width {hidden} for {dynamic} layers have {size:,} "
            f"parameters, more than 1/{MOST} of this policy ({most:,.0f}): lower method.rank or method.controller, or "
            "make more layers static (method.share, method.static)"
        )

    def _check(self) -> None:
        """Raises ValueError for knobs that contradict, or would ignore, each other."""
        stages, unread = ", ".join(stage.name for stage in self.stages()), " or ".join(self._unread())
        prior = self.rule != "ceiling" or self.dead_zone or self.printed_sign
        wrong = {
            "method.static, or method.split: false, not both": self.static and not self.split,
            "method.one_stage trains controllers; method.jump has none": self.one_stage and self.jump != "learned",
            f"method: no stage of this training ({stages}) reads {unread}": unread,
            "method.rule, dead_zone and printed_sign need method.pre_skip": prior and not self.pre_skip,
            "method.cooldown needs method.post_skip": self.cooldown and not self.post_skip,
            "method.clip is for tokens that are weighed together": self.clip and self.tokens == "each",
            "method.share must be above 0 and below 1": not 0 < self.share < 1,
            "method.threshold must be above 0 and below 1": not 0 < self.threshold < 1,
            "method.first must be above 0 and method.second not below, with less than 1 together": not (
                self.first > 0 <= self.second < 1 - self.first
            ),
        }
        for what, found in wrong.items():
            if found:
                raise ValueError(f"{what}: change one of them")

    def _unread(self) -> list[str]:
        """The knobs that were turned, and that no stage of this training reads."""
        jumps, asks = self.second > 0 and not self.one_stage, self.jump == "learned"
        readers = {
            FITTED: not self.one_stage,
            COMPARED: jumps or asks,
            ASKED: asks,
            ("first",): not self.one_stage and (jumps or asks),
            ("second",): not self.one_stage,
        }
        idle = [name for names, read in readers.items() if not read for name in names]
        return [name for name in idle if getattr(self, name) != getattr(type(self), name)]

    # -- training ----------------------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        if self.one_stage:
            return [Stage("together", train=("router.",))]
        adapters = Stage("adapters", self.first, ("router.adapters.",), student=False)
        found = [adapters]
        if self.second:
            found.append(Stage(JUMPS, self.second, adapters.train))
        if self.jump == "learned":
            found.append(Stage("controllers", 1 - self.first - self.second, ("router.",)))
        return found

    def taps(self, student: Family, teacher: Family) -> tuple[Sequence[Tap], Sequence[Tap]]:
        stages, router = self.stages(), _router(student)
        places = sorted({*router.landings, *router.landings.values()})
        shown = [Tap(stream, i) for stream in STREAMS for i in places if not stages[0].student]
        compared = self._compared(student) if stages[-1].student else ()
        return compared, tuple(dict.fromkeys([*shown, *compared]))

    def _compared(self, student: Family) -> tuple[Tap, ...]:
        """What the last layer reads of the prefix, and what actions are made of."""
        depth = student.depth("trunk")
        return (Tap("prefix", depth - 1), Tap("suffix", depth)) if self.hidden else ()

    def route(self, student: Family, stage: Stage, generator: torch.Generator) -> Route | None:
        if not stage.student:
            return None
        found = _router(student).segments
        asked = [first + _below(behind - first, generator) for first, behind in found]
        if self.positions == "model":
            asked = [asked[_below(len(asked), generator)]]
        if stage.name == JUMPS:
            return jumping(student, asked)
        return replace(Route.full(student.depth("trunk")), asked=tuple(asked))

    def aux(self, teacher: Family) -> nn.ModuleDict:
        return nn.ModuleDict({"watch": Watch()})

    def loss(self, step: Step) -> dict[str, Tensor]:
        if not step.stage.student:
            assert step.teacher_out is not None
            weights = {"prefix": self.prefix, "suffix": self.suffix}
            return {f"reg/{s}": w * self._missed(step.student, s, step.teacher_out) for s, w in weights.items()}
        student, (out, teacher_out) = step.student, step.outs
        terms = {
            "task": self.task * student.task_loss(out),
            "kd/velocity": self.velocity * student.imitation_loss(out, teacher_out),
        }
        for tap in self._compared(student):
            valid = out.prefix_BN if tap.kind == "prefix" else None
            terms[f"kd/{tap.kind}"] = self.hidden * relative(out.taps[tap], teacher_out.taps[tap], valid)
        crossings = out.route.crossings if out.route else ()
        asked = [crossing.share_B for crossing in crossings if crossing.share_B is not None]
        if asked:
            q_SB = torch.stack(asked)
            terms["reg/skip"] = -self.skip * q_SB.mean()  # q is the probability to skip: q shall rise
            fires_SB = (q_SB.detach() > self.threshold).float()
            terms["note/fires"] = fires_SB.mean()
            terms["note/collapsed"] = step.aux["watch"](fires_SB, step.progress, step.progress > PATIENCE)
        return terms

    def remark(self, values: dict[str, float]) -> str:
        collapsed = values.get("note/collapsed", 0.0)
        if collapsed > PATIENCE:
            return (
                "every controller fires for every observation: method.jump=always does the same without controllers; "
                "lower method.skip, or raise method.threshold"
            )
        if collapsed < -PATIENCE:
            return "no controller fires for any observation: raise method.skip, or lower method.threshold"
        return ""

    def _missed(self, student: Family, stream: str, teacher_out: Out) -> Tensor:
        """How far the adapters end from where the teacher's layers went: exactly 1 for adapters that do nothing.

        The mean over dynamic layers; one whose stream does not change at all has nothing to learn and does not count.
        """
        router, found, counted = _router(student), [], []
        for i, end in router.landings.items():
            before, behind = (teacher_out.taps[Tap(stream, at)].float() for at in (i, end))
            valid_BN = (
                teacher_out.prefix_BN if stream == "prefix" else before.new_ones(before.shape[:2], dtype=torch.bool)
            )
            wanted_BN = (behind - before).square().sum(-1) * valid_BN
            missed_BN = (behind - router.bridge(stream, i, before)).square().sum(-1) * valid_BN
            weight_BN = self._weight(wanted_BN, valid_BN)
            whole = (weight_BN * wanted_BN).sum()
            counted.append(whole > 0)
            found.append((weight_BN * missed_BN).sum() / torch.where(whole > 0, whole, 1))
        return torch.stack(found).sum() / torch.stack(counted).sum().clamp_min(1)

    def _weight(self, wanted_BN: Tensor, valid_BN: Tensor) -> Tensor:
        """How much each token counts: a few of enormous size could otherwise be all that is learned."""
        if self.tokens == "each":
            return torch.where(wanted_BN > 0, 1 / wanted_BN, 0)
        if not self.clip:
            return torch.ones_like(wanted_BN)
        limit = self.clip * wanted_BN[valid_BN].median()
        return torch.where(wanted_BN > limit, limit / wanted_BN, 1)


def informative(values: Sequence[float], share: float) -> tuple[int, ...]:
    """The layers of the highest scores, `share` of all, and the last one; of equal ones, the earlier."""
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return tuple(sorted({*ranked[: part(len(values), share)], len(values) - 1}))


def part(depth: int, share: float) -> int:
    """At least `share` of the layers, not one more because 0.55 * 20 is 11.000000000000002."""
    return ceil(share * depth - 1e-9)


def spread(depth: int, count: int) -> tuple[int, ...]:
    """`count` static layers that end equal segments."""
    return tuple(round((n + 1) * depth / count) - 1 for n in range(count))


def relative(a: Tensor, b: Tensor, valid_BN: Tensor | None) -> Tensor:
    """|a - b|^2 / |b|^2 over valid tokens; b is the measure and has no gradient."""
    missed, size = ((x.float().square()).sum(-1) for x in (a.float() - b.float(), b))
    if valid_BN is not None:
        missed, size = missed * valid_BN, size * valid_BN
    return missed.sum() / size.sum()


def jumping(student: Family, asked: Sequence[int]) -> Route:
    """The way that acting takes when the controllers of these layers fire: layers that are jumped over do not run."""
    ways = tuple(Crossing(i, _router(student).landings[i]) for i in asked)
    skipped = [i for way in ways for i in range(way.start, way.end)]
    return replace(Route.without(student.depth("trunk"), *skipped), crossings=ways)


def _router(student: Family) -> Controllers:
    assert isinstance(student.router, Controllers), "this student was cut by another method"
    return student.router


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
