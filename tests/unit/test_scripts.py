"""Scripts that publish numbers: `make gpu` says what it could not measure, and a table says how it was timed."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lithe import registry, result

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "cpu-epyc-2"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return script("gpu")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_runtime_that_cannot_be_attached_fails_the_run_and_leaves_the_other_rows(gpu, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("this machine cannot")

    kind, out = registry.get, tmp_path / "bench.json"
    monkeypatch.setattr(registry, "get", lambda folder, name: broken if name == "packed" else kind(folder, name))
    words = ["--device", "cpu", "--preset", "pico", "--layers", "4,2", "--runs", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert "pi05-L4/packed: this machine cannot" in str(stopped.value.code)
    assert [row["policy"] for row in result.load(out)["rows"]] == ["pi05-L4/eager", "pi05-L2/eager"]


def test_the_best_runtime_of_a_depth_is_held_to_its_target(gpu):
    rows = [
        {"policy": policy, "runtime": runtime, "depth": depth, "latency_ms": {"p50": p50}}
        for policy, runtime, depth, p50 in (
            ("a", "eager", 18, 40.0),
            ("b", "cudagraph", 18, 12.6),
            ("c", "cudagraph", 6, 5.1),
            ("d", "cudagraph", 9, 1.0),
            ("e", "fp8", 6, 4.0),
        )
    ]
    assert gpu.verdicts(rows) == ["b: 12.60 ms, target 12.7: met", "c: 5.10 ms, target 5.0: NOT MET"]


def test_the_gpu_bench_needs_no_accelerate():
    """Which would bring another torch where pip installs beside one that is there."""
    code = (
        "import sys; sys.modules['accelerate'] = None; sys.path[:0] = ['scripts', 'tests/gpu']\n"
        "import gpu, test_cuda; document, left_out = gpu.measured('cpu', 'pico', [4], 2); assert not left_out"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_table_says_how_its_times_were_taken(tables):
    path = PUBLISHED / "pi05-mini-metaworld-board.eval.json"
    evaluation, bench = (result.load(path.with_name(path.name.replace("eval", kind))) for kind in ("eval", "bench"))
    elsewhere = copy.deepcopy(bench)
    elsewhere["settings"] |= {"quiet": False, "runtime": "packed"}
    elsewhere["hardware"]["cpu"], elsewhere["commit"] = "another CPU", "c0ffee"
    told = tables.section(path, evaluation, elsewhere)
    for words in ("WHILE THE MACHINE WAS BUSY", "packed runtime", "another CPU", "commit c0ffee"):
        assert words in told and words not in tables.section(path, evaluation, bench)
    assert "Speed" not in tables.section(path, evaluation, {"rows": [], "settings": {}})


def test_a_table_of_real_time_says_how_late_how_good_and_how_fast(tables):
    def row(name: str, ms: float, delay: int, seconds: dict[str, float], **more: object) -> dict:
        late = {"policy": name, "latency_ms": ms, "delay": delay}
        success = {"rate": 0.5, "low": 0.25, "high": 0.75, "n": 16}
        return {"policy": f"{name}@{ms:g}ms", "realtime": late, "held": 0.125, "success": success, **more} | {
            "reaction": {"seconds": seconds, "moved": 16, "missed": 0}
        }

    paired = {"against": "teacher@0ms", "difference": -0.25, "low": -0.5, "high": 0.0}
    source = {"machine": "a CPU", "runtime": "eager", "file": "bench.json"}
    settings = {"execution": "async", "fps": 80, "tasks": ["open"], "episodes": 16, "sim_options": {"moving": "jump"}}
    rows = [
        row("teacher", 0, 0, {"median": 0.05, "low": 0.025, "high": 0.075}),
        row("student", 31.94, 3, {"median": 0.1, "low": 0.05}, paired=paired),
        row("student", 100, 8, {"low": 0.5}, paired=paired),
    ]
    evaluation = {"settings": settings | {"latency_from": [source]}, "rows": rows, "commit": "c0ffee"}
    told = tables.realtime(Path("results/x-realtime-async.eval.json"), evaluation)
    assert "against teacher@0ms, points" in told and "async, 80 steps a second" in told
    assert "measured latencies: a CPU, eager, end to end" in told
    assert "| teacher | 0 | 0 | 12 % | 50.0 % [25.0, 75.0], n = 16 |  | 50 [25, 75] |" in told
    assert "| student | 31.9 | 3 | 12 % | 50.0 % [25.0, 75.0], n = 16 | -25.0 [-50.0, +0.0] | 100 [50, ∞] |" in told
    assert told.count("not reached") == 1
