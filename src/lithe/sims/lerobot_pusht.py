"""PushT as `lerobot-eval --env.type=pusht` runs it: push a T-shaped block onto its target, 300 steps of 0.1 s.

An action is a place of the pushing disc in pixels, 0 to 512. LeRobot gives no sentence.
"""

from __future__ import annotations

from typing import ClassVar

from lithe.sims._lerobot import LeRobotSim


class LeRobotPushT(LeRobotSim):
    """One task, one camera, which LeRobot calls `observation.image`."""

    name: ClassVar[str] = "lerobot_pusht"
    kind: ClassVar[str] = "pusht"
    robot: ClassVar[str] = "pusht"
    fps: ClassVar[float] = 10.0
    action_dim: ClassVar[int] = 2
    state_dim: ClassVar[int] = 2
    cameras: ClassVar[tuple[str, ...]] = ("observation.image",)
    rows: ClassVar[int] = 96  # gym-pusht's own size: LeRobot does not pass on the 384 of its configuration
    horizon: ClassVar[int] = 300

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("PushT-v0",)

    @classmethod
    def instruction(cls, task: str) -> str:
        cls.check_task(task)
        return ""
