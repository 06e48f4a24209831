"""Aloha's two bimanual tasks as `lerobot-eval --env.type=aloha` runs them: 14 joint positions, 400 steps of 20 ms."""

from __future__ import annotations

from typing import ClassVar

from lithe.sims._lerobot import LeRobotSim

SENTENCES = {"AlohaInsertion-v0": "insertion", "AlohaTransferCube-v0": "transfer_cube"}


class LeRobotAloha(LeRobotSim):
    """Two tasks, one camera (480 rows, 640 columns); LeRobot's sentence is gym-aloha's name of the task."""

    name: ClassVar[str] = "lerobot_aloha"
    kind: ClassVar[str] = "aloha"
    robot: ClassVar[str] = "aloha"
    fps: ClassVar[float] = 50.0
    action_dim: ClassVar[int] = 14
    state_dim: ClassVar[int] = 14
    cameras: ClassVar[tuple[str, ...]] = ("top",)
    rows: ClassVar[int] = 480
    horizon: ClassVar[int] = 400

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(SENTENCES)

    @classmethod
    def instruction(cls, task: str) -> str:
        return SENTENCES[cls.check_task(task)]
