"""The short names of the public API that build things: load, method, data, runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lithe import checkpoint, recipe, registry
from lithe.families.base import Family
from lithe.recipe import TeacherSource


def load(source: str | Path) -> Family:
    """A policy from a folder, or fresh random weights from "family:preset" such as "pi:mini".

    Raises ValueError when the folder is not a policy, is damaged, or the preset does not exist.
    """
    family, colon, preset = str(source).partition(":")
    if colon and not Path(source).exists():
        return fresh(TeacherSource(family=family, preset=preset))
    return checkpoint.load(source)


def fresh(source: TeacherSource) -> Family:
    """Random weights of a preset."""
    family: Any = registry.get("families", source.family or "pi")
    return family.fresh(source.preset, seed=source.seed, **source.settings)


def method(name: str, /, **knobs: Any) -> Any:
    """A method by name with its knobs; a typo is an error with a suggestion."""
    return recipe.build_method(name, **knobs)


def data(name: str, **settings: Any) -> Any:
    """A data set: `data("lerobot", root="data/demos")`, `data("lerobot", repo="you/demos")`, `data("fake")`."""
    kind: Any = registry.get("data", name)
    return kind(**recipe.check_keywords(kind, settings, f"data {name}"))


def runtime(model: Family | str | Path, name: str = "eager", **settings: Any) -> Any:
    """A way to run a policy: `runtime(student, "eager").infer(observation)` returns a chunk of actions."""
    kind: Any = registry.get("runtimes", name)
    return kind(model if isinstance(model, Family) else load(model), **settings)
