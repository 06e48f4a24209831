"""The pi family: its two passes against one joint pass, what it must not see, what runs how often, its sizes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lithe import surgery
from lithe.data.fake import FakeData
from lithe.families import _flow, _vision
from lithe.families._attention import MASKED, AdaptiveNorm, Norm, block_mask, rope, rotate
from lithe.families.pi import Pi, PiConfig
from lithe.surgery import KeepLayers
from lithe.types import Batch, Draw, Route, Tap

VARIANTS = ("pi05", "pi0")


def awake(variant: str = "pi05", **settings: Any) -> Pi:
    """A pico policy with every parameter moved away from its zero initialisation."""
    model, generator = Pi.fresh("pico", variant=variant, **settings), torch.Generator().manual_seed(1)
    data = FakeData(cameras=model.spec.cameras, size=16)
    model.fit_to(data.stats, data.tasks, data.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def inputs(model: Pi, draws: int = 1, seed: int = 2) -> tuple[Batch, Draw]:
    batch = model.example(3, torch.Generator().manual_seed(seed))
    return batch, model.draw(batch, torch.Generator().manual_seed(seed + 1), draws, augment=False)


# -- one joint pass, written out ---------------------------------------------------------------------------------------


def joint_velocity(model: Pi, batch: Batch, draw: Draw) -> Tensor:
    """Prefix and suffix of one draw in a single masked pass, layer by layer: no cache, no fused kernel, no shortcut."""
    c, pi0 = model.config, model.config.variant == "pi0"
    image = model.see(draw.view_BVCYX)
    prefix = torch.cat([image, model.embed(batch.tokens_BT) * c.trunk.width**0.5], dim=1)
    valid = torch.cat([batch.live_BV.repeat_interleave(c.vision.tokens, 1), batch.text_BT], dim=1)
    noisy, _ = _flow.interpolate(batch.actions_BHA, draw.noise_BRHA[:, 0], draw.time_BR[:, 0])
    suffix, cond = model.action_in(noisy), None
    time = _flow.time_embedding(draw.time_BR[:, 0], c.expert.width)
    if pi0:
        both = torch.cat([suffix, time[:, None].expand_as(suffix)], dim=-1)
        actions = model.time_out(F.silu(model.time_in(both)))
        suffix = torch.cat([model.state_in(batch.state_BS)[:, None], actions], dim=1)
    else:
        cond = F.silu(model.time_out(F.silu(model.time_in(time))))[:, None]
    n, q = prefix.shape[1], suffix.shape[1]
    block = torch.tensor([0] * n + ([1] if pi0 else []) + [2] * c.horizon)  # a token sees its own and earlier blocks
    keys_valid = torch.cat([valid, torch.ones(len(valid), q, dtype=torch.bool)], dim=1)
    mask = (block[:, None] >= block[None, :]) & keys_valid[:, None, :]
    positions = keys_valid.cumsum(1) - 1
    angles = rope(positions, c.trunk.head_dim)
    for trunk, expert in zip(model.trunk.layers, model.expert.layers, strict=True):
        normed = [trunk.input_norm(prefix), expert.input_norm(suffix, cond)]
        pairs = list(zip((trunk, expert), (x for x, _ in normed), strict=True))
        query, key, value = (
            torch.cat([layer.split(getattr(layer, f"{name}_proj")(x)) for layer, x in pairs], dim=2) for name in "qkv"
        )
        query, key = rotate(query, angles), rotate(key, angles)
        key, value = (x.repeat_interleave(c.trunk.heads // c.trunk.kv_heads, 1) for x in (key, value))
        weights = (query @ key.transpose(-1, -2) / c.trunk.head_dim**0.5).masked_fill(~mask[:, None], -torch.inf)
        mixed = (weights.softmax(-1).nan_to_num() @ value).transpose(1, 2).flatten(2)
        prefix = block_of(trunk, prefix, mixed[:, :n], None, None)
        suffix = block_of(expert, suffix, mixed[:, n:], normed[1][1], cond)
    return model.action_out(model.expert.norm(suffix, cond)[0][:, -c.horizon :])


def block_of(layer: Any, x: Tensor, mixed: Tensor, gate: Tensor | None, cond: Tensor | None) -> Tensor:
    """What follows attention in one layer."""
    x = x + layer.o_proj(mixed) * (1 if gate is None else gate)
    normed, gate = layer.post_norm(x, cond)
    inner = F.gelu(layer.gate_proj(normed), approximate="tanh") * layer.up_proj(normed)
    return x + layer.down_proj(inner) * (1 if gate is None else gate)


@pytest.mark.parametrize("keep", [(0, 1, 2, 3), (0, 3), (2,)])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_two_passes_over_a_cache_are_one_joint_pass(variant, keep):
    model = surgery.cut(awake(variant), [KeepLayers("trunk", keep)])
    batch, draw = inputs(model)
    batch = dataclasses.replace(batch, live_BV=torch.tensor([[True, True], [True, False], [False, True]]))
    torch.testing.assert_close(
        model(batch, draw).pred_BRHA[:, 0], joint_velocity(model, batch, draw), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_acting_in_one_step_is_the_velocity_at_pure_noise(variant):
    model = awake(variant)
    batch, draw = inputs(model)
    noise = draw.noise_BRHA[:, 0]
    velocity = model(batch, dataclasses.replace(draw, time_BR=torch.ones(3, 1))).pred_BRHA[:, 0]
    assert torch.equal(model.act(batch, noise, steps=1), noise - velocity)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_acting_follows_the_velocity_step_by_step(variant):
    model = awake(variant)
    batch, draw = inputs(model)
    x = noise = draw.noise_BRHA[:, 0]
    for step in range(3):
        time = torch.full((3, 1), 1 - step / 3)
        at = Draw(draw.view_BVCYX, x[:, None], time)  # x_t = t * noise + (1 - t) * actions, with actions = noise = x
        x = x - model(dataclasses.replace(batch, actions_BHA=x), at).pred_BRHA[:, 0] / 3
    torch.testing.assert_close(model.act(batch, noise, steps=3), x, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.act(batch, noise), model.act(batch, noise, steps=model.config.steps))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_draws_that_share_a_prefix_do_not_see_each_other(variant):
    model = awake(variant)
    batch, draw = inputs(model, draws=3)
    together = model(batch, draw, [Tap("attention", 1)])
    for r in range(3):
        alone = Draw(draw.view_BVCYX, draw.noise_BRHA[:, r : r + 1], draw.time_BR[:, r : r + 1])
        single = model(batch, alone, [Tap("attention", 1)])
        torch.testing.assert_close(together.pred_BRHA[:, r : r + 1], single.pred_BRHA, rtol=1e-4, atol=1e-5)
        prefix, rows = single.prefix_BN.shape[1], slice(r * model.config.horizon, (r + 1) * model.config.horizon)
        mine, theirs = together.taps[Tap("attention", 1)], single.taps[Tap("attention", 1)]
        torch.testing.assert_close(mine[:, :, rows, :prefix], theirs[..., :prefix], rtol=1e-4, atol=1e-4)


# -- what must not be seen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_masked_camera_is_a_dropped_camera(variant):
    model = awake(variant)
    batch, draw = inputs(model)
    masked = dataclasses.replace(batch, live_BV=torch.tensor([[True, False]]).expand(3, 2))
    dropped = dataclasses.replace(batch, live_BV=masked.live_BV[:, :1], images_BVCYX=batch.images_BVCYX[:, :1])
    narrow = dataclasses.replace(draw, view_BVCYX=draw.view_BVCYX[:, :1])
    torch.testing.assert_close(model(masked, draw).pred_BRHA, model(dropped, narrow).pred_BRHA, rtol=1e-4, atol=1e-5)
    noise = draw.noise_BRHA[:, 0]
    torch.testing.assert_close(model.act(masked, noise), model.act(dropped, noise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_what_a_masked_camera_shows_changes_no_bit(variant):
    model = awake(variant)
    batch, draw = inputs(model)
    batch = dataclasses.replace(batch, live_BV=torch.tensor([[True, False]]).expand(3, 2))
    black = draw.view_BVCYX.clone()
    black[:, 1] = 0
    other = model(batch, dataclasses.replace(draw, view_BVCYX=black))
    assert torch.equal(model(batch, draw).pred_BRHA, other.pred_BRHA)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_padded_text_is_invisible(variant):
    model = awake(variant)
    batch, draw = inputs(model)
    assert not batch.text_BT.all()
    reference = model(batch, draw).pred_BRHA
    other = torch.where(batch.text_BT, batch.tokens_BT, 11)
    assert torch.equal(model(dataclasses.replace(batch, tokens_BT=other), draw).pred_BRHA, reference)
    longer = dataclasses.replace(
        batch, tokens_BT=F.pad(batch.tokens_BT, (0, 6), value=3), text_BT=F.pad(batch.text_BT, (0, 6), value=False)
    )
    torch.testing.assert_close(model(longer, draw).pred_BRHA, reference, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_valid_text_cameras_and_state_do_matter():
    for variant in VARIANTS:
        model = awake(variant)
        batch, draw = inputs(model)
        reference = model(batch, draw).pred_BRHA
        for change in (
            {"tokens_BT": (batch.tokens_BT + 1) % model.config.vocabulary},
            {"live_BV": torch.tensor([[True, False]]).expand(3, 2)},
            *([{"state_BS": batch.state_BS + 0.1}] if variant == "pi0" else []),
        ):
            assert not torch.equal(model(dataclasses.replace(batch, **change), draw).pred_BRHA, reference)


def test_the_block_mask_written_out():
    """Two prefix tokens, the second invalid; two draws of a state token and one action token each."""
    text = torch.tensor([[True, False]])
    t, f = True, False
    private = [[t, f, t, f, f, f], [t, f, t, t, f, f], [t, f, f, f, t, f], [t, f, f, f, t, t]]
    shared = [[t, f, t, t, f, f], [t, f, t, t, f, f], [t, f, f, f, t, t], [t, f, f, f, t, t]]
    assert torch.equal(block_mask(text, 2, 2, private_first=True)[0, 0], torch.tensor(private))
    assert torch.equal(block_mask(text, 2, 2, private_first=False)[0, 0], torch.tensor(shared))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_taps_show_what_they_say(variant):
    model = awake(variant)
    batch, draw = inputs(model, draws=2)
    depth, c = model.config.depth, model.config
    taps = [Tap(kind, i) for kind in ("prefix", "suffix") for i in range(depth + 1)] + [Tap("attention", depth - 1)]
    out = model(batch, draw, taps)
    assert out.taps.keys() == set(taps)
    n, queries = out.prefix_BN.shape[1], c.horizon + (variant == "pi0")
    assert out.taps[Tap("prefix", depth)].shape == (3, n, c.trunk.width)
    assert out.taps[Tap("suffix", 0)].shape == (3, 2 * queries, c.expert.width)
    scores = out.taps[Tap("attention", depth - 1)]
    assert scores.shape == (3, c.trunk.heads, 2 * c.horizon, n + 2 * queries) and scores.dtype == torch.float32
    masked = (~out.prefix_BN)[:, None, None, :].expand(scores[..., :n].shape)
    assert (scores[..., :n][masked] == MASKED).all() and (scores[..., :n][~masked] > MASKED / 2).all()
    assert torch.equal(model(batch, draw).pred_BRHA, out.pred_BRHA), "looking changed what is seen"


# -- what runs, what learns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_chunk_is_one_trunk_pass_and_one_expert_pass_a_step(variant, steps):
    model, calls = awake(variant), {}

    def count(name: str, module: torch.nn.Module) -> None:
        calls[name] = 0
        module.register_forward_hook(lambda *_: calls.__setitem__(name, calls[name] + 1))

    last = model.config.depth - 1
    count("tower", model.vision.tower)
    for i in range(last + 1):
        count(f"trunk {i}", model.trunk.layers[i].k_proj)
        count(f"expert {i}", model.expert.layers[i])
    count("end", model.trunk.layers[last].q_proj)
    marks: list[str] = []
    batch, _ = inputs(model)
    model.act(batch, model.noise(3, torch.Generator()), steps, trace=marks.append)
    expected = {"tower": 1, "end": 0} | {f"trunk {i}": 1 for i in range(last + 1)}
    assert calls == expected | {f"expert {i}": steps for i in range(last + 1)}
    assert marks == ["vision", "prefix", "denoise"]


@pytest.mark.parametrize("steps", [0, -1])
def test_no_denoise_step_at_all_is_refused(steps):
    model = awake()
    with pytest.raises(ValueError, match=f"must be at least 1, not {steps}"):
        model.act(inputs(model)[0], model.noise(3, torch.Generator()), steps)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_everything_but_the_unread_end_of_the_trunk(variant):
    """Nothing reads what the last trunk layer does after its keys and values."""
    model = awake(variant)
    model.task_loss(model(*inputs(model, draws=2))).backward()
    unread = ("q_proj", "o_proj", "post_norm.weight", "gate_proj", "up_proj", "down_proj")
    end = f"trunk.layers.{model.config.depth - 1}."
    for name, parameter in model.named_parameters():
        dead = name == "trunk.norm.weight" or (name.startswith(end) and name.removeprefix(end).startswith(unread))
        assert dead == (parameter.grad is None), name
        assert dead or (torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0), name


def test_a_route_of_another_depth_is_refused():
    model = awake()
    with pytest.raises(ValueError, match="the route is for 3 layers, the model has 4"):
        model(*inputs(model), route=Route((True,) * 3))
    with pytest.raises(ValueError, match="cannot skip layer 4: the stack has layers 0 to 3"):
        Route.without(4, 1, 4)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "keep", "trunk", "expert", "total"),
    [
        ("pi0", 18, 1.982, 0.311, 3.24),
        ("pi0", 9, 0.991, 0.156, 2.09),
        ("pi0", 6, 0.661, 0.104, 1.71),
        ("pi05", 18, 1.982, 0.425, 3.35),
        ("pi05", 9, 0.991, 0.212, 2.15),
        ("pi05", 6, 0.661, 0.142, 1.74),
    ],
)
def test_published_sizes_have_the_published_parameter_counts(variant, keep, trunk, expert, total):
    """In billions, from the meta device. Trunk and expert are their layers, adaptive norms included."""
    with torch.device("meta"):
        model = Pi.fresh("full", variant=variant)
        layers = tuple(round(i * 17 / (keep - 1)) for i in range(keep))
        surgery.replay(model, [KeepLayers("trunk", layers)])
    parts = (model.trunk.layers, model.expert.layers, model)
    counted = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert [round(n / 1e9, 3) for n in counted[:2]] == [trunk, expert]
    assert counted[2] / 1e9 == pytest.approx(total, abs=0.01)  # which small parts the source added up is not said
    assert sum(model.cost().parameters.values()) == counted[2]


@pytest.mark.parametrize("preset", Pi.presets)
def test_presets_are_described_by_plain_data(preset):
    with torch.device("meta"):
        model = Pi.fresh(preset)
    assert PiConfig.parse(model.describe()) == model.config


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dept": 3}, "'dept'; did you mean 'depth'"),
        ({"depth": "three"}, "pi: depth: input should be a valid integer"),
        ({"depth": 0}, "pi: depth must be at least 1, not 0"),
        ({"horizon": -1}, "pi: horizon must be at least 1"),
        ({"shift": -1}, "pi: shift must be at least 0, not -1"),
        ({"jitter": -0.1}, "pi: jitter must be between 0 and 2"),
        ({"variant": "pi1"}, "variant must be 'pi0' or 'pi05', not 'pi1'"),
        ({"trunk": {"widht": 3}}, "pi: trunk: there is no setting 'widht'; did you mean 'width'"),
        ({"trunk": {"width": 3}}, "pi: trunk: mlp: field required"),
        ({"trunk": 5}, "pi: trunk"),
        (
            {"vision": {"image": 16, "patch": 4, "width": 16, "mlp": 32, "layers": 1, "heads": 0}},
            "vision.heads must be",
        ),
        ({"cameras": "left"}, "pi: cameras: input should be a valid tuple"),
    ],
)
def test_a_wrong_setting_is_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Pi.fresh("pico", **settings)
    with pytest.raises(ValueError, match="pi has no preset 'picco'; did you mean 'pico'"):
        Pi.fresh("picco")


def test_fresh_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    a, untouched = Pi.fresh("pico", seed=1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(untouched, torch.rand(1)), "making a model moved the global generator"
    b, other = Pi.fresh("pico", seed=1), Pi.fresh("pico", seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.embed.weight, other.embed.weight)


# -- data in and out ---------------------------------------------------------------------------------------------------


def sample(model: Pi, cameras: tuple[str, ...] | None = None) -> dict[str, Any]:
    cameras = model.spec.cameras if cameras is None else cameras
    return FakeData(cameras=cameras, size=20).samples(np.arange(3), model.spec.horizon)


@pytest.mark.parametrize("variant", VARIANTS)
def test_actions_come_back_in_their_own_units(variant):
    model = awake(variant)
    raw = sample(model)
    np.testing.assert_allclose(
        model.actions(model.batch(raw).actions_BHA, model.batch(raw)).numpy(), raw["action"], atol=1e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_observations_take_the_same_way_as_training_data(variant):
    model = awake(variant)
    raw = sample(model)
    observations = [
        {f"observation.images.{c}": raw["images"][c][i] for c in model.spec.cameras}
        | {"observation.state": raw["state"][i], "task": raw["task"][i]}
        for i in range(3)
    ]
    seen, trained = model.observe(observations), model.batch(raw)
    assert seen.actions_BHA is None
    for field in ("images_BVCYX", "live_BV", "tokens_BT", "text_BT", "state_BS"):
        assert torch.equal(getattr(seen, field), getattr(trained, field)), field


def test_the_state_is_read_from_the_prompt_by_pi05_and_from_a_token_by_pi0():
    for variant, in_prompt in (("pi05", True), ("pi0", False)):
        model = awake(variant)
        raw = sample(model)
        moved = {**raw, "state": raw["state"] + 0.5}
        tokens = [model.batch(r).tokens_BT for r in (raw, moved)]
        assert torch.equal(*tokens) != in_prompt
        batch, draw = inputs(model)
        other = dataclasses.replace(batch, state_BS=batch.state_BS + 1)
        with torch.no_grad():
            assert torch.equal(model(batch, draw).pred_BRHA, model(other, draw).pred_BRHA) == in_prompt


def test_a_camera_that_is_not_there_is_masked_and_none_at_all_is_refused():
    model = awake()
    batch = model.batch(sample(model, ("corner2",)))
    assert batch.live_BV.tolist() == [[True, False]] * 3 and batch.images_BVCYX.shape[1] == 2
    with pytest.raises(ValueError, match=r"none of the policy's cameras .*corner2, gripperPOV.* is in the observation"):
        model.batch(sample(model, ("ceiling",)))


def test_a_prompt_that_is_too_long_is_refused():
    model = awake()
    raw = sample(model)
    raw["task"] = ["reach " * 30] * 3
    with pytest.raises(ValueError, match="the model reads at most 16: shorten the instruction"):
        model.batch(raw)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"cameras": ("corner2",)}, "looks through camera 'gripperPOV', which the data set does not have"),
        ({"action_dim": 5}, "action has 5 dimensions in the data, the model takes at most 4"),
        ({"state_dim": 9}, "observation.state has 9 dimensions in the data"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(data, complaint):
    data = FakeData(**{"cameras": ("corner2", "gripperPOV"), "size": 16, **data})
    with pytest.raises(ValueError, match=complaint):
        Pi.fresh("pico").fit_to(data.stats, data.tasks, data.cameras)


@pytest.mark.parametrize(("variant", "needed"), [("pi05", "q01"), ("pi0", "std")])
def test_missing_statistics_are_named(variant, needed):
    data = FakeData(cameras=("corner2", "gripperPOV"), size=16)
    del data.stats["action"][needed]
    with pytest.raises(ValueError, match=f"no statistic '{needed}' for 'action'"):
        Pi.fresh("pico", variant=variant).fit_to(data.stats, data.tasks, data.cameras)


def test_padded_action_dimensions_count_only_if_asked():
    for real in (False, True):
        model = awake(width_action=8, real_dims_only=real)
        batch, draw = inputs(model)
        out = model(batch, draw)
        dims = model.config.action_dim if real else 8
        expected = (out.pred_BRHA - out.target_BRHA)[..., :dims].square().mean()
        torch.testing.assert_close(model.task_loss(out), expected)
    assert model.config.action_dim == 4


# -- parts -------------------------------------------------------------------------------------------------------------


def test_times_follow_the_beta_distribution():
    """Beta(1.5, 1) scaled to [0.001, 1]: distribution function u**1.5."""
    time = _flow.sample_time((100_000,), torch.Generator().manual_seed(0))
    assert time.min() >= 0.001 and time.max() <= 1.0
    for t in (0.1, 0.5, 0.9):
        share = (time < t).float().mean().item()
        assert share == pytest.approx(((t - 0.001) / 0.999) ** 1.5, abs=0.005)


def test_draws_depend_on_their_generator_alone():
    model = awake()
    batch, _ = inputs(model)
    a, b, c = (model.draw(batch, torch.Generator().manual_seed(s), 2) for s in (1, 1, 2))
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("view_BVCYX", "noise_BRHA", "time_BR"))
    assert not any(torch.equal(getattr(a, f), getattr(c, f)) for f in ("view_BVCYX", "noise_BRHA", "time_BR"))


def test_norms_are_in_float32_and_the_adaptive_one_starts_as_the_plain_one():
    x = torch.randn(2, 6, 8)
    plain, adaptive = Norm(8), AdaptiveNorm(8, 4)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(plain(x)[0], expected)
    normed, gate = adaptive(x, torch.randn(2, 3, 4))
    torch.testing.assert_close(normed, expected)
    assert gate.abs().max() == 0 and plain(x.bfloat16())[0].dtype == torch.bfloat16


def test_rotary_embedding_depends_on_distance_only():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(i: int, j: int) -> float:
        turned = [rotate(x, rope(torch.tensor([[at]]), 16)) for x, at in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    assert product(3, 1) == pytest.approx(product(12, 10), rel=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), rel=1e-3)


def test_pictures_keep_their_proportions():
    wide = torch.full((1, 3, 10, 20), 200, dtype=torch.uint8)
    square = _vision.resize_with_pad(wide, 16)
    assert square.shape == (1, 3, 16, 16) and square.dtype == torch.uint8
    assert (square[:, :, 4:12] == 200).all() and (square[:, :, :4] == 0).all() and (square[:, :, 12:] == 0).all()
    same = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(_vision.resize_with_pad(same, 16), same)


def test_merging_joins_squares_of_patches():
    size = _vision.VisionSize(16, 4, 8, 16, 1, 2, merge=2)
    vision = _vision.Vision(size, 5)
    assert size.tokens == 4 and vision(torch.zeros(2, 3, 3, 16, 16)).shape == (2, 12, 5)


def test_a_shift_moves_the_picture_and_repeats_its_edge():
    picture = torch.arange(36.0).view(1, 1, 1, 6, 6).expand(1, 1, 3, 6, 6).to(torch.uint8)
    for seed in range(5):
        moved = _vision.random_shift(picture, 2, torch.Generator().manual_seed(seed))[0, 0, 0]
        rows, columns = moved[:, 0] // 6, moved[0] % 6
        steps = [b - a for line in (rows.tolist(), columns.tolist()) for a, b in itertools.pairwise(line)]
        assert set(steps) <= {0, 1}
        assert torch.equal(moved, rows[:, None] * 6 + columns)
