"""`lithe reproduce`: recipes of one teacher trained, evaluated, timed and judged together, on one budget.

A comparison is fair or it is refused: the same teacher, data, training settings and benchmark for every recipe; the
same initial states; one interleaved bench. Each recipe's gate says what it promises and is judged by the numbers found
here. Everything lands in one folder, a step whose result is there is not done again, so a killed run goes on.

<out>/<recipe>/    run folder and student          <out>/eval.json, eval/   closed loop and its ledger
<out>/bench.json, profile.json, strips/            <out>/report.html, reproduce.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lithe import registry, result
from lithe._facts import facts, trained
from lithe.evaluate.entrants import entrant
from lithe.recipe import Recipe, load

TEACHER = "teacher"  # how the reference is called in every table


def reproduce(
    recipes: Sequence[str | Path],
    out: str | Path = "runs/reproduce",
    overrides: Sequence[str] = (),
    runs: int = 100,
    samples: int = 64,
    title: str | None = None,
) -> dict[str, Any]:
    """Train, evaluate, time, profile and judge; returns the Result, one row a recipe, and writes the page.

    recipes: files; a shared base (`_*.yaml`) and the recipe of a teacher among them are left out.
    overrides: dotted settings for all, e.g. "train.steps=500". runs: timed chunks a policy. samples:
    observations for the profile of the teacher. Raises ValueError for recipes that cannot be compared, and for a
    folder that holds the run of another recipe.
    """
    out = Path(out)
    parsed = {Path(path).stem: load(path, list(overrides)) for path in recipes if not Path(path).name.startswith("_")}
    console = Console(stderr=True)
    for name in [name for name, recipe in parsed.items() if recipe.teacher.source is None]:
        console.print(f"{name} starts from random weights, it is no student: left out")
        del parsed[name]
    common, say = comparable(parsed), console.rule
    policies = {TEACHER: str(common.teacher.source)}
    sim: Any = registry.get("sims", common.gate.sim)
    entrant(TEACHER, Path(policies[TEACHER]), sim, {"replan": None, "steps": None})  # refused now, not after training
    for name, recipe in parsed.items():
        say(f"training [bold]{name}[/]")
        policies[name] = str(_student(recipe, out / name))
    say("closed loop on the same initial states")
    evaluation = _evaluate(common, policies, out)
    say("the stopwatch")
    bench = _once(out / "bench.json", list(policies), lambda: _bench(common, policies, runs))
    _once(out / "profile.json", [], lambda: _profile(common, samples))
    say("the page")
    _strips(evaluation, policies, out / "strips")
    rows = [
        {"policy": name, **judge(name, recipe, evaluation, bench), **facts(name, evaluation, bench)}
        | {"train": trained(recipe, out / name)}
        for name, recipe in parsed.items()
    ]
    settings = {"recipes": {name: recipe.resolved() for name, recipe in parsed.items()}}
    document = result.make("reproduce", out.name, settings, rows)
    result.save(document, out / "reproduce.json")
    page = _report(out, list(parsed), title or f"{len(parsed)} recipes on one budget")
    _show(console, evaluation, bench, page)
    return {**document, "page": str(page)}


def comparable(recipes: dict[str, Recipe]) -> Recipe:
    """The first recipe. Raises ValueError unless all have one teacher, data set, training budget and benchmark."""
    if not recipes:
        raise ValueError("name at least one recipe, such as recipes/pi05-mini/metaworld/shallow_pi-4.yaml")
    first_name, first = next(iter(recipes.items()))
    for name, recipe in recipes.items():
        for part in ("teacher", "data", "train"):
            if getattr(recipe, part) != getattr(first, part):
                raise ValueError(f"{name} and {first_name} differ in {part}: a comparison needs the same for all")
        mine, theirs = ((r.gate.sim, r.gate.tasks, r.gate.episodes) for r in (recipe, first))
        if mine != theirs:
            raise ValueError(f"{name} and {first_name} differ in gate.sim, gate.tasks or gate.episodes")
    return first


def judge(name: str, recipe: Recipe, evaluation: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    """What a recipe's gate asks at least, what was found, and whether it is met. What is not asked is not judged."""
    row = next(row for row in evaluation["rows"] if row["policy"] == name)
    timed = next(row for row in bench["rows"] if row["policy"] == name)
    found = {
        "points": round(100 * row["paired"]["difference"], 4),
        "speedup": timed["ratio"]["p50"],
        "success": row["success"]["rate"],
    }
    gate = recipe.gate
    least = {"points": None if gate.points is None else -gate.points, "speedup": gate.speedup, "success": gate.success}
    asked = {key: value for key, value in least.items() if value is not None}
    met = {key: found[key] >= value for key, value in asked.items()}
    return {"gate": asked, "found": found, "met": met, "paired": row["paired"], "latency_ms": timed["latency_ms"]}


