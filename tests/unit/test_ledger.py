"""The ledger: exactly once, whatever kills the writer and whatever happens to the file in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from lithe.evaluate.ledger import Ledger, key

TERMS = {"sim": "fake", "horizon": 40, "options": {"size": 16}}


def record(seed, policy="student"):
    return {
        "policy": policy,
        "task": "reach",
        "seed": seed,
        "success": seed % 2 == 0,
        "steps": 7 + seed,
        "jerk": 0.1 + seed / 3,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "ledger.jsonl"


@pytest.fixture
def written(path):
    with Ledger(path, TERMS) as ledger:
        for seed in range(3):
            ledger.append(record(seed))
    return path


def seeds(path, terms=TERMS):
    with Ledger(path, terms) as ledger:
        assert all(ledger.records[k] == record(k[2]) for k in ledger.records)
        return [k[2] for k in ledger.records]


def test_records_come_back_bit_for_bit_and_more_can_follow(written):
    with Ledger(written, TERMS) as ledger:
        assert ledger.records == {key(record(s)): record(s) for s in range(3)}
        ledger.append(record(3))
    assert seeds(written) == [0, 1, 2, 3]


def test_killed_at_any_byte_loses_at_most_the_unfinished_line(written, monkeypatch):
    """Kill -9 in a write leaves a prefix of the file. Every prefix must open, keep its whole lines, and go on."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of them
    content = written.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        written.write_bytes(content[:size])
        whole = sum(end <= size for end in ends[1:])
        assert seeds(written) == list(range(whole)), size
        with Ledger(written, TERMS) as ledger:
            for seed in range(whole, 3):
                ledger.append(record(seed))
        assert written.read_bytes() == content, size


def test_zeros_at_the_end_are_an_unfinished_line(written):
    written.write_bytes(written.read_bytes() + bytes(100))  # what a power cut can leave
    assert seeds(written) == [0, 1, 2]


def test_any_other_damage_is_an_error(written):
    content = written.read_bytes()
    places = [i for i in range(0, len(content) - 1, 7) if content[i] != ord("\n")]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        written.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            Ledger(written, TERMS)
        assert written.read_bytes() == damaged, "a damaged ledger is left alone"
    lines = content.splitlines(keepends=True)
    written.write_bytes(b"".join([*lines[:2], b"\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"line 3 .* is damaged"):
        Ledger(written, TERMS)


def test_a_repeated_line_is_an_error(written):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([*lines, lines[2]]))
    with pytest.raises(ValueError, match=r"line 5 .* repeats the episode"):
        Ledger(written, TERMS)


@pytest.mark.parametrize("terms", [{**TERMS, "horizon": 50}, {**TERMS, "steps": 3}, {"sim": "fake", "horizon": 40}])
def test_other_terms_are_an_error_that_names_the_setting(written, terms):
    changed = next(name for name in sorted({*TERMS, *terms}) if TERMS.get(name) != terms.get(name))
    with pytest.raises(ValueError, match=f"begun with {changed}=.*choose another folder"):
        Ledger(written, terms)


def test_terms_are_compared_as_json(path):
    with Ledger(path, {"tasks": ("reach",)}):
        pass
    with Ledger(path, {"tasks": ("reach",)}):
        pass


def test_only_one_process_writes(written):
    with Ledger(written, TERMS), pytest.raises(ValueError, match="another evaluation is writing"):
        Ledger(written, TERMS)
    assert seeds(written) == [0, 1, 2]


def test_an_episode_cannot_be_doubled(written):
    with Ledger(written, TERMS) as ledger, pytest.raises(AssertionError, match="already"):
        ledger.append(record(1))


def test_a_full_disk_leaves_no_half_line(written, monkeypatch):
    write = os.write

    def full(file, data):
        write(file, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Ledger(written, TERMS) as ledger:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            ledger.append(record(3))
        monkeypatch.setattr(os, "write", write)
        ledger.append(record(3))  # space is back
    assert seeds(written) == [0, 1, 2, 3]


def test_a_record_is_on_disk_when_append_returns(path):
    code = (
        "import os, pathlib, sys; from lithe.evaluate.ledger import Ledger; from pathlib import Path\n"
        f"ledger = Ledger(Path(sys.argv[1]), {TERMS!r})\n"
        f"ledger.append({record(0)!r}); os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, timeout=60, check=False)
    assert done.returncode == -9
    assert seeds(path) == [0]


def test_every_append_is_flushed(path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with Ledger(path, TERMS) as ledger:
        before = len(flushed)
        ledger.append(record(0))
        assert len(flushed) == before + 1
