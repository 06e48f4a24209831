"""Two processes train what one process trains: DDP and FSDP2 on CPUs, and what the processes must agree on.

One launch of this file as a script, in two processes, goes through all of `PHASES` and leaves what each process saw in
a folder; the tests compare that with runs of a single process, which the test process itself makes meanwhile.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from lithe import _processes, _shards, checkpoint, registry, surgery
from lithe._run import Run, unpack
from lithe.data.fake import FakeData
from lithe.families.base import Family
from lithe.methods.base import Stage, Step
from lithe.methods.finetune import Finetune
from lithe.methods.shallow_pi import ShallowPi
from lithe.recipe import Train
from lithe.teacher import Teacher, light, same_vision
from lithe.types import Batch, Draw

trainer, runner = import_module("lithe.distill"), import_module("lithe._run")  # on the package, verbs own the names
WORLD = 2
SETTINGS: dict[str, dict[str, Any]] = {"pi": {"jitter": 0.5}, "smolvla": {"jitter": 0.5}}
# A large eps keeps AdamW from blowing up the last bits of small gradients. Twelve samples are a group and a half.
SHORT = Train(steps=8, batch=12, draws=2, warmup=1, lr=1e-2, eps=1e-2, precision="fp32", save_every=4, ema=0.9)


def fake(cameras: tuple[str, ...]) -> FakeData:
    return FakeData(cameras=cameras, episodes=4, length=8, size=24)


def policy(family: str) -> Family:
    kind: Any = registry.get("families", family)
    model = kind.fresh("pico", **SETTINGS[family])
    data = fake(model.spec.cameras)
    model.fit_to(data.stats, data.tasks, data.cameras)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zero-initialised gates would leave most of the gradients zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


class Disturbed(FakeData):
    """While a given batch is loaded it sends this process a signal, or spoils the batch."""

    call, number = 0, 0

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        found, self.call = super().samples(indices_B, horizon), self.call - 1
        if self.call == 0 and self.number:
            os.kill(os.getpid(), self.number)
        elif self.call == 0:
            found["action"] = np.full_like(found["action"], np.nan)
        return found


class Twice(Finetune):
    """Two stages that train different parts."""

    def stages(self) -> list[Stage]:
        return [Stage("expert", 0.5, ("expert.", "action_"), lr=2.0), Stage("all", 0.5)]


class Heads(Finetune):
    """With a module of its own, which begins differently in every process that is asked."""

    def stages(self) -> list[Stage]:
        return [Stage(train=("", "aux."))]

    def aux(self, teacher: Family) -> nn.ModuleDict:
        torch.manual_seed(int(os.environ.get("RANK", "0")))
        return nn.ModuleDict({"head": nn.Linear(1, 3)})

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        head = step.aux["head"](step.out.pred_BRHA[..., :1])
        return {"task": step.student.task_loss(step.out), "reg/head": head.pow(2).mean()}


RUNS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "distil": ("pi", ShallowPi(keep=2, attention=0.5), {"freeze": ("vision.",)}),
    "tune": ("smolvla", Twice(keep=0), {"accumulate": 2, "ema": 0.0}),
    "heads": ("pi", Heads(keep=2), {"steps": 4, "accumulate": 2}),
}


SAME = {"distil": "distil", "tune": "tune", "heads": "heads", "handed": "distil", "command": "distil"}
SAME |= {"sharded_distil": "distil", "sharded_tune": "tune", "sharded_as_on_gpus": "tune"}  # phase: run of one process


def train(name: str, out: Path | None, data: FakeData | None = None, **settings: Any) -> Family:
    family, method, more = RUNS[name]
    teacher = policy(family)
    return trainer.distill(
        teacher, method, data or fake(teacher.spec.cameras), dataclasses.replace(SHORT, **{**more, **settings}), out
    )


def disturbed(name: str, call: int, number: int = 0) -> Disturbed:
    data = Disturbed(cameras=policy(RUNS[name][0]).spec.cameras, episodes=4, length=8, size=24)
    data.call, data.number = call, number
    return data


def recipe(teacher: Path) -> dict[str, Any]:
    """What `lithe distill` is given: the run "distil", written down."""
    family, method, settings = RUNS["distil"]
    shown = {f.name: getattr(SHORT, f.name) for f in dataclasses.fields(Train)}
    shown = {key: value for key, value in shown.items() if value != getattr(Train(), key)} | settings
    cameras = list(policy(family).spec.cameras)
    return {
        "name": "two",
        "teacher": {"source": str(teacher)},
        "method": {"name": "shallow_pi", "keep": method.keep, "attention": method.attention},
        "data": {"name": "fake", "cameras": cameras, "episodes": 4, "length": 8, "size": 24},
        "train": {key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()},
    }


# -- the launch --------------------------------------------------------------------------------------------------------

SEEN: dict[str, Any] = {}


def phase_distil(out: Path, rank: int) -> Family:
    return train("distil", out)


def phase_tune(out: Path, rank: int) -> Family:
    return train("tune", out)


def phase_heads(out: Path, rank: int) -> Family:
    return train("heads", out)


def phase_sharded_distil(out: Path, rank: int) -> Family:
    return train("distil", out)


def phase_sharded_tune(out: Path, rank: int) -> Family:
    return train("tune", out)


def phase_sharded_stopped(out: Path, rank: int) -> None:
    """Goes on from where a single process stopped, and is stopped by what only process 1 was told."""
    train("distil", out.parent / "handed", disturbed("distil", 4, signal.SIGTERM) if rank == 1 else None)


def phase_handed(out: Path, rank: int) -> Family:
    """Goes on, unsharded, from there."""
    return train("distil", out)


def phase_spoiled(out: Path, rank: int) -> None:
    train("distil", out, disturbed("distil", 3) if rank == 1 else None)


def phase_full(out: Path, rank: int) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(runner, "save_file", refuse)
        train("distil", out)


def phase_odd(out: Path, rank: int) -> None:
    train("distil", out, batch=9)


def phase_sharded_heads(out: Path, rank: int) -> None:
    train("heads", out)


def phase_command(out: Path, rank: int) -> None:
    sys.argv = ["lithe", "distill", str(out.parent / "recipe.yaml"), "--out", str(out)]
    with pytest.raises(SystemExit, match=r"^0$"):
        import_module("lithe.cli").main()


def phase_sharded_as_on_gpus(out: Path, rank: int) -> Family:
    """On GPUs accelerate takes part in FSDP2: it holds back gradients while they accumulate."""
    settings = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": _shards.plugin()}
    for known in (PartialState._shared_state, AcceleratorState._shared_state):
        known.update(settings)
    return train("tune", out)


PHASES: tuple[Callable[[Path, int], Family | None], ...] = (
    phase_distil,
    phase_tune,
    phase_heads,
    phase_sharded_distil,
    phase_sharded_tune,
    phase_sharded_stopped,
    phase_handed,
    phase_spoiled,
    phase_full,
    phase_odd,
    phase_sharded_heads,
    phase_command,
    phase_sharded_as_on_gpus,  # the last, for it leaves accelerate so
)


def work(folder: Path) -> None:
    """Every phase in this process, one of WORLD; what it saw goes to <folder>/<phase>.<rank>.json."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    watch(folder)
    for phase in PHASES:
        name = phase.__name__.removeprefix("phase_")
        os.environ["ACCELERATE_USE_FSDP"] = str(name.startswith("sharded"))
        SEEN.clear()
        SEEN.update({"written": [], "bars": [], "sharded": [], "teacher": [], "seen": 0, "error": None})
        try:
            made = phase(folder / name, rank)
        except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
            made, SEEN["error"] = None, f"{type(error).__name__}: {error}"
        if made is not None:
            save_file(made.state_dict(), folder / f"{name}.{rank}.safetensors")
        (folder / f"{name}.{rank}.json").write_text(json.dumps(SEEN))


