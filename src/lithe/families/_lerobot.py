"""Reads a LeRobot policy folder without LeRobot: configuration, processors, statistics, tokenizer and tensors.

A folder holds config.json (with "type"), model.safetensors, policy_preprocessor.json and policy_postprocessor.json with
their state files. Nothing in it is imported, unpickled or guessed: whatever LeRobot would let pass in silence and would
change what the policy sees or does (a normaliser without statistics, an unknown step, steps that disagree) is refused.
Source: LeRobot 0.6.1's `processor/` and `policies/*/processor_*.py`, read for the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lithe import source
from lithe.families import _relative

CONFIG = "config.json"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
CAMERA = "observation.images."
STATE, ACTION = "observation.state", "action"
UNUSED = ""  # what `names` answers for a tensor that is known and read by nobody
NEEDED = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
# The one step of each kind of policy that writes the prompt.
PROMPTS = {
    "pi0": "pi0_new_line_processor",
    "pi05": "pi05_prepare_state_tokenizer_processor_step",
    "smolvla": "smolvla_new_line_processor",
}
RENAME, NORMALIZE, TOKENIZE = "rename_observations_processor", "normalizer_processor", "tokenizer_processor"
UNNORMALIZE, DEVICE = "unnormalizer_processor", "device_processor"
RELATIVE, ABSOLUTE = "relative_actions_processor", "absolute_actions_processor"
PASSIVE = {"to_batch_processor", DEVICE, RELATIVE, ABSOLUTE}
EPS = 1e-8  # LeRobot's default, which no policy changes


@dataclass(frozen=True)
class PolicyFolder:
    """A checked LeRobot policy folder."""

    folder: Path
    config: dict[str, Any]  # config.json as it is
    modes: dict[str, str]  # "VISUAL" (always IDENTITY), "STATE", "ACTION" -> a key of NEEDED
    stats: dict[str, dict[str, np.ndarray]]  # "observation.state", "action" -> statistic -> float32 values
    tokenizer: Tokenizer  # without padding or truncation switched on
    rename: dict[str, str]  # observation renames of the preprocessor
    cameras: tuple[str, ...]  # without "observation.images.", in the config's order; empty cameras included
    state_dim: int
    action_dim: int
    relative: tuple[bool, ...]  # which action dimensions count from the state; () = none


def read(folder: Path) -> PolicyFolder:
    """The policy in `folder`, everything but its weights.

    Raises ValueError, with the fix, for anything that is missing, inert, unknown or contradictory.
    """
    config = read_config(folder)
    before, after = read_steps(folder, BEFORE), read_steps(folder, AFTER)
    prompt = PROMPTS.get(config["type"])
    if prompt is None:
        raise ValueError(f"{folder}: lithe reads LeRobot policies of type {', '.join(PROMPTS)}, not {config['type']!r}")
    _check_pipeline(folder / BEFORE, before, once=(NORMALIZE, prompt, TOKENIZE), known={RENAME, *PASSIVE})
    _check_pipeline(folder / AFTER, after, once=(UNNORMALIZE,), known=PASSIVE)
    order = [name for name, _, _ in before]
    if config["type"] == "pi05" and order.index(NORMALIZE) > order.index(prompt):
        raise ValueError(f"{folder / BEFORE} writes the state into the prompt before normalising it: process it again")
    groups = {STATE: "input_features", ACTION: "output_features"}
    sizes = {feature: _size(folder, config, group, feature) for feature, group in groups.items()}
    modes, stats = _statistics(folder, _step(before, NORMALIZE), sizes)
    modes_after, stats_after = _statistics(folder, _step(after, UNNORMALIZE), {ACTION: sizes[ACTION]})
    _check_agreement(folder, modes, modes_after, stats[ACTION], stats_after[ACTION])
    return PolicyFolder(
        folder=folder,
        config=config,
        modes=modes,
        stats=stats,
        tokenizer=_read_tokenizer(folder, config, _step(before, TOKENIZE)[1]),
        rename=_renames(folder, before),
        cameras=_cameras(folder, config),
        state_dim=sizes[STATE],
        action_dim=sizes[ACTION],
        relative=_relative_actions(folder, config, before, after, sizes[ACTION]),
    )


def shown_as(policy: PolicyFolder, feature: str) -> str:
    """The name under which a robot gives what the policy calls `feature`: the preprocessor's rename, undone."""
    return next((given for given, wanted in policy.rename.items() if wanted == feature), feature)


# -- configuration and processors ------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a LeRobot policy, checked for what lithe cannot follow. Raises ValueError."""
    config = source.read_json(folder / CONFIG)
    if not isinstance(config.get("type"), str):
        raise ValueError(f'{folder / CONFIG} has no "type": it is not a LeRobot policy; check the folder')
    if config.get("use_peft"):
        raise ValueError(f"{folder} holds an adapter (use_peft), not a policy: merge it into its base policy first")
    if config.get("n_obs_steps", 1) != 1:
        raise ValueError(f"{folder / CONFIG}: lithe reads policies that see one observation, n_obs_steps=1")
    return config


