"""What an evaluation found, from its episodes: rows of the Result, and the same as a table for a terminal.

Only counts and arranges; the intervals are in statistics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lithe._layers import layers_run
from lithe.evaluate import statistics
from lithe.evaluate.ledger import Key

if TYPE_CHECKING:
    from rich.console import Group

INTERVALS = {
    "level": 0.95,
    "success": "Wilson score",
    "paired": "Newcombe 1998 hybrid score for paired proportions (method 10)",
    "steps_to_success": "median between order statistics, of successful episodes",
    "jerk": "median between order statistics, of all episodes",
}
JERK_UNIT = "normalised action units per step^3"


def rows(
    records: dict[Key, dict[str, Any]], tasks: Sequence[str], seeds: Sequence[int], names: Sequence[str], reference: str
) -> list[dict[str, Any]]:
    """One row a policy, in the order of `names`. `records` may hold more than these tasks, seeds and names."""

    def figures(name: str, tasks: Sequence[str]) -> dict[str, Any]:
        ours = [records[name, task, seed] for task in tasks for seed in seeds]
        theirs = [records[reference, task, seed] for task in tasks for seed in seeds] if name != reference else None
        return _figures(ours, theirs, reference)

    return [
        {"policy": name, **figures(name, tasks), "tasks": {task: figures(name, [task]) for task in tasks}}
        for name in names
    ]


def _figures(ours: list[dict[str, Any]], theirs: list[dict[str, Any]] | None, reference: str) -> dict[str, Any]:
    """The figures of one policy on one set of episodes; element i of both lists is the same episode."""
    found: dict[str, Any] = {"success": statistics.success([r["success"] for r in ours])}
    if theirs is not None:
        pairs = list(zip(ours, theirs, strict=True))
        solved = [a["steps"] - b["steps"] for a, b in pairs if a["success"] and b["success"]]
        found["paired"] = {
            "against": reference,
            **statistics.paired([r["success"] for r in ours], [r["success"] for r in theirs]),
            "same_start": sum(a["start"] == b["start"] for a, b in pairs),
            "steps": statistics.middle(solved),
        }
    found["steps_to_success"] = statistics.middle([r["steps"] for r in ours if r["success"]])
    found["jerk"] = statistics.middle([r["jerk"] for r in ours if r["jerk"] is not None])
    if all("layers" in r for r in ours):
        found["layers_run"] = layers_run([r["layers"] for r in ours])
    return _measured(found)


def _measured(figures: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: absent means not measured."""
    kept = {key: value for key, value in figures.items() if value is not None}
    return {key: _measured(value) if isinstance(value, dict) else value for key, value in kept.items()}


def table(document: dict[str, Any]) -> Group:
    """The Result for a terminal of 80 columns: every policy with its intervals, then its success in each task."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    settings, rows = document["settings"], document["rows"]
    whole = Table(
        "policy", "n", "success, %", f"minus {settings['against']}", "steps", "jerk", box=SIMPLE_HEAD, pad_edge=False
    )
    for row in rows:
        cells = [_cell(row["success"], "rate", ".1f", 100), _cell(row.get("paired"), "difference", "+.1f", 100)]
        cells += [
            _cell(row.get("steps_to_success"), "median", ".0f"),
            _cell({"median": row["jerk"]["median"]}, "median", ".3f") if "jerk" in row else "",
        ]
        whole.add_row(row["policy"], str(row["success"]["n"]), *cells)
    parts = Table("success, %", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        parts.add_column(row["policy"], justify="right")
    for task in settings["tasks"]:
        parts.add_row(task, *(f"{100 * row['tasks'][task]['success']['rate']:.1f}" for row in rows))
    told = (
        f"{settings['sim']}: {settings['episodes']} episodes a task, seeds {settings['seeds'][0]} to "
        f"{settings['seeds'][1]}; in brackets 95 % intervals; steps: median of successful episodes; jerk: median in "
        f"{JERK_UNIT}. Intervals of each task are in the Result."
    )
    return Group(whole, *([parts] if len(settings["tasks"]) > 1 else []), told)


def _cell(figure: dict[str, Any] | None, name: str, form: str, scale: float = 1) -> str:
    if figure is None:
        return ""
    numbers = [format(scale * figure[key], form) for key in (name, "low", "high") if key in figure]
    return numbers[0] if len(numbers) == 1 else "{} [{}, {}]".format(*numbers)
