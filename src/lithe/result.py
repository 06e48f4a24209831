"""Result: one JSON document with full provenance. Every published table and page is generated from these.

A field that is absent was not measured; it is never zero. Written atomically; the last line a measuring verb prints on
standard output is the same document on one line.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

KINDS = ("collect", "train", "eval", "bench", "explain", "profile", "reproduce", "check", "cut")
PACKAGES = ("lithe", "torch", "transformers", "numpy", "lerobot", "metaworld", "mujoco")


def make(
    kind: str,
    name: str,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    recipe_hash: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A Result of this machine, this commit, these versions. `more`: further top-level fields, None left out."""
    assert kind in KINDS, f"unknown kind of Result {kind!r}"
    document = {
        "kind": kind,
        "name": name,
        "recipe_hash": recipe_hash,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "settings": settings,
        "rows": rows,
        **more,
    }
    return {key: value for key, value in document.items() if value is not None}


def save(document: dict[str, Any], path: str | Path) -> Path:
    """Write beside the target, flush to disk, rename."""
    from lithe._disk import write_atomically

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=1).encode() + b"\n")
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Read one Result. Raises ValueError when the file is not one."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a Result: {error}; Results are written by lithe bench, eval and reproduce"
        ) from error
    if not isinstance(document, dict) or document.get("kind") not in KINDS or "rows" not in document:
        raise ValueError(f"{path} is not a Result: it needs 'kind' (one of {', '.join(KINDS)}) and 'rows'")
    return document


def line(document: dict[str, Any]) -> str:
    """The document on one line, for the end of standard output."""
    return json.dumps(document, separators=(",", ":"))


def versions() -> dict[str, str]:
    """Installed versions of the packages a number can depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an optional package that is not installed took no part
    return {"python": platform.python_version(), **found}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and, where there is one, the GPU."""
    import torch

    facts: dict[str, Any] = {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    facts["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for entry in info.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with "+" when it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    run = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if run.returncode:
        return None
    dirty = subprocess.run(["git", "-C", here, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    return run.stdout.strip() + ("+" if dirty.stdout.strip() else "")