Step = tuple[str, dict[str, Any], str | None]  # registry name, settings, state file


def read_steps(folder: Path, name: str) -> list[Step]:
    """The steps of a processor pipeline. Raises ValueError for a step that names a class instead of a known step."""
    path = folder / name
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: this policy was saved by a LeRobot older than 0.4; convert it with LeRobot's "
            "migrate_policy_normalization.py"
        )
    data, found = source.read_json(path), []
    for step in data.get("steps") if isinstance(data.get("steps"), list) else [None]:
        if not isinstance(step, dict) or not isinstance(step.get("config", {}), dict):
            raise ValueError(f"{path} is not a list of processor steps: fetch it again")
        if not isinstance(step.get("registry_name"), str):
            raise ValueError(
                f"{path} names a class to import ({step.get('class')!r}) instead of a registered step; lithe imports "
                "nothing that a file asks for: save the policy with LeRobot's own steps"
            )
        found.append((step["registry_name"], step.get("config", {}), step.get("state_file")))
    return found


def _check_pipeline(path: Path, steps: list[Step], once: tuple[str, ...], known: set[str]) -> None:
    names = [name for name, _, _ in steps]
    for name in once:
        if names.count(name) != 1:
            raise ValueError(
                f"{path} has the step {name!r} {names.count(name)} times, once was expected: save it again"
            )
    for name, settings, _ in steps:
        if name not in known | set(once):
            raise ValueError(
                f"{path} has the step {name!r}, which lithe does not know (it knows "
                f"{', '.join(sorted({*known, *once}))}): leaving it out would change what the policy does"
            )
        if name == DEVICE and settings.get("float_dtype") not in (None, "float32"):
            raise ValueError(f"{path} casts inputs to {settings['float_dtype']!r}; lithe prepares them in float32")


def _step(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step[0] == name)


