"""The smolvla family: its passes against one joint pass, what may see what, what runs how often, what surgery keeps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lithe import checkpoint, surgery
from lithe.data.fake import FakeData
from lithe.families import _flow, _smolvla_names, _smolvlm
from lithe.families._attention import MASKED
from lithe.families._smolvla_config import SmolVLAConfig
from lithe.families.smolvla import SmolVLA
from lithe.surgery import KeepLayers
from lithe.types import Batch, Draw, Route, Tap

KINDS: dict[str, dict[str, Any]] = {
    "alternating": {},
    "cross": {"self_attention_every": 0},
    "self": {"self_attention_every": 1},
    "sparse expert": {"self_attention_every": 0, "expert_every": 2},
    "marked images": {"image_marks": (5, 6), "empty_cameras": 1},
}
each_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def awake(**settings: Any) -> SmolVLA:
    """A pico policy with every parameter moved away from its initial value."""
    model, generator = SmolVLA.fresh("pico", **settings), torch.Generator().manual_seed(1)
    data = FakeData(cameras=model.spec.cameras, size=16)
    model.fit_to(data.stats, data.tasks, data.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def inputs(model: SmolVLA, draws: int = 1, seed: int = 2) -> tuple[Batch, Draw]:
    batch = model.example(3, torch.Generator().manual_seed(seed))
    return batch, model.draw(batch, torch.Generator().manual_seed(seed + 1), draws, augment=False)


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- one joint pass, written out ---------------------------------------------------------------------------------------


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of [B, N, heads, D], pair by pair."""
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] / 10_000 ** (torch.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Plain grouped-query attention over [B, N, heads, D], mask [B, N, N]."""
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1).nan_to_num()
    return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


def joint_velocity(model: SmolVLA, batch: Batch, draw: Draw, kinds: list[str]) -> Tensor:
    """Prefix and suffix of one draw side by side, layer by layer: no cache, no fused kernel, no shortcut."""
    c, head = model.config, model.config.trunk.head_dim
    root = c.trunk.width**0.5
    views = model.see(draw.view_BVCYX).unflatten(1, (batch.live_BV.shape[1], -1)) * root
    live = batch.live_BV[:, :, None].expand(views.shape[:3])
    if c.image_marks:
        marks = model.embed(torch.tensor([*c.image_marks, c.image_marks[0]])).expand(*views.shape[:2], -1, -1)
        views = torch.cat([marks[:, :, :2], views, marks[:, :, 2:]], dim=2)
        live = torch.cat([torch.ones_like(live[..., :2]), live, torch.ones_like(live[..., :1])], dim=2)
    prefix = torch.cat(
        [views.flatten(1, 2), model.embed(batch.tokens_BT) * root, model.state_in(batch.state_BS)[:, None]], dim=1
    )
    noisy, _ = _flow.interpolate(batch.actions_BHA, draw.noise_BRHA[:, 0], draw.time_BR[:, 0])
    time = _flow.time_embedding(draw.time_BR[:, 0], c.expert.width)[:, None].expand(-1, c.horizon, -1)
    suffix = model.time_out(F.silu(model.time_in(torch.cat([model.action_in(noisy), time], dim=-1))))
    n, h = prefix.shape[1], c.horizon
    known = torch.cat([live.flatten(1), batch.text_BT, torch.ones(len(prefix), 1 + h, dtype=torch.bool)], dim=1)
    block = torch.tensor([0] * (n - 1) + [1] + list(range(2, 2 + h)))  # a token sees its own and earlier blocks
    mask = (block[:, None] >= block[None, :]) & known[:, None, :]
    places = known.cumsum(1) - 1
    for trunk, expert, kind in zip(model.trunk.layers, model.expert.layers, kinds, strict=True):

        def heads(layer: Any, name: str, x: Tensor) -> Tensor:
            return getattr(layer, f"{name}_proj")(x).unflatten(-1, (-1, head))

        normed = trunk.input_norm(prefix)
        query, key = (turn(heads(trunk, name, normed), places[:, :n]) for name in "qk")
        value = heads(trunk, "v", normed)
        prefix = trunk_end(trunk, prefix, attention(query, key, value, mask[:, :n, :n]))
        if kind == "absent":
            continue
        normed = expert.input_norm(suffix)
        if kind == "self":
            query, own = (turn(heads(expert, name, normed), places[:, n:]) for name in "qk")
            key, value = torch.cat([key, own], dim=1), torch.cat([value, heads(expert, "v", normed)], dim=1)
            mixed = attention(query, key, value, mask[:, n:])
        else:
            query = turn(heads(expert, "q", normed), torch.arange(h).expand(len(suffix), -1))
            key, value = heads(expert, "k", key.flatten(2)), heads(expert, "v", value.flatten(2))
            mixed = attention(query, key, value, mask[:, n:, :n])
        suffix = trunk_end(expert, suffix, mixed)
    return model.action_out(model.expert.norm(suffix))


def trunk_end(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention in one layer."""
    x = x + layer.o_proj(mixed)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.post_norm.weight
    return x + layer.down_proj(F.silu(layer.gate_proj(normed)) * layer.up_proj(normed))


@pytest.mark.parametrize("keep", [(0, 1, 2, 3), (1, 2), (3,), (0, 1, 3)])
@each_kind
@torch.no_grad()
def test_passes_over_a_cache_are_one_joint_pass(settings, keep):
    """Also after a cut: the kinds that the layers had in the whole model are the kinds they have now."""
    whole = awake(**settings)
    c = whole.config
    kinds = _smolvlm.kinds(4, c.self_attention_every, c.expert_every)
    model = surgery.cut(whole, [KeepLayers("trunk", keep)])
    batch, draw = inputs(model)
    live = batch.live_BV.clone()
    live[1, 0] = live[2, 1] = False
    batch = dataclasses.replace(batch, live_BV=live)
    near(model(batch, draw).pred_BRHA[:, 0], joint_velocity(model, batch, draw, [kinds[i] for i in keep]))


def test_the_kinds_of_layers_written_out():
    assert _smolvlm.kinds(5, 2, 1) == ["self", "cross", "self", "cross", "self"]
    assert _smolvlm.kinds(4, 3, 1) == ["self", "cross", "cross", "self"]
    assert _smolvlm.kinds(4, 0, 2) == ["cross", "absent", "cross", "absent"]
    assert _smolvlm.kinds(4, 4, 2) == ["self", "absent", "cross", "absent"]
    assert set(_smolvlm.kinds(4, 1, 1)) == {"self"}


def test_a_saved_cut_keeps_the_kinds_of_its_layers(tmp_path):
    student = surgery.cut(awake(), [KeepLayers("trunk", (1, 2)), KeepLayers("trunk", (1,))])
    checkpoint.save(student, tmp_path / "student")
    again = checkpoint.load(tmp_path / "student")
    assert [type(layer) for layer in again.expert.layers] == [_smolvlm.SelfLayer] and again.expert.layers[0].index == 0
    batch, draw = inputs(student)
    assert torch.equal(again(batch, draw).pred_BRHA, student(batch, draw).pred_BRHA)


@torch.no_grad()
def test_acting_follows_the_velocity_step_by_step():
    model = awake()
    batch, draw = inputs(model)
    x = noise = draw.noise_BRHA[:, 0]
    for step in range(3):
        at = Draw(draw.view_BVCYX, x[:, None], torch.full((3, 1), 1 - step / 3))
        x = x - model(dataclasses.replace(batch, actions_BHA=x), at).pred_BRHA[:, 0] / 3
    near(model.act(batch, noise, steps=3), x)
    assert torch.equal(model.act(batch, noise), model.act(batch, noise, steps=model.config.steps))
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        model.act(batch, noise, 0)


@each_kind
@torch.no_grad()
def test_draws_that_share_a_prefix_do_not_see_each_other(settings):
    model = awake(**settings)
    batch, draw = inputs(model, draws=3)
    tap = Tap("attention", 2)
    together = model(batch, draw, [tap])
    for r in range(3):
        alone = Draw(draw.view_BVCYX, draw.noise_BRHA[:, r : r + 1], draw.time_BR[:, r : r + 1])
        single = model(batch, alone, [tap])
        near(together.pred_BRHA[:, r : r + 1], single.pred_BRHA)
        prefix, rows = single.prefix_BN.shape[1], slice(r * model.config.horizon, (r + 1) * model.config.horizon)
        near(together.taps[tap][:, :, rows, :prefix], single.taps[tap][..., :prefix])


# -- who sees whom -----------------------------------------------------------------------------------------------------


def test_the_masks_written_out():
    """Three prefix tokens, the second invalid, the last the state; two draws of two actions."""
    valid, t, f = torch.tensor([[True, False, True]]), True, False
    assert _smolvlm.prefix_mask(valid)[0, 0].tolist() == [[t, f, f], [t, f, f], [t, f, t]]
    suffix = _smolvlm.suffix_view(valid, 2, 2, 4)
    rows = [[t, f, t, t, f, f, f], [t, f, t, t, t, f, f], [t, f, t, f, f, t, f], [t, f, t, f, f, t, t]]
    assert suffix.mask[0, 0].tolist() == rows
    assert suffix.cross_mask[0, 0].tolist() == [[t, f, t]]
    behind, place = torch.tensor([[2, 3, 2, 3]]), torch.tensor([[0, 1, 0, 1]])
    assert torch.equal(suffix.rotation[0], _smolvlm.rope(behind, 4)[0])
    assert torch.equal(suffix.cross_rotation[1], _smolvlm.rope(place, 4)[1])


@torch.no_grad()
def test_a_masked_camera_is_a_dropped_camera():
    model = awake()
    batch, draw = inputs(model)
    masked = dataclasses.replace(batch, live_BV=torch.tensor([[True, False]]).expand(3, 2))
    dropped = dataclasses.replace(batch, live_BV=masked.live_BV[:, :1], images_BVCYX=batch.images_BVCYX[:, :1])
    narrow = dataclasses.replace(draw, view_BVCYX=draw.view_BVCYX[:, :1])
    near(model(masked, draw).pred_BRHA, model(dropped, narrow).pred_BRHA)
    noise = draw.noise_BRHA[:, 0]
    near(model.act(masked, noise), model.act(dropped, noise))


@torch.no_grad()
def test_padded_text_is_invisible_and_the_rest_is_not():
    model = awake()
    batch, draw = inputs(model)
    assert not batch.text_BT.all()
    reference = model(batch, draw).pred_BRHA
    other = torch.where(batch.text_BT, batch.tokens_BT, 11)
    assert torch.equal(model(dataclasses.replace(batch, tokens_BT=other), draw).pred_BRHA, reference)
    longer = {"tokens_BT": F.pad(batch.tokens_BT, (0, 6), value=3), "text_BT": F.pad(batch.text_BT, (0, 6))}
    near(model(dataclasses.replace(batch, **longer), draw).pred_BRHA, reference)
    for change in (
        {"tokens_BT": (batch.tokens_BT + 1) % model.config.vocabulary},
        {"live_BV": torch.tensor([[True, False]]).expand(3, 2)},
        {"state_BS": batch.state_BS + 0.1},
    ):
        assert not torch.equal(model(dataclasses.replace(batch, **change), draw).pred_BRHA, reference)


@torch.no_grad()
def test_an_empty_camera_shows_its_marks_alone():
    model = awake(**KINDS["marked images"])
    batch, draw = inputs(model)
    assert batch.live_BV.tolist() == [[True, True, False]] * 3
    reference = model(batch, draw).pred_BRHA
    view = draw.view_BVCYX.clone()
    view[:, 2] = 0.3
    assert torch.equal(model(batch, dataclasses.replace(draw, view_BVCYX=view)).pred_BRHA, reference)
    gone = dataclasses.replace(batch, live_BV=batch.live_BV[:, :2], images_BVCYX=batch.images_BVCYX[:, :2])
    fewer = model(gone, dataclasses.replace(draw, view_BVCYX=view[:, :2])).pred_BRHA
    assert (fewer - reference).abs().max() > 1e-4


@torch.no_grad()
def test_taps_show_what_they_say():
    model = awake()
    batch, draw = inputs(model, draws=2)
    c, depth = model.config, model.config.depth
    taps = [Tap(kind, i) for kind in ("prefix", "suffix") for i in range(depth + 1)]
    taps += [Tap("attention", i) for i in range(depth)]
    out = model(batch, draw, taps)
    assert out.taps.keys() == set(taps)
    n, queries = out.prefix_BN.shape[1], 2 * c.horizon
    assert out.taps[Tap("prefix", depth)].shape == (3, n, c.trunk.width)
    assert out.taps[Tap("suffix", 0)].shape == (3, queries, c.expert.width)
    for i in range(depth):
        scores = out.taps[Tap("attention", i)]
        assert scores.shape == (3, c.trunk.heads, queries, n + queries) and scores.dtype == torch.float32
        hidden = (~out.prefix_BN)[:, None, None, :].expand(scores[..., :n].shape)
        assert (scores[..., :n][hidden] == MASKED).all() and (scores[..., :n][~hidden] > MASKED / 2).all()
        assert (scores[..., n:] == MASKED).all() == isinstance(model.expert.layers[i], _smolvlm.CrossLayer)
    assert torch.equal(model(batch, draw).pred_BRHA, out.pred_BRHA), "looking changed what is seen"
    with pytest.raises(ValueError, match=r"no layer 1 whose attention could be seen: choose from \[0, 2\]"):
        awake(**KINDS["sparse expert"])(batch, draw, [Tap("attention", 1)])


# -- what runs, what learns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_one_chunk_projects_the_prefix_once_and_runs_the_expert_a_step(steps):
    model, calls = awake(), Counter()

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: calls.update([name]))

    count("tower", model.vision.tower)
    for i, (trunk, expert) in enumerate(zip(model.trunk.layers, model.expert.layers)):
        for name, module in (("trunk", trunk.k_proj), ("end", trunk.down_proj), ("again", expert.k_proj)):
            count(f"{name} {i}", module)
        count(f"expert {i}", expert)
    marks: list[str] = []
    batch, _ = inputs(model)
    model.act(batch, model.noise(3, torch.Generator()), steps, trace=marks.append)
    expected = {"tower": 1} | {f"trunk {i}": 1 for i in range(4)} | {f"end {i}": 1 for i in range(3)}
    expected |= {f"expert {i}": steps for i in range(4)}
    assert calls == expected | {"again 0": steps, "again 1": 1, "again 2": steps, "again 3": 1}
    assert marks == ["vision", "prefix", "denoise"]


