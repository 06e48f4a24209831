"""The folder is the registry: every public module in `methods/`, `families/`, `sims/`... is one plug-in.

Dropping a file into the folder is the whole registration. A plug-in is the one class defined in the file that
descends from the folder's base class; its name is the file's name. Out-of-tree plug-ins use an entry point in the
group `lithe.<kind>`. Nothing is imported until it is asked for by name, so `import lithe` stays lean.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points

KINDS = ("families", "methods", "routers", "runtimes", "data", "sims")


def names(kind: str) -> list[str]:
    """Every plug-in of a kind, in tree and installed, sorted; imports none of them."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of plug-in {kind!r}; choose from {', '.join(KINDS)}")
    package = importlib.import_module(f"lithe.{kind}")
    here = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base" and not m.name.startswith("_")]
    return sorted({*here, *(e.name for e in entry_points(group=f"lithe.{kind}"))})


def get(kind: str, name: str) -> type:
    """The plug-in class called `name`. Raises ValueError with a suggestion when there is none."""
    known = names(kind)
    if name not in known:
        raise ValueError(
            f"no {name!r} among lithe's {kind}{suggestion(str(name), known)}; there are: {', '.join(known)}"
        )
    for entry in entry_points(group=f"lithe.{kind}"):
        if entry.name == name:
            return entry.load()
    module = importlib.import_module(f"lithe.{kind}.{name}")
    base = getattr(importlib.import_module(f"lithe.{kind}.base"), kind_class(kind))
    own = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    public = [c for c in own if not c.__name__.startswith("_")]
    assert len(public) == 1, f"lithe/{kind}/{name}.py must define exactly one public {base.__name__}, found {public}"
    return public[0]


def kind_class(kind: str) -> str:
    """The base class that plug-ins of a kind descend from: families -> Family."""
    irregular = {"families": "Family", "data": "Data"}
    return irregular.get(kind, kind.removesuffix("s").capitalize())


def suggestion(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for a near miss, else nothing. Shared by every error about a name."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
