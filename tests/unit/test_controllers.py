"""Controllers and their memory: what is exact, where a jump lands, and how the smoothness of a movement guides it.

The numbers in brackets refer to section 9.1 of the reconstruction notes: properties that any faithful version has.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lithe import registry, surgery
from lithe.families._flow_family import pad
from lithe.families.base import Family
from lithe.routers._continuity import Continuity, Guidance, changes
from lithe.routers.base import Sizes
from lithe.routers.controllers import Controllers, parameters, segments
from lithe.runtimes.eager import Eager
from lithe.surgery import InstallRouter
from lithe.types import Crossing, Observation, Route

STATIC, DEPTH = (2, 6), 7  # segments 0..1 and 3..5
SURE = 200.0  # a bias whose sigmoid is exactly 1, and exactly 0 with the other sign
FAMILIES = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {}))
FREE = {"pre_skip": False, "post_skip": False}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join([f[0], *f[1].values()]))


def moved(model: Any, seed: int = 1) -> Any:
    """Every parameter away from its initial value."""
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


def routed(model: Family, awake: bool = True, **settings: Any) -> Any:
    """The model with controllers; awake: with adapters that do something."""
    given = {"static": STATIC, "rank": 2, "hidden": 3, **settings}
    student: Any = surgery.cut(model, [InstallRouter("controllers", given)]).eval()
    if awake:
        moved(student.router)
    return student


def decide(router: Controllers, **fires: bool) -> None:
    """Layer i5=True fires whatever it sees, i5=False never does; those not named never do."""
    with torch.no_grad():
        for i, controller in router.controllers.items():
            controller.up.weight.zero_()
            controller.up.bias.fill_(SURE if fires.get(f"i{i}") else -SURE)


def inputs(model: Any) -> tuple[Any, Any]:
    batch = model.example(2, torch.Generator().manual_seed(2))
    return batch, model.draw(batch, torch.Generator().manual_seed(3), 2, augment=False)


def acted(model: Any, batch: int = 2, **how: Any) -> Tensor:
    noise = model.noise(batch, torch.Generator().manual_seed(5))
    return model.act(model.example(batch, torch.Generator().manual_seed(2)), noise, **how)


# -- exact ends --------------------------------------------------------------------------------------------------------


@every_family
def test_a_new_router_and_a_closed_one_change_nothing(family):
    """[1, 2] Not a bit, acting and training; a new controller says exactly 0.5 and does not fire."""
    model = teacher(family)
    new, closed = routed(model, awake=False), routed(model)
    decide(closed.router)
    batch, draw = inputs(model)
    asked = Route((True,) * DEPTH, asked=(1, 3))
    with torch.no_grad():
        plain = model(batch, draw).pred_BRHA
        out = new(batch, draw, (), asked)
        assert [crossing.share_B.tolist() for crossing in out.route.crossings] == [[0.5, 0.5]] * 2
        for student in (new, closed):
            assert torch.equal(acted(student, 1), acted(model, 1))
            assert torch.equal(student(batch, draw).pred_BRHA, plain)
        assert torch.equal(closed(batch, draw, (), asked).pred_BRHA, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_begin_as_the_identity(dtype):
    """[2]"""
    router = Controllers(Sizes(DEPTH, 32, 16), STATIC, 2, 3)
    for stream, width in (("prefix", 32), ("suffix", 16)):
        x = 100 * torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        for model in (router, copy.deepcopy(router).to(dtype)):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                assert all(torch.equal(model.bridge(stream, i, x), x) for i in (0, 1, 3, 4, 5))
        assert not torch.equal(moved(copy.deepcopy(router)).bridge(stream, 0, x), x)


@every_family
def test_soft_crossings_are_exact_at_both_ends(family):
    """[3] q = 0 is the whole segment, q = 1 the jump, bit for bit; half of it is neither."""
    model = teacher(family)
    student, (batch, draw) = routed(model), inputs(model)
    asked = Route((True,) * DEPTH, asked=(1, 3))
    jumps = (Crossing(1, 2), Crossing(3, 6))
    hard = Route(tuple(i not in (1, 3, 4, 5) for i in range(DEPTH)), crossings=jumps)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            decide(student.router, i1=True, i3=True)
            far = student(batch, draw, (), asked).pred_BRHA
            assert torch.equal(far, student(batch, draw, (), hard).pred_BRHA)
            decide(student.router)
            whole = student(batch, draw, (), asked).pred_BRHA
            assert torch.equal(whole, model(batch, draw).pred_BRHA)
            for controller in student.router.controllers.values():
                controller.up.bias.zero_()
            between = student(batch, draw, (), asked).pred_BRHA
            assert not torch.equal(between, far) and not torch.equal(between, whole) and not torch.equal(far, whole)


def test_what_a_router_computes_is_float32_and_sees_valid_tokens_only():
    router = moved(Controllers(Sizes(DEPTH, 32, 16), STATIC, 2, 3))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    share = router.share(0, x, valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router.share(0, x, valid), share) and share.dtype == torch.float32
    other = torch.where(valid[..., None], x, 1e4)
    assert torch.equal(router.share(0, other, valid), share) and not torch.equal(
        router.share(0, x.roll(1, -1), valid), share
    )
    assert copy.deepcopy(router).to(torch.bfloat16).share(0, x.to(torch.bfloat16), valid).dtype == torch.float32


# -- jumping -----------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(
    ("fires", "gone"),
    [
        ({}, ()),
        ({"i4": True}, (4, 5)),
        ({"i1": True, "i3": True, "i4": True}, (1, 3, 4, 5)),
        ({"i0": True, "i1": True, "i3": True}, (0, 1, 3, 4, 5)),
    ],
)
def test_a_jump_lands_on_the_next_static_layer(family, fires, gone):
    """[7] Of a segment's controllers the first one that fires jumps; skipped layers do not run, in no stack."""
    student, ran = routed(teacher(family)), set()
    decide(student.router, **fires)
    for path in surgery.find_stack(student, "trunk").paths:
        for i, layer in enumerate(student.get_submodule(path)):
            for part in layer.modules():
                part.register_forward_hook(lambda *_, i=i: ran.add(i))
    routes: list[Route] = []
    acted(student, batch=1, told=routes.append)
    (route,) = routes
    assert ran == {i for i in range(DEPTH) if i not in gone} == {i for i, run in enumerate(route.run) if run}
    assert all(crossing.end in STATIC for crossing in route.crossings)
    assert len({crossing.end for crossing in route.crossings}) == len(route.crossings)
    assert sum(route.run) == len(STATIC) + sum(
        route.run[i] for first, end in segments(DEPTH, STATIC) for i in range(first, end)
    )


