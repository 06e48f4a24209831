"""The report's sections on success: everybody at a glance, forest plots, the figures behind them, every task.

Each function turns Results into markup; a field that is absent was not measured, and what would show it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lithe.report.cells import Grid, difference, median, number, rate, ratio
from lithe.report.figures import Mark, forest
from lithe.report.material import Material, by_policy
from lithe.report.page import Html, details, figure, interval, table, tag, who
from lithe.report.scales import Scale, brackets, percent, points, short, signed, tick
from lithe.report.verdict import machine

Row = dict[str, Any]
MEASURES = (
    "Medians over episodes, with 95 % intervals. Steps count only where an episode was solved, paired steps only where "
    "both policies solved it. Jerk is the mean third difference of executed actions, in {}: lower is smoother."
)


def glance(material: Material) -> Html | None:
    """One row a policy: the page in a table, and the key to its colours."""
    names = material.names()
    grid = Grid({name: who(name, material.look(name)) for name in names})
    for document in material.of("eval"):
        where = f", {aside}" if (aside := material.aside(document)) else ""
        for name, row in by_policy(document).items():
            grid.put(f"success, %{where}", name, rate(row.get("success")))
            grid.put(f"difference, points{where}", name, difference(row.get("paired")))
            grid.put(f"layers run, mean{where}", name, number(row.get("layers_run", {}).get("mean")))
    for document in material.of("bench"):
        where = f", {machine(document)}" if len(material.of("bench")) > 1 else ""
        for name, row in by_policy(document).items():
            grid.put(f"p50, ms{where}", name, number(row.get("latency_ms", {}).get("p50")))
            grid.put(f"faster{where}", name, ratio(name, row.get("ratio")))
            grid.put("layers", name, number(row.get("depth")))
            grid.put("parameters, M", name, number(sum(row.get("parameters", {}).values()) / 1e6 or None))
    for training in material.trainings:
        grid.put(
            "trained for, steps", training.name, number(training.metrics[-1].get("step")) if training.metrics else None
        )
    if not names:
        return None
    return grid.table("At a glance")


def success(material: Material) -> list[Html]:
    """Forest plots, the figures behind them, and every task."""
    parts: list[Html] = []
    for document in material.of("eval"):
        rows, settings = by_policy(document), document.get("settings", {})
        tasks, n = settings.get("tasks", []), settings.get("episodes", "?")
        if aside := material.aside(document):
            parts.append(tag("h3", aside))
        played = (
            f"{n} episodes of each of {len(tasks)} tasks" if len(tasks) > 1 else f"{n} episodes of {''.join(tasks)}"
        )
        parts.append(tag("div", *_rates(material, rows, played), *_differences(material, rows), class_="side"))
        parts += [
            _measures(material, rows),
            tag("p", MEASURES.format(settings.get("jerk_unit", "its unit")), class_="under"),
        ]
        if len(tasks) > 1:
            parts += _tasks(material, rows, tasks)
    return parts


def _rates(material: Material, rows: dict[str, Row], played: str) -> list[Html]:
    found = {name: row["success"] for name, row in rows.items() if "success" in row}
    if not found:
        return []
    marks = [_mark(material, name, s["rate"], s, f"{percent(s['rate'])} %", percent) for name, s in found.items()]
    x = Scale.over([v for s in found.values() for v in (s["low"], s["high"])], least=0.25).clipped(0.0, 1.0)
    alt = "Success rate with 95 % interval: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    said = f"Success over {played}, the same initial states for every policy. Bars are 95 % Wilson intervals."
    return [figure(forest(marks, x, lambda v: tick(100 * v), "success, %", alt), caption=said)]


def _differences(material: Material, rows: dict[str, Row]) -> list[Html]:
    found = {name: row["paired"] for name, row in rows.items() if "paired" in row}
    if not found:
        return []
    against = next(iter(found.values()))["against"]
    marks = [_mark(material, n, p["difference"], p, points(p["difference"]), points) for n, p in found.items()]
    reach = max(0.01, *(abs(p[end]) for p in found.values() for end in ("low", "high")))
    alt = f"Success minus that of {against}, paired, in points: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    x, label = Scale.over([-reach, reach]), f"minus {against}, points"
    said = f"Difference to {against}, episode by episode. An interval that reaches left of 0 does not exclude a loss."
    return [figure(forest(marks, x, lambda v: signed(100 * v), label, alt, zero=0.0), caption=said)]


def _mark(material: Material, name: str, value: float, found: Row, text: str, form: Callable[[float], str]) -> Mark:
    low, high = found["low"], found["high"]
    return Mark(name, material.look(name), value, low, high, f"{text} {brackets(form(low), form(high))}")


def _measures(material: Material, rows: dict[str, Row]) -> Html:
    grid = Grid(_who(material, rows))
    for name, row in rows.items():
        grid.put("episodes", name, number(row.get("success", {}).get("n")))
        grid.put("success, %", name, rate(row.get("success")))
        grid.put("difference, points", name, difference(row.get("paired")))
        grid.put("steps to success", name, median(row.get("steps_to_success"), tick))
        grid.put("steps, paired", name, median(row.get("paired", {}).get("steps"), signed))
        grid.put("jerk", name, median(row.get("jerk"), short))
    return grid.table("Success, steps and smoothness")


def _tasks(material: Material, rows: dict[str, Row], tasks: list[str]) -> list[Html]:
    """Every task and policy, tinted by success; the paired differences are folded away."""
    shown = {name: row["tasks"] for name, row in rows.items() if row.get("tasks")}
    if not shown:
        return []
    policies = {name: who(name, material.look(name)) for name in shown}
    rates = {(t, name): _tinted(found.get(t, {}).get("success")) for name, found in shown.items() for t in tasks}
    pairs = {(t, n): difference(found.get(t, {}).get("paired")) or "–" for n, found in shown.items() for t in tasks}
    grid = _spread(tasks, policies, rates, "Success of every task", fills=True)
    shown_caption = "Success of every task in per cent, with 95 % intervals; the tint follows the rate."
    parts = [figure(grid, caption=shown_caption)]
    if any("paired" in row for row in rows.values()):
        changes = _spread(tasks, policies, pairs, "Paired differences")
        parts.append(details("Paired differences task by task, points", changes))
    return parts


def _spread(
    tasks: list[str], policies: Mapping[str, str], cells: Mapping[tuple[str, str], str], label: str, fills: bool = False
) -> Html:
    """A table of tasks and policies; whichever are more become its rows, for a page is longer than wide."""
    if len(policies) > len(tasks):
        rows = [[shown, *(cells[task, name] for task in tasks)] for name, shown in policies.items()]
        return table(["policy", *tasks], rows, label, fills=fills)
    rows = [[task, *(cells[task, name] for name in policies)] for task in tasks]
    return table(["task", *policies.values()], rows, label, fills=fills)


def _tinted(success: Row | None) -> Html:
    if not success:
        return tag("td", "–")
    told = interval(percent(success["rate"]), percent(success["low"]), percent(success["high"]))
    return tag("td", told, class_=f"tint t{round(10 * success['rate'])}")


def _who(material: Material, rows: dict[str, Row]) -> dict[str, str]:
    return {name: who(name, material.look(name)) for name in rows}