def watch(folder: Path) -> None:
    """Take note of everything written below the phases' folders, of progress bars, shards and the teacher."""

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove")
        writes |= event == "open" and isinstance(args[1], str) and args[1][0] in "wax"
        if writes and isinstance(args[0], (str, Path)) and Path(args[0]).is_relative_to(folder):
            inside = Path(args[0]).relative_to(folder)
            if len(inside.parts) > 1 or event == "os.mkdir":
                SEEN["written"].append(str(inside))

    class Noted(Teacher):
        def __init__(self, model: Family):
            super().__init__(model)
            SEEN["teacher"] = sorted({type(p.data).__name__ for p in model.parameters()})

        def see(self, draw: Draw) -> Draw:
            SEEN["seen"] += 1
            return super().see(draw)

    def bar(**more: Any) -> Any:
        SEEN["bars"].append(more["disable"])
        return tqdm(**{**more, "disable": True})

    sound, tqdm = _shards.shard, trainer.tqdm

    def shard(model: Family, *rest: Any) -> None:
        sound(model, *rest)
        units = [type(layer).__name__.startswith("FSDP") for layer in _shards.layers(model)]
        parameters = list(model.parameters())
        whole = sum(p.numel() for p in parameters)
        assert all(units) and all(isinstance(p, DTensor) for p in parameters)
        SEEN["sharded"] = [sum(p.to_local().numel() for p in parameters) / whole]

    sys.addaudithook(audit)
    trainer.Teacher, trainer.tqdm, trainer.LOG_EVERY, _shards.shard = Noted, bar, 1, shard


