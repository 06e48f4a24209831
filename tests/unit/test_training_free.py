"""A method that only cuts goes through the same doors as one that trains, and nothing says that it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import lithe
from lithe import card, checkpoint, surgery
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.recipe import load
from lithe.report import report
from lithe.reproduce import comparable
from lithe.train import train

BASE = {
    "data": {"name": "fake", "cameras": ["front", "wrist"], "size": 16},
    "train": {"steps": 4, "batch": 4, "warmup": 1, "precision": "fp32"},
    "gate": {"sim": "fake", "tasks": ["reach-red"], "episodes": 1},
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    data = FakeData(cameras=("front", "wrist"), size=16)
    teacher = Pi.fresh("pico", cameras=data.cameras)
    teacher.fit_to(data.stats, data.tasks, data.cameras)
    checkpoint.save(teacher, folder / "teacher")
    made = {}
    for name in ("uniform", "efficientvla", "finetune"):
        own = {"name": name, "teacher": {"source": str(folder / "teacher")}, "method": {"name": name, "keep": 2}}
        made[name] = folder / f"{name}.yaml"
        made[name].write_text(yaml.safe_dump({**BASE, **own}))
    return made


@pytest.mark.parametrize("name", ["uniform", "efficientvla"])
def test_a_run_of_no_steps_leaves_a_student_and_a_result(recipes, tmp_path, name):
    document = train(load(recipes[name]), tmp_path)
    (row,) = document["rows"]
    assert row["train"] == {} and row["frames"] == 40 and row["policy"] == str(tmp_path / "student")
    told = checkpoint.read_card(tmp_path / "student")
    assert (told["step"], told["steps"], told["method"]["name"]) == (0, 0, name)
    page = (tmp_path / "student/README.md").read_text()
    assert f"Cut by `{name}` and not trained. Recipe hash `{load(recipes[name]).hash}`." in page
    assert "Trained" not in page and "interim" not in page
    student, teacher = lithe.load(tmp_path / "student"), lithe.load(recipes[name].parent / "teacher")
    expected = surgery.cut(teacher, [surgery.parse(op) for op in told["history"]]).state_dict()
    assert student.depth() == 2
    assert all(torch.equal(tensor, expected[key]) for key, tensor in student.state_dict().items())
    chosen = json.loads((tmp_path / "recipe.json").read_text()).get("chosen", {})
    assert chosen == ({} if name == "uniform" else {"layers": told["history"][0]["layers"]})
    assert told["method"].get("layers", []) == chosen.get("layers", [])
    again = train(load(recipes[name]), tmp_path)
    assert again["rows"] == document["rows"] and checkpoint.read_card(tmp_path / "student") == told


def test_a_run_with_steps_says_so(recipes, tmp_path):
    train(load(recipes["finetune"]), tmp_path)
    told = checkpoint.read_card(tmp_path / "student")
    assert (told["step"], told["steps"]) == (4, 4)
    assert "Trained with `finetune`, 4 of 4 steps." in (tmp_path / "student/README.md").read_text()


def test_what_lithe_cut_wrote_is_not_called_trained(recipes, tmp_path):
    lithe.cut(recipes["uniform"].parent / "teacher", lithe.method("finetune", keep=2), tmp_path / "student")
    assert "Cut by `finetune` and not trained." in card.write(tmp_path / "student").read_text()


def test_it_stands_beside_those_that_train(recipes, tmp_path):
    """What `lithe reproduce` needs of a run: the same budget as all others, a Result, and a page that shows it."""
    parsed = {name: load(path) for name, path in recipes.items()}
    assert comparable(parsed) is parsed["uniform"]
    rows = {name: train(recipe, tmp_path / name)["rows"][0] for name, recipe in parsed.items()}
    assert {name: bool(row["train"]) for name, row in rows.items()} == {
        "uniform": False,
        "efficientvla": False,
        "finetune": True,
    }
    assert not (tmp_path / "uniform/metrics.jsonl").exists()
    page = report([tmp_path / name for name in recipes], tmp_path / "report.html").read_text()
    assert "4 of 4" in page and "4 of 0" not in page
