"""A policy folder on disk <-> a model. Strict both ways, no pickle, nothing is ever half written.

Layout: `student.json` (family, configuration before surgery, history, provenance, SHA-256 of every file),
`model.safetensors` (exactly the tensors of the model), and the family's side files. Loading builds the module on the
meta device, replays the history there, and only then reads weights; a missing, extra or misshaped tensor is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lithe import _home, registry, surgery
from lithe._disk import sha256, write_folder
from lithe.families.base import Family

FORMAT = 1
CARD, WEIGHTS = "student.json", "model.safetensors"


def save(model: Family, folder: str | Path, dtype: torch.dtype | None = None, **about: Any) -> Path:
    """Write `model` as a policy folder, replacing an older one only once the new one is complete.

    dtype: stored floating-point type of all but the router (None = as in memory). about: JSON-able provenance (method,
    recipe hash, metrics); where a loaded teacher came from (`model.origin`) is written in any case.
    """
    tensors = {key: _stored(key, tensor, dtype) for key, tensor in model.state_dict().items()}

    def put(path: Path) -> str:
        save_file(tensors, path)
        return sha256(path)

    return write(model, folder, put, **about)


def write(model: Family, folder: str | Path, put: Callable[[Path], str], **about: Any) -> Path:
    """As `save`, with weights that need not be in memory: `put` writes them into a file and returns its SHA-256."""

    def fill(stage: Path) -> None:
        digest = put(stage / WEIGHTS)
        model.save_extras(stage)
        card = {
            "format": FORMAT,
            "family": model.name,
            "config": model.describe(),
            "history": model.history,
            "sha256": digest,
            **({"origin": model.origin} if model.origin else {}),
            **about,
        }
        files = {path.name: sha256(path) for path in sorted(stage.iterdir()) if path.name != WEIGHTS}
        (stage / CARD).write_text(json.dumps({**card, "files": {**files, CARD: _digest(card)}}, indent=1) + "\n")
        _home.write(model, stage)  # after the checksums: LeRobot rewrites these files

    return write_folder(Path(folder), fill)


def load(source: str | Path, dtype: torch.dtype | None = torch.float32) -> Family:
    """The model in a policy folder. dtype: floating-point type in memory (None = as stored). Raises ValueError."""
    folder = Path(source)
    model = skeleton(folder)
    fill(model, read_weights(folder, read_card(folder)["sha256"]), str(folder), dtype)
    return model.eval()


def skeleton(folder: Path) -> Family:
    """The model of a policy folder on the meta device: every name and shape, its history replayed, no weights."""
    card = read_card(folder)
    family: Any = registry.get("families", card["family"])
    try:
        with torch.device("meta"):
            model: Family = family.blank(card["config"], folder)
        surgery.replay(model, [surgery.parse(op) for op in card["history"]])
        model.origin = card.get("origin")
    except (TypeError, KeyError, AttributeError, RuntimeError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}/{CARD} or a file beside it is damaged ({error}): fetch or save the policy again"
        ) from error
    return model


def read_card(folder: Path) -> dict[str, Any]:
    """`student.json`, checked. Raises ValueError for a folder that is not a policy of this version."""
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} is not a lithe policy folder: it has no {CARD}; check the path")
    try:
        card = json.loads((folder / CARD).read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{folder}/{CARD} is not valid JSON ({error}): fetch or save the policy again") from error
    card = card if isinstance(card, dict) else {}
    missing = [key for key in ("format", "family", "config", "history", "sha256") if key not in card]
    if missing or card["format"] != FORMAT:
        found = f"lacks {missing[0]!r}" if missing else f"has format {card['format']}, this version reads {FORMAT}"
        raise ValueError(f"{folder}/{CARD} {found}: save the policy again with this version of lithe")
    _verify(folder, card)
    return card


def _verify(folder: Path, card: dict[str, Any]) -> None:
    """Raises ValueError unless the card and the files beside it are as they were written."""
    files = listed(card)
    found = {path.name: sha256(path) for path in folder.iterdir() if path.name in files and path.is_file()}
    found[CARD] = _digest({key: value for key, value in card.items() if key != "files"})
    for name, digest in files.items():
        if found.get(name) != digest:
            raise ValueError(f"{folder / name} is missing, truncated or changed since it was saved: fetch it again")


def listed(card: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the card and of each file that was saved beside it; nothing in a card of the first version."""
    files = card.get("files")
    return files if isinstance(files, dict) else {}


def _digest(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def read_weights(folder: Path, digest: str) -> dict[str, torch.Tensor]:
    """All tensors of a policy folder, after its checksum was verified."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} is missing: the policy folder is incomplete, fetch or save it again")
    if sha256(path) != digest:
        raise ValueError(f"{path} is truncated or damaged (its SHA-256 is not the one in {CARD}): fetch it again")
    try:  # clones lie on aligned addresses: kernels choose by alignment, and the last bits of a result with it
        return {key: tensor.clone() for key, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}): fetch it again") from error


def fill(model: Family, tensors: dict[str, torch.Tensor], source: str, dtype: torch.dtype | None = None) -> None:
    """Give `model` exactly these tensors. Raises ValueError naming missing, extra and misshaped ones."""
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_fit(wanted, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, source)
    given = {key: _stored(key, tensor, dtype) for key, tensor in tensors.items()}
    model.load_state_dict(given, strict=True, assign=True)
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # a non-persistent buffer is derived, e.g. SigLIP's position ids
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, _derived(key, buffer))


def check_fit(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raises ValueError naming tensors that are missing, extra or misshaped, from their names and shapes."""
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "misshaped": sorted(k for k in wanted.keys() & found.keys() if wanted[k] != found[k]),
    }
    told = [f"{len(keys)} {what} tensors ({', '.join(keys[:3])})" for what, keys in problems.items() if keys]
    if told:
        raise ValueError(f"the weights in {source} do not fit the model: {'; '.join(told)}. Nothing was loaded")


def _derived(key: str, buffer: torch.Tensor) -> torch.Tensor:
    if key == "position_ids":
        return torch.arange(buffer.shape[-1]).expand(buffer.shape)
    raise AssertionError(f"the buffer {key!r} is neither stored nor known how to derive")


def _stored(key: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A router stays float32 whatever the rest is: with rounded weights it would take other ways."""
    tensor, dtype = tensor.detach(), torch.float32 if key.startswith("router.") else dtype
    return tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
