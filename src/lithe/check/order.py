"""`lithe check`, second part: do the parts of a data set agree about episodes, frames, times, tasks and totals?

Compares what info.json, the episodes' metadata and the data files say about the same thing. Of a chain of consequences
only the cause is reported: where episodes overlap, every later index is wrong too. Shapes: N frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lithe.check.damage import AGAIN, Contents, data_path
from lithe.check.findings import Findings, listed

TIME_S = 1e-4  # what LeRobot tolerates between a timestamp and its frame


def check(contents: Contents, found: Findings) -> None:
    """Every disagreement as a finding; sets `whole` to False where frames are not where they belong."""
    if contents.episodes:
        _check_bounds(contents, found)
    if contents.whole and contents.columns:
        _check_rows(contents, found)
        _check_totals(contents, found)


def _check_bounds(contents: Contents, found: Findings) -> None:
    """Episodes are numbered without a gap, and each begins where the one before it ends."""
    file, rows = "meta/episodes", contents.episodes
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(len(rows))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        what = f"episode {wrong} is {'listed twice' if numbers[wrong] < wrong else 'missing'} in the metadata"
        found.error("episodes", what, AGAIN, file=file, episode=wrong)
        contents.whole = False
        return
    end = 0
    for row in rows:
        begin, stop, length = (row[key] for key in ("dataset_from_index", "dataset_to_index", "length"))
        gap = begin - end
        if gap or stop - begin != length or length < 1:
            relation = "overlaps the one before it" if gap < 0 else "leaves a gap behind the one before it"
            inner = f"has {length} frames and the bounds {begin} to {stop}"
            what = f"episode {row['episode_index']} {relation if gap else inner}"
            fix = "restore meta/episodes, or rebuild it with lerobot-edit-dataset"
            found.error("bounds", what, fix, file=file, episode=row["episode_index"])
            contents.whole = False
            return
        end = stop


def _check_rows(contents: Contents, found: Findings) -> None:
    """The data files hold the frames that the metadata promises, in order, at the recorded rate."""
    columns, rows = contents.columns, contents.episodes
    promised: dict[Path, int] = {}
    for row in rows:
        path = data_path(contents, row)
        promised[path] = promised.get(path, 0) + row["length"]
    for path, there in contents.files:
        if there != promised[path]:
            file = path.relative_to(contents.root)
            what = f"{file} holds {there} frames, the episodes in it have {promised[path]}"
            found.error("rows", what, AGAIN, file=file)
            contents.whole = False
    if not contents.whole:
        return
    lengths = [row["length"] for row in rows]
    expected = {
        "index": np.arange(sum(lengths)),
        "episode_index": np.repeat(np.arange(len(rows)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
    }
    for key, right in expected.items():
        wrong = np.flatnonzero(columns[key] != right)
        if len(wrong):
            what = (
                f"the column {key} is {columns[key][wrong[0]]} where {right[wrong[0]]} belongs, in {len(wrong)} frames"
            )
            found.error("index", what, AGAIN, feature=key, **{**contents.place(int(wrong[0])), "episode": None})
            contents.whole = False
            return
    _check_times(contents, expected["frame_index"], found)


def _check_times(contents: Contents, frame_N: np.ndarray, found: Findings) -> None:
    time_N, fps = contents.columns["timestamp"].astype(np.float64), float(contents.info["fps"])
    off_N = np.abs(time_N - frame_N / fps)
    wrong = np.flatnonzero(~(off_N <= TIME_S + 1e-6 * np.abs(time_N)))  # float32 holds seven digits
    if len(wrong):
        steps = np.diff(time_N)[np.diff(frame_N) == 1]
        rate = f"; between frames pass {np.median(steps):.4g} s, {fps:g} fps are {1 / fps:.4g} s" if len(steps) else ""
        what = f"{len(wrong)} timestamps do not match the frame rate{rate}"
        fix = "correct fps in meta/info.json, or resample the data to an even rate"
        found.error("timestamps", what, fix, feature="timestamp", **contents.place(int(wrong[0])))


def _check_totals(contents: Contents, found: Findings) -> None:
    info, columns = contents.info, contents.columns
    there = {
        "total_frames": sum(row["length"] for row in contents.episodes),
        "total_episodes": len(contents.episodes),
        "total_tasks": len(contents.tasks) or info["total_tasks"],
    }
    for key, number in there.items():
        if info[key] != number:
            fix = f"set {key} to {number} in meta/info.json, if nothing was lost"
            found.error(
                "totals", f"meta/info.json says {key} {info[key]}, there are {number}", fix, file="meta/info.json"
            )
    unknown = sorted(set(columns["task_index"].tolist()) - contents.tasks.keys()) if contents.tasks else []
    if unknown:
        row = int(np.flatnonzero(columns["task_index"] == unknown[0])[0])
        what = f"task {listed(unknown)} is used and has no sentence in meta/tasks.parquet"
        fix = "add its sentence to meta/tasks.parquet"
        found.error("unknown-task", what, fix, task=unknown[0], **contents.place(row))
