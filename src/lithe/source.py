"""Where a checkpoint comes from: a local folder or a model hub, made safe to read.

A foreign folder is data and never code: no pickle is opened, nothing that a JSON file names is imported, no link leads
out of the folder, and only JSON and safetensors files are ever downloaded. Everything that families read of such a
folder goes through the functions below; each refuses with a ValueError that says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, processors
from torch import Tensor

WEIGHTS, TOKENIZER, SETTINGS = "model.safetensors", "tokenizer.json", "tokenizer_config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DOWNLOADED = ["*.json", "*.safetensors"]
NOT_DOWNLOADED = ["checkpoints/*", "training_state/*", "*optimizer*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py"]
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and what to call it."""

    folder: Path
    name: str  # as the user gave it
    revision: str | None  # the commit, for a hub id


def resolve(source: str | Path, revision: str | None = None, without: Sequence[str] = tuple(NOT_DOWNLOADED)) -> Source:
    """The folder of a checkpoint, downloaded if need be. Raises ValueError when there is none or it is not safe.

    source: a local folder, or "owner/name" on the model hub. revision: a branch, tag or commit of a hub id. without:
    patterns of files that are not downloaded.
    """
    folder = Path(source)
    if folder.exists():
        if revision is not None:
            raise ValueError(f"{source} is a local folder, which has no revisions: leave revision={revision!r} out")
        if not folder.is_dir():
            raise ValueError(f"{source} is a file: name the folder that holds the policy")
        _check_links(folder)
        return Source(folder, str(source), None)
    if not HUB_ID.fullmatch(str(source)):
        raise ValueError(
            f"there is no folder {source}: it is not a lithe policy folder, it has no student.json; check the path"
        )
    folder = _download(str(source), revision, without)
    _check_links(folder)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return Source(folder, str(source), commit)


def _download(name: str, revision: str | None, without: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=list(without))
        )
    except (OSError, ValueError) as error:  # the hub's own errors are kinds of these
        at = f" at {revision!r}" if revision else ""
        raise ValueError(
            f"there is no folder {name} here, and the model hub did not give {name}{at} ({first_line(error)}): check "
            "the name; log in if it is private; without a network, name a local folder"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_links(folder: Path) -> None:
    """Raises ValueError for a symbolic link out of the folder; a hub cache links into its own blobs, which is fine."""
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    for path in folder.rglob("*"):
        if path.is_symlink():
            target = path.resolve()
            if not any(target.is_relative_to(place) for place in allowed):
                raise ValueError(f"{path} is a link out of its folder, to {target}: put the file itself there")


# -- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that names no code to run. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the policy folder is incomplete, fetch it again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested without end
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not hold a JSON object: fetch it again")
    _refuse_code(data, path)
    return data


def _refuse_code(value: Any, path: Path) -> None:
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "auto_map" or (key == "trust_remote_code" and inner):
            raise ValueError(f"{path} asks to run code that comes with the policy ({key}); lithe never does: remove it")
        _refuse_code(inner, path)
    for inner in value if isinstance(value, list) else ():
        _refuse_code(inner, path)


# -- tensors ---------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> Path:
    """The one file of weights. Raises ValueError when there is none, or only what lithe does not open."""
    path = folder / WEIGHTS
    if path.is_file():
        return path
    if (folder / f"{WEIGHTS}.index.json").exists():
        raise ValueError(f"{folder} holds its weights in several files; lithe reads one {WEIGHTS}: merge them first")
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} has no {WEIGHTS}, only {pickles[0]}: that is a pickle, which can run any code when it is "
            "opened, and lithe opens none; convert it to safetensors where you trust it"
        )
    raise ValueError(f"{path} is missing: the policy folder is incomplete, fetch it again")


def stream(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a safetensors file, one after the other. Raises ValueError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing, truncated or damaged ({error}): fetch it again") from error


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every stored key and its shape, without reading any values. Raises ValueError for a damaged file."""
    path = weights(folder)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): fetch it again") from error


# -- tokenizer -------------------------------------------------------------------------------------------------------


def tokenizer(folder: Path, name: str | None) -> Tokenizer:
    """The tokenizer in `folder`, else the one called `name`: a local folder or a hub id. Raises ValueError.

    It comes without padding and truncation. As in transformers 5, `add_bos_token` and `add_eos_token` of a
    tokenizer_config.json beside it overrule what tokenizer.json says about them.
    """
    home = folder if (folder / TOKENIZER).is_file() else None
    if home is None and name and Path(name).is_dir():
        home = Path(name)
    path, settings = (home / TOKENIZER, home / SETTINGS) if home else _fetch_tokenizer(folder, name)
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"{path} cannot be read ({error}): fetch the tokenizer again") from error
    made.no_padding()
    made.no_truncation()
    if settings is not None and settings.is_file():
        _add_ends(made, read_json(settings), settings)
    return made


def _fetch_tokenizer(folder: Path, name: str | None) -> tuple[Path, Path | None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    put = f"put its {TOKENIZER} and {SETTINGS} into {folder}"
    if not name:
        raise ValueError(f"{folder} neither holds nor names a tokenizer: {put}")
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"{folder} names the tokenizer {name!r}, which is neither here nor a hub id: {put}")
    try:
        path = Path(hf_hub_download(name, TOKENIZER))
        try:
            return path, Path(hf_hub_download(name, SETTINGS))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            return path, None  # the hub says that this tokenizer has no settings
    except (OSError, ValueError) as error:  # the hub's own errors are kinds of these
        raise ValueError(
            f"the policy in {folder} needs the tokenizer of {name}, which is not on this machine and could not be "
            f"fetched ({first_line(error)}): accept its terms and log in on the model hub, or {put}"
        ) from error


def _add_ends(made: Tokenizer, settings: dict[str, Any], path: Path) -> None:
    if "add_bos_token" not in settings and "add_eos_token" not in settings:
        return
    ends = {}
    for which in ("bos", "eos"):
        token = settings.get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if settings.get(f"add_{which}_token") and token:
            if made.token_to_id(token) is None:
                raise ValueError(f"{path} adds {token!r} to every prompt, a word that {TOKENIZER} does not know")
            ends[which] = token
    single = " ".join(f"{word}:0" for word in (ends.get("bos"), "$A", ends.get("eos")) if word)
    special = [(token, made.token_to_id(token)) for token in ends.values()]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
