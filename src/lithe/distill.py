"""The trainer: cuts a student out of a teacher and trains it, stage by stage. It names no method, family or loss.

Batches and draws are functions of (seed, step, sample), so a resumed run repeats the interrupted one exactly, on any
number of processes. Teacher and student get the same draw. Metrics always go to metrics.jsonl; trackers are extra. A
signal only sets a flag: the step in progress ends, all processes agree, a checkpoint is written, and the run stops.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn
from tqdm import tqdm

from lithe import _processes, _shards, checkpoint, surgery
from lithe._calibration import settled
from lithe._run import Run, optimizer_tensors, pack, restore_optimizer, unpack
from lithe.data.base import Data, batch_indices
from lithe.families.base import Family
from lithe.measure import Clock
from lithe.methods.base import Method, Stage, Step
from lithe.recipe import Train
from lithe.teacher import Teacher, light, same_vision
from lithe.types import Batch, Draw, Out, Tap

LOG_EVERY = 10


class Interrupted(RuntimeError):
    """The run was asked to stop; a checkpoint was written. The message says how to go on."""


def distill(
    teacher: Family,
    method: Method,
    data: Data,
    train: Train,
    out: str | Path | None = None,
    identity: dict[str, Any] | None = None,
) -> Family:
    """Train the student that `method` cuts out of `teacher`; returns it in eval mode on the CPU, in every process.

    out: run folder (checkpoints, metrics, the student); an existing one of the same identity is resumed. None keeps
    nothing. identity: JSON-able description of the run, usually the resolved recipe. Raises ValueError for settings
    that do not fit, Interrupted after SIGINT or SIGTERM, FloatingPointError when a loss is not finite. Of several
    processes all take part, and the main one writes.
    """
    identity = identity or {"method": _settings(method), "train": dataclasses.asdict(train)}
    method, identity = settled(method, teacher, data, out, identity)
    student = surgery.cut(teacher, method.cut(teacher))
    trainer = Trainer(student, teacher, method, data, train, out) if method.stages() else None
    run = Run(out, identity, train.keep_checkpoints, _processes.join().is_main_process) if out else None
    if trainer is None:
        finish(method, student.eval(), data, next(student.parameters()).device)
        return student
    with _stop_on_signal() as stop:
        trainer.fit(run, stop)
    return trainer.result(run)


class Trainer:
    """State of one run: student, optimiser, averaged weights, position."""

    def __init__(
        self, student: Family, teacher: Family, method: Method, data: Data, train: Train, out: str | Path | None = None
    ):
        self.stages, self.step, self.stopping = list(plan(method.stages(), train.steps)), 0, False
        check(train, data, student, self.stages)
        self.rows, self.sharding = _processes.rows(train.batch), _shards.plugin()
        self.accelerator = _processes.accelerator(train, out)
        if train.trackers:
            self.accelerator.init_trackers("lithe")
        self.device = self.accelerator.device
        self.blank = _shards.skeleton(student.train())
        self.student, self.method, self.data, self.train = student, method, data, train
        if not self.sharding:  # which moves it piece by piece
            self.student.to(self.device)
        self.teacher = Teacher(self._placed(teacher)) if method.needs_teacher else None
        self.aux = method.aux(teacher).to(self.device)
        self._check_aux()
        self.student_taps, self.teacher_taps = method.taps(student, teacher)
        self.averaged: dict[str, Tensor] = {}
        self.clock, self.said = Clock(self.device), ""
        for stage, _, _ in self.stages:
            self._choose(stage)  # a prefix that names nothing is refused before anything is written

    def _placed(self, teacher: Family) -> Family:
        """The teacher on the device; on a GPU whose autocast would round its weights at every step, rounded once."""
        rounded = self.train.precision == "bf16" and self.device.type == "cuda"
        return light(teacher, self.device) if rounded else teacher.to(self.device)

    def _check_aux(self) -> None:
        """Auxiliary modules begin equal in all processes; they are not sharded."""
        parameters = list(self.aux.parameters())
        if self.sharding and parameters:
            raise ValueError("this method trains auxiliary modules, which are not sharded: launch without --use_fsdp")
        _processes.equalise((*parameters, *self.aux.buffers()))

    def fit(self, run: Run | None, stop: list[bool]) -> None:
        """Run every remaining step; a finished run only gets its weights back."""
        newest = _processes.on_main(run.newest) if run else -1
        saved = run.read(newest) if run and newest >= 0 else None
        if run and saved:
            tensors, position = saved
            self._restore(tensors, position)
            # a kill may have come between the checkpoint and the student made from it
            _processes.on_main(lambda: self._publish(run, tensors))
        bar = tqdm(
            total=self.train.steps,
            initial=self.step,
            desc=self.method.__class__.__name__,
            disable=None if self.accelerator.is_main_process else True,
            unit="step",
        )
        for stage, first, last in self.stages:
            if self.step < last:
                if self.step == first:
                    self.method.enter(stage, self.student, self.aux)
                self._open(stage, saved)
                saved = None  # its memory, too
                self._stage(stage, first, last, run, stop, bar)
        bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _restore(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        """Position and weights of a checkpoint."""
        self.step = position["step"]
        checkpoint.fill(self.student, unpack("student", tensors), "the checkpoint")
        if not self.sharding:
            self.student.to(self.device)
        self.aux.load_state_dict(unpack("aux", tensors), strict=True)
        self.averaged = unpack("averaged", tensors)

    def _open(self, stage: Stage, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        """Choose what trains, make the optimiser, restore its state from a checkpoint of this stage."""
        tensors, position = saved or ({}, {})
        if self.sharding:
            _shards.shard(self.student, self.device, self.sharding)
        if self.train.ema:
            named = self.student.named_parameters()
            self.averaged = {name: _shards.like(p, self.averaged.get(name, p)) for name, p in named}
        self.trained = self._choose(stage)
        self.share_vision = self.teacher is not None and same_vision(self.student, self.teacher.model)
        optimizer = torch.optim.AdamW(
            self.trained,
            lr=self.train.lr * stage.lr,
            betas=self.train.betas,
            eps=self.train.eps,
            weight_decay=self.train.weight_decay,
        )
        if position.get("stage") == stage.name:
            restore_optimizer(optimizer, unpack("optimizer", tensors))
        if self.sharding:
            self.model, self.optimizer = self.student, self.accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = self.accelerator.prepare(self.student, optimizer)

    def _choose(self, stage: Stage) -> list[nn.Parameter]:
        """Set requires_grad for a stage. Raises ValueError when a prefix names nothing."""
        named = {**dict(self.student.named_parameters()), **{f"aux.{k}": p for k, p in self.aux.named_parameters()}}
        for prefix in (*stage.train, *self.train.freeze):
            if not any(name.startswith(prefix) for name in named):
                raise ValueError(
                    f"no parameter starts with {prefix!r}; the model has "
                    f"{', '.join(sorted({n.split('.')[0] for n in named}))}"
                )
        for name, parameter in named.items():
            parameter.requires_grad_(name.startswith(stage.train) and not name.startswith(self.train.freeze or "\0"))
        return [p for p in named.values() if p.requires_grad]

    def _stage(self, stage: Stage, first: int, last: int, run: Run | None, stop: list[bool], bar: Any) -> None:
        with ThreadPoolExecutor(1) as loader:
            upcoming: Future[tuple[Batch, Draw]] = loader.submit(self._load, self.step)
            self.clock.take()  # what came before is set-up
            self.logged = self.step
            while self.step < last:
                self.clock.lap("step")
                batch, draw = upcoming.result()
                self.clock.lap("data")
                if self.step + 1 < last:
                    upcoming = loader.submit(self._load, self.step + 1)
                done, rate = self.step - first, schedule(self.step - first, last - first, self.train)
                terms = self._update(stage, batch, draw, rate, done / (last - first), stop)
                self.step += 1
                self._after(stage, terms, run, bar, last)

    def _load(self, step: int) -> tuple[Batch, Draw]:
        """This process's part of a step, its batch and its draw: a function of (seed, step, sample) alone."""
        t, rows = self.train, self.rows
        indices = batch_indices(t.seed, step, t.batch, len(self.data))[rows.start : rows.stop]
        batch = self.student.batch(self.data.samples(indices, self.student.spec.horizon))
        return batch, _processes.draw(self.student, batch, rows, t, step)

    def _luck(self) -> torch.Generator:
        """What a method draws from in this step; the same in all processes."""
        return torch.Generator().manual_seed(self.train.seed * 1_000_003 + self.step)

    def _update(
        self, stage: Stage, batch: Batch, draw: Draw, lr: float, progress: float, stop: list[bool]
    ) -> dict[str, float]:
        """One forward and backward pass, and an optimiser step when the accumulation is full."""
        batch, draw = batch.to(self.device), draw.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.lr * stage.lr * lr
        with self.accelerator.accumulate(self.model):
            enabled = self.train.precision == "bf16"
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
                if self.share_vision and self.teacher:
                    draw = self.teacher.see(draw)
                expected = self.teacher(*self.method.asked(batch, draw), self.teacher_taps) if self.teacher else None
                route = self.method.route(self.student, stage, self._luck())
                out = self.model(batch, draw, self.student_taps, route) if stage.student else None
            check_shown(self.student, self.student_taps, out)
            check_shown(self.student, self.teacher_taps, expected)
            terms = self.method.loss(Step(self.student, batch, out, expected, stage, self.aux, progress))
            values = self._agree(terms, stop)
            counted = [term for name, term in terms.items() if not name.startswith("note/")]
            self.accelerator.backward(torch.stack(counted).sum())
            if self.accelerator.sync_gradients:
                _processes.mean_gradients(self.aux.parameters() if stage.student else self.trained)
                norm = _shards.whole(torch.nn.utils.clip_grad_norm_(self.trained, self.train.clip))
                values["gradient_norm"] = float(norm)
                self._demand_finite({"the gradient": values["gradient_norm"]})
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._average()
        return values

    def _agree(self, terms: dict[str, Tensor], stop: list[bool]) -> dict[str, float]:
        """The mean of every term over all processes, which stop together when one of them was asked to."""
        asked = torch.tensor(float(bool(stop)), device=self.device)
        sent = torch.stack([*(term.detach().float() for term in terms.values()), asked])
        *means, asking = _processes.mean(sent).tolist()
        self.stopping = asking > 0
        values = dict(zip(terms, means, strict=True))
        self._demand_finite({**{f"the loss {name}": value for name, value in values.items()}, "the loss": sum(means)})
        return values

    def _demand_finite(self, values: dict[str, float]) -> None:
        """Raises FloatingPointError before a bad value reaches the weights; in all processes, for they agree on it."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{bad[0]} is not finite at step {self.step}: look for NaN in the data, or lower train.lr; "
                "the last checkpoint is intact"
            )

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential average of the weights, quicker at the start so that the random beginning is forgotten."""
        decay = min(self.train.ema, (1 + self.step) / (10 + self.step))
        for name, parameter in self.student.named_parameters():
            if name in self.averaged:
                self.averaged[name].lerp_(parameter, 1 - decay)

    def _after(self, stage: Stage, values: dict[str, float], run: Run | None, bar: Any, last: int) -> None:
        """Log, checkpoint, notice a request to stop."""
        bar.update()
        logged = self.step % LOG_EVERY == 0 or self.step == last
        if logged:
            values = {name: round(value, 6) for name, value in values.items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()}, refresh=False)
            self.accelerator.log(values, step=self.step)
            self._say(self.method.remark(values))
            if run and self.accelerator.is_main_process:
                steps, self.logged = self.step - self.logged, self.step
                times = {f"{part}_s": round(seconds / steps, 4) for part, seconds in self.clock.take().items()}
                rate = self.optimizer.param_groups[0]["lr"]
                run.log({"step": self.step, "stage": stage.name, "lr": rate, **values, **times})
        stopping = self.stopping and self.step % self.train.accumulate == 0  # half of an accumulation is not saved
        if run and (stopping or self.step % self.train.save_every == 0 or self.step == last):
            self.save(run, stage)
        if stopping:
            where = f"; the same command goes on from step {self.step} in {run.out}" if run else ""
            raise Interrupted(f"stopped at step {self.step} of {self.train.steps}{where}")

    def _say(self, remark: str) -> None:
        """Tell the user, once for as long as there is nothing else to tell."""
        if remark and remark != self.said and self.accelerator.is_main_process:
            tqdm.write(f"lithe: step {self.step}: {remark}", file=sys.stderr)
        self.said = remark

    def save(self, run: Run, stage: Stage) -> None:
        """Checkpoint first, then the student folder made from it; written by the main process, gathered from all."""
        parts = {**self._weights(), "aux": self.aux.state_dict()}
        parts["optimizer"] = optimizer_tensors(self.optimizer.optimizer)
        packed = {k: v for prefix, part in parts.items() for k, v in pack(prefix, part).items()}
        tensors = _shards.gathered(packed, keep=self.accelerator.is_main_process)

        def write() -> None:
            run.save(self.step, tensors, {"stage": stage.name})
            self._publish(run, tensors)

        _processes.on_main(write)

    def _publish(self, run: Run, tensors: dict[str, Tensor]) -> None:
        self._write(run, self._filled(tensors))

    def _write(self, run: Run, student: Family) -> None:
        about: dict[str, Any] = {"method": _settings(self.method), "step": self.step, "steps": self.train.steps}
        about["fps"] = self.data.fps
        checkpoint.save(student, run.out / "student", **about)

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return {"student": self.student.state_dict(), "averaged": self.averaged}

    def _filled(self, tensors: dict[str, Tensor]) -> Family:
        """The student as it would be used, from a checkpoint's tensors: averaged weights where averaging is on."""
        student = copy.deepcopy(self.blank)
        checkpoint.fill(student, {**unpack("student", tensors), **unpack("averaged", tensors)}, "this run")
        return student.eval().requires_grad_(False)

    def result(self, run: Run | None = None) -> Family:
        """A copy of the student as it would be used, finished by its method; every process must ask for it.

        run: where that student is to lie, too.
        """
        packed = {k: v for prefix, part in self._weights().items() for k, v in pack(prefix, part).items()}
        student = self._filled(_shards.gathered(packed))
        if finish(self.method, student, self.data, self.device) and run:
            _processes.on_main(lambda: self._write(run, student))
        return student


