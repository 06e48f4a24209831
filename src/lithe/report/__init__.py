"""`lithe report`: Results, run folders and film strips put together into one self-contained HTML page.

A headline in words, made from the Results; then success, speed, the two against each other, reaction, what was cut,
which layers ran, how alike they are and how they score, training, film strips, and where every number comes from.
Sections appear for what was given. No script, no network, light and dark, wide and narrow, on paper. The bricks are in
page.py, the drawings in figures.py, the style in page.css. Nothing is measured here and nothing is typed in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lithe.report import anatomy, importance, reaction, routes, speed, success, training
from lithe.report.films import films
from lithe.report.material import Material, gather
from lithe.report.page import Html, details, page, section, table, tag
from lithe.report.strips import strips
from lithe.report.verdict import verdict

__all__ = ["report", "strips"]


def report(results: Sequence[str | Path], out: str | Path, title: str = "lithe report") -> Path:
    """Writes the page to the file `out`, whole or not at all, and returns it.

    results: Result files of the kinds eval, bench, profile, train and explain; run folders (recipe.json with
    metrics.jsonl); folders made by `strips`, of which one called `strips` beside an evaluation's file is found by
    itself. Raises ValueError, saying what is accepted, for an input that nothing can be made of.
    """
    from lithe._disk import write_atomically

    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the page a name in it, such as {out / 'report.html'}")
    material = gather([Path(path) for path in results])
    sections = [
        ("Success", success.success(material)),
        ("Speed", speed.speed(material)),
        ("Success against time", speed.pareto(material)),
        ("Reaction", reaction.reaction(material)),
        ("What was cut", anatomy.cut(material)),
        ("Layers that ran", routes.routes(material)),
        ("Layers over denoise time", anatomy.similarity(material)),
        ("Layer scores", importance.scores(material)),
        ("Training", training.training(material)),
        ("Film strips", films(material)),
        ("Provenance", provenance(material)),
    ]
    if material.of("eval") or material.of("bench") or not material.realtime():
        lead = [*verdict(material), *([glance] if (glance := success.glance(material)) else [])]
    else:
        lead = reaction.lead(material)
    text = page(title, lead, [section(name, *parts) for name, parts in sections if parts])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text.encode("utf-8", "replace"))
    return out


def provenance(material: Material) -> list[Html]:
    """Where every number comes from: the Results in a table, their settings and the recipes folded away."""
    rows, names = [], _file_names(material)
    for source, name in zip(material.sources, names, strict=True):
        d, facts = source.document, source.document.get("hardware", {})
        torch, place = d.get("versions", {}).get("torch"), facts.get("gpu") or facts.get("cpu")
        cells = (d["kind"], d.get("name"), d.get("commit"), d.get("recipe_hash"), torch, place)
        rows.append([name, *(str(cell if cell is not None else "–") for cell in cells)])
    head = ["file", "kind", "name", "commit", "recipe", "torch", "machine"]
    parts = [table(head, rows, "Results", words=7)] if rows else []
    if any(str(source.document.get("commit", "")).endswith("+") for source in material.sources):
        parts.append(tag("p", "A commit that ends in + had uncommitted changes.", class_="under"))
    kept = ("recipe_hash", "commit", "versions", "hardware", "settings", "ceilings")
    for source, name in zip(material.sources, names, strict=True):
        told = {key: source.document[key] for key in kept if key in source.document}
        parts.append(_folded(f"{name}: versions, hardware, settings", told))
    return parts + [_folded(f"{training.name}: recipe", training.recipe) for training in material.trainings]


def _file_names(material: Material) -> list[str]:
    """Files by their names, with their folders' where two are called alike."""
    plain = [source.path.name for source in material.sources]
    return [
        name if plain.count(name) == 1 else f"{source.path.resolve().parent.name}/{name}"
        for name, source in zip(plain, material.sources, strict=True)
    ]


def _folded(summary: str, content: dict[str, Any]) -> Html:
    """Settings as they stand in the file."""
    return details(summary, tag("pre", json.dumps(content, indent=2, ensure_ascii=False)))
