"""Collection: what is recorded and kept, that LeRobot opens it, and that a killed run continues or starts cleanly."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lithe
from lithe import api, checkpoint
from lithe._disk import sha256
from lithe.data.lerobot import LeRobotData
from lithe.families.pi import Pi
from lithe.sims.fake import FakeSim

module = importlib.import_module("lithe.collect")  # `lithe.collect` is the function once somebody has asked for it
collect, play, episode_seed = module.collect, module.play, module.episode_seed
TASKS = ("reach-red", "reach-blue")


@pytest.fixture(autouse=True)
def no_kept_sims():
    module._sims.clear(), module._leads.clear()
    yield
    module._sims.clear(), module._leads.clear()


def small(out, **changed):
    return collect(**{"sim": "fake", "out": out, "tasks": TASKS, "episodes": 2, "processes": 1, "size": 16, **changed})


def everything(root):
    data = LeRobotData(root=root)
    return data.samples(np.arange(len(data)), 2)


def same(one, two):
    pictures = all(np.array_equal(one["images"][c], two["images"][c]) for c in one["images"])
    numbers = all(np.array_equal(one[key], two[key]) for key in ("state", "action", "padded"))
    return pictures and numbers and one["task"] == two["task"]


def test_the_clean_action_is_recorded_and_the_noisy_one_executed():
    sim = FakeSim(size=16)
    seed = 100_004
    episode = play(sim, "reach-green", seed, noise=1.0, stay=3)
    sim.reset("reach-green", seed)
    expert = sim.expert("reach-green")
    deviated = 0
    for t, state in enumerate(episode["observation.state"]):
        sim._hand_S = state.astype(float)
        assert np.allclose(episode["action"][t], expert(), atol=1e-5)
        if t + 1 < len(episode["action"]):
            sim.step(episode["action"][t])
            deviated += not np.allclose(sim._hand_S, episode["observation.state"][t + 1], atol=1e-3)
    assert deviated > 2, "the executed actions had no noise"
    assert episode["action"].dtype == np.float32 and np.abs(episode["action"]).max() <= 1


class Drift:
    """A policy that always goes the same way."""

    def __init__(self, action_A):
        self.spec, self.action_A, self.asked, self.seeds = SimpleNamespace(replan=2), np.asarray(action_A), 0, []

    def reset(self, seed):
        self.seeds.append(seed)

    def infer(self, observation):
        assert observation["task"] == "Touch the green block"
        self.asked += 1
        return np.tile(self.action_A, (4, 1))


def test_after_a_policy_the_expert_takes_over_where_it_is(monkeypatch):
    """The first recorded frame is on the policy's way, nothing of its own is recorded, and the labels are clean."""
    monkeypatch.setattr(module, "LEAD", 6)
    sim, away, moved = FakeSim(size=16), [0.0, 0.0, 1.0, 0.0], []
    for seed in range(100_000, 100_008):
        lead = Drift(away)
        episode = play(sim, "reach-green", seed, 0.0, 3, lead)
        sim.reset("reach-green", seed)
        begins = [sim.observe()["observation.state"]]
        for _ in range(6):
            sim.step(np.array(away))
            begins.append(sim.observe()["observation.state"])
        [steps] = [i for i, state in enumerate(begins) if np.allclose(state, episode["observation.state"][0])]
        assert lead.seeds == [seed, seed] and lead.asked == 3 + (steps + 1) // 2, "once to see, once to hand over"
        moved.append(steps)
        expert = sim.expert("reach-green")
        for state, action in zip(episode["observation.state"], episode["action"], strict=True):
            sim._hand_S = state.astype(float)
            assert np.allclose(action, expert(), atol=1e-5)
    assert len(set(moved)) > 2


def test_a_policy_that_succeeds_hands_over_before_it_does(monkeypatch):
    class Solved(FakeSim):
        def step(self, action_A):
            super().step(action_A)
            self._success = self._success or self._hand_S[2] > 0.9
            return self._success

    monkeypatch.setattr(module, "LEAD", 40)
    sim, played = Solved(size=16), []
    for seed in range(100_000, 100_060):
        played.append(play(sim, "reach-green", seed, 0.0, 2, Drift([0.0, 0.0, 1.0, 0.0])))
    begins = [episode["observation.state"][0][2] for episode in played if episode is not None]
    assert max(begins) <= 0.9 and len({round(float(height), 2) for height in begins}) > 3
    assert 5 <= len(begins) <= 30, "about a quarter of the episodes that a policy solves is used"


