"""The report's sections on what came out: success, speed, and the two against each other.

Each function turns one Result (or a pair of them) into markup; a field that is absent was not measured, and whatever
would show it is left out.
"""

from __future__ import annotations

from typing import Any

from lithe._figures import Bar, Mark, bars, forest, scatter
from lithe._material import Material, by_policy, reference
from lithe._page import Html, columns, details, figure, interval, join, table, tag, who
from lithe._scales import Scale, percent, points, short, tick, times
from lithe._verdict import machine

Row = dict[str, Any]


def glance(material: Material) -> Html | None:
    """One row a policy: the page in a table, and the key to its colours."""
    found: dict[str, dict[str, str]] = {}
    names = material.names()
    for document in material.of("eval"):
        where = f", {document['name']}" if len(material.of("eval")) > 1 else ""
        for name, row in by_policy(document).items():
            _put(found, f"success, %{where}", name, _rate(row.get("success")))
            _put(found, f"difference, points{where}", name, _difference(row.get("paired")))
    for document in material.of("bench"):
        where = f", {machine(document)}" if len(material.of("bench")) > 1 else ""
        for name, row in by_policy(document).items():
            _put(found, f"p50, ms{where}", name, _short(row.get("latency_ms", {}).get("p50")))
            _put(found, f"faster{where}", name, _ratio(name, row.get("ratio")))
            _put(found, "layers", name, _short(row.get("depth")))
            _put(found, "parameters, M", name, _short(sum(row.get("parameters", {}).values()) / 1e6 or None))
    for training in material.trainings:
        _put(found, "trained for, steps", training.name, _short(training.metrics[-1].get("step")) if training.metrics else None)
    if not names:
        return None
    return columns({name: who(name, material.look(name)) for name in names}, found, "At a glance")


def success(material: Material) -> list[Html]:
    """Forest plots, the figures behind them, and every task."""
    parts: list[Html] = []
    for document in material.of("eval"):
        rows, settings = by_policy(document), document["settings"]
        tasks, n = settings.get("tasks", []), settings.get("episodes")
        if len(material.of("eval")) > 1:
            parts.append(tag("h3", document["name"]))
        played = f"{n} episodes of each of {len(tasks)} tasks" if len(tasks) > 1 else f"{n} episodes"
        parts.append(tag("div", *_rates(material, rows, played), *_differences(material, rows), class_="side"))
        parts.append(_measures(material, rows))
        parts.append(tag("p", "Medians over episodes, with 95 % intervals. Steps count only where an episode was solved; paired "
                         "steps only where both policies solved it. Jerk is the mean third difference of executed actions, in "
                         f"{settings.get('jerk_unit', 'action units')}: lower is smoother.", class_="under"))
        if len(tasks) > 1:
            parts += _tasks(material, rows, tasks)
    return parts


def _rates(material: Material, rows: dict[str, Row], played: str) -> list[Html]:
    marks = [
        Mark(name, material.look(name), s["rate"], s["low"], s["high"], f"{percent(s['rate'])} % [{percent(s['low'])}, {percent(s['high'])}]")
        for name, row in rows.items()
        if (s := row.get("success"))
    ]
    if not marks:
        return []
    x = Scale.over([v for m in marks for v in (m.low, m.high)], least=0.25).clipped(0.0, 1.0)
    alt = "Success rate with 95 % interval: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    drawn = forest(marks, x, lambda v: tick(100 * v), "success, %", alt)
    return [figure(drawn, caption=f"Success over {played}, the same initial states for every policy. Bars are 95 % Wilson intervals.")]


