"""pi0 and pi0.5 against LeRobot's own: same folder, same observation, same noise, same numbers.

LeRobot's networks are made small by replacing the sizes that it hard-codes (its Gemma variants, the vocabulary, the
vision tower) and nothing else; everything it computes is its own code. The folders are written by LeRobot's own
`save_pretrained`, processors included, and opened by `lithe.load`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lithe
from lithe import checkpoint, surgery
from lithe.families import _lerobot, _pi_names, _prompt, _vision
from lithe.families.pi import Pi, PiConfig
from lithe.types import Draw

pytest.importorskip("lerobot", reason="LeRobot is an extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's and transformers' own

VARIANTS = ("pi0", "pi05")
CAMERAS = ("top", "wrist")
IMAGE, TEXT, HORIZON, STATE, ACTION, STEPS = 28, 72, 5, 6, 7, 3
TOLERANCE = 1e-5
TASKS = ["push_the block", " open\nthe drawer ", "put the red cup on the far shelf, then come back " * 2]


@dataclass(frozen=True)
class Size:
    """What LeRobot hard-codes."""

    trunk: tuple[int, int, int]  # width, mlp, head_dim
    expert: tuple[int, int, int]
    depth: int
    vision: tuple[int, int, int]  # width, mlp, layers
    vocabulary: int = 300


TINY = Size((32, 48, 8), (24, 40, 8), 3, (32, 48, 2))
WIDE = Size((2048, 16384, 256), (1024, 4096, 256), 2, (32, 48, 1))


@pytest.fixture
def shrink(monkeypatch):
    """LeRobot with other sizes, until the test ends."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, *a, **k: tensor)  # make_policy draws them all

    def apply(size: Size) -> None:
        for module in (modeling_pi0, modeling_pi05):
            gemma, vlm, expert = (
                getattr(module, name)
                for name in ("GemmaConfig", "PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
            )

            def variant(name, gemma=gemma):
                width, mlp, head = size.trunk if name == "gemma_2b" else size.expert
                return gemma(width, size.depth, mlp, num_heads=8, num_kv_heads=1, head_dim=head)

            def small_vlm(config, vlm=vlm):
                config.vision_config.hidden_size, config.vision_config.intermediate_size = size.vision[:2]
                config.vision_config.num_hidden_layers = size.vision[2]
                config.vision_config.projection_dim = config.projection_dim = size.trunk[0]
                config.text_config.vocab_size = size.vocabulary
                return vlm(config=config)

            def small_expert(config, expert=expert):
                config.vocab_size = size.vocabulary
                return expert(config=config)

            monkeypatch.setattr(module, "get_gemma_config", variant)
            monkeypatch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", small_vlm)
            monkeypatch.setattr(module, "PiGemmaForCausalLM", small_expert)

    return apply


def make_policy(variant: str, **settings: Any) -> Any:
    """LeRobot's policy with random weights, none of them at its trivial start."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.pi0.modeling_pi0 import PI0Config, PI0Policy
    from lerobot.policies.pi05.modeling_pi05 import PI05Config, PI05Policy

    inputs = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 20, 36)) for c in CAMERAS}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
    shared = {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        "image_resolution": (IMAGE, IMAGE),
        "chunk_size": HORIZON,
        "n_action_steps": HORIZON - 1,
        "num_inference_steps": STEPS,
        "tokenizer_max_length": TEXT,
        "max_state_dim": 9,
        "max_action_dim": 8,
        "device": "cpu",
    }
    config, policy = (PI05Config, PI05Policy) if variant == "pi05" else (PI0Config, PI0Policy)
    made = policy(config(**{**shared, **settings})).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data.normal_(0, spread, generator=generator)
    return made


def make_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer, which sees every space and newline, as a transformers folder."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *letters]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def make_stats() -> dict[str, dict[str, torch.Tensor]]:
    stats = {}
    for seed, (feature, size) in enumerate({"observation.state": STATE, "action": ACTION}.items()):
        random = np.random.default_rng(seed)
        low, span = random.normal(size=size) * 3, random.uniform(0.1, 4, size)
        span[1] = 0  # a joint that never moved
        values = {"q01": low, "q99": low + span, "min": low - 0.1, "max": low + span + 0.1}
        values |= {"q10": low + span / 10, "q90": low + span * 0.9, "mean": low + span / 2, "std": span / 4}
        stats[feature] = {key: torch.tensor(x, dtype=torch.float32) for key, x in values.items()}
    return stats


def save(policy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, weights: bool = True) -> tuple[Any, Any]:
    """LeRobot writes its whole policy folder; returns its processors."""
    from lerobot.policies.pi0 import processor_pi0
    from lerobot.policies.pi05 import processor_pi05

    module = processor_pi05 if policy.name == "pi05" else processor_pi0
    tokenizer = make_tokenizer(folder.parent / "tokenizer")
    step = module.TokenizerProcessorStep
    with monkeypatch.context() as patch:  # only whose tokenizer it is
        named = lambda **settings: step(**{**settings, "tokenizer_name": str(tokenizer)})  # noqa: E731
        patch.setattr(module, "TokenizerProcessorStep", named)
        before, after = getattr(module, f"make_{policy.name}_pre_post_processors")(policy.config, make_stats())
    folder.mkdir()
    for part in (policy if weights else policy.config, before, after):
        part.save_pretrained(folder)
    return before, after


def raw(batch: int = 3, cameras: tuple[str, ...] = CAMERAS, seed: int = 0) -> dict[str, Any]:
    """Raw samples; the cameras have different shapes, and one state lies outside its statistics."""
    random = np.random.default_rng(seed)
    pixels = {"top": (20, 36), "wrist": (40, 33)}
    state = random.normal(size=(batch, STATE)).astype(np.float32) * 3
    return {
        "images": {c: random.integers(0, 256, (batch, *pixels[c], 3), dtype=np.uint8) for c in cameras},
        "state": state,
        "task": (TASKS * batch)[:batch],
        "action": random.normal(size=(batch, HORIZON, ACTION)).astype(np.float32),
    }


def for_lerobot(samples: dict[str, Any]) -> dict[str, Any]:
    """The same samples as LeRobot's environments and data sets give them."""
    images = {
        f"observation.images.{c}": torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float() / 255
        for c, x in samples["images"].items()
    }
    state, action = torch.from_numpy(samples["state"]), torch.from_numpy(samples["action"])
    return {**images, "observation.state": state, "action": action, "task": list(samples["task"])}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    scale = float(theirs.detach().abs().max())
    assert scale > 0 and float((ours - theirs).detach().abs().max()) <= TOLERANCE * scale


def chances(width: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, HORIZON, width, generator=generator), torch.rand(batch, generator=generator)


def train_lerobot(policy: Any, inputs: dict[str, Any], noise, time) -> tuple[torch.Tensor, torch.Tensor]:
    """LeRobot's velocity and loss for a given draw, its gradients left in the policy."""
    seen = []
    policy.model.sample_noise, policy.model.sample_time = lambda *a: noise, lambda *a: time
    hook = policy.model.action_out_proj.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    policy.zero_grad()
    loss, _ = policy.forward(inputs)
    loss.backward()
    hook.remove()
    return seen[0], loss.detach()


def check_training(model: Pi, policy: Any, samples: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Velocity, loss and the gradient of every parameter."""
    noise, time = chances(policy.config.max_action_dim, len(inputs["action"]))
    velocity, loss = train_lerobot(policy, inputs, noise, time)
    batch = model.batch(samples)
    model.zero_grad()
    out = model(batch, Draw(_vision.to_unit(batch.images_BVCYX), noise[:, None], time[:, None]))
    mine = model.task_loss(out)
    mine.backward()
    close(out.pred_BRHA[:, 0], velocity)
    close(mine, loss)
    theirs = dict(policy.named_parameters())
    names = _pi_names.names(model.state_dict(), model.config.variant, theirs)
    compared, largest = 0, max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for key, parameter in theirs.items():
        ours = model.get_parameter(names(key)) if names(key) else None
        if parameter.grad is None or not parameter.grad.any():
            assert ours is None or ours.grad is None or not ours.grad.any(), f"only ours has a gradient: {key}"
        elif key.endswith("self_attn.k_proj.bias"):  # moves every score of a query alike: its gradient is rounding
            assert max(float(grad.abs().max()) for grad in (ours.grad, parameter.grad)) < 1e-6 * largest
        else:
            close(ours.grad, parameter.grad)
            compared += 1
    assert compared > 0.7 * len(list(model.parameters())), "most parameters must have been compared"


def check_acting(model: Pi, policy: Any, samples: dict[str, Any], inputs: dict[str, Any]) -> None:
    noise, _ = chances(policy.config.max_action_dim, len(inputs["action"]))
    theirs = policy.predict_action_chunk(inputs, noise=noise)
    ours = model.act(model.batch(samples), noise)
    close(ours[..., :ACTION], theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_policy_sees_trains_and_acts_as_in_lerobot(variant, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    policy = make_policy(variant)
    before, after = save(policy, tmp_path / "policy", monkeypatch)
    model = lithe.load(tmp_path / "policy")
    assert not model.training and model.origin == {"source": str(tmp_path / "policy"), "revision": None}
    samples = raw()
    inputs = before(for_lerobot(samples))
    batch = model.batch(samples)

    assert torch.equal(batch.tokens_BT, inputs["observation.language.tokens"])
    assert torch.equal(batch.text_BT, inputs["observation.language.attention_mask"])
    assert not batch.text_BT.all() and batch.text_BT.any(0).all(), "one prompt was to be cut and one padded"
    assert torch.equal(batch.state_BS[:, :STATE], inputs["observation.state"]) and not batch.state_BS[:, STATE:].any()
    assert torch.equal(batch.actions_BHA[..., :ACTION], inputs["action"]) and not batch.actions_BHA[..., ACTION:].any()
    images, masks = policy._preprocess_images(inputs)
    view = _vision.to_unit(batch.images_BVCYX)
    assert all(torch.equal(view[:, i], image) for i, image in enumerate(images)) and len(images) == view.shape[1]
    assert torch.equal(batch.live_BV, torch.stack(masks, dim=1))
    chunk = torch.randn(3, HORIZON, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.actions(chunk, batch), after(chunk[..., :ACTION]))

    check_training(model, policy, samples, inputs)
    check_acting(model, policy, samples, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("names", [None, ["shoulder", "Left_Gripper", "wrist", "base", "finger"][:ACTION]])
def test_relative_actions_count_from_the_state_as_in_lerobot(variant, names, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    monkeypatch.setitem(globals(), "STATE", ACTION)  # one state beside each action
    policy = make_policy(variant, use_relative_actions=True, action_feature_names=names)
    before, after = save(policy, tmp_path / "policy", monkeypatch)
    model = lithe.load(tmp_path / "policy")
    assert model.config.relative == tuple(not (names and i == 1) for i in range(ACTION))
    checkpoint.save(model, tmp_path / "again")
    samples = raw()
    inputs = before(for_lerobot(samples))
    chunk = torch.randn(3, HORIZON, 8, generator=torch.Generator().manual_seed(2))
    there = after(chunk[..., :ACTION])
    for mine in (model, lithe.load(tmp_path / "again")):
        batch = mine.batch(samples)
        assert torch.equal(batch.actions_BHA[..., :ACTION], inputs["action"])
        assert torch.equal(mine.actions(chunk, batch), there)


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_and_empty_cameras_are_masked(variant, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    policy = make_policy(variant, empty_cameras=1)
    before, _ = save(policy, tmp_path / "policy", monkeypatch)
    model = lithe.load(tmp_path / "policy")
    assert model.spec.cameras == CAMERAS, "an empty camera is none"
    samples = raw(cameras=("wrist",))
    inputs = before(for_lerobot(samples))
    assert len(policy._preprocess_images(inputs)[0]) == 3
    assert model.batch(samples).live_BV.tolist() == [[False, True]] * 3
    check_training(model, policy, samples, inputs)
    check_acting(model, policy, samples, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_layers_at_full_width(variant, shrink, tmp_path, monkeypatch):
    """2048/16384 and 1024/4096, the weights shared in memory. Two pairs: of the last trunk layer little is read."""
    shrink(WIDE)
    policy = make_policy(variant)
    before, _ = save(policy, tmp_path / "policy", monkeypatch, weights=False)
    folder = _lerobot.read(tmp_path / "policy")
    stored = policy.state_dict()
    settings = _pi_names.settings(folder, {key: tuple(x.shape) for key, x in stored.items()})
    assert settings["trunk"] == {"width": 2048, "mlp": 16384, "heads": 8, "kv_heads": 1, "head_dim": 256}
    assert settings["expert"] == {"width": 1024, "mlp": 4096, "heads": 8, "kv_heads": 1, "head_dim": 256}
    with torch.device("meta"):
        model = Pi(PiConfig.parse(settings))
    names = _pi_names.names(model.state_dict(), variant, stored)
    checkpoint.fill(model, {names(key): x for key, x in stored.items() if names(key)}, "LeRobot")
    modes = {"observation.state": folder.modes["STATE"].lower(), "action": folder.modes["ACTION"].lower()}
    model.normalizer, model.tokenizer = _prompt.Normalizer(modes, folder.stats, "lerobot"), folder.tokenizer
    samples = raw(batch=1)
    inputs = before(for_lerobot(samples))
    check_acting(model, policy, samples, inputs)
    check_training(model, policy, samples, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_student_survives_the_disk_bit_for_bit(variant, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    save(make_policy(variant, min_period=0.01, max_period=2.0), tmp_path / "policy", monkeypatch)
    teacher = lithe.load(tmp_path / "policy")
    student = surgery.cut(teacher, [surgery.KeepLayers("trunk", (0, 2))])
    checkpoint.save(student, tmp_path / "student")
    again = lithe.load(tmp_path / "student")
    samples, noise = raw(), chances(8)[0]
    assert again.depth() == 2 and again.config == student.config and again.config.convention == "lerobot"
    for model in (student, again):
        model.eval()
    chunks = [model.act(model.batch(samples), noise) for model in (student, again, teacher)]
    assert torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[0], chunks[2])
    batch = again.batch(samples)
    assert torch.equal(student.actions(chunks[0], batch), again.actions(chunks[0], batch))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stored", ["embedding", "output layer", "both, and one is stale"])
def test_the_embedding_is_the_one_that_lerobot_acts_with(variant, stored, shrink, tmp_path, monkeypatch):
    """LeRobot unties PaliGemma's output layer when it builds the policy, so fine-tuning leaves a stale copy behind."""
    from safetensors.torch import load_file, save_file

    shrink(TINY)
    policy = make_policy(variant)
    save(policy, tmp_path / "policy", monkeypatch)
    file = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(file)
    keys = ["model." + _pi_names.EMBEDDING, "model." + _pi_names.LM_HEAD]
    assert not torch.equal(*(tensors[key] for key in keys)), "LeRobot ties them again: this test is out of date"
    truth = tensors[keys[0]].clone()
    if stored != "both, and one is stale":
        tensors = {key: x.clone() for key, x in tensors.items() if key not in keys}
        tensors[keys[stored == "output layer"]] = truth
        save_file(tensors, file)
    theirs = type(policy).from_pretrained(tmp_path / "policy", config=policy.config)
    embedding = theirs.model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight
    assert torch.equal(embedding, truth), "LeRobot reads it otherwise: this test is out of date"
    assert torch.equal(lithe.load(tmp_path / "policy").embed.weight, truth)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("modes", [("MIN_MAX", "QUANTILE10"), ("MEAN_STD", "IDENTITY"), ("QUANTILES", "MEAN_STD")])
def test_every_mode_of_normalisation_is_lerobots(variant, modes, shrink, tmp_path, monkeypatch):
    from lerobot.configs import NormalizationMode

    shrink(TINY)
    mapping = {"VISUAL": "IDENTITY", "STATE": modes[0], "ACTION": modes[1]}
    policy = make_policy(variant, normalization_mapping={k: NormalizationMode(v) for k, v in mapping.items()})
    before, after = save(policy, tmp_path / "policy", monkeypatch)
    model = lithe.load(tmp_path / "policy")
    checkpoint.save(model, tmp_path / "again")
    samples = raw()
    inputs = before(for_lerobot(samples))
    chunk = torch.randn(3, HORIZON, 8, generator=torch.Generator().manual_seed(2))
    for mine in (model, lithe.load(tmp_path / "again")):
        batch = mine.batch(samples)
        assert torch.equal(batch.state_BS[:, :STATE], inputs["observation.state"])
        assert torch.equal(batch.actions_BHA[..., :ACTION], inputs["action"])
        assert torch.equal(batch.tokens_BT, inputs["observation.language.tokens"])
        assert torch.equal(mine.actions(chunk, batch), after(chunk[..., :ACTION]))


def test_observations_are_asked_for_by_their_own_names(shrink, tmp_path, monkeypatch):
    """The preprocessor renames what a robot calls its camera; lithe asks for the robot's name."""
    shrink(TINY)
    save(make_policy("pi05"), tmp_path / "policy", monkeypatch)
    path = tmp_path / "policy" / "policy_preprocessor.json"
    text = json.loads(path.read_text())
    text["steps"][0]["config"]["rename_map"] = {"observation.images.ceiling": "observation.images.top"}
    path.write_text(json.dumps(text))
    model = lithe.load(tmp_path / "policy")
    assert model.spec.cameras == ("ceiling", "wrist")
    samples = raw(batch=1)
    observation = {"observation.images.ceiling": samples["images"]["top"][0], "task": "push"}
    batch = model.observe([{**observation, "observation.state": samples["state"][0]}])
    assert batch.live_BV.tolist() == [[True, False]]


def to_openpi(policy: Any, folder: Path, **config: Any) -> Path:
    """An openpi PyTorch folder with the policy's weights, written by hand: LeRobot's names without their prefix."""
    from safetensors.torch import save_file

    keep = {key.removeprefix("model."): x.detach().clone() for key, x in policy.state_dict().items()}
    keep[_pi_names.LM_HEAD] = keep.pop(_pi_names.EMBEDDING)  # of tied tensors openpi stores the first by name
    assets = folder / "assets" / "lab" / "robot"
    assets.mkdir(parents=True)
    save_file(keep, folder / "model.safetensors")
    stats = {"state": make_stats()["observation.state"], "actions": make_stats()["action"]}
    plain = {k: {s: x[s].tolist() for s in ("mean", "std", "q01", "q99")} for k, x in stats.items()}
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": plain}))
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder.parent / "tokenizer")
    (folder / "tokenizer.json").write_bytes((folder.parent / "tokenizer" / "tokenizer.json").read_bytes())
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_openpi_checkpoint_acts_as_the_same_weights_in_lerobot(variant, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    monkeypatch.setattr("lithe.families._openpi.IMAGE", IMAGE)
    policy = make_policy(variant)
    model = lithe.load(to_openpi(policy, tmp_path / "openpi", action_horizon=HORIZON))
    assert isinstance(model, Pi) and model.config.variant == variant and model.config.convention == "openpi"
    assert (model.config.state_dim, model.config.action_dim, model.config.horizon) == (STATE, ACTION, HORIZON)
    batch = model.example(3)
    inputs = {"observation.language.tokens": batch.tokens_BT, "observation.language.attention_mask": batch.text_BT}
    view = _vision.to_unit(batch.images_BVCYX)
    noise, _ = chances(8)
    state = [] if variant == "pi05" else [batch.state_BS]
    masks = list(batch.live_BV.unbind(1))
    theirs = policy.model.sample_actions(
        list(view.unbind(1)), masks, *inputs.values(), *state, noise=noise, num_steps=10
    )
    close(model.act(batch, noise), theirs)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["lerobot", "openpi"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_is_cut_as_it_would_be_loaded_cut_and_saved(variant, kind, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    monkeypatch.setattr("lithe.families._openpi.IMAGE", IMAGE)
    folder = tmp_path / "policy"
    if kind == "lerobot":
        save(make_policy(variant), folder, monkeypatch)
    else:
        to_openpi(make_policy(variant), folder, action_horizon=HORIZON)
    ops = [surgery.KeepLayers("trunk", (0, 2))]
    expected = checkpoint.save(surgery.cut(lithe.load(folder), ops), tmp_path / "expected")
    lithe.cut(folder, ops, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(expected)


def test_openpi_normalises_by_its_own_formulas(shrink, tmp_path, monkeypatch):
    shrink(TINY)
    monkeypatch.setattr("lithe.families._openpi.IMAGE", IMAGE)
    stats, samples = make_stats(), raw()
    random = np.random.default_rng(3).normal(size=(2, HORIZON, 8)).astype(np.float32)
    for variant in VARIANTS:
        model = Pi.from_openpi(to_openpi(make_policy(variant), tmp_path / variant / "openpi"), horizon=HORIZON)
        low, high = ((stats["action"][k].double().numpy()) for k in ("q01", "q99"))
        mean, std = (stats["action"][k].double().numpy() for k in ("mean", "std"))
        x = samples["action"].astype(np.float64)
        if variant == "pi05":
            coded, plain = (
                (x - low) / (high - low + 1e-6) * 2 - 1,
                (random[..., :ACTION] + 1) / 2 * (high - low + 1e-6) + low,
            )
        else:
            coded, plain = (x - mean) / (std + 1e-6), random[..., :ACTION] * (std + 1e-6) + mean
        samples = {
            **samples,
            "images": {"base_0_rgb": samples["images"].get("top", samples["images"].get("base_0_rgb"))},
        }
        moved = np.arange(ACTION) != 1  # what never moved is divided by the epsilon: any last bit becomes large
        batch = model.batch(samples)
        ours = batch.actions_BHA[..., :ACTION].numpy()
        assert np.allclose(ours[..., moved], coded[..., moved], rtol=1e-5, atol=1e-5)
        assert np.allclose(model.actions(torch.from_numpy(random), batch).numpy(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ({}, {}, "how many actions a chunk has"),
        ({"action_horizon": 5}, {"asset": "lab/other"}, "asset= one of lab/robot"),
    ],
)
def test_openpi_folders_that_leave_something_open(config, settings, message, shrink, tmp_path, monkeypatch):
    shrink(TINY)
    monkeypatch.setattr("lithe.families._openpi.IMAGE", IMAGE)
    folder = to_openpi(make_policy("pi05"), tmp_path / "openpi", **config)
    with pytest.raises(ValueError, match=message):
        Pi.from_openpi(folder, **settings)


@pytest.mark.parametrize("shape", [(480, 640), (300, 200), (16, 28), (28, 28)])
def test_openpi_images_are_resized_as_pillow_does(shape):
    """To one level in 255: openpi resizes with Pillow before the network sees anything."""
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    scale = max(shape) / IMAGE
    rows, columns = (int(n / scale) for n in shape)
    theirs = np.zeros((IMAGE, IMAGE, 3), int)
    top, left = (IMAGE - rows) // 2, (IMAGE - columns) // 2
    small = Image.fromarray(picture).resize((columns, rows), resample=Image.Resampling.BILINEAR)
    theirs[top : top + rows, left : left + columns] = np.asarray(small)
    ours = _vision.prepare(torch.from_numpy(picture[None]).permute(0, 3, 1, 2), IMAGE, "openpi")
    assert ours.dtype == torch.uint8 and np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1
