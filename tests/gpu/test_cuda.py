"""Runtimes on a real GPU: eager's actions for the same noise, graphs kept and not captured again, no waiting inside.

`make gpu` runs this file on a machine with an NVIDIA GPU, where torch is all that has to be there. Elsewhere it is left
out: everything that needs no GPU is tested in tests/unit/test_runtimes.py. LITHE_GPU=cpu runs what a CPU can run, to
prove the file itself.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from lithe import api, registry, surgery
from lithe.data.fake import FakeData
from lithe.runtimes import fp8
from lithe.runtimes._fp8 import Float8
from lithe.runtimes.base import Runtime

PLACE = os.environ.get("LITHE_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(PLACE == "cuda" and not torch.cuda.is_available(), reason="needs an NVIDIA GPU: make gpu there"),
]
needs_cuda = pytest.mark.skipif(PLACE != "cuda", reason="LITHE_GPU=cpu")
CAMERAS = ("corner2", "gripperPOV", "corner3")
DATA = FakeData(cameras=CAMERAS, size=16)
FAMILIES = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {}))
RUNTIMES = ("packed", "compiled", pytest.param("cudagraph", marks=needs_cuda))
LEAST_COSINE = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.9999}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join([f[0], *f[1].values()]))
every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


def policy(
    family: tuple[str, dict[str, Any]] = FAMILIES[0], method: str = "", dtype: Any = torch.float32, **knobs: Any
) -> Any:
    """A pico policy on the device, every parameter moved; routed if a method is named."""
    kind: Any = registry.get("families", family[0])
    model = kind.fresh("pico", cameras=CAMERAS, **family[1])
    model.fit_to(DATA.stats, DATA.tasks, DATA.cameras)
    move(model, 0.1)
    if method:
        model = surgery.cut(model, api.method(method, **knobs).calibrated(model, DATA).cut(model))
        move(model.router, 0.5)  # untrained, it would do the same for every observation
    return model.to(PLACE, dtype).eval()


def move(module: Any, far: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=far)


def attach(name: str, model: Any) -> Any:
    kind: Any = registry.get("runtimes", name)
    return kind(model, seed=3)


def seen(seed: int, live: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (live, 20, 24, 3), dtype=np.uint8)
    task = DATA.tasks[seed % len(DATA.tasks)]
    found: Any = {f"observation.images.{c}": picture for c, picture in zip(CAMERAS, pictures)}
    return found | {"observation.state": rng.uniform(-1, 1, 4).astype(np.float32), "task": task}


def agree(runtime: Runtime, eager: Runtime, observations: list[Any], least: float) -> None:
    for observation in observations:
        mine, expected = (torch.from_numpy(r.infer(observation)).double().flatten() for r in (runtime, eager))
        assert torch.isfinite(mine).all() and float(expected.std()) > 1e-3
        assert float(torch.nn.functional.cosine_similarity(mine, expected, dim=0)) >= least


@every_runtime
@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_actions_for_the_same_noise(runtime, family, dtype):
    model = policy(family, dtype=dtype)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attached = attach(runtime, model)
    agree(attached, attach("eager", model), [seen(i) for i in range(3)], LEAST_COSINE[dtype])
    del attached
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_runtime
def test_fewer_views_are_answered_too(runtime):
    model = policy()
    agree(attach(runtime, model), attach("eager", model), [seen(0), seen(1, 2), seen(2, 1), seen(3)], 1 - 1e-6)


@every_runtime
@pytest.mark.parametrize(
    "knobs", [{"method": "actdistill", "start": 0.1}, {"method": "mole"}], ids=lambda k: k["method"]
)
def test_routes_that_are_decided_ahead_are_followed(runtime, knobs):
    model = policy(**knobs)
    attached, eager = attach(runtime, model), attach("eager", model)
    agree(attached, eager, [seen(i) for i in range(4)], 1 - 1e-6)
    routes = [r.run for r in attached.taken]
    assert routes == [r.run for r in eager.taken] and not all(map(all, routes))


@needs_cuda
@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_8_bits_stay_close_and_are_asked_inside_graphs(family, dtype):
    model = policy(family, dtype=dtype)
    if torch.cuda.get_device_capability() < fp8.ABLE:
        with pytest.raises(ValueError, match="use cudagraph"):
            attach("fp8", model)
        return
    coarse = fp8.Fp8(model, seed=3, everywhere=True)
    assert coarse.facts()["rounded"] > 5 * model.depth() and coarse.cosine < 1
    agree(coarse, attach("eager", model), [seen(i) for i in range(3)], 0.98)
    wide = torch.randn(2048, 2048, device=PLACE, dtype=dtype)
    eight: Any = Float8(wide)
    assert fp8.Fp8.clock(lambda: torch.nn.functional.linear(wide, eight)) > 0


@needs_cuda
def test_what_decides_on_the_way_is_refused_before_anything_is_captured():
    with pytest.raises(ValueError, match="decides on the way"):
        attach("cudagraph", policy(method="dysl", static=(0, 3), pre_skip=False, post_skip=False))


@needs_cuda
def test_a_second_observation_captures_nothing():
    runtime = attach("cudagraph", policy())
    runtime.infer(seen(0))
    graphs = {id(shape): len(shape.routes.kept) for shape in runtime.shapes.kept.values()}
    held = torch.cuda.memory_allocated()
    for i in range(4, 40, 4):  # the same prompt
        runtime.infer(seen(i))
    assert {id(shape): len(shape.routes.kept) for shape in runtime.shapes.kept.values()} == graphs
    assert torch.cuda.memory_allocated() <= held + (1 << 20), "memory grows with every observation"


@needs_cuda
@pytest.mark.parametrize("runtime", ["packed", "compiled", "cudagraph"])
def test_the_host_never_waits_between_the_observation_and_the_actions(runtime):
    model = policy()
    attached = attach(runtime, model)
    batch = model.observe([seen(0)]).to("cuda")
    noise = model.noise(1, torch.Generator().manual_seed(0)).to("cuda")
    attached.chunk(batch, noise)  # made once for this shape
    feed = attached.form.trim(batch, attached.bucketed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attached.play(feed, noise, None, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_a_failing_capture_leaves_the_policy_as_it_was():
    model = policy()
    eager = attach("eager", model)
    expected = eager.infer(seen(0))
    runtime = attach("cudagraph", model)
    runtime.shapes.kept.clear()
    runtime.form.read = lambda *rest: torch.zeros(1, device="cuda").item()  # a wait, which no capture can hold
    stream = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(ValueError, match="capturing a CUDA graph failed") as caught:
            runtime.infer(seen(0))
        assert "previous error during capture" not in str(caught.value), "the real cause is masked"
        assert torch.cuda.current_stream() == stream
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    eager.reset(3)
    assert np.array_equal(eager.infer(seen(0)), expected)
    agree(attach("cudagraph", model), attach("eager", model), [seen(0), seen(1)], LEAST_COSINE[torch.float32])
    torch.rand(1, device="cuda")  # of the generator that captures register themselves with
