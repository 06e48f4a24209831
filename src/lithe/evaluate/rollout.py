"""One closed-loop episode: a policy acts in a simulator until success or the horizon.

The record of an episode is a pure function of (policy, task, seed, setup): the initial state comes from (task, seed),
the policy's noise stream from the same two and nothing else, so that every policy meets the same luck. Images are
rendered only when a new chunk is asked for. `start` and `actions` are digests of the first observation and of every
executed action: equal records mean bit-identical episodes. What the robot does while its policy thinks is in stream.py.
No timers: latency is measured elsewhere.
Shape legend: types.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lithe import registry
from lithe.evaluate.reaction import Twin
from lithe.evaluate.stream import Stream
from lithe.sims.base import Sim

if TYPE_CHECKING:
    from lithe.runtimes.base import Runtime

VIDEO_SIZE, VIDEO_FPS = 240, 30
Watch = Callable[[int, bool], None]  # (steps done, episode over)


class Job(NamedTuple):
    """One episode to play."""

    policy: str
    task: str
    seed: int
    video: bool = False

    def __str__(self) -> str:
        return f"{self.policy} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Setup:
    """What a worker needs to play any episode of an evaluation."""

    policies: dict[str, str]  # name -> folder that lithe, LeRobot or openpi saved
    sim: str
    horizon: int
    sim_options: dict[str, Any] = field(default_factory=dict)
    runtime: str = "eager"
    steps: int | None = None  # denoise steps; None = the policy's own
    replan: int | None = None  # actions executed of each chunk; None = the policy's own
    instructions: dict[str, str] = field(default_factory=dict)  # task -> sentence in place of the sim's
    videos: str = ""  # folder
    execution: str | None = None  # None: the simulator waits for the policy
    delays: dict[str, int] = field(default_factory=dict)  # control steps that each policy thinks

    def video(self, job: Job) -> Path:
        """Where the video of an episode goes."""
        return Path(self.videos) / job.policy / f"{job.task}-{job.seed}.mp4"


class Player:
    """One simulator and every policy, loaded once; calling it with a Job's fields plays that Job."""

    def __init__(self, setup: Setup):
        import torch

        from lithe import api

        torch.set_num_threads(1)  # one worker a core; and sums in another order would be other actions
        attach: Any = registry.get("runtimes", setup.runtime)
        sim: Any = registry.get("sims", setup.sim)
        self.setup = setup
        loaded = {path: attach(api.load(path), steps=setup.steps) for path in dict.fromkeys(setup.policies.values())}
        self.policies: dict[str, Runtime] = {name: loaded[path] for name, path in setup.policies.items()}
        for policy in self.policies.values():
            policy.replan = setup.replan or policy.replan
        self.sim: Sim = sim(**setup.sim_options)

    def __call__(self, policy: str, task: str, seed: int, video: bool = False) -> dict[str, Any]:
        """The record of one episode; beside it a video under `setup.videos` when asked for."""
        job = Job(policy, task, seed, video)
        if not video:
            return self.play(job)
        with _film(self.sim, self.setup.video(job)) as watch:
            return self.play(job, watch)

    def play(self, job: Job, watch: Watch = lambda step, over: None) -> dict[str, Any]:
        """{policy, task, seed, success, steps, jerk, inferences, start, actions} and, of a routed policy, layers; in
        real time held; where something moves event and reaction.

        watch: before the first and after each step. steps: executed until success, or the horizon. held: steps without
        an action of the policy. event: steps before something moved; reaction: steps from there. Raises ValueError for
        a chunk that is none.
        """
        sim, stream = self.sim, self._begin(job)
        start, executed, event = _digest_observation(sim.observe()), list[np.ndarray](), sim.event
        watch(0, sim.over)
        while not sim.over and len(executed) < self.setup.horizon:
            executed.append(stream.next())
            sim.step(executed[-1])
            watch(len(executed), sim.over or len(executed) == self.setup.horizon)
        actions_TA = np.array(executed, np.float32).reshape(-1, sim.action_dim)
        policy = self.policies[job.policy]
        record = {
            "policy": job.policy,
            "task": job.task,
            "seed": job.seed,
            "success": bool(sim.success),
            "steps": len(executed),
            "jerk": jerk(actions_TA),
            "inferences": stream.asked,
            "start": start,
            "actions": _digest(actions_TA.tobytes()),
            **({"layers": policy.layers()} if policy.routed else {}),
            **({"held": stream.held} if self.setup.execution else {}),
        }
        if sim.moving is not None:
            moved = event is not None and event < len(executed)
            record |= {"event": event if moved else None, "reaction": self._reaction(job, executed) if moved else None}
        return record

    def _begin(self, job: Job) -> Stream:
        """Puts the sim and the policy at the beginning of an episode."""
        sim, policy, execution = self.sim, self.policies[job.policy], self.setup.execution
        sim.reset(job.task, job.seed)
        policy.reset(noise_seed(sim.noise_key, job.seed))
        replan, delay = self.setup.replan or policy.spec.replan, self.setup.delays.get(job.policy, 0)
        goes_on = delay if execution == "rtc" else None

        def ask(left_TA: np.ndarray | None) -> np.ndarray:
            return self._chunk(policy, job, replan, left_TA, goes_on)

        return Stream(ask, sim.hold, replan, delay, stands=execution == "sync")

    def _reaction(self, job: Job, executed: list[np.ndarray]) -> int | None:
        """Plays the same episode with nothing moving, as far as it has to."""
        sim, moving, event = self.sim, self.sim.moving, self.sim.event
        assert event is not None
        sim.moving = None
        try:
            stream, twin = self._begin(job), Twin(executed, event, lambda: str(job))
            while not sim.over and twin.goes_on(action_A := stream.next()):
                sim.step(action_A)
        finally:
            sim.moving = moving
        return twin.reaction

    def _chunk(
        self, policy: Runtime, job: Job, replan: int, left_TA: np.ndarray | None, delay: int | None
    ) -> np.ndarray:
        """The actions [H, A] that answer to what is seen now, within the sim's limits. Not-a-number is an error, never
        clipped. delay: as many of the last chunk's actions are executed meanwhile; None where it does not matter."""
        observation: dict[str, Any] = self.sim.observe()
        observation["task"] = self.setup.instructions.get(job.task, observation["task"])
        if left_TA is None or delay is None:
            chunk_HA = policy.infer(observation)
        else:
            from lithe.evaluate.chunking import steered

            chunk_HA = steered(policy, observation, left_TA, delay)
        if chunk_HA.ndim != 2 or chunk_HA.shape[1] != self.sim.action_dim or len(chunk_HA) < replan:
            raise ValueError(
                f"{job}: the policy answered with shape {chunk_HA.shape}, needed are at least {replan} actions of "
                f"{self.sim.action_dim} numbers: check what it was trained on"
            )
        if not np.isfinite(chunk_HA).all():
            raise ValueError(
                f"{job}: the policy answered with non-finite actions; check its training and normalisation statistics"
            )
        return np.clip(chunk_HA, *self.sim.limits)


