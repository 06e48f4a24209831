"""Demonstrations from a sim's scripted experts, as one LeRobotDataset v3 that LeRobot itself opens.

Gaussian noise is added to the action that is EXECUTED while the expert's clean action is recorded, so the data shows how
to come back after a mistake. The noise level is drawn anew for every episode from [0, noise]. Only successes are kept,
and a few steps after success too, so that a policy learns to stay.
Episodes are played in parallel into a folder beside the target and the dataset appears there by one rename: a killed
collection never leaves half a dataset under its name, and the same call continues it. The result does not depend on the
number of processes. Images are stored lossless (PNG in Parquet): a lossy copy would not be what the sim shows in evaluation.
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
from typing import Any

import numpy as np

from lithe import registry
from lithe.sims.base import Sim

FIRST_SEED = 100_000  # evaluation uses 0..9999
ATTEMPTS = 10  # seeds tried per episode before the task counts as too hard for its expert


@dataclass(frozen=True)
class Settings:
    """Everything the data depends on; a staged collection only continues under equal settings."""

    sim: str
    tasks: tuple[str, ...]
    episodes: int
    noise: float
    seed: int
    size: int
    stay: int

    def __post_init__(self) -> None:
        if not self.tasks or self.episodes < 1:
            raise ValueError(f"nothing to collect: {len(self.tasks)} tasks, {self.episodes} episodes each; both must be at least 1")
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
) -> dict[str, Any]:
    """Plays `episodes` successful demonstrations of every task and writes them to the folder `out`.

    `tasks` defaults to the sim's own selection, `size` is the image edge in pixels, `stay` the steps recorded after success.
    Returns {out, frames, seconds, frames_per_s, size_mb, tasks: {task: {episodes, frames, attempts}}}.
    Raises ValueError when `out` exists, a task is unknown, or an expert fails too often.
    """
    out = Path(out)
    cls = registry.get("sims", sim)
    chosen = tuple(cls.check_task(task) for task in (tasks if tasks is not None else cls.default_tasks()))
    settings = Settings(sim=sim, tasks=chosen, episodes=episodes, noise=noise, seed=seed, size=size, stay=stay)
    if out.exists():
        raise ValueError(f"{out} exists; collection never overwrites: move it away or choose another folder")
    start = time.perf_counter()
    staging = _stage(out, settings)
    jobs = [(settings, task, i, staging / "episodes") for task in chosen for i in range(episodes)]
    summary = _write(staging / "dataset", cls, settings, _played(jobs, processes or os.cpu_count() or 1), len(jobs))
    os.replace(staging / "dataset", out)
    shutil.rmtree(staging)
    seconds = time.perf_counter() - start
    megabytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    frames = sum(row["frames"] for row in summary.values())
    rate = round(frames / seconds, 1)
    return {"out": str(out), "frames": frames, "seconds": round(seconds, 1), "frames_per_s": rate, "size_mb": round(megabytes, 1), "tasks": summary}


def episode_seed(seed: int, index: int, attempt: int) -> int:
    """The sim seed of one attempt: never below FIRST_SEED, never used twice within or between collections."""
    return FIRST_SEED + seed * 10_000_000 + index * ATTEMPTS + attempt


def play(sim: Sim, task: str, seed: int, noise: float, stay: int) -> dict[str, np.ndarray] | None:
    """One noisy demonstration as arrays [T, ...] by LeRobot key, or None when the expert failed within the horizon."""
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    sigma = rng.uniform(0.0, noise)
    sim.reset(task, seed)
    expert = sim.expert(task)
    rows: list[dict[str, np.ndarray]] = []
    left = stay
    while left > 0 or not sim.success:
        if len(rows) >= sim.horizon + stay:
            return None
        left -= sim.success
        clean_A = np.clip(expert(), -1.0, 1.0).astype(np.float32)
        observation = sim.observe()
        del observation["task"]
        rows.append({**observation, "action": clean_A})
        sim.step(clean_A + rng.normal(0.0, sigma, clean_A.shape))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _stage(out: Path, settings: Settings) -> Path:
    """The working folder beside the target: fresh, or the one a killed collection with equal settings left."""
    staging = out.parent / f".{out.name}.collecting"
    (staging / "episodes").mkdir(parents=True, exist_ok=True)
    note = staging / "settings.json"
    wanted = json.dumps(asdict(settings), indent=1)
    if note.exists() and note.read_text() != wanted:
        raise ValueError(f"{staging} holds an unfinished collection with other settings; repeat that call or delete the folder")
    _atomic(note, lambda path: path.write_text(wanted))
    shutil.rmtree(staging / "dataset", ignore_errors=True)
    return staging


def _atomic(path: Path, write: Any) -> None:
    """Calls `write` with a neighbouring name and renames the file afterwards."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    write(part)
    os.replace(part, path)


