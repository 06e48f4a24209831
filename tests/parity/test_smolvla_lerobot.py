"""SmolVLA against LeRobot's own, weight for weight: what it prepares, says, learns and does.

Every policy here is built by LeRobot around a small offline VLM, written by LeRobot's save_pretrained together with its
processors, and opened by lithe from that folder. Preparation must agree bit for bit, results to 1e-5 in float32.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("lerobot", reason="the reference is LeRobot's own policy: install lithe[lerobot]")

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

import lithe
from lithe import checkpoint, surgery
from lithe.families import _lerobot, _smolvla_names
from lithe.families._smolvla_config import PRESETS
from lithe.families.smolvla import SmolVLA
from lithe.surgery import KeepLayers
from lithe.types import Batch, Draw, Route

TOLERANCE = 1e-5
WORDS = [
    "pick",
    "place",
    "push",
    "the",
    "red",
    "blue",
    "block",
    "cup",
    "into",
    "drawer",
    "and",
    "close",
    "it",
    "slowly",
]
MARKS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
TASKS = ("pick the red block", "push", "place the blue cup into the drawer\n")
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY_TEXT |= {"head_dim": 8}
TINY_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_VISION |= {"image_size": 24, "patch_size": 4}
WIDE_TEXT = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5}
WIDE_TEXT |= {"head_dim": 64}
WIDE_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 1, "num_attention_heads": 12}
WIDE_VISION |= {"image_size": 128, "patch_size": 16}
# LeRobot's settings of the policies that are compared; each turns on what the others leave out.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "marked images, an empty camera": {"add_image_special_tokens": True, "empty_cameras": 1},
    "cross-attention only, half of the expert": {
        "self_attn_every_n_layers": -1,
        "num_expert_layers": 2,
        "pad_language_to": "max_length",
        "prefix_length": 60,
    },
    "self-attention only": {"attention_mode": "self_attn", "min_period": 1e-2, "max_period": 2.0},
    "self-attention every third layer": {"self_attn_every_n_layers": 3, "num_vlm_layers": -1},
    "small pictures": {"resize_imgs_with_padding": (16, 16)},
}


# -- building --------------------------------------------------------------------------------------------------------


def write_vlm(folder: Path, text: dict[str, Any], vision: dict[str, Any], scale: int, depth: int, **top: Any) -> Path:
    """A VLM's configuration and processor, as LeRobot asks a hub for them."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "\n", *MARKS.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **MARKS)
    SmolVLMProcessor(SmolVLMImageProcessor(), fast, SmolVLMVideoProcessor(), image_seq_len=4).save_pretrained(folder)
    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "num_hidden_layers": depth,
            "vocab_size": len(vocabulary),
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "pad_token_id": 0,
            **text,
        },
        vision_config=vision,
        scale_factor=scale,
        image_token_id=vocabulary["<image>"],
        pad_token_id=0,
        **top,
    ).save_pretrained(folder)
    return folder


