"""8 bits: the rounding that is meant, only where it was seen to win, and a policy that is never written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lithe import registry
from lithe.data.fake import FakeData
from lithe.measure import held_mib
from lithe.runtimes import _rounded, fp8
from lithe.runtimes._fp8 import Float8, rounded
from lithe.runtimes._int8 import Int8
from lithe.runtimes.eager import Eager
from lithe.runtimes.fp8 import Fp8
from lithe.runtimes.packed import Packed
from lithe.runtimes.quantized import Quantized

FAMILIES = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {}))
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join([f[0], *f[1].values()]))


@pytest.fixture(params=[Quantized, Fp8], ids=lambda kind: kind.name)
def kind(request, graphs_on_cpu, monkeypatch) -> Any:
    """Each runtime in 8 bits; `fp8` with a CPU that plays a GPU of the right generation."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return request.param


def policy(family: tuple[str, dict[str, Any]] = FAMILIES[0], dtype: torch.dtype = torch.float32) -> Any:
    kind: Any = registry.get("families", family[0])
    model, generator = kind.fresh("pico", **family[1]), torch.Generator().manual_seed(1)
    data = FakeData(cameras=model.spec.cameras, size=16)
    model.fit_to(data.stats, data.tasks, data.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.03), (torch.bfloat16, 0.035)], ids=str)
def test_a_product_is_off_by_two_roundings_and_no_more(dtype, most):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 64), (2, 5, 64)))
    weight[0] *= 100  # one scale for all outputs would leave the others nothing
    bias = torch.randn(40, generator=generator).to(dtype)
    made: Any = Int8(weight)
    exact = F.linear(x.double(), weight.double())
    for found in (F.linear(x, made), F.linear(x, made, bias) - bias, F.linear(x, made, bias=bias) - bias):
        assert found.dtype == dtype and found.shape == (2, 5, 40)
        error = (found.double() - exact).square().sum((0, 1)) / exact.square().sum((0, 1))
        assert float(error.max()) < most**2, "an output lost its digits"
    assert not torch.equal(F.linear(x, made), F.linear(x, weight)), "nothing was rounded"
    with pytest.raises(AssertionError, match="can only be multiplied"):
        torch.matmul(x, made)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 0.008)], ids=str)
def test_fp8_keeps_four_digits_of_each_number_and_multiplies_exactly(dtype, most):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 64), (2, 5, 64)))
    weight[0] *= 100  # floating point: the others lose nothing by that
    bias = torch.randn(48, generator=generator).to(dtype)
    made: Any = Float8(weight)
    near = []
    for exact, (eight, scale) in ((x, rounded(x)), (weight, (made.rounded, made.scale))):
        assert eight.dtype == torch.float8_e4m3fn
        near.append(eight.double() * scale)
        off, least = (near[-1] - exact.double()).abs(), 2.0**-9 * scale  # and what is next to nothing
        assert (off <= 0.51 * torch.maximum(exact.double().abs() / 8, least)).all() and off.max() > 0
    expected, room = F.linear(*near), most * F.linear(*[part.abs() for part in near])
    for found, added in ((F.linear(x, made), 0.0), (F.linear(x, made, bias=bias), bias.double())):
        assert found.dtype == dtype and found.shape == (2, 5, 48)
        assert ((found.double() - expected - added).abs() <= room).all()
    with pytest.raises(AssertionError, match="can only be multiplied"):
        torch.matmul(x, made)


@every_family
def test_everything_in_8_bits_stays_close_and_says_how_close(family, kind):
    model = policy(family)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    coarse, exact = kind(model, seed=3, everywhere=True), Packed(model, seed=3)
    facts = coarse.facts()
    assert facts["rounded"] > 5 * model.depth() and facts["rounded_speedups"] == {}
    assert 0.99 <= facts["cosine"] < 1 and facts["error"] > 100 * exact.error > 0
    own, packed = held_mib(model.parameters()), held_mib(exact.held())
    assert own < held_mib(coarse.held()) < packed, "8 bits take less than what they stand for"
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(2))
    mine, theirs = coarse.chunk(batch, noise), exact.chunk(batch, noise)
    assert not torch.equal(mine, theirs)
    assert float(F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)) > 0.99
    del coarse
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(exact.chunk(batch, noise), theirs)


def test_small_matrices_are_left_alone(kind):
    model = policy()
    runtime = kind(model, seed=1)
    assert runtime.facts()["rounded"] == 0
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(2))
    assert torch.equal(runtime.chunk(batch, noise), Packed(model).chunk(batch, noise))


