"""The tables that `bench`, `explain` and `profile` print, each made from its Result document and nothing else.

Ratios come first; milliseconds are marked as this machine's. A measurement that is absent is shown as "-".
"""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False}  # fits a terminal of 80 columns


def bench_table(document: dict[str, Any]) -> Any:
    """The Result as rich tables: ratios first; milliseconds hold for this machine only."""
    speed = Table("policy", "layers", "x faster (95 %)", "% of floor", "p50 / p95 / p99 ms", **STYLE)
    parts = Table("policy", "vision / prefix / denoise", "end to end ms", "Hz", "GFLOP", "M par.", "MiB", **STYLE)
    for row in document["rows"]:
        times, won = row["latency_ms"], row["ratio"]
        own = row["policy"] == won["against"]
        speed.add_row(
            row["policy"],
            f"{row['layers_run']['mean']:.1f}/{row['depth']}" if "layers_run" in row else str(row["depth"]),
            "1" if own else f"{won['p50']:.2f} [{won['low']:.2f}, {won['high']:.2f}]",
            f"{100 * row['share_of_floor']:.3g}",
            " / ".join(f"{times[q]:.4g}" for q in ("p50", "p95", "p99")),
        )
        parts.add_row(
            row["policy"],
            " / ".join(f"{times[p]:.3g}" if p in times else "-" for p in row["flops"]),
            f"{row['end_to_end_ms']['p50']:.4g}",
            f"{row['hz']:.3g}",
            f"{sum(row['flops'].values()) / 1e9:.3g}",
            f"{sum(row['parameters'].values()) / 1e6:.3g}",
            f"{row['memory_mb']:.4g}" if "memory_mb" in row else "-",
        )
    rows = document["rows"]
    return Group(speed, parts, *_routed(rows), *_before(rows), *_peers(rows), caption(document))


def _before(rows: list[dict[str, Any]]) -> list[Any]:
    """A table of what attaching cost and found out; nothing where nothing was attached. Launches: on CUDA only."""
    attached = [row for row in rows if "error" in row or "graphs" in row]
    if not attached:
        return []
    counts = ("launches", "kernels", "host_syncs")
    device = any("launches" in row for row in rows)
    more = ("launches / kernels / waits",) if device else ()
    grid = Table("policy", "attach s", "first chunk s", "error to eager", "cosine", "graphs", *more, **STYLE)
    for row in rows if device else attached:
        told = [f"{row[key]:.3g}" if key in row else "-" for key in ("attach_s", "warmup_s", "error")]
        graphs = str(row.get("graphs", "-")) + (f", {row['recompiled']} again" if row.get("recompiled") else "")
        calls = [" / ".join(str(row.get(key, "-")) for key in counts)] if device else []
        cosine = f"{row['cosine']:.6f}" if "cosine" in row else "-"
        grid.add_row(row["policy"], *told, cosine, graphs, *calls)
    return [grid]