def build(vlm: Path, **settings: Any) -> SmolVLAPolicy:
    """LeRobot's policy with every parameter moved away from its initial value."""
    images = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 20, 28)) for name in ("top", "wrist")}
    torch.manual_seed(0)
    policy = SmolVLAPolicy(
        SmolVLAConfig(
            input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (6,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
            vlm_model_name=str(vlm),
            device="cpu",
            freeze_vision_encoder=False,
            **{
                "train_expert_only": False,
                "chunk_size": 5,
                "n_action_steps": 3,
                "num_steps": 3,
                "max_state_dim": 8,
                "max_action_dim": 7,
                "num_vlm_layers": 4,
                "tokenizer_max_length": 12,
                "resize_imgs_with_padding": (24, 24),
                **settings,
            },
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5)
    return policy.requires_grad_(True)


def statistics() -> dict[str, dict[str, np.ndarray]]:
    rng, found = np.random.default_rng(3), {}
    for feature, n in (("observation.state", 6), ("action", 5)):
        ordered = np.sort(rng.normal(size=(6, n)), axis=0).astype(np.float32)
        found[feature] = dict(zip(("min", "q01", "q10", "q90", "q99", "max"), ordered, strict=True))
        found[feature] |= {"mean": ordered[2], "std": rng.uniform(0.01, 2, n).astype(np.float32)}
    return found


@dataclasses.dataclass
class Pair:
    """One policy twice: LeRobot's with its processors, and lithe's, opened from the folder the former wrote."""

    reference: SmolVLAPolicy
    before: Any
    after: Any
    folder: Path
    ours: SmolVLA

    @staticmethod
    def of(reference: SmolVLAPolicy, folder: Path) -> Pair:
        before, after = make_smolvla_pre_post_processors(reference.config, statistics())
        for part in (reference, before, after):
            part.save_pretrained(folder)
        return Pair(reference, before, after, folder, SmolVLA.from_lerobot(_lerobot.read(folder)))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("vlm"), TINY_TEXT, TINY_VISION, scale=2, depth=4)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pair(request, vlm, tmp_path_factory) -> Pair:
    return Pair.of(build(vlm, **request.param), tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def plain(vlm, tmp_path_factory) -> Pair:
    return Pair.of(build(vlm), tmp_path_factory.mktemp("plain"))


# -- asking both -----------------------------------------------------------------------------------------------------


def observations(seed: int = 0, sizes: tuple[tuple[int, int], tuple[int, int]] = ((20, 28), (20, 28))) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        {
            "observation.images.top": rng.integers(0, 256, (*sizes[0], 3), dtype=np.uint8),
            "observation.images.wrist": rng.integers(0, 256, (*sizes[1], 3), dtype=np.uint8),
            "observation.state": rng.normal(size=6).astype(np.float32),
            "task": task,
        }
        for task in TASKS
    ]


def prepared(pair: Pair, raw: list[Any], **more: Tensor) -> dict[str, Any]:
    """What LeRobot's own pipeline makes of raw observations: pictures as floats in [0, 1], channels first."""
    batch: dict[str, Any] = {"task": [o["task"] for o in raw], **more}
    for key in raw[0]:
        if key != "task":
            stacked = torch.from_numpy(np.stack([o[key] for o in raw]))
            picture = key.startswith("observation.images.")
            batch[key] = stacked.permute(0, 3, 1, 2).contiguous().float() / 255 if picture else stacked
    return pair.before(batch)


def both(pair: Pair, seed: int = 0) -> tuple[dict[str, Any], Batch, Draw]:
    """One training step's inputs for LeRobot, and the same for lithe."""
    rng = np.random.default_rng(seed + 10)
    raw, actions = observations(seed), rng.normal(size=(3, 5, 5)).astype(np.float32)
    samples = {
        "images": {c: np.stack([o[f"observation.images.{c}"] for o in raw]) for c in ("top", "wrist")},
        "state": np.stack([o["observation.state"] for o in raw]),
        "task": list(TASKS),
        "action": actions,
    }
    batch = pair.ours.batch(samples)
    draw = pair.ours.draw(batch, torch.Generator().manual_seed(seed), augment=False)
    return prepared(pair, raw, action=torch.from_numpy(actions)), batch, draw


def velocity(pair: Pair, inputs: dict[str, Any], draw: Draw) -> tuple[Tensor, Tensor]:
    """LeRobot's velocity and loss in one training pass."""
    said: list[Tensor] = []
    handle = pair.reference.model.action_out_proj.register_forward_hook(lambda *x: said.append(x[2]))
    loss, _ = pair.reference.forward(dict(inputs), noise=draw.noise_BRHA[:, 0], time=draw.time_BR[:, 0])
    handle.remove()
    return said[0], loss


def close(ours: Tensor, theirs: Tensor, what: str = "", scale: Tensor | None = None) -> None:
    error = float((ours - theirs).detach().norm() / (theirs if scale is None else scale).detach().norm())
    assert error < TOLERANCE, f"{what} differs by {error:.1e}"


# -- preparation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [((20, 28), (20, 28)), ((24, 24), (24, 24)), ((48, 30), (11, 17))])
def test_pictures_state_and_words_are_prepared_bit_for_bit(pair, sizes):
    raw = observations(4, sizes)
    theirs, ours = prepared(pair, raw), pair.ours.observe(raw)
    images, masks = pair.reference.prepare_images(theirs)
    shown = pair.reference.config.add_image_special_tokens or pair.reference.config.empty_cameras == 0
    count = len(images) if shown else 2
    assert torch.equal(pair.ours._view(ours.images_BVCYX), torch.stack(images[:count], dim=1))
    assert torch.equal(ours.live_BV, torch.stack(masks[:count], dim=1))
    assert torch.equal(ours.state_BS, pair.reference.prepare_state(theirs))
    tokens, mask = (theirs[f"observation.language.{key}"] for key in ("tokens", "attention_mask"))
    assert torch.equal(ours.text_BT, mask)
    assert torch.equal(ours.tokens_BT[mask], tokens[mask]) and (ours.tokens_BT[mask] == 2).any(), "newlines"


def test_actions_are_prepared_and_given_back_bit_for_bit(plain):
    inputs, batch, _ = both(plain)
    assert torch.equal(batch.actions_BHA, plain.reference.prepare_action(inputs))
    chunk = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.ours.actions(chunk, batch), plain.after(chunk[..., :5]))


