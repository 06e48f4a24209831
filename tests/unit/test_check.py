"""`lithe check`: silence about sound data sets of many kinds, and the right finding for every damage planted in one."""

from __future__ import annotations

import copy
import io
import json
import shutil
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lithe import checkpoint, cli
from lithe.check import check, failed, table
from lithe.data.base import statistics
from lithe.families.pi import Pi

STATE, ACTION = "observation.state", "action"
VERBS, THINGS = ("lift", "push", "open", "close"), ("cup", "red block", "top drawer", "door")
JOINTS = ("shoulder", "elbow", "wrist", "gripper", "base", "finger", "lift")
CAMERA = "observation.images."


@dataclass
class Set:
    """A LeRobotDataset v3 in memory, sound until something in it is changed; `write` puts it on disk."""

    seed: int = 0
    fps: int = 20
    cameras: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # name -> kind, rows, columns
    lengths: tuple[int, ...] = (24, 21, 26, 22, 25, 22)
    widths: tuple[int, int] = (5, 4)
    files: int = 2  # data files, and video files per camera
    named: bool = True
    averaged: bool = True  # quantiles averaged over episodes, as LeRobot keeps them
    text_column: str | None = "task"

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.cameras = self.cameras or {"top": ("png", 24, 32), "wrist": ("jpg", 32, 32)}
        self.episodes = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.frame = np.concatenate([np.arange(length) for length in self.lengths])
        scale = 10.0 ** rng.uniform(-2, 2, 12)
        offset = rng.normal(size=12) * scale
        noise = rng.normal(size=(len(self.frame), 12)) * 0.5
        wave = np.sin(self.frame[:, None] * rng.uniform(0.3, 0.9, 12) + rng.uniform(0, 6, 12))
        numbers = ((noise + wave) * scale + offset).astype(np.float32)
        self.numbers = {STATE: numbers[:, : self.widths[0]], ACTION: numbers[:, 12 - self.widths[1] :]}
        self.tasks = [f"{VERBS[i]} the {THINGS[(i + self.seed) % 4]}" for i in range(min(4, 1 + self.seed % 5))]
        self.task = self.episodes % len(self.tasks)
        self.pictures = {name: self.views(rng, *about[1:]) for name, about in self.cameras.items()}

    def views(self, rng, rows, columns):
        """A soft picture that moves by a few pixels each frame."""
        coarse = Image.fromarray(rng.integers(0, 256, (rows // 8, columns // 8, 3), dtype=np.uint8))
        still = np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC))
        return np.stack([np.roll(still, 3 * int(t), axis=1) for t in self.frame])

    def stats(self) -> dict[str, Any]:
        found = {key: statistics(values) for key, values in self.numbers.items()}
        spans = [np.flatnonzero(self.episodes == e) for e in range(len(self.lengths))]
        for key, values in self.numbers.items() if self.averaged else ():
            for name, share in (("q01", 0.01), ("q99", 0.99)):
                own = [np.quantile(values[span], share, axis=0, method="inverted_cdf") for span in spans]
                found[key][name] = np.average(own, axis=0, weights=self.lengths)
        found["timestamp"] = statistics(self.frame[:, None] / self.fps)
        for name, views in self.pictures.items():
            found[CAMERA + name] = statistics(views[::5].reshape(-1, 3) / 255)
        shape = lambda key, x: x.reshape(3, 1, 1).tolist() if key.startswith(CAMERA) else x.tolist()  # noqa: E731
        return {key: {name: shape(key, x) for name, x in own.items()} for key, own in found.items()}

    def write(self, root: Path) -> Path:
        for folder in ("meta/episodes/chunk-000", "data"):
            (root / folder).mkdir(parents=True)
        (root / "meta/stats.json").write_text(json.dumps(self.stats()))
        index = pd.Index(self.tasks, name=self.text_column)
        pd.DataFrame({"task_index": range(len(self.tasks))}, index=index).to_parquet(root / "meta/tasks.parquet")
        (root / "meta/info.json").write_text(json.dumps(self.info()))
        rows = self.write_data(root)
        for name, (kind, _, _) in self.cameras.items():
            if kind == "video":
                self.write_videos(root, name, rows)
        parquet.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
        return root

    def info(self) -> dict[str, Any]:
        kinds = {"video": "video", "png": "image", "jpg": "image"}
        pictures = {
            CAMERA + name: {"dtype": kinds[kind], "shape": [y, x, 3], "names": ["height", "width", "channels"]}
            for name, (kind, y, x) in self.cameras.items()
        }
        vectors = {
            key: {"dtype": "float32", "shape": [w], "names": list(JOINTS[:w]) if self.named and w <= 7 else None}
            for key, w in zip((STATE, ACTION), self.widths, strict=True)
        }
        counters = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index"), "int64")}
        plain = {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in counters.items()}
        return {
            "codebase_version": "v3.0",
            "fps": self.fps,
            "features": {**pictures, **vectors, **plain, "task_index": plain["index"]},
            "total_episodes": len(self.lengths),
            "total_frames": len(self.frame),
            "total_tasks": len(self.tasks),
            "chunks_size": 1000,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }

    def file_of(self, episode: int) -> int:
        return episode * self.files // len(self.lengths)

    def write_data(self, root: Path) -> list[dict[str, Any]]:
        """The data files, chunk by chunk of one file; returns the episodes' metadata."""
        index = np.arange(len(self.frame))
        for file in range(self.files):
            rows = [i for i in index if self.file_of(self.episodes[i]) == file]
            columns = {
                CAMERA + name: pa.array([{"bytes": encode(self.pictures[name][i], kind), "path": None} for i in rows])
                for name, (kind, _, _) in self.cameras.items()
                if kind != "video"
            }
            for key, width in zip((STATE, ACTION), self.widths, strict=True):
                flat = pa.array(self.numbers[key][rows].ravel())
                columns[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
            columns["timestamp"] = pa.array((self.frame[rows] / self.fps).astype(np.float32))
            counters = {"frame_index": self.frame, "episode_index": self.episodes, "index": index}
            columns |= {key: pa.array(x[rows]) for key, x in {**counters, "task_index": self.task}.items()}
            path = root / f"data/chunk-{file:03d}/file-000.parquet"
            path.parent.mkdir()
            parquet.write_table(pa.table(columns), path)
        ends = np.cumsum(self.lengths)
        return [
            {"episode_index": e, "tasks": [self.tasks[self.task[ends[e] - 1]]], "length": length}
            | {"dataset_from_index": int(ends[e]) - length, "dataset_to_index": int(ends[e])}
            | {"data/chunk_index": self.file_of(e), "data/file_index": 0}
            for e, length in enumerate(self.lengths)
        ]

    def write_videos(self, root: Path, name: str, rows: list[dict[str, Any]]) -> None:
        for file in range(self.files):
            path, time_s = root / f"videos/{CAMERA}{name}/chunk-000/file-{file:03d}.mp4", 0.0
            frames = self.pictures[name][[self.file_of(e) == file for e in self.episodes]]
            large = min(frames.shape[1:3]) >= 32  # SVT-AV1 crashes on less
            film(path, frames, self.fps, ("libx264", "libsvtav1")[self.seed % 2 and large])
            for row in rows:
                if self.file_of(row["episode_index"]) == file:
                    place = {"chunk_index": 0, "file_index": file, "from_timestamp": time_s}
                    time_s += row["length"] / self.fps
                    row |= {f"videos/{CAMERA}{name}/{key}": x for key, x in {**place, "to_timestamp": time_s}.items()}


def encode(picture: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, {"png": "PNG", "jpg": "JPEG"}[kind])
    return stream.getvalue()


def film(path: Path, frames: np.ndarray, fps: float, codec: str = "libx264") -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        speed = {"preset": "12", "svtav1-params": "lp=1"} if codec == "libsvtav1" else {"threads": "1"}
        stream = container.add_stream(codec, rate=Fraction(fps), options={"g": "2", "crf": "30", **speed})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def policy_for(made: Set, folder: Path, stats: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A tiny policy with the set's statistics, cameras and words."""
    settings = {"width_state": 12, "width_action": 12, "text": 48, "cameras": tuple(made.cameras), **settings}
    model = Pi.fresh("pico", **settings)
    model.fit_to(stats or made.stats(), made.tasks, settings["cameras"])
    return checkpoint.save(model, folder)


def any_set(seed: int) -> Set:
    """Sound sets of all kinds."""
    rng = np.random.default_rng(seed)
    kinds = ("video", "png", "jpg")
    sizes = [(24, 32), (16, 16), (32, 20), (48, 64)]
    cameras = {
        f"{['front', 'left_wrist', 'right'][i]}_{seed}": (kinds[(seed + i) % 3], *sizes[rng.integers(4)])
        for i in range(1 + seed % 3)
    }
    lengths = tuple(int(n) for n in rng.integers(20, 40, rng.integers(1, 8)))
    return Set(
        seed=seed,
        fps=int(rng.choice([5, 10, 15, 30, 50])),
        cameras=cameras,
        lengths=lengths,
        widths=(int(rng.integers(1, 8)), int(rng.integers(1, 8))),
        files=int(rng.integers(1, min(4, len(lengths)) + 1)),
        named=bool(seed % 2),
        averaged=seed % 4 != 0,
        text_column=None if seed % 5 == 0 else "task",
    )


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_found_in_a_sound_set(seed, tmp_path):
    made = any_set(seed)
    root, policy = made.write(tmp_path / "set"), policy_for(made, tmp_path / "policy")
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    document = check(policy, root)
    assert document["rows"] == [] and not failed(document)
    assert document["settings"]["frames"] == sum(made.lengths)
    assert document["settings"]["decoded"] == {name: [sum(made.lengths)] * 2 for name in made.cameras}
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before  # nothing was written


@pytest.mark.parametrize("kind", ["image", "video"])
def test_nothing_is_found_in_what_lerobot_writes(kind, tmp_path):
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    made = Set(seed=3, lengths=(20, 23, 21))
    picture = {"dtype": kind, "names": ["height", "width", "channels"]}
    features = {CAMERA + c: {**picture, "shape": (*about[1:], 3)} for c, about in made.cameras.items()}
    features |= {key: {"dtype": "float32", "shape": x.shape[1:], "names": None} for key, x in made.numbers.items()}
    settings = {"use_videos": kind == "video", "rgb_encoder": RGBEncoderConfig(vcodec="h264")}
    theirs = LeRobotDataset.create("lithe/x", fps=made.fps, features=features, root=tmp_path / "set", **settings)
    for i in range(sum(made.lengths)):
        if i and made.frame[i] == 0:
            theirs.save_episode(parallel_encoding=False)
        views = {CAMERA + c: made.pictures[c][i] for c in made.cameras}
        theirs.add_frame({**views, **{k: x[i] for k, x in made.numbers.items()}, "task": made.tasks[made.task[i]]})
    theirs.save_episode(parallel_encoding=False)
    theirs.finalize()
    stored = json.loads((tmp_path / "set/meta/stats.json").read_text())
    assert check(policy_for(made, tmp_path / "policy", stored), tmp_path / "set")["rows"] == []


def test_lerobot_opens_the_sets_of_these_tests(tmp_path):
    """So that what is called sound here is sound by its own reader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    made = any_set(2)
    theirs = LeRobotDataset("lithe/x", root=made.write(tmp_path / "set"), video_backend="pyav")
    last = theirs[sum(made.lengths) - 1]
    assert np.array_equal(last[ACTION].numpy().reshape(-1), made.numbers[ACTION][-1])
    assert last["task"] == made.tasks[made.task[-1]]


# -- planted damage ----------------------------------------------------------------------------------------------------

FILM = {"front": ("video", 32, 48), "side": ("video", 32, 32)}
KINDS = {"pictures": {"seed": 7}, "film": {"seed": 8, "cameras": FILM}}


@pytest.fixture(scope="module", params=None)
def sound(tmp_path_factory):
    """Both kinds of sound set on disk with a policy each, written once."""
    home = tmp_path_factory.mktemp("sound")
    made = {name: Set(**settings) for name, settings in KINDS.items()}
    for name, one in made.items():
        one.write(home / name)
        policy_for(one, home / f"{name}-policy")
    return made, home


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def info(change):
    return lambda root: edit(root / "meta/info.json", change)


def stats(key, **values):
    return lambda root: edit(root / "meta/stats.json", lambda s: s[key].update(values))


def table_of(name, change):
    """Rewrites a Parquet file: `change` gets its rows as a list of dicts."""

    def apply(root):
        old = parquet.read_table(root / name)
        rows = old.to_pylist()
        rows = change(rows) or rows
        parquet.write_table(pa.Table.from_pylist(rows, schema=old.schema), root / name)

    return apply


DATA, EPISODES, TASKS = (
    "data/chunk-001/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
)
INFO = "meta/info.json"
MP4 = f"videos/{CAMERA}side/chunk-000/file-001.mp4"


def setting(row, key, value):
    """Sets one cell."""

    def change(rows):
        rows[row][key] = value(rows[row][key]) if callable(value) else value

    return change


def cut(name, share):
    def apply(root):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * share)])

    return apply


def flip(name, at=0.5):
    """Damages sixty bytes in the middle of a file."""

    def apply(root):
        content = bytearray((root / name).read_bytes())
        start = int(len(content) * at)
        content[start : start + 60] = bytes(255 - x for x in content[start : start + 60])
        (root / name).write_bytes(bytes(content))

    return apply


def delete(name):
    return lambda root: (root / name).unlink()


def refilm(frames, fps=20, size=(32, 32)):
    """Puts another film in place of the second file of camera side, which needs 69 frames."""
    return lambda root: film(root / MP4, np.random.default_rng(0).integers(0, 255, (frames, *size, 3), np.uint8), fps)


def swapped(table, key):
    """The table with a column of numbers under this name."""
    return table.drop_columns([key]).append_column(key, pa.array(range(len(table))))


def harm(picture):
    encoded = bytearray(picture["bytes"])
    encoded[len(encoded) // 2 : len(encoded) // 2 + 9] = b"123456789"
    return {**picture, "bytes": bytes(encoded)}


TOP, WRIST = CAMERA + "top", CAMERA + "wrist"
FAR = [9.0, 9.0, 9.0, 9.0]
SENSELESS, MISSING, PICTURE = "degenerate-statistics", "missing-statistics", "damaged-picture"
ERROR, WARNING = "error", "warning"
# what is planted -> what must be found: kind, severity, and part of where. Applied to the set with pictures on disk.
ON_DISK = {
    "no info": (delete("meta/info.json"), "info", ERROR, {"file": INFO}),
    "info is no JSON": (cut("meta/info.json", 0.7), "info", ERROR, {}),
    "old version": (info(lambda i: i.update(codebase_version="v2.1")), "info", ERROR, {}),
    "info is a list": (lambda root: (root / INFO).write_text("[]"), "info", ERROR, {}),
    "no rate": (info(lambda i: i.update(fps="fast")), "info", ERROR, {}),
    "a feature without a shape": (info(lambda i: i["features"][TOP].pop("shape")), "info", ERROR, {"feature": TOP}),
    "no pictures in the column": (
        lambda root: parquet.write_table(parquet.read_table(root / DATA).drop_columns([TOP]), root / DATA),
        PICTURE,
        ERROR,
        {"file": DATA, "feature": TOP},
    ),
    "numbers for pictures": (
        lambda root: parquet.write_table(swapped(parquet.read_table(root / DATA), TOP), root / DATA),
        PICTURE,
        ERROR,
        {"file": DATA, "feature": TOP},
    ),
    "an episode without a length": (
        table_of(EPISODES, setting(1, "length", None)),
        "episodes",
        ERROR,
        {"file": EPISODES},
    ),
    "a frame without an index": (table_of(DATA, setting(1, "index", None)), "column", ERROR, {"feature": "index"}),
    "a frame without an action": (table_of(DATA, setting(1, ACTION, None)), "column", ERROR, {"feature": ACTION}),
    "no action": (info(lambda i: i["features"].pop(ACTION)), "feature", ERROR, {"feature": ACTION}),
    "no statistics": (delete("meta/stats.json"), MISSING, ERROR, {"file": "meta/stats.json"}),
    "statistics are no JSON": (cut("meta/stats.json", 0.5), MISSING, ERROR, {}),
    "no quantile": (
        lambda root: edit(root / "meta/stats.json", lambda s: s[ACTION].pop("q01")),
        MISSING,
        ERROR,
        {"feature": ACTION, "statistic": ["q01"]},
    ),
    "no feature in the statistics": (
        lambda root: edit(root / "meta/stats.json", lambda s: s.pop(STATE)),
        MISSING,
        ERROR,
        {"feature": STATE},
    ),
    "no picture statistics": (
        lambda root: edit(root / "meta/stats.json", lambda s: s.pop(TOP)),
        MISSING,
        WARNING,
        {"feature": TOP},
    ),
    "statistics of another width": (stats(ACTION, mean=[0.0] * 7), SENSELESS, ERROR, {"statistic": "mean"}),
    "q01 equals q99": (
        stats(ACTION, q01=[0.0] * 4, q99=[0.0] * 4),
        SENSELESS,
        ERROR,
        {"feature": ACTION, "statistic": ["q01", "q99"], "dimension": [0, 1, 2, 3]},
    ),
    "no deviation": (stats(STATE, std=[0.0] * 5), SENSELESS, ERROR, {"statistic": ["std"]}),
    "negative deviation": (stats(STATE, std=[-1.0] * 5), SENSELESS, ERROR, {"statistic": ["std"]}),
    "minimum above maximum": (stats(ACTION, min=FAR, max=[0.0] * 4), SENSELESS, ERROR, {"feature": ACTION}),
    "quantiles swapped": (stats(ACTION, q01=FAR, q99=[0.0] * 4), SENSELESS, ERROR, {}),
    "a statistic is NaN": (stats(ACTION, q99=[float("nan")] * 4), SENSELESS, ERROR, {"statistic": ["q99"]}),
    "a statistic is infinite": (stats(ACTION, max=[float("inf")] * 4), SENSELESS, ERROR, {}),
    "a statistic is null": (stats(ACTION, mean=[None] * 4), SENSELESS, ERROR, {"statistic": ["mean"]}),
    "picture statistics in 0 to 255": (
        stats(TOP, max=[[[255.0]]] * 3),
        SENSELESS,
        WARNING,
        {"feature": TOP},
    ),
    "a data file is cut off": (cut(DATA, 0.6), "data-file", ERROR, {"file": DATA}),
    "a data file has no footer": (
        lambda root: (root / DATA).write_bytes((root / DATA).read_bytes()[:-8]),
        "data-file",
        ERROR,
        {"file": DATA},
    ),
    "a data file is empty": (cut(DATA, 0), "data-file", ERROR, {"file": DATA}),
    "a data file is missing": (delete(DATA), "data-file", ERROR, {"file": DATA, "episode": 3}),
    "a frame is lost": (table_of(DATA, lambda rows: rows[:-1]), "rows", ERROR, {"file": DATA}),
    "a frame is lost inside": (table_of(DATA, lambda rows: rows[:5] + rows[6:]), "rows", ERROR, {"file": DATA}),
    "the index jumps": (table_of(DATA, setting(3, "index", 9999)), "index", ERROR, {"file": DATA, "frame": 74}),
    "the episode number is wrong": (
        table_of(DATA, setting(3, "episode_index", 0)),
        "index",
        ERROR,
        {"feature": "episode_index"},
    ),
    "the frame number is wrong": (
        table_of(DATA, setting(3, "frame_index", 7)),
        "index",
        ERROR,
        {"feature": "frame_index"},
    ),
    "frames are out of order": (table_of(DATA, lambda rows: rows[::-1]), "index", ERROR, {"feature": "index"}),
    "another rate than recorded": (info(lambda i: i.update(fps=30)), "timestamps", ERROR, {"feature": "timestamp"}),
    "one late frame": (table_of(DATA, setting(9, "timestamp", 0.46)), "timestamps", ERROR, {"frame": 80, "episode": 3}),
    "episodes overlap": (
        table_of(EPISODES, setting(3, "dataset_from_index", lambda x: x - 2)),
        "bounds",
        ERROR,
        {"episode": 3},
    ),
    "a gap between episodes": (
        table_of(EPISODES, setting(2, "dataset_from_index", lambda x: x + 2)),
        "bounds",
        ERROR,
        {"episode": 2},
    ),
    "a length that contradicts": (table_of(EPISODES, setting(1, "length", 3)), "bounds", ERROR, {"episode": 1}),
    "an episode is not listed": (
        table_of(EPISODES, lambda rows: rows[:2] + rows[3:]),
        "episodes",
        ERROR,
        {"episode": 2},
    ),
    "the episodes cannot be read": (cut(EPISODES, 0.5), "episodes", ERROR, {"file": EPISODES}),
    "too many frames promised": (info(lambda i: i.update(total_frames=999)), "totals", ERROR, {"file": INFO}),
    "too few episodes promised": (info(lambda i: i.update(total_episodes=5)), "totals", ERROR, {}),
    "too many tasks promised": (info(lambda i: i.update(total_tasks=9)), "totals", ERROR, {}),
    "the width is another": (
        info(lambda i: i["features"][STATE].update(shape=[9])),
        "dimensions",
        ERROR,
        {"feature": STATE},
    ),
    "a column is missing": (
        lambda root: parquet.write_table(parquet.read_table(root / DATA).drop_columns([ACTION]), root / DATA),
        "column",
        ERROR,
        {"file": DATA, "feature": ACTION},
    ),
    "no tasks": (delete(TASKS), "tasks", ERROR, {"file": TASKS}),
    "an unknown task": (table_of(DATA, setting(4, "task_index", 17)), "unknown-task", ERROR, {"task": 17, "frame": 75}),
    "an empty instruction": (table_of(TASKS, setting(1, "task", " ")), "empty-instruction", ERROR, {"task": 1}),
    "NaN in an action": (
        table_of(DATA, setting(6, ACTION, [0.0, float("nan"), 0.0, 0.0])),
        "not-finite",
        ERROR,
        {"feature": ACTION, "dimension": [1], "frame": 77, "episode": 3},
    ),
    "infinity in a state": (
        table_of(DATA, setting(6, STATE, [float("inf")] * 5)),
        "not-finite",
        ERROR,
        {"feature": STATE},
    ),
    "a damaged PNG": (table_of(DATA, setting(8, TOP, harm)), PICTURE, ERROR, {"feature": TOP, "frame": 79}),
    "a cut JPEG": (
        table_of(DATA, setting(8, WRIST, lambda p: {**p, "bytes": p["bytes"][:-40]})),
        PICTURE,
        ERROR,
        {"feature": WRIST, "episode": 3},
    ),
    "a picture without bytes": (
        table_of(DATA, setting(8, TOP, {"bytes": None, "path": None})),
        PICTURE,
        ERROR,
        {"file": DATA},
    ),
    "a picture of another size": (
        table_of(DATA, setting(8, TOP, {"bytes": encode(np.zeros((9, 9, 3), np.uint8), "png"), "path": None})),
        "picture-size",
        ERROR,
        {"feature": TOP, "frame": 79},
    ),
}
ON_FILM = {
    "a video is missing": (delete(MP4), "video", ERROR, {"file": MP4, "episode": 3}),
    "a video is cut off": (cut(MP4, 0.6), "video", ERROR, {"file": MP4}),
    "a video is empty": (cut(MP4, 0), "video", ERROR, {"file": MP4}),
    "a video is damaged inside": (flip(MP4), "video", ERROR, {"file": MP4}),
    "a video is too short": (refilm(60), "video", ERROR, {"file": MP4, "episode": 5}),
    "a video is too long": (refilm(80), "video", WARNING, {"file": MP4}),
    "a video of another rate": (refilm(69, fps=10), "video-fps", ERROR, {"file": MP4}),
    "a video of another size": (refilm(69, size=(48, 48)), "picture-size", ERROR, {"file": MP4}),
    "episodes share frames": (
        table_of(EPISODES, setting(4, f"videos/{CAMERA}side/from_timestamp", 0.2)),
        "video",
        ERROR,
        {"episode": 3, "feature": CAMERA + "side"},
    ),
    "no place for videos": (info(lambda i: i.pop("video_path")), "info", ERROR, {"file": INFO}),
    "an episode beyond the end": (
        table_of(EPISODES, setting(5, f"videos/{CAMERA}side/from_timestamp", 9.0)),
        "video",
        ERROR,
        {"episode": 5},
    ),
}


def freeze(made):
    made.pictures["wrist"][:] = made.pictures["wrist"][0]


def freeze_film(made):
    made.pictures["side"][:] = made.pictures["side"][0]


def freeze_episode(made):
    made.pictures["top"][made.episodes == 4] = made.pictures["top"][0]


def kill_joint(made):
    made.numbers[ACTION][:, 2] = 0.25


def repeat_episode(made):
    for key in (STATE, ACTION):
        made.numbers[key][made.episodes == 5] = made.numbers[key][made.episodes == 3]


def drift(made):
    """Each episode somewhere else, so that averaged quantiles lie inside the data."""
    made.numbers[STATE][:, 0] = made.numbers[STATE][:, 0] + 50 * made.numbers[STATE][:, 0].std() * made.episodes


IN_MEMORY = {
    "a frozen camera": ("pictures", freeze, "frozen-camera", "error", {"feature": WRIST}),
    "a frozen film": ("film", freeze_film, "frozen-camera", "error", {"feature": CAMERA + "side"}),
    "a frozen episode": ("pictures", freeze_episode, "frozen-camera", "warning", {"feature": TOP, "episode": 4}),
    "a dead joint": ("pictures", kill_joint, "constant", "warning", {"feature": ACTION, "dimension": [2]}),
    "an episode twice": ("pictures", repeat_episode, "duplicate-episode", "warning", {"episode": 5}),
    "averaged quantiles": ("pictures", drift, "narrow-quantiles", "warning", {"feature": STATE, "dimension": [0]}),
}


def expect(document, kind, severity, where):
    told = [(row["kind"], row["what"], row["where"]) for row in document["rows"]]
    assert {row["kind"] for row in document["rows"]} == {kind}, told
    first = document["rows"][0]
    assert first["severity"] == severity and where.items() <= first["where"].items(), told
    assert first["what"] and first["remedy"] and "\n" not in first["what"] + first["remedy"]
    assert failed(document) == (severity == "error")
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("name", ON_DISK)
def test_damage_on_disk_is_found(name, sound, tmp_path):
    _, home = sound
    damage, *expected = ON_DISK[name]
    root = shutil.copytree(home / "pictures", tmp_path / "set")
    damage(root)
    expect(check(home / "pictures-policy", root), *expected)


STALE = {
    "mean": {"mean": 0.1},
    "std": {"std": 1.2},
    "min": {"min": 1.05},
    "max": {"max": 1.05},
    "q01": {"q01": 1.7},
    "q99": {"q99": 1.7},
    "all": dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), 57.3),
}


@pytest.mark.parametrize("key", [STATE, ACTION])
@pytest.mark.parametrize("name", STALE)
def test_statistics_of_other_data_are_found(name, key, sound, tmp_path):
    """One dimension, off by a tenth of its span in the mean, by a factor from the mean in the others."""
    made, home = sound
    root = shutil.copytree(home / "pictures", tmp_path / "set")
    centre, span = made["pictures"].numbers[key][:, 2].mean(), np.ptp(made["pictures"].numbers[key][:, 2])

    def change(stored):
        for statistic, factor in STALE[name].items():
            x = stored[key][statistic][2]
            moved = {"mean": x + factor * span, "std": x * factor}.get(statistic, centre + (x - centre) * factor)
            stored[key][statistic][2] = float(moved) if name != "all" else x * factor

    edit(root / "meta/stats.json", change)
    document = check(home / "pictures-policy", root)
    expect(document, "stale-statistics", ERROR, {"feature": key, "dimension": [2]})
    assert set(document["rows"][0]["where"]["statistic"]) == set(STALE[name])


@pytest.mark.parametrize("name", ON_FILM)
def test_damage_of_videos_is_found(name, sound, tmp_path):
    _, home = sound
    damage, *expected = ON_FILM[name]
    root = shutil.copytree(home / "film", tmp_path / "set")
    damage(root)
    expect(check(home / "film-policy", root), *expected)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_damage_in_what_was_recorded_is_found(name, sound, tmp_path):
    made, home = sound
    base, damage, *expected = IN_MEMORY[name]
    harmed = copy.deepcopy(made[base])
    damage(harmed)
    expect(check(None, harmed.write(tmp_path / "set")), *expected)


# -- policies that do not fit ------------------------------------------------------------------------------------------


def scaled(made, factor):
    own = {key: statistics(values) for key, values in made.numbers.items()}
    return {key: {name: x * factor for name, x in values.items()} for key, values in own.items()}


def pass_on(made):
    """Statistics under which normalisation changes nothing."""
    ends = {"q01": -1.0, "q99": 1.0}
    return {key: {name: np.full(x.shape[1], end) for name, end in ends.items()} for key, x in made.numbers.items()}


def wider(made, key):
    found = scaled(made, 1)
    return {**found, key: {name: np.append(x, x[:1]) for name, x in found[key].items()}}


BIG = {"image": 96, "patch": 24, "width": 16, "mlp": 32, "layers": 1, "heads": 2, "merge": 2}
# what is wrong with the policy -> its statistics, its settings, arguments of check, what must be found
POLICIES = {
    "another state": (lambda m: wider(m, STATE), {}, {}, "dimensions", ERROR, {"feature": STATE}),
    "another action": (lambda m: wider(m, ACTION), {}, {}, "dimensions", ERROR, {"feature": ACTION}),
    "a misspelt camera": (None, {"cameras": ("top", "wirst")}, {}, "cameras", ERROR, {"camera": "wirst"}),
    "an unknown camera": (None, {"cameras": ("top", "wrist", "nose")}, {}, "cameras", ERROR, {"camera": "nose"}),
    "a wrong rename": (None, {}, {"rename": {"wirst": "top"}}, "cameras", ERROR, {"camera": "wirst"}),
    "another rate": (None, {}, {"fps": 10.0}, "fps", ERROR, {"file": "meta/info.json"}),
    "too short a prompt": (None, {"text": 8}, {}, "prompt", ERROR, {"task": "lift the door"}),
    "other units": (
        lambda m: scaled(m, 57.3),
        {},
        {},
        "units",
        ERROR,
        {"feature": STATE, "dimension": [0, 1, 2, 3, 4]},
    ),
    "somewhat other units": (lambda m: scaled(m, 0.12), {}, {}, "units", WARNING, {"feature": STATE}),
    "no normalisation": (pass_on, {}, {}, "inert-normaliser", ERROR, {"feature": STATE}),
    "larger pictures": (None, {"vision": BIG}, {}, "picture-small", WARNING, {"camera": "top"}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_does_not_fit_is_found(name, sound, tmp_path, monkeypatch):
    made, home = sound
    given, settings, arguments, *expected = POLICIES[name]
    one = copy.deepcopy(made["pictures"])
    monkeypatch.setattr(Pi, "fit_to", fit_to_anything)
    stats = given(one) if given else None
    expect(check(policy_for(one, tmp_path / "policy", stats, **settings), home / "pictures", **arguments), *expected)


def fit_to_anything(self, stats, texts, cameras, fit=Pi.fit_to):
    """Adopts cameras that the data set does not have, too."""
    fit(self, stats, texts, self.config.cameras)


def test_the_remedy_for_a_camera_is_a_rename_that_works(sound, tmp_path):
    made, home = sound
    policy = policy_for(made["pictures"], tmp_path / "policy", cameras=("top", "right_wrist_0_rgb"))
    (row,) = check(policy, home / "pictures")["rows"]
    assert row["remedy"] == "rename it: data.rename.wrist=right_wrist_0_rgb"
    assert check(policy, home / "pictures", rename={"wrist": "right_wrist_0_rgb"})["rows"] == []


def test_words_the_policy_never_read_are_named(sound, tmp_path):
    made, home = sound
    other = copy.deepcopy(made["pictures"])
    other.tasks[1] = "polish the red_block slowly"
    document = check(home / "pictures-policy", other.write(tmp_path / "set"))
    expect(document, "vocabulary", ERROR, {"task": other.tasks[1]})
    assert "polish, slowly, in 1 of 3" in document["rows"][0]["what"]


def test_the_rate_a_policy_tells_counts(sound, tmp_path):
    made, home = sound
    model = checkpoint.load(home / "pictures-policy")
    for fps, kinds in ((20, set()), (50, {"fps"})):
        folder = checkpoint.save(model, tmp_path / str(fps), fps=fps)
        assert {row["kind"] for row in check(folder, home / "pictures")["rows"]} == kinds


def test_flat_pictures_are_mostly_padding(tmp_path):
    made = Set(cameras={"slit": ("png", 16, 48)})
    document = check(policy_for(made, tmp_path / "policy"), made.write(tmp_path / "set"))
    expect(document, "picture-aspect", WARNING, {"camera": "slit"})


def test_an_unusable_policy_does_not_hide_the_data(sound, tmp_path):
    _, home = sound
    root = shutil.copytree(home / "pictures", tmp_path / "set")
    delete("meta/stats.json")(root)
    changed = shutil.copytree(home / "pictures-policy", tmp_path / "changed")
    edit(changed / "student.json", lambda card: card["config"].update(horizon=3))
    (tmp_path / "empty").mkdir()
    for policy in (changed, tmp_path / "empty", tmp_path / "nowhere"):
        assert [row["kind"] for row in check(policy, root)["rows"]] == ["policy", "missing-statistics"]


# -- LeRobot's policies ------------------------------------------------------------------------------------------------


def foreign_policy(made: Set, folder: Path, mode: str = "QUANTILES", factor: float = 1, **config: Any) -> Path:
    """A LeRobot pi0.5 folder without weights, which a check does not read."""
    own = shutil.copytree(policy_for(made, folder.with_name("own")), folder)
    for path in own.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    seen = {CAMERA + c: {"type": "VISUAL", "shape": [3, *about[1:]]} for c, about in made.cameras.items()}
    state, action = ({"type": k, "shape": [w]} for k, w in zip(("STATE", "ACTION"), made.widths, strict=True))
    config = {"type": "pi05", "tokenizer_max_length": 48, "output_features": {ACTION: action}, **config}
    (folder / "config.json").write_text(json.dumps({"input_features": {**seen, STATE: state}, **config}))
    norms = {"norm_map": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}, "eps": 1e-8}
    norms["features"] = {**seen, STATE: state, ACTION: action}
    words = {"max_length": 48, "padding_side": "right", "truncation": True, "task_key": "task", "tokenizer_name": "x"}
    before = [
        ("rename_observations_processor", {"rename_map": {}}, None),
        ("normalizer_processor", norms, "norms.safetensors"),
        ("pi05_prepare_state_tokenizer_processor_step", {}, None),
        ("tokenizer_processor", words, None),
    ]
    steps = {"pre": before, "post": [("unnormalizer_processor", norms, "norms.safetensors")]}
    for when, listed in steps.items():
        named = [{"registry_name": n, "config": c, **({"state_file": f} if f else {})} for n, c, f in listed]
        (folder / f"policy_{when}processor.json").write_text(json.dumps({"name": when, "steps": named}))
    flat = {f"{k}.{n}": np.float32(x) for k, s in scaled(made, factor).items() for n, x in s.items()}
    save_file(flat, folder / "norms.safetensors")
    return folder


@pytest.mark.parametrize("mode", ["QUANTILES", "MEAN_STD", "MIN_MAX"])
def test_nothing_is_found_between_a_set_and_lerobots_own_policy(mode, sound, tmp_path):
    made, home = sound
    assert check(foreign_policy(made["pictures"], tmp_path / "policy", mode), home / "pictures")["rows"] == []


def test_misfits_of_lerobots_policies_are_found(sound, tmp_path):
    made, home = sound
    one, root = made["pictures"], home / "pictures"
    square = {"input_features": {CAMERA + c: {"type": "VISUAL", "shape": [3, 64, 64]} for c in one.cameras}}
    square["input_features"][STATE] = {"type": "STATE", "shape": [5]}
    expect(check(foreign_policy(one, tmp_path / "a" / "p", factor=40), root), "units", ERROR, {"feature": STATE})
    expect(check(foreign_policy(one, tmp_path / "b" / "p", "IDENTITY"), root), "inert-normaliser", ERROR, {})
    expect(
        check(foreign_policy(one, tmp_path / "c" / "p", **square), root), "picture-aspect", WARNING, {"camera": "top"}
    )
    broken = foreign_policy(one, tmp_path / "d" / "p")
    save_file({"action.q01": np.zeros(4, np.float32)}, broken / "norms.safetensors")
    expect(check(broken, root), "policy", ERROR, {})


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_only_some_pictures_are_decoded_when_there_are_many(sound, tmp_path):
    made, home = sound
    for name in KINDS:
        document = check(None, home / name, pictures=12)
        assert document["rows"] == []
        assert all(0 < done <= 15 and total == 140 for done, total in document["settings"]["decoded"].values())
    root = shutil.copytree(home / "pictures", tmp_path / "set")
    table_of(DATA, setting(8, TOP, harm))(root)
    expect(check(None, root, pictures=2), PICTURE, ERROR, {"frame": 79})  # found without decoding it


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_ends_in_a_trace(seed, sound, tmp_path):
    _, home = sound
    name, rng = list(KINDS)[seed % 2], np.random.default_rng(seed)
    root = shutil.copytree(home / name, tmp_path / "set")
    for _ in range(3):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        chosen = str(files[rng.integers(len(files))].relative_to(root))
        (flip(chosen, rng.random()) if rng.random() < 0.6 else cut(chosen, rng.random()))(root)
    document = check(home / f"{name}-policy", root)
    assert document["rows"], "three damaged files and nothing was found"


def test_settings_that_mean_nothing_are_refused(sound):
    _, home = sound
    for arguments in ({"fps": 0.0}, {"fps": -3.0}, {"pictures": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            check(None, home / "pictures", **arguments)
    with pytest.raises(ValueError, match="write camera=name"):
        cli._renames(["wrist"])


def test_a_set_that_is_not_there_is_refused(tmp_path, monkeypatch):
    import httpx
    from huggingface_hub.errors import RevisionNotFoundError

    for arguments in ({"dataset": tmp_path / "nowhere"}, {"dataset": tmp_path, "revision": "main"}):
        with pytest.raises(ValueError, match=r"no data set folder|has no revisions"):
            check(None, **arguments)
    with pytest.raises(ValueError, match="could not be fetched"):
        check(None, "nobody/nothing")  # tests are offline
    asked = []

    def fetch(repo, repo_type, revision=None):
        asked.append((repo, repo_type, revision))
        if revision == "v3.0":
            raise RevisionNotFoundError(
                "no tag", response=httpx.Response(404, request=httpx.Request("GET", "http://hub"))
            )
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert check(None, "you/demos")["rows"][0]["kind"] == "info"
    assert asked == [("you/demos", "dataset", "v3.0"), ("you/demos", "dataset", None)]


def test_the_command_prints_findings_and_the_result_and_tells_by_its_exit_code(sound, tmp_path, monkeypatch, capsys):
    _, home = sound
    bad = shutil.copytree(home / "pictures", tmp_path / "set")
    stats(ACTION, q01=[0.0] * 4, q99=[0.0] * 4)(bad)
    dead = shutil.copytree(home / "pictures", tmp_path / "odd")
    edit(dead / "meta/stats.json", lambda s: s.pop(TOP))
    for root, code, words in (
        (bad, 2, "1 errors"),
        (dead, 0, "0 errors, 1 warnings"),
        (home / "pictures", 0, "Nothing"),
    ):
        monkeypatch.setattr(sys, "argv", ["lithe", "check", str(home / "pictures-policy"), str(root)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        page, line = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
        assert (ended.value.code or 0) == code and words in page
        document = json.loads(line)
        assert document["kind"] == "check" and ("remedy" in page) == bool(document["rows"])
    monkeypatch.setattr(sys, "argv", ["lithe", "check", "-", str(bad), "--out", str(tmp_path / "check.json")])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads((tmp_path / "check.json").read_text())["rows"]


def test_the_table_shows_names_as_they_are():
    row = {"severity": ERROR, "kind": "tasks", "what": "[bold]x[/]", "where": {"file": "[a]"}, "remedy": "y"}
    shown = {"frames": 1, "episodes": 1, "tasks": 1, "decoded": {}}
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table({"rows": [row], "settings": shown}))
    assert "[bold]x[/]" in (text := console.export_text()) and "file: [a]" in text
