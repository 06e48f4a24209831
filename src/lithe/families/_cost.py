"""FLOPs, bytes and parameters of one chunk of a pi policy at batch 1, counted from its layers as they are.

Counted: matrix products (2 FLOPs a multiply-add) and attention products; weights once per pass (expert weights once per
denoise step) plus the prefix keys and values each step reads. Not counted: norms, activations, embedding gathers.
The last trunk layer is charged for keys and values only, because that is all this implementation computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lithe.types import Cost

if TYPE_CHECKING:
    from lithe.families.pi import Pi


def pi_cost(model: Pi, views: int, text: int, steps: int) -> Cost:
    """Cost of one chunk: `views` cameras, `text` prompt tokens including padding, `steps` denoise steps."""
    c = model.config
    patches = (c.vision.image // c.vision.patch) ** 2
    prefix, queries = views * c.vision.tokens + text, c.horizon + (c.variant == "pi0")
    inner = c.trunk.heads * c.trunk.head_dim
    tower, projector = linear_weights(model.vision.tower), linear_weights(model.vision.projector)
    attention = 4 * model.vision.size.layers * patches**2 * c.vision.width
    vision = views * (2 * patches * tower + attention + 2 * c.vision.tokens * projector)

    layers = list(model.trunk.layers)
    last = sum(linear_weights(layers[-1].get_submodule(name)) for name in ("k_proj", "v_proj"))
    trunk = sum(linear_weights(layer) for layer in layers[:-1]) + last
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
        flops={"vision": float(vision), "prefix": float(prefill), "denoise": float(denoise)},
        bytes={
            "vision": float(size * (tower + projector)),
            "prefix": float(size * trunk),
            "denoise": float(steps * (size * (per_token + per_action + once) + cache)),
        },
        parameters=parameters(model),
    )


def linear_weights(module: nn.Module) -> int:
    """Weights of every linear and convolution inside `module`, itself included."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def parameters(model: Pi) -> dict[str, int]:
    """Parameters per component; the values add up to the whole model."""
    parts = {"vision": model.vision, "embedding": model.embed, "trunk": model.trunk, "expert": model.expert}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts["projections"] = sum(p.numel() for p in model.parameters()) - sum(counts.values())
    return counts
