"""The seam for students that decide which layers run: crossings, shares, memories, and what is handed back.

Checks are plain functions of a way to make a model, so that the last test can show each of them the bugs it is for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lithe import checkpoint, registry, surgery
from lithe.data.fake import FakeData
from lithe.families import _routing, pi
from lithe.routers.base import Memory, Router, straight_through
from lithe.runtimes.base import Runtime
from lithe.runtimes.eager import Eager
from lithe.surgery import InstallRouter, KeepLayers
from lithe.types import Crossing, Route, Tap

DEPTH = 4
VARIANTS = (
    ("pi", {"variant": "pi05"}),
    ("pi", {"variant": "pi0"}),
    ("smolvla", {}),
    ("smolvla", {"self_attention_every": 0}),
)
Make = Callable[..., Any]


class Counter(Memory):
    """Lets every second observation of an episode cross."""

    def __init__(self) -> None:
        self.passes, self.noted, self.doubtful = 0, 0, False

    def note(self, actions_HA: np.ndarray) -> None:
        self.passes += 1
        self.noted = len(actions_HA)

    def doubts(self, actions_HA: np.ndarray) -> bool:
        return self.doubtful


class Toy(Router):
    """Crosses from the keys to the values of `ways`, through adapters of random weights or through nothing."""

    name = "toy"

    def __init__(self, sizes, ways: dict[int, int], adapter: bool = False, remembers: bool = False):
        super().__init__(sizes)
        self.ways, self.remembers, self.shares = ways, remembers, torch.tensor([0.0, 1.0, 0.0])
        generator = torch.Generator().manual_seed(7)
        maps = {"prefix": sizes.prefix, "suffix": sizes.suffix} if adapter else {}
        self.maps = nn.ParameterDict({k: torch.randn(d, d, generator=generator) / d**0.5 for k, d in maps.items()})
        self.bridged: list[tuple[str, int]] = []

    def memory(self) -> Memory | None:
        return Counter() if self.remembers else None

    def landing(self, i):
        return self.ways.get(i)

    def allows(self, i, memory):
        return memory is None or memory.passes % 2 == 1

    def share(self, i, x_BND, valid_BN):
        return self.shares[: len(x_BND)].to(x_BND.device)

    def crosses(self, i, x_BND, valid_BN, probe):
        assert probe is not None and len(probe.before) < len(self.ways), "a pass begins with no answers"
        return bool(probe().isfinite().all())

    def bridge(self, stream, i, x):
        self.bridged.append((stream, i))
        return x @ self.maps[stream].to(x.dtype) if self.maps else x


class Choice(Router):
    """Decides ahead, by the length of the prompt: an observation skips layer 1 or layer 2."""

    name = "choice"

    def ahead(self, sight, memory):
        open_B = torch.where(sight.text_BN.sum(dim=1) > 12, 0.8, 0.3)
        return torch.stack([torch.ones_like(open_B), open_B, 1 - open_B, torch.ones_like(open_B)], dim=1)


def maker(name: str, settings: dict[str, Any]) -> Make:
    """make(ways, ...) -> a pico policy with every parameter moved, and a Toy in it unless ways is None."""

    def make(ways: dict[int, int] | None = None, **toy: Any) -> Any:
        model: Any = registry.get("families", name).fresh("pico", **settings)  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        if ways is not None:
            model.router = Toy(model.streams, ways, **toy)
        return model.eval()

    return make


def noise(model: Any, batch: int = 1) -> Tensor:
    return model.noise(batch, torch.Generator().manual_seed(5))


@torch.no_grad()
def train_pass(model: Any, route: Route | None = None, taps: tuple[Tap, ...] = ()) -> Any:
    """The forward pass of a training step with three observations and two noise draws."""
    batch = model.example(3)
    draw = model.draw(batch, torch.Generator().manual_seed(3), 2, augment=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16):
        return model(batch, draw, taps, route)


def skipping(ways: dict[int, int]) -> Route:
    """The hard route that takes these crossings."""
    gone = [i for start, end in ways.items() for i in range(start, end)]
    return dataclasses.replace(
        Route.without(DEPTH, *gone), crossings=tuple(Crossing(start, end) for start, end in sorted(ways.items()))
    )


# -- what must hold ----------------------------------------------------------------------------------------------------


def a_crossing_removes_layers(make: Make) -> None:
    for ways in ({0: 1}, {1: 3}, {2: DEPTH}, {0: 2, 3: DEPTH}):
        model, plain, told = make(ways), make(), []
        kept = tuple(i for i, run in enumerate(skipping(ways).run) if run)
        cut = surgery.cut(plain, [KeepLayers("trunk", kept)])
        batch = model.example(1)
        chunk = model.act(batch, noise(model), told=told.append)
        assert torch.equal(chunk, cut.act(batch, noise(model))), f"crossing {ways} is not removing layers"
        assert not torch.equal(chunk, plain.act(batch, noise(model))), "nothing was crossed"
        (route,) = told
        assert (route.run, route.crossings) == (skipping(ways).run, skipping(ways).crossings)


def soft_crossings_are_exact_at_both_ends(make: Make) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for ways in ({1: 3}, {1: DEPTH}, {0: 1, 2: 3}):
            model = make(ways, adapter=True).to(dtype)
            soft = train_pass(model, Route((True,) * DEPTH, asked=tuple(ways))).pred_BRHA
            whole, hard = (train_pass(model, r).pred_BRHA for r in (Route.full(DEPTH), skipping(ways)))
            assert torch.equal(soft[[0, 2]], whole[[0, 2]]), f"{ways} at share 0 in {dtype} is not the whole model"
            assert torch.equal(soft[1], hard[1]), f"{ways} at share 1 in {dtype} is not the crossing"
            assert not torch.equal(soft[1], whole[1])


def shares_get_gradients(make: Make) -> None:
    model = make({1: 3}, adapter=True)
    leaf = torch.tensor([0.3, 0.6, 0.9], requires_grad=True)
    model.router.shares = leaf
    batch = model.example(3)
    draw = model.draw(batch, torch.Generator().manual_seed(3), 2, augment=False)
    out = model(batch, draw, (), Route((True,) * DEPTH, asked=(1,)))
    assert out.route.crossings[0].share_B is not None
    model.task_loss(out).backward()
    assert leaf.grad is not None and (leaf.grad.abs() > 0).all(), "a share teaches the router nothing"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.router.parameters())


def both_streams_take_the_bridge(make: Make) -> None:
    for ways in ({1: 3}, {2: DEPTH}):
        ((start, end),) = ways.items()
        model = make(ways, adapter=True)
        taps = tuple(Tap(stream, i) for stream in ("prefix", "suffix") for i in (start, end))
        whole, hard = (train_pass(model, r, taps).taps for r in (Route.full(DEPTH), skipping(ways)))
        for stream in ("prefix", "suffix"):
            expected = whole[Tap(stream, start)] @ model.router.maps[stream]
            assert torch.equal(hard[Tap(stream, end)], expected), f"the {stream} did not take the bridge {ways}"
        model.router.bridged.clear()
        model.act(model.example(1), noise(model), 2)
        assert model.router.bridged == [("prefix", start), *[("suffix", start)] * 2]


def no_crossing_begins_inside_another(make: Make) -> None:
    model, told = make({0: 3, 1: 2, 3: 4}), []
    model.act(model.example(1), noise(model), told=told.append)
    soft = train_pass(model, Route((True,) * DEPTH, asked=(0, 1, 3))).route
    for route in (told[0], soft):
        assert [(way.start, way.end) for way in route.crossings] == [(0, 3), (3, 4)], "crossings overlap"
    assert told[0].run == (False,) * 4 and soft.run == (True,) * 4 and soft.asked == ()


def the_taken_route_says_everything(make: Make) -> None:
    model, told = make({1: 3}, adapter=True), []
    model.router.shares = torch.tensor([0.2, 0.5, 0.7])
    batch = model.example(1)
    chunk = model.act(batch, noise(model), told=told.append)
    assert torch.equal(model.act(batch, noise(model), route=told[0]), chunk), "acting again took another way"
    out = train_pass(model, Route((True,) * DEPTH, asked=(1,)))
    assert torch.equal(train_pass(model, out.route).pred_BRHA, out.pred_BRHA), "training again took another way"
    model.router, told = Choice(model.streams), []
    chunk = model.act(batch, noise(model), told=told.append)
    assert sum(told[0].run) == DEPTH - 1 and torch.equal(model.act(batch, noise(model), route=told[0]), chunk)
    out = train_pass(model)
    assert torch.equal(train_pass(model, out.route).pred_BRHA, out.pred_BRHA)


def training_has_the_values_of_skipping(make: Make) -> None:
    model = make()
    model.router = Choice(model.streams)
    soft = train_pass(model)
    ways = {tuple(bool(open) for open in row) for row in soft.route.share_BL.tolist()}
    assert len(ways) == 2, "the observations should differ"
    for run in ways:
        rows = [i for i, row in enumerate(soft.route.share_BL.tolist()) if tuple(map(bool, row)) == run]
        assert torch.equal(soft.pred_BRHA[rows], train_pass(model, Route(run)).pred_BRHA[rows]), "soft is not hard"


def observations_are_answered_one_by_one(make: Make) -> None:
    model = make()
    model.router = Choice(model.streams)
    batch, told, alone = model.example(3), [], []
    chunk = model.act(batch, noise(model, 3), told=told.append)
    rows = [model.act(batch.take([i]), noise(model, 3)[i : i + 1], told=alone.append) for i in range(3)]
    assert len(told) == 3, f"told {len(told)} times of 3 observations"
    assert [r.run for r in told] == [r.run for r in alone] and len({r.run for r in told}) == 2
    assert torch.equal(chunk, torch.cat(rows)), "an observation's answer depends on its neighbours"


def a_route_must_fit(make: Make) -> None:
    model = make()
    for route in (Route.full(DEPTH - 1), Route.full(DEPTH + 1)):
        with pytest.raises(ValueError, match=f"the route is for {len(route.run)} layers, the model has {DEPTH}"):
            train_pass(model, route)
        with pytest.raises(ValueError, match="the route is for"):
            model.act(model.example(1), noise(model), route=route)


def sessions_have_their_own_memory(make: Make) -> None:
    model = make({1: 3}, remembers=True)
    batch = model.example(1)

    def acts(session: Runtime, times: int) -> list[Tensor]:
        return [session.answer(batch, noise(model)) for _ in range(times)]

    alone = acts(Eager(model), 3)
    assert not torch.equal(alone[0], alone[1]) and torch.equal(alone[0], alone[2]), "the memory decides nothing"
    a, b = Eager(model), Eager(model)
    mixed = [(*acts(a, 1), *acts(b, 1)) for _ in range(3)]
    for i, chunks in enumerate(mixed):
        assert all(torch.equal(chunk, alone[i]) for chunk in chunks), "a session remembers its neighbour's past"
    a.reset()
    assert torch.equal(acts(a, 1)[0], alone[0]) and len(a.taken) == 1, "a session remembers its own last episode"


def what_is_doubted_is_done_again(make: Make) -> None:
    model = make({1: 3}, remembers=True)
    batch, session = model.example(1), Eager(model)
    session.memory.passes, session.memory.doubtful = 1, True  # type: ignore[union-attr]
    chunk = session.answer(batch, noise(model))
    assert torch.equal(chunk, model.act(batch, noise(model), route=Route.full(DEPTH))), "the doubted chunk was used"
    assert session.repeated == 1 and [sum(r.run) for r in session.taken] == [2, 4]
    assert (session.memory.passes, session.memory.noted) == (2, model.spec.replan)  # type: ignore[union-attr]
    session.replan = model.spec.replan + 1
    session.answer(batch, noise(model))
    assert session.memory.noted == session.replan, "a memory must hear of what is executed"  # type: ignore[union-attr]


ON_EVERY_FAMILY = (
    a_crossing_removes_layers,
    soft_crossings_are_exact_at_both_ends,
    shares_get_gradients,
    both_streams_take_the_bridge,
    no_crossing_begins_inside_another,
    the_taken_route_says_everything,
    training_has_the_values_of_skipping,
    observations_are_answered_one_by_one,
    a_route_must_fit,
)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("check", ON_EVERY_FAMILY, ids=lambda c: c.__name__)
def test_every_family(check, name, settings):
    check(maker(name, settings))


@pytest.mark.parametrize(
    "check", [sessions_have_their_own_memory, what_is_doubted_is_done_again], ids=lambda c: c.__name__
)
def test_sessions(check):
    check(maker(*VARIANTS[0]))


def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other():
    soft = torch.tensor([0.1, 0.2, 0.9], requires_grad=True)
    hard = straight_through(torch.tensor([False, True, True]), soft)
    assert hard.tolist() == [0.0, 1.0, 1.0]
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert soft.grad is not None and soft.grad.tolist() == [1.0, 2.0, 3.0]


# -- installing --------------------------------------------------------------------------------------------------------

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("star", {"keep": 2, "width": 8}),
    ("exits", {"exits": (2,), "shares": (1.0, 1.0), "reference": 1, "action_dim": 4}),
)
ALL_KINDS = (*KINDS, ("gates", {"width": 8}), ("controllers", {"static": (2,), "rank": 2, "hidden": 3}))


def installed(kind: str, settings: dict[str, Any], seed: int = 0) -> Any:
    model, data = maker(*VARIANTS[0])(), FakeData(cameras=("corner2", "gripperPOV"), episodes=1, length=4, size=24)
    model.fit_to(data.stats, data.tasks, data.cameras)
    student = surgery.cut(model, [KeepLayers("trunk", (0, 1, 3)), InstallRouter(kind, settings, seed)])
    if kind == "exits":
        student.router.thresholds.fill_(1e8)
    return student.eval()


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_router_is_data(kind, settings):
    op = InstallRouter(kind, settings, 3)
    assert surgery.parse(json.loads(json.dumps(surgery.dump(op)))) == op
    first, second, other = (installed(kind, settings, seed) for seed in (3, 3, 4))
    assert first.router.sizes.depth == 3, "a router is made for the depth that it finds"
    weights = [
        torch.cat([p.flatten() for p in (*m.router.parameters(), torch.zeros(1))]) for m in (first, second, other)
    ]
    assert torch.equal(weights[0], weights[1]) and (kind == "exits" or not torch.equal(weights[0], weights[2]))
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    installed(kind, settings)
    assert torch.equal(torch.rand(1), expected), "making a router uses up others' luck"


@pytest.mark.parametrize(("kind", "settings"), ALL_KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_router_is_not_rounded_where_the_model_is(kind, settings, tmp_path):
    """Cast in memory, stored in half the bytes, loaded so: the weights that decide stay what they were."""
    student = installed(kind, settings)
    with torch.no_grad():
        for parameter in student.router.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    expected = {key: tensor.clone() for key, tensor in student.router.state_dict().items()}
    checkpoint.save(student, tmp_path / "small", torch.bfloat16)
    loaded: Any = checkpoint.load(tmp_path / "small", torch.bfloat16)
    for model in (loaded, student.to(torch.bfloat16)):
        assert model.embed.weight.dtype == torch.bfloat16
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.router.state_dict().items())
        told: list[Route] = []
        model.act(model.example(1), model.noise(1, torch.Generator().manual_seed(0)), told=told.append)
        assert len(told) == 1


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_second_router_is_refused(kind, settings):
    student = installed(kind, settings)
    with pytest.raises(ValueError, match=f"already has a router \\({kind}\\).*take a teacher without one"):
        surgery.cut(student, [InstallRouter(*KINDS[0])])


def test_an_unknown_router_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="among lithe's routers; did you mean 'exits'"):
        surgery.cut(maker(*VARIANTS[0])(), [InstallRouter("exit", {})])


SPEAK = """
import sys, torch
from lithe import checkpoint
for folder in sys.argv[1:]:
    model, told = checkpoint.load(folder), []
    chunk = model.act(model.example(2), model.noise(2, torch.Generator().manual_seed(5)), told=told.append)
    print(chunk.numpy().tobytes().hex(), [r.run for r in told])