def table(document: dict[str, Any]) -> Any:
    """For a terminal: what was promised and what was found, then what each student runs and what it took to make."""
    from rich.console import Group

    return Group(_gates(document["rows"]), *_efforts(document["rows"]))


def _efforts(rows: list[dict[str, Any]]) -> list[Any]:
    """Layers, arithmetic and training of every recipe; nothing for a Result that does not tell."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table("recipe", "layers run", "% of FLOPs", "trained, M", "training, min", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        if "flop_share" in row and "trainable_parameters" in row.get("train", {}):
            ran, train = row.get("layers_run", {}).get("eval"), row["train"]
            grid.add_row(
                row["policy"],
                f"{ran['mean']:.2f} of {row['layers']}" if ran else str(row["layers"]),
                f"{100 * row['flop_share']:.3g}",
                f"{train['trainable_parameters'] / 1e6:.3g}",
                f"{train['seconds'] / 60:.3g}",
            )
    return [grid] if grid.rows else []


def _gates(rows: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table("recipe", "gate", "asked", "found", "", box=SIMPLE_HEAD, pad_edge=False)
    forms = {"points": ("points against the teacher", "{:+.1f}"), "speedup": ("p50, x faster", "{:.2f}")}
    forms["success"] = ("success", "{:.3f}")
    for row in rows:
        for key, asked in row["gate"].items():
            told, form = forms[key]
            cells = (f"at least {form.format(asked)}", form.format(row["found"][key]))
            grid.add_row(row["policy"], told, *cells, "met" if row["met"][key] else "[bold]NOT MET[/]")
        if not row["gate"]:
            grid.add_row(row["policy"], "none: a control", "", "", "")
    return grid


def _once(made: Path, policies: list[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The Result in a file; made first when it is not there or lacks one of these policies."""
    found = result.load(made) if made.exists() else {"rows": []}
    if not made.exists() or not set(policies) <= {row.get("policy") for row in found["rows"]}:
        found = make()
        result.save(found, made)
    return found


def _student(recipe: Recipe, folder: Path) -> Path:
    """The trained policy; a finished run is taken as it is. Raises ValueError for one of another recipe."""
    from lithe.train import train

    if not (folder / "result.json").is_file():
        train(recipe, folder)
    elif _weighty(json.loads((folder / "recipe.json").read_text())["recipe"]) != _weighty(recipe.resolved()):
        raise ValueError(f"{folder} holds a run of another recipe: choose another --out, or delete that folder")
    return folder / "student"


def _weighty(resolved: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe decides the weights: neither its name nor what its gate asks. A knob that a method did
    not have yet is a difference: its default may be another method than before."""
    return {part: value for part, value in resolved.items() if part not in ("name", "gate")}


def _evaluate(common: Recipe, policies: dict[str, str], out: Path) -> dict[str, Any]:
    from lithe.evaluate import evaluate

    gate = common.gate
    document = evaluate(
        list(policies.values()),
        gate.sim,
        list(gate.tasks) or None,
        gate.episodes,
        names=list(policies),
        against=TEACHER,
        out=out / "eval",
    )
    result.save(document, out / "eval.json")
    return document


def _bench(common: Recipe, policies: dict[str, str], runs: int) -> dict[str, Any]:
    """All policies see the same recorded episodes, static ones too."""
    from lithe import api
    from lithe.bench import bench

    shown = api.data(**common.data)
    return bench(list(policies.values()), names=list(policies), runs=runs, baseline=TEACHER, data=shown)


def _profile(common: Recipe, samples: int) -> dict[str, Any]:
    from lithe import api
    from lithe.profile import profile

    return profile(str(common.teacher.source), api.data(**common.data), samples=samples)


def _strips(evaluation: dict[str, Any], policies: dict[str, str], folder: Path) -> None:
    """The pictures, unless they are there and show the policies that were evaluated."""
    from lithe.report.strips import INDEX, read, strips

    shown = {strip.weights for strip in read(folder)} if (folder / INDEX).is_file() else set()
    if shown != {evaluation["settings"]["policies"][name]["weights"] for name in policies}:
        strips(evaluation, policies, folder)


def _show(console: Console, evaluation: dict[str, Any], bench: dict[str, Any], page: Path) -> None:
    from lithe.bench import table as times
    from lithe.evaluate import table as successes

    console.print(successes(evaluation))
    console.print(times(bench))
    console.print(f"Open {page} in a browser.", soft_wrap=True)


def _report(out: Path, names: list[str], title: str) -> Path:
    from lithe.report import report

    results = [out / f"{kind}.json" for kind in ("eval", "bench", "profile")]
    return report([*results, *(out / name for name in names)], out / "report.html", title=title)
