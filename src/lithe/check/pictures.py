"""`lithe check`, fourth part: the pictures. Is every one there, whole, of the right size, and does the camera move?

Of pictures in Parquet every single one is looked into (checksums of PNG, the end of JPEG) and a part is decoded; of
videos every file is read to its end, its frame times are compared with those the episodes need, and a part is decoded.
Nothing is cached and nothing is written. Shapes: N frames, Y X rows and columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lithe.check.damage import AGAIN, Contents
from lithe.check.findings import Findings, listed
from lithe.data._cache import BLOCK, BROKEN, arrow, feature_key, picture, video_rows
from lithe.data._video import pictures, track

STILL = 12.0  # grey levels by which video compression alone moves the mean of a cell (x264 at crf 30; AV1: 0)
CELL = 8  # pixels
FEW = 5  # pictures of an episode that must be equal before it counts as frozen
REPAIR = "leave these episodes out (lerobot-edit-dataset), or restore the files"


def check(contents: Contents, found: Findings, most: int) -> dict[str, tuple[int, int]]:
    """Looks at every colour camera; returns how many pictures of each were decoded, and how many there are."""
    decoded = {}
    for camera in contents.cameras:
        key = feature_key(contents.info, camera)
        look = _check_video if contents.info["features"][key]["dtype"] == "video" else _check_images
        decoded[camera] = look(contents, key, camera, found, most)
    return decoded


def size_of(about: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of an image feature, whichever way round its shape is written."""
    shape, names = list(about["shape"]), list(about.get("names") or [])
    first = bool(names and str(names[0]).startswith("channel")) or (not names and shape[0] == 3 != shape[-1])
    return (shape[1], shape[2]) if first else (shape[0], shape[1])


class _Stillness:
    """Whether a camera, or a whole episode of it, shows one and the same picture."""

    def __init__(self) -> None:
        self.seen: dict[int, list[np.ndarray]] = {}

    def add(self, episode: int, picture_YXC: np.ndarray, exact: bool) -> None:
        """exact: one changed pixel is a change. Not so in videos: there means of cells count, whose noise cancels."""
        kept = np.frombuffer(hashlib.sha256(picture_YXC.tobytes()).digest(), np.uint8) if exact else _cells(picture_YXC)
        self.seen.setdefault(episode, []).append(kept)

    def tell(self, key: str, camera: str, found: Findings) -> None:
        fix = "look at the recording; leave these episodes or this camera out"
        everything = [kept for pictures in self.seen.values() for kept in pictures]
        if len(everything) > 1 and _still(everything):
            what = f"camera {camera} shows the same picture in all {len(everything)} frames looked at"
            found.error("frozen-camera", what, fix, feature=key)
            return
        still = [e for e, pictures in sorted(self.seen.items()) if len(pictures) >= FEW and _still(pictures)]
        if still:
            what = f"camera {camera} shows one picture throughout episode {listed(still)}"
            found.warning("frozen-camera", what, fix, feature=key, episode=still[0])


def _still(kept: list[np.ndarray]) -> bool:
    """Digests: all equal. Cells: nine in ten pictures are near the median one; an encoder's first may be coarser."""
    if kept[0].ndim == 1:
        return all(np.array_equal(kept[0], other) for other in kept)
    stack = np.stack(kept).astype(np.float32)
    off = np.abs(stack - np.median(stack, axis=0)).reshape(len(stack), -1).max(1)
    return float(np.quantile(off, 0.9)) <= STILL


