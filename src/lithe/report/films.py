"""The report's film strips: the same task and seed for every policy, and under the pictures which layers ran when.

The drawing under a strip shares its time axis: a chunk stands below the pictures between which it was executed. It is
there for policies that decide themselves which layers run, and shows what ran (trail.py).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import groupby

import numpy as np

from lithe.report.figures import at, pct, plot
from lithe.report.material import Material
from lithe.report.page import Html, hue, tag, who
from lithe.report.scales import Scale, count, short, tick
from lithe.report.strips import Strip
from lithe.report.trail import Chunk, Trail

COLUMNS = 6  # pictures in a row
HIGH = 40  # pixels of a band
ILLUSTRATION = (
    "One episode a task, from the same initial state for every policy; the numbers are steps. Pictures illustrate: "
    "whether a policy is good is told by the intervals, not by one episode."
)
BELOW = (
    "Below the pictures of a policy that decides itself which layers run, for every chunk of actions: how many layers "
    "ran, and which. A triangle marks a chunk that was doubted and computed again by every layer; what only that "
    "second pass ran is pale."
)
SMOOTH = " C is how smoothly the robot moved up to the end of a chunk: 0 is perfectly smooth, less is rougher."
Span = tuple[int, int]  # steps between which a chunk was executed


def films(material: Material) -> list[Html]:
    """The same task and seed for every policy, one above the other."""
    scenes: dict[tuple[str, int], list[Strip]] = {}
    for strip in material.strips:
        scenes.setdefault((strip.task, strip.seed), []).append(strip)
    parts = []
    for (task, seed), shown in scenes.items():
        head, rows = f"{task}, seed {seed}", [part for strip in shown for part in _film(strip, material)]
        if any(strip.trail for strip in shown):
            box = tag("div", *rows, class_="scroll", role="region", aria_label=f"Film strips of {head}", tabindex="0")
            parts.append(tag("div", tag("h3", head), box, class_="film timed"))
        else:
            parts.append(tag("div", tag("h3", head), *rows, class_="film"))
    if not parts:
        return []
    chunks = [chunk for strip in material.strips if strip.trail for chunk in strip.trail.chunks]
    smooth = SMOOTH if any(chunk.continuity is not None for chunk in chunks) else ""
    return [tag("p", ILLUSTRATION), *([tag("p", BELOW + smooth)] if chunks else []), *parts]


def _film(strip: Strip, material: Material) -> list[Html]:
    outcome = f"solved after {strip.steps} steps" if strip.success else f"not solved within {strip.steps} steps"
    look, frames = material.look(strip.policy), []
    for step, name in strip.frames:
        data = base64.b64encode(strip.png(name)).decode()
        alt = f"{strip.policy} on {strip.task}, seed {strip.seed}, after {step} steps"
        picture = tag("img", src=f"data:image/png;base64,{data}", alt=alt)
        frames.append(tag("span", picture, tag("span", str(step), class_="step"), class_="frame"))
    frames += [tag("span", class_="frame")] * (COLUMNS - len(frames))
    parts = [
        tag("p", who(strip.policy, look), " ", tag("span", outcome, class_="outcome")),
        tag("div", *frames, class_="strip"),
    ]
    return parts + ([_timeline(strip, strip.trail, look)] if strip.trail and strip.trail.chunks else [])


def _timeline(strip: Strip, trail: Trail, look: int) -> Html:
    """Three bands over one time axis: how many layers, which of them, and C where it is known."""
    shown = [step for step, _ in strip.frames]
    middles = [(i + 0.5) / max(COLUMNS, len(shown)) for i in range(len(shown))]

    def x(step: float) -> float:
        return float(np.interp(step, shown, middles))

    ends = [chunk.step for chunk in trail.chunks[1:]] + [strip.steps]
    spans = [(chunk.step, end) for chunk, end in zip(trail.chunks, ends, strict=True)]
    side = max(3, min(8, 84 // trail.depth))
    levels = [chunk.continuity for chunk in trail.chunks if chunk.continuity is not None]
    which = HIGH + 52
    foot = which + side * trail.depth
    drawn = [tag("line", x1=pct(place), x2=pct(place), y1=0, y2=foot, class_="grid") for place in middles]
    drawn += _how_many(trail, spans, x, look, 26) + _which(trail, spans, x, look, which, side)
    if levels:
        drawn += _smoothness(trail, spans, x, look, foot + 24)
        foot += 24 + HIGH
    drawn += [_tooltip(chunk, trail.depth, span, x, foot) for chunk, span in zip(trail.chunks, spans, strict=True)]
    smooth = f"; continuity from {short(min(levels))} to {short(max(levels))}" if levels else ""
    alt = (
        f"Layers that ran in {strip.policy} on {strip.task}, seed {strip.seed}, chunk by chunk: {_told(trail)}{smooth}"
    )
    return tag("div", plot(drawn, foot + 10, alt), class_="timeline")


def _how_many(trail: Trail, spans: list[Span], x: Callable[[float], float], look: int, top: int) -> list[Html]:
    """A column a chunk; behind it, pale and whole, the second pass of one that was repeated."""
    drawn = [
        _title(f"layers run: {_told(trail)}", x(0), top - 11),
        *_ends(str(trail.depth), "0", x(0), top, top + HIGH),
    ]
    for chunk, (first, last) in zip(trail.chunks, spans, strict=True):
        high = HIGH * len(chunk.ran) / trail.depth
        if chunk.repeated:
            drawn.append(_block(x(first), x(last), top, HIGH, f"again {hue(look)}"))
            point = tag("path", d="M-4 -6H4L0 0Z", class_="floor")
            drawn.append(at((x(first) + x(last)) / 2, top, point))
        drawn.append(_block(x(first), x(last), top + HIGH - high, high, f"kept {hue(look)}"))
    return drawn


def _which(trail: Trail, spans: list[Span], x: Callable[[float], float], look: int, top: int, side: int) -> list[Html]:
    """A row a layer, the first on top; neighbours in which it did the same are one block."""
    drawn = [
        _title("which layers", x(0), top - 7),
        *_ends("0", str(trail.depth - 1), x(0), top, top + side * trail.depth),
    ]
    for layer in range(trail.depth):
        did = ["kept" if layer in c.ran else "again" if c.repeated else "gone" for c in trail.chunks]
        for kind, group in groupby(zip(did, spans, strict=True), key=lambda pair: pair[0]):
            held = [span for _, span in group]
            colour = kind if kind == "gone" else f"{kind} {hue(look)}"
            drawn.append(_block(x(held[0][0]), x(held[-1][1]), top + side * layer, side - 1, colour))
    return drawn


def _smoothness(trail: Trail, spans: list[Span], x: Callable[[float], float], look: int, top: int) -> list[Html]:
    """C as steps: each level holds from a chunk's first action to its last."""
    known = [(c.continuity, span) for c, span in zip(trail.chunks, spans, strict=True) if c.continuity is not None]
    y = Scale.over([level for level, _ in known] + [0.0])
    corners = [f"{10000 * x(s):.0f} {1000 * (1 - y(level)):.0f}" for level, span in known for s in span]
    path = tag("path", d=f"M{'L'.join(corners)}", class_=f"line {hue(look)}")
    box = {"viewBox": "0 0 10000 1000", "preserveAspectRatio": "none", "width": "100%"}
    line = tag("svg", path, y=top, height=HIGH, **box)
    ground = tag("line", x1=pct(x(0)), x2=pct(x(spans[-1][1])), y1=top, y2=top, class_="grid")
    return [
        _title("smoothness C", x(0), top - 7),
        *_ends(tick(y.high), tick(y.low), x(0), top, top + HIGH),
        ground,
        line,
    ]


