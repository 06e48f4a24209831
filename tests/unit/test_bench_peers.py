"""Peers of a bench: another implementation with the same weights, refused where it is not, and what its row says.

The peer is planted here: a copy of the policy in LeRobot's dress. LeRobot's own are in tests/parity.
"""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from lithe import result, surgery
from lithe.bench import _lerobot, launches, peers
from lithe.bench._lerobot import Hosted
from lithe.cli import app
from lithe.report import report
from lithe.routers.base import Router
from lithe.runtimes.packed import Packed
from lithe.surgery import KeepLayers

B = import_module("lithe.bench")  # the package's attribute of that name may be the function


@pytest.fixture(autouse=True)
def ceilings(monkeypatch):
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})


@pytest.fixture(scope="module")
def pico() -> Any:
    return B.load("pi05:pico")


# -- a peer that is planted --------------------------------------------------------------------------------------------


class Twin(nn.Module):
    """A policy in LeRobot's dress that answers with a lithe model, a copy of the one it stands beside."""

    def __init__(self, model: Any, steps: int):
        super().__init__()
        self.model, self.steps, self.asked = surgery.cut(model, []).eval(), steps, 0
        self.config = SimpleNamespace(compile_mode="default")

    def predict_action_chunk(self, inputs: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        batch = inputs["batch"]
        return self.model.act(batch, noise, steps=self.steps)[..., : self.model.spec.action_dim]


class Dressed(peers.LeRobot):
    """Takes batches as they are, and lithe's own preprocessing for LeRobot's."""

    def inputs(self, batch: Any) -> Any:
        return {"batch": batch}

    def infer(self, observation: Any) -> Any:
        noise = self.model.noise(1, self.generator)
        batch = self.model.observe([observation])
        return self.hosted.after(self.model.actions(self.play({"batch": batch}, noise), batch))[0].numpy()


@pytest.fixture
def plant(monkeypatch):
    """plant(change): from now on a peer is a twin of the policy, after change(twin). Returns all twins made."""

    def plant(change: Any = lambda twin: None, after: Any = lambda actions: actions, steps: Any = None) -> list[Twin]:
        twins: list[Twin] = []

        def host(model: Any, count: int) -> Hosted:
            twin = Twin(model, steps or count)
            change(twin)
            twins.append(twin)
            return Hosted(twin, None, after, lambda: twin.steps, ("arithmetic is slow",))

        monkeypatch.setattr(_lerobot, "host", host)
        monkeypatch.setitem(peers.PEERS, "lerobot", Dressed)
        return twins

    return plant


def run(*policies: Any, **settings: Any) -> dict[str, Any]:
    return B.bench(list(policies), **{"runs": 2, "warmup": 1, "peers": ["lerobot"], **settings})


def test_a_peer_stands_beside_every_variant_and_its_row_says_what_differs(pico, plant):
    twins = plant()
    document = run(pico, names=["pi"], layers=(4, 2), runtimes=("eager", "packed"), steps=(2, 1))
    assert json.loads(json.dumps(document)) == document
    rows = {row["policy"]: row for row in document["rows"]}
    for depth in (4, 2):
        for steps in (2, 1):
            row, eager = (rows[f"pi-L{depth}/{who}/{steps}"] for who in ("lerobot", "eager"))
            assert (row["depth"], row["steps"], row["runtime"]) == (depth, steps, "lerobot")
            assert row["beside"] == f"pi-L{depth}/eager/{steps}" and "arithmetic is slow" in row["not_equal"]
            assert row["error"] == 0 and row["cosine"] == pytest.approx(1) and row["end_to_end_error"] == 0
            assert (row["flops"], row["floor_ms"]) == (eager["flops"], eager["floor_ms"]), "the policy's own"
            assert {"p50", "p95", "p99"} == row["latency_ms"].keys(), "LeRobot does not say when it has seen"
            assert row["ratio"]["against"] == "pi-L4/eager/2" and "beside" not in eager
            assert row["attach_s"] > 0 and row["warmup_s"] > 0 and row["memory_mb"] > 0
    assert [twin.asked for twin in twins] == [2 + 2 + 2 * (1 + 2)] * 4, "two to compare, two to weigh, then its turns"


def other_weights(twin: Twin) -> None:
    with torch.no_grad():
        twin.model.trunk.layers[1].v_proj.weight.add_(0.3)


def other_answer(twin: Twin) -> None:
    with torch.no_grad():
        twin.model.action_out.bias.add_(0.01)


@pytest.mark.parametrize("change", [other_weights, other_answer])
def test_a_peer_that_holds_other_weights_is_refused_before_anything_is_timed(pico, plant, change):
    twins = plant(change)
    with pytest.raises(ValueError, match="pi/lerobot gives other actions than eager for the same prepared observation"):
        run(pico, names=["pi"])
    assert [twin.asked for twin in twins] == [1]


def test_a_peer_that_takes_fewer_steps_is_refused(pico, plant):
    plant(steps=pico.config.steps - 1)
    with pytest.raises(ValueError, match="would take 2 denoise steps, the policy takes 3"):
        run(pico)


def test_a_peer_that_prepares_or_decodes_otherwise_is_refused(pico, plant):
    plant(after=lambda actions: actions * 1.01)
    with pytest.raises(ValueError, match="other actions than eager from pictures to actions"):
        run(pico)


def test_a_peer_of_another_shape_is_refused(pico, plant):
    def longer(twin):
        act = twin.model.act
        twin.model.act = lambda *a, **k: torch.cat([act(*a, **k)] * 2, dim=1)

    plant(longer)
    with pytest.raises(ValueError, match="gives actions"):
        run(pico)


class DressedCompiled(peers.LeRobotCompiled):
    inputs, infer = Dressed.inputs, Dressed.infer  # type: ignore[assignment]


@pytest.mark.parametrize("gives_up", [False, True])
def test_a_compiled_peer_counts_its_graphs_and_is_refused_where_nothing_was_compiled(
    pico, plant, monkeypatch, gives_up
):
    from torch._dynamo.utils import counters

    def compiles(function, mode):
        left = [0 if gives_up else 2]
        modes.append(mode)

        def act(*asked, **how):
            if left[0]:
                counters["stats"]["unique_graphs"] += 1
                left[0] -= 1
            return function(*asked, **how)

        return act

    def sample(twin):
        twin.model.sample_actions = twin.model.act
        twin.predict_action_chunk = lambda inputs, noise: twin.model.sample_actions(inputs["batch"], noise)

    modes: list[str] = []
    plant(sample)
    monkeypatch.setattr(torch, "compile", compiles)
    monkeypatch.setitem(peers.PEERS, "lerobot-compiled", DressedCompiled)
    if gives_up:
        with pytest.raises(ValueError, match="ran lerobot-compiled without compiling it"):
            run(pico, peers=["lerobot-compiled"])
        return
    row = run(pico, names=["p"], peers=["lerobot-compiled"])["rows"][1]
    assert (row["policy"], row["graphs"], row["recompiled"], modes) == ("p/lerobot-compiled", 2, 0, ["default"])
    assert row["not_equal"][0] == "torch.compile: of the whole chunk, mode default"
    monkeypatch.setattr(peers, "LeRobotCompiled", DressedCompiled)
    asked = run(pico, peers=["lerobot-compiled:max-autotune"])["rows"][1]
    assert [row["runtime"], asked["runtime"]] == ["lerobot-compiled", "lerobot-compiled:max-autotune"]


def test_a_runtime_that_was_attached_gets_a_peer_too(pico, plant):
    plant()
    rows = run(Packed(pico, steps=2), names=["fast"])["rows"]
    assert [(row["policy"], row["runtime"]) for row in rows] == [("fast", "packed"), ("fast/lerobot", "lerobot")]
    assert rows[1]["beside"] == "fast" and "attach_s" not in rows[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"peers": ["lerobots"]}, "no peer 'lerobots'; did you mean 'lerobot'"),
        ({"peers": ["lerobot:default"]}, "only lerobot-compiled has a mode"),
        ({"peers": ["lerobot-compiled:fast"]}, "only lerobot-compiled has a mode, one of default"),
        ({"peers": ["lerobot", "lerobot"]}, "every peer once"),
        ({"peers": [], "dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"peers": [], "dtype": "bfloat16"}, "for policies that are loaded by name"),
        ({"peers": [], "device": "mps"}, "not on 'mps'"),
    ],
)
def test_what_cannot_be_asked_is_refused(pico, asked, message):
    with pytest.raises(ValueError, match=message):
        run(pico, **asked)