def test_a_collection_with_a_policy_plays_it_and_keeps_to_its_weights(tmp_path):
    unit = {"q01": [-1.0] * 4, "q99": [1.0] * 4}
    for seed in range(2):
        model = Pi.fresh("pico", seed=seed, cameras=FakeSim.cameras)
        model.fit_to(
            {"observation.state": unit, "action": unit}, [FakeSim.instruction(t) for t in TASKS], FakeSim.cameras
        )
        checkpoint.save(model, tmp_path / f"policy-{seed}")
    small(tmp_path / "led", policy=tmp_path / "policy-0")
    small(tmp_path / "plain")
    assert not same(everything(tmp_path / "led"), everything(tmp_path / "plain"))
    settings = module._stage(tmp_path / "half", module.Settings("fake", TASKS, 2, 0.3, 0, 16, 8, "one@1"))
    assert settings.is_dir()
    with pytest.raises(ValueError, match="an unfinished collection with other settings"):
        module._stage(tmp_path / "half", module.Settings("fake", TASKS, 2, 0.3, 0, 16, 8, "one@2"))


def test_a_lerobot_policy_acts_first_as_the_same_policy_saved_by_lithe(foreign, tmp_path):
    vision = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
    stats = {"action": {"q01": [-1.0] * 4, "q99": [1.0] * 4}}
    theirs = foreign.lerobot(Pi.fresh("pico", vision=vision, cameras=FakeSim.cameras), tmp_path / "theirs", stats)
    ours = checkpoint.save(api.load(theirs), tmp_path / "ours")
    for policy in (theirs, ours):
        small(tmp_path / f"led-by-{policy.name}", policy=policy, tasks=TASKS[:1])
    assert same(everything(tmp_path / "led-by-theirs"), everything(tmp_path / "led-by-ours"))
    assert api.digest(theirs) == sha256(theirs / checkpoint.WEIGHTS)
    assert api.digest(ours) == checkpoint.read_card(ours)["sha256"] == sha256(ours / checkpoint.WEIGHTS)


def test_without_noise_the_recorded_actions_replay_to_success():
    sim = FakeSim(size=16)
    episode = play(sim, "reach-blue", 100_001, noise=0.0, stay=4)
    sim.reset("reach-blue", 100_001)
    done = [sim.step(action) for action in episode["action"]]
    assert done.count(True) == 5, "success, then exactly `stay` steps"


def test_an_expert_that_never_arrives_is_no_demonstration():
    class Lazy(FakeSim):
        def expert(self, task):
            return lambda: np.zeros(4, dtype=np.float32)

    assert play(Lazy(size=16), "reach-red", 100_000, noise=0.0, stay=8) is None


def test_seeds_keep_away_from_evaluation_and_never_repeat():
    seeds = [episode_seed(s, i, a) for s in range(2) for i in range(50) for a in range(module.ATTEMPTS)]
    assert min(seeds) >= module.FIRST_SEED > 9_999 and len(set(seeds)) == len(seeds)


def test_lerobot_opens_what_was_collected_and_the_frames_are_exact(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    summary = small(tmp_path / "set")
    theirs = LeRobotDataset("lithe/fake", root=tmp_path / "set", video_backend="pyav")
    assert summary["frames"] == len(theirs) and theirs.meta.total_episodes == 4 and theirs.fps == 10
    assert {task: row["episodes"] for task, row in summary["tasks"].items()} == {"reach-red": 2, "reach-blue": 2}
    assert os.listdir(tmp_path) == ["set"], "staging was left behind"
    row = 0
    for task in TASKS:
        for index in range(2):
            episode = play(FakeSim(size=16), task, episode_seed(0, index, 0), noise=0.3, stay=8)
            for t in range(len(episode["action"])):
                item = theirs[row]
                for camera in FakeSim.cameras:
                    picture = (item[f"observation.images.{camera}"].numpy() * 255).round().astype(np.uint8)
                    assert np.array_equal(picture.transpose(1, 2, 0), episode[f"observation.images.{camera}"][t])
                assert np.array_equal(item["action"], episode["action"][t])
                assert np.array_equal(item["observation.state"], episode["observation.state"][t])
                assert item["task"] == FakeSim.instruction(task)
                row += 1


def test_statistics_are_those_of_all_frames(tmp_path):
    small(tmp_path / "set")
    data = LeRobotData(root=tmp_path / "set")
    actions = data.samples(np.arange(len(data)), 1)["action"][:, 0]
    for name, expected in (("mean", actions.mean(0)), ("std", actions.std(0)), ("q99", np.quantile(actions, 0.99, 0))):
        assert np.allclose(data.stats["action"][name], expected, atol=1e-5), name


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path):
    small(tmp_path / "one", processes=1)
    small(tmp_path / "two", processes=2)
    assert same(everything(tmp_path / "one"), everything(tmp_path / "two"))
    small(tmp_path / "other", seed=1)
    assert not same(everything(tmp_path / "one"), everything(tmp_path / "other"))