def _renames(folder: Path, steps: list[Step]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for name, settings, _ in steps:
        renames |= settings.get("rename_map") or {} if name == RENAME else {}
    if len(set(renames.values())) != len(renames):
        raise ValueError(f"{folder / BEFORE} renames two observations to one name: leave one of them out")
    return renames


def _relative_actions(
    folder: Path, config: dict[str, Any], before: list[Step], after: list[Step], width: int
) -> tuple[bool, ...]:
    """Which action dimensions count from the state. Raises ValueError where the three places that say so disagree."""
    on = [settings for name, settings, _ in before if name == RELATIVE and settings.get("enabled")]
    off = [settings for name, settings, _ in after if name == ABSOLUTE and settings.get("enabled")]
    wanted = bool(config.get("use_relative_actions"))
    if (len(on), len(off)) != (wanted, wanted):
        raise ValueError(
            f"{folder}: relative actions are {'on' if wanted else 'off'} in {CONFIG}, but {len(on)} steps of {BEFORE} "
            f"and {len(off)} of {AFTER} are enabled for them: save the policy again"
        )
    if not wanted:
        return ()
    order = [name for name, _, _ in before]
    if order.index(RELATIVE) > order.index(NORMALIZE):
        raise ValueError(f"{folder / BEFORE} makes actions relative after normalising them: save the policy again")
    return _relative.which(on[0].get("action_names"), width, on[0].get("exclude_joints") or ())


def _cameras(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    visual = [key for key, feature in config["input_features"].items() if feature.get("type") == "VISUAL"]
    extra = [f"{CAMERA}empty_camera_{i}" for i in range(config.get("empty_cameras") or 0)]
    visual += [key for key in extra if key not in visual]  # LeRobot adds them when it builds the policy
    other = [key for key in visual if not key.startswith(CAMERA)]
    if other or not visual:
        raise ValueError(
            f"{folder / CONFIG}: {f'{other[0]!r} is not called {CAMERA}<camera>' if other else 'no camera in it'}; "
            "lithe reads policies whose images have such names"
        )
    return tuple(key.removeprefix(CAMERA) for key in visual)


def _size(folder: Path, config: dict[str, Any], group: str, feature: str) -> int:
    features = config.get(group)
    shape = features[feature].get("shape") if isinstance(features, dict) and feature in features else None
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise ValueError(f"{folder / CONFIG} has no {feature!r} of one dimension in {group}: fetch the policy again")
    return shape[0]


# -- statistics ------------------------------------------------------------------------------------------------------


def _statistics(
    folder: Path, step: Step, sizes: dict[str, int]
) -> tuple[dict[str, str], dict[str, dict[str, np.ndarray]]]:
    """Modes and statistics of a (un)normaliser for the features of these sizes, none of them inert."""
    name, settings, state_file = step
    modes = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY", **(settings.get("norm_map") or {})}
    if modes["VISUAL"] != "IDENTITY":
        raise ValueError(f"{folder}: {name} normalises images ({modes['VISUAL']}); lithe reads policies that do not")
    if settings.get("eps", EPS) != EPS:
        raise ValueError(f"{folder}: {name} has eps={settings['eps']}, lithe knows LeRobot's {EPS} only")
    tensors = {} if state_file is None else _read_state(folder, state_file)
    chosen = settings.get("normalize_observation_keys")
    stats: dict[str, dict[str, np.ndarray]] = {}
    for feature, size in sizes.items():
        mode = modes["STATE" if feature == STATE else "ACTION"]
        if mode not in NEEDED:
            raise ValueError(f"{folder}: {name} has the mode {mode!r}; lithe knows {', '.join(NEEDED)}")
        own = {key.rpartition(".")[2]: x for key, x in tensors.items() if key.rpartition(".")[0] == feature}
        idle = feature == STATE and (
            feature not in settings.get("features", {}) or feature not in (chosen or [feature])
        )
        if mode != "IDENTITY" and (idle or not own):
            raise ValueError(
                f"{folder}: {name} has {'no statistics for' if not idle else 'left out'} {feature!r}, so LeRobot would "
                f"pass it on unnormalised without a word: save the policy with the statistics of its data set"
            )
        for key in NEEDED[mode]:
            if key not in own or own[key].shape != (size,) or not np.isfinite(own[key]).all():
                raise ValueError(
                    f"{folder}: {name} needs {size} finite numbers as statistic {key!r} of {feature!r} "
                    f"({mode}), found {own[key].tolist() if key in own else 'none'}: recompute the statistics"
                )
        stats[feature] = own
    return modes, stats


def _read_state(folder: Path, name: str) -> dict[str, np.ndarray]:
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"{folder} names the state file {name!r}, which is not a safetensors file inside the folder")
    return {key: tensor.float().numpy() for key, tensor in source.stream(folder / name)}


def _check_agreement(
    folder: Path,
    before: dict[str, str],
    after: dict[str, str],
    stats: dict[str, np.ndarray],
    stats_after: dict[str, np.ndarray],
) -> None:
    mode = before["ACTION"]
    if mode != after["ACTION"] or any(not np.array_equal(stats[k], stats_after[k]) for k in NEEDED[mode]):
        raise ValueError(
            f"{folder}: {BEFORE} and {AFTER} disagree about how actions are normalised, so the policy could neither be "
            "trained nor acted with consistently: save both again"
        )


# -- tokenizer -------------------------------------------------------------------------------------------------------


def _read_tokenizer(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> Tokenizer:
    wanted = {"padding_side": "right", "truncation": True, "task_key": "task"}
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise ValueError(
                f"{folder / BEFORE}: lithe reads tokenizer steps with {key}={value!r}, not {settings[key]!r}"
            )
    if settings.get("max_length") != config.get("tokenizer_max_length"):
        raise ValueError(
            f"{folder}: prompts are cut to {settings.get('max_length')} tokens in {BEFORE} and to "
            f"{config.get('tokenizer_max_length')} (tokenizer_max_length) in {CONFIG}; LeRobot obeys the former: write "
            "it into the latter"
        )
    return source.tokenizer(folder, settings.get("tokenizer_name"))


# -- tensors ---------------------------------------------------------------------------------------------------------


def tensors(folder: Path, names: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The weights in `folder` under the model's own names, in float32.

    names: a stored key to the model's name for it, to UNUSED for a tensor that is known and read by nobody, or to None
    for one that nobody knows. Two keys may share a name only when they hold the same values (tied weights stored
    twice). Raises ValueError naming the keys for anything else, and for weights that are not finite numbers.
    """
    found: dict[str, Tensor] = {}
    came: dict[str, str] = {}
    unknown: list[str] = []
    for key, tensor in source.stream(source.weights(folder)):
        name = names(key)
        if name is None:
            unknown.append(key)
        elif name in found:
            if not torch.equal(found[name], tensor):
                raise ValueError(f"{folder}: {key} and {came[name]} should be one tensor and differ: fetch it again")
        elif name != UNUSED:
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ValueError(f"{folder}: {key} holds other things than finite numbers: the file is damaged")
            # copies lie on aligned addresses: kernels choose by alignment, and the last bits of a result with it
            found[name], came[name] = tensor.to(torch.float32, copy=True), key
    refuse_unknown(folder, unknown)
    return found


def refuse_unknown(folder: Path, keys: list[str]) -> None:
    """Raises ValueError naming stored tensors that nobody knows, if there are any."""
    if keys:
        raise ValueError(
            f"{folder} holds {len(keys)} tensors that the model does not know ({', '.join(keys[:3])}): it was "
            "made by another version or for another model"
        )
