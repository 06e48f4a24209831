"""Which layers are kept: by place, by score, as listed, at random; and that a run chooses once and keeps its choice."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import lithe
from lithe import checkpoint, surgery
from lithe._calibration import settled
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.methods import _depth
from lithe.methods._depth import choose, highest, kept
from lithe.methods.base import Method
from lithe.methods.efficientvla import EfficientVLA
from lithe.methods.finetune import Finetune
from lithe.methods.first_k import FirstK
from lithe.methods.random_drop import RandomDrop
from lithe.methods.shallow_pi import ShallowPi
from lithe.methods.uniform import Uniform
from lithe.recipe import Train
from lithe.scores import KINDS, scores
from lithe.surgery import KeepLayers
from lithe.types import Tap

trainer = import_module("lithe.distill")  # on the package, the verb owns the name
FED = FakeData(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)
SHORT = Train(steps=4, batch=2, warmup=0, precision="fp32", save_every=2)


def pico(depth: int = 4) -> Pi:
    """A fitted pico policy with every parameter moved."""
    model = Pi.fresh("pico", depth=depth)
    model.fit_to(FED.stats, FED.tasks, FED.cameras)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@pytest.fixture
def scored(monkeypatch) -> list[list[float]]:
    """Scores that are handed out one call after the other, in place of those of a calibration pass."""
    given: list[list[float]] = []
    monkeypatch.setattr(_depth, "agreed", lambda teacher, data, kind: given.pop(0))
    return given


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_the_highest_scores_stay_and_the_earlier_of_equal_ones():
    assert highest([0.1, 0.4, 0.3, 0.4, 0.0], 3) == (1, 2, 3)
    assert highest([0.1, 0.4, 0.3, 0.4, 0.0], 1) == (1,)
    assert highest([0.0] * 5, 2) == (0, 1)
    assert highest([0.0, 0.0, 1.0, 0.0], 2) == (0, 2)


def test_by_place_or_by_score():
    assert choose(12, 4) == choose(12, 4, "uniform") == (0, 4, 7, 11)
    assert choose(12, 4, "first") == (0, 1, 2, 3)
    for kind in KINDS:
        assert choose(5, 2, kind, [0.1, 0.2, 9.0, 0.3, 8.0]) == (2, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_not_there_is_asked_for(kind):
    with pytest.raises(ValueError, match=rf"'{kind}'.*lithe distill.*method.layers=\[.*lithe profile"):
        choose(4, 2, kind)


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ((4, 2, "unifrom", ()), "method.by cannot be 'unifrom'; did you mean 'uniform'"),
        ((4, 3, "uniform", (0, 2)), "method.layers names 2 layers, method.keep is 3: set it to 2"),
        ((4, 2, "uniform", (2, 0)), r"cannot keep layers \[2, 0\] of 4; give increasing indices from 0 to 3"),
        ((4, 2, "uniform", (1, 1)), r"cannot keep layers \[1, 1\]"),
        ((4, 0, "uniform", (1, 4)), r"cannot keep layers \[1, 4\] of 4"),
        ((4, 5, "cos", ()), "cannot keep 5 layers of 4: set method.keep"),
        ((4, 0, "cos", ()), "cannot keep 0 layers of 4: set method.keep"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        kept(*knobs)


def test_listed_layers_need_no_number_beside_them():
    assert kept(4, 0, "uniform", (1, 3)) == kept(4, 2, "cos", [1, 3]) == (1, 3)


# -- the methods -------------------------------------------------------------------------------------------------------


def test_defaults_cut_as_they_always_did():
    teacher = Pi.fresh("pico", depth=12)
    assert Finetune().cut(teacher) == []
    assert Finetune(keep=4).cut(teacher) == ShallowPi(keep=4).cut(teacher) == [KeepLayers("trunk", (0, 4, 7, 11))]
    assert Uniform(keep=4).cut(teacher) == [KeepLayers("trunk", (0, 4, 7, 11))]
    assert FirstK(keep=4).cut(teacher) == Finetune(keep=4, by="first").cut(teacher)
    assert ShallowPi(keep=4).taps(None, teacher) == ((Tap("attention", 2),), (Tap("attention", 7),))


def test_attention_is_transferred_from_the_layer_that_was_kept():
    teacher = Pi.fresh("pico", depth=12)
    method = ShallowPi(keep=4, layers=(0, 1, 9, 10))
    assert method.taps(None, teacher) == ((Tap("attention", 2),), (Tap("attention", 9),))
    assert dataclasses.replace(method, keep=0).taps(None, teacher) == method.taps(None, teacher)
    assert ShallowPi(keep=3, by="first").taps(None, teacher) == ((Tap("attention", 1),), (Tap("attention", 1),))
    assert method.cut(teacher) == [KeepLayers("trunk", (0, 1, 9, 10))]
    wrong = dataclasses.replace(method, scope="expert_only").cut(teacher)
    assert wrong == [KeepLayers("trunk", (0, 1, 9, 10), {"trunk.layers": (0, 1, 2, 3)})]


@pytest.mark.parametrize("method", [Finetune(by="gate"), Finetune(by="first")])
def test_a_choice_among_no_layers_is_refused(method):
    with pytest.raises(ValueError, match=r"cannot keep 0 layers of 4: set method\.keep"):
        method.calibrated(pico(), FED).cut(pico())


@pytest.mark.parametrize("method", [ShallowPi(keep=2, by="gate"), Finetune(keep=2, by="cka"), EfficientVLA(keep=2)])
def test_without_data_such_a_method_says_what_to_do(method):
    for verb in (lambda: method.cut(Pi.fresh("pico")), lambda: lithe.explain("pi:pico", method)):
        with pytest.raises(ValueError, match=r"lithe distill.*method.layers=\[.*lithe profile"):
            verb()
    assert lithe.explain("pi:pico", dataclasses.replace(method, layers=(0, 2))).rows[1]["depth"] == {"trunk": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_fills_in_the_highest_scores_and_nothing_else(kind):
    teacher = pico()
    method = ShallowPi(keep=2, by=kind, velocity=0.5)
    filled = method.calibrated(teacher, FED)
    assert filled == dataclasses.replace(method, layers=highest(scores(teacher, FED, (kind,))[kind], 2))
    assert filled.calibrated(teacher, None) == filled, "a choice that was made is made again"
    assert filled.cut(teacher) == [KeepLayers("trunk", filled.layers)]
    assert method.layers == ()


@pytest.mark.parametrize("kind", [Uniform, RandomDrop, FirstK, Finetune, ShallowPi])
def test_methods_that_need_no_data_do_not_look_at_it(kind):
    method = kind(keep=2)
    assert method.calibrated(pico(), None) == method


def test_efficientvla_removes_the_layers_that_change_nothing():
    teacher = pico(depth=6)
    for path in ("trunk.layers", "expert.layers"):
        for layer in (1, 4):
            nn.init.zeros_(teacher.get_submodule(path)[layer].o_proj.weight)
            nn.init.zeros_(teacher.get_submodule(path)[layer].down_proj.weight)
    method = EfficientVLA(keep=4).calibrated(teacher, FED)
    assert method.layers == (0, 2, 3, 5)
    batch, noise = teacher.example(2), teacher.noise(2, torch.Generator().manual_seed(0))
    student = surgery.cut(teacher, method.cut(teacher))
    torch.testing.assert_close(student.act(batch, noise), teacher.act(batch, noise), rtol=0, atol=1e-6)


def test_random_layers_are_those_of_the_seed():
    teacher = Pi.fresh("pico", depth=12)

    def layers(keep: int, seed: int) -> tuple[int, ...]:
        (op,) = RandomDrop(keep=keep, seed=seed).cut(teacher)
        return op.layers

    assert layers(4, 0) == layers(4, 0)
    assert len({layers(4, seed) for seed in range(20)}) > 15
    counts = torch.zeros(12)
    for seed in range(300):
        counts[list(layers(4, seed))] += 1
    assert counts.min() > 70 and counts.max() < 130, "some layers are likelier than others"  # 100 expected, sigma 8
    assert layers(12, 7) == tuple(range(12))
    assert layers(4, 0) == (0, 1, 6, 10), "a seed no longer means what it meant"


@pytest.mark.parametrize("method", [Uniform(keep=2), EfficientVLA(keep=2)])
def test_training_free_methods_only_cut(method, tmp_path):
    teacher = pico()
    student = trainer.distill(teacher, method, FED, SHORT, tmp_path / "run")
    settled_ = method.calibrated(teacher, FED)
    expected = surgery.cut(teacher, settled_.cut(teacher)).state_dict()
    assert method.stages() == [] and student.depth() == 2
    assert all(torch.equal(value, expected[key]) for key, value in student.state_dict().items())


# -- in a run ----------------------------------------------------------------------------------------------------------


def run(out: Path, method: Method, **train: object) -> Pi:
    return trainer.distill(pico(), method, FED, dataclasses.replace(SHORT, **train), out)


def test_a_run_records_what_was_chosen(tmp_path, scored):
    scored.append([0.0, 3.0, 1.0, 2.0])
    student = run(tmp_path / "run", ShallowPi(keep=2, by="gate"))
    card = checkpoint.read_card(tmp_path / "run/student")
    assert card["method"]["name"] == "shallow_pi"
    assert (card["method"]["by"], card["method"]["layers"], card["method"]["keep"]) == ("gate", [1, 3], 2)
    assert card["history"] == student.history == [{"op": "KeepLayers", "stack": "trunk", "layers": [1, 3]}]
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["chosen"] == {"layers": [1, 3]}
    assert recipe["method"]["layers"] == [], "the recipe itself is what was asked for"


def test_a_resumed_run_keeps_its_choice_although_scores_come_out_differently(tmp_path, scored, monkeypatch):
    method = ShallowPi(keep=2, by="gate")
    scored += [[0.0, 3.0, 1.0, 2.0], [3.0, 0.0, 2.0, 1.0]]
    whole = run(tmp_path / "whole", method)
    save = trainer.Trainer.save

    def killed(self, run, stage):
        save(self, run, stage)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "save", killed)
    scored.insert(0, [0.0, 3.0, 1.0, 2.0])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", method)
    monkeypatch.setattr(trainer.Trainer, "save", save)
    resumed = run(tmp_path / "run", method)
    assert len(scored) == 1, "the pass was made again"
    assert resumed.history == whole.history
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


def test_a_folder_of_another_recipe_is_still_refused(tmp_path, scored):
    scored += [[0.0, 3.0, 1.0, 2.0]] * 3
    run(tmp_path / "run", Finetune(keep=2, by="gate"))
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run(tmp_path / "run", Finetune(keep=2, by="cos"))
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run(tmp_path / "run", Finetune(keep=2, by="gate"), lr=1.0)
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run(tmp_path / "run", Uniform(keep=2))  # which has no knob for the layers that were chosen


def test_runs_that_calibrate_nothing_are_identified_as_before(tmp_path):
    identity = {"recipe": {"name": "x"}, "hash": "0"}
    for method in (Finetune(keep=2), Uniform(keep=2)):
        found, told = settled(method, pico(), FED, tmp_path / "run", identity)
        assert found is method and told is identity
