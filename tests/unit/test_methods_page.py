"""docs/methods.md says what probing finds now, and a method that a family cannot host is refused before it trains."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lithe import registry, surgery
from lithe.distill import Trainer
from lithe.families.pi import Pi
from lithe.methods.dysl import Dysl
from lithe.methods.finetune import Finetune
from lithe.methods.shallow_pi import ShallowPi
from lithe.recipe import Train
from lithe.surgery import Stack

ROOT = Path(__file__).parents[2]


def module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


PAGE = module(ROOT / "scripts" / "methods.py", "methods_page")


class Discreet(Pi):
    """Shows nothing of its action expert."""

    def forward(self, batch, draw, taps=(), route=None):
        return super().forward(batch, draw, [tap for tap in taps if tap.kind == "prefix"], route)


class Nameless(Pi):
    """Has layers, but no trunk."""

    stacks = (Stack("body", ("trunk.layers", "expert.layers"), ("config.depth",), index="index"),)


def test_the_page_is_what_probing_finds(capsys):
    text = (ROOT / "docs" / "methods.md").read_text()
    assert PAGE.written(text, {"methods": PAGE.what_they_are, "families": PAGE.who_hosts_them}) == text, (
        "docs/methods.md is out of date: run scripts/methods.py"
    )
    assert "lithe:" not in capsys.readouterr().err, "a method warned about the policies it was probed on"
    for marker in ("methods", "families"):
        assert all(_between(text, marker).count(f"\n| {name} |") == 1 for name in registry.names("methods")), marker


def _between(text: str, marker: str) -> str:
    """One generated table of the page, which has those of Results, too."""
    return text.split(f"<!-- {marker}:begin -->")[1].split(f"<!-- {marker}:end -->")[0]


def test_a_planted_difference_is_found():
    tables = {"methods": lambda: "| x |"}
    text = "a\n<!-- methods:begin -->\n| y |\n<!-- methods:end -->\nb\n"
    assert PAGE.written(text, tables) == text.replace("y", "x")
    with pytest.raises((ValueError, IndexError)):
        PAGE.written("no markers", tables)


@pytest.mark.parametrize(
    ("family", "method", "answer"),
    [
        (Discreet, Finetune, "yes"),
        (Discreet, ShallowPi, "refused: pi does not show the attention at layer 3, which this method compares"),
        (Discreet, Dysl, "refused: pi does not show the suffix stream entering layer 0, which cos and cka compare"),
        (Nameless, Finetune, "refused: Nameless has no stack 'trunk'; it has body"),
        (Nameless, Dysl, "refused: Nameless has no stack 'trunk'; it has body"),
    ],
    ids=lambda value: None if isinstance(value, str) else value.__name__,
)
def test_what_a_family_cannot_host_is_refused_with_the_reason(family, method, answer):
    assert PAGE.probe(family, {"variant": "pi05"}, method).startswith(answer)


def test_the_trainer_refuses_with_the_same_words():
    """Before a weight has moved."""
    teacher, data = PAGE.pico(Discreet, {})
    for method, words in (
        (ShallowPi(keep=2), "pi does not show the attention at layer 1"),
        (Dysl(static=(1, 3), pre_skip=False, post_skip=False), "pi does not show the suffix at layer 0"),
    ):
        student = surgery.cut(teacher, method.cut(teacher))
        trainer = Trainer(student, teacher, method, data, Train(steps=4, batch=2, warmup=0, precision="fp32"))
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        with pytest.raises(ValueError, match=f"{words}, which this method compares: choose another method"):
            trainer.fit(None, [])
        assert all((p == before[name]).all() for name, p in student.named_parameters())


def test_the_method_of_the_page_is_one(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)
    (tmp_path / "every_second.py").write_text(code)
    method = module(tmp_path / "every_second.py", "every_second").EverySecond
    assert PAGE.probe(Pi, {}, method) == "yes"
    teacher, _ = PAGE.pico(Pi, {})
    assert method(start=1).cut(teacher)[0].layers == (1, 3)
