"""A LeRobot SmolVLA folder in lithe's terms: which settings, which sizes, and what each stored tensor is called here.

A policy folder does not say how large its VLM is: LeRobot asks the VLM's own configuration. Here sizes are read off the
shapes of the stored tensors; what shapes cannot tell (the width of a head, the norms' epsilon) comes from the VLM's
config.json where `vlm_model_name` is a local folder, and is known for the published SmolVLM2 models.
Source: LeRobot 0.6.1's `policies/smolvla`, read for names and conventions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe import source
from lithe.families._lerobot import CAMERA, UNUSED, PolicyFolder, shown_as

VLM, EXPERT = "model.vlm_with_expert.vlm.", "model.vlm_with_expert.lm_expert."
TEXT, SEEING = VLM + "model.text_model.", VLM + "model.vision_model."
EMBEDDING, HEAD = TEXT + "embed_tokens.weight", VLM + "lm_head.weight"
PATCHES, PLACES = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"  # in a vision tower
WHOLE = {
    "model.state_proj": "state_in",
    "model.action_in_proj": "action_in",
    "model.action_out_proj": "action_out",
    "model.action_time_mlp_in": "time_in",
    "model.action_time_mlp_out": "time_out",
    VLM + "model.connector.modality_projection.proj": "vision.projector",
    TEXT + "embed_tokens": "embed",
    TEXT + "norm": "trunk.norm",
    EXPERT + "norm": "expert.norm",
}
IN_LAYER = {
    **{f"self_attn.{name}_proj": f"{name}_proj" for name in "qkvo"},
    **{f"mlp.{name}_proj": f"{name}_proj" for name in ("gate", "up", "down")},
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_norm",
}
# What LeRobot assumes where a config.json, written by an older version, does not say.
DEFAULTS: dict[str, Any] = {
    "chunk_size": 50,
    "n_action_steps": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "resize_imgs_with_padding": [512, 512],
    "empty_cameras": 0,
    "adapt_to_pi_aloha": False,
    "tokenizer_max_length": 48,
    "num_steps": 10,
    "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "add_image_special_tokens": False,
    "attention_mode": "cross_attn",
    "pad_language_to": "longest",
    "num_expert_layers": -1,
    "self_attn_every_n_layers": 2,
    "min_period": 4e-3,
    "max_period": 4.0,
}
# What transformers assumes where a VLM's config.json does not say; and the conventions that lithe's layers have.
VLM_KNOWN: dict[str, dict[str, Any]] = {
    "text_config": {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "vision_config": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
VLM_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        **VLM_KNOWN["text_config"],
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
    },
    "vision_config": {**VLM_KNOWN["vision_config"], "num_attention_heads": 16},
}
IMAGE_MARKS = ("<fake_token_around_image>", "<global-img>")


@dataclass(frozen=True)
class Unseen:
    """What the shapes of tensors do not tell about a VLM."""

    head_dim: int = 64
    eps: float = 1e-5
    vision_heads: int = 12


PUBLISHED = {
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": Unseen(),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": Unseen(),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": Unseen(vision_heads=16),
}


def names(stored: Mapping[str, Any], model: Iterable[str], expert_every: int) -> Callable[[str], str | None]:
    """From a stored key to lithe's name for it, as `_lerobot.tensors` asks.

    stored: all keys of the file; where the VLM's head and its embedding are tied, only one of them is there.
    model: lithe's names; what stands before those of the vision tower depends on the version of transformers.
    expert_every: the expert's layer j stands beside trunk layer j * expert_every.
    """
    tower = next(name.removesuffix(PATCHES) for name in model if name.endswith(PATCHES))

    def ours(key: str) -> str | None:
        if key == HEAD:
            return UNUSED if EMBEDDING in stored else "embed.weight"
        if key.startswith(SEEING):
            return tower + key.removeprefix(SEEING)
        module, _, kind = key.rpartition(".")
        if module in WHOLE:
            return f"{WHOLE[module]}.{kind}"
        for prefix, stack, step in ((TEXT + "layers.", "trunk", 1), (EXPERT + "layers.", "expert", expert_every)):
            number, _, inner = module.removeprefix(prefix).partition(".")
            if key.startswith(prefix) and number.isdecimal() and inner in IN_LAYER:
                return f"{stack}.layers.{int(number) * step}.{IN_LAYER[inner]}.{kind}"
        return None

    return ours


def settings(policy: PolicyFolder, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration of the family for a policy folder, as plain data.

    Raises ValueError for what lithe does not know, or sizes that contradict each other.
    """
    told = {**DEFAULTS, **policy.config}
    depth, every = depths(policy, shapes)
    unseen = _unseen(policy.folder, told["vlm_model_name"])
    place_holders = {f"empty_camera_{i}" for i in range(told["empty_cameras"])}
    real = [camera for camera in policy.cameras if camera not in place_holders]
    crossing = "cross" in told["attention_mode"]
    return {
        "depth": depth,
        **_sizes(policy.folder, shapes, unseen, _side(policy.folder, told)),
        "self_attention_every": max(0, told["self_attn_every_n_layers"]) if crossing else 1,
        "expert_every": every,
        "eps": unseen.eps,
        "shortest_period": told["min_period"],
        "longest_period": told["max_period"],
        "text": told["tokenizer_max_length"],
        "pad_text": told["pad_language_to"],
        "image_marks": _image_marks(policy) if told["add_image_special_tokens"] else None,
        "horizon": told["chunk_size"],
        "replan": told["n_action_steps"],
        "steps": told["num_steps"],
        "width_action": told["max_action_dim"],
        "width_state": told["max_state_dim"],
        "action_dim": policy.action_dim,
        "state_dim": policy.state_dim,
        "cameras": tuple(shown_as(policy, CAMERA + camera).removeprefix(CAMERA) for camera in real),
        "empty_cameras": told["empty_cameras"],
        "relative": policy.relative,
        "convention": "lerobot",
    }


