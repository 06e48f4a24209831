"""The report's section on policies that decide themselves which layers run: for which task, how many, and how smoothly.

Shares of passes come from evaluations, the chunks of single episodes from what stands beside film strips. A pass that
was done again by every layer counts as the pass that it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lithe.report.cells import Grid, number
from lithe.report.figures import Dot, dots
from lithe.report.layer_charts import columns, ramp_key, shares
from lithe.report.material import Material, by_policy
from lithe.report.page import Html, figure, tag, who
from lithe.report.scales import Scale, percent, tick
from lithe.report.trail import Chunk

Row = dict[str, Any]
MAP = (
    "Share of passes in which each layer ran, task by task; on the right the mean number of layers that were computed "
    "for a chunk. Passes of chunks that were computed again by every layer count too, and are paid on top."
)
COUNTS = "How many layers ran in a pass: share of all passes in per cent."
CLOUD = (
    "Every chunk of the recorded episodes: layers that ran over C, the smoothness of the movement (0 is perfectly "
    "smooth) that the router knew when it was asked. Triangles: chunks that were then computed again by every layer."
)


def routes(material: Material) -> list[Html]:
    """Heat maps and histograms of every evaluation, then continuity against skipping."""
    parts: list[Html] = []
    for document in material.of("eval"):
        rows = {name: row for name, row in by_policy(document).items() if row.get("layers_run", {}).get("each")}
        if rows:
            parts += [tag("h3", aside)] if (aside := material.aside(document)) else []
            parts += [_maps(material, rows), _counts(material, rows), _summary(material, rows)]
    return [*parts, *_clouds(material)]


def _maps(material: Material, rows: Mapping[str, Row]) -> Html:
    panels = []
    for name, row in rows.items():
        tasks = {task: found.get("layers_run", {}) for task, found in row.get("tasks", {}).items()}
        each = {task: found for task, found in tasks.items() if found.get("each")}
        lines = {"all tasks": row["layers_run"], **each} if len(each) != 1 else each
        told = [(task, _mean(found), found["each"]) for task, found in lines.items()]
        alt = f"Share of passes in which each layer of {name} ran: " + "; ".join(_spelled(*line) for line in told)
        panels.append(tag("div", tag("h4", who(name, material.look(name))), shares(told, alt)))
    key = ramp_key(Scale(0.0, 1.0), lambda v: f"{100 * v:g} %", "share of passes in which a layer ran")
    return figure(key, tag("div", *panels, class_="routes"), caption=MAP)


def _mean(found: Row) -> str:
    return f"{found['mean']:.2f} layers" if "mean" in found else ""


def _spelled(task: str, mean: str, each: list[float]) -> str:
    return f"{task} ({mean}) " + ", ".join(f"layer {i} {percent(share)} %" for i, share in enumerate(each))


def _counts(material: Material, rows: Mapping[str, Row]) -> Html:
    panels = []
    for name, row in rows.items():
        found, depth = row["layers_run"].get("histogram", {}), len(row["layers_run"]["each"])
        values = [100 * found.get(str(n), 0.0) for n in range(depth + 1)]
        told = ", ".join(f"{n} layers {value:.3g} %" for n, value in enumerate(values) if value)
        drawn = columns(values, tick, "layers", f"Share of passes of {name}: {told}", look=material.look(name))
        panels.append(tag("div", tag("h4", who(name, material.look(name))), drawn))
    return figure(tag("div", *panels, class_="small"), caption=COUNTS)


def _summary(material: Material, rows: Mapping[str, Row]) -> Html:
    grid = Grid({name: who(name, material.look(name)) for name in rows})
    for name, row in rows.items():
        found = row["layers_run"]
        counts = [int(n) for n in found.get("histogram", {})]
        grid.put("layers", name, number(len(found["each"])))
        grid.put("run, mean", name, number(found.get("mean")))
        grid.put("least", name, number(min(counts, default=None)))
        grid.put("most", name, number(max(counts, default=None)))
        grid.put("computed again, %", name, percent(found["repeated"]) if "repeated" in found else None)
    return grid.table("Layers that ran")


def _clouds(material: Material) -> list[Html]:
    """Continuity against skipping, a panel a policy whose router looks at the movement."""
    found: dict[str, list[tuple[float, Chunk]]] = {}
    depths = {}
    for strip in material.strips:
        if strip.trail:
            chunks = strip.trail.chunks
            pairs = [(a.continuity, b) for a, b in pairwise(chunks) if a.continuity is not None]
            found[strip.policy] = found.get(strip.policy, []) + pairs
            depths[strip.policy] = strip.trail.depth
    panels = []
    for name, pairs in found.items():
        if pairs:
            points = [Dot(level, len(chunk.ran), chunk.repeated) for level, chunk in pairs]
            x, y = Scale.over([level for level, _ in pairs] + [0.0]), Scale(0.0, float(depths[name]))
            again = sum(dot.special for dot in points)
            alt = f"Layers run by {name} over the smoothness C of the movement, {len(points)} chunks, {again} repeated"
            drawn = dots(points, material.look(name), x, y, ("layers run", "C"), alt)
            panels.append(tag("div", tag("h4", who(name, material.look(name))), drawn))
    return [figure(tag("div", *panels, class_="small"), caption=CLOUD)] if panels else []