def _differences(material: Material, rows: dict[str, Row]) -> list[Html]:
    found = {name: row["paired"] for name, row in rows.items() if "paired" in row}
    if not found:
        return []
    against = next(iter(found.values()))["against"]
    marks = [
        Mark(name, material.look(name), p["difference"], p["low"], p["high"], f"{points(p['difference'])} [{points(p['low'])}, {points(p['high'])}]")
        for name, p in found.items()
    ]
    reach = max(abs(v) for m in marks for v in (m.low, m.high) if v is not None) or 0.01
    alt = f"Success minus that of {against}, paired, in points: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    drawn = forest(marks, Scale.over([-reach, reach]), lambda v: points(v)[: -2], f"minus {against}, points", alt, zero=0.0)
    return [figure(drawn, caption=f"Difference to {against}, episode by episode. An interval that reaches left of the line does not exclude a loss.")]


def _measures(material: Material, rows: dict[str, Row]) -> Html:
    found: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        _put(found, "episodes", name, _short(row.get("success", {}).get("n")))
        _put(found, "success, %", name, _rate(row.get("success")))
        _put(found, "difference, points", name, _difference(row.get("paired")))
        _put(found, "steps to success", name, _median(row.get("steps_to_success"), tick))
        _put(found, "steps, paired", name, _median(row.get("paired", {}).get("steps"), lambda v: f"{v:+g}".replace("-", "−")))
        _put(found, "jerk", name, _median(row.get("jerk"), short))
    return columns(_who(material, rows), found, "Success, steps and smoothness")


def _tasks(material: Material, rows: dict[str, Row], tasks: list[str]) -> list[Html]:
    """Every task and policy, tinted by success; the paired differences are folded away."""
    shown = {name: row["tasks"] for name, row in rows.items() if row.get("tasks")}
    if not shown:
        return []
    lines, changes = [], []
    for task in tasks:
        cells = [_tinted(figures.get(task, {}).get("success")) for figures in shown.values()]
        lines.append([task, *cells])
        changes.append([task, *(_difference(f.get(task, {}).get("paired")) or "–" for f in shown.values())])
    heads = [who(name, material.look(name)) for name in shown]
    grid = table(["task", *heads], lines, "Success of every task", fills=True)
    shown_caption = "Success of every task in per cent, with 95 % intervals; the tint follows the rate."
    parts = [figure(grid, caption=shown_caption)]
    if any("paired" in row for row in rows.values()):
        parts.append(details("Paired differences task by task, points", table(["task", *heads], changes, "Paired differences")))
    return parts


def _tinted(success: Row | None) -> Html:
    if not success:
        return tag("td", "–")
    told = interval(percent(success["rate"]), percent(success["low"]), percent(success["high"]))
    return tag("td", told, class_=f"tint t{round(10 * success['rate'])}")


def speed(material: Material) -> list[Html]:
    """Where the milliseconds go, the table of quantiles, and the line over depth."""
    parts: list[Html] = []
    for document in material.of("bench"):
        rows, settings = by_policy(document), document["settings"]
        if len(material.of("bench")) > 1:
            parts.append(tag("h3", machine(document)))
        keys = ("runtime", "dtype", "views", "horizon", "steps", "threads")
        told = ", ".join(f"{settings[key]} {key}" if key in ("views", "steps", "threads") else f"{key} {settings[key]}" for key in keys if key in settings)
        parts.append(tag("p", f"{machine(document)}; batch 1, {told}; {settings.get('runs', '?')} runs each, all policies taking turns. "
                         "Milliseconds hold for this machine only, ratios travel better."))
        parts += _latency(material, rows)
        parts.append(_quantiles(material, rows))
        parts += _line(material, rows, document.get("fit"))
    return parts


