"""Words and numbers on their way in and out: the prompt with its discretised state, the tokenizer, normalisation.

Prompt format and the 256 state bins follow openpi (`tokenizer.py`) and LeRobot's pi0.5 processor, so that checkpoints
of either can be read. A model trained from scratch gets a word tokenizer made from its own task sentences. Where the
three differ, a policy keeps the convention it was trained with (CONVENTIONS): LeRobot's is followed bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

BINS = 256
CONVENTIONS = ("lithe", "lerobot", "openpi")
EPS = {"lithe": 1e-8, "lerobot": 1e-8, "openpi": 1e-6}
RANGES = {"quantiles": ("q01", "q99"), "quantile10": ("q10", "q90"), "min_max": ("min", "max")}
NEEDED: dict[str, tuple[str, ...]] = {"identity": (), "mean_std": ("mean", "std"), **RANGES}


def prompt(text: str, state: np.ndarray | None, convention: str = "lithe") -> str:
    """The sentence the model reads. `state`: normalised to [-1, 1], or None where the state has its own token (pi0)."""
    if state is None and convention == "lerobot":  # its pi0 takes the instruction as it is
        return text if text.endswith("\n") else text + "\n"
    clean = text.strip().replace("_", " ").replace("\n", " ")
    if state is None:
        return clean + "\n"
    bins = np.digitize(state, np.linspace(-1, 1, BINS + 1)[:-1]) - 1
    return f"Task: {clean}, State: {' '.join(map(str, bins))};\nAction: "


def word_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """A tokenizer of whole words: those of `texts`, the prompt's own, and one for each state bin (-1 = below all)."""
    shell = {"task", "state", "action"}
    words = sorted(shell | {w for text in texts for w in _words(text)})
    numbers = [str(n) for n in range(-1, BINS)]
    unique = dict.fromkeys(["<pad>", "<unk>", *numbers, *words])  # an instruction may hold a number too
    vocabulary = {word: i for i, word in enumerate(unique)}
    if len(vocabulary) > size:
        raise ValueError(f"the tasks use {len(vocabulary)} different words, more than the model's vocabulary of {size}")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[:;,.]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _words(text: str) -> list[str]:
    table = str.maketrans(dict.fromkeys(":;,.", " "))
    return text.lower().replace("_", " ").translate(table).split()


def encode(
    tokenizer: Tokenizer, prompts: Sequence[str], length: int, cut: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 [B, length] and validity bool [B, length], padded on the right.

    A prompt that is too long is cut on the right (cut: what LeRobot and openpi do), or else a ValueError.
    """
    ids = np.zeros((len(prompts), length), np.int64)
    valid = np.zeros((len(prompts), length), bool)
    if cut:
        tokenizer.enable_truncation(length)
    encodings = tokenizer.encode_batch(list(prompts))
    tokenizer.no_truncation()
    for row, encoded in enumerate(encodings):
        if len(encoded.ids) > length:
            raise ValueError(
                f"the prompt {prompts[row]!r} has {len(encoded.ids)} tokens, the model reads at most {length}: "
                "shorten the instruction"
            )
        ids[row, : len(encoded.ids)] = encoded.ids
        valid[row, : len(encoded.ids)] = True
    return ids, valid


class Normalizer:
    """Per-feature affine maps from data statistics: "mean_std", or a range to [-1, 1] ("quantiles": q01 to q99).

    mode: one for both features, or one for each. convention: the order of the arithmetic and the epsilon, see EPS;
    LeRobot replaces a range of zero by its epsilon, openpi adds its epsilon to every range and standard deviation.
    """

    def __init__(self, mode: str | dict[str, str], stats: dict[str, dict[str, np.ndarray]], convention: str = "lithe"):
        self.convention, self.stats = convention, {}
        self.modes = {f: mode if isinstance(mode, str) else mode[f] for f in ("observation.state", "action")}
        for feature, its_mode in self.modes.items():
            have = stats.get(feature, {})
            for key in NEEDED[its_mode]:
                if key not in have:
                    raise ValueError(
                        f"the data set has no statistic {key!r} for {feature!r}, which {its_mode} normalisation needs: "
                        "recompute its statistics with LeRobot's lerobot-edit-dataset"
                    )
            self.stats[feature] = {key: np.asarray(have[key], np.float32) for key in NEEDED[its_mode]}

    def size(self, feature: str) -> int | None:
        """Dimensions of a feature; None when nothing is known of it because it is passed on as it is."""
        return next((len(values) for values in self.stats[feature].values()), None)

    def affine(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale with normalised = (x - offset) / scale. Of lithe's own convention only."""
        first, second = self.stats[feature].values()
        if self.modes[feature] == "mean_std":
            return first, second + 1e-8
        span = np.where(second == first, np.float32(1e-8), second - first)
        return (first + span / 2), span / 2

    def encode(self, feature: str, values: np.ndarray) -> np.ndarray:
        """Robot units to model units, float32."""
        mode = self.modes[feature]
        if mode == "identity":
            return values.astype(np.float32)
        if self.convention == "lithe":
            offset, scale = self.affine(feature)
            return ((values - offset) / scale).astype(np.float32)
        x, low, span = values.astype(np.float32), *self._span(feature)
        if mode == "mean_std":
            return (x - low) / span
        return (x - low) / span * 2.0 - 1.0 if self.convention == "openpi" else 2.0 * (x - low) / span - 1.0

    def decode(self, feature: str, values: np.ndarray) -> np.ndarray:
        """Model units to robot units, float32."""
        mode = self.modes[feature]
        if mode == "identity":
            return values.astype(np.float32)
        if self.convention == "lithe":
            offset, scale = self.affine(feature)
            return values * scale + offset
        x, low, span = values.astype(np.float32), *self._span(feature)
        if mode == "mean_std":  # LeRobot leaves its epsilon out on the way back
            return x * (span if self.convention == "openpi" else self.stats[feature]["std"]) + low
        return (x + 1.0) / 2.0 * span + low

    def _span(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Lower end (or mean) and divisor in the conventions of LeRobot and openpi."""
        first, second = self.stats[feature].values()
        eps = EPS[self.convention]
        if self.modes[feature] == "mean_std":
            return first, second + eps
        span = second - first
        return first, span + eps if self.convention == "openpi" else np.where(span == 0, np.float32(eps), span)

    def save(self, path: Path) -> None:
        stats = {f: {k: v.tolist() for k, v in s.items()} for f, s in self.stats.items()}
        own = self.convention == "lithe" and len(set(self.modes.values())) == 1
        how = {"mode": self.modes["action"]} if own else {"convention": self.convention, "modes": self.modes}
        path.write_text(json.dumps({**how, "stats": stats}, indent=1))

    @staticmethod
    def load(path: Path) -> Normalizer:
        data: dict[str, Any] = json.loads(path.read_text())
        mode = data["mode"] if "mode" in data else data["modes"]
        return Normalizer(mode, data["stats"], data.get("convention", "lithe"))
