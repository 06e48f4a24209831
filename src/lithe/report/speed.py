"""The report's sections on speed: where the milliseconds go, the line over depth, and success against milliseconds."""

from __future__ import annotations

from typing import Any

from lithe.report.cells import Grid, number, ratio
from lithe.report.figures import Bar, Mark, bars, scatter
from lithe.report.material import Material, by_policy, reference
from lithe.report.page import Html, figure, join, tag, who
from lithe.report.scales import Scale, brackets, count, factor, percent, short, tick, times
from lithe.report.verdict import machine

Row = dict[str, Any]


def speed(material: Material) -> list[Html]:
    """Where the milliseconds go, the tables of quantiles, and the line over depth."""
    parts: list[Html] = []
    for document in material.of("bench"):
        rows = by_policy(document)
        if len(material.of("bench")) > 1:
            parts.append(tag("h3", machine(document)))
        said = f"{', '.join(_conditions(document))}. Milliseconds hold for this machine only; ratios travel better."
        parts += [tag("p", said), *_latency(material, rows), *_quantiles(material, rows)]
        parts += _line(material, rows, document.get("fit"))
    return parts


def _conditions(document: Row) -> list[str]:
    """Without which a number of milliseconds means nothing."""
    settings = document.get("settings", {})
    counted = {"views": "view", "horizon": "action", "steps": "denoise step", "threads": "thread", "runs": "run"}
    told = [machine(document), *(str(settings[key]) for key in ("runtime", "dtype") if key in settings), "batch 1"]
    said = {key: count(settings[key], noun) for key, noun in counted.items() if key in settings}
    more = {"horizon": " a chunk", "runs": " each, all policies taking turns"}
    if "episodes" in settings:
        told.append(f"recorded observations of {count(settings['episodes'], 'episode')}")
    return told + [text + more.get(key, "") for key, text in said.items()]


def _latency(material: Material, rows: dict[str, Row]) -> list[Html]:
    found = [_bar(name, material.look(name), row) for name, row in rows.items() if "p50" in row.get("latency_ms", {})]
    if not found:
        return []
    names = list(dict.fromkeys(part for bar in found for part in bar.parts))
    x = Scale.over([v for bar in found for v in (sum(bar.parts.values()), bar.floor or 0.0)], zero=True)
    split = {bar.name: ", ".join(f"{part} {short(v)}" for part, v in bar.parts.items()) for bar in found}
    alt = "Median milliseconds a chunk: " + "; ".join(f"{bar.name} {bar.text} ({split[bar.name]})" for bar in found)
    key = tag(
        "p",
        *(tag("span", tag("span", class_=f"swatch p{k % 4}"), part, class_="who") for k, part in enumerate(names)),
        tag("span", tag("span", "▲", class_="floor-key"), "floor of this machine", class_="who"),
        class_="legend",
    )
    caption = (
        "Median time of one chunk, by component. The triangle is the floor: what arithmetic and memory traffic alone "
        "would take at the rates measured here. Components are medians of their own and need not add up to the total."
    )
    return [figure(key, bars(found, x, tick, "ms, p50", alt), caption=caption)]


def _bar(name: str, look: int, row: Row) -> Bar:
    ms, won, text = row["latency_ms"], row.get("ratio"), f"{short(row['latency_ms']['p50'])} ms"
    if won and won["against"] != name:
        text += f" · {times(won['p50'])} {brackets(factor(won['low']), factor(won['high']))}"
    parts = {part: ms[part] for part in row.get("flops", {}) if part in ms} or {"whole chunk": ms["p50"]}
    return Bar(name, look, parts, text, sum(row["floor_ms"].values()) if "floor_ms" in row else None)


