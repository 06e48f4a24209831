"""`lithe profile`: Shallow-pi's analysis of a policy, layer by layer and over denoise time.

Similarity: cosine between the stream entering layer l and the one entering layer l+1, in the trunk (it does not depend
on denoise time) and in the action expert (it does). Sensitivity: what skipping one layer, in trunk and expert alike,
does to the sampled chunk, to the velocity at each time, and to the task loss. The two disagree, which is the point:
a layer whose streams are alike can still be one the policy cannot do without. With data also the layer scores by which
methods choose (scores.py). Source: arXiv 2601.20262, whose figures
are not public; samples, times and normalisation are our choice. Time is 1 for noise and 0 for data (tau = 1 - time).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lithe import api, result
from lithe._tables import profile_table
from lithe.data.base import Data
from lithe.families.base import Family
from lithe.scores import KINDS, scores
from lithe.types import Batch, Draw, Out, Route, Tap

table = profile_table
TIMES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
NOTES = (
    "similarity: mean cosine over samples and tokens, of the streams entering layers l and l+1",
    "the prefix stream behind the last trunk layer may be read by nobody (so in pi); its similarity then says nothing",
    "sensitivity: RMS of the change when one layer is skipped, over the RMS of what the whole policy gives",
)
SCORED = "scores: higher = keep, by what method.by may name; each kind has a scale of its own"


class Mean:
    """A running mean of tensors of one shape, in float64 on the CPU."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.weight = 0.0

    def add(self, mean: Tensor, weight: float = 1.0) -> None:
        self.total = self.total + mean.double().cpu() * weight
        self.weight += weight

    @property
    def value(self) -> Tensor:
        assert isinstance(self.total, Tensor), "nothing was added"
        return self.total / self.weight


def profile(
    policy: Family | str | Path,
    data: Data | None = None,
    samples: int = 64,
    times: Sequence[float] = TIMES,
    batch: int = 16,
    seed: int = 0,
    sensitivity: bool = True,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Similarity, sensitivity and scores of every layer; a Result of kind "profile".

    data: demonstrations to draw frames from; None = random inputs, on which the numbers mean little and no task loss is
    given. samples: frames. times: denoise times in (0, 1], shared by all samples together with their noise. batch:
    frames at once. sensitivity: False leaves out the slow half, one pass and one chunk per layer. kinds: of the layer
    scores, which take a backward pass; () leaves it out.

    Top level: "similarity" {"times" [T], "prefix" [L], "suffix" [L][T]} and "sensitivity" {"actions" [L], "velocity"
    [L][T], "task_loss" [L] (its change), "task_loss_full"}; a stream the family does not tap is absent. "scores"
    {kind: [L]}, with data of two frames or more: what a training run over these samples with this seed would choose by.
    One row a layer.

    Raises ValueError for times outside (0, 1] or no samples.
    """
    if not times or not all(0.0 < t <= 1.0 for t in times):
        raise ValueError(f"times must lie in (0, 1], 1 is noise: {list(times)}")
    if samples < 1 or batch < 1:
        raise ValueError(f"profile needs at least one sample and a batch of at least one, not {samples} and {batch}")
    model = (policy if isinstance(policy, Family) else api.load(policy)).eval()
    total = min(samples, len(data)) if data is not None else samples
    depth, generator = model.depth(), torch.Generator().manual_seed(seed)
    similar, changed = _Similarity(depth, len(times)), _Sensitivity(model, data is not None)
    feed = _batches(model, data, total, batch, seed, generator)
    bar = tqdm(total=-(-total // batch) * (1 + sensitivity * depth), desc="profile", unit="pass", disable=None)
    with torch.no_grad():
        for inputs in feed:
            draw = _draw(model, inputs, times, generator)
            out = model(inputs, draw, taps=[Tap(kind, i) for kind in ("prefix", "suffix") for i in range(depth + 1)])
            similar.add(out)
            bar.update()
            if sensitivity:
                changed.add(inputs, draw, out, model.noise(len(inputs), generator), bar)
    bar.close()
    settings = {
        "inputs": type(data).__name__ if data is not None else "random",
        "samples": total,
        "seed": seed,
        "dtype": str(next(model.parameters()).dtype)[6:],
    }
    found: dict[str, Any] = {"similarity": {"times": list(times), **similar.arrays()}}
    if sensitivity:
        found["sensitivity"] = {"times": list(times), **changed.arrays()}
    if data is not None and total > 1 and kinds:
        found["scores"] = scores(model, data, kinds, samples=total, seed=seed)
    name = f"{model.name}-L{depth}" if isinstance(policy, Family) else Path(policy).name
    notes = [*NOTES, *([SCORED] if "scores" in found else [])]
    return result.make("profile", name, settings, _rows(name, depth, found), **found, notes=notes)


def similarity(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of two streams [..., D] over their last axis, in float32."""
    return torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)


def relative_rms(change: Tensor, whole: Tensor) -> Tensor:
    """RMS of `change` over the RMS of `whole`, from their mean squares."""
    return (change / whole).sqrt()