def test_what_nobody_reads_does_not_run():
    """With an expert beside every second trunk layer, the last trunk layer has no reader at all."""
    model, ran = awake(**KINDS["sparse expert"]), set()
    for i, layer in enumerate(model.trunk.layers):
        for part in layer.modules():
            part.register_forward_hook(lambda *_, i=i: ran.add(i))
    batch, draw = inputs(model)
    model(batch, draw)
    assert ran == {0, 1, 2}
    model(batch, draw, [Tap("prefix", 4)])
    assert ran == {0, 1, 2, 3}


def test_gradients_reach_everything_but_the_unread_end_of_the_trunk():
    model = awake()
    model.task_loss(model(*inputs(model, draws=2))).backward()
    unread = ("q_proj", "o_proj", "post_norm.weight", "gate_proj", "up_proj", "down_proj")
    end = f"trunk.layers.{model.config.depth - 1}."
    for name, parameter in model.named_parameters():
        dead = name == "trunk.norm.weight" or (name.startswith(end) and name.removeprefix(end).startswith(unread))
        assert dead == (parameter.grad is None), name
        assert dead or (torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0), name


def test_only_real_action_dimensions_count():
    model = awake(width_action=8)
    batch, draw = inputs(model)
    out = model(batch, draw)
    assert model.config.action_dim == 4
    torch.testing.assert_close(model.task_loss(out), (out.pred_BRHA - out.target_BRHA)[..., :4].square().mean())
    assert model.imitation_loss(out, out) == 0 and model.imitation_loss(out, model(batch, inputs(model, seed=9)[1])) > 0


