#!/usr/bin/env python
"""The speed bench of a GPU: full-size pi0.5 with random weights, 3 views, 10 steps, bf16, in every runtime it can have.

`make gpu` runs it after the tests of tests/gpu. Writes results/<device>/pi05-full.bench.json, also when a runtime could
not be attached, which is then the exit status. `--device cpu --preset mini` proves the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lithe import bench, registry, result, surgery
from lithe.bench import load, table
from lithe.surgery import KeepLayers

TARGETS = {18: 12.7, 6: 5.0}  # ms at p50, on an H200: twice the floor
RUNTIMES = {
    "cuda": ("eager", "packed", "compiled", "cudagraph", "cudagraph-fused", "fp8"),
    "cpu": ("eager", "packed"),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--device", default="cuda", choices=tuple(RUNTIMES))
    words.add_argument("--preset", default="full")
    words.add_argument("--layers", default="18,6")
    words.add_argument("--runs", type=int, default=50)
    words.add_argument("--out", type=Path, help="default: results/<device>/pi05-<preset>.bench.json")
    asked = words.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no NVIDIA GPU here; run `make gpu` where nvidia-smi shows one")
    console = Console(width=150)
    layers = [int(n) for n in asked.layers.split(",")]
    document, left_out = measured(asked.device, asked.preset, layers, asked.runs)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    place = "-".join(re.findall("[a-z0-9]+", name.lower().removeprefix("nvidia ")))
    path = asked.out or Path("results") / place / f"pi05-{asked.preset}.bench.json"
    result.save(document, path)
    console.print(table(document))
    console.print(f"written to {path}")
    if asked.preset == "full" and "h200" in name.lower():
        console.print(*verdicts(document["rows"]), sep="\n")
    if left_out:
        raise SystemExit("\n".join(("gpu: could not be attached:", *left_out)))


def measured(device: str, preset: str, layers: list[int], runs: int) -> tuple[dict[str, Any], list[str]]:
    """One interleaved run of all depths in all runtimes, and what could not be attached, with the reason."""
    model = load(f"pi05:{preset}", device, "bfloat16", max(layers)).eval()
    names, lanes, left_out = [], [], []
    for depth in layers:
        shallow = surgery.cut(model, [KeepLayers("trunk", tuple(range(depth)))]).eval()
        for runtime in RUNTIMES[device]:
            kind: Any = registry.get("runtimes", runtime.removesuffix("-fused"))
            try:
                lanes.append(kind(shallow, **({"fuse": True} if runtime.endswith("-fused") else {})))
                names.append(f"pi05-L{depth}/{runtime}")
            except ValueError as error:
                left_out.append(f"pi05-L{depth}/{runtime}: {error}")
    return bench(lanes, names=names, runs=runs, warmup=10, baseline=names[0]), left_out


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """The best runtime of every depth that has a target, which is one for bfloat16."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["runtime"] == "fp8":
            continue
        if row["depth"] not in best or row["latency_ms"]["p50"] < best[row["depth"]]["latency_ms"]["p50"]:
            best[row["depth"]] = row
    judged = [(row["policy"], row["latency_ms"]["p50"], TARGETS[n]) for n, row in best.items() if n in TARGETS]
    return [f"{name}: {p50:.2f} ms, target {aim}: {'met' if p50 <= aim else 'NOT MET'}" for name, p50, aim in judged]


if __name__ == "__main__":
    main()
