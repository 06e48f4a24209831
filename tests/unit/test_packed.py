"""Every edit of the packed form is exact: in float64 it gives the family's own numbers to 1e-12, edit by edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lithe import registry
from lithe.families import _attention, _packing
from lithe.families._attention import AdaptiveNorm, GemmaLayer, Widths
from lithe.families._vision import to_unit
from lithe.families.base import Family
from lithe.surgery import KeepLayers, cut
from lithe.types import Batch, Route

EXACT = 1e-12
VARIANTS = {"pi05": {"variant": "pi05"}, "pi0": {"variant": "pi0"}}
CAMERAS = ("left", "wrist", "right")


@pytest.fixture(autouse=True)
def _nothing_is_rounded_to_float32(monkeypatch):
    """The families compute norms, attention and times in float32 at least; here that means float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def policy(kind: str = "", dtype: torch.dtype = torch.float64, family: str = "pi", **settings: Any) -> Any:
    """A pico policy with every parameter moved, so that no gate is shut and no gain is 1."""
    settings = {"cameras": CAMERAS, "text": 40, **VARIANTS.get(kind, {}), **settings}
    model: Any = registry.get("families", family).fresh("pico", **settings)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


def observation(model: Any, live: tuple[bool, ...] = (True, True, True), words: int = 11) -> Batch:
    """One observation; pictures of masked cameras and padded words are random, for nobody may look at them."""
    batch = model.example(1)
    text = torch.arange(model.config.text)[None] < words
    return replace(batch, live_BV=torch.tensor([live]), text_BT=text, state_BS=batch.state_BS.double())


def noise(model: Any) -> Tensor:
    return model.noise(1, torch.Generator().manual_seed(5)).double()


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert a.dtype == b.dtype == torch.float64 and a.shape == b.shape and a.isfinite().all()
    return float((a - b).abs().max() / b.abs().max())


# -- each edit by itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("adaptive", [False, True])
@torch.no_grad()
def test_folded_norms_and_packed_projections_are_the_layer(adaptive, kv_heads):
    torch.manual_seed(0)
    layer = GemmaLayer(Widths(24, 40, 4, kv_heads, 8), 0, 12 if adaptive else None).double()
    for parameter in layer.parameters():
        parameter.normal_()
    x, cond = torch.randn(1, 5, 24).double(), torch.randn(1, 1, 12).double() if adaptive else None
    past = torch.randn(1, kv_heads, 7, 8).double(), torch.randn(1, kv_heads, 7, 8).double()
    rotation = _attention.rope(torch.arange(7, 12)[None], 8)
    mask = torch.rand(1, 1, 5, 12) > 0.2
    expected, own, _ = layer(x, rotation, mask, cond, past)

    if adaptive:
        weights = _packing.pack(layer)
        timed = []
        for norm, weight in ((layer.input_norm, weights.qkv), (layer.post_norm, weights.gate_up)):
            assert isinstance(norm, AdaptiveNorm)
            scale, shift, gate = norm.dense(cond)[0, 0].chunk(3)
            timed += [1 + scale, weight @ shift, gate]
        row = _packing.Timed(*timed)
    else:
        weights, row = _packing.pack(layer, 1 + layer.input_norm.weight, 1 + layer.post_norm.weight), _packing.UNTIMED
    keys, values = (torch.cat([p, torch.full_like(p[:, :, :5], 9.0)], dim=2) for p in past)
    turn = _packing.packed_rope(rotation, torch.float64)
    after = _packing.gemma_layer(x, weights, turn, _packing.added(mask, torch.float64), keys, values, row)
    assert far(after, expected) < EXACT
    for buffer, before, mine in zip((keys, values), past, own, strict=True):
        assert torch.equal(buffer[:, :, :7], before) and far(buffer[:, :, 7:], mine) < EXACT


@pytest.mark.parametrize("views", [1, 3])
@torch.no_grad()
def test_the_packed_tower_is_the_tower(views):
    model = policy()
    pixels = to_unit(model.example(1).images_BVCYX[:, :views])
    assert far(_packing.Tower(model.vision)(pixels), model.see(pixels)) < EXACT


