"""Demonstrations from a sim's scripted experts, as one LeRobotDataset v3 that LeRobot itself opens.

Gaussian noise is added to the action that is EXECUTED while the expert's clean action is recorded, so the data shows
how to come back after a small mistake; its level is drawn anew for every episode from [0, noise]. With a `policy`, it
acts first, unrecorded, and the expert takes over somewhere on its way: demonstrations from where that policy gets to
(DAgger, arXiv 1011.0686, with one hand-over an episode). Only successes are kept, with a few steps after success, so
that a policy learns to stay. Images are stored lossless (PNG in Parquet): what a policy learns from is what the sim
shows it in evaluation.
Episodes are played in parallel into a folder beside the target, and the dataset appears there by one rename. A killed
collection never leaves half a dataset under its name, and the same call continues it. The result does not depend on the
number of processes. Shapes: T steps of an episode, A action.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lithe import registry
from lithe.data._writer import PREFIX, Writer, png
from lithe.sims.base import Sim

if TYPE_CHECKING:
    from lithe.runtimes.base import Runtime

Episode = dict[str, np.ndarray]
FIRST_SEED = 100_000  # evaluation uses 0..9999
LEAD = 150  # most steps of a policy before the expert takes over
SOLVED = 0.25  # share that is kept of the episodes in which the policy needs no help
ATTEMPTS = 10  # seeds tried per episode before the task counts as too hard for its expert
ATTEMPTS_WITH_POLICY = 40


@dataclass(frozen=True)
class Settings:
    """Everything the data depends on; a staged collection continues only under equal settings."""

    sim: str
    tasks: tuple[str, ...]
    episodes: int
    noise: float
    seed: int
    size: int
    stay: int
    policy: str

    def __post_init__(self) -> None:
        if not self.tasks or self.episodes < 1:
            raise ValueError(
                f"nothing to collect: tasks={list(self.tasks)}, episodes={self.episodes}; give at least one"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"a task is named twice in {', '.join(self.tasks)}; raise `episodes` instead")
        if not 0 <= self.noise <= 2:
            raise ValueError(f"noise is a standard deviation of actions in -1..1; {self.noise} is not between 0 and 2")
        if self.stay < 0 or self.seed < 0:
            raise ValueError(f"stay and seed must not be negative, got stay={self.stay}, seed={self.seed}")


def collect(
    sim: str = "metaworld",
    out: str | Path = "data/metaworld-mini",
    tasks: tuple[str, ...] | list[str] | None = None,
    episodes: int = 100,
    noise: float = 0.3,
    seed: int = 0,
    processes: int | None = None,
    size: int = 64,
    stay: int = 8,
    policy: str | Path | None = None,
) -> dict[str, Any]:
    """Plays `episodes` successful demonstrations of every task and writes them to the folder `out`.

    `tasks` defaults to the sim's own selection, `processes` to the number of cores; `size` is the image edge in pixels,
    `stay` the number of steps recorded after success, `policy` a policy folder, which acts before the expert does.
    Returns {out, frames, seconds, frames_per_s, size_mb, tasks: {task: {episodes, frames, attempts}}}.
    Raises ValueError when `out` exists, a task is unknown, or an expert fails too often.
    """
    start = time.monotonic()
    out = Path(out)
    cls = _sim_class(sim)
    chosen = tuple(cls.check_task(task) for task in (cls.default_tasks() if tasks is None else tasks))
    lead = "" if policy is None else _leading(policy)
    settings = Settings(
        sim=sim, tasks=chosen, episodes=episodes, noise=noise, seed=seed, size=size, stay=stay, policy=lead
    )
    if out.exists():
        raise ValueError(f"{out} exists and collection never overwrites; move it away or choose another folder")
    staging = _stage(out, settings)
    jobs = [Job(settings, task, i, staging / "episodes") for task in chosen for i in range(episodes)]
    rows = _write(staging / "dataset", cls, settings, _played(jobs, processes or os.cpu_count() or 1))
    os.replace(staging / "dataset", out)
    shutil.rmtree(staging)
    seconds, frames = time.monotonic() - start, sum(row["frames"] for row in rows.values())
    size_mb = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    counts = {"frames": frames, "seconds": round(seconds, 1), "frames_per_s": round(frames / seconds, 1)}
    return {"out": str(out), **counts, "size_mb": round(size_mb, 1), "tasks": rows}


def episode_seed(seed: int, index: int, attempt: int, attempts: int = ATTEMPTS) -> int:
    """The sim seed of one attempt: never below FIRST_SEED, never used twice within a collection or between them."""
    return FIRST_SEED + seed * 10_000_000 + index * attempts + attempt


def play(sim: Sim, task: str, seed: int, noise: float, stay: int, lead: Runtime | None = None) -> Episode | None:
    """One noisy demonstration as arrays [T, ...] by LeRobot key.

    None when the expert failed within the horizon, and for most episodes that the policy `lead` can do without it.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    sigma = rng.uniform(0.0, noise)
    if lead is None:
        sim.reset(task, seed)
    elif not hand_over(sim, lead, task, seed, rng):
        return None
    expert = sim.expert(task)
    rows: list[dict[str, Any]] = []
    stayed = 0
    while stayed < stay or not sim.success:
        if not sim.success and len(rows) == sim.horizon:
            return None
        stayed += sim.success
        clean_A = np.clip(expert(), -1.0, 1.0).astype(np.float32)
        observation = sim.observe()
        del observation["task"]
        rows.append({**observation, "action": clean_A})
        sim.step(clean_A + rng.normal(0.0, sigma, clean_A.shape))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def hand_over(sim: Sim, lead: Runtime, task: str, seed: int, rng: np.random.Generator) -> bool:
    """Leaves the sim somewhere on the policy's way: before its success, or within LEAD steps without one.

    What teaches most is where the policy gets lost: of the episodes that it solves only the share SOLVED is used.
    """
    solved_at = drive(sim, lead, task, seed, LEAD)
    used = not solved_at or rng.random() < SOLVED
    if used:
        drive(sim, lead, task, seed, int(rng.integers(0, solved_at or LEAD + 1)))
    return used


