"""What `explain` foretells, against really cutting a small policy and counting what came out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import pytest
import torch
from torch import nn

from lithe import api, checkpoint, surgery
from lithe.explain import MACHINES, explain, shapes
from lithe.families.pi import Pi
from lithe.measure import PeakMemory
from lithe.methods.base import Method, Stage
from lithe.methods.finetune import Finetune
from lithe.methods.shallow_pi import ShallowPi
from lithe.surgery import KeepLayers


@dataclass(frozen=True, kw_only=True)
class TwoStages(Method):
    """First a helper beside the model, then the expert."""

    paper: ClassVar[str] = "a test"
    first: tuple[str, ...] = ("aux.",)

    def cut(self, teacher):
        return [KeepLayers("trunk", (0, 2))]

    def aux(self, teacher):
        return nn.ModuleDict({"head": nn.Linear(teacher.config.trunk.width, 3)})

    def stages(self):
        return [Stage("head", 0.25, self.first, 10.0), Stage("expert", 0.75, ("expert.", "action_"))]

    def loss(self, student, out, teacher_out, stage):
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NoTraining(Finetune):
    def stages(self):
        return []


@pytest.fixture(scope="module")
def teacher() -> Pi:
    return api.load("pi:pico")


def count(model: nn.Module, *prefixes: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes or ("",)))


@pytest.mark.parametrize(
    "method", [Finetune(keep=2), ShallowPi(keep=3), ShallowPi(keep=2, scope="expert_only"), TwoStages()]
)
def test_it_foretells_the_real_student(teacher, method):
    student = surgery.cut(teacher, method.cut(teacher))
    before, after = explain(teacher, method).rows
    for row, model in ((before, teacher), (after, student)):
        cost = shapes(model).to(torch.bfloat16).cost()
        assert (row["parameters"], row["flops"], row["bytes"]) == (cost.parameters, cost.flops, cost.bytes)
        assert sum(row["parameters"].values()) == count(model)
        assert row["depth"] == {"trunk": model.depth()}
    assert after["ops"] == student.history
    ratio = count(teacher) / count(student)
    assert after["ratio"]["parameters"] == pytest.approx(ratio, rel=1e-5)
    floors = [sum(row["floor_ms"]["H200"].values()) for row in (before, after)]
    assert after["ratio"]["floor"]["H200"] == pytest.approx(floors[0] / floors[1], rel=1e-4)


def test_layers_are_named_by_their_number_in_the_teacher(teacher):
    kept = explain(teacher, ShallowPi(keep=2)).rows[1]["layers"]
    assert kept == {"trunk.layers": [0, 3], "expert.layers": [0, 3]}
    crooked = explain(teacher, ShallowPi(keep=2, scope="expert_only")).rows[1]["layers"]
    assert crooked == {"trunk.layers": [0, 1], "expert.layers": [0, 3]}
    assert explain(teacher).rows[0]["layers"]["trunk.layers"] == [0, 1, 2, 3]


def test_each_stage_says_what_it_trains(teacher):
    student = surgery.cut(teacher, TwoStages().cut(teacher))
    head, expert = explain(teacher, TwoStages()).rows[1]["stages"]
    aux = 3 * teacher.config.trunk.width + 3
    assert (head["trains"], head["parameters"], head["share"], head["lr"]) == ({"aux": aux}, aux, 0.25, 10.0)
    assert expert["parameters"] == count(student, "expert.", "action_")
    assert expert["trains"].keys() == {"expert", "action_in", "action_out"}
    assert expert["of"] == count(student) + aux
    frozen = explain(teacher, TwoStages(), freeze=("expert.layers.0.",)).rows[1]["stages"][1]
    assert frozen["parameters"] == expert["parameters"] - count(student, "expert.layers.0.")


def test_it_changes_and_allocates_nothing(teacher):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    explain(teacher, ShallowPi(keep=2))
    assert teacher.depth() == 4
    assert teacher.history == []
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.is_meta for p in shapes(teacher).parameters())


def test_a_folder_is_explained_without_its_weights(teacher, tmp_path, monkeypatch):
    fitted = import_module("lithe.bench").load("pi:pico")
    folder = checkpoint.save(surgery.cut(fitted, [KeepLayers("trunk", (0, 1, 3))]), tmp_path / "small")
    (folder / checkpoint.WEIGHTS).unlink()
    before, after = explain(folder, ShallowPi(keep=2)).rows
    assert (before["depth"]["trunk"], after["depth"]["trunk"]) == (3, 2)
    assert after["layers"]["trunk.layers"] == [0, 2]
    assert before["parameters"] == surgery.cut(teacher, [KeepLayers("trunk", (0, 1, 3))]).cost().parameters


def test_the_full_policy_takes_two_seconds_and_no_memory():
    explain("pi:pico")  # imports
    began = time.process_time()
    with PeakMemory() as peak:
        before, after = explain("pi:full", ShallowPi(keep=6)).rows
    assert time.process_time() - began < 2
    assert peak.mib is None or peak.mib < 100
    assert sum(before["parameters"].values()) / 1e9 == pytest.approx(3.35, abs=0.01)
    assert sum(after["parameters"].values()) / 1e9 == pytest.approx(1.74, abs=0.01)
    assert after["layers"]["expert.layers"] == [0, 3, 7, 10, 14, 17]
    # The published floor ratios are 2.43 to 2.62; keys and values only in the last trunk layer adds about 6 %.
    assert all(2.5 < ratio < 2.8 for ratio in after["ratio"]["floor"].values())
    assert after["ratio"]["floor"].keys() == MACHINES.keys()


def test_settings_reach_the_count(teacher):
    small = explain("pi:full", views=1, text=48, steps=1, dtype=torch.float32, machines={"here": (1e12, 1e10)})
    model = shapes("pi:full")
    cost = model.cost(views=1, text=48, steps=1)
    assert (small.rows[0]["flops"], small.rows[0]["bytes"]) == (cost.flops, cost.bytes)
    assert small.rows[0]["floor_ms"].keys() == {"here"}
    assert small.document["settings"] == {"views": 1, "text": 48, "steps": 1, "batch": 1, "dtype": "float32"}


def test_the_page_tells_the_story():
    page = str(explain("pi:full", ShallowPi(keep=6)))
    for told in (
        "trunk.layers: 6 of 18 layers: 0 3 7 10 14 17",
        "3,353",
        "1,749",
        "x faster at most",
        "arXiv 2601.20262",
    ):
        assert told in page
    assert "student" not in str(explain("pi:pico"))
    assert "Training-free" in str(explain("pi:pico", NoTraining(keep=2)))
    assert max(map(len, page.splitlines())) <= 110


def test_the_result_is_json(teacher):
    document = explain(teacher, TwoStages()).document
    assert json.loads(json.dumps(document)) == document
    assert document["kind"] == "explain"


def test_what_cannot_be_done_is_refused(teacher):
    with pytest.raises(ValueError, match="cannot keep 9 layers of 4"):
        explain(teacher, ShallowPi(keep=9))
    with pytest.raises(ValueError, match="stage 'head': no parameter starts with 'bypass'"):
        explain(teacher, TwoStages(first=("bypass",)))
    with pytest.raises(ValueError, match="not a lithe policy folder"):
        explain("no/such/folder")
