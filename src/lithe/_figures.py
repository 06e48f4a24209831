"""The report's drawings: plain SVG whose places are per cent of the width and whose sizes are pixels.

So a drawing grows and shrinks with the window while its text stays legible, and its colours are the page's own (class
names, resolved in report.css for light and dark). Heights are fixed. Names stand above what they name, never beside it:
any name fits, on any width. Each drawing says in words what it shows (`alt`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lithe._page import Html, hue, join, marker, tag
from lithe._scales import Scale, tick

Form = Callable[[float], str]
ROW, BAR = 46, 16
LONGEST = 20  # letters of a name inside a drawing; the whole one is in its tooltip
# A ramp that is ordered by lightness as well as by hue (viridis), so that it survives grey print and colour blindness.
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


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


def at(x: float, y: float, *children: str) -> Html:
    """Children around the point x (0 to 1 of the width), y pixels."""
    return tag("svg", *children, x=pct(x), y=round(y, 1), class_="at")


def pct(x: float) -> str:
    return f"{100 * x:.2f}%"


def forest(marks: Sequence[Mark], x: Scale, form: Form, label: str, alt: str, zero: float | None = None) -> Html:
    """Values with their intervals, one row each; `zero` draws the line of no difference."""
    height = ROW * len(marks)
    drawn = [_x_axis(x, height, form, label)]
    if zero is not None and x.low <= zero <= x.high:
        drawn.append(tag("line", x1=pct(x(zero)), x2=pct(x(zero)), y1=0, y2=height, class_="zero"))
    for i, mark in enumerate(marks):
        y = ROW * i + 33
        drawn += [_caption(mark.name, mark.text, ROW * i + 16), _whisker(x, mark.low, mark.high, y, mark.look)]
        drawn.append(at(x(mark.x), y, marker(mark.look)))
    return _plot(drawn, height + 40, alt)


def bars(rows: Sequence[Bar], x: Scale, form: Form, label: str, alt: str) -> Html:
    """Stacked lengths, one row each; a triangle marks each floor."""
    height, order = (ROW + 8) * len(rows), list(dict.fromkeys(part for row in rows for part in row.parts))
    drawn = [_x_axis(x, height, form, label)]
    for i, row in enumerate(rows):
        top, left = (ROW + 8) * i, 0.0
        drawn.append(_caption(row.name, row.text, top + 16, row.look))
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
    return _plot(drawn, height + 40, alt)


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
    drawn = [_y_axis(y, height, forms[1], labels[0]), _x_axis(x, height, forms[0], labels[1])]
    for kind, corners in lines:
        for (x1, y1), (x2, y2) in pairwise(corners):
            ends = {"x1": pct(x(x1)), "x2": pct(x(x2)), "y1": height * (1 - y(y1)), "y2": height * (1 - y(y2))}
            drawn.append(tag("line", class_=kind, **ends))
    taken: list[tuple[float, float, float]] = []
    for mark in marks:
        left, top = x(mark.x), height * (1 - y(mark.y))
        drawn.append(_whisker(x, mark.low, mark.high, top, mark.look))
        if mark.y_low is not None and mark.y_high is not None:
            ends = {"y1": height * (1 - y(mark.y_low)), "y2": height * (1 - y(mark.y_high))}
            drawn.append(tag("line", x1=pct(left), x2=pct(left), class_=f"whisker {hue(mark.look)}", **ends))
        wide = len(_cut(mark.name)) / 40  # a letter is 7.5 pixels, the narrowest drawing 300
        before = left + wide > 1
        spot = _free(taken, left - wide if before else left, wide, top, before)
        name = tag("text", _cut(mark.name), x=-10 if before else 10, class_="end name" if before else "name")
        drawn += [at(left, top, marker(mark.look), tag("title", f"{mark.name}: {mark.text}")), at(left, spot, name)]
    return tag("div", _plot(drawn, height + 40, alt), class_="axes")


def heat(
    grid: Sequence[Sequence[float]], rows: Sequence[str], heads: Sequence[str], x: Scale, label: str, alt: str
) -> Html:
    """Cells coloured by value over the range `x`, rows from top to bottom."""
    side, wide, every = 20, 1 / len(heads), -(-len(heads) // 12)
    drawn = []
    for i, (row, name) in enumerate(zip(grid, rows, strict=True)):
        drawn.append(tag("text", name, x=0, dx=-6, y=side * i + 14, class_="tick end"))
        for k, value in enumerate(row):
            said = tag("title", f"layer {name}, {heads[k]}: {value:.4f}")
            place = {"x": pct(k * wide), "y": side * i, "width": pct(wide), "height": side}
            drawn.append(tag("rect", said, fill=ramp(x(value)), class_="cell", **place))
    foot = side * len(rows) + 15
    for k in range(0, len(heads), every):
        drawn.append(tag("text", heads[k], x=pct((k + 0.5) * wide), y=foot, class_="tick middle"))
    drawn.append(tag("text", label, x="100%", y=foot + 18, class_="axis end"))
    return tag("div", _plot(drawn, foot + 24, alt), class_="cells")


def lengths(values: Sequence[float], rows: Sequence[str], x: Scale, label: str, alt: str) -> Html:
    """One thin bar a row, as high as the rows of `heat`, so that both can stand side by side."""
    side, drawn = 20, []
    height = side * len(rows)
    drawn.append(_x_axis(x, height, tick, label, most=4))
    for i, (value, name) in enumerate(zip(values, rows, strict=True)):
        ends = sorted((x(0.0), x(value)))
        said = tag("title", f"layer {name}: {value:.4g}")
        drawn.append(tag("text", name, x=0, dx=-6, y=side * i + 14, class_="tick end"))
        place = {"x": pct(ends[0]), "y": side * i + 4, "width": pct(ends[1] - ends[0]), "height": side - 8}
        drawn.append(tag("rect", said, class_="length", **place))
    return tag("div", _plot(drawn, height + 40, alt), class_="cells")


def ramp(share: float) -> str:
    """The colour of a value, from 0 to 1 of its range."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(RAMP[i], RAMP[i + 1]))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ramp_key(x: Scale, form: Form, label: str) -> Html:
    """What the colours of `heat` mean."""
    blocks = [
        tag("rect", x=pct(i / 40), y=18, width=pct(1 / 40), height=10, fill=ramp((i + 0.5) / 40), class_="cell")
        for i in range(40)
    ]
    ends = [
        tag("text", form(value), x=pct(x(value)), y=42, class_=f"tick {kind}")
        for value, kind in ((x.low, "begin"), (x.high, "end"))
    ]
    alt = f"Colour key: {label}, from {form(x.low)} (dark) to {form(x.high)} (bright)"
    return tag("div", _plot([tag("text", label, x=0, y=12, class_="axis"), *blocks, *ends], 46, alt), class_="key-bar")


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
    drawn = [_y_axis(y, height, form, title), _x_axis(steps, height, _thousands, "step", most=5), inner]
    for curve in series:
        if curve.smooth:
            s, v = curve.smooth[-1]
            drawn.append(at(steps(s), height * (1 - y(v)), marker(curve.look)))
    return tag("div", _plot(drawn, height + 40, alt), class_="axes")


