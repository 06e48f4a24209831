"""Meta-World (50 tabletop tasks, one Sawyer arm), set up and seeded exactly as LeRobot's own environment does it.

Same as LeRobot: camera corner2 moved to [.75, .075, .7] and turned upright, the state is the first 4 numbers of the raw
observation (hand xyz, gripper opening; no object positions), the task sentences, 80 Hz.
Different: a second camera on the wrist (gripperPOV), 64-pixel images, and shadows, reflections and multisampling off,
which makes a frame ten times cheaper on a CPU: a policy for these pictures is not promised to work on LeRobot's
480-pixel shadowed ones. The first observation shows the object where it is (see `_settle`). `horizon` is 200 steps, not
500: the scripted experts need 14-110. Goal markers are visible, as in LeRobot; at 64 pixels most are one pixel.
With `moving` the furniture of a default task, target included, goes to another of its starting places while the arm is
on its way to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from lithe.sims._moving import FAR, Motion, dice, elsewhere
from lithe.sims._mujoco import Renderer
from lithe.sims.base import Sim

CORNER2_POSITION = (0.75, 0.075, 0.7)
# The wrist camera looks down past the fingers and never sees these bodies, but drawing them is most of its cost.
BEHIND_WRIST = ("pedestal", "right_arm_base_link", "head", "right_hand", *(f"right_l{i}" for i in range(7)))

MINI_TASKS = (
    "drawer-open-v3",
    "drawer-close-v3",
    "window-open-v3",
    "window-close-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "handle-press-v3",
    "coffee-button-v3",
)

# What moves, by task: a body that is fixed to the world, on which everything else stands, and the marker of its goal.
FURNITURE = {
    "drawer-open-v3": ("drawer", "goal"),
    "drawer-close-v3": ("drawer", "goal"),
    "window-open-v3": ("window", "goal"),
    "window-close-v3": ("window", "goal"),
    "faucet-open-v3": ("faucetBase", "goal_open"),
    "faucet-close-v3": ("faucetBase", "goal_close"),
    "handle-press-v3": ("box", ""),  # these two carry their goal
    "coffee-button-v3": ("coffee_machine", ""),
}
# Steps after which it moves: the arm is on its way, and the fastest expert is there after 27. The handle is reached
# after 14 and close enough after 6 that a box drifting against an arm which has stopped can press it.
EVENTS = {**dict.fromkeys(FURNITURE, (6, 16)), "handle-press-v3": (2, 6)}

INSTRUCTIONS = {
    "assembly-v3": "Pick up a nut and place it onto a peg",
    "basketball-v3": "Dunk the basketball into the basket",
    "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
    "box-close-v3": "Grasp the cover and close the box with it",
    "button-press-topdown-v3": "Press a button from the top",
    "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
    "button-press-v3": "Press a button",
    "button-press-wall-v3": "Bypass a wall and press a button",
    "coffee-button-v3": "Push a button on the coffee machine",
    "coffee-pull-v3": "Pull a mug from a coffee machine",
    "coffee-push-v3": "Push a mug under a coffee machine",
    "dial-turn-v3": "Rotate a dial 180 degrees",
    "disassemble-v3": "Pick a nut out of a peg",
    "door-close-v3": "Close a door with a revolving joint",
    "door-lock-v3": "Lock the door by rotating the lock clockwise",
    "door-open-v3": "Open a door with a revolving joint",
    "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
    "drawer-close-v3": "Push and close a drawer",
    "drawer-open-v3": "Open a drawer",
    "faucet-close-v3": "Rotate the faucet clockwise",
    "faucet-open-v3": "Rotate the faucet counter-clockwise",
    "hammer-v3": "Hammer a screw on the wall",
    "hand-insert-v3": "Insert the gripper into a hole",
    "handle-press-side-v3": "Press a handle down sideways",
    "handle-press-v3": "Press a handle down",
    "handle-pull-side-v3": "Pull a handle up sideways",
    "handle-pull-v3": "Pull a handle up",
    "lever-pull-v3": "Pull a lever down 90 degrees",
    "peg-insert-side-v3": "Insert a peg sideways",
    "peg-unplug-side-v3": "Unplug a peg sideways",
    "pick-out-of-hole-v3": "Pick up a puck from a hole",
    "pick-place-v3": "Pick and place a puck to a goal",
    "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
    "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
    "plate-slide-back-v3": "Get a plate from the cabinet",
    "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
    "plate-slide-v3": "Slide a plate into a cabinet",
    "push-back-v3": "Push the puck to a goal",
    "push-v3": "Push the puck to a goal",
    "push-wall-v3": "Bypass a wall and push a puck to a goal",
    "reach-v3": "Reach a goal position",
    "reach-wall-v3": "Bypass a wall and reach a goal",
    "shelf-place-v3": "Pick and place a puck onto a shelf",
    "soccer-v3": "Kick a soccer into the goal",
    "stick-pull-v3": "Grasp a stick and pull a box with the stick",
    "stick-push-v3": "Grasp a stick and push a box using the stick",
    "sweep-into-v3": "Sweep a puck into a hole",
    "sweep-v3": "Sweep a puck off the table",
    "window-close-v3": "Push and close a window",
    "window-open-v3": "Push and open a window",
}


class MetaWorld(Sim):
    """All 50 Meta-World tasks. Needs the extra `lithe[metaworld]`."""

    name: ClassVar[str] = "metaworld"
    robot: ClassVar[str] = "sawyer"
    fps: ClassVar[float] = 80.0
    action_dim: ClassVar[int] = 4
    state_dim: ClassVar[int] = 4
    cameras: ClassVar[tuple[str, ...]] = ("corner2", "gripperPOV")
    horizon: ClassVar[int] = 200
    motions: ClassVar[dict[str, int]] = {"jump": 1, "drift": 40}
    events: ClassVar[dict[str, tuple[int, int]]] = EVENTS

    def __init__(self, size: int = 64, moving: str | None = None) -> None:
        if not 16 <= size <= 480:
            raise ValueError(f"image size must be between 16 and 480 pixels, got {size}")
        self.check_moving(moving, ())
        self.size, self.moving = size, moving
        self._step = 0
        self._motion: Motion | None = None
        self._envs: dict[str, Any] = {}
        self._renderer: Renderer | None = None
        self._raw: np.ndarray = np.zeros(0)
        self._success = False

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(INSTRUCTIONS)

    @classmethod
    def default_tasks(cls) -> tuple[str, ...]:
        return MINI_TASKS

    @classmethod
    def motion(cls, moving: str) -> dict[str, Any]:
        return {**super().motion(moving), "furniture": FURNITURE, "far": FAR}

    @classmethod
    def instruction(cls, task: str) -> str:
        return INSTRUCTIONS[cls.check_task(task)]

    def reset(self, task: str, seed: int) -> None:
        self.check_moving(self.moving, (task,) if task in INSTRUCTIONS else ())
        env = self._env(task)
        if task != self.task:
            self._free_renderer()
        self.task, self._success = task, False
        env.seed(seed)
        env.reset(seed=seed)
        self._raw = _settle(env)
        self._step, self._motion = 0, self._drawn(env, seed) if self.moving else None
        self.event = self._motion.begin if self._motion else None

    def step(self, action_A: np.ndarray) -> bool:
        action_A = self.check_action(action_A)
        self._raw, _, _, _, info = self._envs[self.task].step(action_A)
        self._success = self._success or bool(info["success"])
        self._step += 1
        if self._motion and self._motion.under_way(self._step):
            _shift(self._envs[self.task], self.task, self._motion.done(self._step) - self._motion.done(self._step - 1))
            self._raw = _settle(self._envs[self.task])
        return self._success

    @property
    def success(self) -> bool:
        return self._success

    def hold(self, last_A: np.ndarray | None) -> np.ndarray:
        # an action moves the hand's target by a little, and closes the fingers with a force
        return np.array([0.0, 0.0, 0.0, -1.0 if last_A is None else last_A[3]], np.float32)

    def observe(self) -> dict[str, np.ndarray | str]:
        images = {f"observation.images.{camera}": self.render(camera, self.size) for camera in self.cameras}
        return {**images, "observation.state": self._raw[:4].astype(np.float32), "task": INSTRUCTIONS[self.task]}

    def render(self, camera: str, size: int) -> np.ndarray:
        self.check_camera(camera)
        if not self.task:
            raise ValueError("call metaworld.reset(task, seed) before looking at it")
        env = self._envs[self.task]
        if self._renderer is None:
            self._renderer = Renderer(env.model, hidden={"gripperPOV": BEHIND_WRIST})
        picture = self._renderer(env.data, camera, size)
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera == "corner2" else picture

    def expert(self, task: str) -> Callable[[], np.ndarray]:
        from metaworld.policies import ENV_POLICY_MAP

        policy = ENV_POLICY_MAP[self.check_task(task)]()

        def act() -> np.ndarray:
            with warnings.catch_warnings():  # it warns about actions beyond -1..1, which is what the clip is for
                warnings.simplefilter("ignore", UserWarning)
                return np.clip(policy.get_action(self._raw), -1.0, 1.0).astype(np.float32)

        return act

    def close(self) -> None:
        self._free_renderer()
        self._envs.clear()
        self.task = ""

    def _env(self, task: str) -> Any:
        """The engine for one task, built once. Its first reset is forgotten, as in LeRobot."""
        if self.check_task(task) not in self._envs:
            benchmark = _import_metaworld().MT1(task, seed=42)
            env = benchmark.train_classes[task]()
            env.set_task(benchmark.train_tasks[0])
            env.model.cam_pos[env.model.camera("corner2").id] = CORNER2_POSITION
            env.reset()
            env._freeze_rand_vec = False  # without these two, `seed` is ignored
            env.seeded_rand_vec = True
            self._envs[task] = env
        return self._envs[task]

    def _drawn(self, env: Any, seed: int) -> Motion:
        """The motion of this episode: to a place where this task could have begun as well."""
        assert self.moving is not None
        rng, space = dice(self.task, seed), env._random_reset_space
        place = env.model.body(FURNITURE[self.task][0]).pos.copy()
        way = elsewhere(place, space.low, space.high, rng) - place
        return Motion(int(rng.integers(*self.events[self.task])), self.motions[self.moving], way)

    def _free_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.free()
            self._renderer = None


def _shift(env: Any, task: str, way: np.ndarray) -> None:
    """Moves the furniture, the place where its handle must get to, and the mug that stands before the machine."""
    body, marker = FURNITURE[task]
    env.model.body(body).pos += way
    env._target_pos = env._target_pos + way
    if marker:
        env.model.site(marker).pos += way
    if body == "coffee_machine":
        place = env.model.jnt_qposadr[env.model.body("obj").jntadr[0]]
        env.data.qpos[place : place + 3] += way


def _settle(env: Any) -> np.ndarray:
    """Recomputes body positions and returns the fresh raw observation.

    Meta-World moves the object after its last physics step, so the first picture and observation of an episode would
    still show the object of the reset before (LeRobot's environment has this).
    """
    import mujoco

    mujoco.mj_forward(env.model, env.data)
    env._prev_obs = env._get_curr_obs_combined_no_goal()
    return env._get_obs()


def _import_metaworld() -> Any:
    try:
        import metaworld
    except ImportError as error:
        raise ValueError("the Meta-World sim is not installed: pip install 'lithe[metaworld]'") from error
    return metaworld
