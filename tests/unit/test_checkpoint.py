"""Policy folders: the same bits back, whole or not at all whatever fails, nothing damaged or foreign is ever loaded."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from lithe import checkpoint, surgery
from lithe._disk import sha256, write_atomically
from lithe.checkpoint import CARD, WEIGHTS
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.surgery import KeepLayers

SIDE = ("normalization.json", "tokenizer.json")


def pico(seed: int = 0) -> Pi:
    model = Pi.fresh("pico", seed=seed)
    data = FakeData(cameras=model.spec.cameras, size=16)
    model.fit_to(data.stats, data.tasks, data.cameras)
    return surgery.cut(model, [KeepLayers("trunk", (0, 3))]).eval()


@pytest.fixture(scope="module")
def student() -> Pi:
    return pico()


@pytest.fixture
def folder(student, tmp_path) -> Path:
    return checkpoint.save(student, tmp_path / "student", step=7)


@pytest.fixture(scope="module")
def pristine(student, tmp_path_factory) -> Path:
    return checkpoint.save(student, tmp_path_factory.mktemp("pristine") / "student")


def same(a: Pi, b: Pi) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- there and back ----------------------------------------------------------------------------------------------------


def test_everything_comes_back(student, folder):
    loaded = checkpoint.load(folder)
    assert same(loaded, student) and not loaded.training
    assert (loaded.history, loaded.describe(), loaded.spec) == (student.history, student.describe(), student.spec)
    assert loaded.tokenizer.to_str() == student.tokenizer.to_str()
    for feature in ("action", "observation.state"):
        mine, theirs = (model.normalizer.affine(feature) for model in (loaded, student))
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_the_card_says_where_it_comes_from(folder):
    card = json.loads((folder / CARD).read_text())
    assert (card["format"], card["family"], card["step"]) == (1, "pi", 7)
    assert card["history"] == [{"op": "KeepLayers", "stack": "trunk", "layers": [0, 3]}]
    assert card["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert card["files"].keys() == {CARD, *SIDE}


def test_saving_what_was_loaded_writes_the_same_bytes(pristine, tmp_path):
    again = checkpoint.save(checkpoint.load(pristine), tmp_path / "again")
    assert contents(again) == contents(pristine)


def test_loaded_weights_lie_on_aligned_addresses(pristine):
    assert all(p.data_ptr() % 64 == 0 for p in checkpoint.load(pristine).parameters())


def test_bf16_storage(student, tmp_path):
    folder = checkpoint.save(student, tmp_path / "half", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(folder / WEIGHTS).values()} == {torch.bfloat16}
    assert (folder / WEIGHTS).stat().st_size < 0.6 * sum(4 * t.numel() for t in student.state_dict().values())
    for dtype, expected in ((torch.float32, torch.float32), (None, torch.bfloat16), (torch.float64, torch.float64)):
        loaded = checkpoint.load(folder, dtype).state_dict()
        assert {t.dtype for t in loaded.values()} == {expected}
        assert all(torch.equal(t, student.state_dict()[k].bfloat16().to(expected)) for k, t in loaded.items())


def test_saving_replaces_an_older_policy(folder):
    other = pico(seed=1)
    checkpoint.save(other, folder)
    assert same(checkpoint.load(folder), other)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["student"]


# -- damage ------------------------------------------------------------------------------------------------------------


def truncate(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def zero_tail(path: Path, at: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes(len(content) - at))


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0b100
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("harm", [truncate, zero_tail, flip_a_bit])
@pytest.mark.parametrize("name", [WEIGHTS, CARD, *SIDE])
def test_a_damaged_file_is_noticed(folder, name, harm, place):
    path = folder / name
    harm(path, int(place * path.stat().st_size))
    with pytest.raises(ValueError, match=name.replace(".", r"\.") + "|policy"):
        checkpoint.load(folder)


def test_every_flipped_bit_of_the_card_is_noticed_or_harmless(student, folder):
    """At all places of the card: refused, or the very same policy (a bit of white space, a key that nothing reads)."""
    path, content = folder / CARD, (folder / CARD).read_bytes()
    for at in range(0, len(content), 7):
        flip_a_bit(path, at)
        try:
            loaded = checkpoint.load(folder)
        except ValueError:
            pass
        else:
            assert (loaded.history, loaded.describe()) == (student.history, student.describe())
        path.write_bytes(content)


@pytest.mark.parametrize("name", [WEIGHTS, CARD, *SIDE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "lacks 'format'"),
        ("5", "lacks 'format'"),
        ("{}", "lacks 'format'"),
        ('{"format": 1, "family": "pi"}', "lacks 'config'"),
        ('{"format": 2, "family": "pi", "config": {}, "history": [], "sha256": ""}', "has format 2, this .* reads 1"),
    ],
)
def test_a_card_of_another_kind_is_refused(folder, text, complaint):
    (folder / CARD).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        checkpoint.load(folder)


def test_a_folder_that_is_no_policy_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"is not a lithe policy folder: it has no student.json; check the path"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,  # a header of 2**64 bytes
        (8).to_bytes(8, "little") + b"{}      ",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}      ' + bytes(8),
    ],
)
def test_weights_that_are_none_are_refused_even_with_their_own_checksum(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    resign(folder, json.loads((folder / CARD).read_text()))
    with pytest.raises(ValueError, match=r"not a readable safetensors file|do not fit the model"):
        checkpoint.load(folder)


def resign(folder: Path, card: dict[str, Any]) -> None:
    """Write a card as an older version, or somebody with bad intentions, would."""
    card = {key: value for key, value in card.items() if key != "files"}
    if "sha256" in card:
        card["sha256"] = sha256(folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card))


def test_folders_of_the_first_version_still_load(student, folder):
    resign(folder, json.loads((folder / CARD).read_text()))
    assert same(checkpoint.load(folder), student)


def test_tokenizer_that_is_none_is_refused_without_a_checksum_too(folder):
    resign(folder, json.loads((folder / CARD).read_text()))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        checkpoint.load(folder)


VALUES = st.none() | st.booleans() | st.integers(-2, 40) | st.floats(-2, 40) | st.text(max_size=4)
WORDS = st.text(max_size=4)
JUNK = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2))


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside JSON data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in inner for found in [(*path, key), *places(value, (*path, key))]]


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(choice=st.data())
def test_a_forged_card_is_refused_or_gives_a_whole_model(pristine, tmp_path_factory, choice):
    """Never another exception, never a model with tensors that were not read."""
    folder = tmp_path_factory.getbasetemp() / "forged"
    if not folder.exists():
        shutil.copytree(pristine, folder)
    card = json.loads((pristine / CARD).read_text())
    card.pop("files")
    *parents, last = choice.draw(st.sampled_from(places(card)))
    here = card
    for key in parents:
        here = here[key]
    here[last] = choice.draw(JUNK)
    resign(folder, card)
    try:
        model = checkpoint.load(folder)
    except ValueError:
        return
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    stored = load_file(folder / WEIGHTS)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())


def test_a_refused_fill_leaves_the_model_as_it_was(student):
    model, wrong = copy.deepcopy(student), dict(student.state_dict())
    wrong["extra"], name = torch.zeros(1), next(iter(wrong))
    wrong[name], gone = torch.zeros(3, 3, 3), list(wrong)[-2]
    del wrong[gone]
    with pytest.raises(ValueError, match="Nothing was loaded") as refused:
        checkpoint.fill(model, wrong, "here")
    for words in (f"1 missing tensors ({gone})", "1 unexpected tensors (extra)", f"1 misshaped tensors ({name})"):
        assert words in str(refused.value)
    assert same(model, student)


# -- atomic writing ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill -9: nothing after it runs, no clean-up either."""


