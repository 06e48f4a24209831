"""The report's drawings: plain SVG whose places are per cent of the width and whose sizes are pixels.

So a drawing grows and shrinks with the window while its text stays legible, and its colours are the page's own (class
names, resolved in page.css for light and dark). Heights are fixed. Names stand above what they name, never beside it:
any name fits, on any width. Each drawing says in words what it shows (`alt`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lithe.report.labels import ROOMS, spots
from lithe.report.page import Html, hue, join, marker, tag, who
from lithe.report.scales import Scale, tick

Form = Callable[[float], str]
ROW, BAR, CAP = 46, 16, 4
LONGEST = 20  # letters of a name inside a drawing; the whole one is in its tooltip


@dataclass(frozen=True)
class Mark:
    """A policy's value on one axis, or on two."""

    name: str
    look: int
    x: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    y: float = 0.0
    y_low: float | None = None
    y_high: float | None = None


@dataclass(frozen=True)
class Bar:
    """A length in parts, with the bound that it cannot pass below."""

    name: str
    look: int
    parts: Mapping[str, float]
    text: str
    floor: float | None = None


@dataclass(frozen=True)
class Curve:
    """A series over steps, raw and smoothed."""

    name: str
    look: int
    raw: Sequence[tuple[float, float]]
    smooth: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """One of many points without a name. special: drawn as a triangle."""

    x: float
    y: float
    special: bool = False


def at(x: float, y: float, *children: str) -> Html:
    """Children around the point x (0 to 1 of the width), y pixels."""
    return tag("svg", *children, x=pct(x), y=round(y, 1), class_="at")


def pct(x: float) -> str:
    return f"{100 * x:.2f}%"


def forest(marks: Sequence[Mark], x: Scale, form: Form, label: str, alt: str, zero: float | None = None) -> Html:
    """Values with their intervals, one row each; `zero` draws the line of no difference."""
    height = ROW * len(marks)
    drawn = [x_axis(x, height, form, label)]
    if zero is not None and x.low <= zero <= x.high:
        drawn.append(tag("line", x1=pct(x(zero)), x2=pct(x(zero)), y1=0, y2=height, class_="zero"))
    for i, mark in enumerate(marks):
        y = ROW * i + 33
        drawn += [caption(mark.name, mark.text, ROW * i + 16), _whisker(x, mark.low, mark.high, y, mark.look)]
        drawn.append(at(x(mark.x), y, marker(mark.look)))
    return plot(drawn, height + 40, alt)


def bars(rows: Sequence[Bar], x: Scale, form: Form, label: str, alt: str) -> Html:
    """Stacked lengths, one row each; a triangle marks each floor."""
    height, order = (ROW + 8) * len(rows), list(dict.fromkeys(part for row in rows for part in row.parts))
    drawn = [x_axis(x, height, form, label)]
    for i, row in enumerate(rows):
        top, left = (ROW + 8) * i, 0.0
        drawn.append(caption(row.name, row.text, top + 16, row.look))
        for part, length in row.parts.items():
            k, width = order.index(part) % 4, length / x.high
            said = tag("title", f"{row.name}: {part} {form(length)}")
            block = tag("rect", said, x=pct(left), y=top + 24, width=pct(width), height=BAR, class_=f"part{k}")
            word = tag("text", part, x=pct(left + width / 2), y=top + 36, class_=f"inside on{k}")
            drawn += [block, word if width > 0.17 else Html("")]
            left += width
        if row.floor is not None:
            said = tag("title", f"{row.name}: floor {form(row.floor)}")
            point = tag("path", said, d="M0 0L5 8H-5Z", class_="floor")
            drawn.append(at(x(row.floor), top + 25 + BAR, point))
    return plot(drawn, height + 40, alt)


