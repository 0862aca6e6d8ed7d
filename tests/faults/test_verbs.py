"""A sample of `verbs.py`, and all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("verbs.py")


def faults(*options: str) -> str:
    """The tables of a campaign in which nothing went wrong."""
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_sample_of_faults_through_the_verbs_loses_nothing() -> None:
    said = faults("--count", "4", "--seed", "0", "--mechanisms", "gba", "--verbs", "harvest", "train")
    assert "4 cases, 0 things went wrong" in said


@pytest.mark.sweep
def test_a_hundred_faults_through_all_verbs_and_mechanisms_lose_nothing() -> None:
    assert "100 cases, 0 things went wrong" in faults("--count", "100", "--seed", "0")
