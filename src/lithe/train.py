"""From a recipe to a trained policy folder with its Result: what `lithe train` and `lithe distill` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lithe import api, card, checkpoint, result
from lithe._processes import in_turn, join, on_main
from lithe._run import Run
from lithe.data.base import Data
from lithe.distill import distill
from lithe.families.base import Family
from lithe.recipe import Recipe


def train(recipe: Recipe, out: str | Path | None = None) -> dict[str, Any]:
    """Run a recipe to its end, resuming what `out` (default runs/<name>) holds; returns the Result.

    A teacher given as a preset starts from random weights and adopts the data's statistics and words; a teacher given
    as a source is loaded, and its own statistics stay. The policy lands in <out>/student; that of a method which only
    cuts has 0 of 0 steps in student.json and no losses in the Result. Of several processes all train, the main one
    writes, and each returns the same Result.
    """
    out = Path(out or Path("runs") / recipe.name)
    teacher, data = in_turn(lambda: _inputs(recipe))
    identity = {"recipe": recipe.resolved(), "hash": recipe.hash}
    student = distill(teacher, recipe.build_method(), data, recipe.train, out, identity)
    on_main(lambda: _finish(recipe, student, data, out))
    return result.load(out / "result.json")


def _inputs(recipe: Recipe) -> tuple[Family, Data]:
    data = api.data(**recipe.data)
    if not recipe.teacher.preset:
        return api.load(str(recipe.teacher.source)), data
    teacher = api.fresh(recipe.teacher)
    teacher.fit_to(data.stats, data.tasks, data.cameras)
    return teacher, data


def _finish(recipe: Recipe, student: Family, data: Data, out: Path) -> None:
    """Write the policy folder with its card, and the Result."""
    steps = recipe.train.steps if recipe.build_method().stages() else 0  # a method may only cut
    checkpoint.save(
        student,
        out / "student",
        method={**recipe.build_method_settings(), **_identity(out).get("chosen", {})},
        teacher=recipe.resolved()["teacher"],
        recipe_hash=recipe.hash,
        step=steps,
        steps=steps,
        fps=data.fps,
    )
    card.write(out / "student", recipe.name)
    count = join().num_processes
    more = {"processes": count} if count > 1 else {}
    document = result.make("train", recipe.name, recipe.resolved(), [summary(out, len(data))], recipe.hash, **more)
    result.save(document, out / "result.json")


def summary(out: Path, frames: int) -> dict[str, Any]:
    """Last losses and mean times per step of a finished run."""
    lines = Run(out, _identity(out)).metrics()
    tail = lines[-max(1, len(lines) // 20) :]
    names = set.intersection(*map(set, tail)) - {"step", "stage", "lr"} if tail else set()
    means = {key: sum(line[key] for line in tail) / len(tail) for key in sorted(names)}
    return {"policy": str(out / "student"), "frames": frames, "train": {k: round(v, 6) for k, v in means.items()}}


def _identity(out: Path) -> dict[str, Any]:
    return json.loads((out / "recipe.json").read_text())