def drive(sim: Sim, lead: Runtime, task: str, seed: int, steps: int) -> int:
    """The policy acts from the beginning of an episode; returns the step at which it succeeded, or 0."""
    sim.reset(task, seed)
    lead.reset(seed)
    for step in range(steps):
        if step % lead.spec.replan == 0:
            chunk_HA = lead.infer(sim.observe())  # type: ignore[arg-type]
        if sim.step(chunk_HA[step % lead.spec.replan]):
            return step + 1
    return 0


@dataclass(frozen=True)
class Job:
    """One episode to be played in whichever process is free."""

    settings: Settings
    task: str
    index: int
    folder: Path


_sims: dict[tuple[str, int], Sim] = {}  # one per process, kept between episodes: building one takes a second
_leads: dict[str, Runtime] = {}  # likewise


def run(job: Job) -> tuple[str, Path]:
    """Makes sure that the episode's file exists, trying one seed after the other; returns (task, file)."""
    settings, path = job.settings, job.folder / f"{job.task}-{job.index:05d}.npz"
    if path.exists():
        return job.task, path
    key = (settings.sim, settings.size)
    if key not in _sims:
        _sims[key] = _sim_class(settings.sim)(size=settings.size)
    attempts = ATTEMPTS_WITH_POLICY if settings.policy else ATTEMPTS
    for attempt in range(attempts):
        seed = episode_seed(settings.seed, job.index, attempt, attempts)
        episode = play(_sims[key], job.task, seed, settings.noise, settings.stay, _lead(settings.policy))
        if episode is not None:
            part = path.with_suffix(f".{os.getpid()}.part.npz")
            packed = {"attempts": np.array(attempt + 1)}
            for name, values in episode.items():
                packed |= _pack(values, name) if name.startswith(PREFIX) else {name: values}
            np.savez(part, **packed)  # type: ignore[arg-type]
            os.replace(part, path)
            return job.task, path
    fix = f"lower noise={settings.noise} or leave the task out"
    raise ValueError(f"the expert of {job.task} failed {attempts} times in a row; {fix}")


def _sim_class(name: str) -> type[Sim]:
    return cast(type[Sim], registry.get("sims", name))


def _leading(policy: str | Path) -> str:
    """A policy's folder and the checksum of its weights: a collection goes on only with the one that it began with."""
    from lithe import api
    from lithe.source import resolve

    folder = resolve(policy).folder
    return f"{folder}@{api.digest(folder)}"


