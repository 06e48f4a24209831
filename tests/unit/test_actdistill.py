"""ActDistill: gates that decide, capsules that are compared, and section 8.1 of our notes as tests."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe import recipe, surgery
from lithe.data.fake import FakeData
from lithe.families.base import Family
from lithe.families.pi import Pi
from lithe.families.smolvla import SmolVLA
from lithe.methods._graph import depth_weights
from lithe.methods._watch import Watch
from lithe.methods.actdistill import FIRST, ActDistill
from lithe.methods.base import Step
from lithe.recipe import Train
from lithe.routers.base import Sight, Sizes
from lithe.routers.gates import Gates
from lithe.runtimes.eager import Eager
from lithe.types import Batch, Draw, Route, Tap

distill = import_module("lithe.distill")  # on the package, the verb owns the name
SMALL: dict[str, Any] = {"inner": 16, "capsule": 8, "router_width": 8, "neighbours": 3}
FAMILIES = {"pi05": (Pi, {}), "pi0": (Pi, {"variant": "pi0"}), "smolvla": (SmolVLA, {})}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SIGHT_WIDTH, DEPTH = 12, 4


def awake(family: str = "pi05", **settings: Any) -> Any:
    """A pico policy with every parameter moved away from its zero initialisation."""
    kind, variant = FAMILIES[family]
    model, generator = kind.fresh("pico", **variant, **settings), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval().requires_grad_(False)


def small(**knobs: Any) -> ActDistill:
    return ActDistill(**{**SMALL, **knobs})


def cut(teacher: Family, method: ActDistill) -> Family:
    return surgery.cut(teacher, method.cut(teacher)).eval().requires_grad_()


def choosing(student: Any, seed: int = 0) -> Any:
    """The same student with a router that lets each sample take another way."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        student.router.gate.weight.copy_(torch.randn(student.router.gate.weight.shape, generator=generator) * 3)
        usual_L = student(*inputs(student, size=6)).route.gates_BL.logit().mean(dim=0)
        student.router.gate.bias.sub_(usual_L)
    return student


def fixed(student: Any, *gates: float) -> Any:
    """The same student with a router that always says this."""
    with torch.no_grad():
        student.router.gate.weight.zero_()
        student.router.gate.bias.copy_(torch.tensor(gates).logit())
    return student


def inputs(model: Family, size: int = 3, draws: int = 2) -> tuple[Batch, Draw]:
    batch = model.example(size, torch.Generator().manual_seed(2))
    return batch, model.draw(batch, torch.Generator().manual_seed(3), draws, augment=False)


def fitted(method: ActDistill, teacher: Family, enter: bool = False) -> nn.ModuleDict:
    """Auxiliary modules; without `enter` the heads of student and teacher differ."""
    aux = method.aux(teacher)
    if enter:
        method.enter(method.stages()[-1], teacher, aux)
    return aux


def step(
    method: ActDistill, teacher: Family, student: Family, given: Any = None, aux: Any = None, progress: float = 0.5
) -> Step:
    batch, draw = given or inputs(teacher)
    mine, theirs = method.taps(student, teacher)
    with torch.no_grad():
        expected = teacher(*method.asked(batch, draw), theirs) if method.needs_teacher else None
    aux = aux if aux is not None else fitted(method, teacher)
    return Step(student, batch, student(batch, draw, mine), expected, method.stages()[-1], aux, progress)


def sight(size: int = 3, count: int = 9, seed: int = 0) -> Sight:
    """Six tokens that are seen, three words; one of each is padding in the first sample."""
    stream = torch.randn(size, count, SIGHT_WIDTH, generator=torch.Generator().manual_seed(seed))
    valid, text = torch.ones(size, count, dtype=torch.bool), torch.arange(count).expand(size, count) >= 6
    valid[0, [2, count - 1]] = False
    return Sight(stream, valid, text & valid)


def router(**settings: Any) -> Gates:
    torch.manual_seed(0)
    made = Gates(Sizes(DEPTH, SIGHT_WIDTH, 6), **{"width": 8, **settings})
    nn.init.normal_(made.gate.weight, std=5.0)
    return made


