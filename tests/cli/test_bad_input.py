"""Bad input through the real command line: one clear sentence on standard error, the documented exit code, no traces.

Exit codes: 1 something outside went wrong, 2 the request cannot be met as written, 130 interrupted. Nothing that was
written before is lost, and where the message says that the same command goes on, it does.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lithe import api, checkpoint, cli
from lithe._disk import sha256
from lithe._run import Run
from lithe.data.fake import FakeData
from lithe.families.pi import Pi

CAMERAS = ["corner2", "gripperPOV"]
WORDS = "the same command goes on"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    model, data = Pi.fresh("pico"), FakeData(cameras=tuple(CAMERAS), size=16)
    model.fit_to(data.stats, data.tasks, data.cameras)
    return checkpoint.save(model, tmp_path_factory.mktemp("zoo") / "teacher")


@pytest.fixture
def recipe(teacher, tmp_path, monkeypatch) -> Path:
    """A sound recipe in the current folder, with its own copy of the teacher."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "teacher")
    content = {
        "name": "small",
        "teacher": {"source": "teacher"},
        "method": {"name": "shallow_pi", "keep": 2},
        "data": {"name": "fake", "cameras": CAMERAS, "episodes": 2, "length": 8, "size": 16},
        "train": {"steps": 6, "batch": 2, "warmup": 0, "precision": "fp32", "save_every": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(content))
    return Path("recipe.yaml")


@pytest.fixture
def lithe(monkeypatch, capfd):
    """Runs a command in this process; returns its exit code, standard output and standard error."""

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lithe", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def refused(lithe):
    """Runs a command that must fail with this code and one sentence containing these words."""

    def run(code: int, words: str, *command: Any) -> str:
        found, _, error = lithe(*command)
        assert found == code, error
        assert one_sentence(error) and words in error, error
        return error

    return run


def one_sentence(error: str) -> bool:
    return error.startswith("lithe: ") and error.count("\n") == 1 and "Traceback" not in error and len(error) > 20


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_sound_recipe_runs(lithe, recipe):
    code, out, _ = lithe("distill", recipe)
    assert code == 0 and json.loads(out.splitlines()[-1])["kind"] == "train"
    assert checkpoint.load("runs/small/student").depth() == 2
    assert checkpoint.read_card(Path("runs/small/student"))["fps"] == 10, "the rate of the data"
    assert (
        "The policy is in runs/small/student" in out and "lithe bench teacher=teacher student=runs/small/student" in out
    )


# -- recipes and overrides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "override"),
    [
        ("there is no setting 'kep'; did you mean 'keep'", "method.kep=2"),
        ("there is no setting 'trian'; did you mean 'train'", "trian.steps=2"),
        ("there is no setting 'stesp'; did you mean 'steps'", "train.stesp=2"),
        ("train: steps: input should be a valid integer", "train.steps=many"),
        ("did you mean 'shallow_pi'", "method.name=shalow_pi"),
        ("is not an override; write it as section.key=value", "keep"),
        ("is not valid YAML", "method.keep=[1"),
        ("set method.keep to a number from 1 to 4", "method.keep=5"),
        ("set method.keep to a number from 1 to 4", "method.keep=0"),
        ("train.save_every must be at least 1", "train.save_every=0"),
        ("train.batch is 99, but the data has only 16 frames", "train.batch=99"),
        ("no parameter starts with 'visoin'", "train.freeze=[visoin]"),
        ("the student has layers 0 to 1, not 7", "method.attention_layers=[7, 0]"),
        ("input should be a valid integer", "data.length=long"),
        ("leave out family, seed and settings", "teacher.seed=3"),
        ("has no student.json; check the path", "teacher.source=nowhere"),
        ("the policy needs the camera 'gripperPOV'", "data.cameras=[corner2]"),
        ("the policy is for 4 state dimensions, the data has 7", "data.state_dim=7"),
    ],
)
def test_a_wrong_setting(refused, recipe, words, override):
    refused(2, words, "distill", recipe, override)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not valid YAML"),
        ("", "must be a mapping"),
        ("5: 6\n", "there is no setting 5"),
        ("base: gone.yaml\nname: x\n", "must be a recipe beside it"),
        ("name: x\n" + "# long\n" * 50, "a recipe has at most 40"),
    ],
)
def test_a_file_that_is_no_recipe(refused, recipe, text, words):
    recipe.write_text(text)
    refused(2, words, "distill", recipe)