def finish(method: Method, student: Family, data: Data, device: torch.device) -> bool:
    """Fill in what the method finds out when training has ended; whether it found anything."""
    found = method.finish(student, data, device)
    for name, tensor in found.items():
        student.get_buffer(name).copy_(tensor)
    return bool(found)


def check(train: Train, data: Data, student: Family, stages: list[tuple[Stage, int, int]]) -> None:
    """Raises ValueError for settings that cannot work, alone or together."""
    for name in ("steps", "batch", "draws", "accumulate", "save_every", "keep_checkpoints"):
        if getattr(train, name) < 1:
            raise ValueError(f"train.{name} must be at least 1, not {getattr(train, name)}")
    ends = {f"the end of stage {stage.name!r}": last for stage, _, last in stages}
    for what, step in {"train.save_every": train.save_every, **ends}.items():
        if step % train.accumulate:
            raise ValueError(f"{what} ({step}) must be a multiple of train.accumulate ({train.accumulate})")
    if train.warmup >= train.steps:
        raise ValueError(f"train.warmup ({train.warmup}) must be below train.steps ({train.steps})")
    if train.batch > len(data):
        raise ValueError(f"train.batch is {train.batch}, but the data has only {len(data)} frames")
    if train.precision not in ("bf16", "fp32"):
        raise ValueError(f"train.precision must be bf16 or fp32, not {train.precision!r}")
    absent = [name for name in train.trackers if name not in map(str, get_available_trackers())]
    if absent:
        raise ValueError(f"train.trackers asks for {absent[0]!r}, which is not installed: pip install {absent[0]}")
    missing = [camera for camera in student.spec.cameras if camera not in data.cameras]
    if missing:
        raise ValueError(f"the policy needs the camera {missing[0]!r}; the data has {', '.join(data.cameras)}")
    spec = student.spec
    for what, wants, has in (("state", spec.state_dim, data.state_dim), ("action", spec.action_dim, data.action_dim)):
        if wants != has:
            raise ValueError(f"the policy is for {wants} {what} dimensions, the data has {has}: choose other data")