def _cells(picture_YXC: np.ndarray) -> np.ndarray:
    """Means of squares of pixels, uint8: the noise of compression mostly cancels in them, motion does not."""
    rows, columns = (max(1, side // CELL) for side in picture_YXC.shape[:2])
    cropped = picture_YXC[: rows * CELL, : columns * CELL].astype(np.float32)
    return cropped.reshape(rows, -1, columns, cropped.shape[1] // columns, 3).mean((1, 3)).astype(np.uint8)


def _chosen(total: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `total` pictures, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int)) if total else np.zeros(0, int)


# -- pictures in Parquet -----------------------------------------------------------------------------------------------


def _check_images(contents: Contents, key: str, camera: str, found: Findings, most: int) -> tuple[int, int]:
    total = sum(rows for _, rows in contents.files)
    chosen, still = set(_chosen(total, most).tolist()), _Stillness()
    right = size_of(contents.info["features"][key])
    damaged: list[int] = []
    odd: dict[int, tuple[int, int]] = {}
    for row, size, decoded in _opened(contents, key, chosen, found):
        if size is None or (row in chosen and decoded is None):
            damaged.append(row)
        elif size != right:
            odd[row] = size
        if decoded is not None:
            still.add(int(contents.columns["episode_index"][row]), decoded, exact=True)
    if damaged:
        what = f"{len(damaged)} pictures of camera {camera} cannot be decoded"
        found.error("damaged-picture", what, REPAIR, feature=key, **contents.place(damaged[0]))
    if odd:
        row, size = next(iter(odd.items()))
        what = f"{len(odd)} pictures of camera {camera} are {_pixels(size)}, meta/info.json says {_pixels(right)}"
        fix = "correct the shape in meta/info.json, or record with one size"
        found.error("picture-size", what, fix, feature=key, **contents.place(row))
    still.tell(key, camera, found)
    return len(chosen), total


def _opened(
    contents: Contents, key: str, chosen: set[int], found: Findings
) -> Iterator[tuple[int, tuple[int, int] | None, np.ndarray | None]]:
    """For every row: its number, the picture's rows and columns (None if damaged), and, if chosen, its pixels."""
    pyarrow, first = arrow(), 0
    with ThreadPoolExecutor() as pool:
        for path, rows in contents.files:
            file, row = path.relative_to(contents.root), first
            try:
                opened = pyarrow.parquet.ParquetFile(path)
                if not pyarrow.types.is_struct(opened.schema_arrow.field(key).type):
                    raise KeyError(f"the column {key} holds no pictures")
                for block in opened.iter_batches(batch_size=BLOCK, columns=[key]):
                    encoded = block.column(0).field("bytes").to_pylist()
                    numbers = range(row, row + len(encoded))
                    wanted = [data if i in chosen else None for i, data in zip(numbers, encoded, strict=True)]
                    pixels = pool.map(lambda data: picture(data) if data else None, wanted)
                    yield from zip(numbers, pool.map(_sound, encoded), pixels, strict=True)
                    row += len(encoded)
            except (OSError, pyarrow.ArrowException, KeyError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                what = f"the pictures of {key} in {file} cannot be read ({reason})"
                found.error("damaged-picture", what, AGAIN, feature=key, file=file)
            first += rows


def _sound(encoded: bytes | None) -> tuple[int, int] | None:
    """Rows and columns of a compressed picture that looks whole; None otherwise."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded or b"")) as opened:
            size, kind = (opened.height, opened.width), opened.format
            opened.verify()
    except (*BROKEN, Image.DecompressionBombError):
        return None
    return None if kind == "JPEG" and b"\xff\xd9" not in (encoded or b"")[-64:] else size


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


# -- videos ------------------------------------------------------------------------------------------------------------


def _check_video(contents: Contents, key: str, camera: str, found: Findings, most: int) -> tuple[int, int]:
    total = sum(row["length"] for row in contents.episodes)
    lacking = [row["episode_index"] for row in contents.episodes if row.get(f"videos/{key}/from_timestamp") is None]
    if lacking:
        what = f"episode {listed(lacking)} has no video of camera {camera} in the metadata"
        found.error("video", what, AGAIN, feature=key, file="meta/episodes", episode=lacking[0])
        return 0, total
    if not isinstance(contents.info.get("video_path"), str):
        found.error("info", "meta/info.json has no video_path", AGAIN, feature=key, file="meta/info.json")
        return 0, total
    share, still, done = min(1.0, most / max(total, 1)), _Stillness(), 0
    for path, rows in video_rows(contents.root, contents.info, key, contents.episodes).items():
        if _check_track(contents, key, path, rows, found):
            done += _look(contents, key, path, rows, share, still, found)
    still.tell(key, camera, found)
    return done, total


def _check_track(contents: Contents, key: str, path: Path, rows: list[dict[str, Any]], found: Findings) -> bool:
    """Whether a video file holds the frames its episodes need, at their times; tells what is wrong."""
    file, fps, before = path.relative_to(contents.root), float(contents.info["fps"]), len(found.all)
    where: dict[str, Any] = {"feature": key, "file": file}
    if not path.is_file():
        lost = listed([row["episode_index"] for row in rows])
        found.error(
            "video", f"{file} is missing; it shows episode {lost}", AGAIN, **where, episode=rows[0]["episode_index"]
        )
        return False
    try:
        there = track(path)
    except ValueError as error:
        found.error("video", str(error), AGAIN, **where)
        return False
    right = size_of(contents.info["features"][key])
    if there.size != right:
        what = f"{file} shows {_pixels(there.size)}, meta/info.json says {_pixels(right)}"
        found.error("picture-size", what, "correct the shape in meta/info.json, or encode it again", **where)
    if abs(there.fps - fps) > 0.01 * fps:
        what = f"{file} runs at {there.fps:.4g} fps, the data set at {fps:g}"
        found.error("video-fps", what, "encode the video again at the data set's rate", **where)
        return False
    _check_frames(there.times_s, rows, fps, file, where, found)
    return len(found.all) == before


def _check_frames(
    times_s: np.ndarray, rows: list[dict[str, Any]], fps: float, file: Path, where: dict[str, Any], found: Findings
) -> None:
    for row, following in pairwise(rows):
        if following["start_s"] < row["start_s"] + (row["length"] - 0.5) / fps:
            pair = f"{row['episode_index']} and {following['episode_index']}"
            fix = "restore meta/episodes, whose times in the video are wrong"
            found.error(
                "video", f"in {file} the episodes {pair} share frames", fix, **where, episode=row["episode_index"]
            )
            return
    needed = [row["start_s"] + np.arange(row["length"]) / fps for row in rows]
    lost = [int((_distance(times_s, wanted) > 0.5 / fps).sum()) for wanted in needed]
    if any(lost):
        first = next(row["episode_index"] for row, count in zip(rows, lost) if count)
        share = f"{sum(lost)} of the {sum(map(len, needed))} that its episodes need"
        what = f"{file} has {len(times_s)} frames and lacks {share}"
        found.error("video", what, AGAIN, **where, episode=first)
    elif len(times_s) > sum(map(len, needed)):
        what = f"{file} has {len(times_s)} frames, its episodes need {sum(map(len, needed))}"
        fix = "nothing, if episodes were removed on purpose; else restore meta/episodes"
        found.warning("video", what, fix, **where)


def _distance(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """From each wanted time to the nearest there is."""
    if not len(times_s):
        return np.full(len(wanted_s), np.inf)
    right = np.searchsorted(times_s, wanted_s).clip(0, len(times_s) - 1)
    left = (right - 1).clip(0)
    return np.minimum(np.abs(times_s[right] - wanted_s), np.abs(times_s[left] - wanted_s))


def _look(
    contents: Contents,
    key: str,
    path: Path,
    rows: list[dict[str, Any]],
    share: float,
    still: _Stillness,
    found: Findings,
) -> int:
    """Decodes this share of a video's pictures; returns how many."""
    fps, done = float(contents.info["fps"]), 0
    asked = []
    for row in rows:
        picked = _chosen(row["length"], max(1, round(share * row["length"])))
        asked += [(row["episode_index"], row["start_s"] + i / fps) for i in picked]
    try:
        for (episode, _), decoded in zip(asked, pictures(path, [time for _, time in asked], 0.5 / fps)):
            still.add(episode, decoded, exact=False)
            done += 1
    except ValueError as error:
        found.error(
            "video", str(error), AGAIN, feature=key, file=path.relative_to(contents.root), episode=asked[done][0]
        )
    return done