@torch.no_grad()
def test_a_policy_in_bfloat16_acts_nearly_as_in_float32():
    model = awake()
    batch, draw = inputs(model)
    exact = model.act(batch, draw.noise_BRHA[:, 0])
    rough = model.bfloat16().act(batch, draw.noise_BRHA[:, 0])
    assert rough.dtype == torch.float32 and (rough - exact).norm() / exact.norm() < 0.03


def test_a_route_of_another_depth_is_refused():
    model = awake()
    with pytest.raises(ValueError, match="the route is for 3 layers, the model has 4"):
        model(*inputs(model), route=Route((True,) * 3))


# -- data in and out ---------------------------------------------------------------------------------------------------


def test_pictures_become_squares_with_black_on_the_left_and_above():
    wide = torch.full((2, 1, 3, 10, 20), 255, dtype=torch.uint8)
    square = _smolvlm.square(wide, 16)
    assert square.shape == (2, 1, 3, 16, 16)
    assert (square[..., 8:, :] == 1).all() and (square[..., :8, :] == 0).all()
    tall = _smolvlm.square(wide.transpose(-1, -2), 16)
    assert (tall[..., 8:] == 1).all() and (tall[..., :8] == 0).all()


def test_cameras_of_different_sizes_are_prepared_as_alone():
    model, rng = awake(), np.random.default_rng(0)
    seen = {"corner2": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), "gripperPOV": np.zeros((9, 9, 3), np.uint8)}
    rest = {"observation.state": np.zeros(4, np.float32), "task": "reach the red block"}

    def view(*cameras: str) -> Tensor:
        batch = model.observe([{**rest, **{f"observation.images.{c}": seen[c] for c in cameras}}])
        assert batch.live_BV.tolist() == [[True] * len(cameras)]
        return model._view(batch.images_BVCYX)

    both = view("corner2", "gripperPOV")
    assert torch.equal(both[:, :1], view("corner2")) and torch.equal(both[:, 1:], view("gripperPOV"))
    with pytest.raises(ValueError, match="none of the policy's cameras"):
        model.observe([rest])


