"""What a simulator must answer: `reset`, `observe`, `step`, `success`; nothing about policies or datasets.

The rule everything else rests on: `(task, seed)` names one initial state, bit for bit, in every process and whether
the object is new or has played before. Paired comparisons of teacher and student are built on it.
Rendering happens in `observe` and `render` only, so the steps inside an action chunk stay cheap.
A sim with `motions` can be made with moving=<one of them>: something then moves by itself, by (task, seed).
Sims know numpy and their own engine, never torch. Shapes: A action, S state, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from lithe.registry import suggestion


class Sim(ABC):
    """One benchmark. The object may be reset to any of its tasks at any time; it is not shared between threads."""

    name: ClassVar[str]
    robot: ClassVar[str]  # goes into the dataset's metadata
    fps: ClassVar[float]  # control rate: one `step` is 1/fps seconds
    action_dim: ClassVar[int]
    state_dim: ClassVar[int]
    cameras: ClassVar[tuple[str, ...]]
    horizon: ClassVar[int]  # steps after which an episode without success counts as failed
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)  # actions are clipped to these
    motions: ClassVar[dict[str, int]] = {}  # how something can move by itself -> steps that this takes
    # Tasks in which something can move and that stay solvable -> steps after which it does, from the first to below
    # the second.
    events: ClassVar[dict[str, tuple[int, int]]] = {}

    size: int  # observed images are size x size
    task: str = ""  # set by `reset`
    moving: str | None = None  # one of `motions`; what `reset` finds here goes for the episode
    event: int | None = None  # set by `reset`: steps after which something moves in this episode

    @abstractmethod
    def __init__(self, size: int = 64) -> None:
        """Cheap: engines and renderers are built when first needed. `size` is the edge of observed images in pixels."""

    @classmethod
    @abstractmethod
    def tasks(cls) -> tuple[str, ...]:
        """Every task this sim knows."""

    @classmethod
    def default_tasks(cls) -> tuple[str, ...]:
        """The tasks a teacher is trained and judged on when nothing is chosen."""
        return cls.tasks()

    @classmethod
    @abstractmethod
    def instruction(cls, task: str) -> str:
        """The sentence that tells a policy what to do. Raises ValueError for an unknown task."""

    @abstractmethod
    def reset(self, task: str, seed: int) -> None:
        """Puts the world into the one initial state that belongs to `(task, seed)`."""

    @abstractmethod
    def observe(self) -> dict[str, np.ndarray | str]:
        """LeRobot keys: `observation.images.<camera>` uint8 [H,W,3], `observation.state` float32 [S], `task` str."""

    @abstractmethod
    def step(self, action_A: np.ndarray) -> bool:
        """Executes one action (units: `limits`) and returns `success`. Raises ValueError for non-finite actions."""

    @property
    @abstractmethod
    def success(self) -> bool:
        """Whether the task has been solved at any time since `reset`."""

    @property
    def over(self) -> bool:
        """Whether the episode has ended: by success, or because the benchmark itself ended it before the horizon."""
        return self.success

    @property
    def noise_key(self) -> str:
        """What an episode's noise is drawn from, together with its seed. Ledgers rest on it: never change one."""
        return self.task

    @abstractmethod
    def render(self, camera: str, size: int) -> np.ndarray:
        """One picture for humans, uint8 [size,size,3], upright."""

    def expert(self, task: str) -> Callable[[], np.ndarray]:
        """A scripted policy: call it for the clean action [A] at the present state. Not every sim has one."""
        raise ValueError(f"{self.name} has no scripted expert for {task!r}; bring demonstrations of your own")

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        """The action [A] with which the robot stands still where it is, as its fingers are. last_A: the action executed
        before, None at the beginning of an episode. ValueError where the sim does not know."""
        raise ValueError(f"{self.name} does not say how its robot stands still: give its class `hold`, or no latency")

    def close(self) -> None:
        """Frees the renderer; the object may not be used afterwards."""

    @classmethod
    def check_task(cls, task: str) -> str:
        """`task` itself, or a ValueError with a suggestion."""
        if task not in cls.tasks():
            hint = suggestion(task, cls.tasks())
            raise ValueError(f"{cls.name} has no task {task!r}{hint}; `lithe list` names all {len(cls.tasks())}")
        return task

    @classmethod
    def check_moving(cls, moving: str | None, tasks: Sequence[str]) -> None:
        """ValueError when something shall move in a way, or in a task, in which nothing can."""
        if moving is None:
            return
        if moving not in cls.motions:
            ways = f"choose from {', '.join(cls.motions)}" if cls.motions else "nothing can move by itself in it"
            raise ValueError(f"{cls.name} has no moving={moving!r}{suggestion(str(moving), list(cls.motions))}; {ways}")
        for task in tasks:
            if task not in cls.events:
                raise ValueError(f"nothing can move in {task!r}; tasks that can be moved: {', '.join(cls.events)}")

    @classmethod
    def motion(cls, moving: str) -> dict[str, Any]:
        """What decides how things move; episodes with another one of these are no episodes of one evaluation."""
        return {"steps": cls.motions[moving], "events": cls.events}

    def check_camera(self, camera: str) -> str:
        """`camera` itself, or a ValueError with a suggestion."""
        if camera not in self.cameras:
            hint = suggestion(camera, self.cameras)
            raise ValueError(f"{self.name} has no camera {camera!r}{hint}; choose from {', '.join(self.cameras)}")
        return camera

    def check_action(self, action_A: np.ndarray) -> np.ndarray:
        """The action as float64, clipped to `limits`. ValueError for a wrong shape, NaN, infinity or no reset."""
        if not self.task:
            raise ValueError(f"call {self.name}.reset(task, seed) before step")
        action_A = np.asarray(action_A, dtype=np.float64)
        if action_A.shape != (self.action_dim,):
            raise ValueError(f"{self.name} takes one action of shape ({self.action_dim},), got {action_A.shape}")
        if not np.isfinite(action_A).all():
            raise ValueError(f"non-finite action {action_A.tolist()}; check the policy and its normalisation")
        return np.clip(action_A, *self.limits)
