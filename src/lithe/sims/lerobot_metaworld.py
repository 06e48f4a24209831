"""Meta-World as `lerobot-eval --env.type=metaworld` runs it: one camera of 480 pixels with shadows, 500 steps.

Not the benchmark of sims/metaworld.py: the pictures are others, and the first one of an episode still shows the object
where Meta-World's reset put it before its last move (always the same place for the same seed).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lithe.sims._lerobot import LeRobotSim
from lithe.sims.metaworld import INSTRUCTIONS, MINI_TASKS


class LeRobotMetaWorld(LeRobotSim):
    """All 50 tasks; LeRobot calls its only camera, corner2, `observation.image`."""

    name: ClassVar[str] = "lerobot_metaworld"
    kind: ClassVar[str] = "metaworld"
    robot: ClassVar[str] = "sawyer"
    fps: ClassVar[float] = 80.0
    action_dim: ClassVar[int] = 4
    state_dim: ClassVar[int] = 4
    cameras: ClassVar[tuple[str, ...]] = ("observation.image",)
    rows: ClassVar[int] = 480
    horizon: ClassVar[int] = 500

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(INSTRUCTIONS)

    @classmethod
    def default_tasks(cls) -> tuple[str, ...]:
        return MINI_TASKS

    @classmethod
    def instruction(cls, task: str) -> str:
        return INSTRUCTIONS[cls.check_task(task)]

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        return np.array([0.0, 0.0, 0.0, -1.0 if last_A is None else last_A[3]], np.float32)