@pytest.mark.parametrize(("padding", "length"), [("longest", 5), ("max_length", 16)])
def test_text_is_padded_to_the_longest_or_to_the_limit(padding, length):
    model = awake(pad_text=padding)
    images = {c: np.zeros((2, 16, 16, 3), np.uint8) for c in model.spec.cameras}
    samples = {"images": images, "state": np.zeros((2, 4), np.float32), "task": ["reach", "reach the red block reach"]}
    batch = model.batch(samples)
    assert batch.text_BT.sum(1).tolist() == [1, 5] and batch.text_BT.shape == batch.tokens_BT.shape == (2, length)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"pad_text": "shortest"}, "pad_text must be"),
        ({"convention": "openpi"}, "convention must be"),
        ({"horizon": 0}, "horizon must be at least 1, not 0"),
        ({"self_attention_every": -1}, "self_attention_every must be at least 0"),
        ({"jitter": 2.5}, "smolvla: jitter must be between 0 and 2"),
        ({"expert": {"width": 24, "mlp": 32, "heads": 4, "kv_heads": 1, "head_dim": 16}}, "must have the same heads"),
        ({"expert": {"width": 25, "mlp": 32, "heads": 2, "kv_heads": 1, "head_dim": 16}}, "width must be even"),
        ({"vision": {**dataclasses.asdict(SmolVLA.fresh("pico").config.vision), "image": 20}}, "divide into squares"),
        ({"longest_period": 1e-3}, "periods must be positive"),
        ({"depths": 3}, "did you mean 'depth'"),
    ],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SmolVLA.fresh("pico", **settings)


