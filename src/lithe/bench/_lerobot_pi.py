"""LeRobot's pi0 and pi0.5 in the sizes of a lithe policy, holding its weights.

LeRobot has one depth and one set of widths; its constructor of the two stacks takes others, which is all that a cut
policy of full width needs. The vision tower, the vocabulary and the projections of smaller policies are exchanged by
modules of the same classes, and where a policy joins neighbouring patches, so does the module that projects them.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lithe.bench import _lerobot
from lithe.bench._lerobot import Hosted
from lithe.families import _pi_names
from lithe.families._vision import VisionSize

SIGLIP = VisionSize(224, 14, 1152, 4304, 27, 16)  # what LeRobot builds, whatever its configuration says
WORDS, DEPTH, WIDTHS = 257_152, 18, (2048, 1024)


class Joined(nn.Module):
    """A projection of squares of neighbouring patches, which LeRobot's is not."""

    def __init__(self, size: VisionSize, out: int):
        super().__init__()
        self.size, self.linear = size, nn.Linear(size.width * size.merge**2, out)

    def forward(self, patches: Tensor) -> Tensor:
        side, m = self.size.image // self.size.patch, self.size.merge
        grid = patches.view(-1, side // m, m, side // m, m, patches.shape[-1])
        return self.linear(grid.permute(0, 1, 3, 2, 4, 5).reshape(len(patches), self.size.tokens, -1))


def host(model: Any, steps: int) -> Hosted:
    """See _lerobot.host."""
    from accelerate import init_empty_weights
    from lerobot.policies.pretrained import PreTrainedPolicy

    c = model.config
    if c.variant == "pi05" and not c.state_in_prompt:
        raise ValueError("LeRobot's pi0.5 writes the state into the prompt, this policy was trained without: no peer")
    module = import_module(f"lerobot.policies.{c.variant}.modeling_{c.variant}")
    upper = {"pi0": "PI0", "pi05": "PI05"}[c.variant]
    policy_class: Any = getattr(module, f"{upper}Policy")
    config = _config(model, getattr(module, f"{upper}Config"), steps)

    class Policy(policy_class):  # type: ignore[misc]
        """LeRobot's policy around a network that is there already; its own would be filled with random numbers."""

        def __init__(self, network: nn.Module):
            PreTrainedPolicy.__init__(self, config)
            config.validate_features()
            self.init_rtc_processor()
            self.model = network
            self.reset()

    with init_empty_weights():
        network = getattr(module, f"{upper}Pytorch")(config)
        _fit(network, module, c, config.dtype)
    _keep_frequencies(network)
    names = _pi_names.names(model.state_dict(), c.variant, network.state_dict())
    _lerobot.give(network, model, names)
    policy = Policy(network).eval()
    before, after = _processors(model, config)
    return Hosted(policy, before, after, lambda: policy.config.num_inference_steps, _not_equal(c, config.dtype))


def _config(model: Any, kind: Any, steps: int) -> Any:
    c, weights = model.config, next(model.parameters())
    return kind(
        **_lerobot.features(c),
        normalization_mapping=_lerobot.normalization(model),
        dtype=str(weights.dtype)[6:],
        device=str(weights.device),
        chunk_size=c.horizon,
        n_action_steps=c.replan,
        max_state_dim=c.width_state,
        max_action_dim=c.width_action,
        num_inference_steps=steps,
        min_period=c.shortest_period,
        max_period=c.longest_period,
        image_resolution=(c.vision.image, c.vision.image),
        tokenizer_max_length=c.text,
        use_relative_actions=any(c.relative),
    )


def _fit(network: Any, module: Any, c: Any, dtype: str) -> None:
    """The network's parts in the policy's sizes, all of them still without memory."""
    stacks = [module.GemmaConfig(w.width, c.depth, w.mlp, w.heads, w.kv_heads, w.head_dim) for w in (c.trunk, c.expert)]
    core = module.PaliGemmaWithExpertModel(
        *stacks, use_adarms=[False, c.variant == "pi05"], precision=dtype, image_size=c.vision.image
    )
    network.paligemma_with_expert, inner = core, core.paligemma.model
    if c.vision != SIGLIP:
        inner.vision_tower = type(inner.vision_tower)(_tower(inner.vision_tower.config, c.vision))
    if c.vision.merge > 1:
        inner.multi_modal_projector = Joined(c.vision, c.trunk.width)
    else:
        inner.multi_modal_projector.linear = nn.Linear(c.vision.width, c.trunk.width)
    words = inner.language_model.embed_tokens
    words.weight = nn.Parameter(torch.empty(c.vocabulary, c.trunk.width, dtype=words.weight.dtype, device="meta"))
    words.num_embeddings = c.vocabulary
    width = c.expert.width
    shapes = {"action_in_proj": (c.width_action, width), "action_out_proj": (width, c.width_action)}
    if c.variant == "pi05":
        shapes |= {"time_mlp_in": (width, width), "time_mlp_out": (width, width)}
    else:
        shapes |= {"action_time_mlp_in": (2 * width, width), "action_time_mlp_out": (width, width)}
        shapes["state_proj"] = (c.width_state, width)
    for name, shape in shapes.items():
        setattr(network, name, nn.Linear(*shape))
    _lerobot.without_heads(core.paligemma, core.gemma_expert)


def _tower(config: Any, size: VisionSize) -> Any:
    """LeRobot's configuration of the vision tower in other sizes."""
    fitted = copy.deepcopy(config)
    fitted.image_size, fitted.patch_size = size.image, size.patch
    fitted.hidden_size, fitted.intermediate_size = size.width, size.mlp
    fitted.num_hidden_layers, fitted.num_attention_heads = size.layers, size.heads
    return fitted


def _keep_frequencies(network: nn.Module) -> None:
    """The rotations' frequencies in float32. LeRobot's cast to bfloat16 takes them along, and rounded frequencies turn
    late positions by whole radians; that is an error in its actions, and costs or saves no time."""
    for name, buffer in list(network.named_buffers()):
        if name.endswith("rotary_emb.inv_freq") and buffer.dtype != torch.float32:
            parent: Any = network.get_submodule(name.rpartition(".")[0])
            parent.inv_freq = type(parent)(parent.config).inv_freq


def _processors(model: Any, config: Any) -> tuple[Any, Any]:
    from lerobot.processor import RelativeActionsProcessorStep

    c = model.config
    names = ["moving" if counts else "still" for counts in c.relative]
    relative = RelativeActionsProcessorStep(enabled=any(c.relative), exclude_joints=["still"], action_names=names)
    if c.variant == "pi05":
        from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep

        prompt: Any = Pi05PrepareStateTokenizerProcessorStep(max_state_dim=c.width_state)
    else:
        from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor

        prompt = Pi0NewLineProcessor()
    return _lerobot.processors(model, config, prompt, relative, "max_length")


def _not_equal(c: Any, dtype: str) -> tuple[str, ...]:
    """What LeRobot does otherwise, and what had to be made otherwise to host this policy."""
    found = [
        "attention: eager, all scores written out",
        "last trunk layer: computed whole, not its keys and values alone",
        "keys and values of the prefix: copied at every denoise step",
        "padded words and masked cameras: computed, as eager does and packed runtimes do not",
    ]
    if len(c.cameras) > 1:
        found.append("cameras: seen one after the other")
    if dtype == "bfloat16":
        found.append("vision, norms and the projections of actions and time: in float32")
        found.append("rotary frequencies: kept in float32, LeRobot rounds them to bfloat16 and acts otherwise")
    if c.depth != DEPTH:
        found.append(f"depth: the policy's, LeRobot's has {DEPTH} layers")
    other = [
        what
        for what, is_other in {
            "widths": (c.trunk.width, c.expert.width) != WIDTHS,
            "vocabulary": c.vocabulary != WORDS,
            "vision tower": c.vision != SIGLIP,
        }.items()
        if is_other
    ]
    if other:
        found.append(f"sizes that LeRobot fixes are the policy's: {', '.join(other)}")
    if c.vision.merge > 1:
        found.append(f"projection of {c.vision.merge} x {c.vision.merge} patches together: added, LeRobot has none")
    return tuple(found)
