"""What there is to choose from: plug-ins with the first line of their file, recipes with their method."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from lithe import registry


def listing(kind: str) -> str:
    """One line per plug-in or recipe of a kind. Raises ValueError for an unknown kind."""
    if kind == "recipes":
        return "\n".join(_recipes(Path("recipes")))
    if kind not in registry.KINDS:
        raise ValueError(
            f"lithe has no list of {kind!r}{registry.suggestion(kind, [*registry.KINDS, 'recipes'])}; "
            f"choose from {', '.join(registry.KINDS)}, recipes"
        )
    names = registry.names(kind)
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {_first_line(kind, name)}" for name in names)


def _first_line(kind: str, name: str) -> str:
    """First line of a plug-in's docstring, read without importing it; nothing for plug-ins outside this package."""
    spec = importlib.util.find_spec(f"lithe.{kind}.{name}") if _in_tree(kind, name) else None
    if spec is None or spec.origin is None:
        return ""
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text()))
    return (doc or "").splitlines()[0]


def _in_tree(kind: str, name: str) -> bool:
    return (Path(__file__).parent / kind / f"{name}.py").exists()


def _recipes(root: Path) -> list[str]:
    import yaml

    if not root.is_dir():
        raise ValueError("there is no folder recipes here; run from a checkout of lithe")
    rows = [(path, yaml.safe_load(path.read_text()) or {}) for path in sorted(root.rglob("[!_]*.yaml"))]
    width = max((len(str(path)) for path, _ in rows), default=0)
    return [f"{path!s:<{width}}  {data.get('method', {}).get('name', 'base')}" for path, data in rows]