def test_unknown_presets_unfitted_policies_and_missing_cameras_are_refused():
    with pytest.raises(ValueError, match="did you mean 'pico'"):
        SmolVLA.fresh("picos")
    with pytest.raises(ValueError, match="fit_to"):
        SmolVLA.fresh("pico").actions(torch.zeros(1, 4, 4), SmolVLA.fresh("pico").example(1))
    data = FakeData(cameras=("corner2",))
    with pytest.raises(ValueError, match="'gripperPOV', which the data set does not have"):
        SmolVLA.fresh("pico").fit_to(data.stats, data.tasks, data.cameras)
    data = FakeData(cameras=("corner2", "gripperPOV"), action_dim=9)
    with pytest.raises(ValueError, match="action has 9 dimensions in the data, the model takes at most 4"):
        SmolVLA.fresh("pico").fit_to(data.stats, data.tasks, data.cameras)


def test_places_of_a_smaller_picture_are_spread_over_the_table():
    table = torch.arange(36.0)[:, None]
    assert torch.equal(_smolvla_names.place_patches(table, 6), table)
    assert _smolvla_names.place_patches(table, 2).flatten().tolist() == [0, 3, 18, 21]
    assert _smolvla_names.place_patches(torch.arange(4.0)[:, None], 4)[:4].flatten().tolist() == [0, 0, 1, 1]


