"""A sample of `full_disk.py`, and more of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.full_disk import VERBS, campaign


def full_disks(count: int, into: Path) -> None:
    """So many full disks, verbs in turn, of which none loses anything or is told badly."""
    counts, wrong = campaign(count, 0, into, lambda verb: verb in list(VERBS)[:count])
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == count and all(counts.values())


@pytest.mark.slow
def test_a_full_disk_in_any_verb_loses_nothing_and_is_one_line(tmp_path: Path) -> None:
    full_disks(4, tmp_path)


@pytest.mark.sweep
def test_a_hundred_full_disks_lose_nothing_and_are_one_line(tmp_path: Path) -> None:
    full_disks(104, tmp_path)
