"""What a policy does with fixed inputs, as one hash; run as a script it answers for policies loaded in another process.

The script reads folders from standard input and forks for each, so that every answer comes from a process that has
never seen a model, without paying for the imports again.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lithe import checkpoint, registry
from lithe.families.base import Family
from lithe.runtimes.eager import Eager
from lithe.types import Observation, Spec


def observation(spec: Spec, seed: int = 0) -> Observation:
    """Random pictures and state in the units of the data."""
    rng = np.random.default_rng(seed)
    pictures = {f"observation.images.{c}": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for c in spec.cameras}
    state = rng.uniform(-1, 1, spec.state_dim).astype(np.float32)
    return {**pictures, "observation.state": state, "task": "reach the red block"}


def actions(model: Family) -> list[np.ndarray]:
    """Chunks from example inputs and, through the preprocessing, from an observation."""
    noise = model.noise(2, torch.Generator().manual_seed(5))
    return [model.act(model.example(2), noise).numpy(), Eager(model, seed=3).infer(observation(model.spec))]


def fingerprint(model: Family) -> str:
    return hashlib.sha256(b"".join(chunk.tobytes() for chunk in actions(model))).hexdigest()


@functools.cache
def _server() -> Any:
    source = Path(__file__).resolve().parents[2] / "src"
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )

    def close() -> None:
        server.communicate()

    atexit.register(close)
    return server


def elsewhere(folder: Path) -> str:
    """The fingerprint of the policy in `folder`, taken in a fresh process; or that this failed."""
    server = _server()
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    return server.stdout.readline().strip()


def _serve() -> None:
    torch.set_num_threads(1)
    for name in registry.names("families"):
        registry.get("families", name)
    for line in sys.stdin:
        if os.fork() == 0:
            status = 1
            try:
                print(fingerprint(checkpoint.load(line.strip())), flush=True)
                status = 0
            finally:
                os._exit(status)
        if os.wait()[1]:
            print("the fresh process failed", flush=True)


if __name__ == "__main__":
    _serve()
