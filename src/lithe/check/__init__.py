"""`lithe check`: what is wrong with a data set, and where a policy does not fit it. Reads only, changes nothing.

Silent misfits cost most: statistics left over from before an edit, a normaliser without any, other units, another
frame rate, a renamed camera. Each finding says what, where and what to do; the findings are the rows of the Result.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lithe import result
from lithe.check import damage, findings, misfit, numbers, order
from lithe.check.findings import Findings
from lithe.check.pictures import check as check_pictures
from lithe.check.subject import open_subject
from lithe.data.lerobot import download

table = findings.table
PICTURES = 2000


def check(
    policy: str | Path | None,
    dataset: str | Path,
    *,
    revision: str | None = None,
    fps: float | None = None,
    rename: dict[str, str] | None = None,
    pictures: int = PICTURES,
) -> dict[str, Any]:
    """A Result of kind "check", one row a finding; `failed` tells whether one of them is an error.

    policy: a policy folder or hub id; None checks the data set alone. dataset: a LeRobotDataset v3, folder or hub id,
    the latter at `revision`. fps: the rate the policy acts at, where its folder does not say. rename: camera of the
    data set -> name the policy knows it by. pictures: how many to decode per camera, evenly spread; every file is
    looked into anyway.

    Raises ValueError for a data set that cannot be fetched.
    """
    if pictures < 1:
        raise ValueError(f"pictures={pictures}: decode at least one picture a camera")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps}: a policy acts at a positive number of actions a second")
    root, found, decoded = _folder(dataset, revision), Findings(), {}
    subject = None
    if policy is not None:
        try:
            subject = open_subject(policy)
        except ValueError as error:
            found.error("policy", str(error), "nothing else about the policy was checked; repair this first")
    contents = damage.read(root, found)
    if contents is not None:
        order.check(contents, found)
        values = numbers.check(contents, found)
        decoded = check_pictures(contents, found, pictures)
        if subject is not None:
            misfit.check(subject, contents, values, found, fps, rename or {})
    settings = {
        "policy": None if policy is None else str(policy),
        "dataset": str(dataset),
        "revision": root.name if re.fullmatch("[0-9a-f]{40}", root.name) else revision,  # a hub's commit
        "fps": fps,
        "rename": rename or None,
        "pictures": pictures,
        "frames": len(contents.columns.get("index", ())) if contents else 0,
        "episodes": len(contents.episodes) if contents else 0,
        "tasks": len(contents.tasks) if contents else 0,
        "decoded": {camera: list(counts) for camera, counts in decoded.items()},
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    counts = {severity: found.count(severity) for severity in ("error", "warning")}
    return result.make("check", Path(dataset).name, settings, [finding.row() for finding in found.all], counts=counts)


def failed(document: dict[str, Any]) -> bool:
    """Whether a finding is an error, so that training or acting would be wrong or would stop."""
    return document["counts"]["error"] > 0


def _folder(dataset: str | Path, revision: str | None) -> Path:
    folder = Path(dataset)
    if folder.exists() or str(dataset).count("/") != 1 or str(dataset).startswith((".", "/")):
        if not folder.is_dir():
            raise ValueError(f"there is no data set folder {dataset}; check the path, or give a hub id like owner/name")
        if revision:
            raise ValueError(f"{dataset} is a folder, which has no revisions: leave revision={revision!r} out")
        return folder
    return download(str(dataset), revision)