# -- the router --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@torch.no_grad()
def test_every_layer_runs_before_training_whatever_is_seen(size):
    look = dataclasses.replace(sight(), stream_BND=sight().stream_BND * size)
    gates = Gates(Sizes(DEPTH, SIGHT_WIDTH, 6)).ahead(look, None)
    assert torch.equal(gates, torch.full((3, DEPTH), 2.0).sigmoid())


@torch.no_grad()
def test_gates_are_the_slow_formula():
    made, look = router(), sight()
    found = made.ahead(look, None)
    for row in range(3):
        features = []
        for linear, norm, of in ((made.seen, made.seen_norm, False), (made.words, made.words_norm, True)):
            kept = [i for i in range(9) if look.valid_BN[row, i] and bool(look.text_BN[row, i]) == of]
            x = torch.stack([norm(linear(look.stream_BND[row, i])) for i in kept])
            features += [x.mean(0), x.max(0).values]
        logits = made.gate.weight @ torch.cat(features) / math.sqrt(32) + made.gate.bias
        torch.testing.assert_close(found[row], logits.sigmoid(), rtol=1e-5, atol=1e-6)
    assert (found.amax(0) - found.amin(0)).min() > 0.01, "gates do not depend on the sample"


@torch.no_grad()
def test_gates_are_of_one_sample_and_do_not_see_padding():
    """[8.1.4]"""
    made, look = router(), sight()
    pad = torch.full((3, 5, SIGHT_WIDTH), 300.0)
    hidden = [F.pad(mask, (0, 5), value=False) for mask in (look.valid_BN, look.text_BN)]
    found = made.ahead(look, None)
    padded = made.ahead(Sight(torch.cat([look.stream_BND, pad], dim=1), *hidden), None)
    torch.testing.assert_close(padded, found, rtol=1e-5, atol=1e-6)
    for row in range(3):
        alone = Sight(*(x[row : row + 1] for x in (look.stream_BND, look.valid_BN, look.text_BN)))
        torch.testing.assert_close(made.ahead(alone, None)[0], found[row], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gates_stay_float32_when_the_model_is_cast_or_runs_under_autocast():
    look, model = sight(), nn.ModuleDict({"router": router(), "layer": nn.Linear(3, 3)})
    expected = router().ahead(look, None)
    model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = model["router"].ahead(look, None)
    assert model["layer"].weight.dtype == torch.bfloat16
    assert {p.dtype for p in model["router"].parameters()} == {found.dtype} == {torch.float32}
    assert torch.equal(found, expected)
    empty = nn.ModuleDict({"router": router()}).to("meta").to(torch.bfloat16)
    assert {p.dtype for p in empty.parameters()} == {torch.float32}
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_layers_that_are_always_on_have_no_gate():
    made = router(always_on=(2, 0, 2), start=0.1)
    made.gate.bias.data.fill_(-50.0)
    gates = made.ahead(sight(), None)
    assert gates[:, [0, 2]].eq(1).all()
    assert gates[:, [1, 3]].lt(0.5).all()
    assert made.harden(gates).tolist() == [[1.0, 0.0, 1.0, 0.0]] * 3
    gates.sum().backward()
    assert made.gate.bias.grad[[0, 2]].abs().max() == 0.0
    with pytest.raises(ValueError, match="always_on names layer 4: the policy has layers 0 to 3"):
        router(always_on=(1, 4))


def test_the_threshold_closes_what_lies_below_it():
    made, gates = router(threshold=0.3), torch.tensor([[0.29, 0.3, 0.31, 0.9]], requires_grad=True)
    hard = made.harden(gates)
    assert hard.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    (hard * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert gates.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]], "the gradient of a hard gate is that of the soft one"


# -- routes in a policy ------------------------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_student_whose_gates_are_open_is_its_teacher_bit_for_bit(family, dtype):
    """[8.1.2]"""
    teacher = awake(family)
    student, given, noise = cut(teacher, small()), inputs(teacher), teacher.noise(1, torch.Generator().manual_seed(5))
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        taps = small().taps(student, teacher)[0]
        mine, theirs = student(*given, taps), teacher(*given, taps)
        chunks = [model.act(model.example(1), noise) for model in (student, teacher)]
    assert torch.equal(mine.pred_BRHA, theirs.pred_BRHA)
    assert all(torch.equal(mine.taps[tap], theirs.taps[tap]) for tap in taps)
    assert torch.equal(*chunks)
    assert mine.route.share_BL.eq(1).all()


