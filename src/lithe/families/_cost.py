"""FLOPs, bytes and parameters of one chunk of a policy at batch 1, counted from its layers as they are.

Counted: matrix products (2 FLOPs a multiply-add) and attention products; weights once per pass (expert weights once per
denoise step) plus the prefix keys and values each step reads. Not counted: norms, activations, embedding gathers.
The last trunk layer is charged for keys and values only, because that is all these implementations compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lithe.families._smolvlm import Absent, CrossLayer
from lithe.types import Cost

if TYPE_CHECKING:
    from lithe.families.pi import Pi
    from lithe.families.smolvla import SmolVLA


def pi_cost(model: Pi, views: int, text: int, steps: int) -> Cost:
    """Cost of one chunk: `views` cameras, `text` prompt tokens including padding, `steps` denoise steps."""
    c = model.config
    prefix, queries = views * c.vision.tokens + text, c.horizon + (c.variant == "pi0")
    inner = c.trunk.heads * c.trunk.head_dim
    layers = list(model.trunk.layers)
    trunk = sum(linear_weights(layer) for layer in layers[:-1]) + _key_value_weights(layers[-1])
    prefill = 2 * prefix * trunk + 4 * (len(layers) - 1) * prefix**2 * inner

    condition = sum(linear_weights(m) for n, m in model.expert.named_modules() if n.endswith(("_norm", "norm")))
    per_token = linear_weights(model.expert) - condition
    per_action = linear_weights(model.action_in) + linear_weights(model.action_out)
    timing = linear_weights(model.time_in) + linear_weights(model.time_out)
    if model.state_in is None:  # pi05: the time enters once a step, through the norms
        once = condition + timing
    else:  # pi0: it enters with every action, and the state is one more token
        per_action += timing
        once = linear_weights(model.state_in)
    attention = 4 * c.depth * queries * (prefix + queries) * inner
    denoise = steps * (2 * queries * per_token + 2 * c.horizon * per_action + 2 * once + attention)

    size = next(model.parameters()).element_size()
    cache = 2 * c.depth * prefix * c.trunk.kv_heads * c.trunk.head_dim * size
    return Cost(
        flops={"vision": float(views * _view_flops(model)), "prefix": float(prefill), "denoise": float(denoise)},
        bytes={
            "vision": float(size * linear_weights(model.vision)),
            "prefix": float(size * trunk),
            "denoise": float(steps * (size * (per_token + per_action + once) + cache)),
        },
        parameters=parameters(model),
    )


def smolvla_cost(model: SmolVLA, views: int, text: int, steps: int) -> Cost:
    """Cost of one chunk: `views` views (empty ones included), `text` prompt tokens with padding, `steps` denoise steps.

    The second projections of the cross-attention layers belong to the prefix, where they run.
    """
    c = model.config
    prefix = views * (c.vision.tokens + 3 * (c.image_marks is not None)) + text + 1
    inner, expert = c.trunk.heads * c.trunk.head_dim, list(model.expert.layers)
    read = [i for i, layer in enumerate(expert) if not isinstance(layer, Absent)]
    end = max(read, default=0)  # the stream ends here; behind it only keys and values that are read are made
    crossing = [layer for layer in expert if isinstance(layer, CrossLayer)]
    again = sum(_key_value_weights(layer) for layer in crossing)
    trunk = again + sum(linear_weights(layer) for layer in model.trunk.layers[:end])
    trunk += sum(_key_value_weights(model.trunk.layers[i]) for i in read if i >= end)
    state = linear_weights(model.state_in)
    prefill = 2 * prefix * trunk + 2 * state + 4 * end * prefix**2 * inner

    per_token = linear_weights(model.expert) - again
    per_token += sum(linear_weights(m) for m in (model.action_in, model.action_out, model.time_in, model.time_out))
    keys = len(read) * prefix + (len(read) - len(crossing)) * c.horizon
    denoise = steps * (2 * c.horizon * per_token + 4 * c.horizon * keys * inner)

    size = next(model.parameters()).element_size()
    cache = 2 * len(read) * prefix * c.trunk.kv_heads * c.trunk.head_dim * size
    return Cost(
        flops={"vision": float(views * _view_flops(model)), "prefix": float(prefill), "denoise": float(denoise)},
        bytes={
            "vision": float(size * linear_weights(model.vision)),
            "prefix": float(size * (trunk + state)),
            "denoise": float(steps * (size * per_token + cache)),
        },
        parameters=parameters(model),
    )


def _view_flops(model: Pi | SmolVLA) -> int:
    """FLOPs of the tower and the projection for one picture."""
    size, vision = model.vision.size, model.vision
    patches = (size.image // size.patch) ** 2
    products = patches * linear_weights(vision.tower) + size.tokens * linear_weights(vision.projector)
    return 2 * products + 4 * size.layers * patches**2 * size.width


def _key_value_weights(layer: nn.Module) -> int:
    return sum(linear_weights(layer.get_submodule(name)) for name in ("k_proj", "v_proj"))


def linear_weights(module: nn.Module) -> int:
    """Weights of every linear and convolution inside `module`, itself included."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def parameters(model: Pi | SmolVLA) -> dict[str, int]:
    """Parameters per component; the values add up to the whole model."""
    parts = {"vision": model.vision, "embedding": model.embed, "trunk": model.trunk, "expert": model.expert}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts["projections"] = sum(p.numel() for p in model.parameters()) - sum(counts.values())
    return counts
