"""DySL-VLA: the split, the limit on parameters, its stages against slow formulas, and what must never change.

The numbers in brackets refer to section 9.1 of the reconstruction notes: properties that any faithful version has.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lithe import registry, surgery
from lithe.data.fake import FakeData
from lithe.distill import Trainer
from lithe.methods.base import Step
from lithe.methods.dysl import Dysl, informative, jumping, relative, spread
from lithe.recipe import Train
from lithe.routers.controllers import parameters, segments
from lithe.types import Out, Route, Tap

DEPTH, STATIC = 6, (1, 5)  # segments 0 and 2..4
SURE = 200.0
FAMILIES = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {}))
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join([f[0], *f[1].values()]))


def moved(model: Any, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def fresh(name: str, settings: dict[str, Any]) -> Any:
    kind: Any = registry.get("families", name)
    return moved(kind.fresh("pico", depth=DEPTH, **settings)).eval()


MADE: dict[str, Any] = {}


def teacher(family: tuple[str, dict] = FAMILIES[0]) -> Any:
    """Made once; nobody writes to a teacher."""
    if str(family) not in MADE:
        MADE[str(family)] = fresh(*family)
    return MADE[str(family)]


def build(**knobs: Any) -> Dysl:
    return Dysl(**{"static": STATIC, "rank": 2, "controller": 3, **knobs})


def step(method: Dysl, model: Any, student: Any = None, stage: int = 0, route: Route | None = None) -> Step:
    """One training step's worth of outputs, with gradients in the student's router alone."""
    student = student or surgery.cut(model, method.cut(model))
    student.requires_grad_(False)
    student.router.requires_grad_(True)
    batch = model.example(3, torch.Generator().manual_seed(2))
    draw = model.draw(batch, torch.Generator().manual_seed(3), 2, augment=False)
    mine, theirs = method.taps(student, model)
    chosen = method.stages()[stage]
    with torch.no_grad():
        expected = model(batch, draw, theirs)
    route = route or method.route(student, chosen, torch.Generator().manual_seed(4))
    out = student(batch, draw, mine, route) if chosen.student else None
    return Step(student, batch, out, expected, chosen, method.aux(model))


def close(student: Any, bias: float = -SURE) -> None:
    with torch.no_grad():
        for controller in student.router.controllers.values():
            controller.up.weight.zero_()
            controller.up.bias.fill_(bias)


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_most_informative_layers_and_the_last_are_static():
    values = [0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 0.2, 0.1, 0.1, 0.05]
    assert informative(values, 0.2) == (1, 4, 9) and informative(values, 0.21) == (1, 4, 5, 9)
    assert informative([0.5, 0.5, 0.5, 0.9], 0.5) == (0, 3)
    assert len(informative([*range(20)], 0.55)) == 11 and len(informative([*range(20)], 0.551)) == 12
    assert spread(18, 4) == (3, 8, 13, 17) and spread(4, 1) == (3,) and spread(12, 3) == (3, 7, 11)
    for depth in range(2, 40):
        for count in range(1, depth):
            static = spread(depth, count)
            assert list(static) == sorted(set(static)) and static[-1] == depth - 1 and len(static) == count


def calibrating(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict]:
    calls: list[dict] = []

    def agreed(teacher: Any, data: Any, kind: str, samples: int) -> list[float]:
        calls.append({"kind": kind, "samples": samples})
        return values

    monkeypatch.setattr("lithe.methods.dysl.agreed", agreed)
    return calls


def fitted(**settings: Any) -> tuple[Any, FakeData]:
    model = fresh(*FAMILIES[0])
    data = FakeData(cameras=model.spec.cameras, size=24, **{"episodes": 3, "length": 30, **settings})
    model.fit_to(data.stats, data.tasks, data.cameras)
    return model, data


def test_calibration_fills_in_what_was_left_open(monkeypatch):
    calls = calibrating(monkeypatch, [0.1, 0.2, 0.7, 0.6, 0.1, 0.1])
    model, data = fitted()
    method = Dysl(share=0.3, samples=40).calibrated(model, data)
    assert method.static == (2, 3, 5) and calls == [{"kind": "cos", "samples": 40}]
    assert 0 < method.eta == method.eta1
    kept = Dysl(static=(0, 5), eta=0.5, eta1=0.25)
    assert kept.calibrated(model, data) == kept and len(calls) == 1
    unguided = Dysl(split=False, pre_skip=False, post_skip=False).calibrated(model, data)
    assert (unguided.static, unguided.eta, unguided.eta1) == ((), None, None) and len(calls) == 1
    (op,) = method.cut(model)
    assert op.settings["static"] == (2, 3, 5) and op.settings["guidance"]["eta1"] == method.eta1


def test_changes_are_estimated_along_episodes_in_model_units():
    """Never across episodes, nor over the repeats of an episode's last action."""
    model, data = fitted()
    method = build(samples=1000, k=3)
    state, actions, stops = data.vectors()
    units = (actions - data.stats["action"]["q01"]) / (
        data.stats["action"]["q99"] - data.stats["action"]["q01"]
    ) * 2 - 1
    replan, found = model.spec.replan, []
    assert replan == 2
    for start in range(len(data)):
        movement = units[start : min(stops[start], start + 2 * replan + 8 * replan)]
        lengths = np.linalg.norm(np.diff(movement, axis=0), axis=1)
        levels = []
        for behind in range(replan, len(movement) + 1, replan):
            windows = [lengths[j - 3 : j].mean() for j in range(behind - replan, behind) if j >= 3]
            levels += [-max(windows)] if windows else []
        found += [abs(b - a) for a, b in pairwise(levels)]
    assert method._large_change(model, data) == pytest.approx(np.quantile(found, 0.9), rel=1e-4)
    with pytest.raises(ValueError, match=r"set method.eta and method.eta1"):
        build().calibrated(*fitted(length=6, episodes=9))


