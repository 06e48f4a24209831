"""Every row of the contract is shown copies with one planted bug each, and has to refuse them, for the right reason."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lithe import checkpoint, recipe, surgery
from lithe.families import _prompt, _routing, pi
from lithe.families.pi import Pi
from lithe.methods.base import Stage
from lithe.methods.shallow_pi import ShallowPi
from lithe.runtimes.eager import Eager
from lithe.surgery import KeepLayers
from lithe.teacher import Teacher
from lithe.types import Draw, Route

from . import checks
from .cases import Case

distill = import_module("lithe.distill")  # on the package, the verb owns the name
Bug = Callable[[Case, pytest.MonkeyPatch], Case]
SOUND = Case(Pi, {"variant": "pi05"}, ShallowPi, (Eager,))  # the contract itself finds nothing wrong with it
PLANTED: list[tuple[Any, str, Bug]] = []


def planted(row: Any, complaint: str) -> Callable[[Bug], Bug]:
    """Register a bug that `row` must notice, with words that its complaint must contain."""

    def add(bug: Bug) -> Bug:
        PLANTED.append((row, complaint, bug))
        return bug

    return add


def method(**overridden: Any) -> type[ShallowPi]:
    """Shallow-pi with methods replaced."""
    return type("Wrong", (ShallowPi,), {"__module__": ShallowPi.__module__, **overridden})


def family(**overridden: Any) -> type[Pi]:
    """Pi with methods replaced."""
    return type("Wrong", (Pi,), overridden)


def runtime(**overridden: Any) -> type[Eager]:
    """Eager with methods replaced."""
    return type("Wrong", (Eager,), overridden)


# -- 1 -----------------------------------------------------------------------------------------------------------------


@planted(checks.stacks_stay_in_lockstep, "cut differently")
def expert_keeps_other_layers_than_the_trunk(case, patch):
    wrong = [KeepLayers("trunk", (0, 3), {"expert.layers": (0, 1)})]
    return dataclasses.replace(case, method=method(cut=lambda self, teacher: wrong))


@planted(checks.stacks_stay_in_lockstep, "is numbered")
def layers_keep_their_old_numbers(case, patch):
    sound = KeepLayers.apply

    def apply(self, model):
        sound(self, model)
        for layer, number in zip(model.expert.layers, self.layers):
            layer.index = number

    patch.setattr(KeepLayers, "apply", apply)
    return case


@planted(checks.stacks_stay_in_lockstep, "out of step")
def depth_counter_is_forgotten(case, patch):
    sound = KeepLayers.apply

    def apply(self, model):
        depth = model.config.depth
        sound(self, model)
        model.config.depth = depth

    patch.setattr(KeepLayers, "apply", apply)
    return case


# -- 2 -----------------------------------------------------------------------------------------------------------------


def separate(patch: pytest.MonkeyPatch, field: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The teacher gets its own version of one field of the draw."""

    class Apart(Teacher):
        def __call__(self, batch, draw, taps=()):
            return super().__call__(batch, dataclasses.replace(draw, **{field: change(getattr(draw, field))}), taps)

    patch.setattr(distill, "Teacher", Apart)


@planted(checks.teacher_and_student_share_the_draw, "different noise")
def teacher_draws_its_own_noise(case, patch):
    separate(patch, "noise_BRHA", torch.randn_like)
    return case


@planted(checks.teacher_and_student_share_the_draw, "different time")
def teacher_draws_its_own_time(case, patch):
    separate(patch, "time_BR", torch.rand_like)
    return case


@planted(checks.teacher_and_student_share_the_draw, "different view")
def teacher_sees_another_augmentation(case, patch):
    separate(patch, "view_BVCYX", lambda view: view.roll(1, -1))
    return case


@planted(checks.teacher_and_student_share_the_draw, "same draw")
def every_step_repeats_the_first(case, patch):
    sound = distill.Trainer._load
    patch.setattr(distill.Trainer, "_load", lambda self, step: sound(self, 0))
    return case


# -- 3 and 4 -----------------------------------------------------------------------------------------------------------