@dataclasses.dataclass
class Launch:
    """What the launch and the single process left."""

    folder: Path
    single: Path

    def saw(self, phase: str) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"{phase}.{rank}.json").read_text()) for rank in range(WORLD)]

    def students(self, phase: str) -> list[dict[str, torch.Tensor]]:
        return [load_file(self.folder / f"{phase}.{rank}.safetensors") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder, single = tmp_path_factory.mktemp("launch"), tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "LOG_EVERY", 1)
        with pytest.raises(trainer.Interrupted):
            train("distil", folder / "handed", disturbed("distil", 2, signal.SIGINT))
        checkpoint.save(policy("pi"), folder / "teacher")
        (folder / "recipe.yaml").write_text("# Two processes.\n" + yaml.safe_dump(recipe(folder / "teacher")))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"ACCELERATE_USE_CPU": "true", "FSDP_VERSION": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
        children = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(folder)],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(WORLD)
        ]
        try:
            for name in RUNS:
                train(name, single / name)
            said = [child.communicate(timeout=float(os.environ.get("LAUNCH_S", "500")))[0] for child in children]
        finally:
            for child in children:
                child.kill()
    assert [child.returncode for child in children] == [0] * WORLD, "\n".join(said)
    return Launch(folder, single)


def lines(out: Path) -> list[dict[str, Any]]:
    found = Run(out, json.loads((out / "recipe.json").read_text())).metrics()
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in found]


def state(out: Path) -> dict[str, torch.Tensor]:
    last = Run(out, json.loads((out / "recipe.json").read_text())).last()
    assert last is not None
    return last[0]


def assert_equal_runs(one: Path, two: Path) -> None:
    """The same losses and gradient norms at every step, and the same weights, averages and moments in the end."""
    mine, theirs = lines(one), lines(two)
    assert [line["step"] for line in mine] == list(range(1, len(mine) + 1)) and len(mine) == len(theirs) > 3
    for a, b in zip(mine, theirs, strict=True):
        assert a.pop("stage") == b.pop("stage") and a == pytest.approx(b, rel=2e-5, abs=2e-6)
    assert_close(state(one), state(two))


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


# -- two processes and one ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", SAME)
def test_two_processes_train_what_one_trains(launch, phase):
    name = SAME[phase]
    assert [found["error"] for found in launch.saw(phase)] == [None, None]
    assert_equal_runs(launch.single / name, launch.folder / phase)
    averaged = checkpoint.load(launch.single / name / "student").state_dict()
    assert_close(averaged, checkpoint.load(launch.folder / phase / "student").state_dict())
    if phase != "command":
        for student in launch.students(phase):
            assert_close(averaged, student)


