"""Real time: late chunks become exactly the right actions, things move, and reactions to that are told rightly."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lithe import checkpoint, result
from lithe.evaluate import evaluate, realtime, table
from lithe.evaluate.chunking import Guide, steered, weights
from lithe.evaluate.outcome import rows
from lithe.evaluate.reaction import REACTS
from lithe.evaluate.rollout import Player, Setup
from lithe.evaluate.stream import Stream
from lithe.families.pi import Pi
from lithe.runtimes.eager import Eager
from lithe.sims.base import Sim
from lithe.sims.fake import FakeSim
from lithe.sims.metaworld import FURNITURE, MINI_TASKS, MetaWorld

HELD = -1


def make_model(seed: int = 0, drift: float = 0.3, **settings) -> Pi:
    model = Pi.fresh("pico", seed=seed, cameras=FakeSim.cameras, **settings)
    middle = np.array([drift, drift, -0.25, 0.0])
    unit = {"q01": [-1.0] * 4, "q99": [1.0] * 4}
    stats = {"observation.state": unit, "action": {"q01": middle - 0.5, "q99": middle + 0.5}}
    model.fit_to(stats, [FakeSim.instruction(task) for task in FakeSim.tasks()], FakeSim.cameras)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    home = tmp_path_factory.mktemp("policies")
    return [
        checkpoint.save(make_model(i, drift), home / n) for i, (n, drift) in enumerate((("big", 0.3), ("small", -0.3)))
    ]


# -- one stream of late chunks -----------------------------------------------------------------------------------------


def executed(kind=Stream, steps=13, length=8, replan=3, delay=2, stands=False) -> tuple[list[int], list[list[int]]]:
    """The numbers of the executed actions, chunk * 100 + place in it, and what was left at every question."""
    left: list[list[int]] = []

    def ask(left_TA):
        left.append([] if left_TA is None else [int(a) for a in left_TA[:, 0]])
        return 100 * (len(left) - 1) + np.arange(length)[:, None]

    stream = kind(ask, lambda last_A: np.array([HELD]), replan, delay, stands)
    return [int(stream.next()[0]) for _ in range(steps)], left


H = HELD
WANTED = {  # by hand
    "waits": ({"delay": 0}, [0, 1, 2, 100, 101, 102, 200, 201, 202, 300, 301, 302, 400]),
    "async without delay": ({"delay": 0, "stands": False}, [0, 1, 2, 100, 101, 102, 200, 201, 202, 300, 301, 302, 400]),
    "async": ({}, [H, H, 0, 1, 2, 3, 4, 102, 103, 104, 202, 203, 204]),
    "as late as it executes": ({"delay": 3}, [H, H, H, 0, 1, 2, 3, 4, 5, 103, 104, 105, 203]),
    "runs out of actions": (
        {"delay": 5, "steps": 21},
        [*[H] * 5, 0, 1, 2, 3, 4, 5, 6, 7, 105, 106, 107, H, H, 203, 204, 205],
    ),
    "sync": ({"stands": True}, [H, H, 0, 1, 2, H, H, 100, 101, 102, H, H, 200]),
    "sync without delay": ({"stands": True, "delay": 0}, [0, 1, 2, 100, 101, 102, 200, 201, 202, 300, 301, 302, 400]),
}


@pytest.mark.parametrize("case", WANTED, ids=str)
def test_late_chunks_lose_what_was_executed_while_they_were_made(case):
    settings, wanted = WANTED[case]
    assert executed(**settings)[0] == wanted


def test_the_policy_is_told_what_is_left_when_it_is_asked():
    assert executed()[1] == [[], [3, 4, 5, 6, 7], [103, 104, 105, 106, 107], [203, 204, 205, 206, 207]]


class DropsOneLess(Stream):
    """Keeps an action that is already past."""

    def _receive(self):
        before = self._now
        super()._receive()
        if self._now is not before and self._done > self._now.base:
            self._done -= 1


class DropsForHeldSteps(Stream):
    """Also drops actions for steps at which the robot stood still."""

    def _receive(self):
        before = self._now
        super()._receive()
        if self._now is not before and before is None:
            self._done += self.delay


class NeverWaits(Stream):
    """Has the chunk at once, whatever the delay."""

    def __init__(self, ask, hold, replan, delay=0, stands=False):
        super().__init__(ask, hold, replan, 0, stands)


@pytest.mark.parametrize("planted", [DropsOneLess, DropsForHeldSteps, NeverWaits])
def test_a_planted_bug_in_the_stream_is_caught(planted):
    assert executed(planted)[0] != WANTED["async"][1]


def test_a_delay_of_nothing_is_todays_rollout_bit_for_bit(folders):
    policies = {"big": str(folders[0])}
    today, *late, slow = (
        Player(Setup(policies, "fake", 10, execution=execution, delays={"big": delay}))("big", "reach-red", 1)
        for execution, delay in ((None, 0), ("async", 0), ("sync", 0), ("async", 2))
    )
    assert late == [{**today, "held": 0}] * 2
    assert slow["actions"] != today["actions"] and slow["held"] == 2


# -- real-time chunking ------------------------------------------------------------------------------------------------


def test_weights_hold_what_is_executed_and_fade_to_nothing():
    fall = torch.tensor([3 / 4, 2 / 4, 1 / 4])
    paper = fall * (fall.exp() - 1) / (np.e - 1)
    assert torch.allclose(weights(2, 5, 7), torch.cat([torch.ones(2), paper, torch.zeros(2)]))
    assert torch.allclose(weights(2, 5, 7, "linear"), torch.cat([torch.ones(2), fall, torch.zeros(2)]))
    assert weights(2, 5, 7, "zeros").tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert weights(2, 5, 7, "ones").tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert weights(9, 3, 4).tolist() == [1, 1, 1, 0], "nothing counts behind what is left"


def seen() -> dict:
    sim = FakeSim()
    sim.reset("reach-red", 0)
    return sim.observe()


LEFT = np.array([[0.7, -0.1, 0.1, 0.4], [-0.1, 0.6, -0.6, -0.4], [0.5, 0.6, 0.1, 0.3]], np.float32)


def test_the_frozen_prefix_is_the_old_chunk_and_the_rest_is_free():
    """With many denoise steps the pull leaves nothing over; behind what is left the chunk is the free one's."""
    policy = Eager(make_model(), steps=100)
    free = policy.infer(seen())
    policy.reset()
    held = steered(policy, seen(), LEFT, 2)
    assert np.abs(free[:2] - LEFT[:2]).max() > 0.3
    assert np.abs(held[:2] - LEFT[:2]).max() < 0.03
    shifted = LEFT[1:]
    assert np.abs(held[:2] - shifted).max() > 0.3, "an offset by one would pass"
    gap = [np.abs(chunk[2] - LEFT[2]).max() for chunk in (held, free)]
    assert gap[0] < gap[1], "what comes after is drawn towards the old chunk"
    assert held.shape == free.shape and np.abs(held[3] - free[3]).max() < 0.3 * np.abs(held[0] - free[0]).max()