def _peers(rows: list[dict[str, Any]]) -> list[str]:
    """What is equal and what is not between a peer and the policy beside it; peers of which the same holds together."""
    groups: dict[tuple[tuple[str, ...], ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "not_equal" in row:
            groups.setdefault((tuple(row["equal"]), tuple(row["not_equal"])), []).append(row)
    lines = []
    for (equal, not_equal), alike in groups.items():
        lines.append(", ".join(f"{row['policy']} beside {row['beside']}" for row in alike))
        for head, phrases in (("equal", equal), ("not equal", not_equal)):
            lines += [f"  {head}", *(f"    {phrase}" for phrase in phrases)]
        lines.append("")
    return lines


def _routed(rows: list[dict[str, Any]]) -> list[Any]:
    """A table of the policies that decide themselves which layers run; nothing where there are none."""
    grid = Table("policy", "layers run", "range", "again", "closed / p50 / open ms", "% of FLOPs", **STYLE)
    for row in rows:
        if "layers_run" in row:
            ran, bounds = row["layers_run"], (row["closed_ms"], row["latency_ms"]["p50"], row["open_ms"])
            counts = [int(n) for n in ran["histogram"]]
            grid.add_row(
                row["policy"],
                f"{ran['mean']:.2f} of {row['depth']}",
                f"{min(counts)}-{max(counts)}",
                f"{100 * ran['repeated']:.3g} %",
                " / ".join(f"{ms:.4g}" for ms in bounds),
                f"{100 * row['flop_share']:.3g}",
            )
    return [grid] if grid.rows else []


def caption(document: dict[str, Any]) -> str:
    """Under which conditions a bench was run, its line over depth, and whether its times may be quoted."""
    s, line = document["settings"], document.get("fit")
    named = ("runtime", "dtype", "views", "text_tokens", "horizon", "steps", "threads")
    told = [f"{key} {s[key]}" for key in named if key in s]
    text = f"Milliseconds hold for this machine only (batch 1, {', '.join(told)}, n {s['runs']} after {s['warmup']}). "
    if "episodes" in s:
        met = f" of {s['tasks_in_data']}" if "tasks_in_data" in s else ""
        text += f"All saw {s['runs']} recorded observations: {s['episodes']} episodes, {s['tasks']}{met} tasks. "
    if line:
        most = f", no cut passes x{line['ceiling']:.3g}" if "ceiling" in line else ""
        text += f"p50 = {line['a_ms']:.4g} + {line['b_ms_per_layer']:.4g} * layers{most}. "
    return text + peace(s)


def peace(settings: dict[str, Any]) -> str:
    """One sentence on what else the machine was doing."""
    if settings["quiet"]:
        return "The machine was quiet."
    busy = f"the load was {settings['load_average']}"
    if "busy_cores_elsewhere" in settings:
        busy = f"other processes used {settings['busy_cores_elsewhere']} cores"
    return f"THE MACHINE WAS BUSY ({busy}): do not quote these times, repeat them on a quiet machine."


def explain_table(document: dict[str, Any]) -> Any:
    """The Result as rich tables."""
    rows, settings = document["rows"], document["settings"]
    told = ", ".join(f"{key} {settings[key]}" for key in ("views", "text", "steps", "dtype") if key in settings)
    lines = [document["name"] + (f": {settings['method']}, {settings['paper']}" if "method" in settings else "")]
    for path, kept in rows[-1]["layers"].items():
        lines.append(f"  {path}: {len(kept)} of {len(rows[0]['layers'][path])} layers: {' '.join(map(str, kept))}")
    lines.append(f"Per chunk at batch 1, {told}; what is not named is the policy's own.")
    return Group(*lines, _components(rows), _floors(rows), *([_training(rows[1]["stages"])] if len(rows) > 1 else []))


def _components(rows: list[dict[str, Any]]) -> Any:
    grid = Table("", "component", *(f"{row['policy']}{extra}" for row in rows for extra in ("", " share")))
    if len(rows) > 1:
        grid.add_column("x less")
    for key, unit, scale in (("parameters", "M", 1e6), ("flops", "GFLOP", 1e9), ("bytes", "MB", 1e6)):
        sums = [sum(row[key].values()) for row in rows]
        for component in [*rows[0][key], "total"]:
            values = [total if component == "total" else row[key][component] for row, total in zip(rows, sums)]
            cells = [cell for v, total in zip(values, sums) for cell in (_short(v / scale), f"{100 * v / total:.1f} %")]
            less = [f"{values[0] / values[1]:.2f}" if values[1] else "-"] if len(rows) > 1 else []
            first = component == next(iter(rows[0][key]))
            grid.add_row(f"{key} ({unit})" if first else "", component, *cells, *less, end_section=component == "total")
    return grid


def _floors(rows: list[dict[str, Any]]) -> Any:
    grid = Table("floor, ms (a bound, not a forecast)", *(row["policy"] for row in rows))
    if len(rows) > 1:
        grid.add_column("x faster at most")
    for machine in rows[0]["floor_ms"]:
        cells = [f"{sum(row['floor_ms'][machine].values()):.4g}" for row in rows]
        grid.add_row(machine, *cells, *([f"{rows[1]['ratio']['floor'][machine]:.2f}"] if len(rows) > 1 else []))
    return grid


def _training(stages: list[dict[str, Any]]) -> Any:
    if not stages:
        return "Training-free: the method has no stages."
    grid = Table("stage", "share of steps", "learning rate x", "trains", "M parameters", "of")
    for stage in stages:
        parts = ", ".join(f"{name} {_short(size / 1e6)}" for name, size in stage["trains"].items())
        sizes = (_short(stage[key] / 1e6) for key in ("parameters", "of"))
        grid.add_row(stage["stage"], f"{stage['share']:.3g}", f"{stage['lr']:.3g}", parts, *sizes)
    return grid


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def profile_table(document: dict[str, Any]) -> Any:
    """The Result as a rich table, one line a layer; "-" = not measured."""
    skipped = ("skipped: actions", "velocity", "task loss")
    grid = Table("layer", "trunk cosine", "expert cosine: mean (over time)", *skipped)
    for row in document["rows"]:
        alike, hurt = row["similarity"], row.get("sensitivity", {})
        expert = "-"
        if "suffix" in alike:
            expert = f"{alike['suffix']:.4f} ({alike['suffix_low']:.4f}-{alike['suffix_high']:.4f})"
        prefix = f"{alike['prefix']:.4f}" if "prefix" in alike else "-"
        told = [f"{hurt[kind]:.4g}" if kind in hurt else "-" for kind in ("actions", "velocity")]
        loss = f"{hurt['task_loss']:+.4g}" if "task_loss" in hurt else "-"
        grid.add_row(str(row["layer"]), prefix, expert, *told, loss)
    s = document["settings"]
    fed = s["inputs"]
    if fed == "random":
        fed = "RANDOM inputs: shapes were checked, nothing was learned about the policy"
    source = f"{s['samples']} samples of {fed}, dtype {s['dtype']}, seed {s['seed']}."
    return Group(grid, *_scores(document["rows"]), source, *document["notes"])


def _scores(rows: list[dict[str, Any]]) -> list[Any]:
    """A table of the layer scores, its own because one more column would not fit; nothing where there are none."""
    if not rows or "scores" not in rows[0]:
        return []
    first, *others = rows[0]["scores"]
    grid = Table("layer", f"score: {first}", *others)
    for row in rows:
        grid.add_row(str(row["layer"]), *(f"{score:.3g}" for score in row["scores"].values()))
    return [grid]
