"""The trainer: its schedule, its bookkeeping, and that nothing which stops a run changes what comes out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from lithe import checkpoint, surgery
from lithe._run import Run, unpack
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.methods.base import Stage
from lithe.methods.finetune import Finetune
from lithe.methods.shallow_pi import ShallowPi
from lithe.recipe import Train

trainer, runner = import_module("lithe.distill"), import_module("lithe._run")  # on the package, verbs own the names
distill, Trainer, Interrupted = trainer.distill, trainer.Trainer, trainer.Interrupted
METHOD = ShallowPi(keep=2)
SHORT = Train(steps=6, batch=2, warmup=1, lr=1e-3, precision="fp32", save_every=2, ema=0.9)


def pico(data: FakeData) -> Pi:
    model = Pi.fresh("pico")
    model.fit_to(data.stats, data.tasks, data.cameras)
    return model


def fake() -> FakeData:
    return FakeData(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)


def train(out: Path | None = None, data: FakeData | None = None, method: Any = METHOD, **settings: Any) -> Pi:
    data = data or fake()
    return distill(pico(fake()), method, data, dataclasses.replace(SHORT, **settings), out)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def everything(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What a finished run leaves: weights, optimiser and averages; metrics without times; the student."""
    run = Run(out, json.loads((out / "recipe.json").read_text()))
    tensors, position = run.last()
    assert position["step"] == run.metrics()[-1]["step"]
    lines = [{key: value for key, value in line.items() if not key.endswith("_s")} for line in run.metrics()]
    return tensors, lines, checkpoint.load(out / "student").state_dict()


