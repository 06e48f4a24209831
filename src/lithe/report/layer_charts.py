"""The report's drawings over the layers of a policy: what was cut, how alike, how often run, how important.

Plain SVG by the rules of figures.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lithe.report.figures import ROW, Form, caption, pct, plot, x_axis, y_axis
from lithe.report.page import Html, hue, join, tag
from lithe.report.scales import Scale, tick

# A ramp that is ordered by lightness as well as by hue (viridis), so that it survives grey print and colour blindness.
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def cut_map(rows: Sequence[tuple[str, int, Sequence[int]]], depth: int, alt: str) -> Html:
    """Which of the first policy's `depth` layers are left, one row of squares each: (name, look, layers)."""
    wide, drawn = 1 / depth, []
    for i, (name, look, kept) in enumerate(rows):
        top = ROW * i
        drawn.append(caption(name, f"{len(kept)} of {depth} layers", top + 16, look))
        for layer in range(depth):
            left = layer in kept
            said = tag("title", f"{name}: layer {layer} {'kept' if left else 'removed'}")
            place = {"x": pct((layer + 0.08) * wide), "y": top + 23, "width": pct(0.84 * wide), "height": 14}
            drawn.append(tag("rect", said, rx=2, class_=f"kept {hue(look)}" if left else "gone", **place))
    foot, every = ROW * len(rows) + 10, -(-depth // 18)
    for layer in range(0, depth, every):
        drawn.append(tag("text", str(layer), x=pct((layer + 0.5) * wide), y=foot, class_="tick middle"))
    drawn.append(tag("text", "layer of the uncut policy", x="100%", y=foot + 17, class_="axis end"))
    return plot(drawn, foot + 22, alt)


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
    return tag("div", plot(drawn, foot + 24, alt), class_="cells")


def lengths(values: Sequence[float], rows: Sequence[str], x: Scale, label: str, alt: str) -> Html:
    """One thin bar a row, as high as the rows of `heat`, so that both can stand side by side."""
    side, drawn = 20, []
    height = side * len(rows)
    drawn.append(x_axis(x, height, tick, label, most=4))
    for i, (value, name) in enumerate(zip(values, rows, strict=True)):
        ends = sorted((x(0.0), x(value)))
        said = tag("title", f"layer {name}: {value:.4g}")
        drawn.append(tag("text", name, x=0, dx=-6, y=side * i + 14, class_="tick end"))
        place = {"x": pct(ends[0]), "y": side * i + 4, "width": pct(ends[1] - ends[0]), "height": side - 8}
        drawn.append(tag("rect", said, class_="length", **place))
    return tag("div", plot(drawn, height + 40, alt), class_="cells")


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
    return tag("div", plot([tag("text", label, x=0, y=12, class_="axis"), *blocks, *ends], 46, alt), class_="key-bar")


def shares(rows: Sequence[tuple[str, str, Sequence[float]]], alt: str) -> Html:
    """Rows of cells, one a layer, coloured by a share from 0 to 1: (name, what is said on the right, shares)."""
    high, side, drawn = 36, 12, []
    depth = len(rows[0][2])
    for i, (name, text, values) in enumerate(rows):
        drawn.append(caption(name, text, high * i + 13))
        for layer, value in enumerate(values):
            said = tag("title", f"{name}: layer {layer} ran in {100 * value:.3g} % of passes")
            place = {"x": pct(layer / depth), "y": high * i + 19, "width": pct(1 / depth), "height": side}
            drawn.append(tag("rect", said, fill=ramp(value), class_="cell", **place))
    foot = high * len(rows) + 9
    return plot(
        [*drawn, _layers(depth, foot), tag("text", "layer", x="100%", y=foot + 16, class_="axis end")], foot + 20, alt
    )


def columns(
    values: Sequence[float],
    form: Form,
    label: str,
    alt: str,
    look: int | None = None,
    chosen: Collection[int] | None = None,
    line: Sequence[float] | None = None,
    height: int = 84,
) -> Html:
    """A bar for each of 0 to L-1, those not `chosen` pale; over them a line that has a scale of its own, from 0."""
    y, count = Scale.over(values, zero=True), len(values)
    kind = "length" if look is None else f"kept {hue(look)}"
    drawn = [y_axis(y, height, form, "", most=3)]
    for i, value in enumerate(values):
        ends = sorted((y(0.0), y(value)))
        place: dict[str, str | float] = {"x": pct((i + 0.12) / count), "width": pct(0.76 / count)}
        place |= {"y": round(height * (1 - ends[1]), 1), "height": round(height * (ends[1] - ends[0]), 1)}
        pale = chosen is not None and i not in chosen
        drawn.append(tag("rect", tag("title", f"{i}: {form(value)}"), class_="unchosen" if pale else kind, **place))
    if line and max(line) > 0:
        corners = "L".join(
            f"{1000 * (i + 0.5) / count:.1f} {1000 * (1 - v / max(line)):.1f}" for i, v in enumerate(line)
        )
        path = tag("path", d=f"M{corners}", class_="over")
        drawn.append(tag("svg", path, viewBox="0 0 1000 1000", preserveAspectRatio="none", height=height, width="100%"))
    foot = [_layers(count, height + 14), tag("text", label, x="100%", y=height + 30, class_="axis end")]
    return tag("div", plot([*drawn, *foot], height + 34, alt), class_="columns")


def _layers(count: int, y: float, most: int = 10) -> Html:
    """Numbers under as many equal parts of the width, as many of them as there is room for."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count <= step * most or step == 100)
    shown = [tag("text", str(i), x=pct((i + 0.5) / count), y=y, class_="tick middle") for i in range(0, count, every)]
    return join(*shown)
