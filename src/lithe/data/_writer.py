"""Writes a new LeRobotDataset v3 with pictures in Parquet, an episode at a time.

Layout, schema, metadata and statistics are LeRobot's own code; only the rows are put into the Parquet files here.
LeRobot's writer takes every frame through picture files and a row-by-row copy, which costs more than playing it.
Pictures arrive compressed (PNG), because the processes that play can do that side by side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "observation.images."
FILE_MB = 100  # LeRobot's own limit for a data file
STATISTICS_FROM = 12  # pictures an episode, evenly spread


def png(picture_YXC: np.ndarray) -> bytes:
    """A picture, losslessly compressed."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture_YXC).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class Writer:
    """One dataset in the making; nobody can read it before `close`. ValueError without LeRobot."""

    def __init__(self, root: Path, cameras: Sequence[str], size: int, widths: dict[str, int], **about: Any):
        """widths: numbers per vector feature. about: repo_id, fps and robot_type for the dataset's own description."""
        try:
            from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
            from lerobot.datasets.feature_utils import get_hf_features_from_features
        except ImportError as error:
            raise ValueError("writing a dataset needs LeRobot: pip install 'lithe[lerobot]'") from error
        picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
        features: dict[str, Any] = {PREFIX + camera: picture for camera in cameras}
        features |= {key: {"dtype": "float32", "shape": (width,), "names": None} for key, width in widths.items()}
        self.meta = LeRobotDatasetMetadata.create(features=features, root=root, use_videos=False, **about)
        self.schema = get_hf_features_from_features(self.meta.features).arrow_schema
        self.root, self.file = root, 0
        self.stream: Any = None
        self.numbers: dict[str, list[np.ndarray]] = {key: [] for key in widths}

    def add(self, vectors: dict[str, np.ndarray], pictures: dict[str, list[bytes]], task: str) -> None:
        """Append one episode: float32 [T, width] by feature, T compressed pictures by feature, one instruction."""
        import pyarrow

        episode, first = self.meta.total_episodes, self.meta.total_frames
        frames = len(next(iter(vectors.values())))
        self.meta.save_episode_tasks([task])
        columns: dict[str, Any] = {
            **vectors,
            "timestamp": (np.arange(frames) / self.meta.fps).astype(np.float32),
            "frame_index": np.arange(frames),
            "episode_index": np.full(frames, episode),
            "index": np.arange(first, first + frames),
            "task_index": np.full(frames, self.meta.get_task_index(task)),
        }
        stats = self._statistics(columns, pictures)
        embedded = {key: [{"bytes": data, "path": None} for data in rows] for key, rows in pictures.items()}
        listed = {key: values.tolist() for key, values in columns.items()}
        self._append(pyarrow.Table.from_pydict({**embedded, **listed}, schema=self.schema))
        place = {"data/chunk_index": 0, "data/file_index": self.file}
        place |= {"dataset_from_index": first, "dataset_to_index": first + frames}
        self.meta.save_episode(episode, frames, [task], stats, place)
        for key, kept in self.numbers.items():
            kept.append(vectors[key])

    def close(self) -> dict[str, np.ndarray]:
        """Make the dataset readable; returns all frames of every vector feature."""
        if self.stream is not None:
            self.stream.close()
        self.meta.finalize()
        return {key: np.concatenate(kept) for key, kept in self.numbers.items()}

    def _append(self, table: Any) -> None:
        """To the current file, or to the next one when that is full."""
        import pyarrow.parquet as parquet

        path = self._path()
        if self.stream is not None and path.stat().st_size > FILE_MB * 1e6:
            self.stream.close()
            self.stream, self.file = None, self.file + 1
            path = self._path()
        if self.stream is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = parquet.ParquetWriter(path, self.schema, compression="snappy", use_dictionary=False)
        self.stream.write_table(table)

    def _path(self) -> Path:
        return self.root / self.meta.data_path.format(chunk_index=0, file_index=self.file)

    def _statistics(self, columns: dict[str, np.ndarray], pictures: dict[str, list[bytes]]) -> dict[str, Any]:
        """LeRobot's statistics of an episode, those of pictures from a few of them."""
        from lerobot.datasets.compute_stats import compute_episode_stats, get_feature_stats
        from PIL import Image

        stats = compute_episode_stats(columns, self.meta.features)
        for key, rows in pictures.items():
            chosen = np.unique(np.linspace(0, len(rows) - 1, STATISTICS_FROM).astype(int))
            sample = np.stack([np.asarray(Image.open(io.BytesIO(rows[i]))) for i in chosen]).transpose(0, 3, 1, 2)
            found = get_feature_stats(sample, axis=(0, 2, 3), keepdims=True)
            stats[key] = {k: v if k == "count" else np.squeeze(v / 255.0, axis=0) for k, v in found.items()}
        return stats
