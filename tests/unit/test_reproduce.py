"""`lithe reproduce`: what may be compared, what a gate judges, and one small run of everything."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lithe import checkpoint, result
from lithe._facts import seconds, trained
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.recipe import Gate, Train, load
from lithe.reproduce import comparable, judge, reproduce, table
from lithe.train import train

ROOT = Path(__file__).parents[2]
BASE = {
    "data": {"name": "fake", "cameras": ["front", "wrist"], "size": 16},
    "train": {"steps": 4, "batch": 4, "warmup": 1, "precision": "fp32", "save_every": 2},
    "gate": {"sim": "fake", "tasks": ["reach-red"], "episodes": 2},
}
OWN = {
    "small": {"method": {"name": "shallow_pi", "keep": 2}, "gate": {"points": 100.0, "speedup": 50.0}},
    "control": {"method": {"name": "finetune", "keep": 2}},
    "routed": {"method": {"name": "mole", "keep": 3}},
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recipes")
    data = FakeData(cameras=("front", "wrist"), size=16)
    teacher = Pi.fresh("pico", cameras=data.cameras)
    teacher.fit_to(data.stats, data.tasks, data.cameras)
    checkpoint.save(teacher, folder / "teacher")
    (folder / "_base.yaml").write_text(yaml.safe_dump({**BASE, "teacher": {"source": str(folder / "teacher")}}))
    for name, own in OWN.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"base": "_base.yaml", "name": name, **own}))
    scratch = {**BASE, "name": "scratch", "teacher": {"family": "pi", "preset": "pico"}, "method": {"name": "finetune"}}
    (folder / "scratch.yaml").write_text(yaml.safe_dump(scratch))
    return sorted(folder.glob("*.yaml"))


@pytest.fixture(scope="module")
def parsed(recipes) -> dict:
    return {path.stem: load(path, []) for path in recipes if path.stem in OWN}


@pytest.mark.timeout(300)
def test_everything_is_made_once_and_judged(recipes, tmp_path, capsys):
    document = reproduce(recipes, tmp_path, runs=3, samples=4)
    assert [row["policy"] for row in document["rows"]] == ["control", "routed", "small"]
    control, routed, small = document["rows"]
    assert control["gate"] == {}
    assert small["met"] == {"points": True, "speedup": False}
    bench = {row["policy"]: row for row in result.load(tmp_path / "bench.json")["rows"]}
    assert small["found"]["speedup"] == bench["small"]["ratio"]["p50"]
    assert small["paired"]["against"] == "teacher" and small["paired"]["n"] == 2
    assert {"task", "kd/velocity", "step_s"} <= small["train"].keys()
    check_one_row_tells_everything(routed, bench["routed"], tmp_path)
    assert small["layers"] == 2 and small["flop_share"] < 1 and "layers_run" not in small and "closed_ms" not in small
    seen = result.load(tmp_path / "bench.json")["settings"]
    assert seen["inputs"] == "FakeData", "the teacher and static students see what routed ones see"
    page = Path(document["page"]).read_text()
    assert all(name in page for name in ("teacher", "small", "control", "kd/velocity"))
    watched = [tmp_path / name for name in ("bench.json", "profile.json", "small/result.json", "strips/strips.json")]
    before = [path.stat().st_mtime_ns for path in watched]
    again = reproduce(recipes, tmp_path, runs=3, samples=4)
    assert [path.stat().st_mtime_ns for path in watched] == before
    assert again["rows"] == document["rows"]
    told = capsys.readouterr().err
    assert f"Open {document['page']} in a browser." in " ".join(told.split()) and "minus teacher" in told
    strips = tmp_path / "strips" / "strips.json"
    strips.write_text(strips.read_text().replace('"weights": "', '"weights": "0'))
    reproduce(recipes, tmp_path, runs=3, samples=4)
    assert '"weights": "0' not in strips.read_text(), "strips of other weights were kept"


def check_one_row_tells_everything(row: dict, timed: dict, out: Path) -> None:
    assert row["layers"] == 4 and row["success"]["n"] == 2 and row["layers_run"]["bench"] == timed["layers_run"]
    assert row["layers_run"]["eval"]["histogram"] == {"3": 1.0} and row["layers_run"]["bench"]["mean"] == 3.0
    for key in ("closed_ms", "open_ms", "flop_share", "end_to_end_ms", "router_flops", "ratio"):
        assert row[key] == timed[key]
    student = checkpoint.load(out / "routed" / "student")
    assert row["train"]["trainable_parameters"] == sum(p.numel() for p in student.parameters())
    lines = [json.loads(line) for line in (out / "routed" / "metrics.jsonl").read_text().splitlines()]
    each = [line["step_s"] + line["data_s"] for line in lines]
    assert row["train"]["seconds"] == pytest.approx(4 * sum(each) / len(each), abs=0.06)


def test_seconds_are_means_times_steps(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    lines = [{"step": 10, "step_s": 2.0, "data_s": 0.5, "task": 9.0}, {"step": 13, "step_s": 1.0, "data_s": 0.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert seconds(tmp_path) == 10 * 2.5 + 3 * 1.0


def test_only_what_a_stage_trains_is_trainable(recipes, tmp_path):
    """Of a student with a frozen tower; and nothing of one that is cut and not trained."""
    overrides = [f"train.freeze={['vision.']}", "train.steps=2", "train.save_every=2"]
    recipe = load(next(path for path in recipes if path.stem == "routed"), overrides)
    train(recipe, tmp_path / "run")
    student = checkpoint.load(tmp_path / "run" / "student")
    expected = sum(p.numel() for n, p in student.named_parameters() if not n.startswith("vision."))
    assert trained(recipe, tmp_path / "run")["trainable_parameters"] == expected
    free = dataclasses.replace(recipe, method={"name": "efficientvla", "keep": 2})
    train(free, tmp_path / "free")
    assert trained(free, tmp_path / "free") == {"trainable_parameters": 0, "seconds": 0}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train", {"train": Train(steps=5)}, "differ in train: a comparison needs the same for all"),
        ("data", {"data": {"name": "fake", "seed": 1}}, "differ in data"),
        ("gate", {"gate": Gate(sim="fake", episodes=3)}, "differ in gate.sim, gate.tasks or gate.episodes"),
    ],
)
def test_unequal_budgets_are_refused(parsed, part, change, message):
    assert comparable(parsed) is parsed["control"]
    with pytest.raises(ValueError, match=message):
        comparable({**parsed, "small": dataclasses.replace(parsed["small"], **change)})


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(recipes, tmp_path, monkeypatch):
    """Another budget is another run; another gate is not, it asks something else of the same student."""
    small = next(path for path in recipes if path.stem == "small")
    train(load(small, []), tmp_path / "small")
    before = (tmp_path / "small" / "result.json").read_bytes()
    monkeypatch.setattr(sys.modules["lithe.reproduce"], "_evaluate", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(ValueError, match="small holds a run of another recipe: choose another --out, or delete"):
        reproduce([small], tmp_path, ["train.steps=6"])
    with pytest.raises(pytest.fail.Exception, match="evaluated"):
        reproduce([small], tmp_path, ["gate.points=1"])
    assert (tmp_path / "small" / "result.json").read_bytes() == before
    known = json.loads((tmp_path / "small" / "recipe.json").read_text())
    del known["recipe"]["method"]["attention"]  # as of a version without that knob
    (tmp_path / "small" / "recipe.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match="small holds a run of another recipe"):
        reproduce([small], tmp_path)


def test_a_teacher_that_cannot_act_there_is_refused_before_anything_is_trained(recipes, tmp_path):
    with pytest.raises(ValueError, match="looks through camera 'front'; metaworld has"):
        reproduce(recipes, tmp_path, ["gate.sim=metaworld"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_compare_is_said(recipes, tmp_path):
    with pytest.raises(ValueError, match="name at least one recipe"):
        reproduce([path for path in recipes if path.stem == "scratch"], tmp_path)


@pytest.mark.parametrize(
    ("points", "speedup", "met"),
    [(-1.0, 2.0, (True, True)), (-1.01, 2.0, (False, True)), (3.0, 1.99, (True, False))],
)
def test_a_gate_is_met_at_its_bound_and_not_below(parsed, points, speedup, met):
    gate = Gate(points=1.0, speedup=2.0)
    evaluation = {"rows": [{"policy": "x", "success": {"rate": 0.5}, "paired": {"difference": points / 100}}]}
    bench = {"rows": [{"policy": "x", "ratio": {"p50": speedup}, "latency_ms": {}}]}
    found = judge("x", dataclasses.replace(parsed["small"], gate=gate), evaluation, bench)
    assert tuple(found["met"].values()) == met
    console = Console(width=80, record=True)
    console.print(table({"rows": [{"policy": "x", **found}]}))
    text = console.export_text()
    assert text.count("NOT MET") == met.count(False) and "at least -1.0" in text


def test_the_readme_shows_what_the_results_say():
    """`make tables` was run after the last Result was added."""
    subprocess.run([sys.executable, "scripts/tables.py", "--check"], cwd=ROOT, check=True)
