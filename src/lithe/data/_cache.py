"""Decodes every picture of a LeRobotDataset once, into memory-mapped uint8 arrays beside the dataset.

`<root>/.lithe_cache/<fingerprint>/<camera>.npy`, each written under another name and renamed when complete: a killed
decoding leaves nothing that could be mistaken for a cache, and deleting the folder is always safe. It costs 12 kB a
64-pixel picture, about three times the PNGs; cameras keep their own sizes. Shapes: see data/base.py.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lithe.data import _video

PREFIX = "observation.images."
FORMAT = 1  # part of the fingerprint; raise it when decoding changes
BLOCK = 512  # pictures decoded at once
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)  # PIL's, for damaged data


def open_cache(root: Path, info: dict[str, Any], cameras: tuple[str, ...], parent: Path) -> dict[str, np.ndarray]:
    """One read-only memory map uint8 [N,Y,X,3] per camera, decoding first what is not there yet."""
    folder = parent / _fingerprint(root)
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        if not (folder / f"{camera}.npy").exists():
            _remove_orphans(folder)
            part = folder / f"{camera}.{os.getpid()}.part"
            _decode(root, info, camera, part)
            os.replace(part, folder / f"{camera}.npy")
    return {camera: np.load(folder / f"{camera}.npy", mmap_mode="r") for camera in cameras}


def _remove_orphans(folder: Path) -> None:
    """Deletes what killed processes left half decoded; another live process may be decoding at the same time."""
    for part in folder.glob("*.part"):
        if not _alive(int(part.name.split(".")[-2])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and belongs to someone else
        return True
    return True


def _fingerprint(root: Path) -> str:
    """Changes when metadata, statistics, or the size of any data or video file change."""
    digest = hashlib.sha256(f"lithe cache {FORMAT}".encode())
    digest.update((root / "meta" / "info.json").read_bytes())
    digest.update((root / "meta" / "stats.json").read_bytes())
    for path in sorted([*data_files(root), *(root / "videos").rglob("*.mp4")]):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _decode(root: Path, info: dict[str, Any], camera: str, target: Path) -> None:
    """Writes all frames of one camera to `target` as a .npy file."""
    from tqdm import tqdm

    key = feature_key(info, camera)
    frames = _video_frames if info["features"][key]["dtype"] == "video" else _image_frames
    total = info["total_frames"]
    maps, done = None, 0
    with tqdm(total=total, desc=f"decoding {camera}", unit="frame", disable=None) as bar:
        for first, pictures_NYXC in frames(root, info, key):
            if maps is None:
                shape = (total, *pictures_NYXC.shape[1:])
                _check_space(target.parent, shape, camera)
                maps = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
            if pictures_NYXC.shape[1:] != maps.shape[1:]:
                sizes = f"{pictures_NYXC.shape[1:3]} at frame {first}, {maps.shape[1:3]} before"
                raise ValueError(
                    f"{root}: the pictures of camera {camera} have several sizes ({sizes}); record it again"
                )
            maps[first : first + len(pictures_NYXC)] = pictures_NYXC
            done += len(pictures_NYXC)
            bar.update(len(pictures_NYXC))
    if maps is None or done != total:
        count = f"camera {camera} has {done} frames, meta/info.json says {total}"
        raise ValueError(f"{root}: {count}; download it again")
    maps.flush()


def feature_key(info: dict[str, Any], camera: str) -> str:
    """The feature of a camera: its name behind the usual prefix, or as it is where the data set does not use that."""
    return PREFIX + camera if PREFIX + camera in info["features"] else camera


def _check_space(folder: Path, shape: tuple[int, ...], camera: str) -> None:
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {folder}"
        raise ValueError(f"the decoded pictures of camera {camera} take {sizes}; give cache=<folder on a larger disk>")


def _image_frames(root: Path, info: dict[str, Any], key: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first frame, uint8 [N,Y,X,3]) from pictures stored in Parquet, BLOCK at a time."""
    parquet, first = arrow().parquet, 0
    with ThreadPoolExecutor() as pool:
        for path in data_files(root):
            for block in parquet.ParquetFile(path).iter_batches(batch_size=BLOCK, columns=[key]):
                encoded = block.column(0).field("bytes").to_pylist()
                pictures: list[np.ndarray] = []
                for found in pool.map(picture, encoded, chunksize=32):
                    if found is None or found.shape != (pictures or [found])[0].shape:
                        what = f"frame {first + len(pictures)} of {key} cannot be decoded or has another size"
                        raise ValueError(f"{path}: {what}; see `lithe check`, and download or record it again")
                    pictures.append(found)
                yield first, np.stack(pictures)
                first += len(pictures)