def test_a_long_prompt_is_cut_where_lerobot_cuts_it(plain):
    raw = [{**o, "task": " ".join(WORDS * 2)} for o in observations(6)]
    theirs, ours = prepared(plain, raw), plain.ours.observe(raw)
    assert ours.tokens_BT.shape == (3, 12) and torch.equal(ours.tokens_BT, theirs["observation.language.tokens"])


@pytest.mark.parametrize("modes", [("MIN_MAX", "QUANTILES"), ("IDENTITY", "MIN_MAX"), ("QUANTILE10", "IDENTITY")])
def test_other_normalisations_agree_bit_for_bit(vlm, tmp_path, modes):
    mapping = dict(zip(("VISUAL", "STATE", "ACTION"), map(NormalizationMode, ("IDENTITY", *modes)), strict=True))
    pair = Pair.of(build(vlm, normalization_mapping=mapping), tmp_path)
    inputs, batch, _ = both(pair)
    assert torch.equal(batch.state_BS, pair.reference.prepare_state(inputs))
    assert torch.equal(batch.actions_BHA, pair.reference.prepare_action(inputs))
    chunk = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pair.ours.actions(chunk, batch), pair.after(chunk[..., :5]))


def test_a_camera_that_is_missing_is_left_out(plain):
    raw = [{k: v for k, v in o.items() if k != "observation.images.top"} for o in observations(2)]
    noise = plain.ours.noise(3, torch.Generator().manual_seed(2))
    chunk = plain.ours.act(plain.ours.observe(raw), noise)
    close(chunk[..., :5], plain.reference.predict_action_chunk(prepared(plain, raw), noise))


# -- what it says, learns and does -----------------------------------------------------------------------------------


def test_velocity_and_loss_agree(pair):
    inputs, batch, draw = both(pair)
    theirs, loss = velocity(pair, inputs, draw)
    out = pair.ours(batch, draw)
    close(out.pred_BRHA[:, 0], theirs, "velocity")
    close(pair.ours.task_loss(out), loss, "loss")


def test_a_camera_masked_in_one_sample_agrees(pair):
    inputs, batch, draw = both(pair, seed=1)
    mask = torch.tensor([True, False, True])
    inputs["observation.images.top_padding_mask"] = mask
    theirs, _ = velocity(pair, inputs, draw)
    live = batch.live_BV.clone()
    live[:, 0] = mask
    out = pair.ours(dataclasses.replace(batch, live_BV=live), draw)
    close(out.pred_BRHA[:, 0], theirs)
    assert not torch.equal(pair.ours(batch, draw).pred_BRHA, out.pred_BRHA), "the mask changes nothing"


def test_gradients_agree(pair):
    inputs, batch, draw = both(pair)
    pair.reference.zero_grad()
    velocity(pair, inputs, draw)[1].backward()
    ours = surgery.cut(pair.ours, []).requires_grad_(True)
    ours.task_loss(ours(batch, draw)).backward()
    named = dict(ours.named_parameters())
    stored = dict(pair.reference.named_parameters())
    name = _smolvla_names.names(stored, named, ours.config.expert_every)
    seen = set()
    for key, parameter in stored.items():
        mine = named.get(name(key) or "")
        if parameter.grad is None or mine is None or mine.shape != parameter.shape:
            continue  # read by nobody; or a position table of another size, which lithe took places from
        if float(parameter.grad.abs().max()) == 0.0:
            assert mine.grad is None or float(mine.grad.abs().max()) == 0.0, key
            continue
        scale = parameter.grad
        if key.endswith("k_proj.bias"):  # 0 but for rounding: it moves all scores of a query alike
            scale = stored[key.replace("bias", "weight")].grad
        close(mine.grad, parameter.grad, key, scale)
        seen.add(name(key))
    untouched = {key for key, parameter in named.items() if parameter.grad is not None} - seen
    assert all(key.endswith(_smolvla_names.PLACES) for key in untouched) and len(seen) > 40, untouched