# -- the cut -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "rank", "hidden", "static"),
    [("full", 128, 104, (3, 8, 13, 17)), ("mini", 32, 24, (3, 7, 11))],
)
@pytest.mark.parametrize("variant", ["pi05", "pi0"])
def test_the_router_is_at_most_a_thirtieth(preset, rank, hidden, static, variant):
    """[9] And as large as the formula says; at full size as large as what is known of the paper's."""
    with torch.device("meta"):
        model: Any = registry.get("families", "pi").fresh(preset, variant=variant)
    (op,) = Dysl().cut(model)
    assert [op.settings[key] for key in ("rank", "hidden", "static")] == [rank, hidden, static]
    whole = sum(p.numel() for p in model.parameters())
    surgery.replay(model, [op])
    size = sum(p.numel() for p in model.router.parameters())
    dynamic = len(model.router.landings)
    assert size == parameters(model.streams, dynamic, rank, hidden) and size * 30 <= whole
    assert preset != "full" or (dynamic == 14 and 13e6 < size < 15e6)


def test_a_router_that_is_too_large_is_refused():
    model = teacher()
    with pytest.raises(ValueError, match=r"rank 64 .* more than 1/30 .* lower method.rank"):
        Dysl(rank=64).cut(model)
    with pytest.raises(ValueError, match=r"rank 1 .* width 400 .* lower method.rank or method.controller"):
        Dysl(controller=400).cut(model)


def test_without_a_split_only_the_last_layer_is_static():
    (op,) = Dysl(split=False).cut(teacher())
    assert op.settings["static"] == (5,) and segments(6, (5,)) == ((0, 5),)


@pytest.mark.parametrize(
    "knobs",
    [
        {"split": False},
        {"one_stage": True, "jump": "always"},
        {"jump": "always", "skip": 0.1},
        {"jump": "random", "rate": 0.5, "second": 0.0, "first": 0.4},
        {"jump": "always", "second": 0.0, "task": 2.0},
        {"one_stage": True, "second": 0.2},
        {"one_stage": True, "tokens": "each"},
        {"jump": "random"},
        {"rate": 0.5},
        {"rule": "symmetric", "pre_skip": False},
        {"printed_sign": True, "pre_skip": False},
        {"cooldown": 2, "post_skip": False},
        {"clip": 9.0, "tokens": "each"},
        {"static": (), "share": 1.0},
        {"first": 1.0},
        {"first": 0.0},
        {"second": -0.1},
        {"first": 0.4, "second": 0.6},
        {"static": (1, 4)},
        {"static": (0, 1, 2, 3, 4, 5)},
        {"eta": 0.0},
        {"threshold": 0.0},
        {"threshold": 1.0},
    ],
    ids=str,
)
def test_knobs_that_contradict_are_refused(knobs):
    model = teacher()
    build().cut(model)
    with pytest.raises(ValueError):
        surgery.cut(model, build(**knobs).cut(model))