@planted(checks.nothing_to_learn_when_whole, "has a gradient")
def divergence_is_zero_but_its_gradient_is_not(case, patch):
    def transfer(self, student, teacher, prefix):
        log_s, log_t = (self._log_attention(x, prefix) for x in (student, teacher))
        return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1).mean()

    return dataclasses.replace(case, method=method(transfer=transfer))


@planted(checks.nothing_to_learn_when_whole, "with every layer running")
def teacher_runs_in_another_precision(case, patch):
    class Precise(Teacher):
        def __call__(self, batch, draw, taps=()):
            with torch.autocast("cpu", enabled=False):
                return super().__call__(batch, draw, taps)

    patch.setattr(distill, "Teacher", Precise)
    return case


def without(name: str) -> Any:
    def loss(self, step):
        return {key: term for key, term in ShallowPi.loss(self, step).items() if key != name}

    return loss


@planted(checks.a_cut_has_to_be_paid_for, "'velocity' changes nothing")
def velocity_term_is_missing(case, patch):
    return dataclasses.replace(case, method=method(loss=without("kd/velocity")))


@planted(checks.a_cut_has_to_be_paid_for, "'attention' changes nothing")
def attention_term_is_missing(case, patch):
    return dataclasses.replace(case, method=method(loss=without("kd/attention")))


@planted(checks.a_cut_has_to_be_paid_for, "'task' changes nothing")
def weight_of_the_task_is_not_read(case, patch):
    def loss(self, step):
        return ShallowPi.loss(dataclasses.replace(self, task=1.0), step)

    return dataclasses.replace(case, method=method(loss=loss))


@planted(checks.a_cut_has_to_be_paid_for, "teaches nothing")
def term_is_cut_off_from_the_graph(case, patch):
    def loss(self, step):
        return {k: t.detach() if k == "kd/velocity" else t for k, t in ShallowPi.loss(self, step).items()}

    return dataclasses.replace(case, method=method(loss=loss))


@planted(checks.a_cut_has_to_be_paid_for, "for a cut student")
def student_is_the_whole_teacher(case, patch):
    sound = surgery.cut
    patch.setattr(surgery, "cut", lambda model, ops: sound(model, []))
    return case


# -- 5 and 6 -----------------------------------------------------------------------------------------------------------


@planted(checks.stages_train_what_they_claim, "bypass")
def stage_trains_what_does_not_exist(case, patch):
    return dataclasses.replace(case, method=method(stages=lambda self: [Stage(train=("bypass",))]))


@planted(checks.stages_train_what_they_claim, "action_in")
def way_into_the_expert_has_no_gradient(case, patch):
    def detached(self, *rest):
        tokens, cond, queries = Pi._embed_suffix(self, *rest)
        return tokens.detach(), cond, queries

    return dataclasses.replace(case, family=family(_embed_suffix=detached))


@planted(checks.stages_train_what_they_claim, "moved in stage")
def frozen_parameters_are_trained(case, patch):
    patch.setattr(distill.Trainer, "_choose", lambda self, stage: list(self.student.requires_grad_(True).parameters()))
    return case


@planted(checks.teacher_is_left_alone, "in training mode")
def teacher_is_left_in_training_mode(case, patch):
    class Training(Teacher):
        def __init__(self, model):
            super().__init__(model)
            model.train()

    patch.setattr(distill, "Teacher", Training)
    return case


@planted(checks.teacher_is_left_alone, "with gradients")
def teacher_builds_a_graph(case, patch):
    class Graph(Teacher):
        def __call__(self, batch, draw, taps=()):
            return self.model(batch, draw, taps)

    patch.setattr(distill, "Teacher", Graph)
    return case


@planted(checks.teacher_is_left_alone, "changed the teacher")
def student_shares_the_tensors_of_the_teacher(case, patch):
    def cut(model, ops):
        student = copy.deepcopy(model, memo={id(t): t for t in model.parameters()})
        surgery.replay(student, ops)
        return student

    patch.setattr(surgery, "cut", cut)
    return case