def scatter(
    marks: Sequence[Mark],
    x: Scale,
    y: Scale,
    forms: tuple[Form, Form],
    labels: tuple[str, str],
    alt: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]] = (),
    height: int = 300,
) -> Html:
    """Points with intervals both ways and their names beside them. lines: (class, corner points) drawn underneath."""
    drawn = [y_axis(y, height, forms[1], labels[0]), x_axis(x, height, forms[0], labels[1])]
    for kind, corners in lines:
        for (x1, y1), (x2, y2) in pairwise(corners):
            ends = {"x1": pct(x(x1)), "x2": pct(x(x2)), "y1": height * (1 - y(y1)), "y2": height * (1 - y(y2))}
            drawn.append(tag("line", class_=kind, **ends))
    for mark in marks:
        left, top = x(mark.x), height * (1 - y(mark.y))
        drawn.append(_whisker(x, mark.low, mark.high, top, mark.look))
        if mark.y_low is not None and mark.y_high is not None:
            ends = {"y1": height * (1 - y(mark.y_low)), "y2": height * (1 - y(mark.y_high))}
            drawn.append(tag("line", x1=pct(left), x2=pct(left), class_=f"whisker {hue(mark.look)}", **ends))
    for mark in reversed(marks):  # the first on top
        place = x(mark.x), height * (1 - y(mark.y))
        drawn.append(at(*place, marker(mark.look), tag("title", f"{mark.name}: {mark.text}")))
    names, keys = _names(marks, x, y, height, lines)
    return join(tag("div", plot([*drawn, *names], height + 40, alt), class_="axes"), *keys)


