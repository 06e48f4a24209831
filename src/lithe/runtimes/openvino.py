"""The packed form exported to ONNX and executed by OpenVINO on the CPU, in float32 or, asked for, in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from lithe.families.base import Family
from lithe.runtimes._exported import Engine, Exported
from lithe.runtimes._fast import LEAST_COSINE


class Openvino(Exported):
    """half: let it multiply in bfloat16 where the CPU can. Else as `onnx`, with OpenVINO in place of ONNX Runtime."""

    name: ClassVar[str] = "openvino"
    needs: ClassVar[tuple[str, ...]] = ("openvino",)

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, half: bool = False, **settings: Any):
        self.half = half
        super().__init__(model, steps, seed, **settings)

    @property
    def title(self) -> str:
        return f"{self.name}-half" if self.half else self.name

    @property
    def least_cosine(self) -> float | None:  # type: ignore[override]
        return LEAST_COSINE if self.half else None

    def open(self, path: Path, inputs: Sequence[str]) -> Engine:
        import openvino

        core: Any = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if self.half else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled: Any = core.compile_model(core.read_model(path), "CPU", settings)
        # a port has other names as well, of operations that were folded into it
        used = [next(name for name in inputs if name in port.get_names()) for port in compiled.inputs]
        return lambda arrays: [found.copy() for found in compiled([arrays[name] for name in used]).to_tuple()]