def test_a_failed_attempt_is_repeated_with_another_seed_and_counted(tmp_path, monkeypatch):
    played = []

    def clumsy(sim, task, seed, noise, stay, lead):
        played.append(seed)
        return None if len(played) == 2 else play(sim, task, seed, noise, stay, lead)

    monkeypatch.setattr(module, "play", clumsy)
    summary = small(tmp_path / "set", tasks=("reach-red",), episodes=2)
    assert summary["tasks"]["reach-red"] == {"episodes": 2, "frames": summary["frames"], "attempts": 3}
    assert len(set(played)) == 3


def test_a_task_its_expert_cannot_do_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "play", lambda *_: None)
    with pytest.raises(ValueError, match="expert of reach-red failed 10 times in a row; lower noise"):
        small(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_killed_collection_continues_where_it_was(tmp_path, monkeypatch):
    """SIGKILL from outside while episodes are being written; nothing of the dataset may be visible."""
    out, staged = tmp_path / "set", tmp_path / ".set.collecting" / "episodes"
    slow = (
        "import importlib, time; c = importlib.import_module('lithe.collect'); play = c.play\n"
        "c.play = lambda *a: (time.sleep(0.2), play(*a))[1]\n"
        "c._create = lambda *a: type('Sink', (), dict(add_frame=lambda s, f: 0, save_episode=lambda s: 0))()\n"
        f"c.collect(sim='fake', out={str(out)!r}, tasks={TASKS!r}, episodes=8, processes=1, size=16)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(lithe.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", slow], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240

    def whole() -> list[Path]:
        return [path for path in staged.glob("*.npz") if ".part" not in path.name]

    while len(whole()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = whole()
    assert 3 <= len(kept) < 16 and not out.exists()

    count = 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return play(*arguments)

    monkeypatch.setattr(module, "play", counted)
    with pytest.raises(ValueError, match="unfinished collection with other settings"):
        small(out, episodes=9)
    summary = small(out, episodes=8)
    assert count == summary["tasks"]["reach-red"]["attempts"] + summary["tasks"]["reach-blue"]["attempts"] - len(kept)
    assert os.listdir(tmp_path) == ["set"]
    small(tmp_path / "whole", episodes=8)
    assert same(everything(out), everything(tmp_path / "whole"))


def test_half_a_dataset_in_the_staging_folder_is_written_anew(tmp_path):
    half = tmp_path / ".set.collecting" / "dataset" / "meta"
    half.mkdir(parents=True)
    (half / "info.json").write_text("{")
    assert small(tmp_path / "set")["frames"] == len(LeRobotData(root=tmp_path / "set"))


def test_an_existing_target_is_never_touched(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="exists and collection never overwrites"):
        small(tmp_path / "set")
    assert not list((tmp_path / "set").iterdir())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tasks": ("reach-rad",)}, "did you mean 'reach-red'"),
        ({"tasks": ()}, "nothing to collect"),
        ({"tasks": ("reach-red", "reach-red")}, "named twice"),
        ({"episodes": 0}, "nothing to collect"),
        ({"noise": -1.0}, "noise is a standard deviation"),
        ({"noise": float("nan")}, "noise is a standard deviation"),
        ({"stay": -1}, "must not be negative"),
        ({"policy": "nowhere"}, "not a lithe policy folder"),
        ({"sim": "metawold"}, "did you mean 'metaworld'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(tmp_path / "set", **changed)
    assert not list(tmp_path.iterdir())