def test_a_sampled_chunk_agrees(pair):
    raw = observations(7)
    noise = pair.ours.noise(3, torch.Generator().manual_seed(1))
    theirs = pair.reference.predict_action_chunk(prepared(pair, raw), noise)
    close(pair.ours.act(pair.ours.observe(raw), noise)[..., :5], theirs, "chunk")


def test_draws_that_share_a_prefix_agree_one_by_one(pair):
    inputs, batch, _ = both(pair)
    draw = pair.ours.draw(batch, torch.Generator().manual_seed(5), draws=3, augment=False)
    together = pair.ours(batch, draw).pred_BRHA
    for r in range(3):
        alone = Draw(draw.view_BVCYX, draw.noise_BRHA[:, r : r + 1], draw.time_BR[:, r : r + 1])
        close(together[:, r], velocity(pair, inputs, alone)[0], f"draw {r}")


@pytest.mark.parametrize("keep", [(1, 2), (0, 3), (2,), (3,), (0, 1, 3)])
def test_a_cut_policy_is_the_whole_one_with_silent_layers(vlm, tmp_path, keep):
    """A layer whose outputs are zero changes nothing: LeRobot's full depth is the reference, with kinds by place."""
    reference = build(vlm)
    model = reference.model.vlm_with_expert
    pair = Pair.of(reference, tmp_path)
    gone = [i for i in range(4) if i not in keep]
    with torch.no_grad():
        for stack in (model.vlm.model.text_model.layers, model.lm_expert.layers):
            for i in gone:
                stack[i].self_attn.o_proj.weight.zero_()
                stack[i].mlp.down_proj.weight.zero_()
    inputs, batch, draw = both(pair)
    student = surgery.cut(pair.ours, [KeepLayers("trunk", keep)])
    close(student(batch, draw).pred_BRHA[:, 0], velocity(pair, inputs, draw)[0])
    assert torch.equal(student(batch, draw).pred_BRHA, pair.ours(batch, draw, (), Route.without(4, *gone)).pred_BRHA)


def test_one_pair_of_layers_at_full_width_agrees(tmp_path):
    """The published widths of SmolVLM2-500M and its expert; little depth, few words."""
    vlm = write_vlm(tmp_path / "vlm", WIDE_TEXT, WIDE_VISION, scale=4, depth=2)
    settings = {"num_vlm_layers": 2, "resize_imgs_with_padding": (128, 128), "max_state_dim": 32, "max_action_dim": 32}
    pair = Pair.of(build(vlm, **settings, chunk_size=50), tmp_path / "policy")
    full = PRESETS["full"]
    for part in ("trunk", "expert", "eps", "self_attention_every", "shortest_period", "longest_period"):
        assert getattr(pair.ours.config, part) == getattr(full, part), part
    rng = np.random.default_rng(0)
    raw, actions = observations(3)[:1], rng.normal(size=(1, 50, 5)).astype(np.float32)
    inputs = prepared(pair, raw, action=torch.from_numpy(actions))
    batch = pair.ours.observe(raw)
    batch = dataclasses.replace(batch, actions_BHA=pair.reference.prepare_action(inputs))
    draw = pair.ours.draw(batch, torch.Generator().manual_seed(0))
    theirs, loss = velocity(pair, inputs, draw)
    out = pair.ours(batch, draw)
    close(out.pred_BRHA[:, 0], theirs, "velocity")
    close(pair.ours.task_loss(out), loss, "loss")
    loss.backward()
    ours = pair.ours.requires_grad_(True)
    ours.task_loss(ours(batch, draw)).backward()
    model = pair.reference.model.vlm_with_expert
    for mine, their in (
        (ours.trunk.layers[0].q_proj, model.vlm.model.text_model.layers[0].self_attn.q_proj),
        (ours.trunk.layers[1].k_proj, model.vlm.model.text_model.layers[1].self_attn.k_proj),
        (ours.expert.layers[0].gate_proj, model.lm_expert.layers[0].mlp.gate_proj),
        (ours.expert.layers[1].v_proj, model.lm_expert.layers[1].self_attn.v_proj),
        (ours.vision.projector, model.vlm.model.connector.modality_projection.proj),
    ):
        close(mine.weight.grad, their.weight.grad, "gradient")
    noise = ours.noise(1, torch.Generator().manual_seed(4))
    close(ours.act(batch, noise)[..., :5], pair.reference.predict_action_chunk(prepared(pair, raw), noise), "chunk")


# -- the folder ------------------------------------------------------------------------------------------------------


