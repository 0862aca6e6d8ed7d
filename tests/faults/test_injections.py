"""A sample of `injections.py`, which makes many more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.injections import KINDS, campaign


@pytest.mark.slow
def test_a_sample_of_faults_loses_and_corrupts_nothing(tmp_path: Path) -> None:
    counts, wrong = campaign(16, 1, tmp_path)
    assert not wrong, "\n".join(wrong)
    assert {kind: sum(counts[each] for each in counts if each[0] == kind) for kind in KINDS} == dict.fromkeys(KINDS, 4)
