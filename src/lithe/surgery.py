"""Depth surgery: frozen ops applied to a copy of a model and written to its history, so that a cut can be replayed.

An op is data (JSON in, JSON out). Applying a list of ops never changes the teacher, and copies only the tensors that
survive. A student on disk is its family's configuration, this history, and weights: nothing else describes its shape.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lithe import registry

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Stack:
    """ModuleLists indexed in lockstep, and everything in the model that knows their depth."""

    name: str  # how users and recipes call it: "trunk", "vision"
    paths: tuple[str, ...]  # dotted paths of the ModuleLists; layer i of each belongs to layer i of the others
    counters: tuple[str, ...]  # dotted paths of attributes that hold the depth
    index: str | None = None  # attribute of a layer that holds its own position


class Op(Protocol):
    """One frozen, JSON-able edit."""

    def apply(self, model: Any) -> None: ...


@dataclass(frozen=True)
class KeepLayers:
    """Keep these layers of a stack, in this order, and renumber. `by_path` lets one of its ModuleLists keep others.

    `by_path` exists only to rebuild known mistakes as ablations (a trunk and an expert cut differently); both
    selections must be equally long.
    """

    stack: str
    layers: tuple[int, ...]
    by_path: dict[str, tuple[int, ...]] | None = None

    def apply(self, model: Any) -> None:
        stack = find_stack(model, self.stack)
        depth = stack_depth(model, stack)
        for path in stack.paths:
            keep = tuple((self.by_path or {}).get(path, self.layers))
            check_selection(keep, depth, len(self.layers), path)
            layers: Any = model.get_submodule(path)
            kept = nn.ModuleList(layers[i] for i in keep)
            for position, layer in enumerate(kept):
                if stack.index:
                    setattr(layer, stack.index, position)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, kept)
        for counter in stack.counters:
            parent, _, name = counter.rpartition(".")
            setattr(reach(model, parent), name, len(self.layers))


@dataclass(frozen=True)
class InstallRouter:
    """Give the model a router of this kind (`routers/`), with random weights from `seed`; the layers stay as they are.

    Cut before installing: a router is made for the depth that it finds.
    """

    kind: str
    settings: dict[str, Any]
    seed: int = 0

    def apply(self, model: Any) -> None:
        if model.router is not None:
            raise ValueError(f"this policy already has a router ({model.router.name}): take a teacher without one")
        kind: Any = registry.get("routers", self.kind)
        with torch.random.fork_rng(devices=[]), next(model.parameters()).device:
            torch.manual_seed(self.seed)
            model.router = kind(model.streams, **self.settings)


OPS: dict[str, type] = {"KeepLayers": KeepLayers, "InstallRouter": InstallRouter}


def check_selection(keep: tuple[int, ...], depth: int, expected: int, path: str) -> None:
    """Raises ValueError unless `keep` is a non-empty, strictly increasing choice of existing layers."""
    if not keep or len(keep) != expected:
        raise ValueError(
            f"{path}: keeps {len(keep)} layers where {expected} were expected; name the same number everywhere"
        )
    if list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= depth:
        raise ValueError(
            f"{path}: cannot keep layers {list(keep)} of {depth}; give increasing indices from 0 to {depth - 1}"
        )


def find_stack(model: Any, name: str) -> Stack:
    """The stack called `name`. Raises ValueError naming the stacks there are."""
    for stack in model.stacks:
        if stack.name == name:
            return stack
    raise ValueError(f"{type(model).__name__} has no stack {name!r}; it has {', '.join(s.name for s in model.stacks)}")


def stack_depth(model: Any, stack: Stack) -> int:
    """Layers in a stack; asserts that its lists and counters agree."""
    depths = {path: len(model.get_submodule(path)) for path in stack.paths}
    depths |= {counter: reach(model, counter) for counter in stack.counters}
    assert len(set(depths.values())) == 1, f"stack {stack.name} is out of step: {depths}"
    return next(iter(depths.values()))


def reach(root: Any, path: str) -> Any:
    """Follow a dotted attribute path; the empty path is the root itself."""
    for name in filter(None, path.split(".")):
        root = getattr(root, name)
    return root


def cut(model: Model, ops: list[Op]) -> Model:
    """A copy of `model` with `ops` applied and recorded; the original is untouched, dropped layers are never copied."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    student = copy.deepcopy(model, memo=dict(shared))  # the structure is copied, the tensors are not
    replay(student, ops)
    own: dict[int, Tensor] = {}  # a tied tensor is copied once and put back under all its names
    parameters, buffers = (named(remove_duplicate=False) for named in (student.named_parameters, student.named_buffers))
    for key, tensor in (*parameters, *buffers):
        if id(tensor) not in own:
            copied = tensor.detach().clone()
            own[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
        parent, _, name = key.rpartition(".")
        setattr(student.get_submodule(parent), name, own[id(tensor)])
    return student


def replay(model: Any, ops: list[Op]) -> None:
    """Apply ops to `model` itself and append them to its history; works on the meta device too."""
    for op in ops:
        op.apply(model)
        model.history = [*model.history, dump(op)]
        for stack in model.stacks:
            stack_depth(model, stack)


def dump(op: Op) -> dict[str, Any]:
    """An op as JSON-able data."""
    values = {k: v for k, v in asdict(op).items() if v is not None}  # type: ignore[call-overload]
    return {"op": type(op).__name__, **_plain(values)}


def parse(data: dict[str, Any]) -> Op:
    """The op written by `dump`. Raises ValueError for an op this version does not know."""
    values = dict(data)
    name = values.pop("op", None)
    if name not in OPS:
        raise ValueError(f"unknown surgery {name!r}; this version of lithe knows {', '.join(OPS)}: update lithe")
    return OPS[name](**_tuples(values))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