@pytest.mark.parametrize("kind", VARIANTS)
@torch.no_grad()
def test_the_table_is_the_flow_time(kind):
    """One denoise step at every time of the grid, with nothing else in the way: the velocities of an empty route."""
    model = policy(kind)
    steps = 7
    form, batch, x = model.packed(steps), observation(model), noise(model)
    feed = form.trim(batch, bucketed=True)
    route = Route.without(model.depth(), 0, 2, 3)
    prefix, valid = form.see(feed, form.pieces)
    read, taken = form.read(feed, prefix, valid, route, form.pieces)
    stream, seen = model._embed_prefix(batch, model.see(to_unit(batch.images_BVCYX)))
    caches = [None, model.trunk.layers[1].prefix_only(stream, _attention.rope(seen.cumsum(1) - 1, 16)), None, None]
    found = []
    for step in range(steps):
        now = form.at(step)
        h = form.layer(1, form.enter(x, now, read), now, read, form.pieces)
        time = torch.full((1, 1), 1.0 + step * (-1.0 / steps), dtype=torch.float32)
        expected = model._velocity(batch, x[:, None], time, caches, seen, taken)[:, 0]
        found.append(form.velocity(h, now))
        assert far(found[-1], expected) < EXACT
    assert far(found[0], found[-1]) > 1e-2, "the time makes no difference"


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("live", [(True, False, False), (False, True, True), (True, False, True)])
def test_masked_cameras_change_nothing(kind, live):
    model = policy(kind)
    batch = observation(model, live, words=40)
    feed = model.packed().trim(batch, bucketed=False)
    assert feed.batch.images_BVCYX.shape[1] == sum(live) and feed.batch.live_BV.all()
    assert far(model.act(feed.batch, noise(model)), model.act(batch, noise(model))) < EXACT


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("words", "bucket"), [(1, 16), (16, 16), (17, 32), (39, 40)])
def test_padded_words_change_nothing(kind, words, bucket):
    model = policy(kind)
    batch, form = observation(model, words=words), model.packed()
    expected = model.act(batch, noise(model))
    for bucketed, length in ((False, words), (True, bucket)):
        feed = form.trim(batch, bucketed)
        assert feed.key[:3] == (3, length, bucketed)  # type: ignore[index]
        assert far(model.act(feed.batch, noise(model)), expected) < EXACT


@torch.no_grad()
def test_the_last_prefix_layer_is_keys_and_values():
    model = policy()
    form, batch = model.packed(), observation(model)
    expected = model.act(batch, noise(model))
    ran: list[str] = []
    pieces = {name: lambda *a, f=f, n=name: (ran.append(n), f(*a))[1] for name, f in form.pieces.items()}
    assert far(form.act(form.trim(batch, False), noise(model), pieces=pieces), expected) < EXACT
    assert ran == ["vision"] + ["trunk"] * 3 + ["last"] + ["expert"] * 4 * 3, "one vision call for all views"


# -- all of them together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize(
    ("live", "words", "steps"),
    [((True, True, True), 40, None), ((True, False, True), 7, 10), ((False, True, False), 23, 1)],
)
def test_the_packed_form_gives_the_same_actions(kind, bucketed, live, words, steps):
    model = policy(kind)
    batch, form = observation(model, live, words), model.packed(steps)
    expected = model.act(batch, noise(model), steps)
    assert far(form.act(form.trim(batch, bucketed), noise(model)), expected) < EXACT


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("gone", [(0,), (3,), (1, 2), (0, 1, 3), (0, 1, 2, 3)])
def test_a_route_skips_the_same_layers(kind, gone):
    model = policy(kind)
    batch, form, route = observation(model), model.packed(), Route.without(4, *gone)
    told: list[Route] = []
    chunk = form.act(form.trim(batch, True), noise(model), route, told=told.append)
    assert far(chunk, model.act(batch, noise(model), route=route)) < EXACT
    assert [r.run for r in told] == [route.run]
    assert far(chunk, model.act(batch, noise(model))) > 1e-6, "skipping changes nothing here"


