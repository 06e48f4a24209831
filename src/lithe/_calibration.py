"""What a method learns from data before its cut: asked once a run, kept in the run folder, alike in all processes.

Layer scores are floating-point sums, so another machine may order two close layers the other way. A resumed run must
not: its checkpoints hold the layers that were chosen. The knobs that calibration filled in are therefore written beside
the recipe ("chosen" in recipe.json) and taken from there by whoever resumes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lithe import recipe
from lithe.data.base import Data
from lithe.families.base import Family
from lithe.methods.base import Method

CHOSEN = "chosen"


def settled(
    method: Method, teacher: Family, data: Data, out: str | Path | None, identity: dict[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method with nothing left to be calibrated, and the identity of its run with what was filled in.

    out, identity: as in `distill`. A run that was begun there under the same identity keeps its choice.
    """
    begun = _begun(out)
    filled = begun.pop(CHOSEN, None)
    if filled is None or begun != json.loads(json.dumps(identity)):
        before, after = dataclasses.asdict(method), dataclasses.asdict(method.calibrated(teacher, data))
        filled = {knob: value for knob, value in after.items() if value != before[knob]}
    if not filled:
        return method, identity
    known = {**dataclasses.asdict(method), **filled}
    return recipe.strict(type(method), known, "what calibration chose"), {**identity, CHOSEN: filled}


def _begun(out: str | Path | None) -> dict[str, Any]:
    """The identity of the run in a folder; empty where there is none, or none that can be read."""
    path = Path(out) / "recipe.json" if out else None
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