def test_the_strongest_pull_never_passes_its_goal():
    pull = Guide(torch.ones(1, 2, 1), torch.ones(2), 5.0)
    assert pull.strength(1.0) == 5.0
    for step in range(5):
        assert 0 < pull.strength(1 - step / 5) / 5 <= 1


def test_rtc_asks_for_a_chunk_that_goes_on(folders, monkeypatch):
    """The player hands over what is left, as it will be executed."""
    policies, told = {"big": str(folders[0])}, []

    def spy(policy, observation, left_TA, delay):
        told.append((left_TA.copy(), delay))
        return policy.infer(observation)

    monkeypatch.setattr(importlib.import_module("lithe.evaluate.chunking"), "steered", spy)
    player = Player(Setup(policies, "fake", 12, execution="rtc", delays={"big": 1}))
    record = player("big", "reach-red", 0)
    assert len(told) == record["inferences"] - 1, "the first chunk has nothing to go on from"
    assert {len(left) for left, _ in told} == {4 - 2} and {delay for _, delay in told} == {1}
    assert all(np.abs(left).max() <= 1 for left, _ in told)


# -- latencies ---------------------------------------------------------------------------------------------------------


def test_a_latency_is_the_number_of_steps_that_go_by():
    fps = 80
    assert [realtime.steps(ms, fps) for ms in (0, 0.1, 12.5, 12.6, 25, 64.61, 100)] == [0, 1, 1, 2, 2, 6, 8]
    assert realtime.steps(300, 10) == 3, "300 * 10 / 1000 is 3, not a little more"