@EVERY_FAMILY
@pytest.mark.parametrize("gates", [(0.6, 0.4, 0.9, 0.1), (0.2, 0.7, 0.3, 0.8), (0.1, 0.1, 0.1, 0.1)])
@torch.no_grad()
def test_training_computes_what_skipping_does_bit_for_bit(family, gates):
    """[8.1.2, 8.1.3] And a layer whose gate is shut returns its input."""
    teacher = awake(family)
    student, (batch, draw) = fixed(cut(teacher, small()), *gates), inputs(teacher)
    run = Route(tuple(g >= 0.5 for g in gates))
    taps = [Tap("prefix", i) for i in range(DEPTH + 1)]
    softly, skipping = student(batch, draw, taps), student(batch, draw, taps, run)
    assert torch.equal(softly.pred_BRHA, skipping.pred_BRHA)
    assert all(torch.equal(softly.taps[tap], skipping.taps[tap]) for tap in taps)
    for i, open_ in enumerate(run.run):
        assert torch.equal(softly.taps[taps[i]], softly.taps[taps[i + 1]]) != open_
    assert torch.equal(softly.route.share_BL[0].bool(), torch.tensor(run.run))
    noise = teacher.noise(3, torch.Generator().manual_seed(5))
    alone = [student.act(batch.take([i]), noise[i : i + 1], route=run) for i in range(3)]
    assert torch.equal(student.act(batch, noise), torch.cat(alone))


@EVERY_FAMILY
@torch.no_grad()
def test_every_sample_goes_its_own_way_when_acting_as_in_training(family):
    teacher = awake(family)
    student, (batch, draw) = choosing(cut(teacher, small())), inputs(teacher, size=6)
    out, told = student(batch, draw), []
    student.act(batch, teacher.noise(6, torch.Generator().manual_seed(5)), told=told.append)
    ways = [route.run for route in told]
    assert ways == [tuple(bool(open_) for open_ in row) for row in out.route.share_BL]
    assert len(set(ways)) > 1, "all samples go the same way"
    for i, way in enumerate(ways):
        alone = student(batch.take([i]), draw.take([i]), route=Route(way))
        torch.testing.assert_close(alone.pred_BRHA[0], out.pred_BRHA[i], rtol=1e-4, atol=1e-5)


# -- the losses --------------------------------------------------------------------------------------------------------

MODES = [
    {},
    {"graph": "mlp_pool"},
    {"features": "final"},
    {"target": "chunk", "layers": "sum", "counted": "run"},
    {"counted": "all"},
]


@EVERY_FAMILY
@pytest.mark.parametrize("knobs", MODES, ids=str)
def test_there_is_nothing_to_learn_from_a_teacher_that_is_the_student(family, knobs):
    """[8.1.1] Exactly 0, and so is the gradient; a student that was moved pays for every term."""
    teacher, method = awake(family), small(**knobs)
    student, aux = cut(teacher, method), fitted(method, teacher, enter=True)
    weights = [*student.parameters(), *aux.parameters()]
    for route_is_given in (False, True):
        now = step(method, teacher, student, aux=aux)
        if route_is_given:  # whatever the router thinks
            fixed(student, 0.1, 0.1, 0.1, 0.1)
            out = student(*inputs(teacher), method.taps(student, teacher)[0], Route.full(DEPTH))
            now = dataclasses.replace(now, out=out)
        terms = method.loss(now)
        for name, term in kd(terms).items():
            assert term.item() == 0.0, name
            found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            assert max(float(g.abs().max()) for g in found if g is not None) == 0.0, name
        assert ("reg/budget" in terms) != route_is_given
    with torch.no_grad():
        student.trunk.layers[0].o_proj.weight.mul_(1.5)
    moved = kd(method.loss(step(method, teacher, fixed(student, 0.9, 0.9, 0.9, 0.9), aux=aux)))
    assert len(moved) == (1 if knobs.get("features") == "final" else 3)
    assert all(0 < term.item() < math.inf for term in moved.values())