def noise_seed(task: str, seed: int) -> int:
    """Where the noise stream of an episode begins: the same for every policy, another for every episode."""
    return int.from_bytes(hashlib.sha256(f"{task}/{seed}".encode()).digest()[:8], "big") >> 1


def jerk(actions_TA: np.ndarray) -> float | None:
    """Mean length of the third difference of the executed actions, in normalised action units per step^3.

    All action dimensions count, a gripper too. None for fewer than four steps.
    """
    if len(actions_TA) < 4:
        return None
    return float(np.linalg.norm(np.diff(actions_TA.astype(np.float64), n=3, axis=0), axis=-1).mean())


def filmstrip(
    policy: str | Path,
    task: str,
    seed: int = 0,
    sim: str = "metaworld",
    every: int = 20,
    camera: str | None = None,
    size: int = 160,
    horizon: int | None = None,
    steps: int | None = None,
    replan: int | None = None,
    runtime: str = "eager",
    sim_options: dict[str, Any] | None = None,
    instructions: dict[str, str] | None = None,
) -> list[np.ndarray]:
    """Pictures of the very episode that `evaluate` plays for (task, seed), each uint8 [size, size, 3].

    One before the first step, one after every `every` steps, and one after the last.

    policy: a policy folder or hub id. camera: default the sim's first. The others as in `evaluate`. Plays in this
    process.
    """
    import torch

    if every < 1:
        raise ValueError(f"every={every} is no number of steps between pictures; it must be at least 1")
    cls: Any = registry.get("sims", sim)
    policies, options = {"policy": str(policy)}, sim_options or {}
    setup = Setup(policies, sim, horizon or cls.horizon, options, runtime, steps, replan, instructions or {})
    threads, frames = torch.get_num_threads(), []
    try:
        player = Player(setup)
        chosen = player.sim.check_camera(camera or player.sim.cameras[0])

        def watch(step: int, over: bool) -> None:
            if over or step % every == 0:
                frames.append(player.sim.render(chosen, size))

        player.play(Job("policy", cls.check_task(task), seed), watch)
        player.sim.close()
    finally:
        torch.set_num_threads(threads)
    return frames


@contextmanager
def _film(sim: Sim, path: Path) -> Iterator[Watch]:
    """A `watch` that films the sim's first camera in real time; the mp4 appears under its name once it is complete."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.part")
    every = max(1, round(sim.fps / VIDEO_FPS))
    try:
        with av.open(str(stage), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=Fraction(sim.fps).limit_denominator(1000) / every)
            stream.width = stream.height = VIDEO_SIZE
            stream.pix_fmt = "yuv420p"

            def watch(step: int, over: bool) -> None:
                if over or step % every == 0:
                    picture = av.VideoFrame.from_ndarray(sim.render(sim.cameras[0], VIDEO_SIZE), format="rgb24")
                    file.mux(stream.encode(picture))

            yield watch
            file.mux(stream.encode())
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def _digest_observation(observation: dict[str, Any]) -> str:
    """Of everything the sim shows but the sentence."""
    arrays = [np.ascontiguousarray(observation[key]).tobytes() for key in sorted(observation) if key != "task"]
    return _digest(b"".join(arrays))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
