"""What an evaluation found, from its episodes: rows of the Result, and the same as a table for a terminal.

A row: {policy, success {rate, n, low, high}, paired {against, difference, low, high, n, same_start, steps},
steps_to_success and jerk {median, mean, n, low, high}, tasks {task: the same without "policy"}}. same_start counts
pairs whose first observations were bit-identical; paired.steps is the median difference of steps-to-success over
episodes that both solved. Routed policies add layers_run; real time adds realtime {policy, latency_ms, delay in steps}
and held, the share of steps without an action of the policy; where something moves there is reaction {steps and seconds
{median, mean, n, low, high}, histogram {steps: episodes}, moved, missed}: a missed one counts as later than all others,
and what lies among those is absent.
Only counts and arranges; the intervals are in statistics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from lithe._layers import layers_run
from lithe.evaluate import statistics
from lithe.evaluate.ledger import Key

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from lithe.evaluate.realtime import Timing

INTERVALS = {
    "level": 0.95,
    "success": "Wilson score",
    "paired": "Newcombe 1998 hybrid score for paired proportions (method 10)",
    "steps_to_success": "median between order statistics, of successful episodes",
    "jerk": "median between order statistics, of all episodes",
}
REACTION_INTERVAL = (
    "median between order statistics, of episodes in which something moved; one without a reaction counts as later "
    "than all others, and what lies among those is absent"
)
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
    if all("held" in r for r in ours):
        found["held"] = sum(r["held"] for r in ours) / sum(r["steps"] for r in ours)
    if any(r.get("event") is not None for r in ours):
        found["reaction"] = _reaction([r["reaction"] for r in ours if r.get("event") is not None])
    return _measured(found)


def _reaction(seen: list[int | None]) -> dict[str, Any]:
    """{steps: with the missed as later than all, histogram {steps: episodes}, moved: episodes in which something moved,
    missed: those without a reaction}."""
    found = sorted(steps for steps in seen if steps is not None)
    histogram = {str(steps): found.count(steps) for steps in dict.fromkeys(found)}
    moved = {"moved": len(seen), "missed": len(seen) - len(found)}
    return {"steps": statistics.censored(found, moved["missed"]), "histogram": histogram, **moved}


def in_real_time(rows: list[dict[str, Any]], timings: Mapping[str, Timing], fps: float) -> None:
    """Writes into rows what the policies were given, and reactions in seconds."""
    for row in rows:
        if row["policy"] in timings:
            timing = timings[row["policy"]]
            row["realtime"] = {"policy": timing.policy, "latency_ms": timing.latency_ms, "delay": timing.delay}
        for figures in (row, *row["tasks"].values()):
            if "steps" in figures.get("reaction", {}):
                seconds = {k: v if k == "n" else v / fps for k, v in figures["reaction"]["steps"].items()}
                figures["reaction"]["seconds"] = seconds


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
    tables = [whole]
    for row in rows:
        cells = [_cell(row["success"], "rate", ".1f", 100), _cell(row.get("paired"), "difference", "+.1f", 100)]
        cells += [
            _cell(row.get("steps_to_success"), "median", ".0f"),
            _cell({"median": row["jerk"]["median"]}, "median", ".3f") if "jerk" in row else "",
        ]
        whole.add_row(row["policy"], str(row["success"]["n"]), *cells)
    if any(row.keys() & {"realtime", "reaction"} for row in rows):
        tables.append(_late(rows))
    if len(settings["tasks"]) > 1:
        tables.append(_parts(rows, settings["tasks"]))
    told = (
        f"{settings['sim']}: {settings['episodes']} episodes a task, seeds {settings['seeds'][0]} to "
        f"{settings['seeds'][1]}; in brackets 95 % intervals; steps: median of successful episodes; jerk: median in "
        f"{JERK_UNIT}. Intervals of each task are in the Result."
    )
    return Group(*tables, told)


def _late(rows: list[dict[str, Any]]) -> Table:
    """Delays and reactions, a row a policy."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads = ("in real time", "late by, steps", "stood, %", "moved", "missed", "reaction, steps", "reaction, ms")
    found = Table(*heads, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        delay, held, reaction = row.get("realtime", {}).get("delay", ""), row.get("held"), row.get("reaction", {})
        cells = [str(delay), "" if held is None else f"{100 * held:.1f}"]
        cells += [str(reaction.get(key, "")) for key in ("moved", "missed")]
        cells += [_reached(reaction.get("steps"), ".3g"), _reached(reaction.get("seconds"), ".0f", 1e3)]
        found.add_row(row["policy"], *cells)
    return found


def _parts(rows: list[dict[str, Any]], tasks: Sequence[str]) -> Table:
    """Success of every task; whichever are more, policies or tasks, become the lines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    parts = Table("success, %", box=SIMPLE_HEAD, pad_edge=False)
    names = [row["policy"] for row in rows]
    rate = {
        (row["policy"], task): f"{100 * row['tasks'][task]['success']['rate']:.1f}" for row in rows for task in tasks
    }
    long = len(names) > len(tasks)
    for head in tasks if long else names:
        parts.add_column(head, justify="right")
    for name in names if long else []:
        parts.add_row(name, *(rate[name, task] for task in tasks))
    for task in [] if long else tasks:
        parts.add_row(task, *(rate[name, task] for name in names))
    return parts


def _reached(figure: dict[str, Any] | None, form: str, scale: float = 1) -> str:
    """A median that can lie among what was missed; so can the upper end of its interval."""
    if figure and "median" not in figure:
        return "not reached"
    opened = {**figure, "high": inf} if figure and "low" in figure and "high" not in figure else figure
    return _cell(opened, "median", form, scale)


def _cell(figure: dict[str, Any] | None, name: str, form: str, scale: float = 1) -> str:
    if figure is None:
        return ""
    numbers = [format(scale * figure[key], form) for key in (name, "low", "high") if key in figure]
    return numbers[0] if len(numbers) == 1 else "{} [{}, {}]".format(*numbers)
