"""Pictures out of a video file, by time, with PyAV: each frame is decoded once however many are asked for.

A video file holds many episodes one after the other. LeRobot seeks and decodes anew for every access; here the
caller asks for all the times it wants, in order, and gets exactly the frames LeRobot would give it.
Shapes: Y X rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

JUMP_S = 2.0  # gaps longer than this are jumped over, shorter ones decoded through
DAMAGED = "is damaged or not a video"


@dataclass(frozen=True)
class Track:
    """What a video file says about itself without being decoded. `times_s` is sorted, one entry a stored frame."""

    times_s: np.ndarray
    promised: int  # frames according to the header; 0 = it does not say
    fps: float
    size: tuple[int, int]  # rows, columns


def track(path: Path) -> Track:
    """Reads the container through once. Raises ValueError for a file that cannot be read to its end."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            step = stream.time_base
            times = [float(packet.pts * step) for packet in container.demux(stream) if packet.pts is not None]
            rate = stream.average_rate or stream.guessed_rate or 0
            size = (stream.codec_context.height, stream.codec_context.width)
            return Track(np.sort(np.asarray(times)), stream.frames, float(rate), size)
    except av.FFmpegError as error:
        raise ValueError(f"{path} {DAMAGED} ({error.strerror}); download or record it again") from error


def pictures(path: Path, times_s: Iterable[float], tolerance_s: float) -> Iterator[np.ndarray]:
    """The frame nearest to each of the ascending times, uint8 [Y,X,3].

    Raises ValueError, naming the time, where there is none within the tolerance or what is there cannot be decoded.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}  # a broken frame is an error, never a grey block
            yield from _nearest(container, stream, path, times_s, tolerance_s)
    except av.FFmpegError as error:
        raise ValueError(f"{path} {DAMAGED} ({error.strerror}); download or record it again") from error


def _nearest(
    container: Any, stream: Any, path: Path, times_s: Iterable[float], tolerance_s: float
) -> Iterator[np.ndarray]:
    decoded = _decoded(container, stream, path)
    here = next(decoded, None)
    following = next(decoded, None)
    for time_s in times_s:
        if here is not None and time_s - here[0] > JUMP_S:
            container.seek(max(0, round(time_s / stream.time_base) - 1), stream=stream)
            decoded = _decoded(container, stream, path)
            here, following = next(decoded, None), next(decoded, None)
        while here and following and abs(following[0] - time_s) < abs(here[0] - time_s):
            here, following = following, next(decoded, None)
        if here is None or abs(here[0] - time_s) >= tolerance_s:
            raise ValueError(f"{path} has no frame at {time_s:.4f} s; download or record it again")
        yield here[1].to_ndarray(format="rgb24")


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[tuple[float, Any]]:
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        if frame.is_corrupt:
            raise ValueError(f"{path} {DAMAGED} (at {frame.time:.4f} s); download or record it again")
        yield float(frame.pts * stream.time_base), frame


def _stream(container: Any, path: Path) -> Any:
    stream = container.streams.video[0] if container.streams.video else None
    if stream is None or stream.codec_context is None:
        raise ValueError(f"{path} {DAMAGED} (no pictures, or of an unknown kind); download or record it again")
    return stream


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError("reading the videos of a dataset needs PyAV: pip install 'lithe[lerobot]'") from error
    return av
