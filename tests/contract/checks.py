"""The contract as plain functions, one a row: they take a case and an empty folder, and fail when the row is broken.

`test_contract.py` runs them on every method and family, `test_planted_bugs.py` on broken copies. A row that has nothing
to say about a case skips it with the reason.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lithe import checkpoint, recipe, surgery
from lithe._disk import sha256
from lithe.families.base import Family
from lithe.methods.base import Method, Step
from lithe.surgery import KeepLayers
from lithe.types import Draw, Route, Tap

from .cases import Case, same, tensors
from .fresh import actions, elsewhere, fingerprint, observation

TRUNK = "trunk"
MODES = ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "freeze_vision": True})


# -- rows 1 to 6: cutting and training ---------------------------------------------------------------------------------


def stacks_stay_in_lockstep(case: Case, folder: Path) -> None:
    """1. All paths of a Stack have equal depth after every op, the kept indices agree, and layers are renumbered."""
    model = teacher = case.teacher()
    for op in case.build().cut(teacher):
        before, model = model, surgery.cut(model, [op])
        for stack in model.stacks:
            depths = {len(model.get_submodule(path)) for path in stack.paths}
            depths |= {surgery.reach(model, counter) for counter in stack.counters}
            assert len(depths) == 1, f"{stack.name} has depths {depths}"
            origins = [_origins(model.get_submodule(path), before.get_submodule(path)) for path in stack.paths]
            assert all(o == origins[0] for o in origins), f"{stack.paths} were cut differently: {origins}"
            for path in stack.paths if stack.index else ():
                numbers = [getattr(layer, stack.index) for layer in model.get_submodule(path)]
                assert numbers == list(range(len(numbers))), f"{path} is numbered {numbers}"


def _origins(kept: Any, before: Any) -> list[int]:
    """Which layer of `before` each kept layer is, bit for bit."""
    return [next(i for i, old in enumerate(before) if same(tensors(old), tensors(layer))) for layer in kept]


def teacher_and_student_share_the_draw(case: Case, folder: Path) -> None:
    """2. Same view, noise, time and image features for both, another draw at every step, under live augmentation."""
    (stage, *_) = [stage for stage in _needs_teacher(case).stages() if stage.student]
    trainer = case.trainer(case.watched(lambda *_: None, stage=stage), steps=3)
    seen: dict[str, list[tuple[Any, Draw]]] = {"student": [], "teacher": []}
    for name, model in (("student", trainer.student), ("teacher", trainer.teacher.model)):
        model.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[:2]))
    trainer.fit(None, [])
    assert len(seen["student"]) == len(seen["teacher"]) == 3
    for (mine, my_draw), (theirs, their_draw) in zip(seen["student"], seen["teacher"]):
        for a, b in ((mine, theirs), (my_draw, their_draw)):
            for key, value in vars(a).items():
                other = getattr(b, key)
                assert value is other or torch.equal(value, other), f"teacher and student got different {key}"
    views, noises = ([getattr(draw, key) for _, draw in seen["student"]] for key in ("view_BVCYX", "noise_BRHA"))
    assert not torch.equal(noises[0], noises[1]) and not torch.equal(views[0], views[1]), "every step had the same draw"


def nothing_to_learn_when_whole(case: Case, folder: Path) -> None:
    """3. With every layer running, every kd/* term is exactly 0 at step 0, and so is its gradient."""
    _needs_teacher(case)
    teacher = case.teacher()
    ops = case.build(keep=teacher.depth(TRUNK)).cut(teacher)
    if any(len(op.layers) < teacher.depth(op.stack) for op in ops if isinstance(op, KeepLayers)):
        pytest.skip("this method always removes layers")

    def look(student: Family, terms: dict[str, Tensor]) -> None:
        weights = [p for p in student.parameters() if p.requires_grad]
        for name, term in _distillation(terms).items():
            assert term.item() == 0.0, f"{name} is {term.item()} with every layer running"
            found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            largest = max((float(g.abs().max()) for g in found if g is not None), default=0.0)
            assert largest == 0.0, f"{name} has a gradient of {largest} with every layer running"

    depth = teacher.depth(TRUNK)
    for stage in (stage for stage in case.build(keep=depth).stages() if stage.student):
        for mode in MODES:
            method = case.watched(look, keep=depth, stage=stage, shut=True)
            case.trainer(method, **_freezing(teacher, mode)).fit(None, [])


def a_cut_has_to_be_paid_for(case: Case, folder: Path) -> None:
    """4. A really cut student pays a finite price > 0 for every kd/* term, and every weight among the knobs counts."""
    teacher = case.teacher()
    if all(
        len(op.layers) == teacher.depth(op.stack)
        for op in _needs_teacher(case).cut(teacher)
        if isinstance(op, KeepLayers)
    ):
        pytest.skip("this method removes no layer")
    names: set[str] = set()

    def look(student: Family, terms: dict[str, Tensor]) -> None:
        names.update(_distillation(terms))
        weights = [p for p in student.parameters() if p.requires_grad]
        for name, term in _distillation(terms).items():
            assert 0.0 < term.item() < float("inf"), f"{name} is {term.item()} for a cut student"
            found = (
                torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True) if term.requires_grad else ()
            )
            assert any(g is not None and g.abs().max() > 0 for g in found), f"{name} teaches nothing: no gradient"

    for mode in MODES:
        case.trainer(case.watched(look), **_freezing(teacher, mode)).fit(None, [])
    assert names, "the method asks for a teacher and has no kd/* term"
    plain = _answers(case, case.build())
    for knob, value in vars(case.build()).items():
        if isinstance(value, float) and value:
            assert _answers(case, case.build(**{knob: value / 2})) != plain, f"the knob {knob!r} changes nothing"


def _answers(case: Case, method: Method) -> str:
    """Everything a method says about one teacher and one batch, as text."""
    teacher = case.teacher()
    ops, stages = method.cut(teacher), method.stages()
    student = surgery.cut(teacher, ops)
    batch = student.example(2)
    draw = student.draw(batch, torch.Generator().manual_seed(0), 2)
    mine, theirs = method.taps(student, teacher)
    with torch.no_grad():
        out, expected = student(batch, draw, mine), teacher(batch, draw, theirs) if method.needs_teacher else None
        steps = [Step(student, batch, out if s.student else None, expected, s, method.aux(teacher)) for s in stages]
        terms = [{k: float(v) for k, v in method.loss(step).items()} for step in steps]
    return repr((ops, stages, mine, theirs, terms))


def stages_train_what_they_claim(case: Case, folder: Path) -> None:
    """5. Every parameter prefix a Stage claims to train exists and moves; everything else stays as it was."""
    for stage in case.build().stages():
        for freeze in ((), case.family.vision_prefixes):
            trainer = case.trainer(case.watched(lambda *_: None, stage=stage), steps=2, freeze=freeze)
            before = _parameters(trainer)
            trainer.fit(None, [])
            moved = {name for name, value in _parameters(trainer).items() if not torch.equal(value, before[name])}
            claimed = {n for n in before if n.startswith(stage.train) and not n.startswith(freeze or "\0")}
            assert moved <= claimed, f"{sorted(moved - claimed)[:3]} moved in stage {stage.name!r}"
            for prefix in stage.train:
                assert any(name.startswith(prefix) for name in before), f"stage {stage.name!r} trains {prefix!r}"
            stuck = {n.split(".")[0] for n in claimed} - {n.split(".")[0] for n in moved}
            assert not stuck, f"nothing in {sorted(stuck)} moved in stage {stage.name!r}"


def _parameters(trainer: Any) -> dict[str, Tensor]:
    parts = {"": trainer.student, "aux.": trainer.aux}
    return {f"{prefix}{k}": p.detach().clone() for prefix, part in parts.items() for k, p in part.named_parameters()}


def teacher_is_left_alone(case: Case, folder: Path) -> None:
    """6. The teacher runs in eval mode without gradients, and is bit-identical after training."""
    teacher = case.teacher().train()
    before, method = tensors(teacher), case.build()
    trainer = case.trainer(method, teacher, steps=2)

    def inspect(model: Family, inputs: Any) -> None:
        assert method.needs_teacher, "the teacher ran although the method does not need it"
        assert not any(m.training for m in model.modules()), "the teacher is in training mode"
        assert not torch.is_grad_enabled(), "the teacher runs with gradients"

    teacher.register_forward_pre_hook(inspect)
    trainer.fit(None, [])
    assert same(tensors(teacher), before), "training changed the teacher"
    assert all(p.grad is None for p in teacher.parameters()), "the teacher was given gradients"


# -- rows 7 to 10: disk, data, words -----------------------------------------------------------------------------------


def survives_the_disk(case: Case, folder: Path) -> None:
    """7. save -> fresh process -> load gives bit-identical actions."""
    student = case.student()
    expected = fingerprint(student)
    checkpoint.save(student, folder / "student")
    assert elsewhere(folder / "student") == expected, "a fresh process acts differently"


def a_cut_is_data(case: Case, folder: Path) -> None:
    """8. `cut()` survives JSON, changes nothing, and does without weights."""
    teacher = case.teacher()
    before, shape = tensors(teacher), (teacher.describe(), list(teacher.history), str(teacher))
    ops = case.build().cut(teacher)
    assert [surgery.parse(json.loads(json.dumps(surgery.dump(op)))) for op in ops] == ops, "not the same after JSON"
    assert same(tensors(teacher), before), "cut() wrote to the teacher"
    assert (teacher.describe(), teacher.history, str(teacher)) == shape, "cut() changed the teacher's shape"
    assert case.build().cut(teacher.to("meta")) == ops, "the cut depends on weights"


def refuses_wrong_tensors(case: Case, folder: Path) -> None:
    """9. Loading refuses missing, extra and misshaped tensors, naming one."""
    checkpoint.save(case.student(), folder / "student")
    good = load_file(folder / "student" / checkpoint.WEIGHTS)
    first, *_, last = sorted(good)
    wrong: list[tuple[str, dict[str, Tensor]]] = [
        (first, {k: v for k, v in good.items() if k != first}),
        (last, {k: v for k, v in good.items() if k != last}),
        ("surplus.weight", {**good, "surplus.weight": torch.zeros(1)}),
        (first, {**good, first: torch.cat([good[first], good[first]])}),
    ]
    for name, weights in wrong:
        rewrite(folder / "student", weights)
        with pytest.raises(ValueError, match="do not fit the model") as refused:
            checkpoint.load(folder / "student")
        assert name in str(refused.value)
    rewrite(folder / "student", good)
    checkpoint.load(folder / "student")


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    """Other weights with a matching checksum: what a careless tool would write."""
    save_file(weights, folder / checkpoint.WEIGHTS)
    card = json.loads((folder / checkpoint.CARD).read_text())
    card["sha256"] = sha256(folder / checkpoint.WEIGHTS)
    card.pop("files", None)
    (folder / checkpoint.CARD).write_text(json.dumps(card))


def refuses_wrong_keys(case: Case, folder: Path) -> None:
    """10. A recipe with one wrong key fails with a suggestion."""
    kind = case.method.__module__.rpartition(".")[2]
    knobs = list(vars(case.build()))
    for knob in knobs:
        with pytest.raises(ValueError, match=f"{knob}s.*did you mean {knob!r}"):
            recipe.build_method(kind, **{knob + "s": 1})
    for knob in knobs[:1]:  # a whole recipe asks the same function
        data = {
            "name": "x",
            "teacher": {"family": case.family.name, "preset": "pico"},
            "method": {"name": kind, knob + "s": 1},
            "data": {"name": "fake"},
        }
        with pytest.raises(ValueError, match=f"{knob}s.*did you mean {knob!r}"):
            recipe.parse(data, "recipe")


def refuses_wrong_settings(case: Case, folder: Path) -> None:
    """10, the family's half. A wrong setting of the family fails with a suggestion."""
    for setting in case.model.describe():
        with pytest.raises(ValueError, match=f"{setting}s.*did you mean {setting!r}"):
            case.family.fresh("pico", **{setting + "s": 1})


# -- rows 11 to 14: running --------------------------------------------------------------------------------------------


def runtimes_agree(case: Case, folder: Path) -> None:
    """11. Every Runtime agrees with eager for the same noise; detaching restores the model bit for bit."""
    student = case.student()
    reference, before = actions(student), tensors(student)
    batch, noise = student.example(2), student.noise(2, torch.Generator().manual_seed(5))
    for kind in case.runtimes:
        try:
            runtime = kind(student)
        except ValueError:
            continue  # this device or model does not allow it, and it says so
        chunk = runtime.chunk(batch, noise).float().cpu()
        torch.testing.assert_close(chunk, torch.from_numpy(reference[0]), rtol=0, atol=1e-3)
        del runtime
        assert same(tensors(student), before), f"{kind.__name__} left its mark on the weights"
        again = actions(student)
        assert all((a == b).all() for a, b in zip(again, reference)), f"{kind.__name__} left its mark on the actions"


def soft_and_hard_routes_are_exact(case: Case, folder: Path) -> None:
    """12. Soft routing at share g is lerp(h, layer(h), g), exact at 0 and 1, also in bf16; a hard route is a cut."""
    for dtype in (torch.float32, torch.bfloat16):
        model = case.teacher().to(dtype)
        depth = model.depth(TRUNK)
        share_BL = torch.rand(2, depth, generator=torch.Generator().manual_seed(2))
        share_BL[0, 0], share_BL[1, 0], share_BL[0, 1], share_BL[1, 1] = 0.0, 1.0, 1.0, 0.0
        seen, _ = _layer_streams(model, Route((True,) * depth, share_BL))
        for path, layers in seen.items():
            for i, (before, after, mixed) in enumerate(layers):
                share = share_BL[:, i, None, None].to(after.dtype)
                assert torch.equal(mixed, torch.lerp(before, after, share)), f"{path}.{i} in {dtype} is not the mix"
                for row in range(2):
                    end = {0.0: before, 1.0: after}.get(float(share_BL[row, i]))
                    assert end is None or torch.equal(mixed[row], end[row]), f"{path}.{i} is not exact at the ends"
        whole, skipping = Route((True,) * depth, torch.ones(2, depth)), torch.ones(2, depth)
        skipping[:, 1] = 0.0
        assert torch.equal(_layer_streams(model, whole)[1], _layer_streams(model, None)[1]), (
            "a share of 1 is not running"
        )
        skipped = _layer_streams(model, Route.without(depth, 1))[1]
        softly = _layer_streams(model, Route((True,) * depth, skipping))[1]
        assert torch.equal(softly, skipped), "a share of 0 is not skipping"
    teacher = case.teacher()
    noise = teacher.noise(2, torch.Generator().manual_seed(5))
    for gone in ((0,), (depth - 1,), (1, 2)):
        cut = surgery.cut(teacher, [KeepLayers(TRUNK, tuple(i for i in range(depth) if i not in gone))])
        routed = teacher.act(teacher.example(2), noise, route=Route.without(depth, *gone))
        assert torch.equal(routed, cut.act(teacher.example(2), noise)), f"skipping {gone} is not removing them"


@torch.no_grad()
def _layer_streams(model: Family, route: Route | None) -> tuple[dict[str, list[tuple[Tensor, Tensor, Tensor]]], Tensor]:
    """For every path of the trunk: what went into each layer, what came out, what the next one got; and the output."""
    batch = model.example(2)
    draw = model.draw(batch, torch.Generator().manual_seed(3), augment=False)
    paths = surgery.find_stack(model, TRUNK).paths
    inward: dict[str, list[Tensor]] = {path: [] for path in paths}
    outward: dict[str, list[Tensor]] = {path: [] for path in paths}

    def record(module: Any, inputs: Any, output: Any, path: str) -> None:
        inward[path].append(inputs[0])
        outward[path].append(output if isinstance(output, Tensor) else output[0])

    layers = [(path, layer) for path in paths for layer in model.get_submodule(path)]
    hooks = [layer.register_forward_hook(functools.partial(record, path=path)) for path, layer in layers]
    with torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16):
        out = model(batch, draw, [Tap("prefix", i) for i in range(model.depth(TRUNK))], route)
    for hook in hooks:
        hook.remove()
    return {p: list(zip(inward[p], outward[p], inward[p][1:])) for p in paths}, out.pred_BRHA


def sessions_do_not_leak(case: Case, folder: Path) -> None:
    """13. `reset()` clears all memory, and two interleaved sessions on one model do not notice each other."""
    student = case.student()
    first, second = (observation(student.spec, seed) for seed in (1, 2))
    for kind in case.runtimes:
        try:
            a, b = kind(student, seed=1), kind(student, seed=2)
        except ValueError:
            continue  # as in row 11
        alone = [[runtime.infer(o).copy() for o in (first, second)] for runtime in (a, b)]
        assert not (alone[0][0] == alone[1][0]).all(), "the seed changes nothing"
        a.reset(1)
        b.reset(2)
        mixed = [(a.infer(o).copy(), b.infer(o).copy()) for o in (first, second)]
        for i, chunks in enumerate(mixed):
            for session, chunk in enumerate(chunks):
                assert (chunk == alone[session][i]).all(), (
                    f"{kind.__name__}: a session depends on its neighbour or its past"
                )


def skipped_layers_do_not_run(case: Case, folder: Path) -> None:
    """14. The code of a skipped layer is not executed, in no path of the stack; that of every other layer is."""
    model = case.teacher()
    depth, paths = model.depth(TRUNK), surgery.find_stack(model, TRUNK).paths
    ran: set[tuple[str, int]] = set()
    for path in paths:
        for i, layer in enumerate(model.get_submodule(path)):
            for part in layer.modules():  # any part of it, for a layer may be asked for its keys alone
                part.register_forward_hook(lambda *_, mark=(path, i): ran.add(mark))
    batch = model.example(1)
    draw, noise = model.draw(batch, torch.Generator().manual_seed(0)), model.noise(1, torch.Generator())
    for gone in ((), (0,), (depth - 1,), (1, 2), tuple(range(1, depth))):
        route = Route.without(depth, *gone)
        expected = {(path, i) for path in paths for i in range(depth) if i not in gone}
        model(batch, draw, (), route)
        assert ran == expected, f"without {gone}: training ran {sorted(ran)}"
        ran.clear()
        model.act(batch, noise, 2, route)
        assert ran == expected, f"without {gone}: acting ran {sorted(ran)}"
        ran.clear()


def _needs_teacher(case: Case) -> Method:
    method = case.build()
    if not method.needs_teacher:
        pytest.skip("this method reads nothing from a teacher")
    if not method.stages():
        pytest.skip("this method needs no training")
    return method


def _distillation(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term for name, term in terms.items() if name.startswith("kd/")}


def _freezing(model: Family, mode: dict[str, Any]) -> dict[str, Any]:
    mode = dict(mode)
    return {**mode, "freeze": model.vision_prefixes} if mode.pop("freeze_vision", False) else mode


ROWS = (
    stacks_stay_in_lockstep,
    teacher_and_student_share_the_draw,
    nothing_to_learn_when_whole,
    a_cut_has_to_be_paid_for,
    stages_train_what_they_claim,
    teacher_is_left_alone,
    survives_the_disk,
    a_cut_is_data,
    refuses_wrong_tensors,
    refuses_wrong_keys,
    refuses_wrong_settings,
    runtimes_agree,
    soft_and_hard_routes_are_exact,
    sessions_do_not_leak,
    skipped_layers_do_not_run,
)
FAMILY_ROWS = (refuses_wrong_settings, soft_and_hard_routes_are_exact, skipped_layers_do_not_run)  # see no method
