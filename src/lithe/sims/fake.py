"""A toy benchmark of numpy only, milliseconds per episode, for tests and for trying out the whole loop without MuJoCo.

A white hand moves in the unit cube. The tasks differ only in which of three coloured blocks it must touch, and the
scene of a seed is the same for all of them: without reading the sentence nobody can do better than chance. With
`moving` the wanted block leaves its corner for the free one after one to three steps; a hand that began close to it may
have touched it by then.
Shapes: see sims/base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from lithe.sims._moving import Motion, dice
from lithe.sims.base import Sim

COLOURS = {"reach-red": (220, 40, 40), "reach-green": (40, 200, 40), "reach-blue": (40, 80, 220)}
SPEED = 0.08  # way of a full action in one step
REACH = 0.08  # distance that counts as touching
WHITE = (255, 255, 255)


class FakeSim(Sim):
    """Camera `front` shows the whole cube from above, `wrist` the half around the hand; action 3 is the gripper."""

    name: ClassVar[str] = "fake"
    robot: ClassVar[str] = "fake"
    fps: ClassVar[float] = 10.0
    action_dim: ClassVar[int] = 4
    state_dim: ClassVar[int] = 4
    cameras: ClassVar[tuple[str, ...]] = ("front", "wrist")
    horizon: ClassVar[int] = 40
    motions: ClassVar[dict[str, int]] = {"jump": 1, "drift": 12}
    events: ClassVar[dict[str, tuple[int, int]]] = dict.fromkeys(COLOURS, (1, 4))

    def __init__(self, size: int = 32, moving: str | None = None) -> None:
        if size < 8:
            raise ValueError(f"image size must be at least 8 pixels, got {size}")
        self.check_moving(moving, ())
        self.size, self.moving = size, moving
        self._step = 0
        self._motion: Motion | None = None
        self._start_S: np.ndarray = np.zeros(3)  # of the block that moves
        self._hand_S: np.ndarray = np.zeros(4)
        self._blocks: dict[str, np.ndarray] = {}
        self._success = False

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(COLOURS)

    @classmethod
    def instruction(cls, task: str) -> str:
        return f"Touch the {cls.check_task(task).removeprefix('reach-')} block"

    def reset(self, task: str, seed: int) -> None:
        self.task, self._success = self.check_task(task), False
        rng = np.random.default_rng(seed)
        self._hand_S = np.array([*rng.uniform(0.4, 0.6, 3), 1.0])
        corners = rng.permutation([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8]])
        places = [np.append(corners[i] + rng.uniform(-0.1, 0.1, 2), 0.2) for i in range(len(COLOURS))]
        self._blocks = dict(zip(COLOURS, places, strict=True))
        self._step, self._motion, self._start_S = 0, None, self._blocks[task]
        if self.moving:
            dices = dice(task, seed)
            free = np.append(corners[-1] + dices.uniform(-0.1, 0.1, 2), 0.2)
            self._motion = Motion(
                int(dices.integers(*self.events[task])), self.motions[self.moving], free - self._start_S
            )
        self.event = self._motion.begin if self._motion else None

    def step(self, action_A: np.ndarray) -> bool:
        self._hand_S = np.clip(self._hand_S + SPEED * self.check_action(action_A), 0.0, 1.0)
        near = np.linalg.norm(self._hand_S[:3] - self._blocks[self.task]) < REACH
        self._success = self._success or bool(near)
        self._step += 1
        if self._motion and self._motion.under_way(self._step):
            self._blocks[self.task] = self._start_S + self._motion.done(self._step)
        return self._success

    @property
    def success(self) -> bool:
        return self._success

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        return np.zeros(self.action_dim, np.float32)  # every number of an action is a velocity, the gripper's too

    def observe(self) -> dict[str, np.ndarray | str]:
        images = {f"observation.images.{camera}": self.render(camera, self.size) for camera in self.cameras}
        return {**images, "observation.state": self._hand_S.astype(np.float32), "task": self.instruction(self.task)}

    def render(self, camera: str, size: int) -> np.ndarray:
        self.check_camera(camera)
        if not self.task:
            raise ValueError("call fake.reset(task, seed) before looking at it")
        centre, width = (np.array([0.5, 0.5]), 1.0) if camera == "front" else (self._hand_S[:2], 0.5)
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        marks = [(self._blocks[task], colour) for task, colour in COLOURS.items()] + [(self._hand_S, WHITE)]
        for place, colour in marks:
            middle = (place[:2] - centre) / width + 0.5
            low, high = (np.clip((middle + d) * size, 0, size).astype(int) for d in (-0.06 / width, 0.06 / width))
            picture[low[1] : high[1], low[0] : high[0]] = colour
        return picture

    def expert(self, task: str) -> Callable[[], np.ndarray]:
        self.check_task(task)

        def act() -> np.ndarray:
            way = (self._blocks[task] - self._hand_S[:3]) / SPEED
            return np.clip(np.append(way, -1.0), -1.0, 1.0).astype(np.float32)

        return act