def kd(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term for name, term in terms.items() if name.startswith("kd/")}


@pytest.mark.parametrize("counted", ["read", "run", "all"])
@pytest.mark.parametrize("layers", ["mean", "sum"])
@torch.no_grad()
def test_terms_are_the_slow_formulas(layers, counted):
    teacher, method = awake(action_dim=3), small(layers=layers, counted=counted, alpha=3.0, eta=0.7, beta=2.0)
    student = choosing(cut(teacher, method))
    now = step(method, teacher, student)
    out, omega = now.out, depth_weights(2.0, DEPTH).double()
    streams = [[o.taps[Tap("prefix", i + 1)] for i in range(DEPTH)] for o in (out, now.teacher_out)]
    (mine, made), (theirs, taught) = (
        (x.double() for x in now.aux[name](stream, out.prefix_BN))
        for name, stream in zip(("heads", "teacher_heads"), streams, strict=True)
    )
    wanted, run = now.batch.actions_BHA[:, 0, :3].double(), out.route.share_BL.T
    assert 0 < run.mean() < 1
    counts = [
        [{"all": True, "run": bool(run[i, a]), "read": bool(run[i + 1 :, a].any())}[counted] for a in range(3)]
        for i in range(DEPTH)
    ]
    assert (counted == "all") == all(map(all, counts))
    expected = dict.fromkeys(("kd/align", "kd/structure", "kd/action", "reg/action", "reg/neighbour"), 0.0)
    for a in range(3):
        total = sum(float(omega[i]) for i in range(DEPTH) if counts[i][a]) if layers == "mean" else 1.0
        for i in [i for i in range(DEPTH) if counts[i][a] and omega[i]]:
            w, before = float(omega[i]) / total / 3, made[i - 1, a] if i else torch.zeros(3)
            expected["kd/align"] += 3.0 * w * (1 - float(F.cosine_similarity(mine[i, a], theirs[i, a], dim=0)))
            expected["kd/action"] += 2.0 * w * float((made[i, a] - taught[i, a]).square().mean())
            expected["reg/action"] += 2.0 * w * float((made[i, a] - wanted[a]).square().mean())
            expected["reg/neighbour"] += 2.0 * w * float((made[i, a] - before).square().mean())
            for b in [b for b in range(3) if counts[i][b]]:
                s, t = (F.cosine_similarity(x[i, a], x[i, b], dim=0) for x in (mine, theirs))
                expected["kd/structure"] += 3.0 * 0.7 * w / sum(counts[i]) * float((s - t).square())
    found = method.loss(now)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name
    assert found["task"].item() == pytest.approx(student.task_loss(out).item())
    assert found["note/layers_run"].item() == pytest.approx(run.mean().item())


@EVERY_FAMILY
@torch.no_grad()
def test_a_stream_that_counts_is_one_that_actions_depend_on(family):
    """What is added to the stream behind a layer changes the answer exactly where `counted: read` says so."""
    teacher, method = awake(family), small()
    for gates in ((0.9, 0.1, 0.9, 0.1), (0.9, 0.9, 0.1, 0.1), (0.1, 0.1, 0.1, 0.9), (0.1, 0.1, 0.1, 0.1)):
        student, (batch, draw) = fixed(cut(teacher, method), *gates), inputs(teacher)
        plain = student(batch, draw)
        counted = method._counted(plain, DEPTH)[:, 0].tolist()
        for i in range(DEPTH):
            if gates[i] > 0.5:  # a layer that does not run adds nothing that could be changed
                layer = student.trunk.layers[i]
                handle = layer.down_proj.register_forward_hook(lambda _, __, out: out + 1.0)
                changed = student(batch, draw)
                handle.remove()
                assert torch.equal(changed.pred_BRHA, plain.pred_BRHA) != counted[i], (gates, i)


