"""The registry: a folder lists the plug-ins, an entry point adds one from outside, a wrong name gets a suggestion."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lithe import registry
from lithe.methods.base import Method

SOURCE = Path(registry.__file__).parent


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_public_file_is_a_plug_in_and_nothing_else_is(kind):
    files = {p.stem for p in (SOURCE / kind).glob("*.py") if not p.stem.startswith("_") and p.stem != "base"}
    assert set(registry.names(kind)) >= files
    assert registry.names(kind) == sorted(registry.names(kind))
    assert not {"base", "__init__"} & set(registry.names(kind))


def test_names_are_listed_without_importing(monkeypatch):
    for name in [m for m in sys.modules if m.startswith("lithe.methods.")]:
        monkeypatch.delitem(sys.modules, name)
    registry.names("methods")
    assert not [m for m in sys.modules if m.startswith("lithe.methods.")]


def test_a_plug_in_is_the_class_of_its_file():
    assert registry.get("methods", "shallow_pi").__name__ == "ShallowPi"
    assert registry.get("families", "pi").__name__ == "Pi"


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("methods", "shalow_pi", "no 'shalow_pi' among lithe's methods; did you mean 'shallow_pi'"),
        ("methods", "xyzzy", r"no 'xyzzy' among lithe's methods; there are: .*shallow_pi"),
        ("methods", None, "no None among lithe's methods"),
        ("methods", 5, "no 5 among lithe's methods"),
        ("methods", ["a"], r"no \['a'\] among"),
        ("methods", {"a": 1}, r"no \{'a': 1\} among"),
        ("methods", "base", "no 'base' among"),
        ("methods", "_depth", "no '_depth' among"),
        ("sauces", "x", "unknown kind of plug-in 'sauces'; choose from families, methods"),
    ],
)
def test_a_wrong_name_is_refused(kind, name, complaint):
    with pytest.raises(ValueError, match=complaint):
        registry.get(kind, name)


def test_an_entry_point_adds_a_plug_in_from_outside(monkeypatch):
    class Outside:
        pass

    entry = SimpleNamespace(name="outside", load=lambda: Outside)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "lithe.methods" else [])
    assert "outside" in registry.names("methods") and "outside" not in registry.names("families")
    assert registry.get("methods", "outside") is Outside
    assert registry.get("methods", "finetune").__name__ == "Finetune"


def test_a_file_with_two_plug_ins_is_an_error(monkeypatch):
    twins = ModuleType("lithe.methods.twins")
    for name in ("One", "Two"):
        setattr(twins, name, type(name, (Method,), {"__module__": twins.__name__}))
    monkeypatch.setitem(sys.modules, twins.__name__, twins)
    monkeypatch.setattr(registry, "names", lambda kind: ["twins"])
    with pytest.raises(AssertionError, match="exactly one public Method"):
        registry.get("methods", "twins")


def test_a_private_or_imported_class_is_not_the_plug_in(monkeypatch):
    module = ModuleType("lithe.methods.single")
    for name, home in (("Single", module.__name__), ("_Part", module.__name__), ("Borrowed", "elsewhere")):
        setattr(module, name, type(name, (Method,), {"__module__": home}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "names", lambda kind: ["single"])
    assert registry.get("methods", "single").__name__ == "Single"


def test_suggestions_are_for_near_misses_only():
    assert registry.suggestion("kep", ["keep", "task"]) == "; did you mean 'keep'?"
    assert registry.suggestion("zzz", ["keep", "task"]) == ""
    assert registry.suggestion("keep", []) == ""
