"""Data: sampler purity, chunk padding, reading against LeRobot, relative actions, one sentence per broken dataset."""

from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest

from lithe.data import _cache, base
from lithe.data.base import STATISTICS, batch_indices, chunk_indices, order, statistics
from lithe.data.fake import FakeData
from lithe.data.lerobot import LeRobotData

LENGTHS = (5, 3, 7)
TASKS = ("lift the cup", "open the door", "lift the cup")


def write(root, kind):
    """A three-episode dataset by LeRobot's own writer; returns what went in, frame by frame."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng = np.random.default_rng(0)
    picture = {"dtype": kind, "shape": (32, 48, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "names": None}
    features = {f"observation.images.{camera}": picture for camera in ("top", "wrist")}
    features |= {"observation.state": {**vector, "shape": (2,)}, "action": {**vector, "shape": (3,)}}
    made = LeRobotDataset.create("lithe/x", fps=10, features=features, root=root, use_videos=kind == "video")
    frames = []
    for length, task in zip(LENGTHS, TASKS, strict=True):
        smooth = rng.integers(0, 256, (2, 1, 1, 3), dtype=np.uint8) * np.ones((1, 32, 48, 1), dtype=np.uint8)
        for t in range(length):
            noise = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
            top, wrist = noise if kind == "image" else np.roll(smooth, t, axis=-1)
            numbers = rng.normal(size=5).astype(np.float32)
            frame = {"observation.images.top": top, "observation.images.wrist": wrist}
            frame |= {"observation.state": numbers[:2], "action": numbers[2:], "task": task}
            frames.append(frame)
            made.add_frame(dict(frame))
        made.save_episode()
    made.finalize()
    return frames


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "set"
    return root, write(root, "image")


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "set", ignore=shutil.ignore_patterns(".lithe_cache"))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_column(root, key, values):
    """Rewrites one column of the only data file."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = root / "data" / "chunk-000" / "file-000.parquet"
    table = parquet.read_table(path)
    position = table.schema.get_field_index(key)
    parquet.write_table(table.set_column(position, key, pa.array(values, type=table.schema.field(key).type)), path)


def test_batches_depend_on_seed_and_step_only():
    before = [batch_indices(3, step, 4, 10) for step in range(20)]
    order.cache_clear()
    after = [batch_indices(3, step, 4, 10) for step in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(before[0], batch_indices(4, 0, 4, 10))


def test_every_epoch_visits_every_frame_once_and_differs_from_the_last():
    stream = np.concatenate([batch_indices(0, step, 4, 10) for step in range(5)])  # 20 = two epochs
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:])


def test_a_batch_may_be_larger_than_the_dataset():
    assert sorted(batch_indices(0, 0, 6, 3)) == [0, 0, 1, 1, 2, 2]


def test_the_shared_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 5)[0] = 1


def test_impossible_batches_are_refused():
    for arguments in ((0, 0, 4, 0), (0, 0, 0, 4), (0, -1, 4, 4)):
        with pytest.raises(ValueError, match="cannot draw a batch"):
            batch_indices(*arguments)


def test_chunks_hold_the_last_action():
    index_BH, padded_BH = chunk_indices(np.array([0, 3]), np.array([5, 5]), 3)
    assert index_BH.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert padded_BH.tolist() == [[False, False, False], [False, False, True]]


def test_fake_data_keeps_the_contract():
    data = FakeData(cameras=("a", "b"), episodes=3, length=6, size=16, state_dim=5, action_dim=2)
    again = FakeData(cameras=("a", "b"), episodes=3, length=6, size=16, state_dim=5, action_dim=2)
    batch = data.samples(np.array([5, 0, 17]), 4)
    assert len(data) == 18 and set(batch["images"]) == {"a", "b"}
    assert batch["images"]["a"].shape == (3, 16, 16, 3) and batch["images"]["a"].dtype == np.uint8
    assert batch["state"].shape == (3, 5) and batch["action"].shape == (3, 4, 2)
    assert batch["state"].dtype == batch["action"].dtype == np.float32
    assert batch["padded"].tolist() == [[False, True, True, True], [False] * 4, [False, True, True, True]]
    assert (batch["action"][0] == batch["action"][0, :1]).all() and len(batch["task"]) == 3
    assert np.array_equal(batch["images"]["b"], again.samples(np.array([5, 0, 17]), 4)["images"]["b"])
    assert all(set(data.stats[key]) == set(STATISTICS) for key in ("observation.state", "action"))