def test_a_controller_fires_above_its_threshold_only():
    student = routed(teacher(), awake=False, threshold=0.7)
    x, valid = torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool)
    for share, fires in ((0.69, False), (0.71, True)):
        with torch.no_grad():
            student.router.controllers["3"].up.bias.fill_(float(np.log(share / (1 - share))))
        assert student.router.crosses(3, x, valid, None) is fires


def test_a_controller_that_may_not_fire_is_not_asked(monkeypatch):
    student, asked = routed(teacher()), []
    decide(student.router, i0=True, i3=True, i4=True, i5=True)
    sound = Controllers.share
    monkeypatch.setattr(Controllers, "share", lambda self, i, *rest: asked.append(i) or sound(self, i, *rest))
    memory, routes = student.router.memory(), []
    acted(student, 1, memory=memory, told=routes.append)
    assert asked == [] and all(routes[0].run)  # an episode begins with all layers
    memory.points = [1, 4]
    acted(student, 1, memory=memory, told=routes.append)
    assert asked == [1, 4] and routes[1].crossings == (Crossing(4, 6),)


def test_controls_jump_without_controllers():
    model = teacher()
    always = routed(model, jump="always", guidance=FREE)
    assert always.router.memory() is None and len(always.router.controllers) == 0
    routes: list[Route] = []
    acted(always, 1, told=routes.append)
    assert routes[0].crossings == (Crossing(0, 2), Crossing(3, 6))
    untrained = routed(model, awake=False, jump="always", guidance=FREE)  # identity jumps, without adapters
    assert torch.equal(acted(untrained, 1), acted(model, 1, route=Route.without(DEPTH, 0, 1, 3, 4, 5)))
    with pytest.raises(ValueError, match="rate"):
        routed(model, jump="random")
    with pytest.raises(ValueError, match="rate"):
        routed(model, rate=0.3)


