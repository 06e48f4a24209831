"""Where the names of a scatter stand: beside their points, and on no point, line or other name.

Places along x are shares of a width that nobody knows before the page is opened; those along y are pixels. So a spot
counts as free only if it is free on every one of some widths, and there are three sets of spots, from narrow pages to
wide ones. A name without a free spot is not drawn: the caller lists it. Letters are taken as wide as they may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot

Point = tuple[float, float]
Segment = tuple[Point, Point]
Box = tuple[float, float, float, float]  # left, top, right, bottom
# Class in page.css -> widths of the drawing while it is shown.
ROOMS = {"tight": (234, 280, 340, 396), "medium": (390, 460, 530, 604), "roomy": (600, 680, 760, 840, 900)}
LETTER, ASCENT, DESCENT, MARK = 8.4, 12.0, 4.0, 8.0
SAME = 4.0  # pixels by which two points cannot be told apart


@dataclass(frozen=True)
class Spot:
    """Where a name's baseline begins (side 1) or ends (-1), in pixels from its point. leader: it needs a line to it."""

    dx: float
    dy: float
    side: int
    leader: bool = False

    def box(self, at: Point, letters: int) -> Box:
        """What the name covers."""
        ends = sorted((at[0] + self.dx, at[0] + self.dx + self.side * LETTER * letters))
        return ends[0], at[1] + self.dy - ASCENT, ends[1], at[1] + self.dy + DESCENT

    @property
    def line(self) -> Segment:
        """The leader, from the point to just before the name."""
        length = hypot(self.dx, self.dy - 4)
        start, stop = MARK / length, 1 - 3 / length
        return (self.dx * start, (self.dy - 4) * start), (self.dx * stop, (self.dy - 4) * stop)


NEAR = [Spot(10 * side, dy, side) for dy in (19, -10) for side in (1, -1)]
NEAR += [Spot(11 * side, 4.5, side) for side in (1, -1)]
FAR = [
    Spot(dx * side, sign * dy + 4, side, True)
    for dy in (32, 48, 64, 84)
    for dx in (16, 40, 72)
    for sign in (1, -1)
    for side in (1, -1)
]


@dataclass
class _Sheet:
    """The drawing at one width, in pixels, with the names that it holds so far."""

    width: float
    height: float
    points: list[Point]
    lines: list[Segment]
    boxes: list[Box] = field(default_factory=list)

    def free(self, i: int, spot: Spot, letters: int) -> bool:
        box = spot.box(self.points[i], letters)
        if box[0] < 0 or box[2] > self.width or box[1] < 0 or box[3] > self.height:
            return False
        if any(_overlap(box, _around(point)) for point in self.points):
            return False
        if any(_overlap(box, other) for other in self.boxes) or any(_through(line, box) for line in self.lines):
            return False
        if not spot.leader:
            return self._clear(i, spot)
        leader, others = self._leader(i, spot), [_around(p) for k, p in enumerate(self.points) if k != i]
        return not any(_through(leader, other) for other in [*self.boxes, *others])

    def _clear(self, i: int, spot: Spot) -> bool:
        """Whether nobody takes the name for that of another point: its beginning is nearest to its own."""
        (x, y), own = self.points[i], hypot(spot.dx, spot.dy - 4)
        others = [(a, b) for a, b in self.points if hypot(x - a, y - b) > SAME]
        return all(hypot(x + spot.dx - a, y + spot.dy - 4 - b) > own + SAME for a, b in others)

    def take(self, i: int, spot: Spot, letters: int) -> None:
        self.boxes.append(spot.box(self.points[i], letters))
        if spot.leader:
            self.lines.append(self._leader(i, spot))

    def _leader(self, i: int, spot: Spot) -> Segment:
        (x, y), ((x1, y1), (x2, y2)) = self.points[i], spot.line
        return (x + x1, y + y1), (x + x2, y + y2)


def spots(
    points: Sequence[Point],
    letters: Sequence[int],
    lines: Sequence[Segment],
    height: float,
    widths: Sequence[float],
    order: Sequence[int],
) -> dict[int, Spot]:
    """A spot for the name of each point, the first of `order` choosing first; those that find none are left out.

    points, lines: x in shares of the width, y in pixels from the top. letters: of each name.
    """
    sheets = [
        _Sheet(w, height, [(x * w, y) for x, y in points], [((a * w, b), (c * w, d)) for (a, b), (c, d) in lines])
        for w in widths
    ]
    found: dict[int, Spot] = {}
    for i in order:
        spot = next((s for s in (*NEAR, *FAR) if all(sheet.free(i, s, letters[i]) for sheet in sheets)), None)
        if spot is not None:
            found[i] = spot
            for sheet in sheets:
                sheet.take(i, spot, letters[i])
    return found


def _around(point: Point) -> Box:
    return point[0] - MARK, point[1] - MARK, point[0] + MARK, point[1] + MARK


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _through(line: Segment, box: Box) -> bool:
    """Whether a line passes through a box: what is left of it between the box's four sides (Liang and Barsky)."""
    (x, y), (x2, y2) = line
    begin, end = 0.0, 1.0
    for start, way, low, high in ((x, x2 - x, box[0], box[2]), (y, y2 - y, box[1], box[3])):
        if way == 0:
            if not low < start < high:
                return False
            continue
        near, far = sorted(((low - start) / way, (high - start) / way))
        begin, end = max(begin, near), min(end, far)
    return begin < end
