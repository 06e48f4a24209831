"""LeRobot's SmolVLA in the sizes of a lithe policy, holding its weights.

LeRobot asks a folder for the configuration and the tokenizer of the VLM, so such a folder is written and thrown away.
Depth, widths and the order of the layers come from configuration; only the expert's MLP, whose width LeRobot computes,
is exchanged. A student whose cuts left an order of layers that LeRobot cannot express is refused.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lithe.bench import _lerobot
from lithe.bench._lerobot import Hosted
from lithe.families import _smolvla_names, _smolvlm

MARKS = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
MARKS |= {"end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>"}
KINDS = {_smolvlm.Absent: "absent", _smolvlm.SelfLayer: "self", _smolvlm.CrossLayer: "cross"}


def host(model: Any, steps: int) -> Hosted:
    """See _lerobot.host."""
    from accelerate import init_empty_weights
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.policies.smolvla import modeling_smolvla as module

    c, every = model.config, order(model)
    if any(c.relative):
        raise ValueError("LeRobot's SmolVLA knows no relative actions: no peer")
    policy_class: Any = module.SmolVLAPolicy
    half = next(model.parameters()).dtype == torch.bfloat16

    class Policy(policy_class):  # type: ignore[misc]
        """LeRobot's policy around a network that is there already; its own would be filled with random numbers."""

        def __init__(self, config: Any, network: nn.Module):
            PreTrainedPolicy.__init__(self, config)
            config.validate_features()
            self.config = config
            self.init_rtc_processor()
            self.model = network
            self.reset()

    with TemporaryDirectory() as folder:
        _write_vlm(model, Path(folder))
        config = _config(model, module.SmolVLAConfig, folder, steps, every)
        with init_empty_weights():
            network = module.VLAFlowMatching(config)
            _fit(network.vlm_with_expert, c)
    policy = Policy(config, network).eval()
    names = _smolvla_names.names(policy.state_dict(), model.state_dict(), every[1])
    if half:  # as LeRobot loads it with load_vlm_weights
        network.vlm_with_expert.vlm.to(torch.bfloat16)
    _lerobot.give(policy, model, names)
    before, after = _processors(model, config)
    return Hosted(policy, before, after, lambda: policy.config.num_steps, _not_equal(c, every[1], half))


def order(model: Any) -> tuple[int, int]:
    """Self-attention beside every how many trunk layers (0 = never), and an expert layer beside every how many. Raises
    ValueError where the layers that are left stand in another order than any such numbers give."""
    depth = model.depth()
    kinds = [KINDS[type(layer)] for layer in model.expert.layers]
    for beside in (n for n in range(1, depth + 1) if depth % n == 0):
        for own in range(depth + 1):
            if kinds == _smolvlm.kinds(depth, own, beside):
                return own, beside
    raise ValueError(
        f"the expert's layers are {' '.join(kinds)}, an order that LeRobot's SmolVLA cannot have (self-attention in "
        "every n-th): leave peers out, or cut so that the order stays regular"
    )


def _config(model: Any, kind: Any, folder: str, steps: int, every: tuple[int, int]) -> Any:
    c = model.config
    return kind(
        **_lerobot.features(c),
        normalization_mapping=_lerobot.normalization(model),
        device=str(next(model.parameters()).device),
        vlm_model_name=folder,
        load_vlm_weights=False,
        chunk_size=c.horizon,
        n_action_steps=c.replan,
        max_state_dim=c.width_state,
        max_action_dim=c.width_action,
        num_steps=steps,
        min_period=c.shortest_period,
        max_period=c.longest_period,
        resize_imgs_with_padding=(c.vision.image, c.vision.image),
        tokenizer_max_length=c.text,
        pad_language_to=c.pad_text,
        empty_cameras=c.empty_cameras,
        add_image_special_tokens=c.image_marks is not None,
        num_vlm_layers=c.depth,
        num_expert_layers=c.depth // every[1],
        self_attn_every_n_layers=every[0] or -1,
        expert_width_multiplier=(c.expert.width + 0.5) / c.trunk.width,  # LeRobot rounds down
    )


def _write_vlm(model: Any, folder: Path) -> None:
    """Configuration and processor of a VLM, as LeRobot asks for them."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    c = model.config
    text = {
        "model_type": "llama",
        "hidden_size": c.trunk.width,
        "intermediate_size": c.trunk.mlp,
        "num_attention_heads": c.trunk.heads,
        "num_key_value_heads": c.trunk.kv_heads,
        "head_dim": c.trunk.head_dim,
        "num_hidden_layers": c.depth,
        "vocab_size": c.vocabulary,
        "rms_norm_eps": c.eps,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": c.vision.width,
        "intermediate_size": c.vision.mlp,
        "num_hidden_layers": c.vision.layers,
        "num_attention_heads": c.vision.heads,
        "image_size": c.vision.image,
        "patch_size": c.vision.patch,
    }
    words = _lerobot.tokenizer(model, **MARKS)
    seen = SmolVLMProcessor(SmolVLMImageProcessor(), words, SmolVLMVideoProcessor(), image_seq_len=c.vision.tokens)
    seen.save_pretrained(folder)
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=c.vision.merge, pad_token_id=0).save_pretrained(
        folder
    )


def _fit(both: Any, c: Any) -> None:
    """The expert's MLPs in the policy's width, and no output layer over words; nothing has memory yet."""
    for layer in both.lm_expert.layers:
        if layer.mlp.up_proj.out_features != c.expert.mlp:
            for name in ("gate_proj", "up_proj"):
                setattr(layer.mlp, name, nn.Linear(c.expert.width, c.expert.mlp, bias=False))
            layer.mlp.down_proj = nn.Linear(c.expert.mlp, c.expert.width, bias=False)
    _lerobot.without_heads(both.vlm)


def _processors(model: Any, config: Any) -> tuple[Any, Any]:
    from lerobot.processor import NewLineTaskProcessorStep

    return _lerobot.processors(model, config, NewLineTaskProcessorStep(), None, config.pad_language_to)


def _not_equal(c: Any, beside: int, half: bool) -> tuple[str, ...]:
    found = [
        "attention: eager, all scores written out",
        "last trunk layer: computed whole, not its keys and values alone",
        "second projections of keys and values: made again at every denoise step",
    ]
    if len(c.cameras) > 1:
        found.append("cameras: seen one after the other")
    if half:
        found.append("expert and the projections of state, actions and time: in float32")
    if beside > 1:
        found.append(f"expert: a layer beside every {beside} trunk layers, as the policy was trained")
    return tuple(found)
