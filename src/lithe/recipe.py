"""Recipe: one strict YAML file says everything about a training run: teacher, method, data, train, gate.

At most 40 lines, no code, no interpolation, at most one `base:` (a path beside the file, merged underneath). Overrides
are dotted: `method.keep=6`. An unknown key is an error with a suggestion. The resolved recipe and its hash go into
every artefact made from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from lithe.registry import get, names, suggestion

LINES = 40


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A policy folder or hub id (`source`), or random weights of a family's preset (`family`, `preset`, `seed`)."""

    source: str | None = None
    family: str | None = None
    preset: str | None = None
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # overrides of the preset


@dataclass(frozen=True, kw_only=True)
class Train:
    """The budget and the optimiser. Defaults: Shallow-pi's LIBERO runs (openpi's AdamW), where known."""

    steps: int = 30_000
    batch: int = 64  # observations a step, over all processes
    draws: int = 1  # noise draws that share one prefix
    lr: float = 2.5e-5
    warmup: int = 1_000  # steps of linear warm-up
    floor: float = 0.1  # final learning rate as a share of lr
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-10
    clip: float = 1.0  # gradient norm
    accumulate: int = 1  # optimiser steps every so many batches
    ema: float = 0.0  # decay of averaged weights, which then are the result; 0 = off
    precision: str = "bf16"  # autocast; master weights stay float32. "fp32" = none
    freeze: tuple[str, ...] = ()  # parameter prefixes that no stage trains
    augment: bool = True
    seed: int = 0
    save_every: int = 500
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb", "trackio": beside the JSONL, never instead of it


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What `lithe reproduce` must find: success kept (points lost at most) and speed gained, on a benchmark."""

    sim: str = "metaworld"
    tasks: tuple[str, ...] = ()  # empty = the simulator's default list
    episodes: int = 50  # a task
    points: float | None = None  # success lost at most against the teacher, in percentage points; None = not judged
    speedup: float | None = None  # p50 latency ratio at least
    success: float | None = None  # absolute success rate at least


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A parsed recipe. `method` and `data` hold a name and that plug-in's own settings, checked against it."""

    name: str
    teacher: TeacherSource
    method: dict[str, Any]
    data: dict[str, Any]
    train: Train = Train()
    gate: Gate | None = None

    def build_method(self) -> Any:
        """The method object of this recipe."""
        name = self.method["name"]
        return strict(get("methods", name), {k: v for k, v in self.method.items() if k != "name"}, f"method {name}")

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data."""
        return json.loads(json.dumps(dataclasses.asdict(self) | {"method": self.build_method_settings()}))

    def build_method_settings(self) -> dict[str, Any]:
        return {"name": self.method["name"], **dataclasses.asdict(self.build_method())}

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:16]


def build_method(name: str, /, **knobs: Any) -> Any:
    """A method by name, its knobs checked: a typo is an error with a suggestion."""
    return strict(get("methods", name), knobs, f"method {name}")


def check_keywords(kind: Any, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings in the types that the constructor of a plug-in takes. Raises ValueError, as `strict` does."""
    parameters, hints, typed = inspect.signature(kind).parameters, get_type_hints(kind.__init__), {}
    for key, value in settings.items():
        if key not in parameters:
            raise ValueError(_unknown(key, list(parameters), where))
        try:
            typed[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{where}: {key}: {_mistyped(error)}") from error
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            raise ValueError(f"{where}: the setting {key!r} is missing")
    return typed


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. Raises ValueError, naming the key, for anything that would be ignored or misread."""
    data = read(Path(path))
    for text in overrides:
        override(data, text)
    return parse(data, str(path))


def read(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file, its base merged underneath."""
    if not path.is_file():
        raise ValueError(f"there is no recipe {path}; `lithe list recipes` shows those shipped")
    data = _mapping(path)
    base = data.pop("base", None)
    if base is None:
        return data
    beside = path.parent / str(base)
    under = _mapping(beside) if beside.is_file() else {"base": base}
    if "base" in under:
        raise ValueError(f"{path}: base {base!r} must be a recipe beside it that has no base of its own")
    return merge(under, data)


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text()
    if len(text.splitlines()) > LINES:
        raise ValueError(
            f"{path} has {len(text.splitlines())} lines; a recipe has at most {LINES}: move shared parts to a base"
        )
    data = _yaml(text, str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a mapping with the keys name, teacher, method, data, train")
    return data


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter: a date that is none
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, mapping by mapping; a method with another name replaces the whole method."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if both and not (key == "method" and value.get("name", merged[key].get("name")) != merged[key].get("name")):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def override(data: dict[str, Any], text: str) -> None:
    """Apply `a.b=value` in place; the value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"{text!r} is not an override; write it as section.key=value, e.g. method.keep=6")
    *parents, last = path.split(".")
    here: Any = data
    for name in parents:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise ValueError(f"override {text!r}: {name!r} is a value, not a section")
    here[last] = _yaml(value, f"the value in {text!r}")


def parse(data: dict[str, Any], where: str) -> Recipe:
    """A Recipe from plain data, every section strict."""
    sections = {"teacher": TeacherSource, "train": Train, "gate": Gate}
    values: dict[str, Any] = dict(data)
    for key, kind in sections.items():
        if values.get(key) is not None:
            values[key] = strict(kind, values[key], f"{where}: {key}")
    for key, folder in (("method", "methods"), ("data", "data")):
        if key in values and (not isinstance(values[key], dict) or "name" not in values[key]):
            raise ValueError(f"{where}: {key} needs a name; one of {', '.join(names(folder))}")
    recipe: Recipe = strict(Recipe, values, where)
    teacher = recipe.teacher
    if (teacher.source is None) == (teacher.preset is None):
        raise ValueError(f"{where}: teacher needs either source (a policy) or family and preset (random weights)")
    if teacher.source is not None and (teacher.family or teacher.seed or teacher.settings):
        raise ValueError(f"{where}: teacher.source is a policy as it is: leave out family, seed and settings")
    recipe.build_method()
    settings = {k: v for k, v in recipe.data.items() if k != "name"}
    check_keywords(get("data", recipe.data["name"]), settings, f"{where}: data")
    return recipe


def strict(kind: type, values: Any, where: str) -> Any:
    """A dataclass from a mapping. Raises ValueError for unknown, missing or mistyped keys, with a suggestion."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of settings, not {values!r}")
    known, hints = [f.name for f in dataclasses.fields(kind)], get_type_hints(kind)
    for key, value in values.items():
        if key not in known:
            raise ValueError(_unknown(key, known, where))
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values = {**values, key: strict(hints[key], value, f"{where}: {key}")}
    plain = {k: v for k, v in values.items() if not dataclasses.is_dataclass(v)}
    ready: dict[str, Any] = {k: v for k, v in values.items() if dataclasses.is_dataclass(v)}
    try:
        made = TypeAdapter(kind).validate_python({**plain, **{k: dataclasses.asdict(v) for k, v in ready.items()}})
    except ValidationError as error:
        raise ValueError(f"{where}: {_mistyped(error)}") from error
    return dataclasses.replace(made, **ready) if ready else made


def _unknown(key: Any, known: list[str], where: str) -> str:
    return f"{where}: there is no setting {key!r}{suggestion(str(key), known)}; it knows {', '.join(known)}"


def _mistyped(error: ValidationError) -> str:
    first = error.errors()[0]
    key = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
    return f"{key}{first['msg'].lower()} (found {first.get('input')!r})"