def test_random_jumps_have_their_rate_and_repeat_themselves():
    router = Controllers(Sizes(DEPTH, 32, 16), STATIC, 2, 3, jump="random", rate=0.3, guidance=FREE)

    def episode(seed: int) -> list[list[bool]]:
        memory, found, rng = router.memory(), [], np.random.default_rng(seed)
        for _ in range(200):
            found.append([router.allows(i, memory) for i in router.landings])
            memory.note(rng.normal(size=(2, 4)))
        return found

    first, second = episode(0), episode(1)
    assert first == episode(0) and first != second
    assert abs(np.mean(first) - 0.3) < 0.05 and np.ptp(np.mean(first, axis=0)) < 0.15


@pytest.mark.parametrize(
    ("static", "complaint"),
    [((), "end with the last layer, 6"), ((2, 5), "end with the last"), ((6, 2, 6), "increasing"), ((-1, 6), "incr")],
)
def test_a_split_that_cannot_work_is_refused(static, complaint):
    with pytest.raises(ValueError, match=complaint):
        segments(DEPTH, static)


def test_segments_and_size():
    """[9]"""
    assert segments(DEPTH, STATIC) == ((0, 2), (3, 6)) and segments(4, (0, 1, 3)) == ((2, 3),)
    with pytest.raises(ValueError, match="all 3 layers are static"):
        segments(3, (0, 1, 2))
    router = Controllers(Sizes(DEPTH, 32, 16), STATIC, 5, 3)
    assert sum(p.numel() for p in router.parameters()) == parameters(router.sizes, 5, 5, 3)
    assert parameters(router.sizes, 5, 5, 3) == 5 * (2 * (32 + 16) * 5 + 2 * (32 + 16) + 32 * 3 + 3 + 1 + 2 * 32)
    with pytest.raises(ValueError, match="rank"):
        Controllers(Sizes(DEPTH, 32, 16), STATIC, 0, 3)


# -- continuity --------------------------------------------------------------------------------------------------------


def walked(lengths: list[float], **settings: Any) -> tuple[Continuity, list[float | None], list[list[int]]]:
    """A memory after these steps along one axis, one action a chunk; C and the allow points after each."""
    memory = Continuity(((0, 2), (3, 8)), Guidance(**{"eta": 1.0, "eta1": 1.0, **settings}))
    levels, points = [], []
    for place in np.cumsum([0.0, *lengths]):
        memory.note(np.array([[place, 7.0]]))
        levels.append(memory.level)
        points.append(memory.points)
    return memory, levels, points


def test_continuity_is_the_mean_step_and_0_at_rest():
    """[6]"""
    _, levels, _ = walked([0.0] * 9)
    assert levels == [None] * 5 + [0.0] * 5
    _, levels, _ = walked([0.0] * 6 + [10.0] + [0.0] * 8)
    assert levels[6:] == [0.0] + [-2.0] * 5 + [0.0] * 4  # exactly k steps
    _, levels, _ = walked([1.0, 2.0, 3.0, 4.0], k=2)
    assert levels == [None, None, -1.5, -2.5, -3.5]
    assert walked([1.0, 3.0], k=1)[1] == [None, -1.0, -3.0]


