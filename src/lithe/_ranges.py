"""Tensors of a safetensors file as ranges of bytes, and a new file put together from such ranges.

Values pass through a few small buffers and are never in memory together. While one block is written, two threads look
at it: SHA-256 takes it in, and numbers that are not finite are searched for. The disk begins meanwhile, and the system
need not keep what was written. What comes out is byte for byte what safetensors itself writes: widest type first, then
by name. Nothing here knows about models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO, RawIOBase
from pathlib import Path

import numpy as np
from tqdm import tqdm

BLOCK, BLOCKS = 2 << 20, 4  # bytes of one, and how many are on their way; few enough to stay near the processor
FLUSH = 16 << 20  # bytes after which the disk is asked to begin; left to itself it would wait for the last one
# Bytes of each type, in the order in which safetensors lays tensors out.
SIZES = {"U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2, "I16": 2}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
RANKS = {dtype: rank for rank, dtype in enumerate(SIZES)}
# A number whose exponent is all ones is infinite or none: numbers as integers, and the bits of their exponent.
EXPONENTS = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "BF16": ("<u2", 0xFF << 7)}
EXPONENTS |= {"F16": ("<u2", 0x1F << 10)}


@dataclass(frozen=True)
class Range:
    """Where a stored tensor lies, in bytes from the beginning of its file."""

    key: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Piece:
    """A tensor of the new file: a range of the old one as it is, or what `made` returns, of the same type."""

    old: Range
    shape: tuple[int, ...]
    made: Callable[[], np.ndarray] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) * SIZES[self.old.dtype]


def ranges(path: Path) -> dict[str, Range]:
    """Every tensor of a safetensors file that opens, from its header. Raises ValueError for what cannot be copied."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, dict] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin, end, found = 8 + length, path.stat().st_size, {}
    for key, about in header.items():
        dtype, shape, (first, last) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        if dtype not in SIZES:
            raise ValueError(f"{path}: {key} has the type {dtype}; lithe copies {', '.join(SIZES)}")
        if not 0 <= first <= last <= end - begin or last - first != math.prod(shape) * SIZES[dtype]:
            raise ValueError(f"{path} is truncated or damaged (where {key} lies): fetch it again")
        found[key] = Range(key, dtype, shape, begin + first, last - first)
    return found


def equal(path: Path, a: Range, b: Range) -> bool:
    """Whether two stored tensors are bit for bit the same."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    mine, theirs = bytearray(BLOCK), bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        for done in range(0, a.size, BLOCK):
            for block, place in ((mine, a), (theirs, b)):
                file.seek(place.start + done)
                _read(file, memoryview(block)[: a.size - done], path)
            if mine != theirs:
                return False
    return True


def write(target: Path, origin: Path, pieces: Mapping[str, Piece]) -> str:
    """A safetensors file at `target` of these tensors, most of them ranges of the file `origin`; returns its SHA-256.

    Raises ValueError for numbers that are not finite, and for an origin that ends too early.
    """
    order = sorted(pieces, key=lambda name: (RANKS[pieces[name].old.dtype], name))
    head = _header({name: pieces[name] for name in order})
    total = len(head) + sum(piece.size for piece in pieces.values())
    with (
        origin.open("rb", buffering=0) as old,
        target.open("wb", buffering=0) as new,
        tqdm(total=total, unit="B", unit_scale=True, desc="cut", disable=None) as bar,
        ExitStack() as threads,  # which end before the files are closed
    ):
        pipe = _Pipe(new, origin, bar, threads)
        pipe.run(BytesIO(head), len(head))
        for name in order:
            piece = pieces[name]
            if piece.made:
                pipe.run(_stream(piece), piece.size, piece.old)
            else:
                old.seek(piece.old.start)
                pipe.run(old, piece.size, piece.old)
        return pipe.finish()


def _header(pieces: Mapping[str, Piece]) -> bytes:
    entries, at = {}, 0
    for name, piece in pieces.items():
        entries[name] = {"dtype": piece.old.dtype, "shape": piece.shape, "data_offsets": [at, at + piece.size]}
        at += piece.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stream(piece: Piece) -> BytesIO:
    assert piece.made is not None
    content = piece.made().tobytes()
    assert len(content) == piece.size, f"{piece.old.key} was made into something of another size"
    return BytesIO(content)


def _read(stream: RawIOBase | BytesIO, block: memoryview, path: Path) -> None:
    """Fill a block."""
    while block:
        count = stream.readinto(block)
        if not count:
            raise ValueError(f"{path} ended while it was read: it is truncated or was replaced, fetch it again")
        block = block[count:]


@dataclass
class _Slot:
    """A buffer, and who still looks at it."""

    buffer: bytearray = field(default_factory=lambda: bytearray(BLOCK))
    jobs: list[Future[None]] = field(default_factory=list)

    def free(self) -> memoryview:
        """The buffer once nobody does any more. Raises what was found in it."""
        for job in self.jobs:
            job.result()
        return memoryview(self.buffer)


class _Pipe:
    """Copies streams into a file, block by block through a ring of buffers."""

    def __init__(self, new: RawIOBase, path: Path, bar: tqdm, threads: ExitStack):
        self.new, self.path, self.bar = new, path, bar
        # one thread each: SHA-256 needs its blocks in order
        self.hasher, self.judge = (threads.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        self.digest, self.slots = hashlib.sha256(), deque(_Slot() for _ in range(BLOCKS))
        self.waiting = 0

    def run(self, stream: RawIOBase | BytesIO, size: int, place: Range | None = None) -> None:
        """place: the tensor that these bytes are, whose numbers must be finite."""
        while size:
            slot = self.slots[0]
            self.slots.rotate()
            block = slot.free()[:size]
            _read(stream, block, self.path)
            slot.jobs = [self.hasher.submit(self.digest.update, block)]
            if place and place.dtype in EXPONENTS:
                slot.jobs.append(self.judge.submit(_demand_finite, block, self.path, place))
            self._put(block)
            self._flush(len(block))
            self.bar.update(len(block))
            size -= len(block)

    def _put(self, block: memoryview) -> None:
        while block:
            block = block[self.new.write(block) or 0 :]

    def _flush(self, count: int) -> None:
        """Has the disk begin with what is there, and the memory of what is on it used again: fresh memory is slower.

        Advice, where the system takes it. Nothing relies on it: whoever saves a policy waits for the disk anyway.
        """
        self.waiting += count
        if self.waiting >= FLUSH and sys.platform == "linux":
            os.posix_fadvise(self.new.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.waiting = 0

    def finish(self) -> str:
        """SHA-256 of all that was written. Raises what was found in the last blocks."""
        for slot in self.slots:
            slot.free()
        return self.digest.hexdigest()


def _demand_finite(block: memoryview, path: Path, place: Range) -> None:
    whole, exponent = EXPONENTS[place.dtype]
    numbers = np.frombuffer(block, whole)
    if (numbers & numbers.dtype.type(exponent)).max() == exponent:
        raise ValueError(f"{path.parent}: {place.key} holds other things than finite numbers: the file is damaged")