def test_binary_rubbish_as_a_recipe(refused, recipe):
    recipe.write_bytes(bytes(range(128, 256)))
    refused(2, "", "distill", recipe)


def test_a_missing_recipe(refused, recipe):
    refused(2, "there is no recipe gone.yaml; `lithe list recipes` shows", "distill", "gone.yaml")


def test_the_wrong_verb_names_the_right_one(refused, recipe):
    refused(2, "use `lithe distill`", "train", recipe)
    scratch = {**yaml.safe_load(recipe.read_text()), "teacher": {"family": "pi", "preset": "pico"}}
    recipe.write_text(yaml.safe_dump(scratch))
    refused(2, "use `lithe train`", "distill", recipe)
    refused(
        2,
        "looks through camera 'gripperPOV', which the data set does not have",
        "train",
        recipe,
        "data.cameras=[corner2]",
    )
    refused(2, "pi has no preset 'picco'; did you mean 'pico'", "train", recipe, "teacher.preset=picco")
    refused(2, "pi: trunk: there is no setting 'wdth'", "train", recipe, "teacher.settings.trunk.wdth=3")


def test_another_recipe_does_not_touch_the_run_of_the_first(refused, lithe, recipe):
    assert lithe("distill", recipe)[0] == 0
    before = contents(Path("runs"))
    refused(2, "holds a run of another recipe: choose another --out", "distill", recipe, "train.lr=0.5")
    assert contents(Path("runs")) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("explain", "nowhere"), "has no student.json"),
        (("explain", "pi:picco"), "did you mean 'pico'"),
        (("explain", "teacher", "shallow"), "did you mean 'shallow_pi'"),
        (("explain", "teacher", "shallow_pi", "kep=2"), "did you mean 'keep'"),
        (("explain", "teacher", "shallow_pi", "keep"), "is not an override"),
        (("explain", "teacher", "shallow_pi", "keep=[1"), "not valid YAML"),
        (("explain", "teacher", "shallow_pi", "name=x"), "there is no setting 'name'"),
        (("explain", "teacher", "shallow_pi", "keep=9"), "from 1 to 4"),
        (("bench", "nowhere"), "has no student.json"),
        (("bench", "teacher", "--runs", "1"), "at least 2 runs"),
        (("bench", "teacher", "other/teacher"), "two policies are called 'teacher'"),
        (("bench", "teacher", "--runtimes", "eagre"), "did you mean 'eager'"),
        (("bench", "teacher", "--layers", "six"), "--layers takes whole numbers"),
        (("bench", "teacher", "--layers", "99"), "bench it with 1 to"),
        (("eval", "nowhere", "--sim", "fake"), "has no student.json"),
        (("eval", "teacher", "--sim", "fkae"), "did you mean 'fake'"),
        (("list", "metods"), "did you mean 'methods'"),
    ],
)
def test_wrong_words_of_other_verbs(refused, recipe, command, words):
    refused(2, words, *command)


def test_random_overrides_never_end_in_a_traceback(recipe, monkeypatch):
    """Every command line here is wrong, if only because its teacher does not exist."""
    rng, keys = random.Random(5), ["method.keep", "train.steps", "data.length", "name", "teacher.seed", "gate", "train"]
    alphabet = "abk.=[]{}:-_0159 '\"#&*!|>%@,~\n"
    for _ in range(150):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        text = text if rng.random() < 0.4 else f"{rng.choice(keys)}={text}"
        monkeypatch.setattr(sys, "argv", ["lithe", "distill", str(recipe), "teacher.source=nowhere", "--", text])
        with redirect_stderr(io.StringIO()) as error, pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2 and one_sentence(error.getvalue()), (text, error.getvalue())


