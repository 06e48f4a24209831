"""Routers that decide nothing, and data that cannot calibrate: both are told, the second before anything is trained."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from lithe import surgery
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.methods.deer import Deer
from lithe.methods.dysl import Dysl
from lithe.methods.efficientvla import EfficientVLA
from lithe.methods.finetune import Finetune
from lithe.methods.mole import Mole
from lithe.methods.shallow_pi import ShallowPi
from lithe.recipe import Train

distill = import_module("lithe.distill")  # on the package, the verb owns the name
TRAIN = Train(steps=20, batch=4, draws=1, warmup=0, lr=1e-12, precision="fp32", save_every=20, augment=False)


def frames(episodes: int, length: int) -> FakeData:
    return FakeData(cameras=("corner2", "gripperPOV"), episodes=episodes, length=length, size=16)


def teacher(moved: bool = True) -> Any:
    model, data, generator = Pi.fresh("pico"), frames(2, 8), torch.Generator().manual_seed(1)
    model.fit_to(data.stats, data.tasks, data.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1 * moved)
    return model.eval()


# -- data that cannot calibrate ----------------------------------------------------------------------------------------

ONE = "layer scores from 1 frame say nothing about layers, only about that frame: calibrate on at least two"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Finetune(keep=2, by="gate"), ONE),
        (ShallowPi(keep=2, by="cka"), ONE),
        (EfficientVLA(keep=2), ONE),
        (Dysl(), ONE),
        (Dysl(split=False), "the demonstrations do not say how smoothness changes .* set method.eta and method.eta1"),
        (Deer(), r"3 exits cannot be fitted to 1 frames: calibrate with more .* or have fewer exits"),
    ],
)
def test_one_frame_is_refused_before_anything_is_trained(method, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        distill.distill(teacher(), method, frames(1, 1), TRAIN, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_exit_needs_a_frame_and_deer_says_so_at_once(tmp_path):
    with pytest.raises(ValueError, match="3 exits cannot be fitted to 2 frames"):
        distill.distill(teacher(), Deer(), frames(1, 2), TRAIN, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for method in (Deer(every=2), Deer(keep=2), Deer(least=3)):
        assert method.calibrated(teacher(), frames(1, 2)) is method


# -- routers that decide nothing ---------------------------------------------------------------------------------------


def said(method: Any, capsys: pytest.CaptureFixture[str], tilt: Any = None) -> list[str]:
    """What a user hears while a student trains whose router `tilt` has set, and which learns next to nothing."""
    model = teacher()
    student = surgery.cut(model, method.cut(model))
    if tilt:
        with torch.no_grad():
            tilt(student.router)
    capsys.readouterr()
    distill.Trainer(student, model, method, frames(2, 8), TRAIN).fit(None, [])
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lithe: ")]


def sure(value: float) -> Any:
    def tilt(router: Any) -> None:
        for controller in router.controllers.values():
            controller.up.bias.fill_(value)

    return tilt


def by_picture(router: Any) -> None:
    """A controller of layer 0 that fires for some pictures and not for others."""
    generator = torch.Generator().manual_seed(3)
    for controller in router.controllers.values():
        controller.up.weight.copy_(torch.randn(controller.up.weight.shape, generator=generator) * 1e3)


def test_controllers_that_always_or_never_fire_are_reported_once(capsys):
    method = Dysl(static=(1, 3), one_stage=True)
    (never,) = said(method, capsys)
    assert "no controller fires for any observation: raise method.skip, or lower method.threshold" in never
    (always,) = said(method, capsys, sure(5.0))
    assert "every controller fires for every observation: method.jump=always does the same" in always
    assert said(method, capsys, by_picture) == []
    assert said(Dysl(static=(1, 3), jump="always"), capsys) == [], "there is no controller to report"


def test_a_router_that_picks_the_same_layers_for_everything_is_reported_once(capsys):
    def blind(router: Any) -> None:
        router.spatial_out.weight.zero_()
        router.temporal_out.weight.zero_()

    def torn(router: Any) -> None:
        router.spatial_out.weight.mul_(1e3)

    (alike,) = said(Mole(keep=2), capsys, blind)
    assert "the router runs the same layers for every observation, as a static cut would" in alike
    assert said(Mole(keep=4), capsys, blind) == [], "all layers is what was asked for"
    assert said(Mole(keep=2), capsys, torn) == []


def test_what_is_too_early_to_say_is_not_said():
    for method in (Dysl(), Mole()):
        for value in (-0.1, 0.0, 0.1):
            assert method.remark({"note/collapsed": value}) == ""
        assert method.remark({"task": 1.0}) == ""
        assert method.remark({"note/collapsed": 0.2})


def test_exits_at_which_all_frames_stop_together_are_reported(capsys):
    """Layers of a new policy add nothing yet, so that every exit gives the same actions."""
    for moved in (False, True):
        model, method = teacher(moved), Deer()
        student = surgery.cut(model, method.cut(model)).eval()
        capsys.readouterr()
        assert distill.finish(method, student, frames(1, 8), torch.device("cpu"))
        heard = capsys.readouterr().err
        assert ("lithe: all 8 frames stop after 2 of 4 layers" in heard) == (not moved)
