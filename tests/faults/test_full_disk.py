"""A sample of `full_disk.py`, and more of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("full_disk.py")


def full_disks(count: int) -> None:
    """So many full disks, verbs in turn, of which none loses anything or is told badly."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--count", str(count)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{count} full disks, 0 things went wrong" in done.stdout


@pytest.mark.slow
def test_a_full_disk_in_any_verb_loses_nothing_and_is_one_line() -> None:
    full_disks(4)


@pytest.mark.sweep
def test_a_hundred_full_disks_lose_nothing_and_are_one_line() -> None:
    full_disks(104)