def _names(
    marks: Sequence[Mark], x: Scale, y: Scale, height: int, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> tuple[list[Html], list[Html]]:
    """The names in a scatter, for narrow pages and for wide ones, and lists of those for which there is no room."""
    points = [(x(mark.x), height * (1 - y(mark.y))) for mark in marks]
    corners = [[(x(a), height * (1 - y(b))) for a, b in ends] for _, ends in lines]
    fixed = [pair for ends in corners for pair in pairwise(ends)]
    for mark, (left, top) in zip(marks, points, strict=True):
        if mark.low is not None and mark.high is not None:
            caps = [x(mark.low), x(mark.high)]
            fixed += [((caps[0], top), (caps[1], top)), *(((cap, top - CAP), (cap, top + CAP)) for cap in caps)]
        if mark.y_low is not None and mark.y_high is not None:
            fixed.append(((left, height * (1 - y(mark.y_low))), (left, height * (1 - y(mark.y_high)))))
    turning = {corner for ends in corners for corner in ends}
    order = sorted(range(len(marks)), key=lambda i: points[i] not in turning)  # what a line is about comes first
    shown, names, keys = [shortened(mark.name) for mark in marks], [], []
    for room, widths in ROOMS.items():
        found = spots(points, [len(name) for name in shown], fixed, height, widths, order)
        for i, spot in found.items():
            (x1, y1), (x2, y2) = spot.line
            ends = {"x1": round(x1, 1), "y1": round(y1, 1), "x2": round(x2, 1), "y2": round(y2, 1)}
            leader = tag("line", class_="leader", **ends) if spot.leader else None
            said = tag("text", shown[i], x=spot.dx, y=spot.dy, class_="name" if spot.side > 0 else "end name")
            names.append(at(*points[i], tag("g", *([leader] if leader else []), said, class_=room)))
        left_out = [who(mark.name, mark.look) for i, mark in enumerate(marks) if i not in found]
        keys += [tag("p", "Not named in the drawing: ", *left_out, class_=f"legend {room}")] if left_out else []
    return names, keys


def dots(points: Sequence[Dot], look: int, x: Scale, y: Scale, labels: tuple[str, str], alt: str) -> Html:
    """Many points of one policy; where several are in one place, it is darker."""
    height = 150
    drawn = [y_axis(y, height, tick, labels[0], most=4), x_axis(x, height, tick, labels[1], most=4)]
    for dot in sorted(points, key=lambda dot: dot.special):
        shape = "M0-5L4.5 3.5H-4.5Z" if dot.special else "M0-3.4A3.4 3.4 0 1 1 0 3.4A3.4 3.4 0 1 1 0-3.4Z"
        kind = "again-mark" if dot.special else f"dot {hue(look)}"
        drawn.append(at(x(dot.x), height * (1 - y(dot.y)), tag("path", d=shape, class_=kind)))
    return tag("div", plot(drawn, height + 40, alt), class_="axes")


def curves(series: Sequence[Curve], y: Scale, steps: Scale, title: str, form: Form, alt: str) -> Html:
    """Series over steps on one pair of axes; the raw values stand faintly behind the smoothed ones."""
    height = 190
    paths = []
    for kind, which in (("raw", 0), ("line", 1)):
        for curve in series:
            seen = [(steps(s), y(v)) for s, v in (curve.raw, curve.smooth)[which]]
            path = "L".join(f"{1000 * s:.1f} {1000 * (1 - v):.1f}" for s, v in seen)
            paths.append(tag("path", tag("title", curve.name), d=f"M{path}", class_=f"{kind} {hue(curve.look)}"))
    inner = tag("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", height=height, width="100%")
    drawn = [y_axis(y, height, form, title), x_axis(steps, height, _thousands, "step", most=5), inner]
    for curve in series:
        if curve.smooth:
            s, v = curve.smooth[-1]
            drawn.append(at(steps(s), height * (1 - y(v)), marker(curve.look)))
    return tag("div", plot(drawn, height + 40, alt), class_="axes")


def plot(drawn: Sequence[str], height: float, alt: str) -> Html:
    """A whole drawing, as wide as there is room."""
    return tag("svg", *drawn, class_="plot", role="img", aria_label=alt, width="100%", height=height)


def x_axis(x: Scale, height: float, form: Form, label: str, most: int = 6) -> Html:
    """Grid, ticks and label along the bottom; the outermost ticks stay inside the drawing."""
    drawn = []
    for value in x.ticks(most):
        place = x(value)
        side = "begin" if place < 0.02 else "end" if place > 0.98 else "middle"
        drawn.append(tag("line", x1=pct(place), x2=pct(place), y1=0, y2=height, class_="grid"))
        drawn.append(tag("text", form(value), x=pct(place), y=height + 15, class_=f"tick {side}"))
    drawn.append(tag("text", label, x="100%", y=height + 33, class_="axis end"))
    return join(*drawn)


def y_axis(y: Scale, height: float, form: Form, label: str, most: int = 5) -> Html:
    """Grid, ticks and, above them, the label along the left side."""
    drawn = [tag("text", label, x=0, dx=-44, y=-12, class_="axis")]
    for value in y.ticks(most):
        place = round(height * (1 - y(value)), 1)
        drawn.append(tag("line", x1=0, x2="100%", y1=place, y2=place, class_="grid"))
        drawn.append(tag("text", form(value), x=0, dx=-7, y=place + 4, class_="tick end"))
    return join(*drawn)


def _whisker(x: Scale, low: float | None, high: float | None, y: float, look: int) -> Html:
    """An interval along the bottom axis, with caps; nothing where it is not known."""
    if low is None or high is None:
        return Html("")
    ends = (pct(x(low)), pct(x(high)))
    kind = f"whisker {hue(look)}"
    caps = [tag("line", x1=end, x2=end, y1=round(y - CAP, 1), y2=round(y + CAP, 1), class_=kind) for end in ends]
    return join(tag("line", x1=ends[0], x2=ends[1], y1=round(y, 1), y2=round(y, 1), class_=kind), *caps)


def caption(name: str, text: str, y: float, look: int | None = None) -> Html:
    """The line above a row: who on the left, the number on the right."""
    key = Html("") if look is None else at(0, y - 4.5, tag("g", marker(look), transform="translate(6)"))
    said = tag("text", shortened(name), tag("title", name), x=0, dx=None if look is None else 18, y=y, class_="name")
    return join(key, said, tag("text", text, x="100%", y=y, class_="value end"))


def shortened(name: str) -> str:
    """A name as it stands in a drawing: its beginning and its end."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}…{name[-8:]}"


def _thousands(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