def named(latency, policies=("a", "b"), fps=10.0) -> dict[str, int]:
    return {name: timing.delay for name, timing in realtime.timings(latency, policies, fps)[0].items()}


def test_latencies_are_read_from_numbers_names_and_benches(tmp_path):
    every = {"a@0ms": 0, "a@150ms": 2, "b@0ms": 0, "b@150ms": 2}
    assert named("0,150") == named([150, 0]) == named("150ms, 0") == every
    assert named(150) == {"a@150ms": 2, "b@150ms": 2}
    assert named("a=120,b=50") == named({"a": 120, "b": 50}) == {"a@120ms": 2, "b@50ms": 1}
    assert named("0,a=120") == {"a@0ms": 0, "a@120ms": 2, "b@0ms": 0}
    path = tmp_path / "bench.json"
    timed = [{"policy": n, "end_to_end_ms": {"p50": ms}} for n, ms in (("a", 64.6126), ("b", 26.4), ("c", 1.0))]
    settings, facts = {"device": "cuda:0", "runtime": "eager", "quiet": True}, {"gpu": "NVIDIA Somewhat", "cpu": "x"}
    path.write_text(json.dumps({"kind": "bench", "rows": timed, "settings": settings, "hardware": facts}))
    assert named(str(path)) == {"a@64.61ms": 1, "b@26.4ms": 1}
    assert named(f"0,{path}") == {"a@0ms": 0, "a@64.61ms": 1, "b@0ms": 0, "b@26.4ms": 1}
    [source] = realtime.timings(str(path), ("a", "b"), 10)[1]
    assert (source["machine"], source["device"], source["file"]) == ("NVIDIA Somewhat", "cuda:0", "bench.json")
    assert named(path) == named([path]) == named(str(path)) and named(np.array([0, 150])) == every
    assert named(np.int64(150)) == named(150) and named([np.float32(150)]) == named(150)
    with pytest.raises(ValueError, match=r"bench.json does not time 'd'.*it times a, b, c.*d=<milliseconds>"):
        named(str(path), ("a", "d"))
    assert named(f"{path},d=7", ("a", "d")) == {"a@64.61ms": 1, "d@7ms": 1}, "it has one of its own"
    path.write_text(json.dumps({"kind": "eval", "rows": timed}))
    with pytest.raises(ValueError, match=r"bench.json holds no latency"):
        named(str(path))


@pytest.fixture
def bench(tmp_path):
    """Writes a Result of `lithe bench`: rows by policy, what is common to them."""

    def written(rows: dict[str, dict], **settings) -> str:
        path = tmp_path / "bench.json"
        timed = [{"policy": name, "end_to_end_ms": {"p50": 50.0}, **row} for name, row in rows.items()]
        facts = {"gpu": "A GPU", "cpu": "A processor"}
        path.write_text(json.dumps({"kind": "bench", "rows": timed, "settings": settings, "hardware": facts}))
        return str(path)

    return written


def p50(ms: float) -> dict:
    return {"end_to_end_ms": {"p50": ms}}


def test_a_benched_latency_is_rounded_for_its_name_only(bench):
    path = bench({"a": p50(12.504), "b": p50(0.004)})
    assert named(path, fps=80.0) == {"a@12.504ms": 2, "b@0.004ms": 1}
    assert named(f"12.5,{path}", ("a",), 80.0) == {"a@12.5ms": 1, "a@12.504ms": 2}, "each is one of its own"
    assert named(bench({"a": p50(64.6126)}), ("a",), 80.0) == {"a@64.61ms": 6}


