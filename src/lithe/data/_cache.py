"""Decodes every picture of a LeRobotDataset once, into memory-mapped uint8 arrays beside the dataset.

`<root>/.lithe_cache/<fingerprint>/<camera>.npy`, each written under another name and renamed when complete: a killed
decoding leaves nothing that could be mistaken for a cache, and deleting the folder is always safe. It costs 12 kB a
64-pixel picture, about three times the PNGs. Shapes: see data/base.py.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "observation.images."
FORMAT = 1  # part of the fingerprint; raise it when decoding changes
BLOCK = 512  # pictures decoded at once


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

    feature = info["features"][PREFIX + camera]
    frames = _video_frames if feature["dtype"] == "video" else _image_frames
    total = info["total_frames"]
    maps, done = None, 0
    with tqdm(total=total, desc=f"decoding {camera}", unit="frame", disable=None) as bar:
        for first, pictures_NYXC in frames(root, info, PREFIX + camera):
            if maps is None:
                shape = (total, *pictures_NYXC.shape[1:])
                maps = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
            maps[first : first + len(pictures_NYXC)] = pictures_NYXC
            done += len(pictures_NYXC)
            bar.update(len(pictures_NYXC))
    if maps is None or done != total:
        count = f"camera {camera} has {done} frames, meta/info.json says {total}"
        raise ValueError(f"{root}: {count}; download it again")
    maps.flush()


def _image_frames(root: Path, info: dict[str, Any], key: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first frame, uint8 [N,Y,X,3]) from pictures stored in Parquet, BLOCK at a time."""
    import pyarrow.parquet as parquet

    first = 0
    with ThreadPoolExecutor() as pool:
        for path in data_files(root):
            for block in parquet.ParquetFile(path).iter_batches(batch_size=BLOCK, columns=[key]):
                pictures = list(pool.map(_picture, block.column(0).field("bytes").to_pylist(), chunksize=32))
                yield first, np.stack(pictures)
                first += len(pictures)


def _picture(encoded: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _video_frames(root: Path, info: dict[str, Any], key: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first frame, uint8 [N,Y,X,3]) episode by episode through LeRobot's own video decoder."""
    try:
        from lerobot.datasets.video_utils import decode_video_frames
    except ImportError as error:
        raise ValueError(f"decoding the videos of {root} needs LeRobot: pip install 'lithe[lerobot]'") from error
    place = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    columns = ["dataset_from_index", "length", *place]
    for row in read_table(sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")), columns).to_pylist():
        chunk, file, start_s = (row[name] for name in place)
        path = root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        times = [start_s + i / info["fps"] for i in range(row["length"])]
        frames = decode_video_frames(path, times, 0.5 / info["fps"], "pyav", return_uint8=True)
        yield row["dataset_from_index"], frames.permute(0, 2, 3, 1).numpy()


def data_files(root: Path) -> list[Path]:
    return sorted((root / "data").glob("chunk-*/file-*.parquet"))


def read_table(paths: list[Path], columns: list[str]) -> Any:
    """The chosen columns of all files, one after the other, as a pyarrow table."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("reading a LeRobotDataset needs pyarrow: pip install 'lithe[lerobot]'") from error
    return pyarrow.concat_tables([pyarrow.parquet.read_table(path, columns=columns) for path in paths])