def test_samples_are_the_frames_that_were_written(stored, monkeypatch):
    monkeypatch.setattr(_cache, "BLOCK", 4)
    root, frames = stored
    data = LeRobotData(root=root)
    assert len(data) == sum(LENGTHS) and data.cameras == ("top", "wrist") and data.fps == 10
    assert (data.state_dim, data.action_dim) == (2, 3)
    indices = np.array([14, 0, 7, 4])
    batch = data.samples(indices, 4)
    for row, i in enumerate(indices):
        for camera in data.cameras:
            assert np.array_equal(batch["images"][camera][row], frames[i][f"observation.images.{camera}"])
        assert np.array_equal(batch["state"][row], frames[i]["observation.state"])
        assert batch["task"][row] == frames[i]["task"]
    ends = np.cumsum(LENGTHS)
    for row, i in enumerate(indices):
        stop = ends[ends > i][0]
        for h in range(4):
            assert np.array_equal(batch["action"][row, h], frames[min(i + h, stop - 1)]["action"])
            assert batch["padded"][row, h] == (i + h >= stop)


def test_the_cache_equals_lerobots_own_decoding_of_video(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    write(tmp_path / "set", "video")
    theirs = LeRobotDataset("lithe/x", root=tmp_path / "set", video_backend="pyav", return_uint8=True)
    ours = LeRobotData(root=tmp_path / "set").samples(np.arange(sum(LENGTHS)), 1)
    for i in range(sum(LENGTHS)):
        for camera in ("top", "wrist"):
            picture = theirs[i][f"observation.images.{camera}"].numpy().transpose(1, 2, 0)
            assert np.array_equal(ours["images"][camera][i], picture), (i, camera)


CAMERAS = {"images.front": (32, 48), "images.left_wrist": (32, 32), "image": (64, 32)}  # the last without the prefix


@pytest.fixture(scope="module", params=["image", "h264", "libsvtav1"])
def spread(request, tmp_path_factory):
    """LeRobot's own data set over many files, with three cameras of different sizes and single-number states."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, rng = tmp_path_factory.mktemp("spread") / "set", np.random.default_rng(1)
    kind = "image" if request.param == "image" else "video"
    features = {
        f"observation.{c}": {"dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for c, size in CAMERAS.items()
    }
    features |= {key: {"dtype": "float32", "shape": (1,), "names": None} for key in ("observation.state", "action")}
    settings = {"use_videos": kind == "video"}
    if kind == "video":
        settings["rgb_encoder"] = RGBEncoderConfig(vcodec=request.param)
    made = LeRobotDataset.create("lithe/x", fps=7, features=features, root=root, **settings)
    made.meta.info.chunks_size = 2
    made.meta.info.data_files_size_in_mb = made.meta.info.video_files_size_in_mb = 0.004
    for episode, length in enumerate((9, 4, 8, 5, 7)):
        for _ in range(length):
            frame = {f"observation.{c}": rng.integers(0, 256, (*size, 3), np.uint8) for c, size in CAMERAS.items()}
            frame |= {key: rng.normal(size=1).astype(np.float32) for key in ("observation.state", "action")}
            made.add_frame({**frame, "task": TASKS[episode % 3]})
        made.save_episode(parallel_encoding=False)
    made.finalize()
    files = list((root / ("videos/observation.image" if kind == "video" else "data")).rglob("file-*"))
    assert len(files) > 2 and len({path.parent for path in files}) > 1  # several files, several chunks
    return root


def test_many_files_and_cameras_read_as_lerobot_reads_them(spread):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / 7 for i in range(4)]}  # what LeRobot calls delta timestamps
    settings = {"video_backend": "pyav", "return_uint8": True, "delta_timestamps": chunk}
    theirs, data = LeRobotDataset("lithe/x", root=spread, **settings), LeRobotData(root=spread)
    assert data.cameras == ("front", "left_wrist", "observation.image") and data.fps == 7
    ours = data.samples(np.arange(len(data)), 4)
    for i in range(len(data)):
        row = theirs[i]
        for name, camera in zip(CAMERAS, data.cameras, strict=True):
            picture = row[f"observation.{name}"].numpy()
            picture = (picture * 255).round().astype(np.uint8) if picture.dtype == np.float32 else picture
            assert np.array_equal(ours["images"][camera][i], picture.transpose(1, 2, 0)), (i, camera)
        assert np.array_equal(ours["action"][i], row["action"].numpy().reshape(4, 1))
        assert np.array_equal(ours["padded"][i], row["action_is_pad"].numpy())
        assert np.array_equal(ours["state"][i], row["observation.state"].numpy().reshape(1))
        assert ours["task"][i] == row["task"]


def test_reading_needs_no_lerobot(spread, tmp_path, monkeypatch):
    for name in ["lerobot", *(name for name in sys.modules if name.startswith("lerobot."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import lerobot.datasets.video_utils  # noqa: F401
    assert len(LeRobotData(root=spread, cache=tmp_path)) == 33


def test_a_camera_may_be_renamed(copy):
    data = LeRobotData(root=copy, rename={"wrist": "left_wrist_0_rgb"})
    plain = LeRobotData(root=copy)
    assert data.cameras == ("top", "left_wrist_0_rgb")
    renamed, own = (d.samples(np.array([3]), 1)["images"] for d in (data, plain))
    assert np.array_equal(renamed["left_wrist_0_rgb"], own["wrist"])
    for rename, words in (({"wirst": "x"}, "did you mean 'wrist'"), ({"wrist": "top"}, "called the same")):
        with pytest.raises(ValueError, match=words):
            LeRobotData(root=copy, rename=rename)


def test_statistics_may_be_computed_from_all_frames(copy):
    (copy / "meta/stats.json").write_text("{}")
    data = LeRobotData(root=copy, statistics="computed")
    state_NS, action_NA, _ = data.vectors()
    for key, values in (("observation.state", state_NS), ("action", action_NA)):
        assert all(np.array_equal(data.stats[key][name], x) for name, x in statistics(values).items())
    with pytest.raises(ValueError, match="'stored' or 'computed'"):
        LeRobotData(root=copy, statistics="guessed")


def test_a_cache_that_does_not_fit_is_refused_before_it_fills_the_disk(copy, monkeypatch):
    monkeypatch.setattr(_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(ValueError, match="give cache="):
        LeRobotData(root=copy)
    assert not list(copy.rglob("*.npy"))


def test_files_outside_of_the_data_set_are_not_read(tmp_path):
    for template in ("../../x.mp4", "/etc/x.mp4", "{chunk}/x.mp4", "{}"):
        with pytest.raises(ValueError, match=r"info\.json"):
            _cache.inside(tmp_path, template, chunk_index=0, file_index=0)
    assert _cache.inside(tmp_path, "a/{chunk_index:03d}.mp4", chunk_index=7) == tmp_path / "a/007.mp4"


def test_chunk_1000_comes_after_chunk_999(tmp_path):
    for chunk in (1000, 999, 7):
        (tmp_path / f"data/chunk-{chunk:03d}").mkdir(parents=True)
        (tmp_path / f"data/chunk-{chunk:03d}/file-000.parquet").touch()
    assert [path.parent.name for path in _cache.data_files(tmp_path)] == ["chunk-007", "chunk-999", "chunk-1000"]


def test_what_a_killed_decoding_left_is_removed(copy):
    LeRobotData(root=copy)
    folder = next((copy / ".lithe_cache").iterdir())
    (folder / "top.npy").unlink()
    (folder / "top.4194305.part").write_bytes(b"half")  # beyond the largest process id of Linux
    (folder / f"top.{os.getppid()}.part").write_bytes(b"still being written")
    LeRobotData(root=copy)
    assert sorted(p.name for p in folder.iterdir()) == [f"top.{os.getppid()}.part", "top.npy", "wrist.npy"]


def test_the_cache_is_reused(copy, monkeypatch):
    first = LeRobotData(root=copy)
    folder = next((copy / ".lithe_cache").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ["top.npy", "wrist.npy"]
    monkeypatch.setattr(_cache, "_decode", lambda *_: pytest.fail("decoded twice"))
    pictures = [data.samples(np.arange(9), 1)["images"]["top"] for data in (first, LeRobotData(root=copy))]
    assert np.array_equal(*pictures)


def test_one_camera_may_be_chosen(copy):
    data = LeRobotData(root=copy, cameras=["wrist"], cache=copy.parent / "elsewhere")
    assert data.cameras == ("wrist",) and set(data.samples(np.array([0]), 1)["images"]) == {"wrist"}
    assert not (copy / ".lithe_cache").exists()


def test_a_changed_dataset_gets_a_new_cache(copy):
    LeRobotData(root=copy)
    edit(copy / "meta" / "stats.json", lambda stats: stats["action"].update(mean=[1.0, 1.0, 1.0]))
    LeRobotData(root=copy)
    assert len(list((copy / ".lithe_cache").iterdir())) == 2


def info(change):
    return lambda root: edit(root / "meta/info.json", change)


def stats(change):
    return lambda root: edit(root / "meta/stats.json", change)


N = sum(LENGTHS)
BROKEN = {
    "version": (info(lambda i: i.update(codebase_version="v2.1")), "reads v3"),
    "no info": (lambda root: (root / "meta/info.json").unlink(), "not a LeRobotDataset"),
    "empty": (info(lambda i: i.update(total_frames=0)), "holds no frames"),
    "action": (info(lambda i: i["features"].pop("action")), "no feature 'action'"),
    "stats": (stats(lambda s: s.pop("observation.state")), "for 'observation.state'"),
    "no stats": (lambda root: (root / "meta/stats.json").unlink(), "has no mean"),
    "unknown task": (lambda root: edit_column(root, "task_index", [9] * N), "has no task 9"),
    "damaged picture": (
        lambda root: edit_column(root, "observation.images.top", [{"bytes": b"x", "path": None}] * N),
        "frame 0 of observation.images.top cannot be decoded",
    ),
    "tasks": (lambda root: (root / "meta/tasks.parquet").write_bytes(b"PAR1"), "is missing or damaged"),
    "quantiles": (stats(lambda s: s["action"].pop("q01")), "has no q01 for 'action'"),
    "nan": (lambda root: edit_column(root, "action", [[float("nan")] * 3] * N), "'action' is not finite"),
    "order": (lambda root: edit_column(root, "index", [*range(1, N + 1)]), "not the 15 of"),
    "lost": (info(lambda i: i.update(total_frames=99)), "the 15 frames in data/ are not the 99"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_is_refused_in_one_sentence(copy, name):
    breaking, sentence = BROKEN[name]
    breaking(copy)
    with pytest.raises(ValueError, match=sentence) as caught:
        LeRobotData(root=copy)
    assert "\n" not in str(caught.value)


def test_unknown_cameras_and_ambiguous_sources_are_refused(copy):
    with pytest.raises(ValueError, match="no camera 'wirst'; did you mean 'wrist'"):
        LeRobotData(root=copy, cameras=("wirst",))
    with pytest.raises(ValueError, match="no camera to read"):
        LeRobotData(root=copy, cameras=())
    for arguments in ({}, {"root": copy, "repo": "a/b"}):
        with pytest.raises(ValueError, match="either root"):
            LeRobotData(**arguments)


def test_a_missing_folder_is_not_created(tmp_path):
    with pytest.raises(ValueError, match="not a LeRobotDataset"):
        LeRobotData(root=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_base_knows_neither_torch_nor_lerobot():
    assert not {"torch", "lerobot"} & set(vars(base))