def _quantiles(material: Material, rows: dict[str, Row]) -> list[Html]:
    """One table a boundary: the model alone, and from pictures to actions."""
    model, whole = (Grid(_who(material, rows)) for _ in range(2))
    for name, row in rows.items():
        model.put("layers", name, number(row.get("depth")))
        for grid, ms, faster in ((model, "latency_ms", "ratio"), (whole, "end_to_end_ms", "end_to_end_ratio")):
            for q in ("p50", "p95", "p99"):
                grid.put(f"{q}, ms", name, number(row.get(ms, {}).get(q)))
            grid.put("faster", name, ratio(name, row.get(faster)))
        model.put("floor, ms", name, number(sum(row["floor_ms"].values())) if "floor_ms" in row else None)
        model.put("% of floor", name, number(100 * row["share_of_floor"]) if "share_of_floor" in row else None)
        model.put("MiB", name, number(row.get("memory_mb")))
        whole.put("Hz", name, number(row.get("hz")))
    parts = [figure(model.table("Latency of the model"), caption="The model alone: a batch in memory to actions.")]
    if any("end_to_end_ms" in row for row in rows.values()):
        said = "End to end: camera pictures to actions in host memory, one chunk at a time."
        parts.append(figure(whole.table("Latency end to end"), caption=said))
    parts += _routed(material, {name: row for name, row in rows.items() if "layers_run" in row})
    return parts + _peers(material, {name: row for name, row in rows.items() if "not_equal" in row}, rows)


def _peers(material: Material, peers: dict[str, Row], rows: dict[str, Row]) -> list[Html]:
    """Other implementations with a policy's weights: how they agree with it, and what is equal and what is not."""
    if not peers:
        return []
    grid, said = Grid(_who(material, peers)), dict[tuple[str, str], list[str]]()
    for name, row in peers.items():
        grid.put("beside", name, str(row["beside"]))
        if "latency_ms" in rows.get(row["beside"], {}):
            slower = row["latency_ms"]["p50"] / rows[row["beside"]]["latency_ms"]["p50"]
            grid.put("p50 over beside", name, times(slower))
        grid.put("error", name, number(row.get("error")))
        grid.put("cosine", name, number(row.get("cosine")))
        said.setdefault(("; ".join(row["equal"]), "; ".join(row["not_equal"])), []).append(name)
    told = (
        "Other implementations holding the same weights, timed in the same run and compared with eager's actions first."
    )
    parts = [figure(grid.table("Peers"), caption=told)]
    for (equal, not_equal), names in said.items():
        parts += [tag("p", tag("strong", ", ".join(names)), f". Equal: {equal}."), tag("p", f"Not equal: {not_equal}.")]
    return parts


def _routed(material: Material, rows: dict[str, Row]) -> list[Html]:
    """What policies that decide themselves which layers run did, and between which bounds their time can lie."""
    if not rows:
        return []
    grid = Grid(_who(material, rows))
    for name, row in rows.items():
        ran = row["layers_run"]
        grid.put("layers", name, number(row.get("depth")))
        grid.put("run, mean", name, number(ran["mean"]))
        grid.put("fewest to most", name, _spread(ran["histogram"]))
        grid.put("computed again, %", name, number(100 * ran["repeated"]))
        for head, ms in (("closed", row["closed_ms"]), ("p50", row["latency_ms"]["p50"]), ("open", row["open_ms"])):
            grid.put(f"{head}, ms", name, number(ms))
        grid.put("% of FLOPs", name, number(100 * row["flop_share"]))
    said = (
        "Policies that decide themselves which layers run; router and passes that were computed again are inside every "
        "time and the arithmetic. Closed: the router skips all that it may. Open: it is asked and skips nothing."
    )
    return [figure(grid.table("Layers run"), caption=said)]


def _spread(histogram: dict[str, float]) -> str:
    """The smallest and the largest number of layers that a pass ran."""
    counts = [int(count) for count in histogram]
    return f"{min(counts)} to {max(counts)}"


