"""Sims: one initial state per (task, seed) in every process, honest observations, experts that succeed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lithe
from lithe import registry
from lithe.sims.base import Sim
from lithe.sims.metaworld import INSTRUCTIONS, MINI_TASKS, MetaWorld

SIMS = registry.names("sims")
AVAILABLE = [name for name in SIMS if name in ("fake", "metaworld")]  # others need assets that are not in a wheel


def digest(sim: Sim, task: str, seed: int) -> str:
    """A hash over the first observation and the observations after ten fixed actions."""
    rng = np.random.default_rng(0)
    sim.reset(task, seed)
    found = hashlib.sha256()
    for _ in range(10):
        for key, value in sorted(sim.observe().items()):
            found.update(key.encode() + (value.encode() if isinstance(value, str) else value.tobytes()))
        sim.step(rng.uniform(-1, 1, sim.action_dim))
    return found.hexdigest()


@pytest.fixture(scope="module", params=AVAILABLE)
def sim(request):
    made = registry.get("sims", request.param)()
    yield made
    made.close()


@pytest.fixture(scope="module")
def metaworld():
    made = MetaWorld()
    yield made
    made.close()


def test_observation_has_the_declared_keys_shapes_and_types(sim):
    task = sim.tasks()[0]
    sim.reset(task, 1)
    seen = sim.observe()
    assert set(seen) == {*(f"observation.images.{c}" for c in sim.cameras), "observation.state", "task"}
    for camera in sim.cameras:
        image = seen[f"observation.images.{camera}"]
        assert image.shape == (sim.size, sim.size, 3) and image.dtype == np.uint8
        assert image.std() > 5, f"{camera} is an empty picture"
    assert seen["observation.state"].shape == (sim.state_dim,) and seen["observation.state"].dtype == np.float32
    assert seen["task"] == sim.instruction(task)


def test_a_used_sim_resets_exactly_like_a_new_one_in_another_process(sim):
    task = sim.default_tasks()[0]
    sim.reset(sim.default_tasks()[-1], 5)
    for _ in range(3):
        sim.step(np.ones(sim.action_dim))
    used = digest(sim, task, 7)
    code = f"from test_sims import *; print(digest(registry.get('sims', {sim.name!r})(), {task!r}, 7))"
    path = os.pathsep.join([str(Path(lithe.__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    fresh = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert fresh.stdout.split()[-1] == used
    assert digest(sim, task, 7) == used, "the second reset of the same object differs"
    assert digest(sim, task, 8) != used, "the seed is ignored"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_actions_are_refused(sim, bad):
    sim.reset(sim.tasks()[0], 0)
    action = np.zeros(sim.action_dim)
    action[1] = bad
    with pytest.raises(ValueError, match="non-finite action"):
        sim.step(action)
    with pytest.raises(ValueError, match="shape"):
        sim.step(np.zeros(sim.action_dim + 1))


def test_unknown_names_are_refused_with_a_suggestion(sim):
    task = sim.tasks()[0]
    with pytest.raises(ValueError, match=f"did you mean '{task}'"):
        sim.reset(task + "x", 0)
    sim.reset(task, 0)
    with pytest.raises(ValueError, match="no camera"):
        sim.render("nowhere", 64)


def test_acting_or_looking_before_reset_says_so():
    for name in AVAILABLE:
        fresh = registry.get("sims", name)()
        with pytest.raises(ValueError, match="reset"):
            fresh.step(np.zeros(fresh.action_dim))
        with pytest.raises(ValueError, match="reset"):
            fresh.render(fresh.cameras[0], 32)


def test_every_task_has_a_sentence_of_its_own_scene(sim):
    assert set(sim.default_tasks()) <= set(sim.tasks())
    assert all(len(sim.instruction(task).split()) >= 3 for task in sim.tasks())
    mine = [sim.instruction(task) for task in sim.default_tasks()]
    assert len(set(mine)) == len(mine), "two default tasks cannot be told apart by language"


def test_metaworld_sentences_are_the_ones_lerobot_uses():
    folder = importlib.util.find_spec("lerobot").submodule_search_locations[0]  # importing it takes 15 s
    config = json.loads((Path(folder) / "envs" / "metaworld_config.json").read_text())
    assert config["TASK_DESCRIPTIONS"] == INSTRUCTIONS


def test_fake_success_is_sticky_and_needs_the_right_block():
    sim = registry.get("sims", "fake")()
    for task in sim.tasks():
        sim.reset(task, 3)
        wrong = next(other for other in sim.tasks() if other != task)
        other, right = sim.expert(wrong), sim.expert(task)
        for _ in range(sim.horizon):
            sim.step(other())
        assert not sim.success, "touching the wrong block counted"
        while not sim.step(right()):
            pass
        for _ in range(20):
            assert sim.step(other()), "success was forgotten"


@pytest.mark.parametrize("task", MINI_TASKS)
def test_metaworld_expert_solves_every_default_task(metaworld, task):
    metaworld.reset(task, 100_003)
    expert = metaworld.expert(task)
    steps = 0
    while not metaworld.step(expert()):
        steps += 1
        assert steps < metaworld.horizon


def test_first_picture_shows_the_object_where_it_is(metaworld):
    """Meta-World leaves body positions stale after a reset; a motionless step would then move the whole window."""
    metaworld.reset("window-close-v3", 3)
    first = metaworld.render("corner2", 64).astype(int)
    metaworld.step(np.zeros(4))
    assert (np.abs(metaworld.render("corner2", 64) - first).max(axis=-1) > 30).sum() < 20


def test_hiding_the_arm_from_the_wrist_camera_changes_no_pixel(metaworld, monkeypatch):
    metaworld.reset("drawer-open-v3", 3)
    expert = metaworld.expert("drawer-open-v3")
    for _ in range(60):
        metaworld.step(expert())
    hidden = metaworld.render("gripperPOV", 64)
    masks = metaworld._renderer._hidden_G
    assert masks["gripperPOV"].sum() > 8
    monkeypatch.setitem(masks, "gripperPOV", np.zeros_like(masks["gripperPOV"]))
    assert np.array_equal(metaworld.render("gripperPOV", 64), hidden)


def test_faucet_open_and_close_start_alike(metaworld):
    """The pair that tests language: same start state for every seed, and the same scene up to the goal marker."""
    pictures = []
    for task in ("faucet-open-v3", "faucet-close-v3"):
        metaworld.reset(task, 0)
        env = metaworld._envs[task]
        env._freeze_rand_vec, env._last_rand_vec = True, np.array([0.02, 0.83, 0.0])
        metaworld.reset(task, 0)
        env._freeze_rand_vec = False
        pictures.append(metaworld.observe())
    one, two = pictures
    assert np.array_equal(one["observation.state"], two["observation.state"])
    differing = (one["observation.images.corner2"] != two["observation.images.corner2"]).any(axis=-1).sum()
    assert differing <= 3
    assert np.array_equal(one["observation.images.gripperPOV"], two["observation.images.gripperPOV"])


def test_pictures_of_two_sizes_agree(metaworld):
    """One OpenGL context serves every size; a second one alive is what returned stale pictures."""
    metaworld.reset("drawer-close-v3", 3)
    small = metaworld.render("corner2", 60)
    large = metaworld.render("corner2", 480)
    assert large.shape == (480, 480, 3)
    assert np.abs(large[4::8, 4::8].astype(int) - small).mean() < 8
    assert np.array_equal(metaworld.render("corner2", 60), small)


@pytest.mark.parametrize("size", [8, 1000])
def test_sizes_the_renderer_cannot_do_are_refused(size):
    with pytest.raises(ValueError, match="size"):
        MetaWorld(size=size)


def test_unusable_opengl_backend_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    fresh = MetaWorld()
    fresh.reset("drawer-open-v3", 0)
    with pytest.raises(ValueError, match="MUJOCO_GL='vulkan'"):
        fresh.observe()
