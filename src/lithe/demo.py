"""`lithe demo`: from the shipped teacher to a proven student in a quarter of an hour on two cores.

Collects demonstrations, distils the teacher from 12 to 4 layers, trains the plain control on the same budget, evaluates
all three on the same initial states, times them, profiles the teacher, and writes one page. Every step is skipped when
its result is already there, so that an interrupted demo goes on. The numbers are smaller than the full recipe's: fewer
tasks, demonstrations, steps and episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from lithe import result
from lithe.recipe import load

TASKS = ("drawer-open-v3", "button-press-topdown-v3", "faucet-open-v3", "faucet-close-v3")
METHODS = {"shallow_pi": "shallow_pi-4", "finetune": "finetune-4"}
EPISODES_TO_LEARN, STEPS, EPISODES_TO_PROVE = 30, 700, 12


def demo(
    out: str | Path = "demo", zoo: str | Path = "zoo/pi05-mini-metaworld", recipes: str | Path | None = None
) -> dict[str, Any]:
    """Run every step under `out`; returns the evaluation's Result and the page's path. ValueError without a teacher."""
    out, zoo = Path(out), Path(zoo)
    folder = Path(recipes or "recipes/pi05-mini/metaworld")
    if not (zoo / "student.json").is_file():
        raise ValueError(f"the shipped teacher {zoo} is not here; run `make demo` in a checkout of lithe")
    say = Console().rule
    say("[bold]1 of 5[/] demonstrations by scripted experts")
    _once(out / "data", lambda: _collect(out / "data"))
    policies = {"teacher": str(zoo)}
    say("[bold]2 of 5[/] students: 12 layers to 4, distilled and plainly fine-tuned")
    for name, recipe in METHODS.items():
        policies[name] = str(_student(out, name, folder / f"{recipe}.yaml", zoo))
    say("[bold]3 of 5[/] closed loop on the same initial states")
    evaluation = _evaluate(out, policies)
    say("[bold]4 of 5[/] the stopwatch")
    _once(out / "bench.json", lambda: _bench(out, policies))
    _once(out / "profile.json", lambda: _profile(out, policies["teacher"]))
    say("[bold]5 of 5[/] the page")
    _once(out / "strips" / "strips.json", lambda: _strips(out, evaluation, policies))
    page = _report(out)
    _show(evaluation, out)
    Console().print(f"Open [bold]{page}[/] in a browser.")
    return {**evaluation, "page": str(page)}


def _once(made: Path, make: Callable[[], Any]) -> None:
    if not made.exists():
        make()


def _collect(folder: Path) -> None:
    from lithe.collect import collect

    collect("metaworld", folder, tasks=TASKS, episodes=EPISODES_TO_LEARN)


def _student(out: Path, name: str, path: Path, zoo: Path) -> Path:
    from lithe.train import train

    overrides = [f"teacher.source={zoo}", f"data.root={out / 'data'}", f"train.steps={STEPS}", "train.save_every=100"]
    folder = out / name
    if not (folder / "result.json").is_file():
        train(load(path, overrides), folder)
    return folder / "student"


def _evaluate(out: Path, policies: dict[str, str]) -> dict[str, Any]:
    from lithe.evaluate import evaluate

    document = evaluate(
        list(policies.values()),
        names=list(policies),
        tasks=list(TASKS),
        episodes=EPISODES_TO_PROVE,
        out=out / "eval",
    )
    result.save(document, out / "eval.json")
    return document


def _bench(out: Path, policies: dict[str, str]) -> None:
    from lithe.bench import bench

    result.save(bench(list(policies.values()), names=list(policies), runs=60, warmup=10), out / "bench.json")


def _profile(out: Path, teacher: str) -> None:
    from lithe.api import data
    from lithe.profile import profile

    result.save(profile(teacher, data("lerobot", root=out / "data"), samples=32), out / "profile.json")


def _strips(out: Path, evaluation: dict[str, Any], policies: dict[str, str]) -> None:
    from lithe.report import strips

    strips(evaluation, policies, out / "strips", tasks=TASKS[:2])


def _report(out: Path) -> Path:
    from lithe.report import report

    parts = [out / "eval.json", out / "bench.json", out / "profile.json", *(out / name for name in METHODS)]
    return report(parts, out / "report.html", title="lithe demo: 12 layers to 4")


def _show(evaluation: dict[str, Any], out: Path) -> None:
    from lithe.bench import table as bench_table
    from lithe.evaluate import table as eval_table

    console = Console()
    console.print(eval_table(evaluation))
    console.print(bench_table(result.load(out / "bench.json")))
