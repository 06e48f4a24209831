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
from lithe.runtimes import _int8
from lithe.runtimes._int8 import Int8
from lithe.runtimes.eager import Eager
from lithe.runtimes.packed import Packed
from lithe.runtimes.quantized import Quantized

FAMILIES = (("pi", {"variant": "pi05"}), ("pi", {"variant": "pi0"}), ("smolvla", {}))
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join([f[0], *f[1].values()]))


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


@every_family
def test_everything_in_8_bits_stays_close_and_says_how_close(family):
    model = policy(family)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rounded, exact = Quantized(model, seed=3, everywhere=True), Packed(model, seed=3)
    facts = rounded.facts()
    assert facts["int8"] > 5 * model.depth() and facts["int8_speedups"] == {}
    assert 0.99 <= facts["cosine"] < 1 and facts["error"] > 100 * exact.error > 0
    own, packed = held_mib(model.parameters()), held_mib(exact.held())
    assert own < held_mib(rounded.held()) < packed, "8 bits take less than what they stand for"
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(2))
    mine, theirs = rounded.chunk(batch, noise), exact.chunk(batch, noise)
    assert not torch.equal(mine, theirs)
    assert float(F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)) > 0.99
    del rounded
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(exact.chunk(batch, noise), theirs)


def test_small_matrices_are_left_alone():
    model = policy()
    runtime = Quantized(model, seed=1)
    assert runtime.facts()["int8"] == 0
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(2))
    assert torch.equal(runtime.chunk(batch, noise), Packed(model).chunk(batch, noise))


def test_only_what_wins_is_kept_and_each_shape_is_timed_once(monkeypatch):
    timed: list[tuple[int, ...]] = []

    def pretend(self: Any, weight: Any, made: Any, tokens: int) -> float:
        timed.append((tokens, *weight.shape))
        return 1.3 if weight.shape[0] > weight.shape[1] else 1.1

    monkeypatch.setattr(_int8, "SMALLEST", 1)
    monkeypatch.setattr(_int8.Choice, "_timed", pretend)
    model = policy()
    form = Quantized(model).form
    assert len(timed) == len(set(timed)) < 30
    for layer in form.trunk:
        assert isinstance(layer.gate_up, Int8) and not isinstance(layer.down, Int8)
    assert {tokens for tokens, *_ in timed} <= {min(256, n) for n in (model.config.horizon, *counts(model))}


def counts(model: Any) -> tuple[int, int]:
    c = model.config
    patches, views = (c.vision.image // c.vision.patch) ** 2, len(c.cameras)
    return patches * views, views * model.vision.size.tokens + c.text


def test_a_timing_tells_the_faster_one(monkeypatch):
    """The clock is pretended: 3 ms for the whole matrix, 2 ms in 8 bits."""
    weight = torch.randn(8, 8)
    clock = {False: 3.0, True: 2.0}

    def clocked(call: Any) -> float:
        return clock[any(isinstance(cell.cell_contents, Int8) for cell in call.__closure__)]

    monkeypatch.setattr(_int8, "wall_ms", clocked)
    assert _int8.Choice(False)._timed(weight, Int8(weight), 4) == 1.5


def test_a_policy_that_does_not_bear_it_is_refused(monkeypatch):
    monkeypatch.setattr(Quantized, "least_cosine", 1 - 1e-9)
    with pytest.raises(ValueError, match="quantized gives other actions than eager"):
        Quantized(policy(), everywhere=True)
    with pytest.raises(ValueError, match="quantized runs on cpu, the policy is on meta"):
        Quantized(policy().to("meta"))


def test_sessions_repeat_themselves():
    model = policy()
    runtime = Quantized(model, seed=4, everywhere=True)
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