# -- 7 to 10 -----------------------------------------------------------------------------------------------------------


@planted(checks.survives_the_disk, "acts differently")
def weights_are_stored_in_half_precision(case, patch):
    sound = checkpoint.save
    patch.setattr(checkpoint, "save", lambda model, folder: sound(model, folder, torch.bfloat16))
    return case


@planted(checks.survives_the_disk, "acts differently")
def statistics_are_stored_wrongly(case, patch):
    sound = _prompt.Normalizer.save

    def save(self, path):
        other = copy.deepcopy(self)
        other.stats["observation.state"]["q99"] *= 1.5
        sound(other, path)

    patch.setattr(_prompt.Normalizer, "save", save)
    return case


@planted(checks.survives_the_disk, "acts differently")
def history_is_not_stored(case, patch):
    sound = checkpoint.save

    def save(model, folder):
        model.history = []
        return sound(model, folder)

    patch.setattr(checkpoint, "save", save)
    return case


@planted(checks.a_cut_is_data, "wrote to the teacher")
def cut_writes_to_the_teacher(case, patch):
    def cut(self, teacher):
        teacher.action_out.weight.data.zero_()
        return ShallowPi.cut(self, teacher)

    return dataclasses.replace(case, method=method(cut=cut))


@planted(checks.a_cut_is_data, "meta")
def cut_reads_weights(case, patch):
    def cut(self, teacher):
        norms = [layer.k_proj.weight.norm().item() for layer in teacher.trunk.layers]
        return [KeepLayers("trunk", (0, 3 if norms[3] > 0 else 2))]

    return dataclasses.replace(case, method=method(cut=cut))


@planted(checks.a_cut_is_data, "JSON")
def cut_is_not_json(case, patch):
    return dataclasses.replace(
        case, method=method(cut=lambda self, teacher: [KeepLayers("trunk", torch.tensor([0, 3]))])
    )


@planted(checks.refuses_wrong_tensors, "DID NOT RAISE")
def missing_tensors_stay_random(case, patch):
    sound = checkpoint.fill

    def fill(model, tensors, *rest):
        sound(model, {key: tensors.get(key, torch.rand(t.shape)) for key, t in model.state_dict().items()}, *rest)

    patch.setattr(checkpoint, "fill", fill)
    return case


@planted(checks.refuses_wrong_tensors, "DID NOT RAISE")
def surplus_tensors_are_ignored(case, patch):
    sound = checkpoint.fill

    def fill(model, tensors, *rest):
        sound(model, {key: t for key, t in tensors.items() if key in model.state_dict()}, *rest)

    patch.setattr(checkpoint, "fill", fill)
    return case


@planted(checks.refuses_wrong_keys, "DID NOT RAISE")
def unknown_knobs_are_dropped(case, patch):
    sound = recipe.strict

    def strict(kind, values, where):
        return sound(kind, {k: v for k, v in values.items() if k in {f.name for f in dataclasses.fields(kind)}}, where)

    patch.setattr(recipe, "strict", strict)
    return case


@planted(checks.refuses_wrong_keys, "did you mean")
def nothing_is_suggested(case, patch):
    patch.setattr(recipe, "suggestion", lambda word, known: "")
    return case


@planted(checks.refuses_wrong_settings, "DID NOT RAISE")
def unknown_settings_of_the_family_are_dropped(case, patch):
    sound = pi.PiConfig.parse
    known = {f.name for f in dataclasses.fields(pi.PiConfig)}
    patch.setattr(pi.PiConfig, "parse", lambda data: sound({k: v for k, v in data.items() if k in known}))
    return case


# -- 11 to 14 ----------------------------------------------------------------------------------------------------------


@planted(checks.runtimes_agree, "not close")
def runtime_has_its_own_arithmetic(case, patch):
    def chunk(self, batch, noise_BHA, trace=None):
        return Eager.chunk(self, batch, noise_BHA, trace) * 1.01

    return dataclasses.replace(case, runtimes=(runtime(chunk=chunk),))