def check_shown(family: Family, taps: Sequence[Tap], out: Out | None) -> None:
    """Raises ValueError when a family does not show what a method wants to see inside it. None: nothing ran."""
    missing = [tap for tap in taps if out is not None and tap not in out.taps]
    if missing:
        raise ValueError(
            f"{family.name} does not show the {missing[0].kind} at layer {missing[0].layer}, which this method "
            "compares: choose another method, or let the family record it"
        )


def plan(stages: list[Stage], steps: int) -> Iterator[tuple[Stage, int, int]]:
    """Each stage with its first step and the step after its last."""
    total, done = sum(stage.share for stage in stages), 0.0
    for stage in stages:
        first, done = round(steps * done / total), done + stage.share
        yield stage, first, round(steps * done / total)


def schedule(step: int, steps: int, train: Train) -> float:
    """Learning-rate factor: linear warm-up, then cosine down to `floor`; each stage has its own."""
    warmup = min(train.warmup, steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return train.floor + (1 - train.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _settings(method: Method) -> dict[str, Any]:
    return {"name": type(method).__module__.rpartition(".")[2], **dataclasses.asdict(method)}


@contextmanager
def _stop_on_signal() -> Iterator[list[bool]]:
    """A list that becomes non-empty on SIGINT or SIGTERM; the handlers do nothing else. Only in the main thread."""
    stop: list[bool] = []
    try:
        before = {s: signal.signal(s, lambda *_: stop.append(True)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller keeps its own handling
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
