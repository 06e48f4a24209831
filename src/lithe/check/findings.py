"""What `lithe check` found: one Finding a fact, with where it is and what to do, and the table that shows them.

"error" means that training or acting would be wrong or would stop; "warning" that it would work, probably not as meant.
The same cause is one finding: many frames or dimensions are counted in it, and the first of them is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """severity: "error" or "warning"; kind: a short stable name; where: file, feature, dimension, episode, frame ..."""

    severity: str
    kind: str
    what: str
    where: dict[str, Any]
    remedy: str

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Findings:
    """Collects findings in the order in which they are made."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def error(self, kind: str, what: str, remedy: str, **where: Any) -> None:
        """Something that makes training or acting wrong, or stops it."""
        self._add("error", kind, what, remedy, where)

    def warning(self, kind: str, what: str, remedy: str, **where: Any) -> None:
        """Something that works and is probably not meant."""
        self._add("warning", kind, what, remedy, where)

    def _add(self, severity: str, kind: str, what: str, remedy: str, where: dict[str, Any]) -> None:
        known = {key: _plain(value) for key, value in where.items() if value is not None}
        self.all.append(Finding(severity, kind, what, known, remedy))

    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.all}

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.all)


def _plain(value: Any) -> Any:
    """JSON-able: paths as text, numbers of numpy as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, int | float | str | list) else str(value)


def listed(items: Sequence[Any], most: int = 4) -> str:
    """`3, 5, 8, 9 and 2 more`."""
    told = ", ".join(str(item) for item in items[:most])
    return f"{told} and {len(items) - most} more" if len(items) > most else told


def dimensions(indices: Sequence[int] | np.ndarray, names: Sequence[str] = ()) -> str:
    """`dimension 3 (gripper)`, `dimensions 0, 2`; with names where the data set gives them."""
    told = [f"{i} ({names[i]})" if names else str(i) for i in indices]
    return f"dimension{'s' if len(told) > 1 else ''} {listed(told)}"


def table(document: dict[str, Any]) -> Any:
    """The Result as a rich table, worst first, and one sentence below."""
    from rich.console import Group
    from rich.table import Table

    rows = sorted(document["rows"], key=lambda row: row["severity"])
    grid = Table("", "kind", "what was found", "where", "remedy", show_lines=True)
    for row in rows:
        style = "red" if row["severity"] == "error" else "yellow"
        where = "\n".join(f"{key}: {value}" for key, value in row["where"].items())
        grid.add_row(f"[{style}]{row['severity']}[/]", row["kind"], *map(_literal, (row["what"], where, row["remedy"])))
    return Group(*([grid] if rows else []), summary(document))


def _literal(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # square brackets in a file name or an instruction are no markup


def summary(document: dict[str, Any]) -> str:
    """What was looked at, and how many findings there are."""
    s, counts = document["settings"], {"error": 0, "warning": 0}
    for row in document["rows"]:
        counts[row["severity"]] += 1
    seen = ", ".join(f"{camera} {done} of {total}" for camera, (done, total) in s["decoded"].items())
    looked = f"{s['frames']} frames, {s['episodes']} episodes, {s['tasks']} tasks; pictures decoded: {seen or 'none'}."
    found = f"{counts['error']} errors, {counts['warning']} warnings."
    return f"{found if document['rows'] else 'Nothing was found.'} Looked at {looked}"
