"""`lithe reproduce`: what may be compared, what a gate judges, and one small run of everything."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lithe import checkpoint, result
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.recipe import Gate, Train, load
from lithe.reproduce import comparable, judge, reproduce, table

ROOT = Path(__file__).parents[2]
BASE = {
    "data": {"name": "fake", "cameras": ["front", "wrist"], "size": 16},
    "train": {"steps": 4, "batch": 4, "warmup": 1, "precision": "fp32", "save_every": 2},
    "gate": {"sim": "fake", "tasks": ["reach-red"], "episodes": 2},
}
OWN = {
    "small": {"method": {"name": "shallow_pi", "keep": 2}, "gate": {"points": 100.0, "speedup": 50.0}},
    "control": {"method": {"name": "finetune", "keep": 2}},
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
    assert [row["policy"] for row in document["rows"]] == ["control", "small"]
    control, small = document["rows"]
    assert control["gate"] == {}
    assert small["met"] == {"points": True, "speedup": False}
    bench = {row["policy"]: row for row in result.load(tmp_path / "bench.json")["rows"]}
    assert small["found"]["speedup"] == bench["small"]["ratio"]["p50"]
    assert small["paired"]["against"] == "teacher" and small["paired"]["n"] == 2
    assert {"task", "kd/velocity", "step_s"} <= small["train"].keys()
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