def test_stages():
    def plan(method: Dysl) -> list[tuple[str, float, tuple[str, ...], bool]]:
        return [(s.name, s.share, s.train, s.student) for s in method.stages()]

    fitted = ("adapters", 0.25, ("router.adapters.",), False)
    jumps, controllers = ("jumps", 0.25, ("router.adapters.",), True), ("controllers", 0.5, ("router.",), True)
    assert plan(build(first=0.25, second=0.25)) == [fitted, jumps, controllers]
    assert plan(build(first=0.25, second=0.0)) == [fitted, (*controllers[:1], 0.75, *controllers[2:])]
    for control in ({"jump": "always"}, {"jump": "random", "rate": 0.5}):
        assert plan(build(**control, first=0.25, second=0.25)) == [fitted, jumps]
        assert plan(build(**control, second=0.0)) == [("adapters", 0.3, *fitted[2:])]
    assert plan(build(one_stage=True)) == [("together", 1.0, ("router.",), True)]
    assert plan(build()) == [(n, pytest.approx(s), *rest) for (n, _, *rest), s in zip(plan(build()), (0.3, 0.4, 0.3))]


def test_a_knob_that_no_stage_reads_is_named():
    with pytest.raises(ValueError, match=r"no stage of this training \(adapters, jumps\) reads skip or threshold"):
        build(jump="always", skip=0.1, threshold=0.4).cut(teacher())
    with pytest.raises(ValueError, match=r"\(adapters\) reads task or velocity or first"):
        build(jump="always", second=0.0, task=2.0, velocity=0.0, first=0.5).cut(teacher())
    for read in ({"task": 2.0, "positions": "model"}, {"first": 0.5, "clip": 3.0}):
        assert build(jump="always", **read).cut(teacher())


# -- stage 1 -----------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("knobs", [{}, {"tokens": "each"}, {"clip": 2.0}], ids=str)
def test_an_adapter_that_does_nothing_costs_exactly_1(family, knobs):
    """[2]"""
    method = build(**knobs)
    terms = method.loss(step(method, teacher(family)))
    assert {name: term.item() for name, term in terms.items()} == {"reg/prefix": 1.0, "reg/suffix": 1.0}
    assert all(
        term.item() == 0.5 for term in build(prefix=0.5, suffix=0.5, **knobs).loss(step(method, teacher())).values()
    )