def agree(a: Path, b: Path) -> bool:
    (state_a, lines_a, student_a), (state_b, lines_b, student_b) = everything(a), everything(b)
    return lines_a == lines_b and same(state_a, state_b) and same(student_a, student_b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


def test_logged_times_are_seconds_of_one_step(tmp_path, monkeypatch):
    class Ticking(trainer.Clock):
        def lap(self, part: str) -> None:
            self.seconds[part] = self.seconds.get(part, 0.0) + {"step": 2.0, "data": 0.5}[part]

    monkeypatch.setattr(trainer, "Clock", Ticking)
    monkeypatch.setattr(trainer, "LOG_EVERY", 3)
    train(tmp_path / "run", steps=5)
    lines = Run(tmp_path / "run", json.loads((tmp_path / "run" / "recipe.json").read_text())).metrics()
    assert [(line["step"], line["step_s"], line["data_s"]) for line in lines] == [(3, 2.0, 0.5), (5, 2.0, 0.5)]


# -- schedule and plan -------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_to_the_floor():
    settings = Train(steps=110, warmup=10, floor=0.1)
    rates = [trainer.schedule(step, 110, settings) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_short_stage_warms_up_for_half_of_itself():
    rates = [trainer.schedule(step, 4, Train(warmup=100)) for step in range(4)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3]) and rates[2] == 1.0


@pytest.mark.parametrize("shares", [(1.0,), (0.1, 0.2, 0.7), (1, 1, 1), (0.3, 0.3), (3, 0, 1), ()])
@pytest.mark.parametrize("steps", [1, 10, 999])
def test_stages_divide_the_steps_without_gap_or_overlap(shares, steps):
    found = list(trainer.plan([Stage(f"s{i}", share) for i, share in enumerate(shares)], steps))
    edges = [0, *(last for _, _, last in found)]
    assert [first for _, first, _ in found] == edges[:-1] and edges == sorted(edges)
    assert not shares or edges[-1] == steps
    for (_, first, last), share in zip(found, shares, strict=True):
        assert last - first == pytest.approx(steps * share / sum(shares), abs=1)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"steps": 0}, "train.steps must be at least 1, not 0"),
        ({"draws": 0}, "train.draws must be at least 1"),
        ({"batch": -1}, "train.batch must be at least 1"),
        ({"save_every": 0}, "train.save_every must be at least 1"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints must be at least 1"),
        ({"accumulate": 0}, "train.accumulate must be at least 1"),
        ({"accumulate": 4, "steps": 8}, r"train.save_every \(2\) must be a multiple of train.accumulate \(4\)"),
        ({"accumulate": 2, "steps": 7}, r"the end of stage 'distil' \(7\) must be a multiple of train.accumulate"),
        ({"warmup": 6}, r"train.warmup \(6\) must be below train.steps \(6\)"),
        ({"batch": 17}, "train.batch is 17, but the data has only 16 frames"),
        ({"precision": "fp16"}, "train.precision must be bf16 or fp32, not 'fp16'"),
        ({"freeze": ("visoin.",)}, "no parameter starts with 'visoin.'; the model has .*vision"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        train(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the policy needs the camera 'gripperPOV'; the data has corner2"):
        train(data=FakeData(cameras=("corner2",), size=16))
    with pytest.raises(ValueError, match="the policy is for 4 action dimensions, the data has 3"):
        train(data=FakeData(cameras=("corner2", "gripperPOV"), size=16, action_dim=3))


def test_a_training_free_method_only_cuts(tmp_path):
    class Free(Finetune):
        def stages(self):
            return []

    teacher = pico(fake())
    student = distill(teacher, Free(keep=2), fake(), SHORT, tmp_path / "run")
    assert same(student.state_dict(), surgery.cut(teacher, Free(keep=2).cut(teacher)).state_dict())


# -- one step ----------------------------------------------------------------------------------------------------------


def started(method: Any = METHOD, **settings: Any) -> Any:
    teacher = pico(fake())
    student = surgery.cut(teacher, method.cut(teacher))
    return Trainer(student, teacher, method, fake(), dataclasses.replace(SHORT, **settings))


def watched(look: Callable[[Any, dict[str, torch.Tensor]], None], kind: type = ShallowPi) -> Any:
    class Watched(kind):
        def loss(self, step):
            terms = super().loss(step)
            look(step.student, terms)
            return terms

    return Watched(keep=2)


@pytest.mark.parametrize(("freeze", "calls"), [(("vision.",), 1), ((), 2)])
def test_a_frozen_vision_path_runs_once_for_teacher_and_student(freeze, calls):
    run, seen = started(freeze=freeze), []
    for model in (run.student, run.teacher.model):
        model.vision.tower.register_forward_hook(lambda *_: seen.append(1))
    run.fit(None, [])
    assert len(seen) == calls * SHORT.steps


def test_shared_image_features_change_no_loss(monkeypatch):
    def losses() -> list[dict[str, float]]:
        found = []
        started(watched(lambda _, t: found.append({k: v.item() for k, v in t.items()})), freeze=("vision.",)).fit(
            None, []
        )
        return found

    shared = losses()
    monkeypatch.setattr(trainer, "same_vision", lambda student, teacher: False)
    assert losses() == shared


def test_vision_is_shared_only_if_it_is_frozen_and_equal():
    same_vision = import_module("lithe.teacher").same_vision
    teacher = pico(fake())
    student = surgery.cut(teacher, METHOD.cut(teacher))
    assert not same_vision(student, teacher)
    student.vision.requires_grad_(False)
    assert same_vision(student, teacher)
    student.vision.projector.bias.data += 1e-6
    assert not same_vision(student, teacher)


def test_accumulation_moves_the_weights_only_when_it_is_full():
    weights: list[torch.Tensor] = []
    look = watched(lambda student, _: weights.append(student.action_out.weight.detach().clone()))
    started(look, accumulate=3, save_every=3, warmup=0).fit(None, [])
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [True, True, False, True, True]


def test_accumulated_gradients_are_the_mean():
    def gradient(**settings: Any) -> torch.Tensor:
        found = []
        run = started(clip=1e9, warmup=0, ema=0.0, **settings)
        step = torch.optim.AdamW.step

        def record(self: Any, *rest: Any) -> Any:
            found.append(run.student.action_in.weight.grad.clone())
            return step(self, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", record)
            run.fit(None, [])
        return found

    single = gradient(steps=2, save_every=2, lr=1e-30)  # weights stay as they are
    (both,) = gradient(steps=2, save_every=2, lr=1e-30, accumulate=2)
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


def test_averaged_weights_follow_their_formula_and_are_the_result(tmp_path):
    student = train(tmp_path / "run", save_every=1, keep_checkpoints=9, ema=0.5)
    states = []
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir()):
        run = Run(tmp_path / "copy" / folder.name, {})
        shutil.copytree(folder, run.out / "checkpoints" / folder.name)
        states.append(run.last()[0])
    average = dict(surgery.cut(pico(fake()), METHOD.cut(pico(fake()))).named_parameters())
    for step, state in enumerate(states):
        decay = min(0.5, (1 + step) / (10 + step))
        weights = unpack("student", state)
        average = {key: value.detach().lerp(weights[key], 1 - decay) for key, value in average.items()}
        assert same(average, unpack("averaged", state))
    assert same(average, dict(student.named_parameters()))
    assert not same(average, unpack("student", states[-1]))


def test_without_averaging_the_last_weights_are_the_result(tmp_path):
    student = train(tmp_path / "run", ema=0.0)
    tensors, _, on_disk = everything(tmp_path / "run")
    assert same(unpack("student", tensors), student.state_dict()) and same(on_disk, student.state_dict())
    assert unpack("averaged", tensors) == {}


def test_metrics_name_the_terms_and_the_learning_rate(whole):
    (line,) = Run(whole, json.loads((whole / "recipe.json").read_text())).metrics()
    assert {"step", "stage", "lr", "task", "kd/velocity", "kd/attention", "gradient_norm"} <= line.keys()
    assert line["step"] == 6 and all(np.isfinite(v) for k, v in line.items() if k != "stage")


def test_the_summary_averages_what_every_late_line_has(tmp_path):
    """Accumulation logs a gradient norm now and then only, and stages have terms of their own."""
    run = Run(tmp_path / "run", {"recipe": 1})
    for step in range(1, 41):
        norm = {"gradient_norm": 9.0} if step % 2 == 0 else {}
        run.log({"step": 10 * step, "stage": "a", "lr": 1.0, "task": float(step), **norm})
    summary = import_module("lithe.train").summary(tmp_path / "run", 16)
    assert summary == {"policy": str(tmp_path / "run" / "student"), "frames": 16, "train": {"task": 39.5}}
    assert import_module("lithe.train").summary(Run(tmp_path / "empty", {}).out, 16)["train"] == {}


# -- what is not finite ------------------------------------------------------------------------------------------------


class Spoiled(FakeData):
    """NaN in the actions of one batch."""

    def __init__(self, call: int):
        super().__init__(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)
        self.left = call

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        found, self.left = super().samples(indices_B, horizon), self.left - 1
        if self.left == 0:
            found["action"] = np.full_like(found["action"], np.nan)
        return found


def test_nan_in_the_data_stops_the_run_and_harms_nothing(tmp_path, whole):
    with pytest.raises(FloatingPointError, match="the loss task is not finite at step 4: look for NaN in the data"):
        train(tmp_path / "run", data=Spoiled(5))
    tensors, position = Run(tmp_path / "run", json.loads((tmp_path / "run/recipe.json").read_text())).last()
    assert position["step"] == 4 and all(torch.isfinite(t).all() for t in tensors.values())
    train(tmp_path / "run")
    assert agree(tmp_path / "run", whole)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    class Steep(Finetune):
        def loss(self, step):
            steep = (0 * step.out.pred_BRHA).abs().sqrt().sum()
            return {"task": step.student.task_loss(step.out), "reg/steep": steep}

    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0"):
        train(tmp_path / "run", method=Steep(keep=2), steps=1, warmup=0)
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "student").exists()


# -- stopping and going on ---------------------------------------------------------------------------------------------


class Signalling(FakeData):
    """Sends this process a signal while a given batch is loaded."""

    def __init__(self, call: int, number: int):
        super().__init__(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)
        self.left, self.number = call, number

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return super().samples(indices_B, horizon)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [1, 3, 6])
def test_a_signal_ends_the_step_and_the_same_run_goes_on(tmp_path, whole, number, call):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=r"stopped at step \d of 6; the same command goes on from step \d in "):
        train(tmp_path / "run", data=Signalling(call, number))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert checkpoint.load(tmp_path / "run" / "student")
    train(tmp_path / "run")
    assert agree(tmp_path / "run", whole)


