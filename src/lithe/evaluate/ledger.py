"""The ledger of an evaluation: one line for every finished episode, appended, flushed to disk, never rewritten.

    line 1   the terms: everything that two episodes in one ledger must have in common
    others   one record each, keyed by (policy, task, seed)

Every line carries a checksum of itself. A process killed while writing leaves a last line without its newline: it is
dropped on reopening and its episode is played again. Any other damage is an error, and so is a second writer. Only the
process that runs the evaluation writes; it is not a database and knows nothing about policies or simulators.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

from lithe._disk import flush

Key = tuple[str, str, int]  # policy, task, seed


def key(record: dict[str, Any]) -> Key:
    """What identifies an episode within one ledger."""
    return record["policy"], record["task"], record["seed"]


class Ledger:
    """Opens or begins the file at `path`. Use it as a context manager.

    Raises ValueError when the file is damaged, was begun under other terms, or is being written by another process.
    """

    def __init__(self, path: Path, terms: dict[str, Any]):
        self.path = path
        self.records: dict[Key, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            lines = self._whole_lines()
            if lines:
                self._check_terms(self._read(lines[0], 1), json.loads(json.dumps(terms)))
            else:
                self._write({"terms": terms})
                flush(path.parent)  # its name survives a power cut
            for number, line in enumerate(lines[1:], 2):
                self._take(self._read(line, number), number)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the lock; everything is on disk already."""
        os.close(self._file)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one finished episode; on return it is on disk. OSError when the disk is full: the file stays usable."""
        assert key(record) not in self.records, f"{key(record)} was already in the ledger"
        self._write(record)
        self.records[key(record)] = record

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another evaluation is writing {self.path}: wait for it, or choose another folder"
            ) from error

    def _whole_lines(self) -> list[bytes]:
        """Every line that ends in a newline; what follows the last one was never finished and is cut off."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._file, len(whole))
            os.fsync(self._file)
        return whole.split(b"\n")[:-1]

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        """One line without its checksum."""
        body, _, check = line.rpartition(b', "crc": "')
        if check != f'{zlib.crc32(body):08x}"}}'.encode():
            raise ValueError(
                f"line {number} of {self.path} is damaged: restore the file from a copy, or choose another folder and "
                "play everything again"
            )
        return json.loads(body + b"}")

    def _take(self, record: dict[str, Any], number: int) -> None:
        if key(record) in self.records:
            raise ValueError(
                f"line {number} of {self.path} repeats the episode {key(record)}: two files were joined; undo it"
            )
        self.records[key(record)] = record

    def _check_terms(self, header: dict[str, Any], terms: dict[str, Any]) -> None:
        begun = header.get("terms", {})
        for name in sorted(begun.keys() | terms.keys()):
            if begun.get(name) != terms.get(name):
                raise ValueError(
                    f"{self.path} was begun with {name}={begun.get(name)!r}, this evaluation has {terms.get(name)!r}: "
                    "use the same setting to continue it, or choose another folder"
                )

    def _write(self, content: dict[str, Any]) -> None:
        body = json.dumps(content, allow_nan=False).encode()[:-1]
        line = body + f', "crc": "{zlib.crc32(body):08x}"}}\n'.encode()
        size = os.fstat(self._file).st_size
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)  # half a line in the middle would be damage
            raise
