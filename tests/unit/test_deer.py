"""DeeR: which exits there are, how thresholds are fitted and kept, and that an exit is nothing but a shorter model."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lithe import checkpoint, registry, surgery
from lithe.data.fake import FakeData
from lithe.methods import deer
from lithe.methods.deer import Deer
from lithe.methods.first_k import FirstK
from lithe.recipe import Train
from lithe.routers import exits
from lithe.routers.exits import NEVER, fit
from lithe.runtimes.eager import Eager
from lithe.surgery import KeepLayers
from lithe.types import Route, Tap

distill = import_module("lithe.distill")  # on the package, the verb owns the name
DEPTH, FRAMES, CPU = 4, 12, torch.device("cpu")
VARIANTS = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {"self_attention_every": 0}))
TRAIN = Train(steps=1, batch=2, draws=1, warmup=0, lr=1e-2, precision="fp32", save_every=1)


def teacher(name: str = "pi", settings: dict[str, Any] | None = None) -> Any:
    """A pico policy with every parameter moved, so that estimates differ from layer to layer."""
    model: Any = registry.get("families", name).fresh("pico", **(settings or {}))  # type: ignore[attr-defined]
    known = frames(model)
    model.fit_to(known.stats, known.tasks, known.cameras)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def frames(model: Any, length: int = FRAMES) -> FakeData:
    spec = model.spec
    sizes = {"state_dim": spec.state_dim, "action_dim": spec.action_dim, "size": 24}
    return FakeData(cameras=spec.cameras, episodes=1, length=length, **sizes)


def cut(method: Deer, whole: Any, thresholds: float | None = None) -> Any:
    student = surgery.cut(whole, method.cut(whole)).eval()
    if thresholds is not None:
        student.router.thresholds.fill_(thresholds)
    return student


def finished(method: Deer, whole: Any) -> Any:
    student = cut(method, whole)
    assert distill.finish(method, student, frames(student), CPU) == bool(student.router.exits)
    return student


def noise(model: Any, batch: int = 1) -> Tensor:
    return model.noise(batch, torch.Generator().manual_seed(5))


def layers_run(student: Any, batch: Any, noise_BHA: Tensor) -> list[int]:
    told: list[Route] = []
    student.act(batch, noise_BHA, 1, told=told.append)
    assert all(list(route.run) == sorted(route.run, reverse=True) for route in told), "a hole in the route"
    return [sum(route.run) for route in told]


def calibration(method: Deer, student: Any) -> list[int]:
    """How many layers each calibration frame runs, asked as a robot asks."""
    known, generator, found = frames(student), torch.Generator().manual_seed(method.seed), []
    for frame in np.random.default_rng(method.seed).choice(len(known), len(known), replace=False):
        batch = student.batch(known.samples(np.array([frame]), student.spec.horizon))
        found += layers_run(student, batch, student.noise(1, generator))
    return found


# -- which exits there are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, (1, (2, 3), 4)),
        ({"least": 2}, (1, (2, 3), 4)),
        ({"least": 3}, (2, (3,), 4)),
        ({"every": 2}, (1, (2,), 4)),
        ({"keep": 3, "every": 2}, (1, (), 3)),
        ({"opening": "never"}, (1, (2, 3), 4)),
        ({"keep": 2, "opening": "never"}, (1, (), 2)),
        ({"keep": 2, "least": 2}, (0, (), 2)),
        ({"least": 4, "opening": "never"}, (0, (), 4)),
    ],
)
def test_exits_are_counted_back_from_the_largest(knobs, expected):
    router = cut(Deer(**knobs), teacher()).router
    assert (router.reference, router.exits, router.sizes.depth) == expected
    assert len(router.shares) == len(router.exits) + 1 and len(router.thresholds) == len(router.exits)


def test_the_paper_has_exits_behind_every_second_layer():
    assert Deer(keep=12, every=2).stops(12) == (2, 4, 6, 8, 10, 12) and Deer(every=2).stops(4) == (2, 4)
    router = cut(Deer(ratio=2.0), teacher()).router
    assert [b / a for a, b in pairwise(router.shares)] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"keep": 5}, "cannot keep 5 layers of 4"),
        ({"keep": -1}, "cannot keep -1 layers of 4"),
        ({"keep": 2, "least": 3}, "method.least is 3, but only 2 layers are kept"),
        ({"least": 0}, "method.least must be at least 1, not 0"),
        ({"every": 0}, "method.every must be at least 1"),
        ({"samples": 0}, "method.samples must be at least 1"),
        ({"ratio": 0.0}, "method.ratio must be above 0"),
        ({"ratio": float("nan")}, "method.ratio must be above 0"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs, complaint):
    whole = teacher()
    with pytest.raises(ValueError, match=complaint):
        Deer(**knobs).cut(whole)


# -- training ----------------------------------------------------------------------------------------------------------


def trained(method: Deer, whole: Any) -> tuple[Any, deer.Step]:
    """A student and one training step of it."""
    student = cut(method, whole)
    batch = student.example(2)
    draw = student.draw(batch, torch.Generator().manual_seed(3), 2)
    taps, route = method.taps(student, whole)[0], method.route(student, method.stages()[0], torch.Generator())
    out, expected = student(batch, draw, taps, route), whole(batch, draw)
    return student, deer.Step(student, batch, out, expected, method.stages()[0], torch.nn.ModuleDict())


def check_a_pass_holds_the_velocity_of_every_exit(whole: Any) -> None:
    student, step = trained(Deer(), whole)
    draw = student.draw(step.batch, torch.Generator().manual_seed(3), 2)
    assert set(step.outs[0].taps) == {Tap("velocity", end) for end in (1, 2, 3)}
    for end in (1, 2, 3):
        shorter = student(step.batch, draw, (), Route.without(DEPTH, *range(end, DEPTH)))
        early = step.outs[0].taps[Tap("velocity", end)]
        assert torch.equal(early, shorter.pred_BRHA), f"not the velocity behind {end} layers"
        assert torch.equal(step.outs[0].first(1).taps[Tap("velocity", end)], early[:, :1])


def check_a_step_trains_every_exit_alike(whole: Any) -> None:
    """And the estimate that the first is compared with; by hand, from models that end there."""
    method = Deer(velocity=0.5, task=2.0)
    student, step = trained(method, whole)
    draw = student.draw(step.batch, torch.Generator().manual_seed(3), 2)
    routes = [Route.without(DEPTH, *range(end, DEPTH)) for end in (1, 2, 3, 4)]
    ends = [student(step.batch, draw, (), route) for route in routes]
    terms = method.loss(step)
    expected = 2.0 * sum(student.task_loss(end) for end in ends) / 4
    torch.testing.assert_close(terms["task"], expected, rtol=1e-6, atol=0)
    near = [0.5 * student.imitation_loss(end, step.outs[1]) / 4 for end in ends]
    torch.testing.assert_close(terms["reg/early"], sum(near[:-1]), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["kd/velocity"], near[-1], rtol=1e-6, atol=0)
    assert set(dataclasses.replace(method, velocity=0.0).loss(step)) == {"task"}


def test_a_student_without_exits_is_trained_at_its_end_alone():
    method = Deer(keep=2, least=2)
    student, step = trained(method, teacher())
    assert method.taps(student, student) == ((), ())
    assert torch.equal(method.loss(step)["task"], student.task_loss(step.outs[0]))


# -- acting ------------------------------------------------------------------------------------------------------------


def check_an_exit_is_a_shorter_model(whole: Any) -> None:
    batch = whole.example(1)
    for end in (2, 3):
        student = cut(Deer(), whole)
        student.router.thresholds.copy_(torch.tensor([1e8 if i == end else NEVER for i in (2, 3)]))
        assert layers_run(student, batch, noise(whole)) == [end], f"it did not stop behind layer {end}"
        short = surgery.cut(whole, [KeepLayers("trunk", tuple(range(end)))])
        assert torch.equal(student.act(batch, noise(whole)), short.act(batch, noise(whole))), "not a shorter model"
    single = cut(Deer(keep=2, least=2), whole)  # one exit is truncation, needs no thresholds, and asks nothing
    first = surgery.cut(whole, FirstK(keep=2).cut(whole))
    assert torch.equal(single.act(batch, noise(whole)), first.act(batch, noise(whole)))


def check_probes_say_what_an_exit_would(whole: Any) -> None:
    """The calibration asks by `act`, the robot by probes: they must be the same numbers, to the last bit."""
    student, batch, seen = cut(Deer(), whole, NEVER), whole.example(1), []

    class Spy(type(student.router)):  # type: ignore[misc]
        def crosses(self, i, x_BND, valid_BN, probe):
            answer = super().crosses(i, x_BND, valid_BN, probe)
            seen.append((i, probe.before[-1].clone()))
            return answer

    student.router.__class__ = Spy
    chunk = student.act(batch, noise(whole))
    assert torch.equal(chunk, whole.act(batch, noise(whole))), "probing changed the actions"
    assert [i for i, _ in seen] == [1, 2, 3]
    for end, estimate in seen:
        other = whole.act(batch, noise(whole), 1, Route.without(DEPTH, *range(end, DEPTH)))
        assert torch.equal(estimate, other), f"the estimate behind {end} layers is not that of one denoise step"
    moved = deer.moved(student, student.router, batch, noise(whole))[0]
    real = slice(0, whole.spec.action_dim)
    by_hand = [float(((b - a)[..., real] ** 2).mean() ** 0.5) for (_, a), (_, b) in pairwise(seen)]
    torch.testing.assert_close(moved, torch.tensor(by_hand), rtol=1e-6, atol=0)


def check_shares_are_met(whole: Any) -> None:
    for knobs in ({}, {"ratio": 0.5}, {"opening": "never", "ratio": 1.5}, {"keep": 3, "seed": 3}):
        method = Deer(**knobs)  # type: ignore[arg-type]
        student = finished(method, whole)
        ran, router = calibration(method, student), student.router
        for end, share in zip((*router.exits, router.sizes.depth), router.shares):
            achieved = ran.count(end) / FRAMES
            assert abs(achieved - share / sum(router.shares)) <= 1 / FRAMES, f"{knobs}: {achieved} stop behind {end}"
        assert len(ran) == FRAMES and min(ran) == router.exits[0]


CHECKS = (
    *(check_a_pass_holds_the_velocity_of_every_exit, check_a_step_trains_every_exit_alike),
    *(check_an_exit_is_a_shorter_model, check_probes_say_what_an_exit_would, check_shares_are_met),
)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_the_estimates_that_are_compared_have_seen_the_observation(name, settings):
    """A model of no layers answers all observations alike, so no exit may be measured by it."""
    whole = teacher(name, settings)
    reference = cut(Deer(), whole).router.reference
    for end, alike in ((0, True), (reference, False)):
        route = Route.without(DEPTH, *range(end, DEPTH))
        a, b = whole.act(whole.example(2), noise(whole).expand(2, -1, -1), 1, route)
        assert torch.equal(a, b) is alike
    with pytest.raises(ValueError, match="give increasing numbers from 1"):
        exits.Exits(cut(Deer(), whole).router.sizes, (1, 2), (1, 1, 1), 0, 4)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_every_family(check, name, settings):
    check(teacher(name, settings))


def test_thresholds_at_their_ends():
    whole = teacher()
    batch = whole.example(3)
    for threshold, expected in ((NEVER, DEPTH), (0.0, DEPTH), (float("inf"), 2), (1e8, 2)):
        student = cut(Deer(), whole, threshold)
        assert layers_run(student, batch, noise(whole, 3)) == [expected] * 3
    assert layers_run(cut(Deer(least=2, opening="never"), whole, 1e8), batch, noise(whole, 3)) == [3] * 3


def test_an_observation_is_decided_by_itself():
    """Estimates belong to one pass: neighbours in a batch, in time and in other sessions change nothing."""
    student = finished(Deer(), teacher())
    batch, alone = student.example(6), []
    for i in range(6):
        alone += layers_run(student, batch.take([i]), noise(student, 6)[i : i + 1])
    assert layers_run(student, batch, noise(student, 6)) == alone and len(set(alone)) > 1
    a, b = Eager(student, seed=1), Eager(student, seed=2)
    chunks = [a.answer(batch.take([i]), noise(student)) for i in range(6)]
    a.reset(1)
    for i in range(6):
        assert torch.equal(a.answer(batch.take([i]), noise(student)), chunks[i])
        b.answer(batch.take([5 - i]), noise(student))


def test_padded_action_dimensions_do_not_count():
    router = cut(Deer(), teacher()).router
    a, b = torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)
    b[..., 4:] = 100.0
    assert router.distance(a, b).tolist() == [0.0, 0.0]
    b[0, :, 1] = 2.0
    assert router.distance(a, b).tolist() == [1.0, 0.0]


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    moved = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.1], [0.4, 0.7], [0.5, 0.6], [0.6, 0.5]])
    assert fit(moved, (1, 1, 1)).tolist() == pytest.approx([0.2, 0.5])  # two stop first, then those at .1 and .5
    assert fit(moved, (1, 1, 1)).tolist() != fit(moved, (1, 1, 2)).tolist()
    assert fit(moved, (0, 1, 1)).tolist() == pytest.approx([NEVER, 0.6])
    assert fit(moved, (1, 0, 1)).tolist() == pytest.approx([0.3, NEVER])
    assert fit(moved, (1, 1, 0)).tolist() == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("seed", range(5))
def test_every_share_is_met_within_one_observation(seed):
    rng = np.random.default_rng(seed)
    total, stops = int(rng.integers(20, 60)), int(rng.integers(2, 18))
    moved, shares = torch.from_numpy(rng.random((total, stops - 1), np.float32)), tuple(rng.random(stops))
    thresholds, left, stopped = fit(moved, shares), np.ones(total, bool), []
    for k in range(stops - 1):
        now = left & (moved[:, k] <= thresholds[k]).numpy()
        stopped.append(now.sum())
        left &= ~now
    for count, share in zip((*stopped, left.sum()), shares):
        assert abs(count / total - share / sum(shares)) <= 1 / total + 1e-9


def test_equal_distances_stop_together_and_the_next_exits_wait():
    assert fit(torch.ones(4, 2), (1, 1, 2)).tolist() == [1.0, NEVER]


def test_too_few_observations_are_refused():
    with pytest.raises(ValueError, match="3 exits cannot be fitted to 2 observations"):
        fit(torch.rand(2, 2), (1, 1, 1))
    whole = teacher()
    with pytest.raises(ValueError, match=r"3 exits cannot be fitted to 2 frames: .*\(method.samples is 2\)"):
        Deer(samples=2).cut(whole)
    student = cut(Deer(), whole)
    with pytest.raises(ValueError, match=r"3 exits cannot be fitted to 2 frames: calibrate with more"):
        distill.finish(Deer(), student, frames(student, 2), CPU)
    assert Deer(samples=1, keep=2, least=2).cut(whole), "one exit alone needs no frames"


def test_without_thresholds_it_refuses_to_act():
    student = cut(Deer(), teacher())
    batch = student.example(1)
    with pytest.raises(ValueError, match=r"no thresholds yet.*let its run go on to its last step"):
        student.act(batch, noise(student))
    route = Route.without(DEPTH, 3)
    assert student.act(batch, noise(student), route=route).isfinite().all(), "a route of one's own needs none"


def check_thresholds_are_kept(folder: Path) -> None:
    whole, method = teacher(), Deer()
    known = frames(whole)
    student = distill.distill(whole, method, known, TRAIN, folder)
    thresholds = student.router.thresholds
    assert torch.isfinite(thresholds).all(), "the student came back without thresholds"
    again = cut(method, whole)
    again.load_state_dict(student.state_dict())
    assert torch.equal(method.finish(again, known, CPU)["router.thresholds"], thresholds), "fitted to another student"
    kept = checkpoint.load(folder / "student")
    assert torch.equal(kept.router.thresholds, thresholds), "the disk has other thresholds"
    batch = whole.example(3)
    assert torch.equal(kept.act(batch, noise(whole, 3)), student.act(batch, noise(whole, 3)))
    resumed = distill.distill(whole, method, known, TRAIN, folder)
    assert torch.equal(resumed.router.thresholds, thresholds), "resumed behind its end, a run has other thresholds"
    assert torch.equal(checkpoint.load(folder / "student").router.thresholds, thresholds)


def test_thresholds_are_kept_to_the_last_bit(tmp_path):
    check_thresholds_are_kept(tmp_path)


# -- the checks can fail -----------------------------------------------------------------------------------------------


def compares_with_the_first_estimate(patch):
    sound = exits.Exits.crosses

    def crosses(self, i, x_BND, valid_BN, probe):
        answer = sound(self, i, x_BND, valid_BN, probe)
        probe.before[:] = [*probe.before[:1], *probe.before[:1]]
        return answer

    patch.setattr(exits.Exits, "crosses", crosses)


def stops_a_layer_late(patch):
    sound = exits.Exits.crosses
    patch.setattr(exits.Exits, "crosses", lambda self, i, *rest: i - 1 in self.exits and sound(self, i - 1, *rest))


def thresholds_are_one_observation_off(patch):
    patch.setattr(deer, "fit", lambda moved, shares: fit(moved, shares) * 0.9)


def shares_are_not_cumulative(patch):
    patch.setattr(deer, "fit", lambda moved, shares: fit(moved, (*shares[:-1], 0.0)))


def estimates_are_of_another_noise(patch):
    sound = deer.moved
    patch.setattr(deer, "moved", lambda student, router, batch, x: sound(student, router, batch, x.flip(1)))


def finishing_is_forgotten(patch):
    patch.setattr(distill, "finish", lambda *args: False)


def finishing_is_not_written(patch):
    sound = distill.finish
    patch.setattr(distill, "finish", lambda *args: sound(*args) and False)


def exits_are_trained_at_the_end_alone(patch):
    patch.setattr(Deer, "taps", lambda self, *_: ((), ()))


def the_early_velocity_is_the_last_one(patch):
    sound = deer.Deer.loss

    def loss(self, step):
        out = dataclasses.replace(step.out, taps=dict.fromkeys(step.out.taps, step.out.pred_BRHA))
        return sound(self, dataclasses.replace(step, out=out))

    patch.setattr(Deer, "loss", loss)


PLANTED = (
    (check_a_pass_holds_the_velocity_of_every_exit, exits_are_trained_at_the_end_alone),
    (check_a_step_trains_every_exit_alike, exits_are_trained_at_the_end_alone),
    (check_a_step_trains_every_exit_alike, the_early_velocity_is_the_last_one),
    (check_shares_are_met, compares_with_the_first_estimate),
    (check_an_exit_is_a_shorter_model, stops_a_layer_late),
    (check_shares_are_met, thresholds_are_one_observation_off),
    (check_shares_are_met, shares_are_not_cumulative),
    (check_shares_are_met, estimates_are_of_another_noise),
    (check_thresholds_are_kept, finishing_is_forgotten),
    (check_thresholds_are_kept, finishing_is_not_written),
)


@pytest.mark.parametrize(("check", "bug"), PLANTED, ids=lambda f: f.__name__)
def test_a_planted_bug_is_caught(check, bug, monkeypatch, tmp_path):
    bug(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check(tmp_path if check is check_thresholds_are_kept else teacher())
