"""lithe makes Vision-Language-Action policies light on their feet: teacher in, shallower student and its proof out.

Importing lithe is cheap: every name below is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "bench": "lithe.bench",
    "collect": "lithe.collect",
    "data": "lithe.api",
    "distill": "lithe.distill",
    "evaluate": "lithe.evaluate",
    "explain": "lithe.explain",
    "load": "lithe.api",
    "method": "lithe.api",
    "profile": "lithe.profile",
    "report": "lithe.report",
    "runtime": "lithe.api",
    "save": "lithe.checkpoint",
    "Train": "lithe.recipe",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lithe' has no attribute {name!r}; it has {', '.join(_HOME)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # a submodule of the same name must not shadow the function
    return value
