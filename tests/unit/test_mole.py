"""MoLe: exactly `keep` layers for every observation, really skipped; its losses against slow formulas; its router."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe import registry, surgery
from lithe.methods.base import Step
from lithe.methods.mole import Mole, cognition
from lithe.routers import star
from lithe.routers.base import Router, Sight, Sizes
from lithe.routers.star import Star
from lithe.surgery import InstallRouter
from lithe.types import Batch, Draw, Route, Tap

DEPTH = 4
VARIANTS = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {"image_marks": (5, 6)}))


def teacher(name: str = "pi", settings: dict[str, Any] | None = None) -> Any:
    """A pico policy with every parameter moved away from its initialisation."""
    model: Any = registry.get("families", name).fresh("pico", **(settings or {}))  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def cut(whole: Any, decisive: float = 30.0, **knobs: Any) -> Any:
    """A student whose router has opinions, which differ between observations."""
    student = surgery.cut(whole, Mole(**knobs).cut(whole)).eval()
    with torch.no_grad():
        student.router.spatial_out.weight.mul_(decisive)
        student.router.temporal_out.weight.mul_(decisive)
    return student


def inputs(model: Any, batch: int = 6) -> tuple[Batch, Draw]:
    found = model.example(batch, torch.Generator().manual_seed(2))
    return found, model.draw(found, torch.Generator().manual_seed(3), 2, augment=False)


def noise(model: Any, batch: int) -> Tensor:
    return model.noise(batch, torch.Generator().manual_seed(5))


def terms(method: Mole, whole: Any, student: Any) -> dict[str, Tensor]:
    mine, theirs = method.taps(student, whole)
    batch, draw = inputs(whole)
    with torch.no_grad():
        expected = whole(batch, draw, theirs)
    out = student(batch, draw, mine)
    return method.loss(Step(student, batch, out, expected, method.stages()[0], method.aux(whole)))


# -- the route ---------------------------------------------------------------------------------------------------------


def check_every_observation_runs_exactly_keep_layers(whole: Any) -> None:
    batch, draw = inputs(whole)
    ran: list[tuple[str, int]] = []
    ways: set[tuple[float, ...]] = set()
    for keep in (1, 2, 3):
        student = cut(whole, keep=keep)
        for path in ("trunk.layers", "expert.layers"):
            for i, layer in enumerate(student.get_submodule(path)):
                layer.input_norm.register_forward_hook(lambda *_, mark=(path, i): ran.append(mark))
        with torch.no_grad():
            share_BL = student(batch, draw).route.share_BL
        assert (share_BL.sum(dim=1) == keep).all() and set(share_BL.unique().tolist()) == {0.0, 1.0}
        ways |= {tuple(row) for row in share_BL.tolist()}
        for i in range(len(batch)):
            ran.clear()
            told: list[Route] = []
            student.act(batch.take([i]), noise(whole, 1), 2, told=told.append)
            chosen = [layer for layer, run in enumerate(told[0].run) if run]
            assert len(chosen) == keep, f"{len(chosen)} layers ran instead of {keep}"
            assert told[0].run == tuple(bool(open) for open in share_BL[i].tolist()), "acting is not as trained"
            steps = [("expert.layers", layer) for layer in chosen] * 2
            assert ran == [("trunk.layers", layer) for layer in chosen] + steps, f"other layers ran: {ran}"
    assert len(ways) > 3, "all observations run the same layers"


def check_all_layers_are_the_backbone(whole: Any) -> None:
    student = cut(whole, keep=DEPTH)
    batch, draw = inputs(whole, 3)
    assert torch.equal(student.act(batch, noise(whole, 3)), torch.cat([
        whole.act(batch.take([i]), noise(whole, 3)[i : i + 1]) for i in range(3)
    ]))  # fmt: skip
    with torch.no_grad():
        assert torch.equal(student(batch, draw).pred_BRHA, whole(batch, draw).pred_BRHA)
    found = terms(Mole(keep=DEPTH), whole, student)
    assert found["kd/mimic"].item() == 0.0 and found["kd/reverse"].item() == 0.0


def check_padding_is_invisible(whole: Any) -> None:
    student = cut(whole, keep=2)
    batch, draw = inputs(whole)
    other = Batch(**{**vars(batch), "tokens_BT": torch.where(batch.text_BT, batch.tokens_BT, 7)})
    assert not torch.equal(other.tokens_BT, batch.tokens_BT)
    with torch.no_grad():
        one, two = (student(b, draw).route.gates_BL for b in (batch, other))
    assert torch.equal(one, two), "the router reads padding"
    sight = Sight(
        torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool), torch.tensor([[False, False, True, True, True]] * 2)
    )
    longer = Sight(*(F.pad(x, (0, 0, 0, 3) if x.dim() == 3 else (0, 3)) for x in vars(sight).values()))
    torch.testing.assert_close(student.router.ahead(longer, None), student.router.ahead(sight, None))


def check_the_router_learns_from_the_task(whole: Any) -> None:
    student = cut(whole, 1.0, keep=2)
    batch, draw = inputs(whole)
    student.task_loss(student(batch, draw)).backward()
    still = [n for n, p in student.router.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # a bias that all layers' logits share cannot be: softmax does not see it
    assert not still, f"{still} learn nothing"


CHECKS = (
    check_every_observation_runs_exactly_keep_layers,
    check_all_layers_are_the_backbone,
    check_padding_is_invisible,
    check_the_router_learns_from_the_task,
)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_every_family(check, name, settings):
    check(teacher(name, settings))


# -- the router --------------------------------------------------------------------------------------------------------


def test_the_router_against_a_slow_one():
    """PyTorch's own encoder layer with the same weights, and one observation at a time."""
    torch.manual_seed(0)
    router = Star(Sizes(6, 32, 16), keep=3, width=16)
    slow = nn.TransformerEncoderLayer(16, 8, 32, dropout=0.0, batch_first=True).train()
    ours, e = router.encoder, slow.self_attn
    pairs = {e.in_proj_weight: ours.in_proj.weight, e.in_proj_bias: ours.in_proj.bias}
    for theirs, mine in ((e.out_proj, ours.out_proj), (slow.linear1, ours.up_proj), (slow.linear2, ours.down_proj)):
        pairs |= {theirs.weight: mine.weight, theirs.bias: mine.bias}
    with torch.no_grad():
        for theirs, mine in pairs.items():
            theirs.copy_(mine)
    x = torch.randn(3, 10, 32)
    valid, text = torch.ones(3, 10, dtype=torch.bool), torch.zeros(3, 10, dtype=torch.bool)
    valid[0, :2] = False
    for row, last in enumerate((9, 8, 6)):
        text[row, 5:last] = True
        valid[row, last:] = False
    gates_BL = router.ahead(Sight(x, valid, text), None)
    for row in range(3):
        unit = x[row] / (x[row] ** 2).mean(dim=-1, keepdim=True).sqrt()
        tokens = router.shared(unit)
        image, words = tokens[valid[row] & ~text[row]], tokens[text[row]]
        logits = router.spatial_out(F.gelu(router.spatial_in(image.mean(0))))
        logits = logits + router.temporal_out(slow(words[None])[0].mean(0))
        expected = (logits * router.scale(unit[5]).sigmoid()).softmax(dim=-1)
        torch.testing.assert_close(gates_BL[row], expected, rtol=1e-4, atol=1e-6)
    assert router.scale.bias.item() == 1.0 and router.spatial_out.bias is None


