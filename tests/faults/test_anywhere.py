"""A sample of `anywhere.py`, and more of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.anywhere import campaign


@pytest.mark.parametrize(
    ("count", "stages"),
    [
        pytest.param(4, ["certify", "harvest"], marks=pytest.mark.slow),
        pytest.param(60, ["harvest", "train", "certify"], marks=pytest.mark.sweep),
    ],
)
def test_faults_anywhere_lose_nothing_that_an_address_or_a_folder_has(count: int, stages: list[str], tmp_path: Path) -> None:
    counts, wrong = campaign(count, 0, stages, tmp_path)
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == count