def test_of_several_runtimes_the_one_that_plays_is_taken_and_every_device_credited(bench):
    rows = {"a/eager": p50(200.0), "a/packed": p50(50.0), "b/eager": {**p50(90.0), "device": "cuda:0"}}
    path = bench({**rows, "c/packed": p50(1.0)}, device="cpu", dtype="float32")
    assert named(path, fps=10.0) == {"a@200ms": 2, "b@90ms": 1}
    assert list(realtime.timings(path, ["a"], 10.0, "packed")[0]) == ["a@50ms"]
    cpu, gpu = realtime.timings(path, ["a", "b"], 10.0)[1]
    assert (cpu["machine"], cpu["policies"], gpu["machine"], gpu["policies"]) == ("A processor", ["a"], "A GPU", ["b"])
    assert gpu["dtype"] == "float32"
    with pytest.raises(ValueError, match=r"does not time 'c'.*a/eager.*one that timed eager.*c=<milliseconds>"):
        named(path, ["c"])


def test_a_policy_that_decides_itself_what_runs_needs_a_latency_that_is_given(bench):
    path = bench({"a": p50(20.0), "b": {**p50(25.6), "layers_run": {"mean": 5.0}}})
    with pytest.raises(ValueError, match=r"'b' decides for every chunk.*slow chunks: give.*b=<milliseconds>"):
        named(path)
    with pytest.raises(ValueError, match="'b' decides"):
        named(f"0,{path}")
    assert named(f"{path},b=120") == {"a@20ms": 1, "b@120ms": 2}


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        ({"depth": 2}, {}, "big@50ms: the bench timed it with depth=2, and what plays has depth=4"),
        ({}, {"steps": 1}, "with steps=1, and what plays has steps=3: bench what plays, or give milliseconds"),
        ({"horizon": 8}, {}, "horizon=8, and what plays has horizon=4"),
        ({}, {"views": 1}, "views=1, and what plays has views=2"),
        ({"runtime": "packed"}, {}, "timed in the runtime packed, which cannot steer a chunk"),
    ],
    ids=str,
)
def test_the_latency_of_another_policy_is_refused(folders, bench, row, settings, sentence):
    path = bench({"big": row, "small": {}}, **settings)
    with pytest.raises(ValueError, match=sentence):
        evaluate(folders, "fake", ["reach-red"], episodes=1, execution="rtc", latency=path)


