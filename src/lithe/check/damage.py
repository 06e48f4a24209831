"""`lithe check`, first part: can the files of a LeRobotDataset v3 be read, and is in them what should be?

Reads the metadata and every column without pictures. Nothing here stops at the first problem: what can be read is
handed on, with the mark that something is missing. Whether the parts agree with each other is `order.py`'s question.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lithe.check.findings import Findings, listed
from lithe.data._cache import arrow, data_files, episode_files, inside, sentences
from lithe.data.lerobot import VECTORS, camera_names, vectors

AGAIN = "download the data set again, or restore this file from where it was recorded"
COUNTERS = ("index", "episode_index", "frame_index", "timestamp", "task_index")
BOUNDS = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
NEEDED: dict[str, Any] = dict.fromkeys(("total_frames", "total_episodes", "total_tasks"), int)
NEEDED |= {"features": dict, "fps": int | float, "data_path": str}


@dataclass
class Contents:
    """What could be read. `whole`: every frame the metadata promises is there, in its place."""

    root: Path
    info: dict[str, Any]
    tasks: dict[int, str] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)  # by episode_index
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    files: list[tuple[Path, int]] = field(default_factory=list)  # readable data files and their rows, in order
    whole: bool = True

    @property
    def cameras(self) -> tuple[str, ...]:
        return camera_names(self.info)

    def place(self, row: int) -> dict[str, Any]:
        """File, episode and frame of a row of `columns`, for a finding."""
        at: dict[str, Any] = {"frame": row}
        for path, rows in self.files:
            if row < rows:
                at["file"] = path.relative_to(self.root)
                break
            row -= rows
        if "episode_index" in self.columns:
            at["episode"] = self.columns["episode_index"][at["frame"]]
        return at


def read(root: Path, found: Findings) -> Contents | None:
    """Everything but pictures. None when there is too little to go on with."""
    info = _info(root, found)
    if info is None:
        return None
    contents = Contents(root, info)
    _read_tasks(contents, found)
    _read_episodes(contents, found)
    _read_columns(contents, found)
    return contents


def _info(root: Path, found: Findings) -> dict[str, Any] | None:
    path, where = root / "meta" / "info.json", {"file": "meta/info.json"}
    if not path.is_file():
        found.error("info", f"{root} is not a LeRobotDataset: it has no meta/info.json", "check the path", **where)
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found.error("info", f"meta/info.json is not valid JSON ({error})", AGAIN, **where)
        return None
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not str(version).startswith("v3"):
        fix = "convert it with lerobot's convert_dataset_v21_to_v30"
        found.error("info", f"this is a LeRobotDataset {version}, lithe reads v3", fix, **where)
        return None
    missing = [key for key, kind in NEEDED.items() if not isinstance(info.get(key), kind) or not info[key]]
    features = info["features"] if isinstance(info.get("features"), dict) else {}
    odd = [key for key, about in features.items() if not _described(about)]
    if odd:
        what = f"meta/info.json does not tell dtype and shape of {listed(odd)}"
        found.error("info", what, AGAIN, **where, feature=odd[0])
        return None
    if missing:
        found.error("info", f"meta/info.json has no {listed(missing)}, or says none", AGAIN, **where)
        return None
    lacking = [key for key in VECTORS if key not in info["features"]]
    for key in lacking:
        there = ", ".join(info["features"])
        fix = f"rename the feature that holds it; there are {there}"
        found.error("feature", f"the data set has no feature {key!r}", fix, **where, feature=key)
    if not camera_names(info):
        found.error("feature", "the data set has no camera", "record it with one: the policies look", **where)
    return None if lacking else info


def _described(about: Any) -> bool:
    shape = about.get("shape") if isinstance(about, dict) else None
    whole = isinstance(shape, list) and shape and all(isinstance(side, int) and side > 0 for side in shape)
    return bool(whole) and isinstance(about.get("dtype"), str)


def _read_tasks(contents: Contents, found: Findings) -> None:
    where = {"file": "meta/tasks.parquet"}
    try:
        contents.tasks = sentences(contents.root)
    except ValueError as error:
        found.error("tasks", str(error), AGAIN, **where)
        return
    blank = [index for index, text in contents.tasks.items() if not str(text or "").strip()]
    if blank:
        fix = "write the instruction of these episodes into meta/tasks.parquet"
        found.error("empty-instruction", f"task {listed(blank)} has no words", fix, **where, task=blank[0])


def _read_episodes(contents: Contents, found: Findings) -> None:
    """The episodes' metadata but their statistics."""
    paths = episode_files(contents.root)
    if not paths:
        contents.whole = False
        found.error("episodes", "there is no metadata about episodes", AGAIN, file="meta/episodes")
    for path in paths:
        table = read_columns(path, lambda name: not name.startswith("stats/"))
        lacking = [name for name in BOUNDS if isinstance(table, dict) and not _complete(table.get(name))]
        if isinstance(table, str) or lacking:
            contents.whole = False
            what = table if isinstance(table, str) else f"{path.name} has no numbers in {listed(lacking)}"
            found.error("episodes", what, AGAIN, file=path.relative_to(contents.root))
            continue
        lists = {name: column.to_pylist() for name, column in table.items()}
        contents.episodes += [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    contents.episodes.sort(key=lambda row: row["episode_index"])


def _complete(column: Any) -> bool:
    return column is not None and not column.null_count and arrow().types.is_integer(column.type)


def _read_columns(contents: Contents, found: Findings) -> None:
    """Every numeric column of every readable data file."""
    root, parts = contents.root, []
    promised = {data_path(contents, row) for row in contents.episodes}
    present = set(data_files(root))
    for path in sorted(promised - present):
        contents.whole = False
        lost = [row["episode_index"] for row in contents.episodes if data_path(contents, row) == path]
        what = f"{path.relative_to(root)} is missing; it holds episodes {listed(lost)}"
        found.error("data-file", what, AGAIN, file=path.relative_to(root), episode=lost[0])
    for path in data_files(root):
        if promised and path not in promised:
            fix = "delete the file, or restore meta/episodes"
            what = f"no episode lies in {path.relative_to(root)}"
            found.warning("data-file", what, fix, file=path.relative_to(root))
            contents.whole = False
            continue
        part = _read_part(contents, path, found)
        if part is None:
            contents.whole = False
        else:
            parts.append(part)
            contents.files.append((path, len(part["index"])))
    if parts:
        widths = {key: {part[key].shape[1:] for part in parts} for key in parts[0]}
        contents.columns = {
            key: np.concatenate([part[key] for part in parts]) for key in widths if len(widths[key]) == 1
        }


def data_path(contents: Contents, row: dict[str, Any]) -> Path:
    """The data file that holds an episode."""
    place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    return inside(contents.root, contents.info["data_path"], **place)


def _read_part(contents: Contents, path: Path, found: Findings) -> dict[str, np.ndarray] | None:
    """The columns of one data file; None when it cannot be used."""
    file, wanted = path.relative_to(contents.root), (*VECTORS, *COUNTERS)
    table = read_columns(path, lambda name: name in wanted)
    if isinstance(table, str):
        fix = "a crash while recording leaves such a file: restore it, or leave out the episodes it holds"
        found.error("data-file", table, fix, file=file)
        return None
    lacking = [key for key in wanted if key not in table]
    lacking += [key for key in COUNTERS[:3] + COUNTERS[4:] if key in table and not _complete(table[key])]
    if lacking:
        found.error(
            "column", f"{file} has no numbers in the column {listed(lacking)}", AGAIN, file=file, feature=lacking[0]
        )
        return None
    part: dict[str, np.ndarray] = {}
    for key in wanted:
        try:
            values = vectors(table[key], f"{key!r}")
        except ValueError as error:
            found.error("column", f"{file}: {error}", AGAIN, file=file, feature=key)
            return None
        shape = tuple(contents.info["features"].get(key, {}).get("shape") or values.shape[1:])
        if key in VECTORS and values.shape[1] != int(np.prod(shape)):
            what = f"{key} has {values.shape[1]} numbers a frame, meta/info.json says {list(shape)}"
            found.error("dimensions", what, "correct meta/info.json, or record the data again", file=file, feature=key)
        part[key] = values if key in VECTORS else table[key].to_numpy()
    return part


def read_columns(path: Path, wanted: Any) -> dict[str, Any] | str:
    """The columns of a Parquet file whose names are `wanted`, or a sentence about why it cannot be read."""
    pyarrow = arrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=[name for name in file.schema_arrow.names if wanted(name)])
    except (OSError, pyarrow.ArrowException) as error:
        return f"{path.name} is truncated or damaged ({str(error).splitlines()[0]})"
    return {name: table[name] for name in table.column_names}
