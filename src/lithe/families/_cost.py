"""FLOPs, bytes and parameters of one chunk of a policy at batch 1, counted from its layers as they are.

Counted: matrix products (2 FLOPs a multiply-add) and attention products; weights once per pass (expert weights once per
denoise step) plus the prefix keys and values each step reads. Not counted: norms, activations, embedding gathers.
The last trunk layer is charged for keys and values only, because that is all these implementations compute. The packed
form reads what the flow time decides from a table: no adaptive norm, no time projection, and what is left of time_in is
one product with action_in, as large as action_in alone. The parts are kept apart (work.Parts), so that a routed policy
can be charged for the layers that it ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lithe.families._smolvlm import Absent, CrossLayer
from lithe.types import Cost, Route
from lithe.work import LayerWork, Parts, Work

if TYPE_CHECKING:
    from lithe.families.pi import Pi
    from lithe.families.smolvla import SmolVLA

KEY_VALUES = ("k_proj", "v_proj")


def pi_cost(model: Pi, views: int | None, text: int | None, steps: int | None, packed: bool = False) -> Cost:
    """Cost of one chunk: `views` cameras, `text` prompt tokens including padding, `steps` denoise steps; None = the
    model's own. packed: of the packed form, which also makes pi0's state token once a chunk."""
    c = model.config
    views, text, steps = views or len(c.cameras), text or c.text, steps or c.steps
    prefix, queries = views * c.vision.tokens + text, c.horizon + (c.variant == "pi0")
    inner, cache = c.trunk.heads * c.trunk.head_dim, _cache(model, prefix)
    layers = []
    for trunk, expert in zip(model.trunk.layers, model.expert.layers, strict=True):
        step = Work(4 * queries * (prefix + queries) * inner, cache)
        for name, part in expert.named_children():  # pi05: the time enters once a step, through the norms
            timed = name.endswith("norm")
            if not (timed and packed):
                step += Work.of(part, 1 if timed else queries)
        layers.append(LayerWork(_stream(trunk, prefix, inner), _key_values(trunk, prefix), step))
    # pi0: the time enters with every action, and the state is one more token
    state = Work() if model.state_in is None else Work.of(model.state_in, 1)
    times = 1 if model.state_in is None else c.horizon
    embed, head = Work.of(model.action_in, c.horizon), Work.of(model.action_out, c.horizon)
    if not packed:
        embed += Work.of(model.time_in, times) + Work.of(model.time_out, times) + state
        head += Work.of(model.expert.norm, 1)
    elif model.state_in is not None:
        embed += Work.of(model.time_out, times)
    start = state if packed else Work()
    return _whole(model, Parts(_views(model, views), start, tuple(layers), embed, head, steps, prefix, queries))


def smolvla_cost(model: SmolVLA, views: int | None, text: int | None, steps: int | None, packed: bool = False) -> Cost:
    """Cost of one chunk: `views` cameras, `text` prompt tokens with padding, `steps` denoise steps; None = the model's
    own. Marked empty cameras are added, of which the packed form computes the marks and no picture.

    The second projections of the cross-attention layers belong to the prefix, where they run.
    """
    c = model.config
    views, text, steps = views or len(c.cameras), text or c.text, steps or c.steps
    marks, empty = (0, 0) if c.image_marks is None else (3, c.empty_cameras)
    pictures = views if packed else views + empty
    prefix = pictures * c.vision.tokens + (views + empty) * marks + text + 1
    inner, cache = c.trunk.heads * c.trunk.head_dim, _cache(model, prefix)
    layers = []
    for trunk, expert in zip(model.trunk.layers, model.expert.layers, strict=True):
        stream = _stream(trunk, prefix, inner)
        if isinstance(expert, Absent):
            layers.append(LayerWork(stream, Work(), Work()))
            continue
        crossing = isinstance(expert, CrossLayer)
        again = _key_values(expert, prefix) if crossing else Work()
        step = Work(4 * c.horizon * (prefix + (0 if crossing else c.horizon)) * inner, cache)
        for name, part in expert.named_children():
            if not (crossing and name in KEY_VALUES):
                step += Work.of(part, c.horizon)
        layers.append(LayerWork(stream + again, _key_values(trunk, prefix) + again, step))
    embed = Work.of(model.action_in, c.horizon) + Work.of(model.time_out, c.horizon)
    embed += Work() if packed else Work.of(model.time_in, c.horizon)
    head, start = Work.of(model.action_out, c.horizon), Work.of(model.state_in, 1)
    return _whole(model, Parts(_views(model, pictures), start, tuple(layers), embed, head, steps, prefix, c.horizon))


def _whole(model: Pi | SmolVLA, parts: Parts) -> Cost:
    """The cost of a chunk by every layer."""
    return Cost.of(parts.along(Route.full(len(parts.layers))), parameters(model), parts)


def _views(model: Pi | SmolVLA, views: int) -> Work:
    """The tower and the projection for every picture."""
    size, vision = model.vision.size, model.vision
    patches = (size.image // size.patch) ** 2
    attention = 4 * size.layers * patches**2 * size.width
    once = Work.of(vision.tower, patches) + Work.of(vision.projector, size.tokens)
    return Work(views * (once.flops + attention), Work.of(vision, 1).bytes)


def _stream(layer: nn.Module, tokens: int, inner: int) -> Work:
    """A whole trunk layer."""
    return Work.of(layer, tokens) + Work(4 * tokens**2 * inner)


def _key_values(layer: nn.Module, tokens: int) -> Work:
    return sum((Work.of(layer.get_submodule(name), tokens) for name in KEY_VALUES), Work())


def _cache(model: Pi | SmolVLA, prefix: int) -> int:
    """Bytes of the prefix keys and values that an expert layer reads in each step."""
    trunk = model.config.trunk
    return 2 * prefix * trunk.kv_heads * trunk.head_dim * next(model.parameters()).element_size()


def parameters(model: Pi | SmolVLA) -> dict[str, int]:
    """Parameters per component; the values add up to the whole model."""
    parts = {"vision": model.vision, "embedding": model.embed, "trunk": model.trunk, "expert": model.expert}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts["projections"] = sum(p.numel() for p in model.parameters()) - sum(counts.values())
    return counts
