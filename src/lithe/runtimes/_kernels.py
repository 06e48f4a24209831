"""Pieces of a packed model through torch.compile: one graph for each kind of layer and shape, counted.

Layers of one kind share their graph, because a piece takes its weights as arguments; so do policies of equal widths,
whatever their depth. Nothing depends on the route. Every shape has a code object of its own: torch.compile keeps its
graphs by code object, and gives up on one that has met eight shapes.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Hashable
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import torch

from lithe.families._packed import Feed, PackedModel

KEPT = 64  # compiled pieces; the one unused for longest goes first


class Kernel:
    """One piece, compiled when it is first called; raises ValueError where that fails. graphs: how often that happened,
    more than 1 is a recompilation."""

    def __init__(self, piece: Callable[..., Any]):
        assert isinstance(piece, FunctionType)
        parts = piece.__globals__, piece.__name__, piece.__defaults__, piece.__closure__
        own = FunctionType(piece.__code__.replace(), *parts)
        self.graphs = 0
        self.run = torch.compile(own, backend=self._compile, dynamic=False, fullgraph=True)

    def _compile(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        settings: Any = import_module("torch._inductor.config")  # slow to import, so not before it is needed
        with settings.patch(compile_threads=1):  # no pool of processes for a few small graphs
            return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    def __call__(self, *tensors: Any) -> Any:
        try:
            return self.run(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(f"torch.compile failed on this machine: use the runtime packed ({error})") from error


def kernels(form: PackedModel, feed: Feed) -> dict[str, Kernel]:
    """The model's pieces for observations of this shape, compiled when they are first called."""
    shapes = (form.shape, form.dtype, form.device, feed.key)
    return {name: _kernel(piece, name, shapes) for name, piece in form.pieces.items()}


@functools.lru_cache(maxsize=KEPT)
def _kernel(piece: Callable[..., Any], name: str, shapes: Hashable) -> Kernel:
    """The compiled piece for these shapes, shared by every runtime of the process. name: the part that it plays."""
    return Kernel(piece)


def need_compiler(runtime: str, device: str) -> None:
    """Raises ValueError where torch.compile lacks what it needs on this kind of device."""
    if device == "cuda":
        missing = None if find_spec("triton") else "Triton"
    else:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        found = shutil.which(compiler)
        missing = None if found else f"a C++ compiler ({compiler} is not there; the variable CXX names another)"
    if missing:
        raise ValueError(f"the runtime {runtime} needs {missing}: install it, or use the runtime packed")
