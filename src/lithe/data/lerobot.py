"""Any LeRobotDataset v3 as fast random access: numbers in memory, pictures decoded once (see _cache.py).

LeRobot decodes on every access, 34-300 frames a second; training reads each frame many times, so here a batch is a few
page-cache copies. The folder is read directly with pyarrow: LeRobot itself, whose import takes seconds, is needed only
for a hub id and for video. Shapes: see data/base.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lithe.data._cache import PREFIX, data_files, open_cache, read_table
from lithe.data.base import STATISTICS, Data, chunk_indices
from lithe.registry import suggestion

VECTORS = ("observation.state", "action")


class LeRobotData(Data):
    """`root` is a dataset folder, `repo` a hub id (exactly one of them); `cameras` defaults to all of the dataset's.

    Raises ValueError, with the fix, for a folder that is not a v3 dataset, a missing feature, camera or statistic, an
    empty dataset, and NaN in state or action.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        repo: str | None = None,
        cameras: tuple[str, ...] | list[str] | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if (root is None) == (repo is None):
            raise ValueError("give either root=<dataset folder> or repo=<hub id>, not both and not neither")
        self.root = Path(root) if root is not None else _download(str(repo))
        info = _info(self.root)
        self.cameras = _cameras(info, cameras, self.root)
        self.fps = float(info["fps"])
        self.stats = _stats(self.root)
        numbers = _numbers(self.root, info["total_frames"])
        self._state_NS, self._action_NA = numbers["observation.state"], numbers["action"]
        self.state_dim, self.action_dim = self._state_NS.shape[1], self._action_NA.shape[1]
        sentences = read_table(sorted((self.root / "meta").glob("tasks.parquet")), ["task_index", "task"])
        self._sentences = dict(zip(sentences["task_index"].to_pylist(), sentences["task"].to_pylist(), strict=True))
        self.tasks = tuple(sorted(set(self._sentences.values())))
        self._task_N = numbers["task_index"]
        self._stop_N = _stops(numbers["episode_index"])
        folder = Path(cache) if cache else self.root / ".lithe_cache"
        self._images = open_cache(self.root, info, self.cameras, folder)

    def __len__(self) -> int:
        return len(self._state_NS)

    def samples(self, indices_B: np.ndarray, horizon: int) -> dict[str, Any]:
        indices_B = np.asarray(indices_B)
        index_BH, padded_BH = chunk_indices(indices_B, self._stop_N[indices_B], horizon)
        return {
            "images": {camera: images[indices_B] for camera, images in self._images.items()},
            "state": self._state_NS[indices_B],
            "action": self._action_NA[index_BH],
            "padded": padded_BH,
            "task": [self._sentences[t] for t in self._task_N[indices_B].tolist()],
        }


def _download(repo: str) -> Path:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise ValueError(f"fetching {repo!r} needs LeRobot: pip install 'lithe[lerobot]'") from error
    return Path(LeRobotDataset(repo, video_backend="pyav").root)


def _info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.exists():
        raise ValueError(f"{root} is not a LeRobotDataset: it has no meta/info.json; check the path")
    info = json.loads(path.read_text())
    version = info.get("codebase_version")
    if version is None or not str(version).startswith("v3"):
        fix = "convert it with lerobot's convert_dataset_v21_to_v30"
        raise ValueError(f"{root} is a LeRobotDataset {version}, lithe reads v3; {fix}")
    if not info["total_frames"]:
        raise ValueError(f"{root} holds no frames; record or collect some episodes first")
    for key in VECTORS:
        if key not in info["features"]:
            there = ", ".join(info["features"])
            raise ValueError(f"{root} has no feature {key!r}, only {there}; rename the feature in the dataset")
    return info


def _cameras(info: dict[str, Any], wanted: tuple[str, ...] | list[str] | None, root: Path) -> tuple[str, ...]:
    pictures = [k for k, f in info["features"].items() if k.startswith(PREFIX) and f["dtype"] in ("image", "video")]
    known = tuple(key.removeprefix(PREFIX) for key in pictures)
    there = ", ".join(known) or "none"
    for camera in wanted or ():
        if camera not in known:
            raise ValueError(f"{root} has no camera {camera!r}{suggestion(camera, known)}; its cameras: {there}")
    chosen = tuple(wanted) if wanted is not None else known
    if not chosen:
        raise ValueError(f"no camera to read from {root}; its cameras: {there}")
    return chosen


def _stats(root: Path) -> dict[str, dict[str, np.ndarray]]:
    path = root / "meta" / "stats.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for key in VECTORS:
        missing = [name for name in STATISTICS if name not in stored.get(key, {})]
        if missing:
            fix = "run lerobot's augment_dataset_quantile_stats on it"
            raise ValueError(f"{path} has no {', '.join(missing)} for {key!r}; {fix}")
    return {key: {n: np.asarray(stored[key][n], dtype=np.float32) for n in STATISTICS} for key in VECTORS}


def _numbers(root: Path, total: int) -> dict[str, np.ndarray]:
    """All columns without pictures as arrays [N, ...], in the order of the column `index`."""
    counters = ("index", "episode_index", "task_index")
    table = read_table(data_files(root), [*VECTORS, *counters])
    found = {key: np.stack(table[key].to_numpy()).astype(np.float32) for key in VECTORS}
    found |= {key: table[key].to_numpy() for key in counters}
    for key in VECTORS:
        bad = np.flatnonzero(~np.isfinite(found[key]).all(axis=1))
        if len(bad):
            where = f"frame {bad[0]} ({len(bad)} such frames)"
            raise ValueError(f"{root}: {key!r} is not finite in {where}; remove those episodes")
    if not np.array_equal(found["index"], np.arange(total)):
        count = f"the {len(table)} frames in data/ are not the {total} of meta/info.json in order"
        raise ValueError(f"{root}: {count}; download it again")
    return found


def _stops(episode_N: np.ndarray) -> np.ndarray:
    """For every frame, one past the last frame of its episode."""
    last_E = np.flatnonzero(np.diff(episode_N, append=episode_N[-1] + 1))
    return (last_E + 1)[np.searchsorted(last_E, np.arange(len(episode_N)))]