def test_a_chunk_counts_with_its_roughest_moment():
    """The same movement, several actions at a time: C is the lowest of those of its actions."""
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(41, 3)).cumsum(0)
    lengths = np.linalg.norm(np.diff(actions, axis=0), axis=-1)
    alone = {j: -lengths[j - 5 : j].mean() for j in range(5, 41)}
    for replan in (1, 2, 4, 10):
        memory = Continuity((), Guidance())
        for first in range(0, 40, replan):
            memory.note(actions[first : first + replan])
            seen = [alone[j] for j in range(first, first + replan) if j in alone]
            assert memory.level == pytest.approx(min(seen)) if seen else memory.level is None
    assert len(changes(actions, 4, 5)) == 40 // 4 - 2 and len(changes(actions[:6], 1, 5)) == 0
    still = np.zeros((20, 3))
    still[13:] = 1.0  # a jump in the middle of a long chunk, behind which the window has passed
    assert changes(still, 10, 5) == [-np.sqrt(3) / 5]


@pytest.mark.parametrize("rule", ["ceiling", "symmetric"])
def test_allow_points_follow_the_change(rule):
    """[5] Falling continuity never makes a point earlier, rising never later, and every point stays in its range."""
    rng = np.random.default_rng(1)
    _, levels, points = walked(list(rng.uniform(0, 12, 300) * rng.integers(0, 2, 300)), rule=rule)
    assert all(p == [2, 8] for level, p in zip(levels, points) if level is None)
    assert points[0] == [2, 8]
    seen = set()
    for before, after, p, q in zip(levels, levels[1:], points, points[1:]):
        if before is None or after is None:
            continue
        for old, new in zip(p, q):
            assert new >= old if after < before else new <= old
        assert 0 <= q[0] <= 2 and 3 <= q[1] <= 8
        seen.add(tuple(q))
    known = next(i for i, level in enumerate(levels) if level is not None)
    assert points[known] == [0, 3], "nothing may be skipped although C is known"
    assert len(seen) > 6 and {0, 2} <= {q[0] for q in seen} and {3, 8} <= {q[1] for q in seen}


@pytest.mark.parametrize(
    ("settings", "change", "earlier"),
    [
        ({}, 0.2, 1),
        ({}, 2.0, 2),
        ({}, -0.9, 0),  # lopsided: a ceiling forgives small drops and rewards any rise
        ({}, -2.0, -2),
        ({"rule": "symmetric"}, -0.9, -1),
        ({"rule": "symmetric"}, 0.9, 1),
        ({"rule": "symmetric", "dead_zone": 0.9}, -0.9, 0),
        ({"rule": "symmetric", "dead_zone": 0.9}, 1.1, 2),
        ({"printed_sign": True}, -2.0, 2),
        ({"printed_sign": True}, 0.2, -1),
        ({}, 0.0, 0),
    ],
)
def test_how_far_allow_points_move(settings, change, earlier):
    assert Guidance(eta=1.0, **settings).earlier(change) == earlier


