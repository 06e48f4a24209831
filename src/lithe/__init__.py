"""lithe makes Vision-Language-Action policies light on their feet: teacher in, shallower student and its proof out.

Importing lithe is cheap: every name below is loaded when it is first used. A verb and its module share a name
(`lithe.bench` is the function of `lithe/bench/`); on the package the verb owns it, and `from lithe.bench import ...`
reaches into the module.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "bench": "lithe.bench",
    "check": "lithe.check",
    "collect": "lithe.collect",
    "cut": "lithe.cut",
    "data": "lithe.api",
    "distill": "lithe.distill",
    "evaluate": "lithe.evaluate",
    "explain": "lithe.explain",
    "load": "lithe.api",
    "method": "lithe.api",
    "profile": "lithe.profile",
    "report": "lithe.report",
    "reproduce": "lithe.reproduce",
    "runtime": "lithe.api",
    "save": "lithe.checkpoint",
    "Train": "lithe.recipe",
}
__all__ = [*_HOME]


class _Package(ModuleType):
    """The package: importing a submodule must not replace the verb of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'lithe' has no attribute {name!r}; its verbs are {', '.join(_HOME)}")
        return getattr(import_module(_HOME[name]), name)


sys.modules[__name__].__class__ = _Package