# -- teachers on disk --------------------------------------------------------------------------------------------------


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["surplus"] = torch.zeros(1)


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (drop, "1 missing tensors (action_in.bias)"),
        (add, "1 unexpected tensors (surplus)"),
        (reshape, "1 misshaped tensors (action_in.bias)"),
    ],
)
def test_a_teacher_with_other_tensors(refused, recipe, harm, words):
    weights, card = Path("teacher", checkpoint.WEIGHTS), Path("teacher", checkpoint.CARD)
    tensors = load_file(weights)
    harm(tensors, "action_in.bias")
    save_file(tensors, weights)
    data = json.loads(card.read_text())
    data.pop("files")
    card.write_text(json.dumps({**data, "sha256": sha256(weights)}))
    assert "Nothing was loaded" in refused(2, words, "distill", recipe)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CARD, "normalization.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_teacher(refused, recipe, name, how):
    path = Path("teacher", name)
    content = path.read_bytes()
    half = len(content) // 2
    path.unlink()
    if how != "missing":
        path.write_bytes(
            content[:half] + (b"" if how == "truncated" else bytes([content[half] ^ 4]) + content[half + 1 :])
        )
    for command in (("distill", recipe), ("bench", "teacher"), ("eval", "teacher", "--sim", "fake")):
        if command[0] != "eval" or name != checkpoint.WEIGHTS:  # whose workers report a policy they cannot load
            refused(2, "teacher", *command)
    assert not Path("runs").exists()


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(recipe):
    """Writes a tiny LeRobotDataset v3 into `data` and returns the overrides that use it."""
    image, pyarrow = pytest.importorskip("PIL.Image"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(cameras: list[str] = CAMERAS, stats: bool = True, nan: bool = False, version: str = "v3.0") -> list[str]:
        fake = FakeData(cameras=tuple(cameras), episodes=1, length=6, size=16)
        raw = fake.samples(np.arange(6), 1)
        if nan:
            raw["action"][3, 0, 1] = np.nan
        features: dict[str, Any] = {f"observation.images.{c}": {"dtype": "image"} for c in cameras}
        features |= {"observation.state": {"dtype": "float32"}, "action": {"dtype": "float32"}}
        info = {"codebase_version": version, "fps": 10, "total_frames": 6, "features": features}
        columns: dict[str, Any] = {"observation.state": raw["state"].tolist(), "action": raw["action"][:, 0].tolist()}
        columns |= {"index": list(range(6)), "episode_index": [0] * 6, "task_index": [0] * 6}
        for camera in cameras:
            columns[f"observation.images.{camera}"] = [png(image, x) for x in raw["images"][camera]]
        for folder in ("data/meta", "data/data/chunk-000"):
            Path(folder).mkdir(parents=True)
        Path("data/meta/info.json").write_text(json.dumps(info))
        kept = {k: {n: v.tolist() for n, v in s.items()} for k, s in fake.stats.items()} if stats else {}
        Path("data/meta/stats.json").write_text(json.dumps(kept))
        tasks = {"task_index": [0], "task": ["reach the red block"]}
        parquet.write_table(pyarrow.table(tasks), "data/meta/tasks.parquet")
        parquet.write_table(pyarrow.table(columns), "data/data/chunk-000/file-000.parquet")
        return ["data={name: lerobot, root: data}"]

    return write


def png(image: Any, pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def test_a_sound_dataset_is_read(lithe, recipe, dataset):
    assert lithe("distill", recipe, *dataset(), "train.steps=2")[0] == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"cameras": ["corner2"]}, "needs the camera 'gripperPOV'; the data has corner2"),
        ({"stats": False}, "augment_dataset_quantile_stats"),
        ({"nan": True}, "'action' is not finite in frame 3"),
        ({"version": "v2.1"}, "convert_dataset_v21_to_v30"),
    ],
)
def test_a_dataset_that_cannot_be_used(lithe, recipe, dataset, wrong, words):
    code, _, error = lithe("distill", recipe, *dataset(**wrong))
    last = error.splitlines()[-1]  # a bar may stand above it, for pictures are decoded when a data set is opened
    assert code == 2 and last.startswith("lithe: ") and words in last and "Traceback" not in error
    assert not Path("runs").exists()


def test_a_dataset_that_is_not_there(refused, recipe):
    refused(2, "it has no meta/info.json; check the path", "distill", recipe, "data={name: lerobot, root: gone}")
    refused(2, "give either root=", "distill", recipe, "data={name: lerobot}")


# -- while training ----------------------------------------------------------------------------------------------------


