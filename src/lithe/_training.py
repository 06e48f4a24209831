"""The report's section on training: one small chart a loss term, all runs in it, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lithe._cells import Grid, number
from lithe._figures import Curve, curves
from lithe._material import Material, Training
from lithe._page import Html, figure, tag, who
from lithe._scales import Scale, short, tick

NOT_LOSSES = {"step", "stage", "lr", "gradient_norm"}
DRAWN = 400  # points of a curve; more cannot be seen


def training(material: Material) -> list[Html]:
    """Charts of every term and of the gradient norm, and the last losses."""
    runs = [run for run in material.trainings if run.metrics]
    terms = list(dict.fromkeys(key for run in runs for line in run.metrics for key in line if _is_loss(key)))
    drawn = [chart for term in [*terms, "gradient_norm"] if (chart := _term(material, runs, term))]
    parts: list[Html] = []
    if drawn:
        key = tag("p", *(who(run.name, material.look(run.name)) for run in runs), class_="legend")
        caption = "Each term as it enters the loss, already weighted: every logged step faint, the running median bold."
        parts.append(figure(key, tag("div", *drawn, class_="small"), caption=caption))
    grid = Grid({run.name: who(run.name, material.look(run.name)) for run in runs})
    for run in runs:
        recipe = run.recipe.get("recipe", run.recipe)
        grid.put("method", run.name, recipe.get("method", {}).get("name"))
        planned, done = recipe.get("train", {}).get("steps"), run.metrics[-1].get("step", 0)
        grid.put("steps", run.name, f"{done:,} of {planned:,}" if planned else f"{done:,}")
        for term in terms:
            grid.put(f"last {term}", run.name, number(_tail(run, term)))
        grid.put("seconds a step", run.name, number(_tail(run, "step_s")))
    return [*parts, grid.table("Training runs", "run")] if runs else []


def _is_loss(key: str) -> bool:
    return key not in NOT_LOSSES and not key.endswith("_s")


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
    log = min(values) > 0 and max(values) / min(values) > 8
    y = Scale.over(values, zero=min(values) >= 0, log=log)
    x = Scale(0.0, max(step for curve in series for step, _ in curve.raw))
    ends = "; ".join(f"{c.name} from {short(c.smooth[0][1])} to {short(c.smooth[-1][1])}" for c in series)
    title = term.replace("_", " ") + (" (log)" if log else "")
    return curves(series, y, x, title, tick, f"{term} over steps: {ends}")


def _curve(run: Training, look: int, term: str) -> Curve:
    """A run's term, thinned to what can be seen, and its running median over a twentieth of the run."""
    seen = [(float(line["step"]), float(line[term])) for line in run.metrics if term in line and "step" in line]
    seen = [(step, value) for step, value in seen if np.isfinite(value)]
    every, half = -(-len(seen) // DRAWN) or 1, max(1, len(seen) // 40)
    picked = sorted({*range(0, len(seen), every), len(seen) - 1}) if seen else []
    values = np.array([value for _, value in seen])
    smooth = [(seen[i][0], float(np.median(values[max(0, i - half) : i + half + 1]))) for i in picked]
    return Curve(run.name, look, [seen[i] for i in picked], smooth)
