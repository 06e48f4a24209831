"""Any LeRobotDataset v3, with every picture decoded once into a memory-mapped cache beside it.

LeRobot decodes on every access (34-300 frames a second); training reads each frame many times, so here a batch is a few
page-cache copies. The folder is read directly with pyarrow: LeRobot itself, whose import takes seconds, is needed only for a
hub id and for video. The cache lies in `<root>/.lithe_cache/<fingerprint>/`, is built in a neighbouring folder and
renamed when complete; deleting it is always safe. Shapes: see data/base.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lithe.data.base import STATISTICS, Data, chunk_indices
from lithe.registry import suggestion

PREFIX = "observation.images."
CACHE_FORMAT = 1


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
        self.root = Path(root) if root is not None else _download(repo)
        info = _info(self.root)
        self.cameras = _cameras(info, cameras, self.root)
        self.fps = float(info["fps"])
        self.stats = _stats(self.root)
        numbers = _numbers(self.root)
        self._state_NS, self._action_NA = numbers["observation.state"], numbers["action"]
        self.state_dim, self.action_dim = self._state_NS.shape[1], self._action_NA.shape[1]
        sentences = _table(sorted((self.root / "meta").glob("tasks.parquet")), ["task_index", "task"])
        self._sentences = dict(zip(sentences["task_index"].to_pylist(), sentences["task"].to_pylist(), strict=True))
        self._task_N = numbers["task_index"]
        self._stop_N = _stops(numbers["episode_index"])
        self._images = _open_cache(self.root, info, self.cameras, Path(cache) if cache else self.root / ".lithe_cache")

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
        raise ValueError(f"{root} is a LeRobotDataset {version}, lithe reads v3; convert it with lerobot's convert_dataset_v21_to_v30")
    if not info["total_frames"]:
        raise ValueError(f"{root} holds no frames; record or collect some episodes first")
    for key in ("observation.state", "action"):
        if key not in info["features"]:
            raise ValueError(f"{root} has no feature {key!r}, only {', '.join(info['features'])}; rename the feature in the dataset")
    return info


def _cameras(info: dict[str, Any], wanted: tuple[str, ...] | list[str] | None, root: Path) -> tuple[str, ...]:
    pictures = [k for k, f in info["features"].items() if k.startswith(PREFIX) and f["dtype"] in ("image", "video")]
    known = tuple(key.removeprefix(PREFIX) for key in pictures)
    for camera in wanted or ():
        if camera not in known:
            raise ValueError(f"{root} has no camera {camera!r}{suggestion(camera, known)}; it has: {', '.join(known) or 'none'}")
    chosen = tuple(wanted) if wanted is not None else known
    if not chosen:
        raise ValueError(f"no camera to read from {root}; its cameras: {', '.join(known) or 'none'}")
    return chosen


def _stats(root: Path) -> dict[str, dict[str, np.ndarray]]:
    path = root / "meta" / "stats.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for key in ("observation.state", "action"):
        missing = [name for name in STATISTICS if name not in stored.get(key, {})]
        if missing:
            fix = "run lerobot's augment_dataset_quantile_stats on it"
            raise ValueError(f"{path} has no {', '.join(missing)} for {key!r}; {fix}")
    kept = ("observation.state", "action")
    return {key: {n: np.asarray(stored[key][n], dtype=np.float32) for n in STATISTICS} for key in kept}


def _table(paths: list[Path], columns: list[str]) -> Any:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import concat_tables
    except ImportError as error:
        raise ValueError("reading a LeRobotDataset needs pyarrow: pip install 'lithe[lerobot]'") from error
    return concat_tables([parquet.read_table(path, columns=columns) for path in paths])


def _numbers(root: Path) -> dict[str, np.ndarray]:
    """All columns without pictures as arrays [N, ...], in the order of the column `index`."""
    vectors = ("observation.state", "action")
    counters = ("index", "episode_index", "task_index")
    table = _table(_data_files(root), [*vectors, *counters])
    found = {key: np.stack(table[key].to_numpy()).astype(np.float32) for key in vectors}
    found |= {key: table[key].to_numpy() for key in counters}
    for key in vectors:
        bad = np.flatnonzero(~np.isfinite(found[key]).all(axis=1))
        if len(bad):
            raise ValueError(f"{root}: {key!r} is not finite in frame {bad[0]} ({len(bad)} such frames); remove those episodes")
    if not np.array_equal(found["index"], np.arange(len(table))):
        raise ValueError(f"{root}: the frames of data/*.parquet are incomplete or out of order; download the dataset again")
    return found


def _data_files(root: Path) -> list[Path]:
    return sorted((root / "data").glob("chunk-*/file-*.parquet"))


def _stops(episode_N: np.ndarray) -> np.ndarray:
    """For every frame, one past the last frame of its episode."""
    last_E = np.flatnonzero(np.diff(episode_N, append=episode_N[-1] + 1))
    return (last_E + 1)[np.searchsorted(last_E, np.arange(len(episode_N)))]


def _open_cache(root: Path, info: dict[str, Any], cameras: tuple[str, ...], parent: Path) -> dict[str, np.ndarray]:
    """One read-only memory map uint8 [N,Y,X,3] per camera, decoding first what is not there yet."""
    folder = parent / _fingerprint(root)
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        if not (folder / f"{camera}.npy").exists():
            part = folder / f"{camera}.{os.getpid()}.part"
            _decode(root, info, camera, part)
            os.replace(part, folder / f"{camera}.npy")
    return {camera: np.load(folder / f"{camera}.npy", mmap_mode="r") for camera in cameras}


def _fingerprint(root: Path) -> str:
    """Changes when metadata, statistics, or the size of any data or video file change."""
    digest = hashlib.sha256(f"lithe cache {CACHE_FORMAT}".encode())
    digest.update((root / "meta" / "info.json").read_bytes())
    digest.update((root / "meta" / "stats.json").read_bytes())
    for path in sorted([*_data_files(root), *(root / "videos").rglob("*.mp4")]):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _decode(root: Path, info: dict[str, Any], camera: str, target: Path) -> None:
    """Writes all frames of one camera to `target` as a .npy file."""
    from tqdm import tqdm

    feature = info["features"][PREFIX + camera]
    frames = _video_frames if feature["dtype"] == "video" else _image_frames
    total = info["total_frames"]
    maps = None
    with tqdm(total=total, desc=f"decoding {camera}", unit="frame") as bar:
        for first, pictures_NYXC in frames(root, info, PREFIX + camera):
            if maps is None:
                shape = (total, *pictures_NYXC.shape[1:])
                maps = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
            maps[first : first + len(pictures_NYXC)] = pictures_NYXC
            bar.update(len(pictures_NYXC))
        if bar.n != total:
            raise ValueError(f"{root}: camera {camera} has {bar.n} frames, meta/info.json says {total}; download it again")
    maps.flush()


def _image_frames(root: Path, info: dict[str, Any], key: str) -> Any:
    """Yields (first frame, uint8 [N,Y,X,3]) from pictures stored in Parquet, some hundred at a time."""
    import pyarrow.parquet as parquet

    first = 0
    with ThreadPoolExecutor() as pool:
        for path in _data_files(root):
            for block in parquet.ParquetFile(path).iter_batches(batch_size=512, columns=[key]):
                pictures = list(pool.map(_picture, block.column(0).field("bytes").to_pylist(), chunksize=32))
                yield first, np.stack(pictures)
                first += len(pictures)


def _picture(encoded: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _video_frames(root: Path, info: dict[str, Any], key: str) -> Any:
    """Yields (first frame, uint8 [N,Y,X,3]) episode by episode through LeRobot's own video decoder."""
    try:
        from lerobot.datasets.video_utils import decode_video_frames
    except ImportError as error:
        raise ValueError(f"decoding the videos of {root} needs LeRobot: pip install 'lithe[lerobot]'") from error
    place = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    columns = ["dataset_from_index", "length", *place]
    for row in _table(sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")), columns).to_pylist():
        chunk, file, start_s = (row[name] for name in place)
        path = root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        times = [start_s + i / info["fps"] for i in range(row["length"])]
        frames = decode_video_frames(path, times, 0.5 / info["fps"], "pyav", return_uint8=True)
        yield row["dataset_from_index"], frames.permute(0, 2, 3, 1).numpy()
