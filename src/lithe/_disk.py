"""Writing so that nothing is ever half written: beside the target, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a staging folder beside `target`, flush it to disk, and only then put it in the target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage, old = (target.parent / f".{target.name}.{what}" for what in ("new", "old"))
    shutil.rmtree(stage, ignore_errors=True)
    if old.exists() and not target.exists():
        old.rename(target)  # killed between the two renames below
    try:
        stage.mkdir()
        fill(stage)
        for path in stage.rglob("*"):
            if path.is_file():
                flush(path)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise with_advice(error, target) from error
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    stage.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file beside its target, flush it to disk, rename."""
    stage = path.with_name(f".{path.name}.new")
    try:
        stage.write_bytes(content)
        flush(stage)
    except BaseException as error:
        stage.unlink(missing_ok=True)
        raise with_advice(error, path) from error
    stage.replace(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def with_advice(error: BaseException, target: Path) -> BaseException:
    """The same error, or for a full disk one that says what to do."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    full = full or (isinstance(error, SafetensorError) and "No space left" in str(error))
    if full:
        return OSError(
            errno.ENOSPC, f"the disk is full: {target} was not written, what was there before is intact; free space"
        )
    return error
