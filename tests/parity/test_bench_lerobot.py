"""LeRobot's own policies as peers of a bench: the very weights of a lithe policy, its actions, and what is refused."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from lithe import surgery
from lithe.bench import _lerobot, peers
from lithe.runtimes.eager import Eager
from lithe.surgery import KeepLayers

pytest.importorskip("lerobot", reason="LeRobot is an extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's and transformers' own
B = import_module("lithe.bench")  # the package's attribute of that name may be the function


@pytest.fixture(autouse=True)
def ceilings(monkeypatch):
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})


def run(*policies: Any, **settings: Any) -> dict[str, Any]:
    return B.bench(list(policies), **{"runs": 2, "warmup": 0, "peers": ["lerobot"], **settings})


@pytest.mark.parametrize("name", ["pi05", "pi0", "smolvla"])
def test_lerobots_policy_holds_the_very_tensors_and_agrees_at_both_boundaries(name):
    model = B.load(f"{name}:pico")
    document = run(model, names=["p"], views=1)
    ours, theirs = document["rows"]
    largest = 4.0
    assert theirs["error"] < 1e-5 * largest and theirs["end_to_end_error"] < 1e-4 * largest
    assert theirs["equal"][0] == "weights: the policy's own tensors"
    assert any("attention" in phrase for phrase in theirs["not_equal"])
    assert theirs["memory_mb"] < ours["memory_mb"] + 40


def test_a_tensor_of_lerobots_that_is_not_the_policys_is_found_out():
    """Strictly: too few, too many, another shape, another value."""
    model = B.load("pi05:pico")
    peer = peers.LeRobot(model)
    stack = peer.hosted.policy.model.paligemma_with_expert.gemma_expert.model.layers[2].mlp.up_proj
    stack.weight = nn.Parameter(stack.weight.clone() * 1.2)
    batch, noise = model.example(1), model.noise(1, torch.Generator().manual_seed(0))
    ours = Eager(model).chunk(batch, noise)
    assert float((peer.chunk(batch, noise) - ours).abs().max()) > 1e-3 * float(ours.abs().max())

    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="does not have this policy's tensors: 2 of its own are unknown here"):
        _lerobot.give(network, model, {}.get)
    small = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="cannot take this policy's weights"):
        _lerobot.give(network, small, lambda key: key)


def test_an_order_of_layers_that_lerobot_cannot_have_is_refused():
    from lithe.bench._lerobot_smolvla import order

    model = B.load("smolvla:pico")
    assert order(model) == (2, 1)
    assert order(surgery.cut(model, [KeepLayers("trunk", (1, 3))])) == (0, 1)
    with pytest.raises(ValueError, match="self self cross, an order that LeRobot's SmolVLA cannot have"):
        order(surgery.cut(model, [KeepLayers("trunk", (0, 2, 3))]))


def test_bfloat16_is_as_lerobot_keeps_it():
    model = B.load("pi05:pico", dtype="bfloat16")
    theirs = run(model, names=["p"])["rows"][1]
    assert theirs["dtype"] == "bfloat16+float32" and theirs["equal"][0].endswith("in LeRobot's types")
    assert any("in float32" in phrase for phrase in theirs["not_equal"]) and theirs["cosine"] > 0.999
    buffers = _lerobot.host(model, 3).policy.named_buffers()
    kept = {tensor.dtype for name, tensor in buffers if name.endswith(".inv_freq")}
    assert kept == {torch.float32}, "rounded frequencies answer with other actions"