@torch.no_grad()
def test_final_features_are_compared_relative_to_their_size_over_real_tokens():
    teacher, method = awake(), small(features="final", alpha=2.0)
    now = step(method, teacher, choosing(cut(teacher, method), seed=3))
    last = [max(i for i in range(DEPTH) if open_[i]) for open_ in now.out.route.share_BL]
    assert len(set(last)) > 1, "all samples end at the same layer"
    valid, error, size = now.out.prefix_BN, 0.0, 0.0
    for a, layer in enumerate(last):
        mine, theirs = (out.taps[Tap("prefix", layer)][a][valid[a]].double() for out in now.outs)
        error, size = error + (mine - theirs).square().sum(), size + theirs.square().sum()
    expected = 2 * error / size
    assert method.loss(now)["kd/final"].item() == pytest.approx(expected.item(), rel=1e-5)


@EVERY_FAMILY
@pytest.mark.parametrize("knobs", MODES, ids=str)
@torch.no_grad()
def test_losses_do_not_see_padding(family, knobs):
    """[8.1.4]"""
    teacher, method = awake(family), small(**knobs)
    student, (batch, draw) = choosing(cut(teacher, method)), inputs(teacher)
    longer = dataclasses.replace(
        batch,
        tokens_BT=F.pad(batch.tokens_BT, (0, 5), value=7),
        text_BT=F.pad(batch.text_BT, (0, 5), value=False),
    )
    plain, padded = (method.loss(step(method, teacher, student, (b, draw))) for b in (batch, longer))
    assert 0 < plain["note/layers_run"] < 1
    for name, term in plain.items():
        torch.testing.assert_close(padded[name], term, rtol=1e-4, atol=1e-6, msg=name)


def test_who_learns_from_what():
    """Router and student from capsules and actions; the layer before an action from nothing; no teacher at all."""
    teacher, method = awake(), small()
    student, aux = choosing(cut(teacher, method)), fitted(method, teacher)
    terms = method.loss(step(method, teacher, student, aux=aux))
    for name in ("task", "kd/align", "kd/structure", "kd/action", "reg/action", "reg/neighbour", "reg/budget"):
        student.zero_grad()
        aux.zero_grad()
        terms[name].backward(retain_graph=True)
        assert student.router.gate.weight.grad.abs().max() > 0, f"{name} does not teach the router"
        if name != "reg/budget":
            assert student.trunk.layers[1].v_proj.weight.grad.abs().max() > 0, f"{name} does not teach the student"
        if name == "reg/neighbour":  # layer 0 has weight 0: its head could only be moved as the neighbour of layer 1
            assert all(p.grad is None or p.grad.abs().max() == 0 for p in aux["heads"].heads[0].parameters())
            assert aux["heads"].heads[1].narrow.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert not [name for name, _ in aux.named_parameters() if not name.startswith("heads.")]
    assert not any(term.requires_grad for name, term in terms.items() if name.startswith("note/"))


@pytest.mark.parametrize("budget_on", ["share", "gate"])
def test_the_budget_pulls_from_both_sides(budget_on):
    """[8.1.6]"""
    method, signs = small(budget_on=budget_on), []
    for gates in ((0.9, 0.9, 0.9, 0.4), (0.6, 0.1, 0.1, 0.1)):
        teacher = awake()
        student = fixed(cut(teacher, method), *gates)
        term = method.loss(step(method, teacher, student))["reg/budget"]
        mean = 0.25 * sum(float(g >= 0.5) if budget_on == "share" else g for g in gates)
        assert term.item() == pytest.approx((mean - 0.45) ** 2, rel=1e-4)
        term.backward()
        signs.append(student.router.gate.bias.grad.sign().tolist())
    assert signs == [[1.0] * 4, [-1.0] * 4]