def test_a_signal_waits_for_a_full_accumulation(tmp_path):
    settings = {"accumulate": 3, "save_every": 3}
    train(tmp_path / "whole", **settings)
    with pytest.raises(Interrupted, match=r"stopped at step [36] of 6"):
        train(tmp_path / "run", data=Signalling(2, signal.SIGINT), **settings)
    train(tmp_path / "run", **settings)
    assert agree(tmp_path / "run", tmp_path / "whole")


def test_training_works_outside_the_main_thread():
    found: list[Pi] = []
    thread = threading.Thread(target=lambda: found.append(train(steps=1, warmup=0)))
    thread.start()
    thread.join()
    assert found


def test_a_finished_run_gives_its_student_again(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    again = train(tmp_path / "run")
    assert same(again.state_dict(), checkpoint.load(whole / "student").state_dict())
    assert agree(tmp_path / "run", whole)


@pytest.mark.parametrize("other", [{"lr": 1e-4}, {"method": Finetune(keep=2)}, {"method": ShallowPi(keep=2, task=2.0)}])
def test_a_run_of_another_recipe_is_not_continued(tmp_path, whole, other):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run of another recipe: choose another --out, or delete that folder"):
        train(tmp_path / "run", **other)
    assert agree(tmp_path / "run", whole)


class Twice(ShallowPi):
    """Two stages that train different parts."""

    def stages(self):
        return [Stage("expert", 0.5, ("expert.", "action_"), lr=2.0), Stage("all", 0.5)]


@pytest.mark.parametrize("call", [2, 3, 5])
def test_stages_go_on_where_they_stopped(tmp_path, call):
    train(tmp_path / "whole", method=Twice(keep=2), save_every=1)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", data=Signalling(call, signal.SIGINT), method=Twice(keep=2), save_every=1)
    train(tmp_path / "run", method=Twice(keep=2), save_every=1)
    assert agree(tmp_path / "run", tmp_path / "whole")


def test_a_torn_or_orphaned_line_of_metrics_is_dropped(tmp_path):
    settings = {"steps": 20, "save_every": 20, "warmup": 1}
    train(tmp_path / "whole", **settings)
    with pytest.raises(FloatingPointError):  # after a line of metrics, before the first checkpoint
        train(tmp_path / "run", data=Spoiled(15), **settings)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "ta')
    train(tmp_path / "run", **settings)
    assert agree(tmp_path / "run", tmp_path / "whole")


# -- damage and full disks ---------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if how == "missing":
        path.unlink()
    else:
        flipped = bytes([*content[:half], content[half] ^ 1, *content[half + 1 :]])
        path.write_bytes({"truncated": content[:half], "zeroed": content[:half] + bytes(half), "flipped": flipped}[how])


@pytest.mark.parametrize("how", ["truncated", "zeroed", "flipped", "missing"])
@pytest.mark.parametrize("name", ["state.safetensors", "position.json"])
def test_a_damaged_checkpoint_is_left_out(tmp_path, whole, name, how, capsys):
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "00000006" / name, how)
    train(tmp_path / "run")
    assert agree(tmp_path / "run", whole)
    assert (name, how) == ("position.json", "missing") or "00000006 is damaged" in capsys.readouterr().err


