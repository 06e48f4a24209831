"""What one row of `lithe reproduce` tells beside its gate: closed loop, stopwatch and training of one policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lithe import api, result
from lithe._run import Run
from lithe.recipe import Recipe

EVALUATED = ("success", "steps_to_success", "jerk")
TIMED = (
    *("ratio", "end_to_end_ms", "end_to_end_ratio", "hz", "closed_ms", "open_ms"),
    *("flops", "flop_share", "router_flops", "parameters", "memory_mb", "share_of_floor"),
)


def facts(name: str, evaluation: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    """What both Results say about a policy, so that its row tells everything; what was not measured is absent.

    layers: how many it has. layers_run: of a routed policy, how many it ran in closed loop ("eval") and on the
    stopwatch ("bench"), each with its histogram.
    """
    acted, timed = (next(r for r in d["rows"] if r["policy"] == name) for d in (evaluation, bench))
    ran = {kind: row["layers_run"] for kind, row in (("eval", acted), ("bench", timed)) if "layers_run" in row}
    return {
        **({"layers": timed["depth"]} if "depth" in timed else {}),
        **({"layers_run": ran} if ran else {}),
        **{key: acted[key] for key in EVALUATED if key in acted},
        **{key: timed[key] for key in TIMED if key in timed},
    }


def trained(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Last losses and mean seconds a step, from the run's own Result; then what was trained at all, and for how long.

    trainable_parameters: of the student, trained by at least one stage; what a method trains beside it and does not
    ship is not among them. seconds: of all steps, waiting for data and checkpoints included, on this machine.
    """
    losses: dict[str, Any] = result.load(folder / "result.json")["rows"][0]["train"]
    prefixes = tuple(prefix for stage in recipe.build_method().stages() for prefix in stage.train)
    named = api.skeleton(folder / "student").named_parameters()
    sizes = [p.numel() for n, p in named if n.startswith(prefixes) and not n.startswith(recipe.train.freeze)]
    return {**losses, "trainable_parameters": sum(sizes), "seconds": seconds(folder)}


def seconds(folder: Path) -> float:
    """How long the steps of a run took in all, from its metrics: each line holds means since the line before it."""
    identity = json.loads((folder / "recipe.json").read_text())
    total, before = 0.0, 0
    for line in Run(folder, identity, main=False).metrics():
        each = sum(value for key, value in line.items() if key.endswith("_s"))
        total, before = total + (line["step"] - before) * each, line["step"]
    return round(total, 1)
