"""The board of the shipped teacher: every recipe is fair, cuts that teacher, and trains on data like the teacher's."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lithe
from lithe import recipe, surgery
from lithe.data.fake import FakeData
from lithe.distill import Trainer
from lithe.reproduce import comparable

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "recipes" / "pi05-mini" / "metaworld"
ABLATIONS = BOARD / "ablations"
RECIPES = sorted([*BOARD.glob("[!_]*.yaml"), *ABLATIONS.glob("*.yaml")])
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
SHORT: dict[str, Any] = {"steps": 2, "batch": 2, "draws": 1, "warmup": 0, "precision": "fp32", "augment": False}


load = cache(recipe.load)


@cache
def teacher() -> Any:
    return lithe.load(ROOT / "zoo" / "pi05-mini-metaworld")


@cache
def data() -> FakeData:
    spec = teacher().spec
    sizes = {"state_dim": spec.state_dim, "action_dim": spec.action_dim, "size": 64}
    made = FakeData(cameras=spec.cameras, episodes=1, length=24, **sizes)
    made.tasks = ("open the drawer", "close the window")
    return made


@cache
def calibrated(path: Path) -> Any:
    """The recipe's method as its run would have it, on fewer frames where it asks for any."""
    method = load(path).build_method()
    fewer = {"samples": 16} if "samples" in {f.name for f in dataclasses.fields(method)} else {}
    return dataclasses.replace(method, **fewer).calibrated(teacher(), data())


def test_the_board_and_its_ablations_can_each_be_compared():
    for folder in (BOARD, ABLATIONS):
        found = {path.stem: load(path) for path in RECIPES if path.parent == folder}
        assert len(found) >= 10
        comparable(found)
    assert comparable({path.stem: load(path) for path in RECIPES})
    assert len({path.stem for path in RECIPES}) == len(RECIPES), "two rows of a table would have one name"
    assert all(load(path).name == f"pi05-mini-metaworld-{path.stem.replace('_', '-')}" for path in RECIPES)


def test_every_method_has_a_place_on_the_board():
    shown = {load(path).method["name"] for path in RECIPES if path.parent == BOARD}
    assert shown == set(lithe.registry.names("methods"))


def test_an_ablation_differs_from_its_method_in_what_it_says():
    """Every knob that it turns away from the method's own recipe; widths that follow from them are named in words."""
    found = {}
    for path in ABLATIONS.glob("*.yaml"):
        method = path.stem.split("-")[0]
        (origin,) = (p for p in RECIPES if p.parent == BOARD and p.stem in (method, f"{method}-4"))
        mine, theirs = (vars(load(p).build_method()) for p in (path, origin))
        found[path.stem] = {knob for knob, value in mine.items() if value != theirs[knob]}
    unread = {"inner", "capsule", "heads_lr", "teacher_draws"}  # by heads and a teacher that are not there
    assert found == {
        "shallow_pi-no_task": {"task"},
        "shallow_pi-no_velocity": {"velocity"},
        "shallow_pi-no_attention": {"attention"},
        "actdistill-mlp_pool": {"graph"},
        "actdistill-all_streams": {"counted"},
        "first_k-5": {"keep"},  # the depth that actdistill-4 runs on average
        "actdistill-final": {"features"} | unread - {"teacher_draws"},
        "actdistill-no_distillation": {"features"} | unread,
        "dysl-no_pre_skip": {"pre_skip"},
        "dysl-no_post_skip": {"post_skip"},
        "dysl-no_split": {"split", "rank", "controller"},
        "dysl-one_stage": {"one_stage"},
        "dysl-no_jumps": {"second"},
        "dysl-always": {"jump", "skip"},  # which only controllers read
        "dysl-always-unguided": {"jump", "skip", "pre_skip", "post_skip"},
    }


@every_recipe
def test_a_recipe_cuts_the_shipped_teacher(path):
    method = calibrated(path)
    found = lithe.explain(teacher(), method, freeze=load(path).train.freeze)
    before, after = found.rows
    depth, routed = after["depth"]["trunk"], any(op["op"] == "InstallRouter" for op in after["ops"])
    fixed = 5 if path.stem == "first_k-5" else 4
    assert (depth, routed) in ((fixed, False), (12, True)), "a row of the board runs 4 of 12 layers, or has a router"
    assert bool(after["stages"]) == bool(method.stages())


@pytest.mark.parametrize("path", [p for p in RECIPES if load(p).build_method().stages()], ids=lambda p: p.stem)
def test_a_recipe_trains(path):
    found, method = load(path), calibrated(path)
    student = surgery.cut(teacher(), method.cut(teacher()))
    train = dataclasses.replace(found.train, **SHORT)
    trainer = Trainer(student, teacher(), method, data(), train)
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
    trainer.fit(None, [])
    moved = {name for name, p in trainer.student.named_parameters() if not (p == before[name]).all()}
    assert trainer.step == 2 and moved
    assert not any(name.startswith(train.freeze) for name in moved)


def test_what_the_recipes_say_in_numbers():
    """Layers that DeeR and ActDistill run on average, and the widths that DySL's ablation names."""
    deer, actdistill = (calibrated(BOARD / f"{name}-4.yaml") for name in ("deer", "actdistill"))
    shares = deer.cut(teacher())[0].settings["shares"]
    assert sum(k * share for k, share in enumerate(shares, deer.least)) / sum(shares) == pytest.approx(4.0, abs=0.05)
    assert round(actdistill.budget * teacher().depth()) == 4
    whole, unsplit = (
        calibrated(p).cut(teacher())[0].settings for p in (BOARD / "dysl.yaml", ABLATIONS / "dysl-no_split.yaml")
    )
    assert (whole["rank"], whole["hidden"]) == (32, 24) and (unsplit["rank"], unsplit["hidden"]) == (32, 16)
    assert len(whole["static"]) in (3, 4) and whole["static"][-1] == 11
