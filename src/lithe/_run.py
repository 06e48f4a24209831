"""A training run's folder: metrics, checkpoints, the student so far. Everything a killed run needs to go on is here.

<out>/recipe.json            the resolved recipe and its hash; a run resumes only under the same one
<out>/metrics.jsonl          one line every `log_every` steps, always
<out>/checkpoints/00000500/  weights, optimiser state, averaged weights, position
<out>/student/               the policy folder, rewritten at every checkpoint
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lithe._disk import sha256, with_advice, write_atomically, write_folder
from lithe._shards import like

STATE, POSITION = "state.safetensors", "position.json"


class Run:
    """Reads and writes one run folder. Of several processes only the main one writes."""

    def __init__(self, out: str | Path, identity: dict[str, Any], keep: int = 2, main: bool = True):
        self.out, self.keep = Path(out), keep
        identity = json.loads(json.dumps(identity))  # tuples become lists, as on disk
        known = self.out / "recipe.json"
        if known.exists() and _parsed(known) != identity:
            raise ValueError(f"{self.out} holds a run of another recipe: choose another --out, or delete that folder")
        if main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps(identity, indent=1).encode())

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in (self.out / "checkpoints").glob("[0-9]*") if (p / POSITION).is_file())

    def save(self, step: int, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        """Write one checkpoint beside the others, then drop the oldest beyond `keep`."""

        def fill(stage: Path) -> None:
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, stage / STATE)
            place = {"step": step, **position}
            (stage / POSITION).write_text(json.dumps({**place, "sha256": _digest(stage, place)}))

        write_folder(self._folder(step), fill)
        for old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(old)

    def last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and position of the newest sound checkpoint, or None; see `newest`."""
        step = self.newest()
        return None if step < 0 else self.read(step)

    def newest(self) -> int:
        """Step of the newest sound checkpoint, -1 for none. Later metrics are dropped: those steps will be run again.

        Raises ValueError when there are checkpoints and all of them are damaged.
        """
        found = self.checkpoints()
        for folder in reversed(found):
            if _sound(folder):
                step = json.loads((folder / POSITION).read_text())["step"]
                self._forget(step)
                return step
            print(f"lithe: {folder} is damaged; going on from the checkpoint before it", file=sys.stderr)
        if found:
            raise ValueError(f"all checkpoints in {self.out} are damaged: delete that folder and start again")
        self._forget(0)
        return -1

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and position of the checkpoint of a step, which the main process found sound."""
        folder = self._folder(step)
        if not folder.is_dir():
            raise ValueError(f"this process does not see {folder}: choose an --out on a disk that all machines share")
        stored = load_file(folder / STATE)
        position = json.loads((folder / POSITION).read_text())
        return {key: tensor.clone() for key, tensor in stored.items()}, position  # aligned, as in checkpoint.py

    def _folder(self, step: int) -> Path:
        return self.out / "checkpoints" / f"{step:08d}"

    def log(self, line: dict[str, Any]) -> None:
        """Append one line of metrics."""
        path = self.out / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise with_advice(error, path) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line so far; a line torn by a kill is left out."""
        path, lines = self.out / "metrics.jsonl", []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # only the last line can be torn, and its steps are run again
        return lines

    def _forget(self, step: int) -> None:
        kept = [json.dumps(line) for line in self.metrics() if line["step"] <= step]
        write_atomically(self.out / "metrics.jsonl", "".join(f"{line}\n" for line in kept).encode())


def _sound(folder: Path) -> bool:
    """Whether a checkpoint is as it was written."""
    position = _parsed(folder / POSITION)
    if not isinstance(position, dict) or not (folder / STATE).is_file():
        return False
    digest = position.pop("sha256", None)
    return digest in (None, _digest(folder, position))  # the first version wrote none


def _digest(folder: Path, place: dict[str, Any]) -> str:
    """Of the tensors and the position together."""
    return hashlib.sha256((sha256(folder / STATE) + json.dumps(place)).encode()).hexdigest()


def _parsed(path: Path) -> Any:
    """The JSON in a file, None where it is none."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def pack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a common prefix, for one flat file."""
    return {f"{prefix}/{key}": tensor for key, tensor in tensors.items()}


def unpack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors packed under `prefix`."""
    return {key[len(prefix) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's per-parameter state as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, in shards where the parameters are."""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        place = parameters[int(index)]
        state.setdefault(int(index), {})[key] = tensor if key == "step" else like(place, tensor)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
