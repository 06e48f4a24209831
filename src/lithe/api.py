"""The short names of the public API that build things: load, skeleton, method, data, runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lithe import _home, checkpoint, recipe, registry
from lithe._disk import sha256
from lithe._preview import opened
from lithe.families import _lerobot, _openpi
from lithe.families._outline import Outline
from lithe.families.base import Family
from lithe.recipe import TeacherSource
from lithe.source import Source, read_json, resolve, weights


def load(source: str | Path, revision: str | None = None) -> Family:
    """A policy from a folder or a model hub id, or fresh random weights from "family:preset" such as "pi:mini".

    A folder is one of lithe's own, a LeRobot policy (config.json with "type") or an openpi PyTorch checkpoint
    (model.safetensors beside assets). revision: branch, tag or commit of a hub id. Raises ValueError when there is no
    policy, when it is damaged, of an unknown kind or not safe to read, or when the preset does not exist.
    """
    wanted = preset(source)
    if wanted is not None:
        return fresh(wanted)
    place = resolve(source, revision)
    own = (place.folder / checkpoint.CARD).is_file()
    return _marked(checkpoint.load(place.folder) if own else _foreign(place.folder).filled(), place)


def skeleton(source: str | Path, revision: str | None = None) -> Family:
    """The same policy on the meta device: every name and shape, its preprocessing and history, and no weights.

    No value of a weight is read, nor downloaded, however large the file. Raises ValueError as `load` does; of weights
    that another project wrote names and shapes are checked, and whether they are damaged is seen when they are read.
    """
    wanted = preset(source)
    if wanted is not None:
        with torch.device("meta"):
            return fresh(wanted)
    with opened(source, revision) as place:
        if (place.folder / checkpoint.CARD).is_file():
            return _marked(checkpoint.skeleton(place.folder), place)
        found = _foreign(place.folder)
        found.origins()
        return _marked(found.model, place)


def outline(source: str | Path, revision: str | None = None) -> Outline:
    """The policy on the meta device together with what its tensors are called in the file. Raises ValueError."""
    place = resolve(source, revision)
    if (place.folder / checkpoint.CARD).is_file():
        model = checkpoint.skeleton(place.folder)
        found = Outline(model, place.folder, {name: name for name in model.state_dict()}.get)
    else:
        found = _foreign(place.folder)
    _marked(found.model, place)
    return found


def digest(folder: Path) -> str:
    """The sha256 of a policy's weights, whoever saved them; for lithe's own the one that its card states."""
    if (folder / checkpoint.CARD).is_file():
        return str(checkpoint.read_card(folder)["sha256"])
    return sha256(weights(folder))


def preset(source: str | Path) -> TeacherSource | None:
    """What "family:preset" asks for, or "variant:preset" such as "pi05:full"; None for anything else."""
    name, colon, size = str(source).partition(":")
    if not colon or Path(source).exists():
        return None
    if name not in registry.names("families"):
        kinds: list[Any] = [registry.get("families", family) for family in registry.names("families")]
        for kind in kinds:
            if name in kind.lerobot_types:
                return TeacherSource(family=kind.name, preset=size, settings={"variant": name})
    return TeacherSource(family=name, preset=size)


def _marked(model: Family, place: Source) -> Family:
    """The model with where it came from. A policy that lithe saved remembers where its own teacher came from."""
    model.origin = model.origin or {"source": place.name, "revision": place.revision}
    return model


def _foreign(folder: Path) -> Outline:
    """The policy of a folder that another project wrote, before its weights are read."""
    try:
        return _recognised(folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: a setting in one of its JSON files is missing or of the wrong kind ({error!r}): fetch it again"
        ) from error


def _recognised(folder: Path) -> Outline:
    if (folder / _lerobot.CONFIG).is_file() and "type" in read_json(folder / _lerobot.CONFIG):
        kind = _lerobot.read_config(folder)["type"]
        if kind == _home.TYPE:
            raise ValueError(f"{folder} is half a lithe policy folder: it has no {checkpoint.CARD}; fetch it again")
        families: list[Any] = [registry.get("families", name) for name in registry.names("families")]
        types = {kind: family for family in families for kind in family.lerobot_types}
        if kind in types:
            return types[kind].outline(_lerobot.read(folder))
        known = ", ".join(f"{name} ({family.name})" for name, family in types.items())
        raise ValueError(f"{folder} is a LeRobot policy of type {kind!r}, which lithe does not know; it knows {known}")
    if _openpi.recognise(folder):
        pi: Any = registry.get("families", "pi")
        return pi.outline_openpi(folder)
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