def _tooltip(chunk: Chunk, depth: int, span: Span, x: Callable[[float], float], foot: int) -> Html:
    """What happened in a chunk, in words, over the whole height."""
    said = f"steps {span[0] + 1} to {span[1]}: {count(len(chunk.ran), 'layer')} of {depth} ran"
    said += f" ({', '.join(map(str, chunk.ran))})" if 0 < len(chunk.ran) < depth else ""
    said += "; computed again by every layer" if chunk.repeated else ""
    said += f"; C {short(chunk.continuity)}" if chunk.continuity is not None else ""
    place = {"x": pct(x(span[0])), "width": pct(x(span[1]) - x(span[0])), "y": 0, "height": foot}
    return tag("rect", tag("title", said), class_="unseen", **place)


def _told(trail: Trail) -> str:
    ran, again = [len(chunk.ran) for chunk in trail.chunks], sum(chunk.repeated for chunk in trail.chunks)
    told = f"mean {sum(ran) / len(ran):.1f} of {trail.depth}, from {min(ran)} to {max(ran)}"
    told = told if len(set(ran)) > 1 else f"{ran[0]} of {trail.depth} in every chunk"
    return told + (f"; {again} of {count(len(ran), 'chunk')} computed again by every layer" if again else "")


def _title(text: str, x: float, y: float) -> Html:
    return tag("text", text, x=pct(x), y=y, class_="axis over-lines")


def _ends(high: str, low: str, x: float, top: float, foot: float) -> list[Html]:
    """What the upper and the lower end of a band mean."""
    return [tag("text", text, x=pct(x), dx=-6, y=y, class_="tick end") for text, y in ((high, top + 8), (low, foot))]


def _block(left: float, right: float, top: float, high: float, kind: str) -> Html:
    place = {"x": pct(left), "width": pct(right - left), "y": round(top, 1), "height": round(high, 1)}
    return tag("rect", class_=f"cell {kind}", **place)