_sims: dict[tuple[str, int], Sim] = {}  # one sim per process, kept between its episodes: building one takes a second


def _play_job(job: tuple[Settings, str, int, Path]) -> tuple[str, Path]:
    """Runs in a worker: makes sure that the episode file exists, trying one seed after the other."""
    settings, task, index, folder = job
    path = folder / f"{task}-{index:05d}.npz"
    if path.exists():
        return task, path
    key = (settings.sim, settings.size)
    if key not in _sims:
        _sims[key] = registry.get("sims", settings.sim)(size=settings.size)
    sim = _sims[key]
    for attempt in range(ATTEMPTS):
        episode = play(sim, task, episode_seed(settings.seed, index, attempt), settings.noise, settings.stay)
        if episode is not None:
            _atomic(path, lambda part: np.savez(part, attempts=attempt + 1, **episode))
            return task, path
    raise ValueError(f"the expert of {task} failed {ATTEMPTS} times in a row; lower noise={settings.noise} or drop the task")


def _played(jobs: list[Any], processes: int) -> Iterator[tuple[str, Path]]:
    """Finished episodes in the order of `jobs`, played by spawned processes (OpenGL does not survive a fork)."""
    if processes == 1:
        yield from map(_play_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
        yield from pool.imap(_play_job, jobs)


def _write(root: Path, cls: type[Sim], settings: Settings, played: Iterator[tuple[str, Path]], total: int) -> dict[str, Any]:
    """Appends every episode to a new LeRobotDataset in `root` and returns the counts per task."""
    from tqdm import tqdm

    dataset = _create(root, cls, settings)
    summary: dict[str, Any] = {}
    numbers: dict[str, list[np.ndarray]] = {"observation.state": [], "action": []}
    for task, path in tqdm(played, total=total, desc="episodes", unit="ep", smoothing=0.05):
        with np.load(path) as stored:
            episode = dict(stored)
        row = summary.setdefault(task, {"episodes": 0, "frames": 0, "attempts": 0})
        row["attempts"] += int(episode.pop("attempts"))
        row["episodes"] += 1
        row["frames"] += len(episode["action"])
        for t in range(len(episode["action"])):
            dataset.add_frame({**{key: values[t] for key, values in episode.items()}, "task": cls.instruction(task)})
        dataset.save_episode()
        for key, kept in numbers.items():
            kept.append(episode[key])
    dataset.finalize()
    _exact_stats(root, {key: np.concatenate(kept) for key, kept in numbers.items()})
    return summary


def _create(root: Path, cls: type[Sim], settings: Settings) -> Any:
    try:
        import datasets
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise ValueError("writing a dataset needs LeRobot: pip install 'lithe[lerobot]'") from error
    datasets.disable_progress_bars()  # one bar per episode and step otherwise
    picture = {"dtype": "image", "shape": (settings.size, settings.size, 3), "names": ["height", "width", "channels"]}
    features = {f"observation.images.{camera}": picture for camera in cls.cameras}
    features["observation.state"] = {"dtype": "float32", "shape": (cls.state_dim,), "names": None}
    features["action"] = {"dtype": "float32", "shape": (cls.action_dim,), "names": None}
    robot = "sawyer" if settings.sim == "metaworld" else settings.sim
    return LeRobotDataset.create(f"lithe/{root.parent.name.strip('.')}", fps=int(cls.fps), features=features, root=root, robot_type=robot, use_videos=False)


def _exact_stats(root: Path, numbers: dict[str, np.ndarray]) -> None:
    """Replaces LeRobot's quantiles, which are means over per-episode quantiles, by those of all frames."""
    path = root / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    for key, values in numbers.items():
        stats[key].update(mean=values.mean(0, dtype=np.float64).tolist(), std=values.std(0, dtype=np.float64).tolist())
        for name in (n for n in stats[key] if n.startswith("q")):
            stats[key][name] = np.quantile(values, int(name[1:]) / 100, axis=0).tolist()
    path.write_text(json.dumps(stats, indent=4))