def test_damage_to_every_checkpoint_is_an_error(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        damage(folder / "state.safetensors", "flipped")
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged: delete that folder and start again"):
        train(tmp_path / "run")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_are_kept(tmp_path, keep):
    train(tmp_path / "run", keep_checkpoints=keep)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["00000002", "00000004", "00000006"][-keep:]


def disk_full_at(patch: pytest.MonkeyPatch, k: int) -> list[str]:
    """Make the k-th write fail. Returns the list of writes, filled as they happen."""
    writes: list[str] = []
    rust = SafetensorError("I/O error: No space left on device (os error 28)")

    def wrap(place: Any, name: str) -> None:
        sound = getattr(place, name)

        def write(*args: Any, **more: Any) -> Any:
            if name != "open" or "a" in args[1:]:
                writes.append(name)
                if len(writes) == k:
                    raise rust if name == "save_file" else OSError(errno.ENOSPC, "No space left on device")
            return sound(*args, **more)

        patch.setattr(place, name, write)

    wrap(runner, "save_file")
    wrap(checkpoint, "save_file")
    for place, name in ((Path, "write_text"), (Path, "write_bytes"), (Path, "open"), (os, "fsync")):
        wrap(place, name)
    return writes


def test_a_full_disk_at_any_write_loses_nothing(tmp_path, whole):
    """What was saved before stays loadable, and the run goes on to the same end once there is room."""
    for k in range(1, 200, 3):
        out, refused = tmp_path / str(k), None
        with pytest.MonkeyPatch.context() as patch:
            writes = disk_full_at(patch, k)
            try:
                train(out)
            except OSError as error:
                refused = error
        if refused is None:
            break
        assert refused.errno == errno.ENOSPC and "the disk is full" in str(refused), f"write {k} ({writes[-1]})"
        for folder in out.glob("student"):
            checkpoint.load(folder)
        saved = (
            Run(out, json.loads((out / "recipe.json").read_text())).last() if (out / "recipe.json").exists() else None
        )
        train(out)
        assert agree(out, whole), f"write {k} ({writes[-1]}), after {saved and saved[1]['step']} steps"
    assert k > 30


# -- kill -9 -----------------------------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from importlib import import_module
from lithe import checkpoint
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.methods.shallow_pi import ShallowPi
from lithe.recipe import Train
trainer, runner = import_module("lithe.distill"), import_module("lithe._run")
torch.set_num_threads(1)

def count(at):
    done = []
    def wrap(place, name):
        sound = getattr(place, name)
        def event(*args, **more):
            done.append(name)
            if len(done) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return sound(*args, **more)
        setattr(place, name, event)
    for place, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "write_text"), (Path, "write_bytes"),
                        (runner, "save_file"), (checkpoint, "save_file"), (runner.shutil, "rmtree"),
                        (runner.Run, "log"), (trainer.Trainer, "_average"), (trainer.Trainer, "_load")):
        wrap(place, name)
    return done

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        done = count(job["at"])
        data = FakeData(cameras=("corner2", "gripperPOV"), episodes=2, length=8, size=16)
        teacher = Pi.fresh("pico")
        teacher.fit_to(data.stats, data.tasks, data.cameras)
        trainer.distill(teacher, ShallowPi(keep=2), data, Train(**job["train"]), job["out"])
        os._exit(len(done) % 256)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killable():
    """A function that runs a training in a process of its own, killed at an event or after a while; the exit code."""
    source = str(Path(checkpoint.__file__).parents[1])
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )

    def run(out: Path, at: int = 0, after_s: float | None = None) -> int:
        settings = {**dataclasses.asdict(SHORT), "steps": 16, "save_every": 4, "keep_checkpoints": 2}
        server.stdin.write(json.dumps({"out": str(out), "at": at, "train": settings}) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        if after_s is not None:
            time.sleep(after_s)
            with contextlib.suppress(ProcessLookupError):  # it had finished
                os.kill(child, signal.SIGKILL)
        return int(server.stdout.readline())

    yield run
    server.communicate()


def test_kill_9_at_any_moment_changes_nothing(killable, tmp_path):
    """The same weights, averages, optimiser state and metrics as without: at random events, then at random times."""
    rng = random.Random(7)
    events = killable(tmp_path / "whole")
    began = time.monotonic()
    assert killable(tmp_path / "timed") == events > 60
    whole_s = time.monotonic() - began
    for at in sorted([*rng.sample(range(1, events), 5), events - 5]):
        out = tmp_path / f"at{at}"
        assert killable(out, at=at) == -signal.SIGKILL
        for folder in out.glob("student"):
            checkpoint.load(folder)
        assert killable(out) >= 0
        assert agree(out, tmp_path / "whole"), f"killed at event {at}"
    kills, share = 0, 0.9
    for attempt in range(30):  # a kill that came too late only says that the machine was faster than a moment ago
        out = tmp_path / f"often{kills // 4}"
        killed = killable(out, after_s=rng.uniform(0.1, share) * whole_s) == -signal.SIGKILL
        kills, share = kills + killed, share if killed else share / 2
        if not killed:
            assert agree(out, tmp_path / "whole"), f"attempt {attempt}"
            shutil.rmtree(out)
        if kills == 8:
            break
    assert kills >= 4
    for out in tmp_path.glob("often*"):
        killable(out)
        assert agree(out, tmp_path / "whole")


# -- the teacher's seam ------------------------------------------------------------------------------------------------


def test_auxiliary_modules_are_trained_saved_and_never_shipped(tmp_path):
    class Heads(Finetune):
        def aux(self, teacher):
            torch.manual_seed(0)
            return nn.ModuleDict({"head": nn.Linear(4, 1)})

        def stages(self):
            return [Stage(train=("", "aux."))]

        def loss(self, step):
            return {"task": step.student.task_loss(step.out)}

    student = train(tmp_path / "run", method=Heads(keep=2))
    tensors, _, on_disk = everything(tmp_path / "run")
    assert unpack("aux", tensors).keys() == {"head.weight", "head.bias"}
    assert not any("head" in key for key in (*student.state_dict(), *on_disk))


def test_a_student_remembers_the_rate_of_its_data(tmp_path):
    train(tmp_path / "run")
    assert checkpoint.read_card(tmp_path / "run" / "student")["fps"] == fake().fps
