"""LIBERO's five suites as `lerobot-eval --env.type=libero` runs them; `libero_10_3` is task 3 of the suite libero_10.

LIBERO ignores seeds and plays its recorded initial states one after the other; here seed s names state s (of 50, so
that LeRobot's default seed 1000 begins with the first, as lerobot-eval does). The step limit depends on the suite.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from lithe.sims._lerobot import LeRobotSim

SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}


class LeRobotLibero(LeRobotSim):
    """Two cameras (`image`, and `image2` on the wrist); the state is place, axis-angle and both fingers of the hand."""

    name: ClassVar[str] = "lerobot_libero"
    kind: ClassVar[str] = "libero"
    robot: ClassVar[str] = "panda"
    fps: ClassVar[float] = 20.0
    action_dim: ClassVar[int] = 7
    state_dim: ClassVar[int] = 8
    cameras: ClassVar[tuple[str, ...]] = ("image", "image2")
    rows: ClassVar[int] = 360
    horizon: ClassVar[int] = 520  # of libero_10; the other suites end their episodes earlier

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(f"{suite}_{i}" for suite, count in SUITES.items() for i in range(count))

    @classmethod
    def default_tasks(cls) -> tuple[str, ...]:
        return tuple(task for task in cls.tasks() if task.startswith("libero_spatial"))

    @classmethod
    def settings(cls, task: str) -> dict[str, Any]:
        suite, _, number = task.rpartition("_")
        return {"task": suite, "task_ids": [int(number)]}

    def place(self, env: Any, seed: int) -> None:
        env.init_state_id = seed

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        return np.array(
            [*[0.0] * 6, -1.0 if last_A is None else last_A[6]], np.float32
        )  # changes of pose; open fingers

    @classmethod
    def instruction(cls, task: str) -> str:
        asked = cls.settings(cls.check_task(task))
        with cls.installed():
            from libero.libero import benchmark
        return str(benchmark.get_benchmark_dict()[asked["task"]]().get_task(asked["task_ids"][0]).language)