def _lead(policy: str) -> Runtime | None:
    """The policy that acts first, loaded once a process."""
    if policy and policy not in _leads:
        import torch

        from lithe import api
        from lithe.runtimes.eager import Eager

        torch.set_num_threads(1)  # one worker a core; and sums in another order would be other actions
        _leads[policy] = Eager(api.load(policy.rpartition("@")[0]))
    return _leads.get(policy)


def _played(jobs: list[Job], processes: int) -> Iterator[tuple[str, Path]]:
    """Finished episodes in the order of `jobs`, with a progress bar. Spawned: OpenGL does not survive a fork."""
    from tqdm import tqdm

    with tqdm(total=len(jobs), desc="episodes", unit="ep", smoothing=0.05, disable=None) as bar:
        if processes == 1:
            for job in jobs:
                yield run(job)
                bar.update()
            return
        with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
            for finished in pool.imap(run, jobs):
                yield finished
                bar.update()


def _stage(out: Path, settings: Settings) -> Path:
    """The working folder beside the target: fresh, or the one a killed collection with equal settings left."""
    staging = out.parent / f".{out.name}.collecting"
    (staging / "episodes").mkdir(parents=True, exist_ok=True)
    note, wanted = staging / "settings.json", json.dumps(asdict(settings), indent=1)
    if note.exists() and note.read_text() != wanted:
        fix = "repeat that call or delete the folder"
        raise ValueError(f"{staging} holds an unfinished collection with other settings; {fix}")
    part = note.with_suffix(".part")
    part.write_text(wanted)
    os.replace(part, note)
    shutil.rmtree(staging / "dataset", ignore_errors=True)
    return staging


def _write(root: Path, cls: type[Sim], settings: Settings, played: Iterator[tuple[str, Path]]) -> dict[str, Any]:
    """Appends every episode to a new LeRobotDataset in `root` and returns the counts per task."""
    about = {"repo_id": f"lithe/{cls.name}", "fps": int(cls.fps), "robot_type": cls.robot}
    widths = {"observation.state": cls.state_dim, "action": cls.action_dim}
    writer = Writer(root, cls.cameras, settings.size, widths, **about)
    rows = {task: {"episodes": 0, "frames": 0, "attempts": 0} for task in settings.tasks}
    for task, path in played:
        with np.load(path) as stored:
            episode = dict(stored)
        vectors = {key: episode[key] for key in widths}
        pictures = {PREFIX + camera: _unpack(episode, PREFIX + camera) for camera in cls.cameras}
        rows[task]["attempts"] += int(episode["attempts"])
        rows[task]["episodes"] += 1
        rows[task]["frames"] += len(episode["action"])
        writer.add(vectors, pictures, cls.instruction(task))
    _exact_stats(root / "meta" / "stats.json", writer.close())
    return rows


def _pack(pictures_TYXC: np.ndarray, key: str) -> dict[str, np.ndarray]:
    """Compressed pictures as two plain arrays, so that an episode's file needs no pickle."""
    rows = [png(picture) for picture in pictures_TYXC]
    return {key: np.frombuffer(b"".join(rows), np.uint8), f"{key}.sizes": np.array([len(row) for row in rows])}


def _unpack(episode: dict[str, np.ndarray], key: str) -> list[bytes]:
    """The compressed pictures that `_pack` joined."""
    ends = np.cumsum(episode[f"{key}.sizes"])
    whole = episode[key].tobytes()
    return [whole[end - size : end] for end, size in zip(ends, episode[f"{key}.sizes"])]


def _exact_stats(path: Path, numbers: dict[str, np.ndarray]) -> None:
    """Puts statistics of all frames where LeRobot's writer has means over the episodes' own quantiles."""
    stats = json.loads(path.read_text())
    for key, values in numbers.items():
        stats[key].update(mean=values.mean(0, dtype=np.float64).tolist(), std=values.std(0, dtype=np.float64).tolist())
        for name in (name for name in stats[key] if name.startswith("q")):
            stats[key][name] = np.quantile(values, int(name[1:]) / 100, axis=0).tolist()
    path.write_text(json.dumps(stats, indent=4))
