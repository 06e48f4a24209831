"""The report's section on training: one small chart a loss term, all runs in it, and where they stand.

Terms called "note/..." are logged and no part of any loss: they have charts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lithe.report.cells import Grid, number
from lithe.report.figures import Curve, curves
from lithe.report.material import Material, Training
from lithe.report.page import Html, figure, tag, who
from lithe.report.scales import Scale, short, tick

NOT_LOSSES = {"step", "stage", "lr", "gradient_norm"}
NOTE = "note/"
NOTES = {"layers_run": "share of layers run", "gate": "mean gate"}  # what methods call them -> what a chart says
DRAWN = 400  # points of a curve; more cannot be seen


def training(material: Material) -> list[Html]:
    """Charts of every term and of the gradient norm, of what was noted beside them, and the last values."""
    runs = [run for run in material.trainings if run.metrics]
    logged = list(dict.fromkeys(key for run in runs for line in run.metrics for key in line if _is_told(key)))
    terms, notes = ([key for key in logged if key.startswith(NOTE) == noted] for noted in (False, True))
    caption = "Each term as it enters the loss, already weighted: every logged step faint, the running median bold."
    parts = _charts(material, runs, [*terms, "gradient_norm"], caption)
    wrote = [run for run in runs if any(note in line for line in run.metrics for note in notes)]
    said = (
        "Noted beside the loss and no part of it. Where a router is trained, a share of 1 is every layer for everybody."
    )
    parts += _charts(material, wrote, notes, said)
    grid = Grid({run.name: who(run.name, material.look(run.name)) for run in runs})
    for run in runs:
        recipe = run.recipe.get("recipe", run.recipe)
        grid.put("method", run.name, recipe.get("method", {}).get("name"))
        planned, done = recipe.get("train", {}).get("steps"), run.metrics[-1].get("step", 0)
        grid.put("steps", run.name, f"{done:,} of {planned:,}" if planned else f"{done:,}")
        for term in terms:
            grid.put(f"last {term}", run.name, number(_tail(run, term)))
        for term in notes:
            grid.put(f"last {_called(term)}", run.name, number(_tail(run, term)))
        grid.put("seconds a step", run.name, number(_tail(run, "step_s")))
    return [*parts, grid.table("Training runs", "run")] if runs else []


def _charts(material: Material, runs: Sequence[Training], terms: Sequence[str], caption: str) -> list[Html]:
    """One figure: a small chart for each of the terms, and whose curves they are."""
    drawn = [chart for term in terms if (chart := _term(material, runs, term))]
    if not drawn:
        return []
    key = tag("p", *(who(run.name, material.look(run.name)) for run in runs), class_="legend")
    return [figure(key, tag("div", *drawn, class_="small"), caption=caption)]


def _is_told(key: str) -> bool:
    return key not in NOT_LOSSES and not key.endswith("_s")


def _called(term: str) -> str:
    """How a term is named on the page."""
    note = term.removeprefix(NOTE)
    return NOTES.get(note, note.replace("_", " ")) if term.startswith(NOTE) else term


def _tail(run: Training, key: str) -> float | None:
    """The mean over the last twentieth of a run."""
    values = [float(line[key]) for line in run.metrics[-max(1, len(run.metrics) // 20) :] if key in line]
    return sum(values) / len(values) if values else None


def _term(material: Material, runs: Sequence[Training], term: str) -> Html | None:
    series = [_curve(run, material.look(run.name), term) for run in runs]
    series = [curve for curve in series if len(curve.raw) > 1]
    values = [v for curve in series for _, v in curve.raw]
    if not values:
        return None
    note = term.startswith(NOTE)
    log = not note and min(values) > 0 and max(values) / min(values) > 8
    y = Scale.over([*values, 1.0] if note and min(values) >= 0 else values, zero=min(values) >= 0, log=log)
    x = Scale(0.0, max(step for curve in series for step, _ in curve.raw))
    ends = "; ".join(f"{c.name} from {short(c.smooth[0][1])} to {short(c.smooth[-1][1])}" for c in series)
    title = _called(term).replace("_", " ") + (" (log)" if log else "")
    return curves(series, y, x, title, tick, f"{_called(term)} over steps: {ends}")


def _curve(run: Training, look: int, term: str) -> Curve:
    """A run's term, thinned to what can be seen, and its running median over a twentieth of the run."""
    seen = [(float(line["step"]), float(line[term])) for line in run.metrics if term in line and "step" in line]
    seen = [(step, value) for step, value in seen if np.isfinite(value)]
    every, half = -(-len(seen) // DRAWN) or 1, max(1, len(seen) // 40)
    picked = sorted({*range(0, len(seen), every), len(seen) - 1}) if seen else []
    values = np.array([value for _, value in seen])
    smooth = [(seen[i][0], float(np.median(values[max(0, i - half) : i + half + 1]))) for i in picked]
    return Curve(run.name, look, [seen[i] for i in picked], smooth)