def test_a_cut_policy_is_packed_as_well():
    student = cut(policy(), [KeepLayers("trunk", (0, 3))])
    form, batch = student.packed(), observation(student)
    assert far(form.act(form.trim(batch, True), noise(student)), student.act(batch, noise(student))) < EXACT


def test_packing_writes_nothing():
    model = policy()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    form = model.packed()
    form.act(form.trim(observation(model), True), noise(model))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# -- SmolVLA -----------------------------------------------------------------------------------------------------------

SMOLVLA = {
    "alternating": {},
    "cross": {"self_attention_every": 0},
    "sparse": {"expert_every": 2, "depth": 5},
    "marked": {"image_marks": (5, 6), "empty_cameras": 2, "cameras": CAMERAS[:2]},
    "grouped": {"trunk": Widths(32, 48, 4, 2, 16), "expert": Widths(24, 32, 4, 2, 16)},
}


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("kind", SMOLVLA)
def test_smolvla_gives_the_same_actions(kind, bucketed):
    model = policy(family="smolvla", **SMOLVLA[kind])
    views = model.packed().views
    for live, words, gone in ((views, 40, ()), (1, 7, (1,)), (2, 17, (0, 3)), (views - 1, 20, (1, 2, 3))):
        batch, form = model.example(1), model.packed(4)
        seen, text = torch.arange(views)[None] < live, torch.arange(40)[None] < words
        batch = replace(batch, live_BV=seen, text_BT=text, state_BS=batch.state_BS.double())
        route, told = Route.without(model.depth(), *gone), []
        feed = form.trim(batch, bucketed)
        assert feed.batch.images_BVCYX.shape[1] == live
        chunk = form.act(feed, noise(model), route, told=told.append)
        assert far(chunk, model.act(batch, noise(model), 4, route)) < EXACT
        assert [r.run for r in told] == [route.run]


def test_smolvla_projects_what_it_reads_once_an_observation():
    model = policy(family="smolvla")
    form = model.packed(10)
    ran: list[str] = []
    pieces = {name: lambda *a, f=f, n=name: (ran.append(n), f(*a))[1] for name, f in form.pieces.items()}
    again = form._read_again
    form._read_again = lambda *a: (ran.append("again"), again(*a))[1]
    form.act(form.trim(model.example(1), True), noise(model), pieces=pieces)
    assert ran.count("again") == 4 and ran[1:9] == ["trunk", "again"] * 3 + ["last", "again"]
    assert ran[9:] == ["self", "cross"] * 2 * 10


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        policy().packed(0)
    with pytest.raises(ValueError, match="float32 or bfloat16, not float16"):
        policy(dtype=torch.float16).packed()
    mixed = policy(dtype=torch.float32)
    mixed.vision.to(torch.bfloat16)
    with pytest.raises(ValueError, match="one dtype, this one has bfloat16, float32"):
        mixed.packed()
    gap = policy(family="smolvla", **SMOLVLA["marked"])
    seen = replace(gap.example(1), live_BV=torch.tensor([[True, False, True, False]]))
    with pytest.raises(ValueError, match="missing cameras behind the others"):
        gap.packed().trim(seen, True)
    with pytest.raises(ValueError, match="no packed form"):
        Family.packed(policy())


def test_observations_that_do_not_fit_are_refused():
    model = policy()
    form, batch = model.packed(), observation(model)
    with pytest.raises(ValueError, match="0 of them live"):
        form.trim(observation(model, (False, False, False)), True)
    more = replace(batch, images_BVCYX=batch.images_BVCYX.repeat(1, 2, 1, 1, 1), live_BV=batch.live_BV.repeat(1, 2))
    with pytest.raises(ValueError, match="has 6 cameras, 6 of them live: the policy was made for 3"):
        form.trim(more, True)
