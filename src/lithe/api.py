"""The short names of the public API that build things: load, method, data, runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lithe import _home, checkpoint, recipe, registry
from lithe.families import _lerobot, _openpi
from lithe.families.base import Family
from lithe.recipe import TeacherSource
from lithe.source import read_json, resolve


def load(source: str | Path, revision: str | None = None) -> Family:
    """A policy from a folder or a model hub id, or fresh random weights from "family:preset" such as "pi:mini".

    A folder is one of lithe's own, a LeRobot policy (config.json with "type") or an openpi PyTorch checkpoint
    (model.safetensors beside assets). revision: branch, tag or commit of a hub id. Raises ValueError when there is no
    policy, when it is damaged, of an unknown kind or not safe to read, or when the preset does not exist.
    """
    family, colon, preset = str(source).partition(":")
    if colon and not Path(source).exists():
        return fresh(TeacherSource(family=family, preset=preset))
    place = resolve(source, revision)
    own = (place.folder / checkpoint.CARD).is_file()
    model: Any = checkpoint.load(place.folder) if own else _foreign(place.folder)
    model.origin = {"source": place.name, "revision": place.revision}
    return model


def _foreign(folder: Path) -> Family:
    """The policy of a folder that another project wrote."""
    try:
        return _recognised(folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: a setting in one of its JSON files is missing or of the wrong kind ({error!r}): fetch it again"
        ) from error


def _recognised(folder: Path) -> Family:
    if (folder / _lerobot.CONFIG).is_file() and "type" in read_json(folder / _lerobot.CONFIG):
        kind = _lerobot.read_config(folder)["type"]
        if kind == _home.TYPE:
            raise ValueError(f"{folder} is half a lithe policy folder: it has no {checkpoint.CARD}; fetch it again")
        families: list[Any] = [registry.get("families", name) for name in registry.names("families")]
        types = {kind: family for family in families for kind in family.lerobot_types}
        if kind in types:
            return types[kind].from_lerobot(_lerobot.read(folder))
        known = ", ".join(f"{name} ({family.name})" for name, family in types.items())
        raise ValueError(f"{folder} is a LeRobot policy of type {kind!r}, which lithe does not know; it knows {known}")
    if _openpi.recognise(folder):
        pi: Any = registry.get("families", "pi")
        return pi.from_openpi(folder)
    raise ValueError(
        f"{folder} is not a lithe policy folder: it has no {checkpoint.CARD}; it is not LeRobot's either (no "
        f"{_lerobot.CONFIG} with a type), nor openpi's (no weights beside assets/<id>/norm_stats.json): check the path"
    )


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
