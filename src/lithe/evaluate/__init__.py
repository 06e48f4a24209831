"""Closed-loop evaluation: every policy acts from the same initial states, and what comes out carries its uncertainty.

Episode e of a task starts from (task, seed + e) and draws the policy's noise from the same two, so that policies are
compared pair by pair. An episode is a pure function of the policy's weights, its task, its seed and the settings:
neither the number of processes nor their order, a crash or a resumed run changes a bit of its record. Finished episodes
go to `out/ledger.jsonl` one by one; the same call after a kill plays only what is missing. The intervals are in
statistics.py, one episode in rollout.py, what lateness means in stream.py. Not here: timing (`lithe bench`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lithe import registry, result
from lithe.evaluate import crew, entrants, reaction, realtime
from lithe.evaluate.ledger import Ledger
from lithe.evaluate.outcome import INTERVALS, JERK_UNIT, REACTION_INTERVAL, in_real_time, rows, table
from lithe.evaluate.rollout import Job, Player, Setup, filmstrip
from lithe.registry import suggestion

if TYPE_CHECKING:
    from lithe.sims.base import Sim

__all__ = ["evaluate", "filmstrip", "table"]

SEEDS = 10_000  # seeds from here on belong to demonstrations: nobody is judged on what it was trained on


def evaluate(
    policies: Sequence[str | Path],
    sim: str = "metaworld",
    tasks: Sequence[str] | None = None,
    episodes: int = 50,
    seed: int = 0,
    processes: int | None = None,
    out: str | Path | None = None,
    videos: int = 0,
    horizon: int | None = None,
    steps: int | None = None,
    replan: int | None = None,
    against: str | None = None,
    runtime: str = "eager",
    sim_options: dict[str, Any] | None = None,
    names: Sequence[str] | None = None,
    instructions: dict[str, str] | None = None,
    timeout: float = 900.0,
    execution: str | None = None,
    latency: realtime.Latency | None = None,
) -> dict[str, Any]:
    """Plays `episodes` episodes of every task with every policy and returns the Result.

    policies: policy folders of lithe, LeRobot or openpi, or hub ids, each optionally as "name=folder"; `names`
    overrides. tasks: default the sim's own choice. seed: episode e starts from seed + e. processes: default one a core;
    each holds one simulator and every policy. out: folder for ledger.jsonl and videos/<policy>/<task>-<seed>.mp4; a
    killed evaluation continues from it, and more episodes, tasks or policies may be added to it. None keeps nothing.
    videos: the first so many episodes a task and policy. horizon: steps until an episode has failed. steps: denoise
    steps; replan: actions executed of each chunk; None = the policy's own. against: the policy that the others are
    paired with, default the first. instructions: task -> sentence given to the policies in place of the sim's. timeout:
    seconds after which an episode counts as hung; like one whose process died it is played again, at most three times.

    execution and latency: None = the simulator waits for the policy. Else it goes on while the policy thinks, for
    ceil(latency * control rate) steps: "sync", "async" or "rtc" (realtime.EXECUTIONS) say what the robot does then.
    latency: milliseconds; several, as numbers, "0,50,100" or {policy: ms}, or the path of a Result of `lithe bench`,
    which adds each policy's own. A policy becomes one of its own at each, called teacher@50ms. With
    sim_options={"moving": ...} something moves in every episode, and rows tell how fast the policies react to it.

    Guard a script that calls this with `if __name__ == "__main__":`, as processes are spawned. What a row holds is said
    in outcome.py. Absent means not measured: no success, or too few episodes for a 95 % interval.

    Raises ValueError, in one sentence, for settings that cannot work, a policy that does not fit the sim, non-finite
    actions, a damaged ledger or one of other settings, and an episode that lost its process too often.
    """
    cls: Any = registry.get("sims", sim)
    plan = _Plan(tuple(tasks if tasks is not None else cls.default_tasks()), episodes, seed, videos)
    plan.check(cls, out, instructions or {})
    cls.check_moving((sim_options or {}).get("moving"), plan.tasks)
    realtime.check(execution, latency)
    terms: dict[str, Any] = {
        "sim": sim,
        "sim_options": sim_options or {},
        "horizon": cls.horizon if horizon is None else horizon,
        "steps": steps,
        "replan": replan,
        "runtime": runtime,
        "instructions": instructions or {},
        "versions": result.versions(),
        **_late_terms(cls, (sim_options or {}).get("moving"), execution),
    }
    _check_positive(horizon=horizon, steps=steps, replan=replan, processes=processes, timeout=timeout)
    registry.get("runtimes", runtime)
    folders = entrants.folders(policies, names)
    timed, sources = realtime.timings(latency, list(folders), cls.fps, runtime) if latency is not None else ({}, [])
    if execution is not None:  # in real time a policy takes part once for each latency
        folders = {name: folders[timing.policy] for name, timing in timed.items()}
    reference = entrants.reference(against, list(folders))
    judged = {name: entrants.entrant(name, folder, cls, terms, timed.get(name)) for name, folder in folders.items()}
    with _home(out) as home, Ledger(home / "ledger.jsonl", terms) as ledger:
        _check_owners(ledger, judged)
        played_by = {name: str(folder.absolute()) for name, folder in folders.items()}
        given = (sim_options or {}, runtime, steps, replan, instructions or {}, str(home / "videos"))
        delays = {name: timing.delay for name, timing in timed.items()}
        setup = Setup(played_by, sim, terms["horizon"], *given, execution, delays)
        _play(plan, setup, ledger, judged, processes or os.cpu_count() or 1, timeout)
        found = rows(ledger.records, plan.tasks, plan.seeds, list(folders), reference)
    in_real_time(found, timed, cls.fps)
    settings = {**asdict(plan), "seeds": [plan.seeds[0], plan.seeds[-1]], **_settings(setup, terms, cls.fps, sources)}
    return result.make("eval", sim, {**settings, "against": reference, "policies": judged}, found)


def _late_terms(sim: type[Sim], moving: str | None, execution: str | None) -> dict[str, Any]:
    """What episodes have in common beside the plain terms: where something moves, and in real time."""
    told: dict[str, Any] = {}
    if moving:
        told |= {"motion": sim.motion(moving), "reaction": reaction.MEANING}
    if execution is not None:
        told |= {"execution": execution, "realtime_rules": realtime.RULES}
    return told


def _settings(setup: Setup, terms: dict[str, Any], fps: float, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """What a Result says of how its episodes were played and judged, beside who played which."""
    told = {key: value for key, value in terms.items() if key != "versions"}  # a field of its own in every Result
    told |= {"intervals": INTERVALS, "jerk_unit": JERK_UNIT}
    if setup.execution is not None:
        told |= {"fps": fps, "latency_from": sources}
    if setup.sim_options.get("moving"):
        told["intervals"] = {**INTERVALS, "reaction": REACTION_INTERVAL}
    return told


@dataclass(frozen=True)
class _Plan:
    """Which episodes are played."""

    tasks: tuple[str, ...]
    episodes: int
    seed: int
    videos: int

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.episodes)

    def check(self, sim: type[Sim], out: str | Path | None, instructions: dict[str, str]) -> None:
        for task in self.tasks:
            sim.check_task(task)
        if len(set(self.tasks)) < len(self.tasks) or not self.tasks:
            raise ValueError(f"tasks must be named once each, got {', '.join(self.tasks) or 'none'}")
        if self.episodes < 1:
            raise ValueError(f"episodes={self.episodes} plays nothing; it must be at least 1")
        if self.seed < 0 or self.seeds[-1] >= SEEDS:
            raise ValueError(
                f"seeds {self.seed} to {self.seeds[-1]} are not all in 0 to {SEEDS - 1}, which are kept for evaluation"
            )
        for task in instructions:
            if task not in self.tasks:
                raise ValueError(f"instructions name {task!r}, which is not evaluated{suggestion(task, self.tasks)}")
        if not 0 <= self.videos <= self.episodes:
            raise ValueError(f"videos={self.videos} must be between 0 and episodes={self.episodes}")
        if self.videos and out is None:
            raise ValueError("videos need a folder to go to: give out")
        if self.videos and not importlib.util.find_spec("av"):
            raise ValueError("videos need PyAV: pip install av, or leave videos out")

    def jobs(self, names: Sequence[str]) -> Iterator[Job]:
        """Task by task (a new scene costs time), policies side by side, another one first in every episode."""
        for task in self.tasks:
            for e in range(self.episodes):
                for i in range(len(names)):
                    yield Job(names[(e + i) % len(names)], task, self.seed + e, e < self.videos)


def _check_positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value} must be positive")


@contextmanager
def _home(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="lithe-eval-") as folder:
        yield Path(folder)


def _check_owners(ledger: Ledger, entrants: dict[str, dict[str, Any]]) -> None:
    for record in ledger.records.values():
        if record["policy"] in entrants and record["fingerprint"] != entrants[record["policy"]]["fingerprint"]:
            raise ValueError(
                f"{ledger.path} holds episodes of another policy called {record['policy']!r}: give this one another "
                "name with name=folder, or choose another folder"
            )


def _play(
    plan: _Plan, setup: Setup, ledger: Ledger, entrants: dict[str, dict[str, Any]], processes: int, timeout: float
) -> None:
    """Plays what the ledger lacks. An episode that is there and lacks only its video must come out the same again."""
    from tqdm import tqdm

    everything = list(plan.jobs(list(entrants)))
    jobs = [job for job in everything if job[:3] not in ledger.records or _lacks_video(job, setup)]
    scores = {name: [r["success"] for r in ledger.records.values() if r["policy"] == name] for name in entrants}
    bar = tqdm(total=len(everything), initial=len(everything) - len(jobs), unit="ep", desc="episodes", disable=None)
    with bar, closing(crew.played(Player, setup, jobs, processes, timeout)) as played:
        for job, outcome in played:
            record = {"fingerprint": entrants[job.policy]["fingerprint"], **outcome}
            known = ledger.records.get(job[:3])
            if known is None:
                ledger.append(record)
                scores[job.policy].append(record["success"])
            elif known != record:
                raise ValueError(
                    f"{job}: played again it went differently, so the sim or the runtime is not deterministic here"
                )
            bar.update()
            bar.set_postfix({name: f"{sum(won)}/{len(won)}" for name, won in scores.items()}, refresh=False)


def _lacks_video(job: Job, setup: Setup) -> bool:
    return job.video and not setup.video(job).exists()