"""


def test_routers_survive_the_disk_in_a_fresh_process(tmp_path):
    said = []
    for kind, settings in KINDS:
        student, told = installed(kind, settings), []
        chunk = student.act(student.example(2), noise(student, 2), told=told.append)
        assert all(sum(route.run) == 2 for route in told)
        said.append(f"{chunk.numpy().tobytes().hex()} {[route.run for route in told]}")
        checkpoint.save(student, tmp_path / kind)
        back = checkpoint.load(tmp_path / kind)
        assert back.history == student.history and back.state_dict().keys() == student.state_dict().keys()
    source = Path(checkpoint.__file__).resolve().parents[1]
    command = [sys.executable, "-c", SPEAK, *(str(tmp_path / kind) for kind, _ in KINDS)]
    env = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines() == said, "a fresh process acts differently"


# -- the checks can fail -----------------------------------------------------------------------------------------------

Bug = Callable[[pytest.MonkeyPatch], Any]
PLANTED: list[tuple[Callable[[Make], None], Bug]] = []


def planted(*checks: Callable[[Make], None]) -> Callable[[Bug], Bug]:
    def add(bug: Bug) -> Bug:
        PLANTED.extend((check, bug) for check in checks)
        return bug

    return add


@planted(both_streams_take_the_bridge)
def expert_does_not_cross(patch):
    sound = _routing.Walk.__init__

    def init(self, route, router, stream):
        sound(self, dataclasses.replace(route, crossings=()) if stream == "suffix" else route, router, stream)

    patch.setattr(_routing.Walk, "__init__", init)


@planted(the_taken_route_says_everything)
def crossings_are_not_handed_back(patch):
    sound = _routing.Asking.taken.fget
    patch.setattr(_routing.Asking, "taken", property(lambda self: dataclasses.replace(sound(self), crossings=())))


@planted(a_crossing_removes_layers)
def expert_runs_every_layer(patch):
    sound = pi.Pi._run_trunk

    def run(self, *args):
        caches, taken = sound(self, *args)
        any_cache = next(cache for cache in caches if cache is not None)
        return [cache or any_cache for cache in caches], taken

    patch.setattr(pi.Pi, "_run_trunk", run)


@planted(a_crossing_removes_layers)
def hard_landing_is_off_by_one(patch):
    patch.setattr(Toy, "landing", lambda self, i: self.ways[i] - (self.ways[i] > i + 1) if i in self.ways else None)


@planted(soft_crossings_are_exact_at_both_ends)
def soft_landing_is_off_by_one(patch):
    sound = _routing.Asking._cross

    def cross(self, crossing):
        sound(self, dataclasses.replace(crossing, end=crossing.end - 1 if crossing.end > crossing.start + 1 else DEPTH))

    patch.setattr(_routing.Asking, "_cross", cross)


@planted(soft_crossings_are_exact_at_both_ends)
def mix_is_inexact(patch):
    def enter(self, i, x):
        for made, share_B in self.landing.pop(i, ()):
            x = x + share_B[:, None, None].to(x.dtype) * (made - x)
        self.landing, held = {}, self.landing
        x = sound(self, i, x)
        self.landing = held | self.landing
        return x

    sound = _routing.Walk.enter
    patch.setattr(_routing.Walk, "enter", enter)


@planted(no_crossing_begins_inside_another)
def nobody_is_busy(patch):
    patch.setattr(_routing.Asking, "_cross", lambda self, way: self.crossings.__setitem__(way.start, way))


@planted(shares_get_gradients)
def share_is_cut_off_from_the_graph(patch):
    sound = Toy.share
    patch.setattr(Toy, "share", lambda self, *rest: sound(self, *rest).detach())


@planted(training_has_the_values_of_skipping)
def shares_are_not_hardened(patch):
    patch.setattr(Router, "harden", lambda self, gates_BL: gates_BL * 0.999 + (gates_BL > 0.5) * 1e-3)


@planted(observations_are_answered_one_by_one)
def the_first_observation_decides_for_all(patch):
    def one_by_one(act, batch, noise_BHA, told, **rest):
        routes = []
        act(batch.take([0]), noise_BHA[:1], told=routes.append)
        for _ in range(len(batch)):
            told and told(routes[0])
        return act(batch, noise_BHA, route=routes[0], **rest)

    patch.setattr(pi, "one_by_one", one_by_one)


@planted(observations_are_answered_one_by_one)
def told_twice(patch):
    def one_by_one(act, batch, noise_BHA, told, **rest):
        return sound(act, batch, noise_BHA, told=lambda taken: (told(taken), told(taken)), **rest)

    sound = _routing.one_by_one
    patch.setattr(pi, "one_by_one", one_by_one)


@planted(a_route_must_fit)
def any_route_will_do(patch):
    patch.setattr(pi, "check", lambda route, depth: Route((*route.run, *[True] * depth)[:depth]))


@planted(sessions_have_their_own_memory)
def one_memory_for_all(patch):
    shared = Counter()
    patch.setattr(Toy, "memory", lambda self: shared)


@planted(sessions_have_their_own_memory)
def reset_keeps_the_memory(patch):
    sound = Runtime.reset

    def reset(self, seed=0):
        kept = getattr(self, "memory", None)
        sound(self, seed)
        self.memory = kept or self.memory

    patch.setattr(Runtime, "reset", reset)


@planted(what_is_doubted_is_done_again)
def doubt_is_ignored(patch):
    patch.setattr(Counter, "doubts", lambda self, actions_HA: False)


@planted(a_crossing_removes_layers)
def answers_of_the_last_pass_stay(patch):
    sound, kept = _routing.Asking.__init__, [torch.zeros(1)] * 3

    def init(self, *args, **named):
        sound(self, *args, **named)
        self.answers = kept

    patch.setattr(_routing.Asking, "__init__", init)


@pytest.mark.parametrize(("check", "bug"), PLANTED, ids=lambda f: f.__name__)
def test_a_planted_bug_is_caught(check, bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(maker(*VARIANTS[0]))