def _latency(material: Material, rows: dict[str, Row]) -> list[Html]:
    found = []
    for name, row in rows.items():
        ms = row.get("latency_ms", {})
        parts = {part: ms[part] for part in row.get("flops", {}) if part in ms} or {"chunk": ms["p50"]} if "p50" in ms else {}
        if not parts:
            continue
        floor = sum(row["floor_ms"].values()) if "floor_ms" in row else None
        faster = row.get("ratio", {})
        won = f" · {times(faster['p50'])} [{faster['low']:.2f}, {faster['high']:.2f}]" if faster and faster["against"] != name else ""
        found.append(Bar(name, material.look(name), parts, f"{short(ms['p50'])} ms{won}", floor))
    if not found:
        return []
    names = list(dict.fromkeys(part for bar in found for part in bar.parts))
    x = Scale.over([sum(bar.parts.values()) for bar in found] + [bar.floor or 0.0 for bar in found], zero=True)
    alt = "Median milliseconds a chunk: " + "; ".join(
        f"{bar.name} {bar.text} ({', '.join(f'{part} {short(v)}' for part, v in bar.parts.items())})" for bar in found
    )
    key = tag("p", *(tag("span", tag("span", class_=f"swatch p{k % 4}"), part, class_="who") for k, part in enumerate(names)),
              tag("span", tag("span", "▲", class_="floor-key"), "floor of this machine", class_="who"), class_="legend")
    caption = "Median time of one chunk, by component. The triangle is the floor: what arithmetic and memory traffic alone would take at the rates measured here. Components are medians of their own and need not add up to the total."
    return [figure(key, bars(found, x, tick, "ms, p50", alt), caption=caption)]


def _quantiles(material: Material, rows: dict[str, Row]) -> Html:
    found: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        _put(found, "layers", name, _short(row.get("depth")))
        _put(found, "faster", name, _ratio(name, row.get("ratio")))
        for q in ("p50", "p95", "p99"):
            _put(found, f"model {q}, ms", name, _short(row.get("latency_ms", {}).get(q)))
        for q in ("p50", "p95", "p99"):
            _put(found, f"end to end {q}, ms", name, _short(row.get("end_to_end_ms", {}).get(q)))
        _put(found, "faster, end to end", name, _ratio(name, row.get("end_to_end_ratio")))
        _put(found, "Hz", name, _short(row.get("hz")))
        _put(found, "floor, ms", name, _short(sum(row["floor_ms"].values())) if "floor_ms" in row else None)
        _put(found, "% of floor", name, _short(100 * row["share_of_floor"]) if "share_of_floor" in row else None)
        _put(found, "MiB", name, _short(row.get("memory_mb")))
    return columns(_who(material, rows), found, "Latency")


def _line(material: Material, rows: dict[str, Row], fit: Row | None) -> list[Html]:
    if not fit:
        return []
    a, b = fit["a_ms"], fit["b_ms_per_layer"]
    marks = [
        Mark(name, material.look(name), rows[name]["depth"], text=f"{short(rows[name]['latency_ms']['p50'])} ms", y=rows[name]["latency_ms"]["p50"])
        for name in fit.get("residuals", {})
        if name in rows
    ]
    deepest = max([mark.x for mark in marks], default=1)
    x, y = Scale.over([0.0, deepest], zero=True), Scale.over([a, *(mark.y for mark in marks)], zero=True)
    alt = f"Median milliseconds over layers: {short(a)} + {short(b)} per layer; " + "; ".join(f"{m.name} {m.x:g} layers {m.text}" for m in marks)
    lines = [("fit", [(0.0, a), (deepest, a + b * deepest)])] + ([("bound", [(0.0, a), (x.high, a)])] if a > 0 else [])
    drawn = scatter(marks, x, y, (tick, tick), ("ms, p50", "layers"), alt, [(k, c) for k, c in lines if min(v for _, v in c) >= y.low], height=220)
    most = f" The dashed line is what no cut removes: cutting layers alone cannot pass {times(fit['ceiling'])}." if "ceiling" in fit else ""
    said = join("Time over depth: p50 = ", tag("strong", f"{short(a)} + {short(b)} · layers"), f" ms.{most}")
    return [figure(drawn, caption=said)]


