"""LeRobot's environments as sims of lithe: one initial state per (task, seed), LeRobot's rules, one sentence if absent.

Meta-World is the real one. PushT and LIBERO are played by stand-ins with the interface that LeRobot expects of them.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="these are LeRobot's environments: install lithe[lerobot]")

import gymnasium

from lithe import registry
from lithe.sims._lerobot import LeRobotSim

SIMS = ("lerobot_aloha", "lerobot_libero", "lerobot_metaworld", "lerobot_pusht")


def sim_of(name: str) -> Any:
    return registry.get("sims", name)()


def test_lerobots_environments_are_there_by_name():
    assert set(SIMS) <= set(registry.names("sims"))
    for name in SIMS:
        cls: Any = registry.get("sims", name)
        assert issubclass(cls, LeRobotSim) and cls.name == name
        assert set(cls.default_tasks()) <= set(cls.tasks())
        with pytest.raises(ValueError, match=f"{name} has no task 'nothing'"):
            cls().reset("nothing", 0)
        with pytest.raises(ValueError, match="LeRobot decides how large"):
            cls(size=64)


@pytest.mark.parametrize("name", SIMS)
def test_it_is_declared_as_lerobot_configures_it(name):
    """Rate, widths, step limit where it has one, and the features a policy gets."""
    from lerobot.envs import env_to_policy_features, make_env_config

    cls: Any = registry.get("sims", name)
    config = make_env_config(cls.kind, **cls.settings(cls.tasks()[0]))
    features = env_to_policy_features(config)
    keys = {c if c.startswith("observation.") else f"observation.images.{c}" for c in cls.cameras}
    assert keys == {key for key, feature in features.items() if feature.type.value == "VISUAL"}
    assert (cls.fps, (cls.action_dim,)) == (config.fps, features["action"].shape)
    if name != "lerobot_libero":  # whose state is put together by a processor
        assert features["observation.state"].shape == (cls.state_dim,)
    if name not in ("lerobot_libero", "lerobot_metaworld"):  # by suite; by Meta-World itself, whatever LeRobot says
        assert cls.horizon == config.episode_length
    if name != "lerobot_pusht":  # LeRobot's 384 never reaches gym-pusht
        assert all(features[key].shape[1] == cls.rows for key in keys)


@pytest.mark.parametrize("name", ["lerobot_aloha", "lerobot_libero", "lerobot_pusht"])
def test_what_is_not_installed_is_named(name, monkeypatch):
    kind = registry.get("sims", name).kind  # type: ignore[attr-defined]
    for module in [
        m for m in sys.modules if m.split(".")[0] in ("libero", f"gym_{kind}") or m == "lerobot.envs.libero"
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "libero" if kind == "libero" else f"gym_{kind}", None)
    sim = sim_of(name)
    with pytest.raises(ValueError, match=rf"LeRobot's {kind} is not ready to use.*pip install 'lerobot\[{kind}\]'"):
        sim.reset(sim.tasks()[0], 0)


# -- Meta-World --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metaworld():
    pytest.importorskip("metaworld")
    sim = sim_of("lerobot_metaworld")
    yield sim
    sim.close()


def first(sim: Any, task: str, seed: int) -> bytes:
    sim.reset(task, seed)
    seen = sim.observe()
    return seen["observation.images.observation.image"].tobytes() + seen["observation.state"].tobytes()


def test_metaworld_begins_where_lerobots_does_whatever_was_played_before(metaworld):
    from lerobot.envs import make_env, make_env_config, preprocess_observation

    task = "drawer-open-v3"
    started = [first(metaworld, task, seed) for seed in (3, 4)]
    assert started[0] != started[1]
    for _ in range(3):
        metaworld.step(np.array([0.3, 1.0, -0.5, 0.2]))
    after = metaworld.observe()["observation.state"].tobytes()
    assert first(metaworld, task, 3) == started[0]
    metaworld.close()
    env = make_env(make_env_config("metaworld", task=task))[task][0]
    theirs = preprocess_observation(env.reset(seed=[3])[0])
    picture = np.rint(theirs["observation.image"][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert np.ascontiguousarray(picture).tobytes() + theirs["observation.state"][0].numpy().tobytes() == started[0]
    env.reset(seed=[4])
    for _ in range(3):
        seen = env.step(np.array([[0.3, 1.0, -0.5, 0.2]], np.float32))[0]
    assert preprocess_observation(seen)["observation.state"][0].numpy().tobytes() == after
    env.close()
    assert first(metaworld, task, 3) == started[0]


def test_metaworld_shows_what_it_declares(metaworld):
    metaworld.reset("drawer-close-v3", 0)
    seen = metaworld.observe()
    assert set(seen) == {"observation.images.observation.image", "observation.state", "task"}
    picture = seen["observation.images.observation.image"]
    assert picture.shape == (metaworld.size, metaworld.size, 3) and picture.dtype == np.uint8 and picture.std() > 5
    assert picture.flags.c_contiguous
    assert seen["observation.state"].shape == (4,) and seen["observation.state"].dtype == np.float32
    assert seen["task"] == metaworld.noise_key == metaworld.instruction("drawer-close-v3")
    assert metaworld.render("observation.image", 60).shape == (60, 60, 3)


def test_success_ends_a_metaworld_episode_and_then_nothing_moves(metaworld):
    metaworld.reset("drawer-close-v3", 0)
    push = np.array([0.0, 1.0, -0.3, 0.0])
    assert any(metaworld.step(push) for _ in range(30)) and metaworld.over and metaworld.success
    seen = metaworld.observe()["observation.state"]
    assert metaworld.step(push) and np.array_equal(metaworld.observe()["observation.state"], seen)
    with pytest.raises(ValueError, match="non-finite action"):
        metaworld.step(np.full(4, np.nan))


# -- stand-ins ---------------------------------------------------------------------------------------------------------


class StandIn(gymnasium.Env):
    """A disc that goes where it is sent: PushT's interface as LeRobot sees it. Solved at the lower right corner."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, **settings: Any):
        box = gymnasium.spaces.Box
        self.settings = settings
        self.render_mode = settings["render_mode"]
        self.action_space = box(0, 512, (2,), np.float32)
        pixels = box(0, 255, (96, 96, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"pixels": pixels, "agent_pos": box(0, 512, (2,), np.float64)})

    def _seen(self):
        pixels = np.zeros((96, 96, 3), np.uint8)
        pixels[tuple((self.place[::-1] / 5.4).astype(int))] = 255
        return {"pixels": pixels, "agent_pos": self.place.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(50, 450, 2)
        return self._seen(), {"is_success": False}

    def step(self, action):
        assert action.dtype == np.float32
        self.place = np.clip(action, 0, 512).astype(np.float64)
        won = bool((self.place > 500).all())
        return self._seen(), float(won), won, False, {"is_success": won}


@pytest.fixture
def pusht(monkeypatch):
    module = ModuleType("gym_pusht")
    module.__spec__ = importlib.machinery.ModuleSpec("gym_pusht", None)
    monkeypatch.setitem(sys.modules, "gym_pusht", module)
    gymnasium.register("gym_pusht/PushT-v0", entry_point=StandIn)
    sim = sim_of("lerobot_pusht")
    yield sim
    sim.close()
    del gymnasium.registry["gym_pusht/PushT-v0"]


def test_pusht_is_driven_in_its_own_units_and_ends_by_lerobots_rules(pusht):
    pusht.reset("PushT-v0", 7)
    began = pusht.observe()
    assert began["task"] == pusht.instruction("PushT-v0") == "" and pusht.fps == 10
    assert 50 <= began["observation.state"].min() <= began["observation.state"].max() <= 450
    assert not pusht.step(np.array([300.0, 40.0]))
    assert pusht.observe()["observation.state"].tolist() == [300.0, 40.0], "an action was clipped to -1..1"
    assert pusht.step(np.array([511.0, 511.0])) and pusht.over
    pusht.reset("PushT-v0", 7)
    assert not pusht.over and np.array_equal(pusht.observe()["observation.state"], began["observation.state"])
    for step in range(300):
        assert not pusht.over, step
        pusht.step(np.array([10.0, 10.0]))
    assert pusht.over and not pusht.success


def test_a_policy_plays_pusht_with_lerobots_step_limit(pusht):
    """Through lithe's own episode loop, whose clip must leave these actions alone."""
    from types import SimpleNamespace

    from lithe.evaluate.rollout import Job, Player, Setup

    asked: list[int] = []
    answer = np.tile(np.float32([400.0, 20.0]), (5, 1))
    spec = SimpleNamespace(replan=5)
    policy = SimpleNamespace(infer=lambda seen: answer, reset=asked.append, spec=spec, routed=False)
    player = object.__new__(Player)
    player.setup, player.policies, player.sim = Setup({}, "lerobot_pusht", 1000), {"one": policy}, pusht
    record = player.play(Job("one", "PushT-v0", 3))
    assert (record["success"], record["steps"], record["inferences"]) == (False, 300, 60)
    assert pusht.observe()["observation.state"].tolist() == [400.0, 20.0]
    from lithe.evaluate.rollout import noise_seed

    assert asked == [noise_seed("", 3)]


def test_a_seed_names_the_initial_state_of_libero():
    """LIBERO counts its resets; LeRobot starts them at `init_state_id`."""
    from types import SimpleNamespace

    sim = sim_of("lerobot_libero")
    env = SimpleNamespace(init_state_id=5)
    sim.place(env, 1003)
    assert env.init_state_id == 1003
    assert sim.settings("libero_10_3") == {"task": "libero_10", "task_ids": [3]}
    assert len(sim.tasks()) == 130 and len(sim.default_tasks()) == 10
