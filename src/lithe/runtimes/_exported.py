"""The packed form as three ONNX graphs for each shape and route: one sees, one reads the prefix, one takes a step.

What another engine executes, with its own threads and its own fusions. What the flow time decides is an input of the
third graph, so that it is as large for ten steps as for one. Exporting takes up to a minute, once for each number of
views, text bucket and route, when that is first met; the files live as long as the runtime. A router that decides ahead
is asked in torch between the first and the second graph; one that decides on the way is refused.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lithe.families._packed import Feed
from lithe.families.base import Family
from lithe.runtimes._fast import Fast
from lithe.runtimes._recent import Recent
from lithe.types import Route

SHAPES, ROUTES = 4, 8  # graphs kept: shapes of observations, and routes of each of them
Engine = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Exported(Fast):
    """A subclass says which packages it `needs`, and opens a file with its engine.

    into: a folder in which the graphs stay, for other engines to read; without it they go with the runtime. Their
    names begin with a digest of the policy, so that several may share a folder.
    """

    compiles: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, into: str | Path | None = None):
        self.into = into
        super().__init__(model, steps, seed)

    @abstractmethod
    def open(self, path: Path, inputs: Sequence[str]) -> Engine:
        """The graph in an ONNX file with these inputs, ready to run: arrays by name in, arrays out in the file's order.
        The exporter leaves out inputs that change nothing."""

    def prepare(self, model: Family) -> None:
        missing = [name for name in ("onnx", "onnxscript", *self.needs) if find_spec(name) is None]
        if missing:
            raise ValueError(
                f"the runtime {self.name} needs {', '.join(missing)}: install lithe[{self.name}], or use packed"
            )
        dtype = next(model.parameters()).dtype
        if dtype != torch.float32:
            raise ValueError(
                f"the runtime {self.name} takes float32 policies, not {str(dtype)[6:]}: load it in float32"
            )
        self.refuse_on_the_way(model)
        self.shapes: Recent[Shape] = Recent(SHAPES)
        if self.into is None:
            self.label, self.home = "", Path(mkdtemp(prefix="lithe-onnx-"))
            weakref.finalize(self.shapes, shutil.rmtree, self.home, ignore_errors=True)  # with the last twin
        else:
            self.label, self.home = f"{digest(model)}-", Path(self.into)
            self.home.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def play(self, feed: Feed, noise_BHA: Tensor, trace: Callable[[str], Any] | None, route: Route | None) -> Tensor:
        mark = trace or (lambda part: None)
        shape = self.shapes.get(feed.key, lambda: Shape(self, feed))
        given = {"feed": feed, **shape.see({"feed": feed})}
        mark("vision")
        taken = self.form.choose(**given, memory=self.memory) if route is None else route
        read, step = shape.ways.get(taken.run, lambda: shape.way(taken, given, noise_BHA))
        found, chunk = read(given), noise_BHA
        mark("prefix")
        self.taken.append(taken)
        for i in range(self.form.steps):
            chunk = step({"chunk": chunk, "now": self.form.at(i), **found})["next"]
        mark("denoise")
        return chunk

    def export(self, name: str, function: Callable[[Any], Any], given: dict[str, Any]) -> Graph:
        """A function of a dictionary as a graph of this engine."""
        path = self.home / f"{self.label}{name}.onnx"
        made = write(function, given, path)
        return Graph(self.open(path, list(tensors(given))), made)


class Graph:
    """One exported part. template: something that it has made, in the shape of its answers."""

    def __init__(self, engine: Engine, template: dict[str, Any]):
        self.engine, self.template = engine, template

    def __call__(self, given: dict[str, Any]) -> Any:
        arrays = {name: x.contiguous().numpy() for name, x in tensors(given).items()}
        return rebuilt(self.template, [torch.from_numpy(made) for made in self.engine(arrays)])


class Shape:
    """The graphs for observations of one shape: one that sees, and two for every route taken."""

    def __init__(self, runtime: Exported, feed: Feed):
        self.runtime, self.form = runtime, runtime.form
        images, words = feed.batch.images_BVCYX, feed.batch.text_BT.shape[1]
        _, views, _, height, width = images.shape
        self.name = f"{views}-views-{height}x{width}-{str(images.dtype)[6:]}-{feed.empty}-empty-{words}-words"
        self.ways: Recent[tuple[Graph, Graph]] = Recent(ROUTES)
        self.see = runtime.export(f"{self.name}-see", self._see, {"feed": feed})

    def _see(self, given: Any) -> Any:
        x, valid = self.form.see(given["feed"], self.form.pieces)
        return {"x": x, "valid": valid}

    def way(self, route: Route, given: dict[str, Any], noise_BHA: Tensor) -> tuple[Graph, Graph]:
        """Graphs of the prefix and of a step for a route."""
        form, export = self.form, self.runtime.export

        def read(given: Any) -> Any:
            return {"read": form.read(**given, route=route, pieces=form.pieces)[0]}

        def step(given: Any) -> Any:
            return {"next": form.step(given["chunk"], given["now"], given["read"], form.pieces)}

        name = "-".join([self.name, "layers", *(str(i) for i, run in enumerate(route.run) if run)])
        reads = export(f"{name}-read", read, given)
        met = {"chunk": noise_BHA, "now": form.at(0), **reads.template}
        return reads, export(f"{name}-step-of-{form.steps}", step, met)


def digest(model: Family) -> str:
    """Eight characters for a policy: other weights or another configuration, other characters."""
    found = hashlib.sha256(repr(model.describe()).encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:8]


def write(function: Callable[[Any], Any], given: dict[str, Any], path: Path) -> Any:
    """The function as an ONNX file; returns what it makes of `given`. Inputs and outputs are called by their places in
    these two. Raises ValueError where the exporter gives up."""
    made = function(given)

    class Part(nn.Module):
        def forward(self, *found: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensors(function(rebuilt(given, [x.clone() for x in found]))).values())

    inputs = tensors(given)
    names: Any = {"input_names": list(inputs), "output_names": list(tensors(made))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own making
            torch.onnx.export(Part(), tuple(inputs.values()), path, dynamo=True, verbose=False, **names)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"exporting to ONNX failed: use the runtime packed ({error})") from error
    return made


def tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor of a value by its place in it, such as "read.caches.0.1"."""
    return dict(_walk(value, ""))


def _walk(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    inner = value if isinstance(value, dict) else {}
    if is_dataclass(value):
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, list | tuple):
        named: Any = value
        inner = dict(enumerate(value)) if type(value) in (list, tuple) else named._asdict()
    for name, part in inner.items():
        yield from _walk(part, f"{place}.{name}" if place else str(name))


def rebuilt(template: Any, given: Sequence[Tensor]) -> Any:
    """The template with these tensors in the places of its own."""
    source = iter(given)
    made = _filled(template, source)
    assert next(source, None) is None, "more tensors than places"
    return made


def _filled(template: Any, source: Iterator[Tensor]) -> Any:
    if isinstance(template, Tensor):
        return next(source)
    if is_dataclass(template) and not isinstance(template, type):
        return replace(template, **{f.name: _filled(getattr(template, f.name), source) for f in fields(template)})
    if isinstance(template, dict):
        return {name: _filled(part, source) for name, part in template.items()}
    if isinstance(template, list | tuple):
        made = [_filled(inner, source) for inner in template]
        return type(template)(made) if type(template) in (list, tuple) else type(template)(*made)
    return template


logging.getLogger("torch.onnx").setLevel(logging.WARNING)
