"""Full size: explain without reading a tensor, cut 18 -> 6 in little memory and little more time than a copy takes.

A policy of random weights is written to disk tensor by tensor, in LeRobot's layout and in bf16. Always run: a policy of
200 MB, and the full one as a file of holes, which can be explained and not read. With LITHE_FULL_SIZE=<folder> (on a
disk with 22 GB to spare) the full one is really written, cut several times, each time beside two copies of the bytes
that are kept, and full-size.json, a Result, is left in that folder. Run as a script this file measures one call in a
process of its own: `python test_full_size.py explain|cut SOURCE KEEP [OUT]`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lithe
from lithe import result
from lithe.checkpoint import CARD, WEIGHTS
from lithe.families import _pi_names
from lithe.families.pi import Pi
from lithe.measure import Neighbours, PeakMemory

FULL, REPEATS = "LITHE_FULL_SIZE", 5
MIB = 1 << 20
SMALL = {
    "depth": 6,
    "trunk": {"width": 1024, "mlp": 3072, "heads": 8, "kv_heads": 1, "head_dim": 128},
    "expert": {"width": 512, "mlp": 2048, "heads": 8, "kv_heads": 1, "head_dim": 128},
    "vision": {"image": 28, "patch": 14, "width": 64, "mlp": 128, "layers": 1, "heads": 16},
    "vocabulary": 4096,
}


def blank(preset: str = "full", **settings: Any) -> Pi:
    with torch.device("meta"):
        return Pi.fresh(preset, **settings)


def write_policy(model: Pi, folder: Path, foreign: Any, holes: bool = False) -> Path:
    """A LeRobot folder of random bf16 weights (or none: holes), of which never more than a block is in memory."""
    foreign.lerobot(model, folder, weights=False)
    names = foreign.stored(model)
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    words, width = model.config.vocabulary, model.config.expert.width
    shapes["model." + _pi_names.IDLE[0]] = (words, width)  # as published ones have it; lithe needs it for nothing
    header, at = {}, 0
    for key, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    random, block = np.random.default_rng(0), 8 * MIB
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for first in range(0, 0 if holes else at // 2, block):
            bits = random.integers(0, 1 << 16, min(block, at // 2 - first), dtype=np.uint16)
            file.write((bits & 0x807F) | 0x3C00)  # +-0.0078 to 0.0156
    os.truncate(folder / WEIGHTS, 8 + len(text) + at)
    return folder


def measured(*words: Any) -> dict[str, float]:
    """What one call took, in a process that does nothing else."""
    command = [sys.executable, __file__, *map(str, words)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_full_policy_is_explained_from_a_file_of_holes(foreign, tmp_path):
    folder = write_policy(blank(), tmp_path / "policy", foreign, holes=True)
    path = folder / WEIGHTS
    assert path.stat().st_size > 7e9 and path.stat().st_blocks * 512 < MIB
    found = measured("explain", folder, 6)
    assert (found["layers"], found["of"]) == (6, 18)
    assert found["peak_mib"] < 1024, "7 GB of zeros were mapped in"
    assert found["added_mib"] < 100 and found["read_mib"] < 4


def test_a_cut_holds_nothing_of_what_it_copies(foreign, tmp_path):
    """Half of 200 MB is kept; memory rises by the buffers alone, and what is read is what is kept."""
    folder = write_policy(blank(**SMALL), tmp_path / "policy", foreign)
    found = measured("cut", folder, 2, tmp_path / "student")
    kept, whole = ((place / WEIGHTS).stat().st_size / MIB for place in (tmp_path / "student", folder))
    assert whole > 190 and kept > 60
    assert found["added_mib"] < 50 < kept, "the student was in memory"
    assert found["peak_mib"] < kept + 1024
    assert kept - 1 < found["read_mib"] < kept + 4, "something else than the kept bytes was read"
    student: Any = lithe.load(tmp_path / "student")
    assert student.depth() == 2 and torch.isfinite(student.embed.weight).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(FULL not in os.environ, reason=f"set {FULL} to a folder with 22 GB to spare")
def test_full_size(foreign):
    home = Path(os.environ[FULL])
    teacher, student, copies = home / "teacher", home / "student", [home / "copy-1", home / "copy-2"]
    for folder in (teacher, student):
        shutil.rmtree(folder, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    neighbours = Neighbours()
    try:
        write_policy(blank(), teacher, foreign)
        flushed(teacher / WEIGHTS)
        explained, cuts, copied, plain = measured("explain", teacher, 6), [], [], []
        for _ in range(REPEATS):  # side by side, so that what slows the machine down slows both
            cuts.append(measured("cut", teacher, 6, student))
            copy(student / WEIGHTS, copies[0], flush=True)  # untimed: what a cut wrote is not in memory
            copied.append(sum(copy(student / WEIGHTS, target, flush=True) for target in copies))
            plain.append(sum(copy(student / WEIGHTS, target, flush=False) for target in copies))
        document = report(teacher, student, explained, cuts, copied, plain, neighbours)
        result.save(document, home / "full-size.json")
    finally:
        for folder in (teacher, student):
            shutil.rmtree(folder, ignore_errors=True)
        for path in copies:
            path.unlink(missing_ok=True)
    row = document["rows"][1]
    assert row["peak_mib"] <= row["bound_mib"] and row["ratio"]["p50"] <= 1.0
    assert document["rows"][0]["read_mib"] < 4


def flushed(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def copy(origin: Path, target: Path, flush: bool) -> float:
    """Seconds that a plain copy takes, with the wait until it is on the disk if `flush`, as a saved policy is."""
    target.unlink(missing_ok=True)
    began = time.perf_counter()
    shutil.copyfile(origin, target)
    if flush:
        flushed(target)
    took = time.perf_counter() - began
    if not flush:
        flushed(target)  # untimed, or the next one would wait for it
    return took


def report(
    teacher: Path,
    student: Path,
    explained: dict[str, float],
    cuts: list[dict[str, float]],
    copied: list[float],
    plain: list[float],
    neighbours: Neighbours,
) -> dict[str, Any]:
    """The Result. Seconds of the call itself, imports left out; memory of the whole process, imports included."""
    seconds, kept = [cut["seconds"] for cut in cuts], (student / WEIGHTS).stat().st_size / MIB
    ratios = [mine / theirs for mine, theirs in zip(seconds, copied, strict=True)]
    busy = neighbours.busy_cores()
    settings = {
        "teacher": "pi05, random bf16 weights, LeRobot's layout",
        "method": "shallow_pi keep=6",
        "repeats": len(cuts),
        "teacher_mib": round((teacher / WEIGHTS).stat().st_size / MIB, 1),
        "history": json.loads((student / CARD).read_text())["history"],
        "load_average": round(neighbours.load_average, 2),
        **({} if busy is None else {"busy_cores_elsewhere": round(busy, 2)}),
        "quiet": neighbours.quiet(),
    }
    cut = {
        "policy": "cut",
        "seconds": spread(seconds),
        "copy_twice_s": spread(copied),
        "copy_twice_unflushed_s": spread(plain),
        "ratio": {"against": "copy_twice_s", **spread(ratios)},
        "peak_mib": max(cut["peak_mib"] for cut in cuts),
        "added_mib": max(cut["added_mib"] for cut in cuts),
        "bound_mib": round(kept + 1024, 1),
        "kept_mib": round(kept, 1),
        "read_mib": max(cut["read_mib"] for cut in cuts),
    }
    return result.make("cut", "pi05-full", settings, [{"policy": "explain", **explained}, cut])


def spread(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
        "n": len(values),
    }


# -- in a process of its own -----------------------------------------------------------------------------------------


def status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field}")


def traffic() -> dict[str, float]:
    return {
        key: int(value) / MIB for key, value in (x.split(": ") for x in Path("/proc/self/io").read_text().splitlines())
    }


def main(verb: str, source: str, keep: str, out: str = "") -> dict[str, Any]:
    """Memory: the highest of the whole process, and how far above where it stood. read_mib: what the call asked the
    system for; disk_mib: what then came from the disk, and not from memory where it lay anyway."""
    method = lithe.method("shallow_pi", keep=int(keep))
    lithe.explain("pi:pico")  # imports
    before, asked, began = status("VmHWM"), traffic(), time.perf_counter()
    with PeakMemory() as memory:
        if verb == "explain":
            row = lithe.explain(source, method).rows
            found: dict[str, Any] = {"layers": row[1]["depth"]["trunk"], "of": row[0]["depth"]["trunk"]}
        else:
            found = {"layers": lithe.cut(source, method, out)["rows"][1]["depth"]["trunk"]}
        took = time.perf_counter() - began
    after, peak = traffic(), max(before, status("VmHWM"))
    assert memory.mib is not None, "the kernel does not tell"
    found |= {"seconds": round(took, 3), "peak_mib": round(peak, 1), "added_mib": round(memory.mib, 1)}
    found["read_mib"] = round(after["rchar"] - asked["rchar"], 2)
    found["disk_mib"] = round(after["read_bytes"] - asked["read_bytes"], 2)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