# -- sizes and cost ----------------------------------------------------------------------------------------------------


def on_meta(preset: str, keep: tuple[int, ...] | None = None, **settings: Any) -> SmolVLA:
    with torch.device("meta"):
        model = SmolVLA.fresh(preset, **settings)
    surgery.replay(model, [KeepLayers("trunk", keep)] if keep else [])
    return model


def counted(model: SmolVLA, steps: int) -> tuple[Counter, Counter]:
    """FLOPs, and bytes of linear and convolution weights, of one real chunk; per part, on the meta device."""
    batch = model.example(1).to("meta")
    noise = torch.empty(1, model.config.horizon, model.config.width_action, device="meta")
    flops, weights, running = Counter(), Counter(), Counter()

    def hook(module: Any, *_: Any) -> None:
        running["now"] += module.weight.numel() * module.weight.element_size()

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(hook)
    with FlopCounterMode(display=False) as counter:

        def trace(part: str) -> None:
            flops[part] = counter.get_total_flops() - sum(flops.values())
            weights[part] = running["now"] - sum(weights.values())

        model.act(batch, noise, steps=steps, trace=trace)
    return flops, weights


@pytest.mark.parametrize("keep", [None, (0, 3), (2,)])
@each_kind
def test_cost_is_that_of_a_real_chunk(settings, keep):
    model = on_meta("pico", keep, **settings)
    flops, weights = counted(model, steps=3)
    told = model.cost(steps=3)
    assert told.flops == dict(flops)
    c = model.config
    views = 2 + (c.empty_cameras if c.image_marks else 0)
    prefix = views * (c.vision.tokens + (3 if c.image_marks else 0)) + c.text + 1
    readers = sum(not isinstance(layer, _smolvlm.Absent) for layer in model.expert.layers)
    cache = 3 * 2 * readers * prefix * c.trunk.kv_heads * c.trunk.head_dim * 4
    assert told.bytes == {**weights, "denoise": weights["denoise"] + cache}
    assert sum(told.parameters.values()) == sum(p.numel() for p in model.parameters())


def test_cost_at_full_size_is_that_of_a_real_chunk():
    model = on_meta("full", tuple(range(0, 16, 3)))
    assert model.cost(steps=2).flops == dict(counted(model, steps=2)[0])


def test_the_published_size():
    """450 M parameters in LeRobot's checkpoint: ours, and the language head (one row a word), which nothing reads."""
    model = on_meta("full")
    ours = sum(p.numel() for p in model.parameters())
    head = model.config.vocabulary * model.config.trunk.width
    assert ours + head == 450_046_176
    assert SmolVLAConfig().vision.tokens == 64, "tokens a view"
