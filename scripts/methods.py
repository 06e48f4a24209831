#!/usr/bin/env python
"""Writes the tables of docs/methods.md: what each method is, and which families host it. Nothing is typed by hand.

Every method is cut into every family at its smallest size, asked for its loss and made to act; what a family refuses
stands there with its reason. `--check` only says whether the page is up to date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lithe import recipe, registry, surgery
from lithe.data.fake import FakeData
from lithe.distill import check_shown, finish
from lithe.methods.base import Method, Step
from lithe.surgery import InstallRouter

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
# A family that builds several kinds of model has a column for each; any other has one.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"pi": {"pi0.5": {"variant": "pi05"}, "pi0": {"variant": "pi0"}}}
KEEP = 2  # layers of a cut student; a teacher of the smallest size has four


def main() -> int:
    text = PAGE.read_text()
    wanted = written(text, {"methods": what_they_are, "families": who_hosts_them})
    if "--check" in sys.argv:
        return 0 if wanted == text else _fail("docs/methods.md is not what probing finds: run scripts/methods.py")
    PAGE.write_text(wanted)
    return 0


def written(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The page with what stands between the markers of each table made anew."""
    for name, make in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


# -- who hosts them ----------------------------------------------------------------------------------------------------


def who_hosts_them() -> str:
    """One row a method, one column a family variant."""
    families = columns()
    rows = [["method", *families]]
    for name in registry.names("methods"):
        kind: Any = registry.get("methods", name)
        rows.append([name, *(probe(family, settings, kind) for family, settings in families.values())])
    return table(rows)


def columns() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Family classes with the settings of each variant, by what the column is called."""
    return {
        variant: (registry.get("families", name), settings)
        for name in registry.names("families")
        for variant, settings in VARIANTS.get(name, {name: {}}).items()
    }


def probe(family: Any, settings: dict[str, Any], kind: type[Method]) -> str:
    """ "yes", or why not: one pass of everything that a run does, at the smallest size."""
    try:
        teacher, data = pico(family, settings)
        method = sized(kind).calibrated(teacher, data)
        student = surgery.cut(teacher, method.cut(teacher)).eval()
        finish(method, student, data, torch.device("cpu"))
        with torch.no_grad():
            _ask(student, teacher, method)
            student.act(student.example(1), student.noise(1, torch.Generator().manual_seed(0)))
    except ValueError as error:
        return f"refused: {error}"
    return "yes"


def pico(family: Any, settings: dict[str, Any]) -> tuple[Any, FakeData]:
    """A policy of the smallest size, every parameter moved away from its initial 0, and data that it is fitted to."""
    model = family.fresh("pico", **settings)
    spec, generator = model.spec, torch.Generator().manual_seed(1)
    sizes = {"state_dim": spec.state_dim, "action_dim": spec.action_dim, "size": 24}
    data = FakeData(cameras=spec.cameras, episodes=2, length=10, **sizes)
    model.fit_to(data.stats, data.tasks, data.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval(), data


def sized(kind: type[Method]) -> Method:
    """The method as it is; only a number of layers is made to fit the smallest size."""
    counted = any(field.name == "keep" for field in dataclasses.fields(kind))
    return kind(**({"keep": KEEP} if counted else {}))


def _ask(student: Any, teacher: Any, method: Method) -> None:
    """Every stage's loss, once. Raises ValueError when something that it compares is not there."""
    batch, aux, (mine, theirs) = student.example(2), method.aux(teacher), method.taps(student, teacher)
    draw = student.draw(batch, torch.Generator().manual_seed(0), augment=False)
    expected = teacher(*method.asked(batch, draw), theirs) if method.needs_teacher else None
    check_shown(teacher, theirs, expected)
    for stage in method.stages():
        route = method.route(student, stage, torch.Generator().manual_seed(0))
        out = student(batch, draw, mine, route) if stage.student else None
        check_shown(student, mine, out)
        terms = method.loss(Step(student, batch, out, expected, stage, aux))
        assert all(term.isfinite() for term in terms.values()), f"{method}: {terms}"


# -- what they are -----------------------------------------------------------------------------------------------------


def what_they_are() -> str:
    """One row a method: the first line of its file, its paper, what it costs, what the shipped recipes turn."""
    rows = [["method", "idea", "source", "costs", "knobs turned in recipes (default)"]]
    turned = knobs()
    for name in registry.names("methods"):
        kind: Any = registry.get("methods", name)
        file = Path(inspect.getfile(kind))
        first = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        told = ", ".join(f"{knob} ({_plain(defaults[knob])})" for knob in defaults if knob in turned.get(name, ()))
        rows.append([name, _sentence(first), kind.paper, costs(kind), told])
    return table(rows)


def knobs() -> dict[str, set[str]]:
    """For every method, the knobs that some shipped recipe sets."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "recipes").rglob("[!_]*.yaml")):
        settings = recipe.load(path).method
        found.setdefault(settings["name"], set()).update(settings.keys() - {"name"})
    return found


def costs(kind: type[Method]) -> str:
    """What a run with the defaults needs besides training steps of the student, found by asking the method."""
    teacher, data = pico(*next(iter(columns().values())))
    given = sized(kind)
    method = given.calibrated(teacher, data)
    stages, heads = method.stages(), sum(p.numel() for p in method.aux(teacher).parameters())
    routers = [op.kind for op in method.cut(teacher) if isinstance(op, InstallRouter)]
    told = {
        "a pass over data before the cut": method != given,
        "no training": not stages,
        "the teacher at every step": method.needs_teacher and bool(stages),
        "the task loss alone": not method.needs_teacher and bool(stages),
        f"stages {', '.join(f'`{stage.name}`' for stage in stages)}": len(stages) > 1,
        "heads that are trained and not shipped": heads > 0,
        f"ships a router (`{', '.join(routers)}`)": bool(routers),
        "a pass over data at the end": kind.finish is not Method.finish,
    }
    return "; ".join(what for what, true in told.items() if true)


# -- words -------------------------------------------------------------------------------------------------------------


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _sentence(line: str) -> str:
    """The first line of a file without the name in front of it."""
    said = line.partition(": ")[2] or line
    return said[0].upper() + said[1:]


def _plain(value: Any) -> str:
    """A default as a recipe would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