def test_what_was_timed_as_it_plays_is_taken(bench):
    model, same = make_model(), {"depth": 4, "steps": 3, "horizon": 4, "views": 2, "runtime": "eager"}

    def checked(execution, steps=None, differs=()):
        timing = realtime.Timing("x", 50.0, 1, {**same, **dict(differs)})
        realtime.check_policy(model, timing, execution, 2, "eager", 40, steps)

    checked("rtc")
    checked("rtc", 1, {"steps": 1})
    checked("async", None, {"runtime": "packed"})
    with pytest.raises(ValueError, match="steps=3, and what plays has steps=1"):
        checked("async", 1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"execution": "asynch", "latency": 10}, "no execution 'asynch'; did you mean 'async'"),
        ({"execution": "async"}, "execution without latency"),
        ({"latency": 50}, "latency without execution"),
        ({"execution": "async", "latency": -5}, "latency of -5 ms cannot be"),
        ({"execution": "async", "latency": "nan"}, "latency of nan ms cannot be"),
        ({"execution": "async", "latency": "fast"}, "'fast' is no latency: write 120"),
        ({"execution": "async", "latency": "bigg=10"}, "'bigg', which is not evaluated; did you mean 'big'"),
        ({"execution": "async", "latency": {"big": 10}}, "no latency is given for 'small': add small="),
        (
            {"execution": "async", "latency": 400},
            "4 actions arrive 4 control steps late, so that none lasts until the next",
        ),
        ({"execution": "rtc", "latency": 300}, "nothing of the old chunk is left.*execution async or sync"),
        ({"execution": "rtc", "latency": 200, "replan": 3}, "give replan=2 or less"),
        ({"execution": "rtc", "latency": 100, "runtime": "packed"}, "packed cannot steer a chunk"),
        ({"execution": "sync", "latency": 4000}, "first action comes after 40 of 40 control steps"),
        ({"sim_options": {"moving": "jmp"}}, "no moving='jmp'; did you mean 'jump'"),
        ({"against": "big", "execution": "sync", "latency": 0}, "against='big' is not among.*big@0ms"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_a_sentence(folders, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(folders, "fake", ["reach-red"], episodes=1, **settings)


def test_a_router_that_remembers_actions_and_a_family_that_cannot_be_steered_are_refused(monkeypatch):
    model, timing = make_model(), realtime.Timing("x", 100.0, 1)

    def checked(execution):
        realtime.check_policy(model, timing, execution, 2, "eager", 40)

    for execution in realtime.EXECUTIONS:
        checked(execution)
    monkeypatch.setattr(Pi, "guided", False)
    with pytest.raises(ValueError, match="family pi cannot be steered: give execution async or sync"):
        checked("rtc")
    checked("async")
    model.router = SimpleNamespace(memory=lambda: object())
    for execution in ("async", "rtc"):
        with pytest.raises(ValueError, match=r"router remembers which actions were executed.*give execution sync"):
            checked(execution)
    checked("sync")
    model.router = SimpleNamespace(memory=lambda: None)
    checked("async")


# -- something moves ---------------------------------------------------------------------------------------------------


def scene(sim, task="reach-red", seed=3, steps=6) -> list[np.ndarray]:
    sim.reset(task, seed)
    found = [sim.render("front", 32)]
    for _ in range(steps):
        sim.step(sim.hold(None))
        found.append(sim.render("front", 32))
    return found


def test_the_toys_block_moves_at_its_step_and_by_the_seed_alone():
    still, jump = scene(FakeSim()), scene(FakeSim(moving="jump"))
    sim = FakeSim(moving="jump")
    scene(sim, "reach-blue", 9)
    assert all(np.array_equal(a, b) for a, b in zip(scene(sim), jump, strict=True)), "it depends on what was before"
    differs = [not np.array_equal(a, b) for a, b in zip(still, jump, strict=True)]
    assert differs == [i >= sim.event for i in range(7)] and 1 <= sim.event <= 3
    drift = scene(FakeSim(moving="drift"))
    assert not np.array_equal(drift[sim.event], jump[sim.event]) and np.array_equal(drift[0], still[0])
    assert len({(FakeSim.reset(sim, "reach-red", s), sim.event)[1] for s in range(20)}) == 3
    sim.moving = None
    assert all(np.array_equal(a, b) for a, b in zip(scene(sim), still, strict=True)) and sim.event is None


@pytest.mark.parametrize("moving", FakeSim.motions)
def test_the_toy_stays_solvable_when_its_block_moves(moving):
    sim = FakeSim(moving=moving)
    for seed in range(10):
        sim.reset("reach-green", seed)
        expert, steps = sim.expert("reach-green"), 0
        while not sim.step(expert()):
            steps += 1
            assert steps < sim.horizon


def test_metaworlds_furniture_moves_with_its_target_and_comes_back():
    pytest.importorskip("metaworld")
    assert set(MINI_TASKS) == set(FURNITURE) == set(MetaWorld.events)
    sim, task = MetaWorld(moving="jump"), "coffee-button-v3"
    sim.reset(task, 1)
    first, event = sim._raw.copy(), sim.event
    assert event is not None
    expert, button = sim.expert(task), []
    while not sim.step(expert()):
        button.append(sim._raw[4:7].copy())
        assert len(button) < sim.horizon, "the expert does not find it again"
    ways = [np.linalg.norm(a - first[4:7]) for a in button]
    assert max(ways[: event - 1]) < 1e-3 and 0.05 < ways[event - 1] < 0.25
    sim.reset(task, 1)
    assert np.array_equal(sim._raw, first), "the furniture of the last episode stayed where it was"
    with pytest.raises(ValueError, match=r"nothing can move in 'reach-v3'; tasks that can be moved: drawer-open-v3"):
        sim.reset("reach-v3", 0)
    sim.close()


def test_metaworlds_handle_is_moved_before_anybody_presses_it():
    pytest.importorskip("metaworld")
    sim, task = MetaWorld(), "handle-press-v3"
    for seed in (20, 63):  # later than after 5 steps these were
        sim.moving = "drift"
        sim.reset(task, seed)
        event, last_A = sim.event, None
        assert event is not None and event < 6
        act = sim.expert(task)
        for step in range(40):
            last_A = act() if step < event else sim.hold(last_A)
            assert not sim.step(last_A), "solved by an arm that does not answer"
    sim.close()


def test_a_sim_that_cannot_move_or_stand_still_says_so():
    with pytest.raises(ValueError, match="nothing can move by itself in it"):
        type("Rigid", (FakeSim,), {"motions": {}}).check_moving("jump", ())
    with pytest.raises(ValueError, match="does not say how its robot stands still"):
        Sim.hold(FakeSim(), None)
    closed = MetaWorld().hold(np.array([0.3, 0.2, 0.1, 0.7]))
    assert closed == pytest.approx([0, 0, 0, 0.7]) and MetaWorld().hold(None)[3] == -1


# -- reaction ----------------------------------------------------------------------------------------------------------


class Probe:
    """A policy that answers with what `answer` makes of the sim; chunks of 8."""

    routed = False

    def __init__(self, answer):
        self.answer, self.spec = answer, SimpleNamespace(replan=3)

    def reset(self, seed):
        pass

    def infer(self, observation):
        return np.tile(self.answer(), (8, 1)).astype(np.float32)


def reacted(answer, delay=0, execution="async", seed=0, horizon=20) -> dict:
    player = Player(Setup({}, "fake", horizon, {"moving": "jump"}, execution=execution, delays={"probe": delay}))
    player.policies["probe"] = Probe(lambda: answer(player.sim))
    return player("probe", "reach-red", seed)


def looks(sim) -> list[float]:
    """The way to the block, slowly, so that no episode ends early."""
    return [*(0.5 * (sim._blocks[sim.task] - sim._hand_S[:3])), 0.0]


def looked_at(event: int, asked: list[int]) -> int:
    return next(step for step in asked if step >= event)


@pytest.mark.parametrize("seed", range(4))
def test_the_reaction_is_when_the_first_look_at_the_change_is_executed(seed):
    record = reacted(looks, seed=seed)
    event = record["event"]
    assert event is not None and record["reaction"] == looked_at(event, [0, 3, 6]) - event
    late = reacted(looks, 2, seed=seed)  # asked at 0, then after three executed actions: 5, 8, 11; there 2 steps later
    assert late["reaction"] == looked_at(event, [0, 5, 8]) + 2 - event
    stood = reacted(looks, 2, "sync", seed=seed)  # asked at 0, 5, 10
    assert stood["reaction"] == looked_at(event, [0, 5, 10]) + 2 - event and stood["held"] > late["held"] == 2


def test_the_blind_and_the_nearly_blind_are_missed_and_an_ended_episode_is_none():
    blind = reacted(lambda sim: [0.01, 0.0, 0.0, 0.0])
    assert blind["event"] is not None and blind["reaction"] is None
    dull = reacted(lambda sim: [0.9 * REACTS * float(np.sign(looks(sim)[0])) / 2, 0, 0, 0])
    assert dull["reaction"] is None, "less than the threshold is no reaction"
    assert reacted(looks, horizon=1)["event"] is None, "nothing had moved when it ended"


def test_a_policy_that_is_not_deterministic_cannot_be_judged():
    dice = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^probe on reach-red, seed 0: played again it went differently before"):
        reacted(lambda sim: [dice.uniform(), 0, 0, 0])


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(folders, monkeypatch):
    """Evaluates in this process."""
    module = importlib.import_module("lithe.evaluate")

    def played(opener, setup, jobs, processes, timeout):
        play = opener(setup) if jobs else None
        yield from ((job, play(*job)) for job in jobs)

    monkeypatch.setattr(module.crew, "played", played)
    threads = torch.get_num_threads()
    yield lambda **settings: evaluate(folders, "fake", ["reach-red"], **{"episodes": 1, "horizon": 8, **settings})
    torch.set_num_threads(threads)


def test_a_sweep_has_a_row_for_every_policy_and_latency_and_can_be_continued(here, tmp_path):
    given = {"execution": "async", "sim_options": {"moving": "jump"}, "out": tmp_path}
    first = here(latency="0,200", **given)
    names = ["big@0ms", "big@200ms", "small@0ms", "small@200ms"]
    assert [row["policy"] for row in first["rows"]] == names
    assert [row["realtime"]["delay"] for row in first["rows"]] == [0, 2, 0, 2]
    assert first["rows"][3]["realtime"] == {"policy": "small", "latency_ms": 200.0, "delay": 2}
    assert first["rows"][0]["held"] == 0 < first["rows"][1]["held"] < 1
    assert all(row["paired"]["against"] == "big@0ms" for row in first["rows"][1:])
    settings = first["settings"]
    assert (settings["execution"], settings["fps"], settings["against"]) == ("async", 10.0, "big@0ms")
    assert len({entry["fingerprint"] for entry in settings["policies"].values()}) == 4
    assert "differs by more than 0.1" in settings["reaction"]
    before = (tmp_path / "ledger.jsonl").read_bytes()
    more = here(latency="0,100,200", **given)
    after = (tmp_path / "ledger.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == before.count(b"\n") + 2, "two policies, one episode"
    assert [row for row in more["rows"] if "@100" not in row["policy"]] == first["rows"]
    with pytest.raises(ValueError, match="begun with execution='async', this evaluation has 'sync'"):
        here(latency="0", **{**given, "execution": "sync"})
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(table(more))
    text = console.export_text()
    assert "big@100ms" in text and "late by, steps" in text


def test_the_ledger_of_a_plain_evaluation_is_what_it_was(here, tmp_path):
    here(out=tmp_path)
    terms = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[0])["terms"]
    wanted = {"sim": "fake", "sim_options": {}, "horizon": 8, "steps": None, "replan": None, "runtime": "eager"}
    assert terms == {**wanted, "instructions": {}, "versions": result.versions()}


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"sim_options": {"moving": "jump"}}, "motion"),
        ({"sim_options": {"moving": "drift"}}, "reaction"),
        ({"execution": "async", "latency": 0}, "realtime_rules"),
    ],
    ids=str,
)
def test_a_ledger_does_not_go_on_across_another_meaning_of_its_numbers(here, tmp_path, monkeypatch, given, change):
    assert change in here(out=tmp_path, **given)["settings"]
    if change == "motion":
        monkeypatch.setattr(FakeSim, "events", dict.fromkeys(FakeSim.tasks(), (2, 5)))
    elif change == "reaction":
        monkeypatch.setattr(importlib.import_module("lithe.evaluate.reaction"), "MEANING", "something else")
    else:
        monkeypatch.setattr(realtime, "RULES", realtime.RULES + 1)
    with pytest.raises(ValueError, match=f"begun with {change}=.*choose another folder"):
        here(out=tmp_path, **given, episodes=2)