class _Similarity:
    """Cosines of adjacent streams, collected over batches."""

    def __init__(self, depth: int, times: int):
        self.depth, self.times = depth, times
        self.layers: dict[str, list[Mean]] = {}

    def add(self, out: Out) -> None:
        for kind in dict.fromkeys(tap.kind for tap in out.taps):
            means = self.layers.setdefault(kind, [Mean() for _ in range(self.depth)])
            for i, mean in enumerate(means):
                cosine = similarity(out.taps[Tap(kind, i)], out.taps[Tap(kind, i + 1)])
                if kind == "prefix":
                    seen = cosine[out.prefix_BN]
                    mean.add(seen.double().mean(), len(seen))
                else:
                    each = cosine.double().unflatten(1, (self.times, -1))
                    mean.add(each.mean(dim=(0, 2)), len(each))

    def arrays(self) -> dict[str, Any]:
        return {kind: [_plain(mean.value) for mean in means] for kind, means in self.layers.items()}


class _Sensitivity:
    """What each skipped layer changes, collected over batches. `judged`: there are true actions to compare with."""

    def __init__(self, model: Family, judged: bool):
        self.model, self.judged = model, judged
        self.whole = {"actions": Mean(), "velocity": Mean(), "task_loss": Mean()}
        self.skipped = [{"actions": Mean(), "velocity": Mean(), "task_loss": Mean()} for _ in range(model.depth())]

    def add(self, inputs: Batch, draw: Draw, out: Out, noise_BHA: Tensor, bar: Any) -> None:
        noise_BHA = noise_BHA.to(inputs.tokens_BT.device)
        chunk = self.model.act(inputs, noise_BHA)
        self._note(self.whole, self._real(chunk), self._real(out.pred_BRHA), self.model.task_loss(out), len(inputs))
        for layer, means in enumerate(self.skipped):
            route = Route.without(len(self.skipped), layer)
            without = self.model(inputs, draw, route=route)
            moved = self.model.act(inputs, noise_BHA, route=route) - chunk
            turned, loss = without.pred_BRHA - out.pred_BRHA, self.model.task_loss(without)
            self._note(means, self._real(moved), self._real(turned), loss, len(inputs))
            bar.update()

    def _note(self, means: dict[str, Mean], chunk_BHA: Tensor, velocity_BRHA: Tensor, loss: Tensor, size: int) -> None:
        means["actions"].add(chunk_BHA.double().square().mean(), size)
        means["velocity"].add(velocity_BRHA.double().square().mean(dim=(0, 2, 3)), size)
        means["task_loss"].add(loss, size)

    def _real(self, actions: Tensor) -> Tensor:
        """Without padded action dimensions."""
        return actions[..., : self.model.spec.action_dim]

    def arrays(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            kind: [_plain(relative_rms(m[kind].value, self.whole[kind].value)) for m in self.skipped]
            for kind in ("actions", "velocity")
        }
        if self.judged:
            full = self.whole["task_loss"].value
            found["task_loss"] = [_plain(m["task_loss"].value - full) for m in self.skipped]
            found["task_loss_full"] = _plain(full)
        return found


def _batches(
    model: Family, data: Data | None, total: int, size: int, seed: int, generator: torch.Generator
) -> Iterator[Batch]:
    device = next(model.parameters()).device
    frames = None if data is None else np.random.default_rng(seed).choice(len(data), total, replace=False)
    for first in range(0, total, size):
        count = min(size, total - first)
        if data is None or frames is None:
            yield model.example(count, generator).to(device)
        else:
            yield model.batch(data.samples(frames[first : first + count], model.spec.horizon)).to(device)


def _draw(model: Family, inputs: Batch, times: Sequence[float], generator: torch.Generator) -> Draw:
    """One draw per time, all of a sample with the same noise, so that only the time differs."""
    draw = model.draw(inputs, generator, draws=len(times), augment=False)
    noise = draw.noise_BRHA[:, :1].expand_as(draw.noise_BRHA)
    return replace(draw, noise_BRHA=noise, time_BR=draw.time_BR.new_tensor(times).expand_as(draw.time_BR))


def _plain(values: Tensor) -> Any:
    """Plain numbers of six decimals; a cosine of 1 to float32's precision is written as 1."""
    return np.round(values.numpy(), 6).tolist()


def _rows(name: str, depth: int, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for layer in range(depth):
        row: dict[str, Any] = {"policy": name, "layer": layer, "similarity": {}}
        alike = found["similarity"]
        if "prefix" in alike:
            row["similarity"]["prefix"] = alike["prefix"][layer]
        if "suffix" in alike:
            over_time = alike["suffix"][layer]
            row["similarity"] |= {"suffix": float(np.mean(over_time).round(6)), "suffix_low": min(over_time)}
            row["similarity"]["suffix_high"] = max(over_time)
        if "sensitivity" in found:
            kinds = [kind for kind in ("actions", "velocity", "task_loss") if kind in found["sensitivity"]]
            row["sensitivity"] = {k: float(np.mean(found["sensitivity"][k][layer]).round(6)) for k in kinds}
        if "scores" in found:
            row["scores"] = {kind: values[layer] for kind, values in found["scores"].items()}
        rows.append(row)
    return rows
