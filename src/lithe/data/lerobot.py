"""Any LeRobotDataset v3 as fast random access: numbers in memory, pictures decoded once (see _cache.py).

LeRobot decodes on every access, 34-300 frames a second; training reads each frame many times, so here a batch is a few
page-cache copies. Folders are read with pyarrow, Pillow and PyAV, without LeRobot. A chunk of actions is as many frames
as it has actions: data recorded at another rate than the policy acts at is not resampled (`lithe check` tells).
Shapes: see data/base.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lithe.data._cache import PREFIX, data_files, open_cache, read_table, sentences
from lithe.data.base import STATISTICS, Data, chunk_indices, stops
from lithe.data.base import statistics as measured
from lithe.registry import suggestion

VECTORS = ("observation.state", "action")
RELEASE = "v3.0"  # the tag under which LeRobot publishes data sets of this format


class LeRobotData(Data):
    """`root` is a dataset folder, `repo` a hub id (exactly one of them).

    revision: branch, tag or commit of the repository; default: the newest in this format. cameras: the data set's own
    names, default all of them. rename: {camera of the data set: name the policy knows it by}. statistics:
    "stored" (meta/stats.json) or "computed" from all frames; stored quantiles are means over episodes, and narrower.
    cache: where decoded pictures go, default beside the data.

    Raises ValueError, with the fix, for a folder that is not a v3 dataset, a missing feature, camera or statistic, an
    empty dataset, and NaN in state or action.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        repo: str | None = None,
        revision: str | None = None,
        cameras: tuple[str, ...] | list[str] | None = None,
        rename: dict[str, str] | None = None,
        statistics: str = "stored",
        cache: str | Path | None = None,
    ) -> None:
        if (root is None) == (repo is None):
            raise ValueError("give either root=<dataset folder> or repo=<hub id>, not both and not neither")
        if revision and root is not None:
            raise ValueError(f"a folder has no revisions: leave out revision={revision!r}, or give repo=<hub id>")
        if statistics not in ("stored", "computed"):
            raise ValueError(f"statistics is 'stored' or 'computed', not {statistics!r}")
        self.root = Path(root) if root is not None else download(str(repo), revision)
        info = _info(self.root)
        chosen = _cameras(info, cameras, self.root)
        names = _renamed(chosen, rename or {}, self.root)
        self.cameras = tuple(names.values())
        self.fps = float(info["fps"])
        self.action_names = names_of(info["features"]["action"])
        numbers = _numbers(self.root, info["total_frames"])
        stored = statistics == "stored"
        self.stats = _stats(self.root) if stored else {key: measured(numbers[key]) for key in VECTORS}
        self._state_NS, self._action_NA = numbers["observation.state"], numbers["action"]
        self.state_dim, self.action_dim = self._state_NS.shape[1], self._action_NA.shape[1]
        self._sentences = sentences(self.root)
        self.tasks = tuple(sorted(set(self._sentences.values())))
        self._task_N = numbers["task_index"]
        unknown = sorted(set(self._task_N.tolist()) - self._sentences.keys())
        if unknown:
            raise ValueError(
                f"{self.root}: meta/tasks.parquet has no task {unknown[0]}, which data/ uses; add its sentence"
            )
        episode_N = numbers["episode_index"]
        self._stop_N = stops(np.diff(episode_N, append=episode_N[-1] + 1) != 0)
        folder = Path(cache) if cache else self.root / ".lithe_cache"
        decoded = open_cache(self.root, info, chosen, folder)
        self._images = {names[camera]: pictures for camera, pictures in decoded.items()}

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

    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._state_NS, self._action_NA, self._stop_N


