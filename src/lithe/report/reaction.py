"""The report's section on real time: success and reaction against latency, a line a policy.

Of evaluations in which the simulator went on while the policy thought (`lithe eval --realtime`), or in which something
moved. A policy has its colour; the rows teacher@0ms, teacher@50ms are points of one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from lithe.report.cells import Grid, difference, median, number, rate
from lithe.report.figures import CAP, Form, at, pct, plot, x_axis, y_axis
from lithe.report.material import Material, base, by_policy
from lithe.report.page import Html, figure, hue, join, marker, tag, who
from lithe.report.scales import Scale, brackets, count, percent, short, tick

Row = Mapping[str, Any]
HEIGHT, APART = 220, 7  # of a drawing; pixels between two policies at one latency
MARGIN = 0.06  # of the axis, before the least latency and behind the most
STANDS = {
    "sync": "the robot stands still while the policy thinks",
    "async": "the robot executes the rest of its old actions while the policy thinks",
    "rtc": "the robot executes the rest of its old actions meanwhile, and the new ones go on where those lead",
}


@dataclass(frozen=True)
class Point:
    """One policy at one latency."""

    x: float
    y: float
    low: float | None
    high: float | None  # with a low and no high the interval is open
    joined: bool = True  # with the point before it; False where nothing is known in between


def reaction(material: Material) -> list[Html]:
    """For every evaluation in real time its curves and the figures behind them."""
    parts: list[Html] = []
    documents = [d for d in material.evaluations() if any(row.keys() & {"realtime", "reaction"} for row in d["rows"])]
    for document in documents:
        settings, rows = document.get("settings", {}), list(by_policy(document).values())
        if len(documents) > 1:
            parts.append(tag("h3", material.title(document)))
        parts.append(tag("p", _played(document)))
        lines = _lines(rows, _rate), _lines(rows, _seconds)
        drawn = [*_success(material, lines[0]), *_reactions(material, lines[1])]
        if drawn:
            key = tag("p", *(who(name, material.look(name)) for name in lines[0]), class_="legend")
            parts += [key, tag("div", *drawn, class_="side")]
        parts.append(_figures(material, rows, settings))
        if any("reaction" in row for row in rows):
            parts.append(tag("p", f"Reaction: {settings.get('reaction', '')}. {MISSED}", class_="under"))
    return parts


MISSED = (
    "Missed: something moved, and until the end of the episode, or of the one in which nothing moved, the actions did "
    "not differ by so much. A missed reaction counts as later than all that were seen: where most are missed, the "
    "median is not reached, and an interval can be open."
)


def lead(material: Material) -> list[Html]:
    """The first words where every evaluation is in real time: each policy at its least and at its most latency."""
    said = []
    for document in material.realtime():
        told = []
        for name, points in _lines(list(by_policy(document).values()), _rate).items():
            rates = [_solved(point) for point in dict.fromkeys((points[0], points[-1]))]
            told.append(join(tag("strong", name), f" solves {' and '.join(rates)}"))
        said.append(tag("p", f"{material.title(document)}: ", join(*told, by="; "), ".", class_="verdict"))
    return said


def _solved(point: Point) -> str:
    bounds = [percent(end) for end in (point.low, point.high) if end is not None]
    return f"{percent(point.y)}\u00a0% {brackets(*bounds)} at {tick(point.x)}\u00a0ms"


def _played(document: Row) -> str:
    settings = document.get("settings", {})
    n, tasks, execution = settings.get("episodes", "?"), settings.get("tasks", []), settings.get("execution")
    said = [f"{n} episodes of {'each of ' if len(tasks) > 1 else ''}{count(len(tasks), 'task')}."]
    if execution:
        said.append(
            f"Execution {execution}: {STANDS[execution]}. One control step is {short(1e3 / settings['fps'])} ms."
        )
    else:
        said.append("The simulator waits for the policy.")
    moving = settings.get("sim_options", {}).get("moving")
    if moving:
        said.append(f"In every episode what the policy has to reach moves to another place, by a {moving}.")
    sources = settings.get("latency_from", [])
    for source in sources:
        busy = " on a busy machine" if source.get("quiet") is False else ""
        whose = f" ({', '.join(source['policies'])})" if len(sources) > 1 and "policies" in source else ""
        how = ", ".join([str(source["machine"]), *(source[key] for key in ("runtime", "dtype") if key in source)])
        said.append(f"Latencies of {source['file']}{whose}: end to end, p50, measured{busy} on {how}.")
    return " ".join(said)


def _lines(rows: Sequence[Row], take: Any) -> dict[str, list[Point]]:
    """Points by policy, in the order of their latencies; across one without a value, points are not joined."""
    late = [row for row in rows if "realtime" in row]
    found: dict[str, list[Point]] = {base(row): [] for row in late}
    gaps = set()
    for row in sorted(late, key=lambda row: row["realtime"]["latency_ms"]):
        name, value = base(row), take(row)
        if value is None:
            gaps.add(name)
        else:
            y, low, high = value
            found[name].append(Point(row["realtime"]["latency_ms"], y, low, high, joined=name not in gaps))
            gaps.discard(name)
    return {name: points for name, points in found.items() if points}


def _rate(row: Row) -> tuple[float, float, float] | None:
    found = row.get("success")
    return (found["rate"], found["low"], found["high"]) if found else None


def _seconds(row: Row) -> tuple[float, float | None, float | None] | None:
    """In milliseconds; None also where the median lies among reactions that were missed."""
    found = row.get("reaction", {}).get("seconds", {})
    if "median" not in found:
        return None
    ends = [1e3 * found[end] if end in found else None for end in ("low", "high")]
    return 1e3 * found["median"], ends[0], ends[1]


def _success(material: Material, lines: Mapping[str, list[Point]]) -> list[Html]:
    if not lines:
        return []
    found = [v for points in lines.values() for p in points for v in (p.low, p.high) if v is not None]
    y = Scale.over(found, least=0.25).clipped(0.0, 1.0)
    said = (
        "Success against latency, with 95 % Wilson intervals. Further to the right the policy acts on older pictures."
    )
    told = _told(lines, lambda point: f"{percent(point.y)} % at {tick(point.x)} ms")
    drawn = _curves(material, lines, y, lambda v: tick(100 * v), "success, %", f"Success against latency: {told}")
    return [figure(drawn, caption=said, wide=False)]


def _reactions(material: Material, lines: Mapping[str, list[Point]]) -> list[Html]:
    if not lines:
        return []
    found = [v for points in lines.values() for p in points for v in (p.y, p.high, p.x) if v is not None]
    said = (
        "Median time from the disturbance to the first executed action that answers it, with 95 % intervals. Nobody "
        "can be faster than the dashed line: the latency itself. What is above it passes until the policy looks again, "
        "by rounding up to whole control steps and, in rtc, because new actions are held to old ones. Until its first "
        "chunk is there a robot stands still: the later that is, the less it has moved when something does."
    )
    told = _told(lines, lambda point: f"{short(point.y)} ms at {tick(point.x)} ms")
    y, alt = Scale.over(found, zero=True), f"Reaction against latency: {told}"
    return [figure(_curves(material, lines, y, tick, "reaction, ms", alt, bound=True), caption=said, wide=False)]


def _told(lines: Mapping[str, list[Point]], form: Any) -> str:
    return "; ".join(f"{name} {', '.join(form(point) for point in points)}" for name, points in lines.items())


def _curves(
    material: Material,
    lines: Mapping[str, list[Point]],
    y: Scale,
    form: Form,
    label: str,
    alt: str,
    bound: bool = False,
) -> Html:
    """A line a policy over latency; at one latency policies stand side by side."""
    most = max(point.x for points in lines.values() for point in points) or 1.0
    x = Scale(-MARGIN * most, (1 + MARGIN) * most)
    drawn = [y_axis(y, HEIGHT, form, label), x_axis(x, HEIGHT, tick, "latency, ms", most=5)]
    if bound:
        end = min(most, y.high)
        drawn.append(_line((x(0), y(0)), (x(end), y(end)), "bound"))
    for i, (name, points) in enumerate(lines.items()):
        look, aside = material.look(name), APART * (i - (len(lines) - 1) / 2)
        pairs = [(a, b) for a, b in pairwise(points) if b.joined]
        own = [_line((x(a.x), y(a.y)), (x(b.x), y(b.y)), f"line {hue(look)}") for a, b in pairs]
        own += [_whisker(x(p.x), y, p, look) for p in points]
        own += [at(x(p.x), HEIGHT * (1 - y(p.y)), marker(look), tag("title", name)) for p in points]
        drawn.append(tag("g", *own, transform=f"translate({aside:g})"))
    return tag("div", plot(drawn, HEIGHT + 40, alt), class_="axes")


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Html:
    (x1, y1), (x2, y2) = ((pct(a), round(HEIGHT * (1 - b), 1)) for a, b in (start, end))
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def _whisker(place: float, y: Scale, point: Point, look: int) -> Html:
    """An interval along the left axis, with caps; an open one goes on to the top."""
    if point.low is None:
        return Html("")
    ends = [end for end in (point.high, point.low) if end is not None]
    kind, places = f"whisker {hue(look)}", [round(HEIGHT * (1 - y(end)), 1) for end in ends]
    caps = [tag("line", x1=-CAP, x2=CAP, y1=v, y2=v, class_=kind) for v in places]
    top, end = places if len(places) > 1 else (0, places[0])
    return at(place, 0, tag("line", x1=0, x2=0, y1=top, y2=end, class_=kind), *caps)


def _reached(found: Row | None, form: Form) -> str | None:
    """A median that can lie among what was missed; so can the upper end of its interval."""
    if found and "median" not in found:
        return "not reached"
    opened = {"high": inf, **found} if found and "low" in found else found
    return median(opened, lambda value: "∞" if value == inf else form(value))


def _figures(material: Material, rows: Sequence[Row], settings: Row) -> Html:
    """What the curves are made of."""
    grid = Grid({row["policy"]: who(row["policy"], material.look(base(row))) for row in rows})
    for row in rows:
        name, late, moved = row["policy"], row.get("realtime", {}), row.get("reaction", {})
        grid.put("late by, steps", name, number(late.get("delay")))
        if late and settings.get("latency_from"):  # students that lie close to a step differ by chance
            spare_ms = 1e3 * late["delay"] / settings["fps"] - late["latency_ms"]
            grid.put("to the next step, ms", name, number(round(spare_ms, 2)))
        grid.put("stood still, %", name, number(100 * row["held"]) if "held" in row else None)
        grid.put("success, %", name, rate(row.get("success")))
        grid.put("difference, points", name, difference(row.get("paired")))
        grid.put("reaction, steps", name, _reached(moved.get("steps"), tick))
        grid.put("reaction, ms", name, _reached(moved.get("seconds"), lambda seconds: short(1e3 * seconds)))
        grid.put("moved", name, number(moved.get("moved")))
        grid.put("missed", name, number(moved.get("missed")))
    return grid.table("Success and reaction at every latency")
