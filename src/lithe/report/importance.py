"""The report's section on layer scores: each beside what was measured, and which layers a cut by it would keep.

A score guesses from one calibration pass which layers a policy can do without; similarity and sensitivity are measured
in the same profile. How well a guess follows the measurement is told by a rank correlation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lithe.report.anatomy import histories, kept_layers
from lithe.report.cells import Grid
from lithe.report.layer_charts import columns
from lithe.report.material import Material
from lithe.report.page import Html, figure, tag
from lithe.report.scales import tick

Row = dict[str, Any]
MEANING = {
    "cos": "1 − cosine of the streams around the layer",
    "cka": "1 − CKA of the streams around the layer",
    "gate": "|dL/dg| at an open gate",
    "fisher": "mean squared gradient",
    "taylor": "|Σ gradient · weight|",
}


def scores(material: Material) -> list[Html]:
    """For each profile: what was measured, every score, and how they agree."""
    parts: list[Html] = []
    profiles = [document for document in material.of("profile") if document.get("scores")]
    for document in profiles:
        parts += [tag("h3", str(document.get("name")))] if len(profiles) > 1 else []
        measured = _measured(document)
        keep, told = _keep(material, len(next(iter(document["scores"].values()))))
        parts += [_panels(document["scores"], measured, keep, told), _table(document["scores"], measured)]
        parts.append(tag("p", _doubt(len(next(iter(document["scores"].values())))), class_="under"))
    return parts


def _measured(document: Row) -> dict[str, list[float]]:
    """What the profile says of each layer beside its scores; the first is what a good score should follow."""
    hurt, alike = document.get("sensitivity", {}), document.get("similarity", {})
    found = {"skipped: actions": hurt.get("actions"), "skipped: task loss": hurt.get("task_loss")}
    found["1 − cosine, trunk"] = [1 - value for value in alike.get("prefix", [])]
    found["1 − cosine, expert"] = [1 - float(np.mean(values)) for values in alike.get("suffix", [])]
    return {name: values for name, values in found.items() if values}


def _keep(material: Material, depth: int) -> tuple[int, str]:
    """For how many layers the choice is shown: as many as the page's students keep, else half."""
    kept = [kept_layers(history).get("trunk", []) for history in histories(material).values()]
    sizes = Counter(len(layers) for layers in kept if 0 < len(layers) < depth and max(layers) < depth)
    if sizes:
        size = sizes.most_common(1)[0][0]
        return size, f"keep={size}, as the students here,"
    return (depth + 1) // 2, f"keep={(depth + 1) // 2}, half of them,"


def _panels(found: Mapping[str, Sequence[float]], measured: Mapping[str, list[float]], keep: int, told: str) -> Html:
    from lithe.methods._depth import highest  # brings torch, which the rest of the page does without

    line = measured.get("skipped: actions")
    first = []
    for name, values in measured.items():
        drawn = columns(values, tick, "layer", f"{name}: {_listed(values)}")
        first.append(tag("div", tag("h4", name), drawn))
    second = []
    for kind, guess in found.items():
        chosen = highest(guess, keep)
        alt = (
            f"Score {kind}, {MEANING.get(kind, '')}: {_listed(guess)}; keep={keep} keeps {', '.join(map(str, chosen))}"
        )
        rank = rank_correlation(guess, line) if line else None
        said = f" ρ = {_signed(rank)}" if rank is not None else ""
        head = tag("h4", tag("strong", kind), said, title=MEANING.get(kind))
        second.append(tag("div", head, columns(guess, tick, "layer", alt, look=0, chosen=set(chosen), line=line)))
    caption = (
        f"Above: what was measured. Below: the scores, higher = keep; in colour the layers that {told} would leave."
    )
    if line:
        caption += (
            " The line repeats what skipping a layer does to the actions, from 0 to its largest, and ρ is the rank "
            "correlation of the score with it: 1 would mean that the score removes first what is missed least."
        )
    grids = [tag("div", *panels, class_="fine") for panels in (first, second) if panels]
    return figure(*grids, caption=caption)


def _table(found: Mapping[str, Sequence[float]], measured: Mapping[str, list[float]]) -> Html:
    grid = Grid({kind: kind for kind in found})
    for kind, values in found.items():
        for name, line in measured.items():
            rank = rank_correlation(values, line)
            grid.put(f"ρ with {name.removeprefix('skipped: ')}", kind, None if rank is None else _signed(rank))
        order = sorted(range(len(values)), key=lambda layer: (-values[layer], layer))
        grid.put("layers, the most important first", kind, ", ".join(map(str, order)))
    return grid.table("Layer scores and what was measured", "score")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the ranks, ties at their mean rank. None where one side is all ties."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    if any(rank.min() == rank.max() for rank in ranks):
        return None
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(1)
    return below + ((values[None] == values[:, None]).sum(1) - 1) / 2


def _doubt(depth: int) -> str:
    """How far from 0 a rank correlation of unrelated orders of so many layers gets in 19 of 20 cases."""
    bound = 1.96 / (depth - 1) ** 0.5 if depth > 1 else 1.0
    if bound >= 1:
        return f"With {depth} layers any rank correlation may be chance."
    return f"With {depth} layers, unrelated orders have a ρ between −{bound:.2f} and +{bound:.2f} in 19 of 20 cases."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"layer {i} {value:.3g}" for i, value in enumerate(values))
