"""The whole path where a process may open few files: shards are many, open files are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
from kyomei.cli import main
main()
"""
SETTINGS = {
    "source.context": 32,
    "source.windows_per_shard": 1,
    "source.spread": 1,
    "resonance.neurons": 64,
    "resonance.steps": 3,
    "resonance.frequencies": "[0.02]",
    "dictionary.width": 32,
    "train.steps": 20,
    "train.batch_rows": 128,
}


@pytest.mark.slow
@pytest.mark.sweep
def test_harvest_train_certify_and_measure_of_more_shards_than_files(tmp_path: Path) -> None:
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    verbs = [
        ["train", "run", "--tokens", "20000", *options],
        ["check", "run"],
        ["certify", "run"],
        ["measure", "run"],
        ["report", "run"],
    ]
    for verb in verbs:
        command = [sys.executable, "-c", LIMITED, *verb]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
    for part in ("replica-0", "evidence"):
        assert len(list((tmp_path / "run/activations" / part).glob("*/shard-*"))) > 96
