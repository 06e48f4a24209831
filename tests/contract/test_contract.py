"""One row per real defect, run for every method with every family. Nobody edits this to add a plug-in."""

from __future__ import annotations

import pytest

from .cases import every_case
from .checks import ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_row(row, case, tmp_path):
    row(case, tmp_path)
