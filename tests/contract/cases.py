"""What the contract runs on: every method with every family in its pico size, and how to build, cut and train them.

Plug-ins come from the registry, so nothing here changes when one is added. A family with several kinds of model is run
once for each of its VARIANTS; one that is not listed there is run as its pico preset is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import torch

from lithe import registry, surgery
from lithe.data.fake import FakeData
from lithe.distill import Trainer, finish
from lithe.families.base import Family
from lithe.methods.base import Method, Stage, Step
from lithe.recipe import Train
from lithe.runtimes._exported import Exported
from lithe.runtimes.base import Runtime
from lithe.types import Route

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "pi": ({"variant": "pi05"}, {"variant": "pi0", "jitter": 0.5}),
    "smolvla": ({}, {"self_attention_every": 0, "jitter": 0.5}, {"image_marks": (5, 6), "empty_cameras": 1}),
}
KEEP = 2  # layers of a really cut pico student
Look = Callable[[Family, dict[str, torch.Tensor]], None]


@dataclass(frozen=True)
class Case:
    """One family variant, one method, all runtimes. Tests of the contract itself swap in broken ones."""

    family: type[Family]
    settings: dict[str, Any]
    method: type[Method]
    runtimes: tuple[type[Runtime], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        kind = self.method.__module__.rpartition(".")[2]
        return "-".join([self.family.name, *map(str, self.settings.values()), kind])

    @cached_property
    def data(self) -> FakeData:
        spec = self.family.fresh("pico", **self.settings).spec
        sizes = {"state_dim": spec.state_dim, "action_dim": spec.action_dim, "size": 24}
        return FakeData(cameras=spec.cameras, episodes=2, length=10, **sizes)

    def teacher(self) -> Family:
        """A teacher of one's own: a pico one that may be written to."""
        return copy.deepcopy(self.model)

    @cached_property
    def model(self) -> Family:
        """A pico teacher for looking at only, with every parameter moved: zero-initialised gates would make half of the
        checks vacuous."""
        model = self.family.fresh("pico", **self.settings)
        model.fit_to(self.data.stats, self.data.tasks, self.data.cameras)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        return model.eval()

    def build(self, keep: int = KEEP, kind: type[Method] | None = None, **knobs: Any) -> Method:
        """The method with its defaults, calibrated; a knob `keep` gets a number that fits a pico teacher.

        kind: a subclass to build instead. Calibrated once for the same knobs, which is a pass over the data.
        """
        named = [f.name for f in fields(self.method)]
        asked = (("keep", keep),) if "keep" in named else ()
        asked = (*asked, *sorted(knobs.items()))
        if asked not in self.calibrated:
            self.calibrated[asked] = self.method(**dict(asked)).calibrated(self.model, self.data)
        made = self.calibrated[asked]
        return kind(**{name: getattr(made, name) for name in named}) if kind else made

    @cached_property
    def calibrated(self) -> dict[Any, Method]:
        """What `build` has calibrated so far."""
        return {}

    def student(self, keep: int = KEEP, teacher: Family | None = None) -> Family:
        """As it is shipped, but for its training."""
        teacher, method = teacher or self.teacher(), self.build(keep)
        student = surgery.cut(teacher, method.cut(teacher)).eval()
        finish(method, student, self.data, torch.device("cpu"))
        return student

    def trainer(self, method: Method, teacher: Family | None = None, **train: Any) -> Trainer:
        """The real trainer, a few small steps long."""
        teacher = teacher or self.teacher()
        student = surgery.cut(teacher, method.cut(teacher))
        settings = {"steps": 1, "batch": 2, "draws": 2, "warmup": 0, "lr": 1e-2, "precision": "fp32", **train}
        return Trainer(student, teacher, method, self.data, Train(**settings))

    def watched(self, look: Look, keep: int = KEEP, stage: Stage | None = None, shut: bool = False) -> Method:
        """The method, which shows its loss terms to `look` at every step, and has only `stage` if one is given.

        shut: every layer runs, whatever the method routes; a router that is asked on the way does not cross.
        """

        class Watched(self.method):  # type: ignore[name-defined, misc]
            def loss(self, step: Step) -> dict[str, torch.Tensor]:
                terms = super().loss(step)
                look(step.student, terms)
                return terms

            def stages(self) -> list[Stage]:
                return [stage] if stage else super().stages()

            def enter(self, stage: Stage, student: Family, aux: torch.nn.ModuleDict) -> None:
                super().enter(stage, student, aux)
                if shut and student.router is not None:
                    share = student.router.share
                    student.router.share = lambda *asked: share(*asked) * 0.0  # type: ignore[method-assign]

            def route(self, student: Family, *rest: Any) -> Route | None:
                route = super().route(student, *rest)
                return replace(route, run=(True,) * len(route.run)) if shut and route else route

        return self.build(keep, Watched)


class AnyMethod(Method):
    """Stands where a row does not look at the method, and fails when it does."""

    __module__ = "lithe.methods.any"

    def __new__(cls, **knobs: Any) -> AnyMethod:
        raise AssertionError("this row is said to be about the family alone: run it for every method")


def every_family() -> list[Case]:
    """One case for each family variant, with no method."""
    first, *rest = every_case()
    return [replace(case, method=AnyMethod) for case in (first, *rest) if case.method is first.method]


@cache
def every_case() -> tuple[Case, ...]:
    """The registry's methods times its families times their variants; the same objects whoever asks."""
    runtimes, methods, families = (
        {name: registry.get(kind, name) for name in registry.names(kind)}
        for kind in ("runtimes", "methods", "families")
    )
    # What compiles sees no method: with one of them on every variant all is compiled once, which takes long enough.
    # What is exported is `packed` in another engine, and takes longer: once for every family.
    quick = tuple(kind for kind in runtimes.values() if not kind.compiles)
    compiled = tuple(kind for kind in runtimes.values() if not issubclass(kind, Exported))
    return tuple(
        Case(family, settings, method, quick if i else compiled if j else tuple(runtimes.values()))
        for name, family in families.items()
        for j, settings in enumerate(VARIANTS.get(name, ({},)))
        for i, method in enumerate(methods.values())
    )


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything a model is made of."""
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
