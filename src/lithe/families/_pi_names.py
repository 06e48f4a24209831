"""What pi's tensors are called in LeRobot and openpi checkpoints, and what their shapes say about the model.

Both use the same names (LeRobot puts "model." in front), and neither stores its sizes: depth, widths and heads are read
off the shapes. Two things that no shape shows are the same in every published pi model and are taken for granted: one
key-value head (so the rows of k_proj are the head's width), and 16 heads in the SigLIP tower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from lithe.families._lerobot import ACTION, CAMERA, STATE, UNUSED, PolicyFolder, shown_as

Shapes = dict[str, tuple[int, ...]]

PREFIX = "model."  # LeRobot's policy holds the network under this name
TRUNK, EXPERT = "paligemma_with_expert.paligemma.model.language_model.", "paligemma_with_expert.gemma_expert.model."
TOWER = "paligemma_with_expert.paligemma.model.vision_tower."
EMBEDDING = TRUNK + "embed_tokens.weight"
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"  # tied to the embedding when the trunk was trained
# The expert never reads or writes words; transformers makes these all the same.
IDLE = ("paligemma_with_expert.gemma_expert.lm_head.weight", EXPERT + "embed_tokens.weight")
WHOLE = {
    "embed.": TRUNK + "embed_tokens.",
    "vision.projector.": "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.",
    "action_in.": "action_in_proj.",
    "action_out.": "action_out_proj.",
}
TIMES = {
    "pi05": {"time_in.": "time_mlp_in.", "time_out.": "time_mlp_out."},
    "pi0": {
        "time_in.": "action_time_mlp_in.",
        "time_out.": "action_time_mlp_out.",
        "state_in.": "state_proj.",
    },
}
INSIDE = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
INSIDE |= {part: f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj")}
INSIDE |= {part: f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")}
VISION_HEADS = 16
SAMPLING = {  # how LeRobot draws flow times, which lithe does in one way only
    "time_sampling_beta_alpha": 1.5,
    "time_sampling_beta_beta": 1.0,
    "time_sampling_scale": 0.999,
    "time_sampling_offset": 0.001,
}


def stored(name: str, variant: str) -> str:
    """The name, in an openpi checkpoint, of the model's tensor `name`; LeRobot's has PREFIX in front."""
    for ours, theirs in {**WHOLE, **TIMES[variant]}.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if name.startswith("vision.tower."):  # newer transformers leave out the middle name
        return TOWER + "vision_model." + name.removeprefix("vision.tower.").removeprefix("vision_model.")
    stack, _, rest = name.partition(".")
    home = {"trunk": TRUNK, "expert": EXPERT}[stack]
    layer = re.fullmatch(r"(layers\.\d+)\.(\w+)\.(.+)", rest)
    return home + (f"{layer[1]}.{INSIDE[layer[2]]}.{layer[3]}" if layer else rest)


def names(model: Iterable[str], variant: str, keys: Iterable[str]) -> Callable[[str], str | None]:
    """For `_lerobot.tensors`: the model's name for each of the stored `keys`.

    PaliGemma's embedding is tied to its output layer, which a policy never computes. A file may hold either or both;
    the embedding is what LeRobot acts with when it is there, so the other one counts only where it stands alone.
    """
    keys = set(keys)
    prefix = PREFIX if any(key.startswith(PREFIX + "paligemma_with_expert.") for key in keys) else ""
    table = {prefix + stored(name, variant): name for name in model}
    table |= {prefix + key: UNUSED for key in IDLE}
    table[prefix + LM_HEAD] = UNUSED if prefix + EMBEDDING in keys else "embed.weight"
    return table.get


def variant(shapes: Shapes) -> str:
    """Which of the two a checkpoint without a configuration holds. Raises ValueError for neither."""
    keys = {key.removeprefix(PREFIX) for key in shapes}
    if "time_mlp_in.weight" in keys:
        return "pi05"
    if {"action_time_mlp_in.weight", "state_proj.weight"} <= keys:
        return "pi0"
    raise ValueError(f"the weights are neither pi0's nor pi0.5's (they hold {', '.join(sorted(keys)[:3])}, ...)")


def sizes(shapes: Shapes, variant: str, image: int) -> dict[str, Any]:
    """The settings of PiConfig that shapes determine. Raises ValueError naming the tensor that is missing."""
    plain = {key.removeprefix(PREFIX): shape for key, shape in shapes.items()}

    def shape(name: str) -> tuple[int, ...]:
        key = stored(name, variant)
        if key not in plain:
            raise ValueError(f"the weights lack {key}, which every {variant} has: fetch them again")
        return plain[key]

    def count(pattern: str) -> int:
        found = {int(match[1]) for key in plain if (match := re.match(pattern, key))}
        if found != set(range(len(found))) or not found:
            raise ValueError(
                f"the weights hold the layers {sorted(found)} of {pattern.split('layers')[0]}: some are gone"
            )
        return len(found)

    def widths(stack: str) -> dict[str, int]:
        layer = f"{stack}.layers.0."
        (inner, width), head = shape(layer + "q_proj.weight"), shape(layer + "k_proj.weight")[0]
        return {
            "width": width,
            "mlp": shape(layer + "up_proj.weight")[0],
            "heads": inner // head,
            "kv_heads": 1,
            "head_dim": head,
        }

    tower = "vision.tower.vision_model."
    patch = shape(tower + "embeddings.patch_embedding.weight")
    places = shape(tower + "embeddings.position_embedding.weight")[0]
    if (image // patch[-1]) ** 2 != places:
        raise ValueError(f"the vision tower is for {places} patches, images of {image} pixels have another number")
    depths = [count(re.escape(home) + r"layers\.(\d+)\.") for home in (TRUNK, EXPERT)]
    if depths[0] != depths[1]:
        raise ValueError(f"the trunk has {depths[0]} layers and the expert {depths[1]}: they must be as deep")
    embedding = plain.get(EMBEDDING) or plain.get(LM_HEAD)
    if embedding is None:
        raise ValueError(f"the weights hold neither {EMBEDDING} nor {LM_HEAD}: fetch them again")
    return {
        "variant": variant,
        "depth": depths[0],
        "trunk": widths("trunk"),
        "expert": widths("expert"),
        "vision": {
            "image": image,
            "patch": patch[-1],
            "width": patch[0],
            "mlp": shape(tower + "encoder.layers.0.mlp.fc1.weight")[0],
            "layers": count(re.escape(TOWER + "vision_model.encoder.") + r"layers\.(\d+)\."),
            "heads": VISION_HEADS,
        },
        "vocabulary": embedding[0],
        "width_action": shape("action_in.weight")[1],
    }


def settings(policy: PolicyFolder, shapes: Shapes) -> dict[str, Any]:
    """PiConfig of a LeRobot policy. Raises ValueError for what would act or train differently here."""
    config, side = policy.config, policy.config.get("image_resolution", [224, 224])
    if not isinstance(side, list) or len(side) != 2 or side[0] != side[1]:
        raise ValueError(f"{policy.folder}: image_resolution must be two equal numbers, not {side}")
    for key, value in SAMPLING.items():
        if config.get(key, value) != value:
            raise ValueError(f"{policy.folder}: {key} is {config[key]}, lithe trains pi with {value} only")
    if config["n_action_steps"] > config["chunk_size"]:
        raise ValueError(f"{policy.folder}: n_action_steps is more than the {config['chunk_size']} actions of a chunk")
    found = sizes(shapes, config["type"], side[0])
    wide = config["max_state_dim"] if config["type"] == "pi0" else max(config["max_state_dim"], policy.state_dim)
    for feature, size, most in ((STATE, policy.state_dim, wide), (ACTION, policy.action_dim, found["width_action"])):
        if size > most:
            raise ValueError(f"{policy.folder}: {feature} has {size} dimensions, its model takes at most {most}")
    return {
        **found,
        "text": config["tokenizer_max_length"],
        "horizon": config["chunk_size"],
        "replan": config["n_action_steps"],
        "steps": config["num_inference_steps"],
        "width_state": wide,
        "action_dim": policy.action_dim,
        "state_dim": policy.state_dim,
        "cameras": _cameras(policy),
        "real_dims_only": True,
        "relative": list(policy.relative),
        "convention": "lerobot",
        "shortest_period": float(config.get("min_period", 4e-3)),
        "longest_period": float(config.get("max_period", 4.0)),
    }


def _cameras(policy: PolicyFolder) -> list[str]:
    """The cameras as a robot calls them. Empty ones, masked by definition, change no action and are left out."""
    if STATE in policy.rename.values():
        raise ValueError(f"{policy.folder} renames {shown_as(policy, STATE)!r}; lithe reads the state as {STATE!r}")
    shown = [shown_as(policy, CAMERA + camera) for camera in policy.cameras if not camera.startswith("empty_camera_")]
    wrong = [name for name in shown if not name.startswith(CAMERA)]
    if wrong or not shown:
        raise ValueError(f"{policy.folder} sees {wrong or 'nothing'}; lithe reads images called {CAMERA}<camera>")
    return [name.removeprefix(CAMERA) for name in shown]