def test_todays_result_says_nothing_of_real_time(here):
    document = here()
    late = {"execution", "fps", "latency_from", "reaction", "motion", "realtime_rules"}
    assert not late & document["settings"].keys()
    assert all(not {"realtime", "held", "reaction"} & row.keys() for row in document["rows"])
    assert document["settings"]["intervals"].keys() == {"level", "success", "paired", "steps_to_success", "jerk"}


def test_reactions_are_counted_with_their_interval_and_the_missed_apart():
    def record(seed, event, reaction):
        told = {"policy": "x", "task": "t", "seed": seed, "success": True, "steps": 20, "jerk": 0.1, "start": "s"}
        return ("x", "t", seed), {**told, "event": event, "reaction": reaction}

    seen = [3, 4, 4, 5, 6, 7, None]
    records = dict(record(seed, 2, reaction) for seed, reaction in enumerate(seen))
    records |= dict([record(7, None, None)])
    [row] = rows(records, ["t"], range(8), ["x"], "x")
    assert row["reaction"]["steps"] == {"median": 5.0, "n": 7, "low": 3.0}, "the missed one is the last of seven"
    assert row["reaction"]["histogram"] == {"3": 1, "4": 2, "5": 1, "6": 1, "7": 1}
    assert (row["reaction"]["moved"], row["reaction"]["missed"]) == (7, 1)