@pytest.mark.timeout(600)
def test_training_moves_the_weights_by_far_more_than_the_tolerance(launch):
    for name, (family, method, _) in RUNS.items():
        teacher = policy(family)
        before = surgery.cut(teacher, method.cut(teacher)).state_dict()
        after = unpack("student", state(launch.single / name))
        moved = [(after[key] - tensor).abs().max() for key, tensor in before.items() if tensor.is_floating_point()]
        assert sum(float(by) > 1e-3 for by in moved) > len(moved) / 3


@pytest.mark.timeout(600)
def test_only_the_main_process_writes_and_shows_progress(launch):
    for phase in PHASES:
        main, other = launch.saw(phase.__name__.removeprefix("phase_"))
        assert other["written"] == [] and set(other["bars"]) <= {True} and set(main["bars"]) <= {None}
    for phase in ("distil", "sharded_distil", "command"):
        main, _ = launch.saw(phase)
        assert main["bars"] and f"{phase}/.student.new" in main["written"]
        assert f"{phase}/checkpoints/.{SHORT.steps:08d}.new" in main["written"]


@pytest.mark.timeout(600)
def test_shards_are_shares_and_the_teacher_has_none(launch):
    for phase in ("sharded_distil", "sharded_tune"):
        shares = [found["sharded"][0] for found in launch.saw(phase)]
        assert sum(shares) == pytest.approx(1) and all(0.4 < share < 0.6 for share in shares)
    for phase in ("distil", "sharded_distil"):
        for found in launch.saw(phase):
            assert found["teacher"] == ["Tensor"] and found["seen"] == SHORT.steps
    assert all(found["sharded"] == [] for found in launch.saw("distil"))


@pytest.mark.timeout(600)
def test_a_signal_to_one_process_stops_both_at_the_same_step(launch):
    first, second = (found["error"] for found in launch.saw("sharded_stopped"))
    assert first == second and first.startswith("Interrupted: stopped at step ") and " of 8; the same command" in first


@pytest.mark.timeout(600)
def test_the_command_leaves_one_result_that_says_how_many_processes_there_were(launch):
    document = json.loads((launch.folder / "command" / "result.json").read_text())
    assert document["processes"] == WORLD and document["rows"][0]["train"]["task"] > 0
    assert (launch.folder / "command" / "student" / "README.md").is_file()
    assert all(found["error"] is None for found in launch.saw("command"))


@pytest.mark.timeout(600)
def test_what_one_process_cannot_do_stops_both(launch):
    spoiled = [found["error"] for found in launch.saw("spoiled")]
    assert spoiled[0] == spoiled[1] and "FloatingPointError: the loss task is not finite at step 2" in spoiled[0]
    full = [found["error"] for found in launch.saw("full")]
    assert "OSError: [Errno 28] the disk is full" in full[0] and "RuntimeError: the main process failed" in full[1]
    for found in launch.saw("odd"):
        assert "ValueError: train.batch is 9, which 2 processes cannot share equally: choose a mult" in found["error"]
    for found in launch.saw("sharded_heads"):
        assert found["error"].startswith("ValueError: this method trains auxiliary modules, which are not sharded")


# -- draws -------------------------------------------------------------------------------------------------------------


def drawn(model: Family, batch: Batch, parts: int, settings: Train, step: int = 3) -> Draw:
    """The draws of `parts` processes behind each other."""
    share = settings.batch // parts
    ranges = [range(i * share, (i + 1) * share) for i in range(parts)]
    found = [_processes.draw(model, batch.take(slice(r.start, r.stop)), r, settings, step) for r in ranges]
    return Draw.join(found)


def tensors(draw: Draw) -> list[torch.Tensor]:
    return [draw.view_BVCYX, draw.noise_BRHA, draw.time_BR]