def test_a_movement_at_one_speed_may_jump_as_soon_as_c_is_known():
    """k + 1 actions make the first C, however many of them a chunk has; from then on everything may be skipped."""
    for replan, chunks in ((1, 6), (2, 3), (4, 2), (10, 1)):
        memory = Continuity(((0, 2), (3, 6)), Guidance(k=5))
        for n in range(30 // replan):
            known = memory.level is not None
            assert known == (n >= chunks) and all(memory.allows(i) == known for i in (0, 1, 3, 4, 5)), (replan, n)
            steps = np.arange(n * replan, (n + 1) * replan)[:, None]
            memory.note(0.1 * steps * np.ones(3))


def test_jumps_are_common_where_a_movement_is_smooth_and_rarer_where_it_drops():
    """Layers of 12 that run where allow points alone stand against a jump, eta as calibrated: all until C is known,
    then few, but more after every drop of eta. `held` is a point that nothing but rises of C ever lifts."""
    router = Controllers(Sizes(12, 32, 16), (0, 1, 2, 11), 2, 3, jump="always")
    episodes = [reaches(seed) for seed in range(40)]
    eta = float(np.quantile([abs(change) for each in episodes for change in changes(each, 4, 5)], 0.9))
    router.guidance, ((begin, behind),) = Guidance(eta=eta, eta1=eta), router.segments
    layers, bound, drops, rises = [], [], [], []
    for actions in episodes:
        memory: Any = router.memory()
        held = behind
        for first in range(0, len(actions) - 3, 4):
            layers.append(4 + sum(not memory.allows(i) for i in router.landings))
            if memory.level is None:
                assert layers[-1] == 12
            elif memory.change is not None:
                (rises if memory.change > 0 else drops if memory.change <= -eta else []).append(layers[-1])
                held = max(begin, min(behind, held - router.guidance.earlier(memory.change)))
            bound.append(held + 1)
            memory.note(actions[first : first + 4])
    assert np.mean(layers) < 6 and np.mean(layers) < np.mean(bound) - 2, "the block does not lift"
    assert len(drops) > 20 and min(drops) > 4 and np.mean(drops) > np.mean(rises) + 0.8


def reaches(seed: int, length: int = 68) -> np.ndarray:
    """Smooth movements from place to place at changing speed, a rest after each, with a little noise."""
    rng, place, path = np.random.default_rng(seed), np.zeros(4), []
    while sum(map(len, path)) < length:
        s, goal = np.linspace(0, 1, rng.integers(12, 30))[:, None], rng.uniform(-1, 1, 4)
        path += [place + (goal - place) * (10 * s**3 - 15 * s**4 + 6 * s**5), np.repeat(goal[None], 4, 0)]
        place = goal
    return np.concatenate(path)[:length] + 1e-3 * rng.normal(size=(length, 4))


def test_nothing_is_allowed_behind_a_segment():
    """[5] At its end + 1 nothing of a segment may be skipped; without pre-skip everything always may."""
    memory = Continuity(((0, 2), (3, 6)), Guidance())
    assert not any(memory.allows(i) for i in range(DEPTH))
    memory.points = [1, 6]
    assert [i for i in range(DEPTH) if memory.allows(i)] == [1]
    assert all(Continuity(((0, 2),), Guidance(pre_skip=False)).allows(i) for i in range(2))


def test_the_first_drop_is_doubted():
    """A drop below -eta1 that follows none; then not before continuity held still or rose."""

    def doubts(drops: list[float], **settings: Any) -> list[bool]:
        memory, _, _ = walked([0.0, 0.0], k=1, **settings)
        found, place = [], 0.0
        for length in np.cumsum(drops):
            place += length
            found.append(memory.doubts(np.array([[place, 7.0]])))
            memory.note(np.array([[place, 7.0]]))
        return found

    assert doubts([1.5, 1.5, -3.0, 1.5, 0.0, 1.5]) == [True, False, False, True, False, True]
    assert doubts([1.0, 1.0, 1.1]) == [False, False, True]  # not below -eta1, and not a drop before the last either
    assert doubts([1.5, 1.5, -3.0, 1.5, 0.0, 1.5], cooldown=3) == [True, False, False, False, False, True]
    assert not any(doubts([1.5, 0.0, 1.5], post_skip=False))
    memory = Continuity((), Guidance())
    assert not memory.doubts(np.ones((9, 2)))  # nothing to compare with


@pytest.mark.parametrize("wrong", [{"k": 0}, {"eta": 0.0}, {"eta1": -1.0}, {"rule": "floor"}, {"cooldown": -1}])
def test_guidance_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=f"continuity: .*{next(iter(wrong))}"):
        Guidance(**wrong)


# -- episodes ----------------------------------------------------------------------------------------------------------


def session(model: Any, seed: int = 1, **guidance: Any) -> tuple[Eager, list[Observation]]:
    """A runtime of a student whose every controller fires where it may, and observations."""
    data: Any = registry.get("data", "fake")(cameras=model.spec.cameras, action_dim=4, state_dim=4)
    model.fit_to(data.stats, data.tasks, data.cameras)
    student = routed(model, guidance={"k": 2, "eta": 1e-9, "eta1": 1e-9, **guidance})
    decide(student.router, **{f"i{i}": True for i in range(DEPTH)})
    rng = np.random.default_rng(0)
    seen = [
        {
            **{
                f"observation.images.{c}": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for c in model.spec.cameras
            },
            "observation.state": rng.uniform(-1, 1, 4).astype(np.float32),
            "task": "reach the red block",
        }
        for _ in range(8)
    ]
    return Eager(student, seed=seed), seen


