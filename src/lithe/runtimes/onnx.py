"""The packed form exported to ONNX and executed by ONNX Runtime on the CPU. float32; see _exported.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from lithe.runtimes._exported import Engine, Exported


class Onnx(Exported):
    """As many threads as torch has when it is attached. Raises ValueError without onnxruntime, away from the CPU, for
    other types than float32, and for a router that decides on the way."""

    name: ClassVar[str] = "onnx"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def open(self, path: Path, inputs: Sequence[str]) -> Engine:
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # else its threads keep cores busy for a while after a graph, which torch then waits for
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        used = [one.name for one in session.get_inputs()]
        return lambda arrays: session.run(None, {name: arrays[name] for name in used})