@planted(checks.runtimes_agree, "mark on the weights")
def runtime_leaves_other_weights_behind(case, patch):
    def chunk(self, batch, noise_BHA, trace=None):
        self.model.action_out.bias.data += 1e-6
        return Eager.chunk(self, batch, noise_BHA, trace)

    return dataclasses.replace(case, runtimes=(runtime(chunk=chunk),))


@planted(checks.runtimes_agree, "mark on the actions")
def runtime_leaves_a_hook_behind(case, patch):
    def chunk(self, batch, noise_BHA, trace=None):
        self.model.action_out.register_forward_hook(lambda module, inputs, output: output + 1e-6)
        return Eager.chunk(self, batch, noise_BHA, trace)

    return dataclasses.replace(case, runtimes=(runtime(chunk=chunk),))


@planted(checks.soft_and_hard_routes_are_exact, "is not the mix")
def mix_is_inexact_at_one(case, patch):
    def leave(self, i, before, after):
        if self.route.share_BL is None:
            return after
        return before + self.route.share_BL[:, i, None, None].to(after.dtype) * (after - before)

    patch.setattr(_routing.Walk, "leave", leave)
    return case


@planted(checks.soft_and_hard_routes_are_exact, "is not the mix")
def expert_ignores_the_share(case, patch):
    sound = _routing.Walk.leave

    def leave(self, i, before, after):
        return after if self.stream == "suffix" else sound(self, i, before, after)

    patch.setattr(_routing.Walk, "leave", leave)
    return case


@planted(checks.soft_and_hard_routes_are_exact, "is not skipping")
def route_skips_the_wrong_layer(case, patch):
    sound = _routing.check

    def check(route, depth):
        route = sound(route, depth)
        return dataclasses.replace(route, run=route.run[::-1])

    patch.setattr(pi, "check", check)
    return case


@planted(checks.sessions_do_not_leak, "neighbour")
def noise_generator_is_shared(case, patch):
    generator = torch.Generator()

    def reset(self, seed=0):
        Eager.reset(self, seed)
        self.generator = generator.manual_seed(seed)

    return dataclasses.replace(case, runtimes=(runtime(reset=reset),))


@planted(checks.sessions_do_not_leak, "its past")
def reset_keeps_the_memory_of_the_last_episode(case, patch):
    def reset(self, seed=0):
        if "generator" not in vars(self):
            Eager.reset(self, seed)

    return dataclasses.replace(case, runtimes=(runtime(reset=reset),))


@planted(checks.skipped_layers_do_not_run, "ran")
def layers_are_masked_instead_of_skipped(case, patch):
    def soft(route):
        return route and Route((True,) * len(route.run), torch.tensor([route.run]).float())

    def forward(self, batch, draw: Draw, taps=(), route=None):
        return Pi.forward(self, batch, draw, taps, soft(route))

    def act(self, batch, noise_BHA, steps=None, route=None, trace=None, **rest):
        return Pi.act(self, batch, noise_BHA, steps, soft(route), trace, **rest)

    return dataclasses.replace(case, family=family(forward=forward, act=act))


@planted(checks.skipped_layers_do_not_run, "ran")
def keys_of_skipped_layers_are_still_computed(case, patch):
    def run_trunk(self, x, valid, walk, taps, seen, probe=None):
        runs, walk.runs = walk.runs, [True] * self.config.depth
        caches, _ = Pi._run_trunk(self, x, valid, walk, taps, seen)
        walk.runs = runs
        return [cache if run else None for cache, run in zip(caches, runs)], walk.taken

    return dataclasses.replace(case, family=family(_run_trunk=run_trunk))


@pytest.mark.parametrize(("row", "complaint", "bug"), PLANTED, ids=[bug.__name__ for *_, bug in PLANTED])
def test_row_refuses(row, complaint, bug, tmp_path, monkeypatch):
    case = bug(SOUND, monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception), match=complaint):
        row(case, tmp_path)


def test_every_row_has_a_planted_bug():
    assert {row for row, *_ in PLANTED} == set(checks.ROWS)