@pytest.mark.parametrize("start", [3.0, -3.0])
@pytest.mark.parametrize("budget_on", ["share", "gate"])
def test_descent_on_the_budget_arrives_there(budget_on, start):
    """[8.1.6] Of gates that differ, as they do in training."""
    made, method = router(start=3.0), small(budget=0.5, budget_on=budget_on)
    made.gate.bias.data.copy_(start + torch.tensor([-1.0, -0.3, 0.3, 1.0]))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.04)
    watch = nn.ModuleDict({"watch": Watch()})
    for _ in range(80):
        gates = made.ahead(sight(8), None)
        share = made.harden(gates)
        route = Route((True,) * DEPTH, share, gates_BL=gates)
        now: Any = Step(None, None, None, None, method.stages()[-1], watch, 0.5)  # type: ignore[arg-type]
        optimizer.zero_grad()
        method._gates(route, now)["reg/budget"].backward()
        optimizer.step()
    mean = share if budget_on == "share" else gates
    assert mean.mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_budget_grows_over_the_warm_up():
    teacher, method = awake(), small(warmup=0.2)
    student = fixed(cut(teacher, method), 0.9, 0.9, 0.9, 0.9)
    found = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        found.append(method.loss(step(method, teacher, student, progress=progress))["reg/budget"].item())
    full = 0.55**2
    assert found == pytest.approx([full * FIRST / (0.2 + FIRST), full * 0.101 / 0.201, full, full], rel=1e-4)


@pytest.mark.parametrize(("gates", "value"), [((0.4,) * 4, 0.0), ((1 - 1e-6, 1e-6) * 2, 0.25)])
@torch.no_grad()
def test_the_released_balance_term_asks_for_equal_gates_not_for_few(gates, value):
    """[7.2, 8.1.6]"""
    teacher, method = awake(), small(balance=2.0)
    student = fixed(cut(teacher, method), *gates)
    assert method.loss(step(method, teacher, student))["reg/balance"].item() == pytest.approx(2 * value, abs=1e-5)


CHANGES: dict[str, Any] = {
    "budget": 0.8, "lambda_budget": 0.5, "budget_on": "gate", "warmup": 0.9, "balance": 0.3, "task": 2.0, "alpha": 0.5,
    "eta": 0.1, "beta": 0.5, "gamma": 1.0, "layers": "sum", "counted": "all", "features": "final", "graph": "mlp_pool",
    "target": "last", "neighbours": 1, "inner": 8, "capsule": 4, "heads_share": 0.2, "heads_lr": 1.0, "start": 1.0,
    "threshold": 0.4, "always_on": (1,), "router_width": 4, "train": ("trunk.",), "teacher_draws": 1, "seed": 3,
}  # fmt: skip


@torch.no_grad()
def test_every_knob_counts():
    """In the surgery, in the stages, or else in the loss."""
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(ActDistill)}
    teacher, base = awake(), small()
    now = step(base, teacher, choosing(cut(teacher, base)))
    plain = whole(base, now)
    for knob, value in CHANGES.items():
        method = dataclasses.replace(base, **{knob: value})
        if (method.cut(teacher), method.stages()) != (base.cut(teacher), base.stages()):
            continue
        batch, draw = inputs(teacher)
        expected = teacher(*method.asked(batch, draw), method.taps(teacher, teacher)[1])
        changed = whole(method, dataclasses.replace(now, teacher_out=expected, aux=method.aux(teacher)))
        same = changed == pytest.approx(plain, rel=1e-6)
        assert same == (knob == "teacher_draws"), f"{knob}: the teacher's expert is not read, all else has to count"


def whole(method: ActDistill, now: Step) -> float:
    return sum(float(term) for name, term in method.loss(now).items() if not name.startswith("note/"))


# -- heads and stages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["current", "last", "chunk"])
def test_heads_are_fitted_to_true_actions_of_real_dimensions(target):
    teacher, method = awake(action_dim=3), small(target=target)
    heads, _ = method.stages()
    student, given = cut(teacher, method), inputs(teacher)
    batch = given[0]
    wanted = {"current": batch.actions_BHA[:, 0, :3], "last": batch.actions_BHA[:, 3, :3]}
    wanted["chunk"] = batch.actions_BHA[..., :3].flatten(1)
    now = dataclasses.replace(step(method, teacher, student, given), out=None, stage=heads)
    (terms,) = method.loss(now).items()
    streams = [now.teacher_out.taps[Tap("prefix", i + 1)] for i in range(DEPTH)]
    actions = now.aux["heads"](streams, now.teacher_out.prefix_BN)[1]
    assert terms[0] == "reg/heads"
    assert terms[1].item() == pytest.approx((actions - wanted[target]).square().mean().item(), rel=1e-6)
    assert (heads.student, heads.train) == (False, ("aux.heads.",))


