"""`lithe explain`: what a method would do to a teacher, before any weight is touched.

Layers kept per stack, parameters, FLOPs and bytes per component and chunk, what each stage trains, and the floor ratio
to expect on common hardware. Everything is counted on a copy on the meta device, which has shapes and no storage: the
real cut is replayed there, so these are the numbers of the model that `distill` will make. Nothing is measured.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lithe import api, result, surgery
from lithe._tables import explain_table
from lithe.families.base import Family
from lithe.methods.base import Method
from lithe.types import Cost

table = explain_table
# Dense bf16 FLOP/s and bytes/s. H200: what practice reaches; the others: data sheets (Thor and Orin derived from sparse
# rates, and probably high). Floors on them are bounds to compare cuts with, never forecasts.
MACHINES = {
    "H200": (790e12, 4300e9),
    "RTX 4090": (165.2e12, 1008e9),
    "RTX 5090": (209.5e12, 1792e9),
    "Jetson Thor": (258e12, 273e9),
    "Jetson Orin 64": (42.5e12, 204.8e9),
}


@dataclass(frozen=True)
class Explanation:
    """A Result of kind "explain"; `str()` of it is the readable page."""

    document: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The teacher, and with a method the student."""
        return self.document["rows"]

    def __str__(self) -> str:
        from rich.console import Console

        page = io.StringIO()
        Console(file=page, width=110).print(table(self.document))
        return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def explain(
    teacher: Family | str | Path,
    method: Method | None = None,
    views: int | None = None,
    text: int | None = None,
    steps: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    freeze: Sequence[str] = (),
    machines: dict[str, tuple[float, float]] | None = None,
) -> Explanation:
    """Before and after, from shapes alone.

    teacher: a policy folder of lithe, LeRobot or openpi or a hub id (of whose weights names and shapes are read at
    most), "family:preset", or a loaded family. method: None describes the teacher only. views, text (prompt tokens,
    padding included), steps: of the chunk that is counted (None = the model's own). dtype: of the weights that are
    streamed. freeze: parameter prefixes that the recipe freezes. machines: {name: (FLOP/s, bytes/s)} for the floors,
    such as what `measure.ceilings` found here.

    Raises ValueError for a cut this teacher does not allow, or a stage that trains parameters nobody has.
    """
    before = shapes(teacher).to(dtype)
    after = copy.deepcopy(before)
    chunk: dict[str, Any] = {"views": views, "text": text, "steps": steps}
    machines = MACHINES if machines is None else machines
    rows = [_row("teacher", before, before.cost(**chunk), machines, _origins(before))]
    settings = {k: v for k, v in chunk.items() if v is not None} | {"batch": 1, "dtype": str(dtype)[6:]}
    if method:
        ops, origins = method.cut(teacher if isinstance(teacher, Family) else before), _origins(after)
        surgery.replay(after, ops)
        rows.append(_row("student", after, after.cost(**chunk), machines, origins))
        rows[1]["ops"] = [surgery.dump(op) for op in ops]
        rows[1]["ratio"] = _ratio(*rows)
        rows[1]["stages"] = _stages(method, before, after, tuple(freeze))
        settings |= {"method": type(method).__name__, "paper": method.paper}
    return Explanation(result.make("explain", f"{before.name}-L{before.depth()}", settings, rows))


def shapes(source: Family | str | Path) -> Family:
    """The policy on the meta device: every name, shape and its history, no weights; loaded or wherever it is."""
    if isinstance(source, Family):
        tensors = (*source.named_parameters(), *source.named_buffers())
        return copy.deepcopy(source, memo={id(t): _like(t) for _, t in tensors})
    return api.skeleton(source)


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _origins(model: Family) -> dict[int, int]:
    """The number of every layer of every stack before surgery, by the layer's identity."""
    lists = [model.get_submodule(path) for stack in model.stacks for path in stack.paths]
    return {id(layer): i for layers in lists for i, layer in enumerate(layers.children())}


def _row(
    name: str, model: Family, cost: Cost, machines: dict[str, tuple[float, float]], origins: dict[int, int]
) -> dict[str, Any]:
    """Layers are told by their number in the teacher; one that surgery wrapped or made is -1."""
    paths = [path for stack in model.stacks for path in stack.paths]
    return {
        "policy": name,
        "depth": {stack.name: model.depth(stack.name) for stack in model.stacks},
        "layers": {
            path: [origins.get(id(layer), -1) for layer in model.get_submodule(path).children()] for path in paths
        },
        "parameters": cost.parameters,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "floor_ms": {at: _rounded(cost.floor_ms(*limits)) for at, limits in machines.items()},
    }


def _ratio(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """How many times less the student needs; "floor": how many times faster the machine's physics would let it be."""
    total = {key: sum(teacher[key].values()) / sum(student[key].values()) for key in ("parameters", "flops", "bytes")}
    floors = {at: sum(ms.values()) / sum(student["floor_ms"][at].values()) for at, ms in teacher["floor_ms"].items()}
    return {**_rounded(total), "floor": _rounded(floors)}


def _stages(method: Method, teacher: Family, student: Family, freeze: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each stage trains, by the trainer's own rule. Parameters under "aux" are trained and not shipped."""
    with torch.device("meta"):
        aux = method.aux(teacher)
    sizes = {name: p.numel() for name, p in student.named_parameters()}
    sizes |= {f"aux.{name}": p.numel() for name, p in aux.named_parameters()}
    told = []
    for stage in method.stages():
        for prefix in (*stage.train, *freeze):
            if not any(name.startswith(prefix) for name in sizes):
                known = sorted({name.split(".")[0] for name in sizes})
                raise ValueError(
                    f"stage {stage.name!r}: no parameter starts with {prefix!r}; there are {', '.join(known)}"
                )
        trained: dict[str, int] = {}
        for name, size in sizes.items():
            if name.startswith(stage.train) and not name.startswith(freeze):
                trained[name.split(".")[0]] = trained.get(name.split(".")[0], 0) + size
        plan = {"stage": stage.name, "share": stage.share, "lr": stage.lr, "train": list(stage.train)}
        told.append({**plan, "trains": trained, "parameters": sum(trained.values()), "of": sum(sizes.values())})
    return told


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in values.items()}