def depths(policy: PolicyFolder, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Layers of the VLM that are stored, and beside every how many of them the expert has one."""
    depth, experts = _count(shapes, TEXT + "layers."), _count(shapes, EXPERT + "layers.")
    if not experts or depth % experts:
        raise ValueError(f"{policy.folder} has {depth} VLM layers, which is no multiple of its {experts} expert layers")
    for key, found in (("num_vlm_layers", depth), ("num_expert_layers", experts)):
        wanted = policy.config.get(key, -1)
        if wanted > 0 and wanted != found:
            raise ValueError(f"{policy.folder}: config.json says {key}={wanted}, the weights have {found}: fetch both")
    return depth, depth // experts


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many layers are stored under a prefix."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})


def _side(folder: Path, told: dict[str, Any]) -> int:
    """Side of the pictures the model sees; also refuses what would change inputs or outputs and is not known here."""
    if told["adapt_to_pi_aloha"]:
        raise ValueError(f"{folder}/config.json: lithe does not know Aloha's joint conventions (adapt_to_pi_aloha) yet")
    fitted = told["resize_imgs_with_padding"]
    if not fitted or fitted[0] != fitted[1]:
        raise ValueError(
            f"{folder}/config.json: lithe fits pictures into a square, resize_imgs_with_padding is {fitted}: set both "
            "numbers to the side the policy was trained with"
        )
    return int(fitted[0])


def _unseen(folder: Path, vlm: str) -> Unseen:
    path = Path(vlm) / "config.json"
    if not path.is_file():
        if vlm not in PUBLISHED:
            raise ValueError(
                f"{folder}/config.json: the VLM {vlm!r} is neither a folder here nor one that lithe knows "
                f"({', '.join(PUBLISHED)}): set vlm_model_name to a folder with its config.json and tokenizer"
            )
        return PUBLISHED[vlm]
    config = source.read_json(path)
    text, vision = ({**given, **config.get(part, {})} for part, given in VLM_DEFAULTS.items())
    for part, told in (("text_config", text), ("vision_config", vision)):
        for key, known in VLM_KNOWN[part].items():
            if told[key] != known:
                raise ValueError(f"{path}: lithe reads VLMs with {part}.{key}={known!r}, not {told[key]!r}")
    head_dim = text["head_dim"] or text["hidden_size"] // text["num_attention_heads"]
    return Unseen(head_dim, text["rms_norm_eps"], vision["num_attention_heads"])


def _sizes(folder: Path, shapes: Mapping[str, tuple[int, ...]], unseen: Unseen, side: int) -> dict[str, Any]:
    """Widths of trunk, expert and vision tower, read off the shapes."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in shapes:
            raise ValueError(f"{folder} has no tensor {key}: the weights are incomplete, fetch them again")
        return shapes[key]

    def widths(stack: str) -> dict[str, int]:
        mlp, width = shape(f"{stack}layers.0.mlp.gate_proj.weight")
        rows = (shape(f"{stack}layers.0.self_attn.{name}_proj.weight")[0] for name in "qk")
        heads, kv_heads = (count // unseen.head_dim for count in rows)
        return {"width": width, "mlp": mlp, "heads": heads, "kv_heads": kv_heads, "head_dim": unseen.head_dim}

    width, _, patch, _ = shape(SEEING + "embeddings.patch_embedding.weight")
    joined = shape(VLM + "model.connector.modality_projection.proj.weight")[1]
    vision = {
        "image": side,
        "patch": patch,
        "width": width,
        "mlp": shape(SEEING + "encoder.layers.0.mlp.fc1.weight")[0],
        "layers": _count(shapes, SEEING + "encoder.layers."),
        "heads": unseen.vision_heads,
        "merge": math.isqrt(joined // width),
    }
    vocabulary = shape(EMBEDDING if EMBEDDING in shapes else HEAD)[0]
    return {"trunk": widths(TEXT), "expert": widths(EXPERT), "vision": vision, "vocabulary": vocabulary}


def _image_marks(policy: PolicyFolder) -> tuple[int, ...]:
    """Ids of the words around an image."""
    ids = {word: policy.tokenizer.token_to_id(word) for word in IMAGE_MARKS}
    missing = [word for word, number in ids.items() if number is None]
    if missing:
        raise ValueError(f"{policy.folder}: the tokenizer lacks {missing[0]!r}, which add_image_special_tokens needs")
    return tuple(ids.values())


def place_patches(table_PD: Tensor, across: int) -> Tensor:
    """Position embeddings for a picture of `across` by `across` patches, taken from the stored table.

    SmolVLM spreads a smaller picture's patches over the whole table by their relative position; a picture of the
    table's own size gets the table itself. Done once, at loading.
    """
    side = math.isqrt(len(table_PD))
    edges = torch.arange(1 / side, 1.0, 1 / side)
    relative = (torch.arange(across, dtype=torch.float32) * (1.0 / torch.tensor(across))).clamp(max=1.0 - 1e-6)
    place = torch.bucketize(relative, edges, right=True)
    return table_PD[(place[:, None] * side + place[None, :]).flatten()]
