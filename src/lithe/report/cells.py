"""Tables of policies, filled figure by figure. What was not measured stays empty, and an empty column is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lithe.report.page import Html, interval, table
from lithe.report.scales import factor, percent, points, short, times

Row = Mapping[str, Any]


class Grid:
    """One row a policy. names: policy -> how it is shown."""

    def __init__(self, names: Mapping[str, str]):
        self.names = names
        self.found: dict[str, dict[str, str]] = {}

    def put(self, head: str, name: str, cell: str | None) -> None:
        """A cell under the heading `head`; None was not measured. Columns appear in the order they are first named."""
        column = self.found.setdefault(head, {})
        if cell is not None:
            column[name] = cell

    def table(self, label: str, first: str = "policy") -> Html:
        """The table; a dash stands where others were measured and this one was not."""
        kept = {head: cells for head, cells in self.found.items() if cells}
        rows = [[shown, *(cells.get(name, "–") for cells in kept.values())] for name, shown in self.names.items()]
        return table([first, *kept], rows, label)


def number(value: float | None) -> str | None:
    """Counts in full, everything else in three digits."""
    return None if value is None else f"{value:,}" if isinstance(value, int) else short(value)


def rate(success: Row | None) -> Html | None:
    """{rate, low, high} in per cent."""
    return interval(percent(success["rate"]), *_ends(success, percent)) if success else None


def difference(pairs: Row | None) -> Html | None:
    """{difference, low, high} in points."""
    return interval(points(pairs["difference"]), *_ends(pairs, points)) if pairs else None


def ratio(name: str, found: Row | None) -> Html | None:
    """{against, p50, low, high} of the policy `name`."""
    if not found:
        return None
    if found["against"] == name:
        return interval("baseline")
    return interval(times(found["p50"]), *_ends(found, factor))


def median(found: Row | None, form: Callable[[float], str]) -> Html | None:
    """{median, low, high}; few values have no interval."""
    return interval(form(found["median"]), *_ends(found, form)) if found else None


def _ends(found: Row, form: Callable[[float], str]) -> list[str]:
    return [form(found[end]) for end in ("low", "high") if end in found]