def slowly(method: Dysl, s: Step, stream: str) -> float:
    """The loss of one stream with loops, in double precision."""
    found = []
    for first, end in segments(DEPTH, STATIC):
        for i in range(first, end):
            x, y = (s.teacher_out.taps[Tap(stream, at)] for at in (i, end))
            made = s.student.router.bridge(stream, i, x.float()).detach()
            valid = s.teacher_out.prefix_BN if stream == "prefix" else torch.ones(x.shape[:2], dtype=torch.bool)
            pairs = [
                (
                    float((made[b, n] - y[b, n]).double().square().sum()),
                    float((y[b, n] - x[b, n]).double().square().sum()),
                )
                for b, n in valid.nonzero().tolist()
            ]
            if method.tokens == "each":
                found.append(sum(e / d for e, d in pairs) / len(pairs))
                continue
            middle = sorted(d for _, d in pairs)[(len(pairs) - 1) // 2]
            weights = [min(1.0, method.clip * middle / d) if method.clip else 1.0 for _, d in pairs]
            found.append(
                sum(w * e for w, (e, _) in zip(weights, pairs)) / sum(w * d for w, (_, d) in zip(weights, pairs))
            )
    return sum(found) / len(found)


@pytest.mark.parametrize("knobs", [{}, {"tokens": "each"}, {"clip": 0.5}], ids=str)
def test_the_loss_of_adapters_against_loops(knobs):
    method = build(**knobs)
    s = step(method, teacher())
    moved(s.student.router, seed=9)
    terms = method.loss(s)
    for stream in ("prefix", "suffix"):
        assert terms[f"reg/{stream}"].item() == pytest.approx(slowly(method, s, stream), rel=1e-4)
        assert terms[f"reg/{stream}"].item() != pytest.approx(1.0, rel=1e-3)


def test_tokens_of_enormous_size_can_be_held_down():
    """One token that goes a thousand times as far is nearly all of the plain loss, and little of the others."""
    s = step(build(), teacher())
    moved(s.student.router, seed=9)
    taps = {tap: x.clone() for tap, x in s.teacher_out.taps.items()}
    for tap, x in taps.items():
        if tap.kind == "suffix":
            x[0, 0] *= 1000.0
    grown = dataclasses.replace(s, teacher_out=dataclasses.replace(s.teacher_out, taps=taps))
    change = {}
    for name, knobs in {"plain": {}, "clip": {"clip": 2.0}, "each": {"tokens": "each"}}.items():
        method = build(**knobs)
        terms = [method.loss(each)["reg/suffix"] for each in (s, grown)]
        change[name] = abs((terms[1] / terms[0]).item() - 1)
        other = method.loss(dataclasses.replace(s, teacher_out=_outside(s.teacher_out)))
        assert torch.equal(other["reg/prefix"], method.loss(s)["reg/prefix"]), "padding counts"
    assert max(change["clip"], change["each"]) < change["plain"] / 2


def _outside(out: Out) -> Out:
    """Other values in tokens that are not valid."""
    gone = ~out.prefix_BN[..., None]
    assert gone.any()
    taps = {tap: torch.where(gone, 7.0, x) if tap.kind == "prefix" else x for tap, x in out.taps.items()}
    return dataclasses.replace(out, taps=taps)


def test_a_layer_that_moves_nothing_has_nothing_to_teach():
    s = step(build(), teacher())
    taps = {tap: torch.ones_like(x) if tap.layer <= 1 else x for tap, x in s.teacher_out.taps.items()}
    s = dataclasses.replace(s, teacher_out=dataclasses.replace(s.teacher_out, taps=taps))
    assert {term.item() for term in build().loss(s).values()} == {1.0}
    still = {tap: torch.ones_like(x) for tap, x in taps.items()}
    terms = build().loss(dataclasses.replace(s, teacher_out=dataclasses.replace(s.teacher_out, taps=still)))
    assert {term.item() for term in terms.values()} == {0.0}


def test_adapters_learn_at_every_position():
    """[2] The loss falls below 1 everywhere, in both streams."""
    method = build(rank=4)
    s = step(method, teacher())
    router = s.student.router
    optimizer = torch.optim.Adam(router.adapters.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        torch.stack(list(method.loss(s).values())).sum().backward()
        optimizer.step()
    for i, end in router.landings.items():
        router.landings = {i: end}
        for name, term in method.loss(s).items():
            assert term.item() < 0.97, f"{name} at layer {i}"


# -- jumps -------------------------------------------------------------------------------------------------------------


def jumps_of(method: Dysl, student: Any, seed: int) -> Route:
    return method.route(student, method.stages()[1], torch.Generator().manual_seed(seed))


@every_family
def test_stage_jumps_computes_what_acting_does(family):
    """Bit for bit the chunk of controllers that fire at these layers, and layers that are jumped over do not run."""
    method, model = build(), teacher(family)
    student = surgery.cut(model, method.cut(model)).eval()
    moved(student.router)
    batch, ran = model.example(1, torch.Generator().manual_seed(2)), set()
    draw = model.draw(batch, torch.Generator().manual_seed(3), augment=False)
    draw = dataclasses.replace(draw, time_BR=torch.ones(1, 1))  # the first of one denoise step
    for path in surgery.find_stack(student, "trunk").paths:
        for i, layer in enumerate(student.get_submodule(path)):
            for part in layer.modules():
                part.register_forward_hook(lambda *_, i=i: ran.add(i))
    for seed in range(4):
        close(student)
        asked = jumps_of(method, student, seed)
        ran.clear()
        with torch.no_grad():
            out = student(batch, draw, (), asked)
        assert ran == {i for i, run in enumerate(asked.run) if run} and len(ran) < DEPTH
        for way in asked.crossings:
            student.router.controllers[str(way.start)].up.bias.data.fill_(SURE)
        taken: list[Route] = []
        chunk = student.act(batch, draw.noise_BRHA[:, 0], 1, told=taken.append)
        assert (taken[0].run, taken[0].crossings) == (asked.run, asked.crossings)
        assert torch.equal(chunk, draw.noise_BRHA[:, 0] - out.pred_BRHA[:, 0])
        assert not torch.equal(chunk, model.act(batch, draw.noise_BRHA[:, 0], 1))


def test_a_step_of_jumps_crosses_every_segment_at_a_random_position():
    method, model = build(), teacher()
    student = surgery.cut(model, method.cut(model))
    seen = [tuple((way.start, way.end) for way in jumps_of(method, student, seed).crossings) for seed in range(60)]
    assert set(seen) == {((0, 1), (i, 5)) for i in (2, 3, 4)} and min(seen.count(way) for way in set(seen)) > 10
    assert not any(jumps_of(method, student, seed).asked for seed in range(9))
    alone = {tuple(w.start for w in jumps_of(build(positions="model"), student, s).crossings) for s in range(60)}
    assert alone == {(0,), (2,), (3,), (4,)}


def test_adapters_learn_to_jump_in_stage_jumps():
    """Also on noise and times that they were not trained on, where every segment is jumped over as a whole. Without the
    task: the teacher has random weights, and actions that are as random would lead away from it."""
    method, model = build(rank=4, task=0.0), teacher()
    student = surgery.cut(model, method.cut(model))
    full = jumping(student, (0, 2))
    assert full.run == (False, True, False, False, False, True)

    def error() -> float:
        batch = model.example(8, torch.Generator().manual_seed(2))
        draw = model.draw(batch, torch.Generator().manual_seed(7), 4, augment=False)
        with torch.no_grad():
            return float(model.imitation_loss(student(batch, draw, (), full), model(batch, draw)))

    before, names = error(), set()
    optimizer = torch.optim.Adam(student.router.adapters.parameters(), lr=1e-2)
    for seed in range(25):
        terms = method.loss(step(method, model, student, 1, jumps_of(method, student, seed)))
        names |= terms.keys()
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        if not seed:
            assert all(student.router.adapters[s]["0"].up.weight.grad.any() for s in ("prefix", "suffix"))
        optimizer.step()
    assert names == {"task", "kd/velocity", "kd/prefix", "kd/suffix"}
    assert error() < 0.7 * before
    assert all(p.grad is None for p in student.router.controllers.parameters())


# -- controllers -------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_to_learn_when_every_layer_runs(family, precision):
    """[1] Through closed controllers, and on a route that asks none: kd terms and their gradients are exactly 0."""
    method, model = build(), teacher(family)
    student = surgery.cut(model, method.cut(model))
    moved(student.router)
    close(student)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for route in (None, Route.full(DEPTH)):
            terms = method.loss(step(method, model, student, -1, route))
            assert {"kd/velocity", "kd/prefix", "kd/suffix"} <= terms.keys() and ("reg/skip" in terms) == (
                route is None
            )
            for name in (name for name in terms if name.startswith("kd/")):
                assert terms[name].item() == 0.0
                if route is None:
                    found = torch.autograd.grad(
                        terms[name], list(student.router.parameters()), None, True, allow_unused=True
                    )
                    assert any(g is not None for g in found) and all(g is None or not g.any() for g in found)
        close(student, 0.0)
        terms = method.loss(step(method, model, student, -1))
        assert all(terms[name].item() > 0 for name in ("kd/velocity", "kd/prefix", "kd/suffix"))


def test_one_step_for_skipping_raises_every_share():
    """[4] With only the skip term active; the port's sign would lower them."""
    method, model = build(task=0.0, velocity=0.0, hidden=0.0), teacher()
    student = surgery.cut(model, method.cut(model))
    moved(student.router)
    optimizer = torch.optim.SGD(student.router.parameters(), lr=1.0)

    def shares(asked: tuple[int, ...]) -> Tensor:
        route = dataclasses.replace(Route.full(DEPTH), asked=asked)
        s = step(method, model, student, -1, route)
        method_terms[:] = [method.loss(s)]
        return torch.stack([c.share_B for c in s.out.route.crossings])

    method_terms: list[dict[str, Tensor]] = []
    for asked in ((0, 2), (0, 3), (0, 4)):
        before = shares(asked)
        assert method_terms[0]["reg/skip"].item() == pytest.approx(-1e-3 * before.mean().item())
        optimizer.zero_grad()
        (method_terms[0]["reg/skip"] * 1e3).backward()
        optimizer.step()
        assert (shares(asked) > before.detach()).all()


def test_task_and_imitation_reach_controllers_and_adapters():
    """A hard plan would send no gradient of the task to the router."""
    method, model = build(), teacher()
    student = surgery.cut(model, method.cut(model))
    moved(student.router)
    s = step(method, model, student, -1, dataclasses.replace(Route.full(DEPTH), asked=(0, 3)))
    learned = {name: term for name, term in method.loss(s).items() if not name.startswith("note/")}
    for name, term in learned.items():
        student.router.zero_grad()
        term.backward(retain_graph=True)
        for i in (0, 3):
            assert student.router.controllers[str(i)].up.bias.grad.any(), f"{name} does not reach controller {i}"
        for stream in () if name == "reg/skip" else ("prefix", "suffix"):
            if (name, stream) != ("kd/prefix", "suffix"):
                adapter = student.router.adapters[stream]["0"]
                assert adapter.down.weight.grad.any(), f"{name} does not reach the {stream} adapter"


def test_hidden_states_are_compared_relatively_and_where_tokens_are_valid():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid = torch.tensor([[True, False, True], [True, True, False]])
    pairs = [(a[i, j], b[i, j]) for i, j in valid.nonzero().tolist()]
    expected = sum(float((x - y).square().sum()) for x, y in pairs) / sum(float(y.square().sum()) for _, y in pairs)
    assert float(relative(a, b, valid)) == pytest.approx(expected)
    assert float(relative(a, b, None)) == pytest.approx(float((a - b).square().sum() / b.square().sum()))
    assert float(relative(torch.zeros(2, 3, 4), b, valid)) == 1.0


def test_a_step_asks_one_random_position_of_every_segment():
    method, model = build(), teacher()
    student, (adapters, controllers) = surgery.cut(model, method.cut(model)), method.stages()[::2]
    assert method.route(student, adapters, torch.Generator()) is None

    def asked(method: Dysl, seed: int) -> tuple[int, ...]:
        route = method.route(student, controllers, torch.Generator().manual_seed(seed))
        assert route.run == (True,) * DEPTH and not route.crossings
        return route.asked

    seen = [asked(method, seed) for seed in range(60)]
    assert set(seen) == {(0, 2), (0, 3), (0, 4)} and min(seen.count(way) for way in set(seen)) > 10
    assert seen == [asked(method, seed) for seed in range(60)]
    assert {asked(build(positions="model"), seed) for seed in range(60)} == {(0,), (2,), (3,), (4,)}


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_every_weight_among_the_knobs_counts():
    """In the surgery, the stages, or the loss of a step that asks the controllers."""
    plain, model = build(), teacher()
    steps = [step(plain, model, stage=n) for n in range(3)]

    def answers(method: Dysl) -> str:
        terms = [{k: v.item() for k, v in method.loss(s).items()} for s in steps]
        return repr((method.cut(model), method.stages(), terms))

    names = {name for name, value in vars(plain).items() if isinstance(value, float) and value} - {"share"}
    assert {"task", "velocity", "hidden", "skip", "prefix", "suffix", "first", "second", "threshold"} <= names
    for name in names:
        other = build(**{name: getattr(plain, name) / 2})
        assert answers(other) != answers(plain), f"the knob {name!r} changes nothing"
    assert Dysl(share=0.4).cut(model) != Dysl(share=0.2).cut(model)


def trained(method: Dysl, model: Any, data: FakeData, **settings: Any) -> Any:
    student = surgery.cut(model, method.cut(model))
    train = Train(**{"steps": 4, "batch": 2, "draws": 1, "warmup": 0, "lr": 1e-2, "precision": "fp32", **settings})
    trainer = Trainer(student, model, method, data, train)
    trainer.fit(None, [])
    return trainer.result()


def test_no_stage_touches_the_policy():
    """[9, 1] Every weight of it, bit for bit; what they train is the router, and closed it is still the teacher."""
    model, data = fitted(length=10)
    method = build()
    begun, ended = surgery.cut(model, method.cut(model)), trained(method, model, data, steps=7)
    before, after = begun.state_dict(), ended.state_dict()
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    router = {name for name in before if name.startswith("router.")}
    asked = {f"router.controllers.0.up.{kind}" for kind in ("weight", "bias")}  # of layer 0 in every step
    assert same >= before.keys() - router and not same & asked
    assert not any(name.startswith("router.adapters.") for name in same)
    assert sum(before[name].numel() for name in router) == parameters(model.streams, 4, 2, 3)
    alone = trained(build(jump="always"), model, data, steps=2).state_dict()
    firsts = {name for name in alone if name.startswith("router.") and not torch.equal(alone[name], after[name])}
    assert firsts and all(name.startswith("router.adapters.") for name in alone if name.startswith("router."))
    close(ended)
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(5))
    assert torch.equal(ended.act(batch, noise), model.act(batch, noise))
    close(ended, SURE)
    routes: list[Route] = []
    chunk = ended.act(batch, noise, told=routes.append)
    assert routes[0].run == (False, True, False, False, False, True) and math.isfinite(float(chunk.sum()))
    assert not torch.equal(chunk, model.act(batch, noise))