def picture(encoded: bytes | None) -> np.ndarray | None:
    """A compressed picture as uint8 [Y,X,3]; None for one that cannot be decoded."""
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(encoded or b"")).convert("RGB"))
    except (*BROKEN, Image.DecompressionBombError):
        return None


def _video_frames(root: Path, info: dict[str, Any], key: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first frame, uint8 [N,Y,X,3]) episode by episode; every video file is read once from front to back."""
    columns = ["dataset_from_index", "length", *(f"videos/{key}/{name}" for name in PLACE)]
    for path, rows in video_rows(root, info, key, read_table(episode_files(root), columns).to_pylist()).items():
        times = [t for row in rows for t in row["start_s"] + np.arange(row["length"]) / info["fps"]]
        pictures = _video.pictures(path, times, 0.5 / info["fps"])
        for row in rows:
            for done in range(0, row["length"], BLOCK):
                count = min(BLOCK, row["length"] - done)
                yield row["dataset_from_index"] + done, np.stack([next(pictures) for _ in range(count)])


PLACE = ("chunk_index", "file_index", "from_timestamp")


def video_rows(root: Path, info: dict[str, Any], key: str, rows: list[dict[str, Any]]) -> dict[Path, list[dict]]:
    """Episodes by the video file that holds them, in the file's order, each with its first time as `start_s`."""
    found: dict[Path, list[dict]] = {}
    for row in rows:
        chunk, file, start_s = (row[f"videos/{key}/{name}"] for name in PLACE)
        path = inside(root, info["video_path"], video_key=key, chunk_index=chunk, file_index=file)
        found.setdefault(path, []).append({**row, "start_s": start_s})
    return {path: sorted(found[path], key=lambda row: row["start_s"]) for path in sorted(found, key=_numbered)}


def inside(root: Path, template: str, **place: Any) -> Path:
    """A file that the metadata names. Raises ValueError for one outside of the data set's folder."""
    try:
        name = Path(template.format(**place))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{root}/meta/info.json: {template!r} is not a path template of version 3 ({error})"
        ) from error
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{root}/meta/info.json names {str(name)!r}, outside of the data set: correct its templates")
    return root / name


def data_files(root: Path) -> list[Path]:
    return sorted((root / "data").glob("chunk-*/file-*.parquet"), key=_numbered)


def episode_files(root: Path) -> list[Path]:
    return sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"), key=_numbered)


def _numbered(path: Path) -> list[int]:
    """chunk-1000 comes after chunk-999."""
    return [int(number) for number in re.findall(r"\d+", f"{path.parent.name}/{path.name}")]


def arrow() -> Any:
    """The module pyarrow, its Parquet part loaded. Raises ValueError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("reading a LeRobotDataset needs pyarrow: pip install 'lithe[lerobot]'") from error
    return pyarrow


def read_table(paths: list[Path], columns: list[str]) -> Any:
    """The chosen columns of all files, one after the other, as a pyarrow table."""
    pyarrow = arrow()
    return pyarrow.concat_tables([pyarrow.parquet.read_table(path, columns=columns) for path in paths])


def sentences(root: Path) -> dict[int, str]:
    """The instruction of every task, by its number. Raises ValueError when they cannot be read."""
    pyarrow, path = arrow(), root / "meta" / "tasks.parquet"
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is missing or damaged ({str(error).splitlines()[0]}); download it again") from error
    text = "task" if "task" in table.column_names else "__index_level_0__"  # as older versions called it
    if {text, "task_index"} - set(table.column_names):
        raise ValueError(f"{path} has the columns {', '.join(table.column_names)}, not task and task_index")
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