class Skips(Router):
    name = "skips"


def test_what_lerobot_cannot_be_is_refused(pico, monkeypatch):
    routed = surgery.cut(pico, [])
    routed.router = Skips(routed.streams)
    with pytest.raises(ValueError, match="decides itself which layers run"):
        _lerobot.host(routed, 3)
    half = surgery.cut(pico, []).to(torch.float16)
    with pytest.raises(ValueError, match="float32 or in bfloat16, this one is in float16"):
        _lerobot.host(half, 3)
    monkeypatch.setattr(_lerobot, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'lithe\\[lerobot\\]'"):
        _lerobot.host(pico, 3)


def test_the_table_and_the_page_say_what_is_equal_and_what_is_not(pico, plant, tmp_path):
    plant()
    document = run(pico, surgery.cut(pico, [KeepLayers("trunk", (0, 3))]), names=["teacher", "student"])
    page = io.StringIO()
    Console(width=100, file=page).print(B.table(document))
    text = page.getvalue()
    assert "teacher/lerobot beside teacher, student/lerobot beside student" in text, "the same holds for both"
    assert text.index("x faster") < text.index("  equal") < text.index("not equal") < text.index("arithmetic is slow")
    assert "error to eager" in text
    shown = report([result.save(document, tmp_path / "bench.json")], tmp_path / "page.html").read_text()
    assert "teacher/lerobot, student/lerobot" in shown and "Not equal: arithmetic is slow; " in shown


def test_the_command_line_has_peers_and_its_last_line_is_the_result(plant, tmp_path):
    plant(lambda twin: print("a peer talks"))
    asked = ["bench", "pi05", "--preset", "pico", "--peers", "lerobot", "--dtype", "float32", "--runs", "2"]
    done = CliRunner().invoke(app, [*asked, "--warmup", "0", "--out", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["policy"] for row in found["rows"]] == ["pi05", "pi05/lerobot"]
    assert "a peer talks" not in done.stdout


def test_presets_are_compared_by_actions_that_depend_on_their_weights():
    """Adaptive norms begin at zero, and then no layer of the expert does anything."""
    model = B.load("pi05:pico")
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(0))
    before = model.act(batch, noise)
    other_weights(SimpleNamespace(model=model))
    assert float((model.act(batch, noise) - before).abs().max()) > 1e-3 * float(before.abs().max())


def test_policies_by_name_are_loaded_in_the_type_that_was_asked_for():
    row = B.bench(["pi05:pico"], runs=2, warmup=0, dtype="bfloat16")
    assert row["settings"]["dtype"] == "bfloat16"


# -- what is counted ---------------------------------------------------------------------------------------------------


def event(name: str, start: float, device: str = "CPU", note: bool = False) -> Any:
    kind, span = getattr(launches.DeviceType, device), SimpleNamespace(start=start, end=start + 1)
    return SimpleNamespace(name=name, device_type=kind, time_range=span, is_user_annotation=note)


def test_launches_kernels_and_waits_of_one_chunk_are_told_apart():
    chunk = event(launches.CHUNK, 10)
    chunk.time_range.end = 20
    host = ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    events = [chunk, *(event(name, 11 + i) for i, name in enumerate(host)), event("aten::mm", 12)]
    events += [event("cudaLaunchKernel", 5), event("cudaDeviceSynchronize", 25)]  # before and after the chunk
    device = [event("gemm", 30, "CUDA"), event("norm", 40, "CUDA"), event("Memcpy DtoH", 41, "CUDA")]
    device += [event("a region of torch.compile", 30, "CUDA", note=True), event(launches.CHUNK, 30, "CUDA")]
    assert launches.counted([*events, *device]) == {"launches": 3, "kernels": 2, "host_syncs": 1}
    assert launches.counted(events) == {}, "a profile that saw no kernel counts nothing"


def test_nothing_is_counted_away_from_cuda(pico):
    asked: list[int] = []
    assert launches.launches(lambda: asked.append(1), torch.device("cpu")) == {} and not asked
    rows = run(pico, peers=(), runtimes=("eager", "packed"))["rows"]
    assert not {"launches", "kernels", "host_syncs"} & {key for row in rows for key in row}
    eager, packed = rows
    assert packed["error"] > 0 and packed["cosine"] == pytest.approx(1) and "error" not in eager
    own = (
        sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in pico.parameters()}.values()) / 2**20
    )
    assert packed["memory_mb"] > eager["memory_mb"] - 1 and packed["memory_mb"] > 1.3 * own, "the packed weights count"


def test_importing_the_bench_imports_no_lerobot():
    """On every line that runs on import, which is every line that is not indented."""
    for path in sorted(Path(B.__file__).parent.glob("*.py")):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert lines and not [line for line in lines if line.split()[1].split(".")[0] in ("lerobot", "transformers")]
