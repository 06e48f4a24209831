"""The plug-in of this checkout, importable, and as an installed distribution for LeRobot's discovery to find.

It is not taken from the environment: a test of this tree must not pass because of another one that is installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2] / "plugins" / "lerobot_policy_lithe"
sys.path.insert(0, str(HOME))


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a process in which the distribution is installed as its pyproject.toml describes it."""
    import tomllib  # Python 3.11

    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    about = site / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(HOME), *filter(None, sys.path)])}