def test_heads_learn_from_the_tokens():
    """They tell samples apart: their error falls far below that of the best constant."""
    teacher, method = awake(), small()
    now = dataclasses.replace(step(method, teacher, cut(teacher, method), inputs(teacher, 4)), out=None)
    now = dataclasses.replace(now, stage=method.stages()[0])
    optimizer = torch.optim.Adam(now.aux["heads"].parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = method.loss(now)["reg/heads"]
        loss.backward()
        optimizer.step()
    constant = now.batch.actions_BHA[:, 0].var(dim=0, correction=0).mean()
    assert loss.item() < 0.2 * constant.item()


@torch.no_grad()
def test_the_teachers_side_is_deterministic():
    """[8.1.8] Auxiliary modules are equal at every call and draw from nobody's luck; so are targets, bit for bit."""
    teacher, method = awake(), small()
    before = torch.random.get_rng_state()
    one, two = method.aux(teacher), method.aux(teacher)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    batch, draw = inputs(teacher)
    taps = method.taps(teacher, teacher)[1]
    passes = [teacher(batch, draw, taps) for _ in range(2)]
    found = [one["heads"]([out.taps[tap] for tap in taps], out.prefix_BN) for out in passes]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    hole = dataclasses.replace(passes[0], taps={t: x for t, x in passes[0].taps.items() if t.layer != 2})
    with pytest.raises(KeyError):  # never passed over
        method.loss(Step(teacher, batch, None, hole, method.stages()[0], one))


@torch.no_grad()
def test_the_second_stage_begins_with_the_fitted_heads_on_both_sides():
    teacher, method = awake(), small()
    aux, (heads, distil) = method.aux(teacher), method.stages()

    def equal() -> bool:
        pairs = zip(sorted(aux["heads"].state_dict()), sorted(aux["teacher_heads"].state_dict()), strict=True)
        return all(torch.equal(aux["heads"].state_dict()[a], aux["teacher_heads"].state_dict()[b]) for a, b in pairs)

    method.enter(heads, teacher, aux)
    assert not equal(), "the teacher's heads are not there before they are fitted"
    aux["heads"].heads[0].pool.weight.add_(1.0)
    method.enter(distil, teacher, aux)
    assert equal()
    aux["heads"].heads[0].pool.weight.add_(1.0)
    assert not equal(), "the copy moves with the original"


# -- a run -------------------------------------------------------------------------------------------------------------


def trainer(method: ActDistill, **train: Any) -> Any:
    data = FakeData(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)
    teacher = awake()
    teacher.fit_to(data.stats, data.tasks, data.cameras)
    settings = {"steps": 7, "batch": 2, "warmup": 0, "lr": 1e-3, "precision": "fp32", **train}
    return distill.Trainer(surgery.cut(teacher, method.cut(teacher)), teacher, method, data, Train(**settings))


@pytest.fixture(scope="module")
def run() -> Any:
    """A run that asks for no sparsity, and what it told its user."""
    made, said = trainer(small(lambda_budget=0.0), steps=12), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(distill, "LOG_EVERY", 1)
        made.fit(None, [])
    return made, said.getvalue()


def test_heads_are_not_shipped_and_acting_does_not_need_them(run):
    """[8.1.7]"""
    run, _ = run
    student = run.result()
    assert student.state_dict().keys() == run.teacher.model.state_dict().keys() | {
        f"router.{name}" for name, _ in student.router.named_parameters()
    }
    batch, noise = student.example(2), student.noise(2, torch.Generator().manual_seed(5))
    before = student.act(batch, noise)
    run.aux = nn.ModuleDict()
    assert torch.equal(student.act(batch, noise), before)
    assert torch.equal(run.result().act(batch, noise), before)


def test_a_trained_student_reports_the_way_it_took(run):
    session = Eager(fixed(run[0].result(), 0.9, 0.2, 0.9, 0.2), seed=1)
    batch = session.model.example(1)
    session.answer(batch, session.model.noise(1, torch.Generator()))
    assert [route.run for route in session.taken] == [(True, False, True, False)]


def test_notes_are_logged_and_train_nothing():
    class Noted(ActDistill):
        def loss(self, step: Step) -> dict[str, Tensor]:
            huge = sum(p.sum() for p in step.student.parameters()) * 1e6
            return {**super().loss(step), "note/huge": huge * torch.ones(())} if step.out else super().loss(step)

    plain, noted = trainer(small(), steps=2), trainer(Noted(**SMALL), steps=2)
    seen: list[dict[str, float]] = []
    noted.method = dataclasses.replace(noted.method)
    after = noted._after
    noted._after = lambda stage, values, *rest: seen.append(values) or after(stage, values, *rest)
    for one in (plain, noted):
        one.fit(None, [])
    ends = zip(plain.student.state_dict().values(), noted.student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in ends)
    assert all(math.isfinite(values["note/huge"]) and values["note/huge"] != 0 for values in seen)


def test_a_router_that_does_not_choose_is_reported_once(run):
    said = [line for line in run[1].splitlines() if "lithe:" in line]
    assert len(said) == 1
    assert "the router runs every layer for every observation: raise method.lambda_budget" in said[0]


def test_the_watch_counts_how_long_the_router_did_not_choose():
    watch, found = Watch(), []
    on, off, mixed = torch.ones(2, 3), torch.zeros(2, 3), torch.eye(3)[:2]
    for i, share in enumerate((on, on, on, mixed, off, off, off)):
        found.append(float(watch(share, i / 10, watching=i > 0)))
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.0, -0.1, -0.2, -0.3])
    again = Watch()
    again.load_state_dict(watch.state_dict())
    assert float(again(off, 0.7, watching=True)) == pytest.approx(-0.4), "a resumed run begins to count again"
    method = small()
    assert "skips every layer" in method.remark({"note/collapsed": -0.2})
    assert "runs every layer" in method.remark({"note/collapsed": 0.2})
    assert method.remark({"note/collapsed": 0.05}) == method.remark({"reg/heads": 1.0}) == ""
    assert small(budget=1.0).remark({"note/collapsed": 0.2}) == "", "that is what was asked for"


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_budget_that_no_route_can_meet_is_refused():
    teacher = awake()
    with pytest.raises(
        ValueError, match=r"no route can meet method.budget 0.45: always_on runs 2 of 4 .* at least 0.5"
    ):
        small(always_on=(0, 3)).cut(teacher)
    assert small(always_on=(0, 3), budget=0.5).cut(teacher)
    assert small(always_on=(0,)).cut(teacher)
    with pytest.raises(ValueError, match="always_on names layer 7: the policy has layers 0 to 3"):
        cut(teacher, small(always_on=(7,)))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"budget": 0.0}, "budget is the share of layers that run"),
        ({"budget": 1.2}, "choose it above 0, at most 1, not 1.2"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"start": -1.0}, "every layer has to run, so raise start or lower threshold"),
        ({"threshold": 0.95}, "start 2.0 is a gate of 0.88"),
        ({"heads_share": 1.0}, "heads_share and warmup are shares"),
        ({"warmup": -0.1}, "heads_share and warmup are shares"),
        ({"inner": 1}, "inner at least 2"),
        ({"alpha": 0.0, "beta": 0.0}, "say features: none"),
    ],
)
def test_bad_knobs_are_refused_in_words(knobs, words):
    with pytest.raises(ValueError, match=words):
        small(**knobs)
    with pytest.raises(ValueError, match=words):
        recipe.build_method("actdistill", **knobs)


def test_controls_read_no_more_than_they_use():
    teacher = awake()
    for features, taps, aux, names in (
        ("capsules", 4, {"watch", "heads", "teacher_heads"}, {"task", "kd/align", "reg/budget"}),
        ("final", 4, {"watch"}, {"task", "kd/final", "reg/budget"}),
        ("none", 0, {"watch"}, {"task", "reg/budget"}),
    ):
        method = small(features=features)
        student = cut(teacher, method)
        assert [len(found) for found in method.taps(student, teacher)] == [taps, taps]
        assert set(method.aux(teacher)) == aux
        assert len(method.stages()) == (2 if features == "capsules" else 1)
        assert names <= method.loss(step(method, teacher, student)).keys()
        assert method.needs_teacher == (features != "none")
