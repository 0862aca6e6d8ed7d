"""A sample of `injections.py`, which makes many more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("injections.py")


@pytest.mark.slow
def test_a_sample_of_faults_loses_and_corrupts_nothing() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--count", "16", "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "16 faults, 0 of them" in done.stdout
    assert [len(re.findall(rf"\| {kind} \|", done.stdout)) for kind in ("kill", "term", "disk full", "damage")] == [1] * 4
