"""What `explain` foretells, against really cutting a small policy and counting what came out."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import TensorInfo, filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lithe import api, checkpoint, surgery
from lithe.explain import MACHINES, explain, shapes
from lithe.families.pi import Pi
from lithe.families.smolvla import SmolVLA
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

    def loss(self, step):
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


VISION = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}


@pytest.fixture(params=["lerobot", "openpi", "smolvla"])
def other(request, foreign, tmp_path) -> Path:
    """A policy folder of another project."""
    if request.param == "smolvla":
        return foreign.lerobot(SmolVLA.fresh("pico"), tmp_path / "policy", places=36)
    if request.param == "openpi":
        return foreign.openpi(Pi.fresh("pico", vision={**VISION, "image": 224, "patch": 56}), tmp_path / "policy")
    return foreign.lerobot(Pi.fresh("pico", vision=VISION), tmp_path / "policy")


def hollow(path: Path) -> None:
    """Holes in a file system in place of all values: to read one of these weights is to be refused."""
    size, content = path.stat().st_size, path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    os.truncate(path, size)


class Sealed:
    """A safetensors file that says what it holds and gives nothing of it."""

    def __init__(self, path: Path, **settings: Any):
        self.file, self.sealed = safe_open(path, **settings), path.name == checkpoint.WEIGHTS

    def __enter__(self) -> Sealed:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return self.file.keys()

    def get_slice(self, key: str) -> Any:
        return SimpleNamespace(get_shape=self.file.get_slice(key).get_shape)

    def get_tensor(self, key: str) -> Any:
        assert not self.sealed, f"read the values of {key}"
        return self.file.get_tensor(key)


def test_policies_of_other_projects_are_explained_without_their_weights(other, monkeypatch):
    loaded = api.load(other)
    expected = explain(loaded, ShallowPi(keep=2)).document
    hollow(other / checkpoint.WEIGHTS)
    monkeypatch.setattr("lithe.source.safe_open", Sealed)
    monkeypatch.setattr(checkpoint, "load_file", lambda path: pytest.fail("read the weights"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(other))
    for name in (other, "lab/policy"):
        found = explain(name, ShallowPi(keep=2)).document
        assert {k: found[k] for k in ("name", "rows")} == {k: expected[k] for k in ("name", "rows")}
    model = api.skeleton("lab/policy")
    assert all(x.is_meta for x in model.parameters()) and model.origin["source"] == "lab/policy"
    assert (model.describe(), model.spec) == (loaded.describe(), loaded.spec)
    with pytest.raises(AssertionError, match="read the values"):
        api.load(other)


def test_of_a_policy_on_the_hub_no_weights_are_downloaded(foreign, tmp_path, monkeypatch):
    """Only what a download would bring without them, and the header that the hub gives of the file."""
    folder = foreign.lerobot(Pi.fresh("pico", vision=VISION), tmp_path / "policy")
    expected, content = explain(folder, ShallowPi(keep=2)).rows, (folder / checkpoint.WEIGHTS).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (folder / checkpoint.WEIGHTS).unlink()
    asked = []

    def download(name: str, **settings: Any) -> str:
        files = [checkpoint.WEIGHTS, "model-00001-of-00002.safetensors", "before.safetensors", "config.json"]
        patterns = {key: settings[key] for key in ("allow_patterns", "ignore_patterns")}
        assert list(filter_repo_objects(files, **patterns)) == files[2:]
        return str(folder)

    def describe(name: str, file: str, revision: str | None) -> Any:
        asked.append((name, file, revision))
        return SimpleNamespace(tensors={key: TensorInfo(**about) for key, about in header.items()})

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.parse_safetensors_file_metadata", describe)
    before = sorted(folder.iterdir())
    assert explain("lab/policy", ShallowPi(keep=2)).rows == expected
    model = api.skeleton("lab/policy", "v1")
    assert model.origin == {"source": "lab/policy", "revision": "v1"} and sorted(folder.iterdir()) == before
    assert asked == [("lab/policy", checkpoint.WEIGHTS, None), ("lab/policy", checkpoint.WEIGHTS, "v1")]

    def refuse(*args: Any, **settings: Any) -> Any:
        raise EntryNotFoundError("404 there is no such file\nand more")

    monkeypatch.setattr("huggingface_hub.parse_safetensors_file_metadata", refuse)
    with pytest.raises(ValueError, match=r"header of model.safetensors of lab/policy \(404 there is no such file\)"):
        explain("lab/policy")


def test_names_and_shapes_of_other_projects_weights_must_fit(foreign, tmp_path):
    folder = foreign.lerobot(Pi.fresh("pico", vision=VISION), tmp_path / "policy")
    tensors = load_file(folder / checkpoint.WEIGHTS)
    for change, words in (
        ({"model.spare": torch.ones(1)}, "does not know"),
        ({"model.action_in_proj.bias": torch.ones(3)}, "misshaped"),
    ):
        save_file({**tensors, **change}, folder / checkpoint.WEIGHTS)
        with pytest.raises(ValueError, match=words):
            explain(folder)


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
