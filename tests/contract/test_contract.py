"""One row per real defect, run for every method with every family. Nobody edits this to add a plug-in."""

from __future__ import annotations

import pytest

from .cases import every_case, every_family
from .checks import FAMILY_ROWS, ROWS

METHOD_ROWS = [row for row in ROWS if row not in FAMILY_ROWS]


@pytest.mark.parametrize("row", METHOD_ROWS, ids=lambda row: row.__name__)
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_row(row, case, tmp_path):
    row(case, tmp_path)


@pytest.mark.parametrize("row", FAMILY_ROWS, ids=lambda row: row.__name__)
@pytest.mark.parametrize("case", every_family(), ids=str)
def test_row_of_the_family(row, case, tmp_path):
    """What a row says that never looks at the method is the same for all of them."""
    row(case, tmp_path)


@pytest.mark.parametrize("row", METHOD_ROWS, ids=lambda row: row.__name__)
def test_a_row_that_looks_at_the_method_is_run_for_all(row, tmp_path):
    with pytest.raises(AssertionError, match="run it for every method"):
        row(every_family()[0], tmp_path)