@pytest.mark.parametrize("family", SETTINGS)
@pytest.mark.parametrize("size", [4, 8, 12, 20, 24])
def test_a_draw_does_not_depend_on_the_number_of_processes(family, size):
    model, settings = policy(family), Train(batch=size, draws=3)
    batch = model.example(size)
    whole = drawn(model, batch, 1, settings)
    for parts in (n for n in range(2, size + 1) if size % n == 0):
        assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(drawn(model, batch, parts, settings))))


def test_every_sample_step_and_seed_has_noise_of_its_own():
    model = policy("pi")
    batch = model.example(40)
    noise = [
        drawn(model, batch, 1, Train(batch=40, draws=2, seed=seed), step).noise_BRHA.flatten(0, 1).flatten(1)
        for seed, step in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 1))
    ]
    every = torch.cat(noise)
    directions = every / every.norm(dim=1, keepdim=True)
    cosines = (directions @ directions.T)[~torch.eye(len(every), dtype=torch.bool)].abs()
    assert cosines.max() < 0.99 and cosines.mean() < 1.1 * (2 / torch.pi / every.shape[1]) ** 0.5
    assert abs(every.mean()) < 0.05 and abs(every.std() - 1) < 0.05


# -- the teacher -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SETTINGS)
def test_a_teacher_with_rounded_weights_says_the_same_under_autocast(family):
    teacher = policy(family)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    small = light(teacher, torch.device("cpu"))
    batch = teacher.example(3)
    draw = teacher.draw(batch, torch.Generator().manual_seed(0), 2)
    student = surgery.cut(teacher, [])
    taps = ShallowPi(keep=2).taps(student, teacher)[1] if family == "pi" else ()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full, light_ = (Teacher(model)(batch, draw, taps) for model in (surgery.cut(teacher, []), small))
        assert torch.equal(Teacher(small).see(draw).features_BND, Teacher(teacher).see(draw).features_BND)
    assert torch.equal(full.pred_BRHA, light_.pred_BRHA)
    assert all(torch.equal(full.taps[tap], light_.taps[tap]) for tap in taps)
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
    rounded = [p for p in small.parameters() if p.dtype == torch.bfloat16]
    assert sum(p.numel() for p in rounded) > 0.5 * sum(p.numel() for p in small.parameters())
    assert not any(p.requires_grad for p in small.parameters()) and small.embed.weight.dtype == torch.float32
    student.vision.requires_grad_(False)
    assert same_vision(student, small)
    student.vision.projector.weight.data += 0.1
    assert not same_vision(student, small)


# -- settings of the launcher ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("FSDP_VERSION", "1", "--fsdp_version 1"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP", "--fsdp_auto_wrap_policy"),
        ("FSDP_OFFLOAD_PARAMS", "true", "--fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--fsdp_activation_checkpointing"),
        ("FSDP_IGNORED_MODULES", "vision", "FSDP_IGNORED_MODULES"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "--use_parallelism_config"),
    ],
)
def test_settings_of_fsdp_that_would_be_ignored_are_refused(monkeypatch, name, value, complaint):
    _processes.join()  # accelerate's warnings need it
    monkeypatch.setattr(_shards, "join", lambda: SimpleNamespace(backend="gloo"))
    assert _shards.plugin() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert _shards.plugin().fsdp_version == 2
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"lithe does not train with {complaint}: launch with --use_fsdp"):
        _shards.plugin()


def test_settings_of_the_launcher_that_are_not_lithes_are_refused():
    _processes.check("no", DistributedType.MULTI_GPU)
    with pytest.raises(ValueError, match=r"mixed precision 'bf16', but train\.precision in the recipe decides"):
        _processes.check("bf16", DistributedType.NO)
    with pytest.raises(ValueError, match="with DDP or FSDP2, not with DEEPSPEED"):
        _processes.check("no", DistributedType.DEEPSPEED)


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes were started, but accelerate sees no device for each of them"):
        _processes.join.__wrapped__()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