def test_load_recognises_the_folder(plain):
    model: Any = lithe.load(plain.folder)
    assert isinstance(model, SmolVLA) and model.describe() == plain.ours.describe() and model.spec.cameras[0] == "top"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.ours.parameters(), strict=True))


def test_an_opened_policy_survives_lithes_own_folder(pair, tmp_path):
    raw, noise = observations(1), pair.ours.noise(3, torch.Generator().manual_seed(3))
    checkpoint.save(pair.ours, tmp_path / "ours")
    again = checkpoint.load(tmp_path / "ours")
    assert again.describe() == pair.ours.describe() and not again.training
    assert torch.equal(again.act(again.observe(raw), noise), pair.ours.act(pair.ours.observe(raw), noise))
    batch = again.observe(raw)
    assert torch.equal(again.actions(noise, batch), pair.ours.actions(noise, batch))


def test_an_opened_policy_is_cut_as_it_would_be_loaded_cut_and_saved(pair, tmp_path):
    ops = [KeepLayers("trunk", (0, 1, 3))]
    expected = checkpoint.save(surgery.cut(lithe.load(pair.folder), ops), tmp_path / "expected")
    lithe.cut(pair.folder, ops, tmp_path / "cut")
    found, wanted = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / "cut", expected))
    assert found == wanted


def test_tied_words_are_found_under_either_name(tmp_path):
    """safetensors keeps one of two names of a shared tensor, and not the one a reader may expect."""
    vlm = write_vlm(tmp_path / "vlm", TINY_TEXT, TINY_VISION, scale=2, depth=4, tie_word_embeddings=True)
    pair = Pair.of(build(vlm, train_expert_only=True), tmp_path / "policy")
    stored = load_file(pair.folder / "model.safetensors")
    assert len({_smolvla_names.EMBEDDING, _smolvla_names.HEAD} & stored.keys()) == 1
    inputs, batch, draw = both(pair)
    close(pair.ours(batch, draw).pred_BRHA[:, 0], velocity(pair, inputs, draw)[0])


def edited(plain: Pair, folder: Path, **settings: Any) -> Path:
    """A copy of a policy folder with other settings."""
    folder.mkdir()
    for path in plain.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha"),
        ({"resize_imgs_with_padding": [24, 16]}, "into a square"),
        ({"resize_imgs_with_padding": None}, "into a square"),
        ({"num_vlm_layers": 3}, "num_vlm_layers=3, the weights have 4"),
        ({"num_expert_layers": 2}, "num_expert_layers=2, the weights have 4"),
        ({"vlm_model_name": "somebody/other-vlm"}, "neither a folder here nor one that lithe knows"),
        ({"pad_language_to": "shortest"}, "pad_text must be"),
        ({"resize_imgs_with_padding": [20, 20]}, "must divide into squares"),
        ({"attention_mode": "self_attn"}, "do not fit the model"),
        ({"min_period": 5.0}, "periods must be positive"),
    ],
)
def test_what_would_act_differently_is_refused(plain, tmp_path, settings, complaint):
    folder = edited(plain, tmp_path / "edited", **settings)
    with pytest.raises(ValueError, match=complaint):
        SmolVLA.from_lerobot(_lerobot.read(folder))


def test_a_renamed_camera_is_asked_for_by_the_robots_name(plain, tmp_path):
    folder = edited(plain, tmp_path / "renamed")
    path = folder / "policy_preprocessor.json"
    steps = json.loads(path.read_text())
    for step in steps["steps"]:
        if step["registry_name"] == "rename_observations_processor":
            step["config"] = {"rename_map": {"observation.images.front": "observation.images.wrist"}}
    path.write_text(json.dumps(steps))
    model = SmolVLA.from_lerobot(_lerobot.read(folder))
    assert model.spec.cameras == ("top", "front")
    raw = observations(5)
    renamed = [{k.replace("wrist", "front"): v for k, v in o.items()} for o in raw]
    noise = model.noise(3, torch.Generator().manual_seed(3))
    assert torch.equal(model.act(model.observe(renamed), noise), plain.ours.act(plain.ours.observe(raw), noise))


def test_a_tensor_too_many_or_too_few_is_refused(plain, tmp_path):
    weights = load_file(plain.folder / "model.safetensors")
    for name, wrong in (
        ("surplus", {**weights, "model.surplus": torch.zeros(1)}),
        ("state_in.bias", {k: v for k, v in weights.items() if k != "model.state_proj.bias"}),
    ):
        folder = edited(plain, tmp_path / name)
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(ValueError, match=name):
            SmolVLA.from_lerobot(_lerobot.read(folder))