def _line(material: Material, rows: dict[str, Row], fit: Row | None) -> list[Html]:
    """Time over depth, and the part of it that no cut removes."""
    names = [name for name in (fit or {}).get("residuals", {}) if {"depth", "latency_ms"} <= rows.get(name, {}).keys()]
    if not fit or not names:
        return []
    a, b = fit["a_ms"], fit["b_ms_per_layer"]
    p50 = {name: rows[name]["latency_ms"]["p50"] for name in names}
    marks = [Mark(n, material.look(n), rows[n]["depth"], text=f"{short(p50[n])} ms", y=p50[n]) for n in names]
    deepest = max(mark.x for mark in marks)
    x, y = Scale.over([deepest], zero=True), Scale.over([a, *p50.values()], zero=True)
    told = "; ".join(f"{mark.name} {mark.x:g} layers {mark.text}" for mark in marks)
    alt = f"Median milliseconds over layers, {short(a)} + {short(b)} per layer: {told}"
    lines = [("slope", [(0.0, a), (deepest, a + b * deepest)])]
    most = ""
    if "ceiling" in fit:
        lines.append(("bound", [(0.0, a), (x.high, a)]))
        most = f" The dashed line is what no cut removes: cutting layers alone cannot pass {times(fit['ceiling'])}."
    drawn = scatter(marks, x, y, (tick, tick), ("ms, p50", "layers"), alt, lines, height=220)
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
        s, ms, won = acted[name]["success"], timed[name]["latency_ms"]["p50"], timed[name].get("ratio")
        ends = (base / won["high"], base / won["low"]) if won and base and name != first else (None, None)
        text = f"{percent(s['rate'])} % at {short(ms)} ms"
        marks.append(Mark(name, material.look(name), ms, ends[0], ends[1], text, s["rate"], s["low"], s["high"]))
    wide = max(m.x for m in marks) / min(m.x for m in marks) > 8
    x = Scale.over([v for m in marks for v in (m.x, m.low, m.high) if v is not None], zero=not wide, log=wide)
    y = Scale.over([v for m in marks for v in (m.y_low, m.y_high) if v is not None], least=0.25).clipped(0.0, 1.0)
    alt = "Success against median milliseconds: " + "; ".join(f"{m.name} {m.text}" for m in marks)
    forms, lines = (tick, lambda v: tick(100 * v)), [("front", _staircase(marks))]
    said = (
        f"Up and to the left is better ({material.title(evaluation)}, timed on {machine(bench)}). Vertical bars: 95 % "
        "intervals of success. Horizontal bars: 95 % intervals of the speed ratio, in ms of this machine. The line "
        f"joins the policies that no other one beats in both.{_apart(evaluation, bench, names)}"
    )
    return figure(scatter(marks, x, y, forms, ("success, %", "ms, p50"), alt, lines), caption=said)


def _staircase(marks: list[Mark]) -> list[tuple[float, float]]:
    """Corners of the front: the best success that can be had within so many milliseconds."""
    corners: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y)):
        if not corners or mark.y > corners[-1][1]:
            corners += [(mark.x, corners[-1][1])] if corners else []
            corners.append((mark.x, mark.y))
    return corners


def _apart(evaluation: Row, bench: Row, names: list[str]) -> str:
    """A warning where the evaluated and the timed policies were run differently."""
    acting, timing, rows = evaluation.get("settings", {}), bench.get("settings", {}), by_policy(bench)
    told = []
    for name in names:
        acted = {"runtime": acting.get("runtime"), **acting.get("policies", {}).get(name, {})}
        timed = {**timing, **rows[name]}
        for key in ("runtime", "steps"):
            if acted.get(key) is not None and timed.get(key) is not None and acted[key] != timed[key]:
                told.append(f"{name} acted with {key} {acted[key]} and was timed with {timed[key]}")
    return f" Mind that {'; '.join(told)}." if told else ""


def _who(material: Material, rows: dict[str, Row]) -> dict[str, str]:
    return {name: who(name, material.look(name)) for name in rows}
