"""A sample of `anywhere.py`, and more of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("anywhere.py")


@pytest.mark.parametrize(
    ("count", "stages"),
    [
        pytest.param(3, ("certify", "harvest"), marks=pytest.mark.slow),
        pytest.param(60, ("harvest", "train", "certify"), marks=pytest.mark.sweep),
    ],
)
def test_faults_anywhere_lose_nothing_that_an_address_or_a_folder_has(count: int, stages: tuple[str, ...]) -> None:
    command = [sys.executable, str(SCRIPT), "--count", str(count), "--stages", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{count} faults, 0 things went wrong" in done.stdout