def test_only_what_wins_is_kept_and_each_shape_is_timed_once(kind, monkeypatch):
    timed: list[tuple[int, ...]] = []

    def pretend(self: Any, weight: Any, made: Any, tokens: int) -> float:
        timed.append((tokens, *weight.shape))
        return 1.3 if weight.shape[0] > weight.shape[1] else 1.1

    monkeypatch.setattr(_rounded, "SMALLEST", 1)
    monkeypatch.setattr(_rounded.Choice, "_timed", pretend)
    model = policy()
    form = kind(model).form
    assert len(timed) == len(set(timed)) < 30
    for layer in form.trunk:
        assert isinstance(layer.gate_up, kind.kind) and not isinstance(layer.down, kind.kind)
    assert {tokens for tokens, *_ in timed} <= {min(256, n) for n in (model.config.horizon, *counts(model))}


def counts(model: Any) -> tuple[int, int]:
    c = model.config
    patches, views = (c.vision.image // c.vision.patch) ** 2, len(c.cameras)
    return patches * views, views * model.vision.size.tokens + c.text


@pytest.mark.parametrize("eight", [Int8, Float8])
def test_a_timing_tells_the_faster_one(eight):
    """The clock is pretended: 3 ms for the whole matrix, 2 ms in 8 bits."""
    weight = torch.randn(16, 16)

    def clock(call: Any) -> float:
        return 2.0 if any(isinstance(cell.cell_contents, eight) for cell in call.__closure__) else 3.0

    assert _rounded.Choice(eight, clock, 8, everywhere=False)._timed(weight, eight(weight), 4) == 1.5


def test_a_product_for_graphs_is_timed_inside_one(graphs_on_cpu, monkeypatch):
    monkeypatch.setattr(fp8, "wall_ms", lambda call, device: call() and 40.0)
    calls: list[int] = []
    assert Fp8.clock(lambda: calls.append(1) or torch.ones(1)) == 2.0
    assert graphs_on_cpu.captures == 1 and len(calls) == 1 + fp8.REPLAYS


def test_a_gpu_is_given_rows_one_behind_the_other(monkeypatch):
    given: list[bool] = []

    def multiplied(x: Any, weight: Any, *scales: Any, out_dtype: Any) -> Any:
        given.append(x.is_contiguous() and weight.t().is_contiguous())
        return torch.zeros(len(x), weight.shape[1])

    monkeypatch.setattr(torch, "_scaled_mm", multiplied)
    F.linear(torch.randn(32, 5).t(), Float8(torch.randn(48, 32)))  # type: ignore[arg-type]
    assert given == [True]


def test_what_fp8_cannot_multiply_stays_as_it_is():
    choice = _rounded.Choice(Float8, lambda call: 1.0, 8, everywhere=True)
    odd, even = torch.randn(16, 24), torch.randn(16, 32)
    assert choice(odd, 4) is odd and isinstance(choice(even, 4), Float8)
    nothing, x = Float8(torch.zeros(16, 32)), torch.zeros(3, 32)
    assert torch.equal(F.linear(x, nothing), torch.zeros(3, 16)), "all zeros have a scale, too"


def test_an_older_gpu_is_refused(graphs_on_cpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ValueError, match=r"compute capability 8.6, and .* came with 8.9 .Ada, Hopper.: use cudagraph"):
        Fp8(policy())


def test_a_policy_that_does_not_bear_it_is_refused(monkeypatch):
    monkeypatch.setattr(Quantized, "least_cosine", 1 - 1e-9)
    with pytest.raises(ValueError, match="quantized gives other actions than eager"):
        Quantized(policy(), everywhere=True)
    with pytest.raises(ValueError, match="fp8 runs on cuda, the policy is on cpu"):
        Fp8(policy())
    with pytest.raises(ValueError, match="quantized runs on cpu, the policy is on meta"):
        Quantized(policy().to("meta"))


def test_sessions_repeat_themselves(kind):
    model = policy()
    runtime = kind(model, seed=4, everywhere=True)
    rng = np.random.default_rng(0)
    seen: Any = {
        f"observation.images.{c}": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for c in model.spec.cameras
    }
    seen |= {
        "observation.state": rng.uniform(-1, 1, model.spec.state_dim).astype(np.float32),
        "task": "open the drawer",
    }
    first = runtime.infer(seen)
    runtime.reset(4)
    assert np.array_equal(runtime.infer(seen), first) and not np.array_equal(Eager(model, seed=4).infer(seen), first)