def download(repo: str, revision: str | None = None) -> Path:
    """The folder of a data set from the hub, fetched if it is not there yet. Raises ValueError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        try:
            return Path(snapshot_download(repo, repo_type="dataset", revision=revision or RELEASE))
        except RevisionNotFoundError:
            if revision:
                raise
            return Path(snapshot_download(repo, repo_type="dataset"))
    except (OSError, ValueError) as error:  # the hub's own errors are kinds of these
        at = f" at revision {revision!r}" if revision else ""
        fix = "check its name, `hf auth login` for a private one, and the network, or give root=<folder>"
        raise ValueError(
            f"the data set {repo!r}{at} could not be fetched ({str(error).splitlines()[0]}): {fix}"
        ) from error


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


def camera_names(info: dict[str, Any]) -> tuple[str, ...]:
    """Every colour camera of a data set; its name is the feature's without the usual prefix."""
    pictures = [key for key, about in info["features"].items() if about["dtype"] in ("image", "video")]
    return tuple(key.removeprefix(PREFIX) for key in pictures if not _is_depth(info["features"][key]))


def _is_depth(about: dict[str, Any]) -> bool:
    told = {**(about.get("video_info") or {}), **(about.get("info") or {})}
    return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))


def _cameras(info: dict[str, Any], wanted: tuple[str, ...] | list[str] | None, root: Path) -> tuple[str, ...]:
    known = camera_names(info)
    there = ", ".join(known) or "none"
    for camera in wanted or ():
        if camera not in known:
            raise ValueError(f"{root} has no camera {camera!r}{suggestion(camera, known)}; its cameras: {there}")
    chosen = tuple(wanted) if wanted is not None else known
    if not chosen:
        raise ValueError(f"no camera to read from {root}; its cameras: {there}")
    return chosen


def _renamed(chosen: tuple[str, ...], rename: dict[str, str], root: Path) -> dict[str, str]:
    """The name outside of every chosen camera."""
    for camera in rename:
        if camera not in chosen:
            there = ", ".join(chosen)
            raise ValueError(f"{root} has no camera {camera!r} to rename{suggestion(camera, chosen)}; it has {there}")
    names = {camera: rename.get(camera, camera) for camera in chosen}
    if len(set(names.values())) < len(names):
        raise ValueError(f"two cameras of {root} would be called the same: {', '.join(names.values())}; change rename")
    return names


def names_of(about: dict[str, Any]) -> tuple[str, ...]:
    """What a feature's dimensions are called, () where the data set does not say."""
    names = about.get("names") or []
    if isinstance(names, dict):  # {"motors": [...]}, {"axes": [...]}
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return tuple(str(name) for name in names) if [len(names)] == list(about.get("shape") or ()) else ()


def _stats(root: Path) -> dict[str, dict[str, np.ndarray]]:
    path = root / "meta" / "stats.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for key in VECTORS:
        missing = [name for name in STATISTICS if name not in stored.get(key, {})]
        if missing:
            fix = "run lerobot's augment_dataset_quantile_stats on it, or give statistics=computed"
            raise ValueError(f"{path} has no {', '.join(missing)} for {key!r}; {fix}")
    return {key: {n: np.asarray(stored[key][n], dtype=np.float32) for n in STATISTICS} for key in VECTORS}


def _numbers(root: Path, total: int) -> dict[str, np.ndarray]:
    """All columns without pictures as arrays [N, ...], in the order of the column `index`."""
    counters = ("index", "episode_index", "task_index")
    table = read_table(data_files(root), [*VECTORS, *counters])
    found = {key: vectors(table[key], f"{root}: {key!r}") for key in VECTORS}
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


def vectors(column: Any, what: str) -> np.ndarray:
    """A column of numbers, or of equally long lists of them, as float32 [N, width]. ValueError where it is neither."""
    import pyarrow.compute as compute
    import pyarrow.types as kinds

    if column.null_count:
        raise ValueError(f"{what} is missing in {column.null_count} frames; remove those episodes")
    if kinds.is_nested(column.type):
        widths = compute.unique(compute.list_value_length(column)).to_pylist()
        if len(widths) > 1:
            raise ValueError(f"{what} has {min(widths)} to {max(widths)} numbers a frame; record it with one width")
        column = compute.list_flatten(column, recursive=True)
        return column.to_numpy().astype(np.float32).reshape(-1, widths[0] if widths else 1)
    return column.to_numpy().astype(np.float32)[:, None]
