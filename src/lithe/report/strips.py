"""Film strips: a few pictures of the very episodes that an evaluation played, the same task and seed for every policy.

<out>/strips.json            what is shown: policy, task, seed, outcome, and which picture is which step; of a policy
                             that decides which layers run also the trail: what ran in every chunk (trail.py)
<out>/<policy>-<task>-0.png  the pictures
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lithe import registry
from lithe._disk import write_atomically
from lithe.report.trail import Tracker, Trail, written
from lithe.report.trail import read as read_trail

INDEX = "strips.json"
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Strip:
    """One episode in pictures: (steps done, PNG file). trail: None for a policy that always runs the same layers."""

    folder: Path
    policy: str
    task: str
    seed: int
    success: bool
    steps: int
    weights: str
    frames: tuple[tuple[int, str], ...]
    trail: Trail | None = None

    def png(self, name: str) -> bytes:
        """The bytes of a picture."""
        return (self.folder / name).read_bytes()


def strips(
    evaluation: Mapping[str, Any],
    policies: Mapping[str, str | Path],
    out: str | Path,
    tasks: Sequence[str] | None = None,
    seed: int | None = None,
    frames: int = 6,
    camera: str | None = None,
    size: int = 160,
) -> Path:
    """Plays one episode a task and policy again and writes its pictures; returns the folder.

    evaluation: the Result of `evaluate`; its settings make these its own episodes. policies: name -> folder, names as
    in the evaluation. out: where `report` looks by itself is `strips` beside the evaluation's file. tasks: default its
    first three. seed: default its first. frames: pictures an episode, first and last included. camera: default the
    sim's first. size: side of a picture in pixels. Plays in this process, takes seconds an episode.

    Raises ValueError for a policy, task or seed that was not evaluated, or weights other than those that were.
    """

    settings = evaluation["settings"]
    tasks, seed = list(tasks or settings["tasks"][:3]), settings["seed"] if seed is None else seed
    if frames < 2 or size < 8:
        raise ValueError(f"a strip needs at least 2 pictures of 8 pixels, not {frames} of {size}")
    for task in tasks:
        if task not in settings["tasks"]:
            raise ValueError(f"{task!r} was not evaluated{registry.suggestion(task, settings['tasks'])}")
    if not settings["seeds"][0] <= seed <= settings["seeds"][1]:
        raise ValueError(f"seed {seed} was not evaluated; seeds {settings['seeds'][0]} to {settings['seeds'][1]} were")
    if settings.get("execution"):
        raise ValueError("film strips show evaluations that wait for the policy: leave out --realtime for them")
    weights = {name: _weights(name, Path(folder), settings["policies"]) for name, folder in policies.items()}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for record, pictures, trail in _played(settings, policies, tasks, seed, frames, camera, size):
        stem = re.sub(r"[^\w.+-]", "_", f"{record['policy']}-{record['task']}")
        files = []
        for step in spread(list(pictures), frames):
            files.append({"step": step, "file": f"{stem}-{step}.png"})
            (out / f"{stem}-{step}.png").write_bytes(png(pictures[step]))
        told = {key: record[key] for key in ("policy", "task", "seed", "success", "steps")}
        ran = {"trail": written(trail)} if trail else {}
        shown.append({**told, "weights": weights[record["policy"]], "frames": files, **ran})
    content = json.dumps({"sim": settings["sim"], "strips": shown}, indent=1)
    write_atomically(out / INDEX, content.encode() + b"\n")  # last: a folder with an index is complete
    return out


def read(folder: Path) -> list[Strip]:
    """The strips in a folder. Raises ValueError when the index or a picture is missing or damaged."""
    try:
        entries = json.loads((folder / INDEX).read_text())["strips"]
        found = [_strip(folder, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error}): make the film strips again") from error
    for strip in found:
        for _, name in strip.frames:
            path = folder / name
            if Path(name).name != name or not path.is_file() or not path.read_bytes().startswith(PNG):
                raise ValueError(
                    f"{folder / INDEX} names {name!r}, which is no PNG file beside it: make the strips again"
                )
    return found


def _strip(folder: Path, entry: dict[str, Any]) -> Strip:
    frames = tuple((int(frame["step"]), str(frame["file"])) for frame in entry.pop("frames"))
    trail = read_trail(entry.pop("trail")) if "trail" in entry else None
    strip = Strip(folder, frames=frames, trail=trail, **entry)
    if trail and trail.chunks and trail.chunks[-1].step >= strip.steps:
        raise ValueError(f"a chunk of step {trail.chunks[-1].step} in an episode of {strip.steps} steps")
    return strip


def png(picture_YXC: np.ndarray) -> bytes:
    """A uint8 [Y, X, 3] picture as PNG. Each row is stored as the difference to the one above, which packs well."""
    rows = np.ascontiguousarray(picture_YXC).reshape(len(picture_YXC), -1)
    change = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    body = np.insert(change, 0, 2, axis=1).tobytes()  # filter 2 = "up", in front of every row
    height, width = picture_YXC.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body, 9)), (b"IEND", b""))
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _weights(name: str, folder: Path, entrants: Mapping[str, Any]) -> str:
    from lithe import api

    if name not in entrants:
        raise ValueError(f"{name!r} was not evaluated{registry.suggestion(name, list(entrants))}")
    found = api.digest(folder)
    if found != entrants[name]["weights"]:
        raise ValueError(f"{folder} holds other weights than {name!r} had when it was evaluated: evaluate it again")
    return found


def spread(steps: Sequence[int], frames: int) -> list[int]:
    """As many of the steps as `frames`, evenly spread from the first to the last, each once."""
    even = [steps[-1] * i / (frames - 1) for i in range(frames)]
    return sorted({min(steps, key=lambda step: abs(step - wanted)) for wanted in even})


class Reel:
    """Takes pictures of an episode whose length is not known: every second one is dropped when there are too many."""

    def __init__(self, render: Callable[[], np.ndarray], most: int):
        self.render, self.most, self.every = render, most, 1
        self.pictures: dict[int, np.ndarray] = {}

    def __call__(self, step: int, over: bool) -> None:
        if over or step % self.every == 0:
            self.pictures[step] = self.render()
        if len(self.pictures) > self.most and not over:
            self.every *= 2
            self.pictures = {s: picture for s, picture in self.pictures.items() if s % self.every == 0}


def _played(
    settings: Mapping[str, Any],
    policies: Mapping[str, str | Path],
    tasks: Sequence[str],
    seed: int,
    frames: int,
    camera: str | None,
    size: int,
) -> Iterator[tuple[dict[str, Any], dict[int, np.ndarray], Trail | None]]:
    """The record of each episode, its pictures by step, and what ran where the policy decides that."""
    import torch

    from lithe.evaluate.rollout import Job, Player, Setup

    keys = ("sim", "horizon", "sim_options", "runtime", "steps", "replan", "instructions")
    threads = torch.get_num_threads()
    try:
        player = Player(
            Setup({name: str(folder) for name, folder in policies.items()}, **{k: settings[k] for k in keys})
        )
        chosen = player.sim.check_camera(camera or player.sim.cameras[0])
        for task in tasks:
            for name in policies:
                reel = Reel(lambda: player.sim.render(chosen, size), 8 * frames)
                tracker = Tracker(player.policies[name])

                def watch(step: int, over: bool, reel: Reel = reel, tracker: Tracker = tracker) -> None:
                    reel(step, over)
                    tracker(step, over)

                record = player.play(Job(name, task, seed), watch)
                yield record, reel.pictures, tracker.trail
        player.sim.close()
    finally:
        torch.set_num_threads(threads)