def pareto(material: Material) -> list[Html]:
    """Success against milliseconds, for policies that were both evaluated and timed."""
    parts = []
    for evaluation in material.of("eval"):
        for bench in material.of("bench"):
            acted, timed = by_policy(evaluation), by_policy(bench)
            names = [n for n in acted if "success" in acted[n] and "p50" in timed.get(n, {}).get("latency_ms", {})]
            if len(names) > 1:
                parts.append(_front(material, evaluation, bench, names))
    return parts


def _front(material: Material, evaluation: Row, bench: Row, names: list[str]) -> Html:
    acted, timed, first = by_policy(evaluation), by_policy(bench), reference(bench)
    base = timed.get(first or "", {}).get("latency_ms", {}).get("p50")
    marks = []
    for name in names:
        s, ms, ratio = acted[name]["success"], timed[name]["latency_ms"]["p50"], timed[name].get("ratio")
        ends = (base / ratio["high"], base / ratio["low"]) if ratio and base and name != first else (None, None)
        text = f"{percent(s['rate'])} % at {short(ms)} ms"
        marks.append(Mark(name, material.look(name), ms, *ends, text, s["rate"], s["low"], s["high"]))
    wide = max(m.x for m in marks) / min(m.x for m in marks) > 8
    x = Scale.over([v for m in marks for v in (m.x, m.low, m.high) if v is not None], zero=not wide, log=wide)
    y = Scale.over([v for m in marks for v in (m.y_low, m.y_high) if v is not None], least=0.25).clipped(0.0, 1.0)
    alt = "Success against median milliseconds: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    drawn = scatter(marks, x, y, (tick, lambda v: tick(100 * v)), ("success, %", "ms, p50"), alt, [("front", _staircase(marks))])
    apart = _apart(evaluation["settings"], bench["settings"])
    where = f"{evaluation['name']}, timed on {machine(bench)}"
    caption = f"Up and to the left is better ({where}). Vertical bars: 95 % Wilson intervals. Horizontal bars: 95 % intervals of the speed ratio, in ms of this machine. The thin line joins the policies that none other beats in both.{apart}"
    return figure(drawn, caption=caption)


def _staircase(marks: list[Mark]) -> list[tuple[float, float]]:
    """Corners of the front: the best success that can be had within so many milliseconds."""
    corners: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y)):
        if not corners or mark.y > corners[-1][1]:
            corners += [(mark.x, corners[-1][1])] if corners else []
            corners.append((mark.x, mark.y))
    return corners


def _apart(evaluation: Row, bench: Row) -> str:
    """A warning where the evaluated and the timed policies were run differently."""
    keys = [k for k in ("runtime", "steps") if evaluation.get(k) and bench.get(k) and evaluation[k] != bench[k]]
    told = ", ".join(f"{key} {evaluation[key]} while acting and {bench[key]} while timed" for key in keys)
    return f" Note: {told}." if told else ""


def _put(found: dict[str, dict[str, str]], head: str, name: str, cell: str | None) -> None:
    column = found.setdefault(head, {})
    if cell is not None:
        column[name] = cell


def _who(material: Material, rows: dict[str, Row]) -> dict[str, str]:
    return {name: who(name, material.look(name)) for name in rows}


def _short(value: float | None) -> str | None:
    return None if value is None else short(value) if isinstance(value, float) else f"{value:,}"


def _rate(success: Row | None) -> str | None:
    return interval(percent(success["rate"]), percent(success["low"]), percent(success["high"])) if success else None


def _difference(pairs: Row | None) -> str | None:
    return interval(points(pairs["difference"]), points(pairs["low"]), points(pairs["high"])) if pairs else None


def _ratio(name: str, ratio: Row | None) -> str | None:
    if not ratio:
        return None
    return "1, baseline" if ratio["against"] == name else interval(times(ratio["p50"]), f"{ratio['low']:.2f}", f"{ratio['high']:.2f}")


def _median(figure: Row | None, form: Any) -> str | None:
    if not figure:
        return None
    return interval(form(figure["median"]), *(form(figure[k]) for k in ("low", "high") if k in figure))
