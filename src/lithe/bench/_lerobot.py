"""LeRobot's own policies around the weights of a lithe model: what `--peers lerobot` stands on the stopwatch.

Everything that such a policy computes is LeRobot's code: its network, its `predict_action_chunk`, its processors. Its
network is built without weights and then given the very tensors of the model, strictly; where it is in another type,
copies of them. LeRobot fixes sizes that lithe does not, so that parts of other sizes are put in their places; `changed`
says so, and what cannot be had that way is refused. LeRobot is imported when a peer is built and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lithe.families._lerobot import ACTION, CAMERA, STATE
from lithe.families.base import Family

TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Hosted:
    """A LeRobot policy with the weights of a lithe model, and LeRobot's processors before and behind it."""

    policy: Any
    before: Any
    after: Any
    steps: Callable[[], int]  # how many denoise steps its next chunk will take
    not_equal: tuple[str, ...]


def check(model: Any) -> None:
    """Raises ValueError where LeRobot is missing or cannot do what the policy does."""
    if find_spec("lerobot") is None:
        raise ValueError("the peer lerobot is LeRobot's own policy, which is not here: pip install 'lithe[lerobot]'")
    if model.router is not None:
        raise ValueError(
            "this policy decides itself which layers run, and LeRobot's policies run all of theirs: leave peers out"
        )
    found = sorted({str(p.dtype)[6:] for p in model.parameters()})
    if {p.dtype for p in model.parameters()} not in [{kind} for kind in TYPES]:
        raise ValueError(f"LeRobot runs policies in float32 or in bfloat16, this one is in {' and '.join(found)}")


def host(model: Any, steps: int) -> Hosted:
    """The policy of LeRobot that holds the weights of this model. Raises ValueError where there is none."""
    check(model)
    if model.name == "pi":
        from lithe.bench import _lerobot_pi as kind
    elif model.name == "smolvla":
        from lithe.bench import _lerobot_smolvla as kind  # type: ignore[no-redef]
    else:
        raise ValueError(f"LeRobot has no policy like {model.name}: leave peers out")
    return kind.host(model, steps)


def features(config: Any) -> dict[str, Any]:
    """What every LeRobot configuration is told of a policy's inputs and outputs."""
    from lerobot.configs import FeatureType, PolicyFeature

    side = config.vision.image
    inputs = {f"{CAMERA}{camera}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for camera in config.cameras}
    inputs[STATE] = PolicyFeature(FeatureType.STATE, (config.state_dim,))
    return {
        "input_features": inputs,
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (config.action_dim,))},
    }


def normalization(model: Any) -> dict[str, Any]:
    """The modes of the policy's normaliser as LeRobot names them."""
    from lerobot.configs import NormalizationMode

    modes = {"STATE": model.normalizer.modes[STATE], "ACTION": model.normalizer.modes[ACTION]}
    return {"VISUAL": NormalizationMode("IDENTITY"), **{k: NormalizationMode(v.upper()) for k, v in modes.items()}}


def processors(model: Any, config: Any, prompt: Any, relative: Any, padding: str) -> tuple[Any, Any]:
    """LeRobot's steps in the order of its own factory, around the policy's own tokenizer and statistics.

    prompt: the step that writes the prompt. relative: the step for relative actions, or None. padding: LeRobot's word.
    """
    from lerobot import processor as steps

    stats = {f: {k: torch.as_tensor(x) for k, x in own.items()} for f, own in model.normalizer.stats.items()}
    own = steps.make_default_policy_processor_steps(config, stats)
    words = steps.TokenizerProcessorStep(
        tokenizer=tokenizer(model), max_length=config.tokenizer_max_length, padding_side="right", padding=padding
    )
    front = [own.rename_observations, own.add_batch_dim]
    if config.type == "pi05":  # which writes the normalised state into the prompt
        front += [relative, own.normalize, prompt, words, own.to_device]
    else:
        front += [prompt, words, own.to_device, *([relative] if relative else []), own.normalize]
    back = [own.unnormalize]
    if relative:
        back.append(steps.AbsoluteActionsProcessorStep(enabled=relative.enabled, relative_step=relative))
    before, after = steps.make_policy_processor_pipelines(input_steps=front, output_steps=[*back, own.to_cpu])
    return before, after


def tokenizer(model: Any, **marks: str) -> Any:
    """The policy's tokenizer as transformers has it. Number 0 fills what is left of a prompt, as in lithe."""
    from transformers import PreTrainedTokenizerFast

    words = model.tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=words.id_to_token(0), **marks)


def give(network: nn.Module, model: Family, names: Callable[[str], str | None]) -> None:
    """The model's weights to LeRobot's network, strictly, each in the type that the network has it in.

    names: LeRobot's name of a tensor to lithe's, None where lithe has no such tensor. Raises ValueError for a tensor
    too many or too few, or one of another shape.
    """
    ours, wanted = model.state_dict(), network.state_dict()
    found = {key: names(key) for key in wanted}
    unknown = [key for key, name in found.items() if name not in ours]
    unused = sorted(ours.keys() - set(found.values()))
    if unknown or unused:
        raise ValueError(
            f"LeRobot's network does not have this policy's tensors: {len(unknown)} of its own are unknown here "
            f"({', '.join(unknown[:3])}), {len(unused)} of the policy's are unknown there ({', '.join(unused[:3])})"
        )
    given: Mapping[str, Tensor] = {
        key: ours[name].detach().to(wanted[key].dtype) for key, name in found.items() if name is not None
    }
    try:
        network.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:  # torch names every tensor of another shape
        raise ValueError(f"LeRobot's network cannot take this policy's weights: {error}") from error
    place = next(model.parameters()).device
    for buffer in network.buffers():
        buffer.data = buffer.data.to(place)
    network.requires_grad_(False).eval()


def without_heads(*owners: Any) -> None:
    """Take the output layers over words away, as LeRobot takes away the embedding that its expert does not use."""
    for owner in owners:
        owner.lm_head = None