def test_a_doubted_chunk_is_computed_once_more_and_by_every_layer(monkeypatch):
    """[8] One rerun at most, equal to a plain call; only after a pass that was shortened."""
    model = fresh(*FAMILIES[0])
    runtime, seen = session(model, pre_skip=False)
    passes: list[Tensor] = []
    sound = Eager.chunk
    monkeypatch.setattr(Eager, "chunk", lambda self, *rest: passes.append(sound(self, *rest)) or passes[-1])
    monkeypatch.setattr(Continuity, "doubts", lambda self, actions: True)
    batch = model.observe(seen[:1])
    noise = model.noise(1, torch.Generator().manual_seed(5))
    answer = runtime.answer(batch, noise)
    assert len(passes) == 2 and runtime.repeated == 1 and not torch.equal(*passes)
    assert torch.equal(answer, model.act(batch, noise)) and torch.equal(answer, passes[1])
    executed = answer[0, : model.spec.replan, :4].double().numpy()
    assert (runtime.memory.last_A == executed[-1]).all(), "the memory holds what was not executed"
    decide(runtime.model.router)
    runtime.answer(batch, noise)
    assert len(passes) == 3, "a pass through all layers was done again"


@every_family
def test_smoothness_is_that_of_the_movement_where_actions_are_relative(family, monkeypatch):
    """A robot that stands still at another place each time would move abruptly if chunks counted from one origin."""
    name, settings = family
    model = fresh(name, {**settings, "action_dim": 4, "state_dim": 4, "relative": (True, False, True, False)})
    runtime, seen = session(model, k=3)

    def chunk(self: Eager, batch: Any, *_: Any) -> Tensor:
        """Along one line through the robot's own space, whatever the state."""
        self.taken.append(Route.full(DEPTH))
        steps = torch.arange(self.spec.horizon)[:, None] + self.spec.replan * self.memory.chunks
        asked_HA = (0.01 * steps * torch.ones(4)).numpy() - batch.origin_BA.numpy()
        made = torch.from_numpy(self.model.normalizer.encode("action", asked_HA))
        return pad(made, self.model.config.width_action)[None]

    monkeypatch.setattr(Eager, "chunk", chunk)
    for observation in seen:
        runtime.infer(observation)
    ends = runtime.model.normalizer.encode("action", np.array([[0.0] * 4, [0.01] * 4]))
    length = np.linalg.norm(ends[1] - ends[0])
    assert np.ptp([o["observation.state"][0] for o in seen]) > 0.5, "the robot stood still"
    assert runtime.memory.level == pytest.approx(-length, rel=1e-3)
    assert runtime.memory.lengths == pytest.approx([length] * 2, rel=1e-3)


def test_reset_clears_the_memory_and_sessions_do_not_meet():
    """[10]"""
    model = fresh(*FAMILIES[0])
    (a, seen), (b, _) = session(model), session(model, seed=2)
    b.model = a.model

    def run(runtime: Eager, seed: int) -> tuple[list[bytes], list[int]]:
        runtime.reset(seed)
        return [runtime.infer(o).tobytes() for o in seen], [sum(route.run) for route in runtime.taken]

    first, layers = run(a, 1)
    assert layers[0] == DEPTH and min(layers) < DEPTH, "the episode says nothing"
    other, _ = run(b, 2)
    assert run(a, 1)[0] == first
    a.reset(1)
    assert (a.memory.level, a.memory.points, a.memory.last_A, a.memory.chunks) == (None, [2, 6], None, 0)
    b.reset(2)
    assert [(a.infer(o).tobytes(), b.infer(o).tobytes()) for o in seen] == list(zip(first, other))
