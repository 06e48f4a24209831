#!/usr/bin/env python
"""Writes tables from the Results under results/: ablations into docs/methods.md, real time into docs/realtime.md, the
others into README.md. Nothing published is typed by hand.

`make tables` rewrites what stands between the markers; `--check` only says whether that is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lithe import result

ROOT = Path(__file__).parent.parent
ABLATIONS, REALTIME = "*-ablations.eval.json", "*-realtime-*.eval.json"


def main() -> int:
    results = ROOT / "results"
    ablations, late = (sorted(results.rglob(kind)) for kind in (ABLATIONS, REALTIME))
    boards = [path for path in sorted(results.rglob("*.eval.json")) if path not in ablations + late]
    pages = {
        "README.md": {"results": tables(boards), "runtimes": runtimes(results)},
        "docs/methods.md": {"ablations": tables(ablations)},
        "docs/realtime.md": {
            "realtime": "\n".join(realtime(path.relative_to(ROOT), result.load(path)) for path in late)
        },
    }
    stale = [page for page, made in pages.items() if not _write(ROOT / page, made, "--check" in sys.argv)]
    return _fail(f"{', '.join(stale)}: not what results/ says, run `make tables`") if stale else 0


def _write(page: Path, made: dict[str, str], check: bool) -> bool:
    """Put each table between its markers; with `check` only say whether they are there already."""
    wanted = text = page.read_text()
    for name, table in made.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, rest = wanted.split(begin)
        wanted = f"{before}{begin}{table}{end}{rest.split(end)[1]}"
    if not check:
        page.write_text(wanted)
    return wanted == text or not check


def tables(paths: Sequence[Path]) -> str:
    """One section per evaluation: success beside the speed measured for the same policies."""
    sections = []
    for path in paths:
        evaluation = result.load(path)
        bench_path = path.with_name(path.name.replace(".eval.", ".bench."))
        bench = result.load(bench_path) if bench_path.exists() else {"rows": [], "settings": {}}
        sections.append(section(path.relative_to(ROOT), evaluation, bench))
    return "\n".join(sections)


def runtimes(folder: Path) -> str:
    """One table per bench of runtimes, beside the other implementations of the same run."""
    found = sorted(folder.rglob("*-runtimes.bench.json"))
    return "\n".join(_runtimes(path.relative_to(ROOT), result.load(path)) for path in found)


def _runtimes(path: Path, bench: dict[str, Any]) -> str:
    settings, rows = bench["settings"], bench["rows"]
    against = f"x faster than {rows[0]['ratio']['against']} (95 %)"
    peers = ", which says of LeRobot's rows what is equal and what is not" if any("beside" in r for r in rows) else ""
    lines = [
        f"| policy / runtime | layers | {against} | end to end | share of floor | error to eager |",
        "|---|--:|--:|--:|--:|--:|",
        *map(_runtime, rows),
        "",
        f"{path.name.removesuffix('-runtimes.bench.json')}, {settings.get('dtype', rows[0].get('dtype'))}, "
        f"{settings['views']} views, {settings['steps']} steps, {timed_on(bench)}. Source: `{path}`{peers}.",
        "",
    ]
    return "\n".join(lines)


def _runtime(row: dict[str, Any]) -> str:
    ratio, error = row["ratio"], row.get("error")
    cells = [
        row["policy"],
        str(row["depth"]),
        f"{ratio['p50']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        f"{row['end_to_end_ratio']['p50']:.2f}",
        f"{100 * row['share_of_floor']:.1f} %",
        "" if error is None else f"{error:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def realtime(path: Path, evaluation: dict[str, Any]) -> str:
    """One table per evaluation in real time."""
    settings, rows = evaluation["settings"], evaluation["rows"]
    against = next(row["paired"]["against"] for row in rows if "paired" in row)
    lines = [
        f"### {path.name.removesuffix('.eval.json')}",
        "",
        f"| {' | '.join(('policy', *LATE, f'against {against}, points', 'reaction, ms (95 %)'))} |",
        f"|---|{'--:|' * (len(LATE) + 2)}",
        *map(_late, rows),
        "",
        f"Execution {settings['execution']}, {settings['fps']:g} steps a second, something moves by a "
        f"{settings['sim_options']['moving']}; {len(settings['tasks'])} tasks, {settings['episodes']} episodes each; "
        f"{_latencies(settings)}commit {evaluation['commit']}. Source: `{path}`.",
        "",
    ]
    return "\n".join(lines)


LATE = ("latency, ms", "steps late", "stood still", "success (95 %)")


def _late(row: dict[str, Any]) -> str:
    late, reaction = row["realtime"], row["reaction"]["seconds"]
    ends = [f"{1e3 * reaction[end]:.0f}" if end in reaction else "∞" for end in ("low", "high")]
    cells = [
        late["policy"],
        f"{late['latency_ms']:.3g}",
        str(late["delay"]),
        f"{100 * row['held']:.0f} %",
        _rate(row["success"]),
        _points(row.get("paired")),
        f"{1e3 * reaction['median']:.0f} [{', '.join(ends)}]" if "median" in reaction else "not reached",
    ]
    return f"| {' | '.join(cells)} |"


def _latencies(settings: dict[str, Any]) -> str:
    """Where those came from that are no round number."""
    told = [f"{source['machine']}, {source['runtime']}, end to end" for source in settings.get("latency_from", [])]
    return f"measured latencies: {'; '.join(told)}; " if told else ""


def section(path: Path, evaluation: dict[str, Any], bench: dict[str, Any]) -> str:
    timed = {row["policy"]: row for row in bench["rows"]}
    heads = ROUTED if any("layers_run" in row for row in bench["rows"]) else ()
    settings = evaluation["settings"]
    timing = f" Speed: vision included, {bench['settings']['runtime']} runtime, {timed_on(bench)}." if timed else ""
    lines = [
        f"### {path.name.removesuffix('.eval.json')}",
        "",
        f"| {' | '.join(('policy', *HEADS, *heads))} |",
        f"|---|{'--:|' * len((*HEADS, *heads))}",
        *(_row(row, timed.get(row["policy"], {}), bool(heads)) for row in evaluation["rows"]),
        "",
        f"{len(settings['tasks'])} tasks, {settings['episodes']} episodes each from the same initial states; "
        f"intervals: Wilson for rates, paired for differences; commit {evaluation['commit']}.{timing} "
        f"Source: `{path}`.",
        "",
        *([ABOUT_ROUTED, ""] if heads else []),
    ]
    return "\n".join(lines)


HEADS = ("layers", "success (95 %)", "against the teacher, points", "p50 speed-up (95 %)", "parameters")
ROUTED = ("FLOPs", "p95 / p99 ms", "closed / open ms")  # shown where a policy decides itself which layers run
ABOUT_ROUTED = (
    "Layers: in closed loop, the mean per observation, of all that there are. Times hold router and repeated passes; "
    "closed: the router skips all that it may; open: it skips nothing. FLOPs: of what ran, relative to the teacher."
)


def timed_on(bench: dict[str, Any]) -> str:
    """How a bench was taken: what the policies saw, and where it stood."""
    settings, hardware = bench["settings"], bench["hardware"]
    seen = "random weights and observations, " if settings.get("inputs") == "random" else ""
    if "episodes" in settings:
        of_all = f" of {settings['tasks_in_data']}" if "tasks_in_data" in settings else ""
        tasks = f" of {settings['tasks']}{of_all} tasks" if "tasks" in settings else ""
        seen = f"{settings['runs']} recorded observations in {settings['episodes']} episodes{tasks}, "
    busy = "" if settings["quiet"] else ", WHILE THE MACHINE WAS BUSY"
    return (
        f"{seen}one interleaved run, {hardware['cpu']}, {settings['threads']} threads, torch "
        f"{bench['versions']['torch']}, commit {bench['commit']}{busy}"
    )


def _row(row: dict[str, Any], timed: dict[str, Any], routed: bool) -> str:
    ratio = timed.get("ratio")
    cells = [
        row["policy"],
        _layers(row.get("layers_run"), timed),
        _rate(row["success"]),
        _points(row.get("paired")),
        f"{ratio['p50']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "",
        f"{sum(timed['parameters'].values()) / 1e6:.2f} M" if "parameters" in timed else "",
    ]
    return f"| {' | '.join([*cells, *(_routed(timed) if routed else [])])} |"


def _rate(success: dict[str, Any]) -> str:
    rate, low, high = (100 * success[key] for key in ("rate", "low", "high"))
    return f"{rate:.1f} % [{low:.1f}, {high:.1f}], n = {success['n']}"


def _points(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return ""
    difference, low, high = (100 * paired[key] for key in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _layers(ran: dict[str, Any] | None, timed: dict[str, Any]) -> str:
    depth = str(timed.get("depth", ""))
    return depth if ran is None else f"{ran['mean']:.1f}{f' of {depth}' if depth else ''}"


def _routed(timed: dict[str, Any]) -> list[str]:
    """The cells of ROUTED; empty where that was not measured."""
    share, ms = timed.get("flop_share"), timed.get("latency_ms")
    return [
        f"{100 * share:.0f} %" if share is not None else "",
        f"{ms['p95']:.3g} / {ms['p99']:.3g}" if ms else "",
        f"{timed['closed_ms']:.3g} / {timed['open_ms']:.3g}" if "closed_ms" in timed else "",
    ]


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
