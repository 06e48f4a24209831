"""Recipes: strict down to the last key, one base, dotted overrides, a hash of the meaning and not of the spelling."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lithe import api, recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD: dict[str, Any] = {
    "name": "small",
    "teacher": {"family": "pi", "preset": "pico", "seed": 1, "settings": {"variant": "pi0"}},
    "method": {"name": "shallow_pi", "keep": 2, "attention_layers": [0, 1], "heads": "mean"},
    "data": {"name": "fake", "length": 8, "cameras": ["corner2", "gripperPOV"]},
    "train": {"steps": 4, "warmup": 0, "freeze": ["vision."], "betas": [0.9, 0.99], "precision": "fp32"},
    "gate": {"tasks": ["reach-v3"], "points": 2.0},
}


def write(folder: Path, data: Any, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one setting replaced, or removed where the value is `...`."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    here = data
    for name in parents:
        here = here[name]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return data


def test_a_recipe_becomes_typed_objects(tmp_path):
    found = recipe.load(write(tmp_path, GOOD))
    assert found.train.betas == (0.9, 0.99) and found.train.freeze == ("vision.",) and found.train.batch == 64
    assert found.teacher.settings == {"variant": "pi0"} and found.gate.tasks == ("reach-v3",)
    method = found.build_method()
    assert (type(method).__name__, method.keep, method.attention_layers) == ("ShallowPi", 2, (0, 1))


def test_what_is_left_out_has_its_default():
    found = recipe.parse(
        {"name": "x", "teacher": {"source": "p"}, "method": {"name": "finetune"}, "data": {"name": "fake"}}, "r"
    )
    assert found.train == recipe.Train() and found.gate is None and found.build_method().keep == 0


# -- overrides and bases -----------------------------------------------------------------------------------------------


def test_overrides_reach_every_section(tmp_path):
    texts = ["method.keep=3", "train.freeze=[]", "train.lr=1e-3", "name=other", "data.length=9", "gate=null"]
    texts += ["teacher.settings.variant=pi05", "train.augment=false", "method.heads=separate"]
    found = recipe.load(write(tmp_path, GOOD), texts)
    assert found.build_method().keep == 3 and found.build_method().heads == "separate"
    assert (found.train.freeze, found.train.lr, found.train.augment) == ((), 1e-3, False)
    assert (found.name, found.data["length"], found.gate) == ("other", 9, None)
    assert found.teacher.settings == {"variant": "pi05"}


def test_an_override_can_open_a_section(tmp_path):
    found = recipe.load(write(tmp_path, changed("gate", ...)), ["gate.success=0.5"])
    assert found.gate.success == 0.5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("method.kep=3", "'kep'; did you mean 'keep'"),
        ("methd.keep=3", "'methd'; did you mean 'method'"),
        ("method.keep", "is not an override; write it as section.key=value"),
        ("=3", "is not an override"),
        ("name.first=x", "'name' is a value, not a section"),
        ("train.steps=[1", "the value in 'train.steps=.1' is not valid YAML"),
        ("train.steps=2020-13-45", "not valid YAML"),
        ("train.steps=many", "train: steps: input should be a valid integer"),
        (".=1", "there is no setting ''"),
        ("method={}", "method needs a name"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe.load(write(tmp_path, GOOD), [text])


def test_a_recipe_lies_on_top_of_its_base(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    found = recipe.load(
        write(tmp_path, {"base": "base.yaml", "name": "over", "train": {"lr": 1.0}, "method": {"keep": 3}})
    )
    assert (found.name, found.train.lr, found.train.steps) == ("over", 1.0, 4)
    assert found.build_method().keep == 3 and found.build_method().heads == "mean"


def test_another_method_replaces_the_one_of_the_base(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    found = recipe.load(write(tmp_path, {"base": "base.yaml", "method": {"name": "finetune"}}))
    assert found.method == {"name": "finetune"}


@pytest.mark.parametrize("base", ["missing.yaml", ".", 5, ["base.yaml"], {"a": 1}, True, "nested.yaml"])
def test_a_wrong_base_is_refused(tmp_path, base):
    write(tmp_path, {**GOOD, "base": "x.yaml"}, "nested.yaml")
    with pytest.raises(ValueError, match="must be a recipe beside it that has no base of its own"):
        recipe.load(write(tmp_path, {**GOOD, "base": base}))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b", "must be a mapping"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("a: 1\n" * 41, "has 41 lines; a recipe has at most 40"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
    ],
)
@pytest.mark.parametrize("place", ["recipe", "base"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, complaint, place):
    path = write(tmp_path, text, f"{place}.yaml")
    if place == "base":
        path = write(tmp_path, {"base": "base.yaml", "name": "x"})
    with pytest.raises(ValueError, match=complaint) as refused:
        recipe.load(path)
    assert f"{place}.yaml" in str(refused.value)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no recipe .*lithe list recipes"):
        recipe.load(tmp_path / "no.yaml")


# -- strictness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("trian", {}, "'trian'; did you mean 'train'"),
        ("teacher.presets", "x", "'presets'; did you mean 'preset'"),
        ("train.stepss", 1, "'stepss'; did you mean 'steps'"),
        ("gate.point", 1, "'point'; did you mean 'points'"),
        ("method.attn", 1, "there is no setting 'attn'"),
        ("data.lenght", 1, "data: there is no setting 'lenght'; did you mean 'length'"),
        ("method.name", "shallow", "no 'shallow' among lithe's methods; did you mean 'shallow_pi'"),
        ("data.name", "fke", "no 'fke' among lithe's data; did you mean 'fake'"),
        ("method.name", ..., "method needs a name; one of .*shallow_pi"),
        ("data.name", ..., "data needs a name; one of .*fake"),
        ("name", ..., "name: field required"),
        ("teacher", ..., "teacher: field required"),
        ("method", ..., "method: field required"),
        ("data", ..., "data: field required"),
        ("name", 5, "name: input should be a valid string"),
        ("teacher", "pico", "teacher must be a mapping"),
        ("teacher", None, "teacher: "),
        ("method", "shallow_pi", "method needs a name"),
        ("data", ["fake"], "data needs a name"),
        ("train", [1], "train must be a mapping"),
        ("train", None, "train: "),
        ("train.steps", "many", "train: steps: input should be a valid integer.*found 'many'"),
        ("train.steps", 1.5, "train: steps: "),
        ("train.steps", None, "train: steps: "),
        ("train.betas", [0.9], r"train: betas.*field required"),
        ("train.freeze", "vision.", "train: freeze: input should be a valid tuple"),
        ("train.augment", "perhaps", "train: augment: input should be a valid boolean"),
        ("method.keep", "six", "method shallow_pi: keep: "),
        ("method.heads", "both", "method shallow_pi: heads: input should be 'separate' or 'mean'"),
        ("method.attention_layers", [1], "attention_layers"),
        ("method.1", 2, "there is no setting '1'"),
        ("data.length", "x", "data: length: input should be a valid integer"),
        ("data.cameras", "corner2", "data: cameras: "),
        ("teacher.settings", [1], "teacher: settings: "),
        ("teacher.preset", ..., "teacher needs either source .* or family and preset"),
        ("teacher.source", "x", "teacher needs either source .* or family and preset"),
    ],
)
def test_a_wrong_setting_is_refused(path, value, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe.parse(changed(path, value), "recipe")


@pytest.mark.parametrize("key", [1, True, None, 2.5])
@pytest.mark.parametrize("section", [None, "teacher", "method", "data", "train", "gate"])
def test_a_key_that_is_no_word_is_refused(section, key):
    data = copy.deepcopy(GOOD)
    (data[section] if section else data)[key] = 1
    with pytest.raises(ValueError, match=f"there is no setting {key}|{section}.*input should be a valid string"):
        recipe.parse(data, "recipe")


@pytest.mark.parametrize("ignored", [{"family": "pi"}, {"seed": 3}, {"settings": {"depth": 2}}])
def test_a_setting_that_would_be_ignored_is_refused(ignored):
    with pytest.raises(ValueError, match=r"teacher.source is a policy as it is: leave out family, seed and settings"):
        recipe.parse({**GOOD, "teacher": {"source": "zoo/x", **ignored}}, "recipe")


def test_the_python_interface_is_as_strict():
    with pytest.raises(ValueError, match="'kep'; did you mean 'keep'"):
        api.method("shallow_pi", kep=3)
    with pytest.raises(ValueError, match="'lenght'; did you mean 'length'"):
        api.data("fake", lenght=3)
    assert api.data("fake", cameras=["a"], length=3).cameras == ("a",)


def test_a_plug_in_gets_its_settings_in_the_types_it_declares():
    class Kind:
        def __init__(self, *, size: int, names: tuple[str, ...] = (), other=None) -> None: ...

    found = recipe.check_keywords(Kind, {"size": "3", "names": ["a"], "other": [1]}, "data kind")
    assert found == {"size": 3, "names": ("a",), "other": [1]}
    with pytest.raises(ValueError, match="data kind: the setting 'size' is missing"):
        recipe.check_keywords(Kind, {}, "data kind")
    with pytest.raises(ValueError, match="data kind: size: input should be a valid integer"):
        recipe.check_keywords(Kind, {"size": "x"}, "data kind")


# -- mutations: always a recipe or a ValueError that names the key, never anything else --------------------------------

PLACES = [(section, key) for section, part in GOOD.items() if isinstance(part, dict) for key in part]
PLACES += [(section,) for section in GOOD]
WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(width=32) | st.text(max_size=5) | st.dates()
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(0, 3), inner, max_size=3),
    max_leaves=6,
)
MUTATING = settings(max_examples=250, deadline=None, database=None, derandomize=True)


@MUTATING
@given(place=st.sampled_from(PLACES), value=JUNK)
def test_any_value_anywhere_is_taken_or_refused_by_name(place, value):
    found = attempt(lambda: recipe.parse(changed(".".join(place), value), "recipe"))
    assert isinstance(found, recipe.Recipe) or any(word in str(found) for word in place)


def attempt(call: Any) -> Any:
    """What a call returns, or the ValueError it raises; anything else is a failure."""
    try:
        return call()
    except ValueError as error:
        return error


@MUTATING
@given(
    section=st.sampled_from([None, *(s for s, part in GOOD.items() if isinstance(part, dict))]), key=WORDS, value=JUNK
)
def test_any_key_that_does_not_exist_is_refused_by_name(section, key, value):
    data = copy.deepcopy(GOOD)
    part = data[section] if section else data
    kinds = {None: recipe.Recipe, "teacher": recipe.TeacherSource, "train": recipe.Train, "gate": recipe.Gate}
    known = {f.name for f in fields(kinds[section])} if section in kinds else {"task", "scope", "size", "seed", "fps"}
    if key in known | set(part):
        return
    part[key] = value
    with pytest.raises(ValueError, match=key):
        recipe.parse(data, "recipe")


@MUTATING
@given(text=st.text(max_size=40) | st.lists(st.sampled_from("a:[]{}-,#&*!|>'\"%@`\n ?=.~<1"), max_size=30).map("".join))
def test_any_text_is_taken_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(ValueError):
        recipe.load(path)


@MUTATING
@given(
    text=st.text(max_size=25)
    | st.tuples(st.sampled_from([".".join(p) for p in PLACES]), st.text(max_size=12)).map("=".join)
)
def test_any_override_is_taken_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "good.yaml"
    if not path.exists():
        write(path.parent, GOOD, path.name)
    found = attempt(lambda: recipe.load(path, [text]))
    assert isinstance(found, recipe.Recipe) or str(found)


# -- hash --------------------------------------------------------------------------------------------------------------


def backwards(data: Any) -> Any:
    return {k: backwards(v) for k, v in reversed(data.items())} if isinstance(data, dict) else data


def test_the_hash_ignores_order_and_spelled_out_defaults():
    reference = recipe.parse(GOOD, "recipe").hash
    assert recipe.parse(backwards(GOOD), "elsewhere").hash == reference
    assert recipe.parse(changed("train.batch", 64), "recipe").hash == reference
    assert recipe.parse(changed("method.temperature", 1), "recipe").hash == reference
    assert len(reference) == 16 and int(reference, 16) >= 0


@pytest.mark.parametrize(
    ("path", "value"),
    [("name", "x"), ("train.lr", 1.0), ("method.keep", 3), ("data.length", 9), ("teacher.seed", 2), ("gate", None)],
)
def test_the_hash_depends_on_every_section(path, value):
    assert recipe.parse(changed(path, value), "recipe").hash != recipe.parse(GOOD, "recipe").hash


def test_a_resolved_recipe_is_plain_data_and_the_same_recipe():
    found = recipe.parse(GOOD, "recipe")
    again = recipe.parse(json.loads(json.dumps(found.resolved())), "resolved")
    assert again.hash == found.hash and again.train == found.train and again.build_method() == found.build_method()


# -- those shipped -----------------------------------------------------------------------------------------------------

SHIPPED = sorted(RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_shipped_recipe_is_small_and_loads(path):
    assert len(path.read_text().splitlines()) <= recipe.LINES
    if not path.stem.startswith("_"):  # a base is no recipe of its own
        found = recipe.load(path)
        assert found.name and found.gate is not None and len(found.hash) == 16


def test_shipped_recipes_have_names_of_their_own():
    names = [recipe.load(path).name for path in SHIPPED if not path.stem.startswith("_")]
    assert names and len(set(names)) == len(names)