def cut_map(rows: Sequence[tuple[str, int, Sequence[int]]], depth: int, alt: str) -> Html:
    """Which of the first policy's `depth` layers are left, one row of squares each: (name, look, layers)."""
    wide, drawn = 1 / depth, []
    for i, (name, look, kept) in enumerate(rows):
        top = ROW * i
        drawn.append(_caption(name, f"{len(kept)} of {depth} layers", top + 16, look))
        for layer in range(depth):
            left = layer in kept
            said = tag("title", f"{name}: layer {layer} {'kept' if left else 'removed'}")
            place = {"x": pct((layer + 0.08) * wide), "y": top + 23, "width": pct(0.84 * wide), "height": 14}
            drawn.append(tag("rect", said, rx=2, class_=f"kept {hue(look)}" if left else "gone", **place))
    foot, every = ROW * len(rows) + 10, -(-depth // 18)
    for layer in range(0, depth, every):
        drawn.append(tag("text", str(layer), x=pct((layer + 0.5) * wide), y=foot, class_="tick middle"))
    drawn.append(tag("text", "layer of the uncut policy", x="100%", y=foot + 17, class_="axis end"))
    return _plot(drawn, foot + 22, alt)


def _plot(drawn: Sequence[str], height: float, alt: str) -> Html:
    return tag("svg", *drawn, class_="plot", role="img", aria_label=alt, width="100%", height=height)


def _x_axis(x: Scale, height: float, form: Form, label: str, most: int = 6) -> Html:
    """Grid, ticks and label along the bottom; the outermost ticks stay inside the drawing."""
    drawn = []
    for value in x.ticks(most):
        place = x(value)
        side = "begin" if place < 0.02 else "end" if place > 0.98 else "middle"
        drawn.append(tag("line", x1=pct(place), x2=pct(place), y1=0, y2=height, class_="grid"))
        drawn.append(tag("text", form(value), x=pct(place), y=height + 15, class_=f"tick {side}"))
    drawn.append(tag("text", label, x="100%", y=height + 33, class_="axis end"))
    return join(*drawn)


def _y_axis(y: Scale, height: float, form: Form, label: str) -> Html:
    drawn = [tag("text", label, x=0, dx=-44, y=-12, class_="axis")]
    for value in y.ticks(5):
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
    caps = [tag("line", x1=end, x2=end, y1=round(y - 4, 1), y2=round(y + 4, 1), class_=kind) for end in ends]
    return join(tag("line", x1=ends[0], x2=ends[1], y1=round(y, 1), y2=round(y, 1), class_=kind), *caps)


def _caption(name: str, text: str, y: float, look: int | None = None) -> Html:
    """The line above a row: who on the left, the number on the right."""
    key = Html("") if look is None else at(0, y - 4.5, tag("g", marker(look), transform="translate(6)"))
    said = tag("text", _cut(name), tag("title", name), x=0, dx=None if look is None else 18, y=y, class_="name")
    return join(key, said, tag("text", text, x="100%", y=y, class_="value end"))


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}…{name[-8:]}"


def _free(taken: list[tuple[float, float, float]], left: float, wide: float, y: float, above: bool) -> float:
    """The height for a name of this width: just above or below its point, or as near as the names before it allow."""
    near = (y - 10, y - 25, y + 19) if above else (y + 19, y + 34, y - 10)
    spots = [*near, *(y + 34 + 15 * i for i in range(40))]
    spot = next(s for s in spots if not any(abs(s - t) < 15 and left < b and a < left + wide for a, b, t in taken))
    taken.append((left, left + wide, spot))
    return spot


def _thousands(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
