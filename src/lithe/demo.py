"""`lithe demo`: from the shipped teacher to a proven student in a quarter of an hour on two cores.

Collects demonstrations, then reproduces two recipes at a smaller size: Shallow-pi from 12 to 4 layers and the plain
control, evaluated and timed beside their teacher. What is done already is not done again, so an interrupted demo goes
on. The numbers are smaller than the full recipe's: fewer tasks, demonstrations, steps and episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lithe.reproduce import reproduce

TASKS = ("drawer-open-v3", "window-close-v3", "faucet-open-v3", "faucet-close-v3")
RECIPES = ("shallow_pi-4", "finetune-4")
EPISODES_TO_LEARN, STEPS, EPISODES_TO_PROVE = 30, 700, 12


def demo(
    out: str | Path = "demo", zoo: str | Path = "zoo/pi05-mini-metaworld", recipes: str | Path | None = None
) -> dict[str, Any]:
    """Run every step under `out`; returns the Result and the page's path. ValueError without a teacher."""
    out, zoo = Path(out), Path(zoo)
    folder = Path(recipes or "recipes/pi05-mini/metaworld")
    if not (zoo / "student.json").is_file():
        raise ValueError(f"the shipped teacher {zoo} is not here; run `make demo` in a checkout of lithe")
    if not (out / "data").exists():
        _collect(out / "data")
    return reproduce(
        [folder / f"{name}.yaml" for name in RECIPES],
        out,
        [
            f"teacher.source={zoo}",
            f"data.root={out / 'data'}",
            f"train.steps={STEPS}",
            "train.save_every=100",
            f"gate.tasks=[{', '.join(TASKS)}]",
            f"gate.episodes={EPISODES_TO_PROVE}",
            "gate.points=null",  # so few episodes prove nothing within a point
        ],
        runs=60,
        samples=32,
        title="lithe demo: 12 layers to 4",
    )


def _collect(folder: Path) -> None:
    from lithe.collect import collect

    Console(stderr=True).rule("demonstrations by scripted experts")
    collect("metaworld", folder, tasks=TASKS, episodes=EPISODES_TO_LEARN)
