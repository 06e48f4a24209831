"""Fast runtimes: eager's actions for the same noise, static shapes, what they refuse, and graphs without a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lithe import registry
from lithe.data.fake import FakeData
from lithe.families._packing import Timed
from lithe.routers.base import Memory, Router
from lithe.runtimes import _exported, _fast, _kernels, cudagraph
from lithe.runtimes._recent import Recent
from lithe.runtimes.compiled import Compiled
from lithe.runtimes.cudagraph import Cudagraph
from lithe.runtimes.eager import Eager
from lithe.runtimes.onnx import Onnx
from lithe.runtimes.openvino import Openvino
from lithe.runtimes.packed import Packed
from lithe.types import Batch, Crossing, Route

CAMERAS = ("corner2", "gripperPOV", "corner3")
DATA = FakeData(cameras=CAMERAS, size=16)


def policy(dtype: torch.dtype = torch.float32, router: type[Router] | None = None, **settings: Any) -> Any:
    """A pico pi0.5 with three cameras and 40 words, every parameter moved."""
    settings = {"cameras": CAMERAS, "text": 40, **settings}
    model: Any = registry.get("families", "pi").fresh("pico", **settings)  # type: ignore[attr-defined]
    model.fit_to(DATA.stats, DATA.tasks, DATA.cameras)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.router = None if router is None else router(model.streams)
    return model.to(dtype).eval()


def observation(model: Any, seed: int = 0, live: int = 3, words: int = 11) -> Batch:
    batch = model.example(1, torch.Generator().manual_seed(seed))
    return replace(
        batch, live_BV=(torch.arange(3) < live)[None], text_BT=(torch.arange(model.config.text) < words)[None]
    )


def noise(model: Any, seed: int = 5, batch: int = 1) -> Tensor:
    return model.noise(batch, torch.Generator().manual_seed(seed))


class Ahead(Router):
    """Decides ahead: a prompt of more than 12 words skips layer 1, another one layers 2 and 3."""

    name = "ahead"

    def ahead(self, sight, memory):
        long = sight.text_BN.sum(dim=1, keepdim=True) > 12
        return torch.where(long, torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))


class OnTheWay(Router):
    """Asks for the actions so far, and crosses layer 2 through an adapter when an episode is one pass old."""

    name = "on_the_way"

    def __init__(self, sizes, **settings):
        super().__init__(sizes, **settings)
        self.answers: list[Tensor] = []

    def memory(self):
        return Passes()

    def landing(self, i):
        return 3 if i == 2 else None

    def allows(self, i, memory):
        return memory.passes > 0

    def crosses(self, i, x_BND, valid_BN, probe):
        self.answers += [probe(), probe()]
        return True

    def bridge(self, stream, i, x):
        return x * 0.5


class Passes(Memory):
    def __init__(self):
        self.passes = 0

    def note(self, actions_HA):
        self.passes += 1


def agree(chunk: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert chunk.shape == expected.shape and chunk.dtype == expected.dtype
    assert float((chunk - expected).abs().max()) <= tolerance * float(expected.abs().max())


# -- packed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["pi05", "pi0"])
def test_packed_answers_as_eager_does(variant):
    model = policy(variant=variant)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    eager, packed = Eager(model, seed=3), Packed(model, seed=3)
    assert 0 <= packed.error < 1e-5 and packed.cosine > 1 - 1e-9 and packed.taken == []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        pictures = rng.integers(0, 256, (2 + seed, 20, 24, 3), dtype=np.uint8)
        seen: Any = {f"observation.images.{c}": picture for c, picture in zip(CAMERAS, pictures)}
        seen |= {"observation.state": rng.uniform(-1, 1, 4).astype(np.float32), "task": "open the drawer"}
        np.testing.assert_allclose(packed.infer(seen), eager.infer(seen), atol=1e-4)
    three = model.example(3)
    agree(packed.chunk(three, noise(model, batch=3)), eager.chunk(three, noise(model, batch=3)))
    marks: list[str] = []
    packed.chunk(observation(model), noise(model), marks.append)
    assert marks == ["vision", "prefix", "denoise"]
    del packed
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_packed_in_bfloat16_stays_close():
    model = policy(torch.bfloat16)
    packed = Packed(model)
    assert packed.cosine > 0.9999 and 0 < packed.error < 0.1
    agree(packed.chunk(observation(model), noise(model)), Eager(model).chunk(observation(model), noise(model)), 0.05)


def test_routers_take_the_same_ways():
    model = policy(router=Ahead)
    eager, packed = Eager(model), Packed(model)
    for words in (11, 13):
        batch = observation(model, words=words)
        agree(packed.chunk(batch, noise(model)), eager.chunk(batch, noise(model)))
    assert [route.run for route in packed.taken] == [route.run for route in eager.taken]
    assert len({route.run for route in packed.taken}) == 2

    model = policy(router=OnTheWay)
    eager, packed = Eager(model), Packed(model)
    for _ in range(2):
        agree(packed.answer(observation(model), noise(model)), eager.answer(observation(model), noise(model)))
    assert [(r.run, r.crossings) for r in packed.taken] == [(r.run, r.crossings) for r in eager.taken]
    assert packed.taken[1] == replace(Route.without(4, 2), crossings=(Crossing(2, 3),))
    theirs, mine = model.router.answers[:2], model.router.answers[2:]
    for probed, expected in zip(mine, theirs, strict=True):
        agree(probed, expected)


# -- compiled ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the first compilation of a process
def test_compiled_answers_as_eager_does_and_never_compiles_twice():
    model = policy(router=Ahead)
    eager, compiled = Eager(model), Compiled(model)
    pieces = len(compiled.form.pieces)
    assert compiled.graphs == pieces and compiled.error < 1e-5
    for seed, words in enumerate((17, 31, 32, 25)):  # one bucket, two routes... and other observations every time
        batch = observation(model, seed, words=words)
        agree(compiled.chunk(batch, noise(model, seed)), eager.chunk(batch, noise(model, seed)))
    without = Route.without(4, 0)
    agree(compiled.chunk(batch, noise(model), route=without), eager.chunk(batch, noise(model), route=without))
    assert (compiled.graphs, compiled.recompiled) == (pieces, 0)
    shallow = registry.get("runtimes", "compiled")(policy(depth=2))
    assert (shallow.graphs, shallow.recompiled) == (pieces, 0), "depth takes no compilation"
    short = observation(model, words=3)
    agree(compiled.chunk(short, noise(model)), eager.chunk(short, noise(model)))
    assert (compiled.graphs, compiled.recompiled) == (2 * pieces, 0), "another bucket has graphs of its own"


def test_compiled_smolvla():
    model: Any = registry.get("families", "smolvla").fresh("pico", depth=4)  # type: ignore[attr-defined]
    compiled, eager = Compiled(model.eval()), Eager(model)
    assert (compiled.graphs, compiled.recompiled) == (len(compiled.form.pieces), 0)
    three = model.example(3)
    agree(compiled.chunk(three, noise(model, batch=3)), eager.chunk(three, noise(model, batch=3)))
    assert (compiled.graphs, compiled.recompiled) == (len(compiled.form.pieces), 0)


def test_a_recompilation_would_be_counted():
    kernel = _kernels.Kernel(_scaled)
    for size in (3, 3, 4):
        kernel(torch.ones(size), torch.ones(size))
    assert kernel.graphs == 2


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    return x * 2 + y


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compiled needs a C\+\+ compiler .no-such-compiler is not there"):
        Compiled(policy())
    monkeypatch.setattr(_kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="cudagraph needs Triton"):
        _kernels.need_compiler("cudagraph", "cuda")


def test_a_failing_compiler_is_said():
    def failing(x: Tensor) -> Tensor:
        return x + float(str(x)[0])

    with pytest.raises(ValueError, match="use the runtime packed"):
        _kernels.Kernel(failing)(torch.ones(2))


# -- cudagraph, with graphs that a CPU replays -------------------------------------------------------------------------


def test_graphs_are_kept_by_shape_and_route(graphs_on_cpu, monkeypatch):
    model = policy(router=Ahead)
    eager, runtime = Eager(model), Cudagraph(model)
    graphs_on_cpu.captures = 0
    runtime.shapes.kept.clear()
    held: list[tuple[Tensor, Tensor]] = []

    def ask(seed: int, words: int, live: int = 3) -> int:
        before, batch = graphs_on_cpu.captures, observation(model, seed, live, words)
        held.append((runtime.chunk(batch, noise(model, seed)), eager.chunk(batch, noise(model, seed))))
        return graphs_on_cpu.captures - before

    assert [ask(0, 5), ask(1, 11), ask(2, 12)] == [3, 0, 0], "one bucket, one route: three graphs once"
    assert [ask(3, 13), ask(4, 16), ask(5, 5)] == [2, 0, 0], "another route has its own prefix and denoise"
    assert [ask(6, 17), ask(7, 5, live=2), ask(8, 40, live=2)] == [3, 3, 3]
    for chunk, expected in held:  # all of them at the end: an answer must not be overwritten by the next
        agree(chunk, expected)
    monkeypatch.setattr(runtime.shapes, "limit", 4)
    assert [ask(0, 5), ask(1, 5, live=1), ask(2, 5)] == [0, 3, 0] and ask(3, 17) == 3, "the one unused for longest went"


def test_the_latest_are_kept():
    recent, made = Recent(2), []
    for key in "abacbb":
        recent.get(key, lambda key=key: made.append(key) or key.upper())
    assert made == ["a", "b", "c", "b"] and list(recent.kept) == ["c", "b"]

    def failing() -> str:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        recent.get("d", failing)
    assert list(recent.kept) == ["c", "b"]


def test_a_failing_capture_is_said(monkeypatch):
    class Nothing:
        def __init__(self, *args: Any, **settings: Any):
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    for name in ("Stream", "current_stream", "set_stream", "current_device", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", Nothing, raising=False)
    assert cudagraph.captured(lambda: 5, None)[1] == 5

    def failing() -> None:
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(ValueError, match=r"capturing a CUDA graph failed .no memory left.: use the runtime packed"):
        cudagraph.captured(failing, None)


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


class TorchCuda:
    """What torch 2.11 does to the process in a capture, and leaves undone when the capture cannot be ended."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.default = self.current = Stream()
        self.under_way: list[Any] = []
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "stream", self.within)
        patch.setattr(torch.cuda, "graph", lambda graph, pool: Capture(self, pool))
        patch.setattr(torch.cuda, "CUDAGraph", object)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    @contextmanager
    def within(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def end(self, device: int, pool: Any) -> None:
        if pool not in self.under_way:
            raise RuntimeError("not currently recording to this pool")
        self.under_way.remove(pool)


class Capture:
    def __init__(self, cuda: TorchCuda, pool: Any):
        self.cuda, self.pool = cuda, pool

    def __enter__(self) -> None:
        assert not self.cuda.under_way, "empty_cache: a capture is under way"
        self.before, self.cuda.current = self.cuda.current, Stream()
        self.cuda.under_way.append(self.pool)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.under_way.remove(self.pool)
        self.cuda.current = self.before


@pytest.mark.parametrize("sound", [0, cudagraph.WARMUP], ids=["before", "inside"])
def test_a_capture_that_fails_leaves_the_process_as_it_was(monkeypatch, sound):
    cuda, left = TorchCuda(monkeypatch), [sound]

    def failing() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("operation not permitted when stream is capturing")

    for _ in range(2):
        left[0] = sound
        with pytest.raises(ValueError, match=r"failed .operation not permitted when stream is capturing.: use"):
            cudagraph.captured(failing, "pool")
        assert cuda.current is cuda.default and not cuda.under_way
    for pool in ("pool", "another"):
        assert cudagraph.captured(lambda: 5, pool)[1] == 5


def test_variants_of_a_runtime_are_told_apart(graphs_on_cpu, monkeypatch):
    monkeypatch.setattr(cudagraph, "need_compiler", lambda *asked: None)
    monkeypatch.setattr(_fast.Fast, "_compared", lambda self: (0.0, 1.0))  # nothing is run
    model = policy()
    assert [Cudagraph(model, fuse=fuse).title for fuse in (False, True)] == ["cudagraph", "cudagraph-fused"]
    assert [Openvino(model, half=half).title for half in (False, True)] == ["openvino", "openvino-half"]
    assert Packed(model).title == "packed"


def test_a_router_on_the_way_is_refused(graphs_on_cpu):
    with pytest.raises(ValueError, match="on_the_way decides on the way"):
        Cudagraph(policy(router=OnTheWay))


# -- onnx and openvino -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Onnx, Openvino])
def test_graphs_are_exported_once_for_each_shape_and_route(kind, monkeypatch):
    written: list[str] = []
    real = _exported.write
    monkeypatch.setattr(_exported, "write", lambda *given: (written.append(given[2].stem), real(*given))[1])
    model = policy(router=Ahead)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    eager, runtime = Eager(model, steps=3), kind(model, steps=3)
    assert 0 < runtime.error < 1e-5 and runtime.cosine > 1 - 1e-9
    held: list[tuple[Tensor, Tensor]] = []

    def ask(seed: int, words: int) -> int:
        before = len(written)
        batch = observation(model, seed, words=words)
        held.append((runtime.chunk(batch, noise(model, seed)), eager.chunk(batch, noise(model, seed))))
        return len(written) - before

    runtime.shapes.kept.clear()
    assert [ask(0, 5), ask(1, 11), ask(2, 13), ask(3, 16), ask(4, 5)] == [3, 0, 2, 0, 0], "another route: two more"
    assert any(name.endswith("16-words-layers-0-2-3-step-of-3") for name in written)
    assert [route.run for route in runtime.taken] == [route.run for route in eager.taken]
    for chunk, expected in held:  # all of them at the end: an answer must not be overwritten by the next
        agree(chunk, expected)
    marks: list[str] = []
    runtime.chunk(observation(model), noise(model), marks.append)
    assert marks == ["vision", "prefix", "denoise"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_exported_files_go_with_the_last_twin(monkeypatch):
    monkeypatch.setattr(Onnx, "_compared", lambda self: (0.0, 1.0))  # nothing is run
    sessions = [Onnx(policy())]
    sessions.append(sessions[0].twin())
    home = sessions[0].home
    (home / "0.onnx").touch()
    sessions.pop(0)
    gc.collect()
    assert home.exists(), "a twin has lost its files"
    sessions.clear()
    gc.collect()
    assert not home.exists(), "exported files stay behind"


def test_policies_that_share_a_folder_keep_their_files(monkeypatch, tmp_path):
    monkeypatch.setattr(_exported, "write", lambda function, given, path: path.touch() or function(given))
    monkeypatch.setattr(Onnx, "open", lambda self, path, inputs: None)
    monkeypatch.setattr(
        Onnx, "_compared", lambda self: self.shapes.get(0, lambda: _exported.Shape(self, feed)) and (0, 1)
    )
    model, other = policy(), policy()
    feed = model.packed().trim(observation(model), True)
    with torch.no_grad():
        other.expert.layers[0].q_proj.weight[0, 0] += 1e-3
    counts = []
    for kind in (model, other, model):
        Onnx(kind, into=tmp_path)
        counts.append(len(list(tmp_path.iterdir())))
    assert counts == [1, 2, 2], "another policy has files of its own, the same one its old ones"


def test_openvino_in_half_precision_is_held_to_an_angle():
    runtime = Openvino(policy(), half=True)
    assert 0.9999 <= runtime.cosine <= 1.0 and runtime.least_cosine == 0.9999


def test_what_cannot_be_exported_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="onnx takes float32 policies, not bfloat16: load it in float32"):
        Onnx(policy(torch.bfloat16))
    with pytest.raises(ValueError, match=r"on_the_way decides on the way.*use the runtime packed or compiled"):
        Onnx(policy(router=OnTheWay))
    with pytest.raises(ValueError, match="openvino runs on cpu, the policy is on meta"):
        Openvino(policy().to("meta"))

    def failing(*args: object, **settings: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator")

    with monkeypatch.context() as patched:
        patched.setattr(torch.onnx, "export", failing)
        with pytest.raises(ValueError, match=r"exporting to ONNX failed: use the runtime packed .no such operator"):
            Onnx(policy())
    monkeypatch.setattr(_exported, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    with pytest.raises(ValueError, match=r"openvino needs openvino: install lithe.openvino., or use packed"):
        Openvino(policy())


def test_values_are_taken_apart_and_put_together():
    one, two, three = (torch.full((1,), float(i)) for i in range(3))
    template = (Timed(scale_in=one), [two, None, 5], {"left": "alone"})
    assert _exported.tensors({"a": template}) == {"a.0.scale_in": one, "a.1.0": two}
    made = _exported.rebuilt(template, [three, one])
    assert made == (Timed(scale_in=three), [one, None, 5], {"left": "alone"})
    with pytest.raises(AssertionError, match="more tensors than places"):
        _exported.rebuilt(template, [three, one, two])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_devices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cudagraph runs on cuda, the policy is on cpu"):
        Cudagraph(policy())
    with pytest.raises(ValueError, match="packed runs on cpu and cuda, the policy is on meta"):
        Packed(policy().to("meta"))
    spread = policy()
    spread.action_out.to("meta")
    with pytest.raises(ValueError, match="spread over cpu, meta"):
        Packed(spread)
    model = policy()
    packed, batch = Packed(model), observation(model)
    with pytest.raises(ValueError, match="the observation is on meta, the policy on cpu"):
        packed.chunk(batch.to("meta"), noise(model))
    with pytest.raises(ValueError, match="the noise is on meta"):
        packed.chunk(batch, noise(model).to("meta"))


def test_a_runtime_that_acts_differently_is_refused(monkeypatch):
    model = policy()
    form = type(model.packed())
    denoise = form.denoise
    monkeypatch.setattr(form, "denoise", lambda self, *rest: denoise(self, *rest) * 1.01)
    with pytest.raises(ValueError, match="packed gives other actions than eager"):
        Packed(model)
    monkeypatch.setattr(form, "denoise", lambda self, *rest: denoise(self, *rest) + 0.2)
    with pytest.raises(ValueError, match="packed gives other actions than eager"):
        Packed(policy(torch.bfloat16))