FULL = OSError(errno.ENOSPC, "No space left on device")


def fail_at(patch: pytest.MonkeyPatch, k: int, error: BaseException) -> list[str]:
    """Make the k-th write fail, half done. Returns the list of writes, filled as they happen."""
    writes: list[str] = []

    def wrap(place: Any, name: str, halve: Any = lambda *_: None) -> None:
        sound = getattr(place, name)

        def write(*args: Any, **more: Any) -> Any:
            if isinstance(error, Killed) and len(writes) >= k:
                return None
            writes.append(name)
            if len(writes) == k:
                halve(*args)
                rust = name == "save_file" and error is FULL
                raise SafetensorError("I/O error: No space left on device (os error 28)") if rust else error
            return sound(*args, **more)

        patch.setattr(place, name, write)

    write_bytes = Path.write_bytes
    wrap(checkpoint, "save_file", lambda tensors, path: write_bytes(path, b"half"))
    wrap(Path, "write_text", lambda path, text: write_bytes(path, text.encode()[: len(text) // 2]))
    wrap(Path, "write_bytes", lambda path, content: write_bytes(path, content[: len(content) // 2]))
    wrap(os, "fsync")
    if isinstance(error, Killed):
        for place, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            wrap(place, name)
    return writes


def outcome(k: int, error: BaseException, call: Any) -> tuple[BaseException | None, list[str]]:
    """What `call` raises when its k-th write fails, and the writes it made."""
    with pytest.MonkeyPatch.context() as patch:
        writes = fail_at(patch, k, error)
        try:
            call()
        except (OSError, Killed) as raised:
            return raised, writes
    return None, writes


def test_a_full_disk_at_any_write_leaves_the_old_policy(student, folder):
    other = pico(seed=1)
    for k in range(1, 100):
        raised, writes = outcome(k, FULL, lambda: checkpoint.save(other, folder))
        if raised is None:
            break
        assert isinstance(raised, OSError) and raised.errno == errno.ENOSPC
        assert f"the disk is full: {folder} was not written, what was there before is intact" in str(raised)
        assert same(checkpoint.load(folder), student), f"write {k} ({writes[-1]}) harmed the old policy"
        assert [path.name for path in folder.parent.iterdir()] == ["student"], "half a policy was left behind"
    assert k > 6 and same(checkpoint.load(folder), other)


def test_killed_at_any_moment_one_whole_policy_is_there_and_the_next_save_works(student, tmp_path):
    other, restored = pico(seed=1), 0
    for k in range(1, 100):
        folder = checkpoint.save(student, tmp_path / str(k) / "student")
        raised, writes = outcome(k, Killed(), lambda folder=folder: checkpoint.save(other, folder))
        if raised is None:
            break
        if not folder.exists():  # between the two renames: the next save, even one that fails, puts the old one back
            assert isinstance(outcome(1, FULL, lambda folder=folder: checkpoint.save(other, folder))[0], OSError)
            restored += 1
        new = writes.count("rename") == 2 and writes[-1] != "rename"  # the last rename was done
        assert same(checkpoint.load(folder), other if new else student)
        checkpoint.save(other, folder)
        assert same(checkpoint.load(folder), other)
        assert [path.name for path in folder.parent.iterdir()] == ["student"]
    assert k > 8 and restored == 1


def test_a_single_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")
    for error in (FULL, OSError(errno.EIO, "I/O error"), Killed()):
        for k in (1, 2):
            raised, _ = outcome(k, error, lambda: write_atomically(path, b"new content"))
            assert type(raised) is type(error) and path.read_bytes() == b"old"
            assert isinstance(error, Killed) or [p.name for p in tmp_path.iterdir()] == ["result.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_failure_that_is_no_full_disk_keeps_its_own_words(tmp_path):
    raised, _ = outcome(1, OSError(errno.EIO, "Input/output error"), lambda: write_atomically(tmp_path / "x", b"x"))
    assert isinstance(raised, OSError) and raised.errno == errno.EIO


def test_actions_of_a_loaded_policy_are_bit_identical(student, pristine):
    noise = student.noise(2, torch.Generator().manual_seed(1))
    chunks = [model.act(model.example(2), noise).numpy() for model in (student, checkpoint.load(pristine))]
    assert np.array_equal(*chunks)