def test_ties_go_to_the_earlier_layers_and_the_gradient_is_that_of_the_softmax():
    router = Star(Sizes(4, 32, 16), keep=2, width=8)
    assert router.harden(torch.full((1, 4), 0.25)).tolist() == [[1.0, 1.0, 0.0, 0.0]]
    logits = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(3, 4)
    (router.harden(logits.softmax(-1)) * weight).sum().backward()
    other = logits.detach().clone().requires_grad_()
    (other.softmax(-1) * weight).sum().backward()
    assert torch.equal(logits.grad, other.grad)


def test_a_prompt_without_tokens_gives_numbers():
    router = Star(Sizes(4, 32, 16), keep=2, width=8)
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    assert router.ahead(Sight(torch.randn(1, 5, 32), ~nothing, nothing), None).isfinite().all()


def test_the_router_stays_in_float32():
    whole = teacher()
    batch, draw = inputs(whole)
    for dtype in (torch.float32, torch.bfloat16):
        student = cut(whole, keep=2).to(dtype)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert student(batch, draw).route.gates_BL.dtype == torch.float32
        assert student.act(batch.take([0]), noise(whole, 1)).isfinite().all()


def test_its_size_follows_the_trunk():
    whole = teacher()
    assert whole.streams.prefix == 32 and cut(whole).router.shared.out_features == 8
    assert cut(whole, width=24).router.shared.out_features == 24
    assert cut(whole).router.keep == 2, "half of the layers"
    plain, again, other = (surgery.cut(whole, Mole(seed=seed).cut(whole)) for seed in (0, 0, 1))
    first, second, third = (m.router.shared.weight for m in (plain, again, other))
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"keep": 5}, "cannot keep 5 layers of 4: set method.keep to a number from 1 to 4"),
        ({"keep": -1}, "cannot keep -1 layers of 4"),
        ({"reverse": 1.5}, "method.reverse .* between 0 and 1, not 1.5"),
        ({"width": 12}, "method.width must be a multiple of 8, the router's heads, not 12"),
        ({"width": -8}, "method.width must be a multiple of 8"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        Mole(**knobs).cut(teacher())


def test_a_router_from_elsewhere_must_fit_the_model():
    for settings, complaint in (
        ({"keep": 5, "width": 8}, "cannot run 5 layers of 4"),
        ({"keep": 2, "width": 12}, "width 12 has no 8 equal heads"),
    ):
        with pytest.raises(ValueError, match=complaint):
            surgery.cut(teacher(), [InstallRouter("star", settings)])


# -- the loss ----------------------------------------------------------------------------------------------------------


def check_the_terms_are_weighted_once(whole: Any) -> None:
    student = cut(whole, keep=2)
    plain = terms(Mole(keep=2, cog=1.0, reverse=0.25, balance=1.0), whole, student)
    assert plain.pop("note/collapsed") == 0.0
    assert plain.keys() == {"task", "kd/mimic", "kd/reverse", "reg/balance"} and min(plain.values()) > 0
    half = terms(Mole(keep=2, cog=0.5, reverse=0.5, balance=0.1), whole, student)
    expected = {"task": 1.0, "kd/mimic": 0.25 / 0.75, "kd/reverse": 0.25 / 0.25, "reg/balance": 0.1}
    for name, factor in expected.items():
        torch.testing.assert_close(half[name], plain[name] * factor, msg=f"{name} is weighted wrongly")
    batch, draw = inputs(whole)
    gates_BL = student(batch, draw).route.gates_BL.tolist()
    by_hand = sum(soft for gates in gates_BL for soft in sorted(gates)[-2:]) / (len(batch) * DEPTH)
    assert plain["reg/balance"].item() == pytest.approx(by_hand, rel=1e-5)
    assert terms(Mole(keep=2, cog=0.0, balance=0.0), whole, student).keys() == {"task", "note/collapsed"}


def check_balance_spreads_the_choice(whole: Any) -> None:
    student = cut(whole, 3.0, keep=2)
    batch, draw = inputs(whole)

    def entropy() -> float:
        gates_BL = student(batch, draw).route.gates_BL.detach()
        return float(-(gates_BL * gates_BL.log()).sum(dim=-1).mean())

    before = entropy()
    optimizer = torch.optim.SGD(student.router.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        terms(Mole(keep=2, balance=1.0), whole, student)["reg/balance"].backward()
        optimizer.step()
    assert entropy() > before, "the balance term makes the choice narrower"


LOSS_CHECKS = (check_the_terms_are_weighted_once, check_balance_spreads_the_choice)


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=lambda c: c.__name__)
def test_the_loss(check):
    check(teacher())


def test_cognition_by_hand():
    torch.manual_seed(1)
    s, t = torch.randn(2, 4, 3), torch.randn(2, 4, 3) * 5
    valid = torch.tensor([[True, True, True, False], [False, True, True, True]])
    for weigh in (True, False):
        mimic = reverse = 0.0
        for row in range(2):
            rows = [n for n in range(4) if valid[row, n]]
            fs, ft = ({n: x[row, n] / math.sqrt(float((x[row, n] ** 2).mean())) for n in rows} for x in (s, t))
            scores = []
            for n in rows:
                looks = [float(f[n] @ (sum(f.values()) / len(rows))) / math.sqrt(3) for f in (fs, ft)]
                scores.append(math.exp(sum(looks)) if weigh else 1.0)
            for n, score in zip(rows, scores):
                p, q = fs[n].softmax(0), ft[n].softmax(0)
                mimic += score / sum(scores) / 2 * float(((fs[n] - ft[n]) ** 2).mean())
                reverse += score / sum(scores) / 2 * float((p * (p / q).log()).sum())
        found = cognition(s, t, valid, weigh)
        assert [x.item() for x in found] == pytest.approx([mimic, reverse], rel=1e-4)


def test_cognition_is_exactly_zero_for_equal_streams():
    x = torch.randn(2, 4, 8, requires_grad=True)
    for term in cognition(x, x.detach().clone(), torch.ones(2, 4, dtype=torch.bool), True):
        assert term.item() == 0.0
        (gradient,) = torch.autograd.grad(term, x, retain_graph=True)
        assert gradient.abs().max() == 0.0
    y = x.detach() + 0.1 * torch.randn(2, 4, 8)
    assert all(term > 0 for term in cognition(x, y, torch.ones(2, 4, dtype=torch.bool), True))


def test_it_looks_at_the_deepest_stream_that_is_read():
    whole = teacher()
    student, method = cut(whole, keep=2), Mole(keep=2)
    batch, draw = inputs(whole)
    taps = method.taps(student, whole)[0]
    out, expected = student(batch, draw, taps), whole(batch, draw, taps)
    found = method.loss(Step(student, batch, out, expected, method.stages()[0], method.aux(whole)))
    mimic, ends = 0.0, set()
    for row in range(len(batch)):
        last = max(layer for layer in range(DEPTH) if out.route.share_BL[row, layer])
        here = slice(row, row + 1)
        streams = [o.taps[Tap("prefix", last)][here] for o in (out, expected)]
        mimic += cognition(*streams, out.prefix_BN[here], True)[0].item() / len(batch)
        ends.add(last)
    assert len(ends) > 1, "all observations end at the same layer"
    assert found["kd/mimic"].item() == pytest.approx(0.25 * mimic, rel=1e-5)
    assert Mole(cog=0.0).taps(whole, whole) == ((), ())


# -- the checks can fail -----------------------------------------------------------------------------------------------


def a_threshold_instead_of_a_count(patch):
    patch.setattr(Star, "harden", lambda self, gates_BL: Router.harden(self, gates_BL * 2))


def one_choice_for_the_batch(patch):
    sound = Star.ahead
    patch.setattr(Star, "ahead", lambda self, *rest: sound(self, *rest)[:1].expand(len(rest[0].text_BN), -1))


def expert_runs_skipped_layers(patch):
    from lithe.families.pi import Pi

    sound = Pi._run_trunk

    def run(self, *args):
        caches, taken = sound(self, *args)
        any_cache = next(cache for cache in caches if cache is not None)
        return [cache or any_cache for cache in caches], taken

    patch.setattr(Pi, "_run_trunk", run)


def padding_is_read(patch):
    patch.setattr(star, "pooled", lambda x, valid: x.mean(dim=1))


def encoder_sees_padding(patch):
    sound = star._Encoder.forward
    patch.setattr(star._Encoder, "forward", lambda self, x, seen: sound(self, x, torch.ones_like(seen)))


def gates_have_no_gradient(patch):
    sound = Star.ahead
    patch.setattr(Star, "ahead", lambda self, *rest: sound(self, *rest).detach())


def changed_loss(patch, change):
    sound = Mole.loss
    patch.setattr(Mole, "loss", lambda self, step: change(self, step, sound(self, step)))


def balance_has_its_weight_twice(patch):
    changed_loss(patch, lambda self, _, found: {n: t * (self.balance if "reg" in n else 1) for n, t in found.items()})


def balance_has_the_wrong_sign(patch):
    changed_loss(patch, lambda self, _, found: {n: t * (-1 if "reg" in n else 1) for n, t in found.items()})


def reverse_is_left_out_of_the_mimic_weight(patch):
    changed_loss(
        patch, lambda self, _, found: {n: t / (1 - self.reverse if "mimic" in n else 1) for n, t in found.items()}
    )


def features_are_compared_at_another_depth(patch):
    from lithe.methods import mole

    patch.setattr(mole, "deepest", lambda mine, theirs, _: (mine.taps[Tap("prefix", 3)], theirs.taps[Tap("prefix", 2)]))


PLANTED = (
    (check_every_observation_runs_exactly_keep_layers, a_threshold_instead_of_a_count),
    (check_every_observation_runs_exactly_keep_layers, one_choice_for_the_batch),
    (check_every_observation_runs_exactly_keep_layers, expert_runs_skipped_layers),
    (check_padding_is_invisible, padding_is_read),
    (check_padding_is_invisible, encoder_sees_padding),
    (check_the_router_learns_from_the_task, gates_have_no_gradient),
    (check_the_terms_are_weighted_once, balance_has_its_weight_twice),
    (check_balance_spreads_the_choice, balance_has_the_wrong_sign),
    (check_the_terms_are_weighted_once, reverse_is_left_out_of_the_mimic_weight),
    (check_all_layers_are_the_backbone, features_are_compared_at_another_depth),
)


@pytest.mark.parametrize(("check", "bug"), PLANTED, ids=lambda f: f.__name__)
def test_a_planted_bug_is_caught(check, bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check(teacher())
