"""`lithe cut`: a method's surgery on a policy's file. The teacher is never loaded, and what is dropped is never read.

The model is built on the meta device and cut there as a real one would be. Which of its tensors are left says which
stored ones are kept, and their bytes go from the teacher's file into the student's in the type they have. The folder is
the one that loading, cutting and saving would write, for the price of copying what is kept. The student is not trained:
`lithe distill` cuts and trains in one go. The checksum of a policy that lithe saved is not verified here, which would
mean reading all of it; every number that is kept must be finite instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from lithe import _ranges, api, checkpoint, result, surgery
from lithe.families._outline import Outline
from lithe.families.base import Family
from lithe.methods.base import Method
from lithe.source import weights
from lithe.surgery import Op


def cut(
    source: str | Path, method: Method | Sequence[Op], out: str | Path, revision: str | None = None
) -> dict[str, Any]:
    """Cut the policy at `source` into the policy folder `out`; a Result of kind "cut" with a row for either.

    source: a policy folder of lithe, LeRobot or openpi, or a hub id (at `revision`). method: whose surgery, or the ops
    themselves. out: replaced once the new folder is complete, if it holds an older policy that lithe saved.

    Raises ValueError for a source that `lithe.load` would refuse because of its names, shapes or settings, for kept
    numbers that are not finite, for a surgery that computes weights, and for an `out` that holds something else.
    """
    if api.preset(source) is not None:
        raise ValueError(f"{source} has random weights, which no file holds: explain it, or name a policy folder")
    outline, out = api.outline(source, revision), Path(out)
    _check_target(out, outline.folder)
    origins, path = outline.origins(), weights(outline.folder)
    stored = _ranges.ranges(path)
    rows = [_row("teacher", outline.model, [place.size for place in stored.values()])]
    ops = method.cut(outline.model) if isinstance(method, Method) else list(method)
    kept = operate(outline.model, ops)
    pieces = {name: _piece(outline, [stored[key] for key in origins[was]], was) for name, was in kept.items()}
    about = {"method": _settings(method)} if isinstance(method, Method) else {}
    checkpoint.write(outline.model, out, partial(_ranges.write, origin=path, pieces=pieces), **about)
    rows.append(_row("student", outline.model, [piece.size for piece in pieces.values()]))
    rows[1]["ops"] = [surgery.dump(op) for op in ops]
    settings = {"source": str(source), "revision": revision, "out": str(out), **about}
    settings = {key: value for key, value in settings.items() if value is not None}
    return result.make("cut", out.name, settings, rows)


def summary(document: dict[str, Any]) -> str:
    """The Result in a sentence or two."""
    teacher, student = document["rows"]
    layers = ", ".join(f"{n} of {teacher['depth'][name]} {name} layers" for name, n in student["depth"].items())
    sizes = [f"{sum(row['parameters'].values()) / 1e6:,.4g}" for row in (student, teacher)]
    stored = [f"{row['stored_bytes'] / 1e9:.3g}" for row in (student, teacher)]
    return (
        f"wrote {document['settings']['out']}: {layers}, {sizes[0]} of {sizes[1]} M parameters, {stored[0]} of "
        f"{stored[1]} GB. It is cut and not trained: time it with lithe bench, or let lithe distill cut and train."
    )


def operate(model: Family, ops: Sequence[Op]) -> dict[str, str]:
    """Cut `model`, on the meta device, in place; for each tensor that is left, its name then and its name before.

    Raises ValueError for ops that make tensors, change them or give one two names: on the meta device nobody would see
    what the values become.
    """
    before = model.state_dict(keep_vars=True)  # also holds on to what is dropped, so that no identity is used again
    names = {id(tensor): name for name, tensor in before.items()}
    with _Computing() as computing:
        surgery.replay(model, list(ops))
    after = model.state_dict(keep_vars=True)
    new = [name for name, tensor in after.items() if id(tensor) not in names]
    if computing.seen or new or len({id(tensor) for tensor in after.values()}) < len(after):
        what = f"makes {', '.join(new[:3])}" if new else f"calls {computing.seen[0]}" if computing.seen else "ties them"
        raise ValueError(
            f"this surgery does more to weights than to drop some (it {what}), and lithe cut only copies what a file "
            "holds: load the policy, use lithe.surgery.cut, and save it"
        )
    return {name: names[id(tensor)] for name, tensor in after.items()}


class _Computing(TorchDispatchMode):
    """Notes every tensor operation, also one behind `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _piece(outline: Outline, places: list[_ranges.Range], name: str) -> _ranges.Piece:
    """What becomes of the stored tensor that the teacher calls `name`; copies of it under other keys must be equal."""
    first, *copies = places
    path = weights(outline.folder)
    for other in copies:
        if not _ranges.equal(path, first, other):
            raise ValueError(
                f"{outline.folder}: {other.key} and {first.key} should be one tensor and differ: fetch it again"
            )
    if first.dtype not in _ranges.EXPONENTS and not (outline.folder / checkpoint.CARD).is_file():
        raise ValueError(
            f"{outline.folder}: {first.key} holds {first.dtype} and not floating-point numbers that lithe reads "
            f"({', '.join(_ranges.EXPONENTS)}): store them as such"
        )
    change = outline.convert.get(name)
    if change is None:
        return _ranges.Piece(first, first.shape)

    def made() -> np.ndarray:
        with safe_open(path, framework="pt") as file:
            return change(file.get_tensor(first.key)).contiguous().view(torch.uint8).numpy()

    return _ranges.Piece(first, tuple(change(torch.empty(first.shape, device="meta")).shape), made)


def _check_target(out: Path, folder: Path) -> None:
    """Raises ValueError where writing `out` would destroy something else than an older policy."""
    if folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the policy that is to be cut: write the student into another folder")
    holds = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if holds and not (out / checkpoint.CARD).is_file():
        raise ValueError(f"{out} holds something that is no policy of lithe: name a new folder, or empty it yourself")


def _settings(method: Method) -> dict[str, Any]:
    return {"name": type(method).__module__.rpartition(".")[2], **dataclasses.asdict(method)}


def _row(name: str, model: Family, sizes: Sequence[int]) -> dict[str, Any]:
    """stored_bytes: of all tensors in the file, those that no model needs included."""
    return {
        "policy": name,
        "depth": {stack.name: model.depth(stack.name) for stack in model.stacks},
        "parameters": model.cost().parameters,
        "stored_bytes": sum(sizes),
    }
