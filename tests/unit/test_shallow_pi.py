"""Shallow-pi: its layer map, its attention transfer against a slow formula, and what must hold of each of its terms.

The numbers in brackets refer to section 8.1 of the reconstruction notes: properties that any faithful version has.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lithe import surgery
from lithe.families import _flow
from lithe.families._attention import MASKED
from lithe.families.pi import Pi
from lithe.methods._depth import first, uniform
from lithe.methods.base import Step
from lithe.methods.shallow_pi import ShallowPi
from lithe.types import Batch, Draw, Tap

MAP = {  # student depth -> layers kept of a teacher with 18
    3: (0, 8, 17),
    4: (0, 6, 11, 17),
    6: (0, 3, 7, 10, 14, 17),
    8: (0, 2, 5, 7, 10, 12, 15, 17),
    9: (0, 2, 4, 6, 8, 11, 13, 15, 17),
    10: (0, 2, 4, 6, 8, 9, 11, 13, 15, 17),
    11: (0, 2, 3, 5, 7, 8, 10, 12, 14, 15, 17),
    12: (0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17),
    15: (0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17),
}
VARIANTS = ("pi05", "pi0")


def awake(variant: str = "pi05", depth: int = 4) -> Pi:
    """A pico policy with every parameter moved away from its zero initialisation."""
    model, generator = Pi.fresh("pico", variant=variant, depth=depth), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def inputs(model: Pi, draws: int = 2, augment: bool = False) -> tuple[Batch, Draw]:
    batch = model.example(3, torch.Generator().manual_seed(2))
    return batch, model.draw(batch, torch.Generator().manual_seed(3), draws, augment)


def terms(method: ShallowPi, teacher: Pi, student: Pi | None = None, inputs_: tuple[Batch, Draw] | None = None) -> dict:
    student = student or surgery.cut(teacher, method.cut(teacher))
    mine, theirs = method.taps(student, teacher)
    batch, draw = inputs_ or inputs(teacher)
    with torch.no_grad():
        expected = teacher(*method.asked(batch, draw), theirs)
    out, stage = student(batch, draw, mine), method.stages()[0]
    return method.loss(Step(student, batch, out, expected, stage, nn.ModuleDict()))


# -- the cut -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", MAP)
def test_layers_are_spread_as_in_the_released_code(keep):
    assert uniform(18, keep) == MAP[keep]


def test_the_map_at_its_ends():
    assert uniform(18, 18) == tuple(range(18)) and uniform(18, 1) == (0,) and uniform(18, 2) == (0, 17)
    for depth in range(1, 40):
        for keep in range(2, depth + 1):
            layers = uniform(depth, keep)
            assert layers[0] == 0 and layers[-1] == depth - 1 and list(layers) == sorted(set(layers))
    assert first(18, 3) == (0, 1, 2)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_a_depth_that_cannot_be_kept_is_refused(keep):
    with pytest.raises(ValueError, match=f"cannot keep {keep} layers of 4: set method.keep to a number from 1 to 4"):
        ShallowPi(keep=keep).cut(Pi.fresh("pico"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keep", [6, 9, 11, 12])
def test_both_stacks_follow_the_map_bit_for_bit(variant, keep):
    """[8.1.2]"""
    teacher = awake(variant, depth=18)
    student = surgery.cut(teacher, ShallowPi(keep=keep).cut(teacher))
    assert student.config.depth == keep
    for path in ("trunk.layers", "expert.layers"):
        layers, originals = student.get_submodule(path), teacher.get_submodule(path)
        assert [layer.index for layer in layers] == list(range(keep))
        for layer, origin in zip(layers, MAP[keep], strict=True):
            theirs = originals[origin].state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in layer.state_dict().items())
    rest = {k: v for k, v in teacher.state_dict().items() if ".layers." not in k or k.startswith("vision")}
    assert rest and all(torch.equal(value, student.state_dict()[key]) for key, value in rest.items())


def test_the_released_defect_can_be_rebuilt():
    teacher = awake(depth=18)
    student = surgery.cut(teacher, ShallowPi(keep=6, scope="expert_only").cut(teacher))
    for path, origins in (("trunk.layers", range(6)), ("expert.layers", MAP[6])):
        for layer, origin in zip(student.get_submodule(path), origins, strict=True):
            assert torch.equal(layer.k_proj.weight, teacher.get_submodule(path)[origin].k_proj.weight)


# -- attention transfer ------------------------------------------------------------------------------------------------


def scores(seed: int, prefix: int = 7, suffix: int = 3, masked: tuple[int, ...] = (2, 6)) -> Tensor:
    """Random scores [2, 2, 3, prefix + suffix] with the same masked prefix columns for every seed."""
    found = torch.randn(2, 2, 3, prefix + suffix, generator=torch.Generator().manual_seed(seed)) * 3
    found[..., list(masked)] = MASKED
    return found


def slowly(method: ShallowPi, student: Tensor, teacher: Tensor, prefix: int) -> float:
    """The same divergence with loops, in double precision, over valid keys only."""

    def attention(row: Tensor) -> dict[int, float]:
        keys = [n for n in range(prefix if method.renormalise else len(row)) if row[n] > MASKED / 2]
        weights = {n: math.exp(float(row[n]) / method.temperature) for n in keys}
        return {n: w / sum(weights.values()) for n, w in weights.items() if n < prefix}

    found, (batch, heads, queries, _) = [], student.shape
    for b in range(batch):
        for q in range(queries):
            pairs = [(attention(teacher[b, k, q]), attention(student[b, k, q])) for k in range(heads)]
            if method.heads == "mean":
                pairs = [tuple({n: sum(p[i][n] for p in pairs) / heads for n in pairs[0][0]} for i in (0, 1))]
            if method.direction == "reverse":
                pairs = [(s, t) for t, s in pairs]
            found += [sum(t[n] * math.log(t[n] / s[n]) - t[n] + s[n] for n in t) for t, s in pairs]
    return sum(found) / len(found)


OPTIONS = [
    {"heads": heads, "renormalise": renormalise, "direction": direction, "temperature": temperature}
    for heads in ("separate", "mean")
    for renormalise in (True, False)
    for direction in ("forward", "reverse")
    for temperature in (1.0, 2.5)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_transfer_is_the_slow_formula(options):
    method = ShallowPi(**options)
    student, teacher = scores(0), scores(1)
    assert float(method.transfer(student, teacher, 7)) == pytest.approx(slowly(method, student, teacher, 7), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_transfer_of_equal_attention_is_zero_and_so_is_its_gradient(options):
    student = scores(0).requires_grad_()
    value = ShallowPi(**options).transfer(student, scores(0), 7)
    value.backward()
    assert value.item() == 0.0 and student.grad.abs().max().item() == 0.0


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_masked_keys_contribute_exactly_nothing(options):
    """[8.1.6] Neither to the value, whatever stands there in both, nor to the gradient; nor do more of them."""
    method, student = ShallowPi(**options), scores(0).requires_grad_()
    value = method.transfer(student, scores(1), 7)
    value.backward()
    assert student.grad[..., [2, 6]].abs().max().item() == 0.0 and student.grad.abs().max() > 0
    padding = torch.full((2, 2, 3, 4), MASKED)
    wider = [torch.cat([scores(seed)[..., :7], padding, scores(seed)[..., 7:]], dim=-1) for seed in (0, 1)]
    assert method.transfer(*wider, 11).item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_transfer_is_never_negative_and_finite(options):
    method = ShallowPi(**options)
    for seed in range(20):
        for size in (1e-3, 1.0, 30.0):
            pair = [torch.where(x > MASKED / 2, x * size, x) for x in (scores(seed), scores(seed + 100))]
            value = method.transfer(*pair, 7).item()
            assert -1e-6 < value < math.inf


def test_attention_over_valid_keys_sums_to_one():
    """[8.1.6]"""
    p = ShallowPi()._log_attention(scores(0), 7).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 2, 3))
    assert p[..., [2, 6]].abs().max().item() == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_loss_does_not_see_padding(variant):
    teacher, method = awake(variant), ShallowPi(keep=2, attention=1.0)
    batch, draw = inputs(teacher)
    more = dataclasses.replace(
        batch,
        tokens_BT=torch.nn.functional.pad(batch.tokens_BT, (0, 5), value=7),
        text_BT=torch.nn.functional.pad(batch.text_BT, (0, 5), value=False),
    )
    plain, padded = (terms(method, teacher, inputs_=(b, draw)) for b in (batch, more))
    for name, term in plain.items():
        torch.testing.assert_close(padded[name], term, rtol=1e-5, atol=1e-7)


# -- the loss ----------------------------------------------------------------------------------------------------------

CHANGES = {
    "keep": 3,
    "by": "first",
    "layers": (1, 2),
    "task": 2.0,
    "velocity": 0.5,
    "attention": 0.3,
    "attention_layers": (0, 1),
    "heads": "mean",
    "renormalise": False,
    "temperature": 2.0,
    "direction": "reverse",
    "teacher_draws": 1,
    "teacher_every": 2,
    "scope": "expert_only",
}


def test_every_knob_is_tried_below():
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(ShallowPi)}


@pytest.mark.parametrize("knob", CHANGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_knob_changes_the_loss(variant, knob):
    teacher, base = awake(variant), ShallowPi(keep=2)
    total = [sum(terms(m, teacher).values()).item() for m in (base, dataclasses.replace(base, **{knob: CHANGES[knob]}))]
    assert total[0] != pytest.approx(total[1], rel=1e-6)


def test_weights_are_factors_of_their_terms():
    teacher = awake()
    plain = terms(ShallowPi(keep=2, attention=1.0), teacher)
    weighted = terms(ShallowPi(keep=2, task=2.0, velocity=3.0, attention=4.0), teacher)
    for name, factor in (("task", 2), ("kd/velocity", 3), ("kd/attention", 4)):
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_without_attention_nothing_is_tapped():
    teacher, method = awake(), ShallowPi(keep=2, attention=0.0)
    assert method.taps(teacher, teacher) == ((), ())
    assert terms(method, teacher).keys() == {"task", "kd/velocity"}


def test_the_tapped_layers_are_the_middle_and_its_origin():
    """L6: 3 and 10, L9: 4 and 8 of a teacher with 18 layers."""
    teacher = Pi.fresh("pico", depth=18)
    for keep, mine, theirs in ((6, 3, 10), (9, 4, 8)):
        found = ShallowPi(keep=keep).taps(teacher, teacher)
        assert found == ((Tap("attention", mine),), (Tap("attention", theirs),))
    chosen = ShallowPi(keep=6, attention_layers=(5, 17)).taps(teacher, teacher)
    assert chosen == ((Tap("attention", 5),), (Tap("attention", 17),))


@pytest.mark.parametrize(
    ("layers", "who"), [((2, 0), "student has layers 0 to 1, not 2"), ((0, 4), "teacher has layers 0 to 3")]
)
def test_a_tap_that_is_not_there_is_refused(layers, who):
    teacher = Pi.fresh("pico")
    with pytest.raises(ValueError, match=f"method.attention_layers: the {who}"):
        ShallowPi(keep=2, attention_layers=layers).taps(teacher, teacher)


@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_are_the_errors_of_the_velocities(variant):
    teacher, method = awake(variant), ShallowPi(keep=2)
    student = surgery.cut(teacher, method.cut(teacher))
    batch, draw = inputs(teacher)
    found = terms(method, teacher, student, (batch, draw))
    mine, theirs = (model(batch, draw).pred_BRHA.detach().double().numpy() for model in (student, teacher))
    target = draw.noise_BRHA.double().numpy() - batch.actions_BHA[:, None].double().numpy()
    assert found["task"].item() == pytest.approx(np.mean((mine - target) ** 2), rel=1e-5)
    assert found["kd/velocity"].item() == pytest.approx(np.mean((mine - theirs) ** 2), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"renormalise": False}])
def test_a_teacher_asked_about_fewer_draws_gives_the_same_targets_for_those(variant, options):
    """The task loss still uses every draw; the other two equal those of a step that has only the first draw."""
    teacher, method = awake(variant), ShallowPi(keep=2, attention=1.0, teacher_draws=1, **options)
    batch, draw = inputs(teacher, draws=3)
    everything, some, one = (
        terms(m, teacher, inputs_=(batch, d))
        for m, d in ((dataclasses.replace(method, teacher_draws=0), draw), (method, draw), (method, draw.first(1)))
    )
    torch.testing.assert_close(some["task"], everything["task"], rtol=0, atol=0)
    for name in ("kd/velocity", "kd/attention"):
        torch.testing.assert_close(some[name], one[name], rtol=1e-5, atol=1e-7)
        assert some[name].item() != pytest.approx(everything[name].item(), rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_teacher_asked_about_every_second_sample_gives_the_same_targets_for_those(variant):
    """As above, with samples in place of draws; also together with fewer draws."""
    teacher, rows = awake(variant), slice(None, None, 2)
    batch, draw = inputs(teacher, draws=2)
    for draws in (0, 1):
        method = ShallowPi(keep=2, attention=1.0, teacher_every=2, teacher_draws=draws)
        all_of = dataclasses.replace(method, teacher_every=1)
        everything = terms(all_of, teacher, inputs_=(batch, draw))
        some = terms(method, teacher, inputs_=(batch, draw))
        apart = terms(all_of, teacher, inputs_=(batch.take(rows), draw.take(rows)))
        torch.testing.assert_close(some["task"], everything["task"], rtol=0, atol=0)
        for name in ("kd/velocity", "kd/attention"):
            torch.testing.assert_close(some[name], apart[name], rtol=1e-5, atol=1e-7)
            assert some[name].item() != pytest.approx(everything[name].item(), rel=1e-4)


def test_more_draws_than_there_are_is_refused():
    with pytest.raises(ValueError, match="cannot take 5 noise draws of 2"):
        terms(ShallowPi(keep=2, teacher_draws=5), awake())


@pytest.mark.parametrize("spoil", [None, "view", "noise", "time"])
def test_the_teacher_as_its_own_student_has_no_error_unless_the_draw_differs(spoil):
    """[8.1.4] Under live augmentation."""
    teacher = awake()
    batch, draw = inputs(teacher, augment=True)
    _, other = inputs(teacher, augment=False)
    fields = {"view": "view_BVCYX", "noise": "noise_BRHA", "time": "time_BR"}
    changed = {"view": other.view_BVCYX, "noise": draw.noise_BRHA.flip(1), "time": draw.time_BR.flip(1)}
    theirs = dataclasses.replace(draw, **{fields[spoil]: changed[spoil]}) if spoil else draw
    with torch.no_grad():
        error = teacher.imitation_loss(teacher(batch, draw), teacher(batch, theirs)).item()
    assert error > 0 if spoil else error == 0.0


def test_the_task_loss_is_the_same_in_the_other_time_convention():
    """[8.1.5] a_tau = tau a + (1 - tau) noise with target a - noise, as in the paper, is our t = 1 - tau."""
    g = torch.Generator().manual_seed(0)
    actions, noise, velocity_tau = (torch.randn(3, 2, 4, 5, generator=g) for _ in range(3))
    tau = torch.rand(3, 2, generator=g)
    noisy_tau = tau[..., None, None] * actions + (1 - tau[..., None, None]) * noise
    loss_tau = (velocity_tau - (actions - noise)).square().mean()
    velocity, time = _flow.from_tau(velocity_tau, tau)
    noisy, target = _flow.interpolate(actions, noise, time)
    torch.testing.assert_close(noisy, noisy_tau)
    torch.testing.assert_close((velocity - target).square().mean(), loss_tau)


def test_both_conventions_walk_the_same_way():
    """Euler from noise to data: tau grows with the velocity, t falls against it."""
    field = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))

    def velocity_tau(x: Tensor, tau: Tensor) -> Tensor:
        return field * (1 + tau[:, None, None]) - 0.3 * x

    x, steps = torch.zeros(2, 3, 4), 5
    for step in range(steps):
        x = x + velocity_tau(x, torch.full((2,), step / steps)) / steps
    ours = _flow.euler(lambda y, t, _: _flow.from_tau(velocity_tau(y, 1 - t), 1 - t)[0], torch.zeros(2, 3, 4), steps)
    torch.testing.assert_close(ours, x)


def test_no_gradient_reaches_the_teacher():
    """[8.1.7]"""
    teacher, method = awake(), ShallowPi(keep=2)
    sum(terms(method, teacher).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
