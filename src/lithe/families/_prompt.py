"""Words and numbers on their way in and out: the prompt with its discretised state, the tokenizer, normalisation.

Prompt format and the 256 state bins follow openpi (`tokenizer.py`) and LeRobot's pi0.5 processor, so that checkpoints
of either can be read. A model trained from scratch gets a word tokenizer made from its own task sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

BINS = 256


def prompt(text: str, state: np.ndarray | None) -> str:
    """The sentence the model reads. `state`: normalised to [-1, 1], or None where the state has its own token (pi0)."""
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


def encode(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 [B, length] and validity bool [B, length], padded on the right. ValueError if one is too long."""
    ids = np.zeros((len(prompts), length), np.int64)
    valid = np.zeros((len(prompts), length), bool)
    for row, encoded in enumerate(tokenizer.encode_batch(list(prompts))):
        if len(encoded.ids) > length:
            raise ValueError(
                f"the prompt {prompts[row]!r} has {len(encoded.ids)} tokens, the model reads at most {length}: "
                "shorten the instruction"
            )
        ids[row, : len(encoded.ids)] = encoded.ids
        valid[row, : len(encoded.ids)] = True
    return ids, valid


class Normalizer:
    """Per-feature affine maps from data statistics: "quantiles" to [-1, 1] between q01 and q99, or "mean_std"."""

    def __init__(self, mode: str, stats: dict[str, dict[str, np.ndarray]]):
        needed = {"quantiles": ("q01", "q99"), "mean_std": ("mean", "std")}[mode]
        self.mode, self.stats = mode, {}
        for feature in ("observation.state", "action"):
            have = stats.get(feature, {})
            for key in needed:
                if key not in have:
                    raise ValueError(
                        f"the data set has no statistic {key!r} for {feature!r}, which {mode} normalisation needs: "
                        "recompute its statistics with LeRobot's lerobot-edit-dataset"
                    )
            self.stats[feature] = {key: np.asarray(have[key], np.float32) for key in needed}

    def affine(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale with normalised = (x - offset) / scale."""
        first, second = self.stats[feature].values()
        if self.mode == "mean_std":
            return first, second + 1e-8
        span = np.where(second == first, np.float32(1e-8), second - first)
        return (first + span / 2), span / 2

    def encode(self, feature: str, values: np.ndarray) -> np.ndarray:
        offset, scale = self.affine(feature)
        return ((values - offset) / scale).astype(np.float32)

    def save(self, path: Path) -> None:
        stats = {f: {k: v.tolist() for k, v in s.items()} for f, s in self.stats.items()}
        path.write_text(json.dumps({"mode": self.mode, "stats": stats}, indent=1))

    @staticmethod
    def load(path: Path) -> Normalizer:
        data: dict[str, Any] = json.loads(path.read_text())
        return Normalizer(data["mode"], data["stats"])
