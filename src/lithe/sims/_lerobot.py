"""LeRobot's own simulators behind lithe's seam: what `lerobot-eval` shows a policy, and what it does with the answer.

LeRobot's configuration and factory make the environment, its preprocessing makes the observation. An episode is the one
that lerobot-eval plays for the same seed with batch size 1, bit for bit, under its rules: the step limit is LeRobot's,
actions are passed on without clipping, the sentence is the one LeRobot gives (for some environments an empty one), and
noise is drawn from that sentence, because plugins/lerobot_policy_lithe is told nothing else.
It is slower than a sim of lithe's own: LeRobot draws a picture, in full size, at every step.
Sizes of pictures are LeRobot's and not to be chosen. Shapes: see sims/base.py.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, ClassVar

import numpy as np

from lithe.sims.base import Sim


class LeRobotSim(Sim):
    """One of LeRobot's environments. Needs LeRobot with the extra of that name."""

    kind: ClassVar[str]  # LeRobot's --env.type, and the name of its extra
    rows: ClassVar[int]  # of an observed picture
    limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __init__(self, size: int | None = None) -> None:
        if size is not None:
            raise ValueError(f"LeRobot decides how large the pictures of {self.name} are: leave size={size} out")
        self.size = self.rows
        self._env: Any = None
        self._opened = ""  # the task of `_env`
        self._preprocess: Any = None
        self._seen: Any = None
        self._won = self._ended = False
        self._left = 0  # steps of this episode

    @classmethod
    def settings(cls, task: str) -> dict[str, Any]:
        """What LeRobot's configuration of the environment needs to be told to make this task."""
        return {"task": task}

    def place(self, env: Any, seed: int) -> None:
        """Prepares the first environment for a reset, where a seed is not enough to name an initial state."""

    def reset(self, task: str, seed: int) -> None:
        if self.check_task(task) != self._opened:
            self.close()
            self._open(task)
        self.place(self._env.envs[0].unwrapped, seed)
        self._seen, _ = self._env.reset(seed=[seed])
        self.task, self._won, self._ended = task, False, False
        self._left = self._env.call("_max_episode_steps")[0]

    def step(self, action_A: np.ndarray) -> bool:
        """As in every sim; but once the episode is over nothing moves any more."""
        action_A = self.check_action(action_A).astype(np.float32)
        if not self.over:
            self._seen, _, terminated, truncated, told = self._env.step(action_A[None])
            if "final_obs" in told:  # what was returned belongs to the next episode
                [self._seen] = told["final_obs"]
            self._left -= 1
            self._ended = bool(terminated[0] or truncated[0] or not self._left)
            won = told.get("final_info", told).get("is_success", False)
            self._won = bool(np.ravel(won)[0])
        return self._won

    @property
    def success(self) -> bool:
        return self._won

    @property
    def over(self) -> bool:
        return self._won or self._ended

    @property
    def noise_key(self) -> str:
        return self._sentence()

    def observe(self) -> dict[str, np.ndarray | str]:
        from lerobot.envs import preprocess_observation

        seen = self._preprocess({**preprocess_observation(self._seen), "task": [self._sentence()]})
        found: dict[str, np.ndarray | str] = {}
        for camera in self.cameras:
            key = camera if camera.startswith("observation.") else f"observation.images.{camera}"
            picture = seen[key][0].permute(1, 2, 0).numpy()
            found[f"observation.images.{camera}"] = np.rint(picture * 255).astype(np.uint8, order="C")
        return {**found, "observation.state": seen["observation.state"][0].numpy(), "task": seen["task"][0]}

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        """Of robots whose actions are places: where it was sent last, at the beginning where it is."""
        return np.asarray(self.observe()["observation.state"] if last_A is None else last_A, np.float32)

    def render(self, camera: str, size: int) -> np.ndarray:
        from PIL import Image

        self.check_camera(camera)
        if not self.task:
            raise ValueError(f"call {self.name}.reset(task, seed) before looking at it")
        picture: Any = self.observe()[f"observation.images.{camera}"]
        return np.asarray(Image.fromarray(picture).resize((size, size)))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env, self._opened, self.task = None, "", ""

    def _open(self, task: str) -> None:
        """One environment at a time: of two renderers under OSMesa one would draw black pictures."""
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo would ask for a display
        with self.installed():
            from lerobot.envs import make_env, make_env_config

            with redirect_stdout(sys.stderr):  # standard output ends with the Result
                config = make_env_config(self.kind, **self.settings(task))
                [group] = make_env(config, n_envs=1).values()
        [self._env] = group.values()
        self._preprocess, _ = config.get_env_processors()
        self._opened = task

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[None]:
        """Turns the failure to import what this sim needs into a ValueError that says what to install."""
        try:
            yield
        except (ImportError, EOFError) as error:  # LIBERO's first import asks a question, and nobody is there
            asks = "answer the question of `python -c 'import libero.libero'` once"
            fix = asks if isinstance(error, EOFError) else f"pip install 'lerobot[{cls.kind}]'"
            raise ValueError(f"LeRobot's {cls.kind} is not ready to use ({error}): {fix}") from error

    def _sentence(self) -> str:
        """What LeRobot tells a policy to do, looked for where lerobot-eval looks for it."""
        for name in ("task_description", "task"):
            try:
                return str(self._env.call(name)[0])
            except (AttributeError, NotImplementedError):
                continue
        return ""
