"""A sample of `verbs.py`, and all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.verbs import KINDS, MECHANISMS, VERBS, campaign


@pytest.mark.slow
def test_a_sample_of_faults_through_the_verbs_loses_nothing(tmp_path: Path) -> None:
    counts, wrong, _ = campaign(4, 0, ["gba"], ["harvest", "train"], tmp_path)
    assert not wrong, "\n".join(wrong)
    assert sum(counts[verb, kind] > 0 for verb in VERBS for kind in KINDS) == 4


@pytest.mark.sweep
def test_a_hundred_faults_through_all_verbs_and_mechanisms_lose_nothing(tmp_path: Path) -> None:
    counts, wrong, _ = campaign(100, 0, list(MECHANISMS), list(VERBS), tmp_path)
    assert not wrong, "\n".join(wrong)
    assert sum(counts[verb, kind] > 0 for verb in VERBS for kind in KINDS) == len(VERBS) * len(KINDS)