def at_call(k: int, action: Any) -> Any:
    """`FakeData.samples` that does something first when it is called for the k-th time."""
    sound, calls = FakeData.samples, []

    def samples(self: FakeData, *rest: Any) -> dict[str, Any]:
        calls.append(1)
        found = sound(self, *rest)
        return action(found) or found if len(calls) == k else found

    return samples


def spoil(found: dict[str, Any]) -> None:
    found["state"] = np.full_like(found["state"], np.nan)
    found["action"] = np.full_like(found["action"], np.nan)


def finishes_as_if_nothing_had_happened(lithe: Any, recipe: Path) -> None:
    assert lithe("distill", recipe)[0] == 0
    assert lithe("distill", recipe, "--out", "undisturbed")[0] == 0
    a, b = (checkpoint.load(out / Path("student")).state_dict() for out in (Path("runs/small"), Path("undisturbed")))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_nan_in_a_batch(refused, lithe, recipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FakeData, "samples", at_call(4, spoil))
        refused(1, "is not finite at step 3: look for NaN in the data", "distill", recipe)
    run = Run("runs/small", json.loads(Path("runs/small/recipe.json").read_text()))
    tensors, position = run.last()
    assert position["step"] == 2 and all(torch.isfinite(t).all() for t in tensors.values())
    finishes_as_if_nothing_had_happened(lithe, recipe)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_a_full_disk(refused, lithe, recipe, monkeypatch, k):
    with monkeypatch.context() as patch:
        calls: list[int] = []
        for module in (checkpoint, sys.modules["lithe._run"]):

            def save(*args: Any, sound: Any = module.save_file) -> None:
                calls.append(1)
                if len(calls) >= k:
                    Path(args[1]).write_bytes(b"half")
                    raise SafetensorError("I/O error: No space left on device (os error 28)")
                sound(*args)

            patch.setattr(module, "save_file", save)
        refused(1, "the disk is full: runs/small/", "distill", recipe)
    for folder in Path("runs/small").glob("student"):
        checkpoint.load(folder)
    finishes_as_if_nothing_had_happened(lithe, recipe)


def test_a_full_disk_under_the_result(refused, lithe, recipe, monkeypatch):
    def full(self: Path, *_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert lithe("distill", recipe)[0] == 0
    before = contents(Path("runs"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        refused(1, "the disk is full", "distill", recipe)
    assert contents(Path("runs")) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training(refused, lithe, recipe, monkeypatch, number):
    with monkeypatch.context() as patch:
        patch.setattr(FakeData, "samples", at_call(2, lambda _: os.kill(os.getpid(), number)))
        refused(130, WORDS, "distill", recipe)
    assert checkpoint.load("runs/small/student")
    finishes_as_if_nothing_had_happened(lithe, recipe)


def test_ctrl_c_before_training(refused, recipe, monkeypatch):
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "data", interrupt)
    refused(130, WORDS, "distill", recipe)


def test_a_damaged_checkpoint_of_a_run(lithe, refused, recipe):
    assert lithe("distill", recipe)[0] == 0
    newest, older = Path("runs/small/checkpoints/00000006"), Path("runs/small/checkpoints/00000004")
    (newest / "state.safetensors").write_bytes(b"short")
    code, _, error = lithe("distill", recipe)
    assert code == 0 and one_sentence(error) and "00000006 is damaged; going on from the checkpoint before it" in error
    finishes_as_if_nothing_had_happened(lithe, recipe)
    for folder in (newest, older):
        (folder / "state.safetensors").write_bytes(b"short")
    code, _, error = lithe("distill", recipe)
    assert code == 2 and "all checkpoints in runs/small are damaged: delete that folder" in error.splitlines()[-1]


def test_ctrl_c_in_a_real_process(recipe):
    source = str(Path(cli.__file__).parents[1])
    command = "from lithe.cli import main; main()"
    overrides = ["train.steps=1000000", "train.save_every=1000000", "train.warmup=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, "distill", str(recipe), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    started, deadline = Path("runs/small/metrics.jsonl"), time.monotonic() + 240
    while process.poll() is None and not (started.exists() and started.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 130 and out == ""
    assert one_sentence(error) and "stopped at step" in error and WORDS in error
    run = Run("runs/small", json.loads(Path("runs/small/recipe.json").read_text()))
    assert f"from step {run.last()[1]['step']} in runs/small" in error
    assert checkpoint.load("runs/small/student").depth() == 2
