"""Runs that cannot be written to, odd folders, plain terminals and full disks, through the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyomei.runs import Run

TINY = {
    "source.num_tokens": 12_000,
    "source.context": 64,
    "source.spread": 2,
    "dictionary.width": 64,
    "mechanism.name": "topk",
    "mechanism.start": "random",
    "mechanism.k": 4,
    "train.steps": 20,
    "train.batch_rows": 64,
    "train.checkpoint_every": 10,
}
OPTIONS = ["--threads", "1", *(part for key, value in TINY.items() for part in ("--set", f"{key}={value}"))]


def kyomei(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "kyomei", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=300, check=False, env=env, cwd=cwd)


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a refusal."""
    said = done.stderr.decode()
    lines = [line for line in said.splitlines() if line.startswith("kyomei: Expected")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet") / "run"
    for verb in (("train", folder, *OPTIONS), ("certify", folder), ("measure", folder), ("report", folder)):
        done = kyomei(*verb)
        assert done.returncode == 0, done.stderr.decode()
    return folder


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The same folder where nobody may write, not even the superuser."""
    if os.getuid():
        paths = [folder, *folder.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths}
        for path in paths:
            path.chmod(modes[path] & ~0o222)
        try:
            yield folder
        finally:
            for path in paths:
                path.chmod(modes[path])
        return
    place = folder.with_name("read-only")
    place.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", folder, place], capture_output=True, check=False).returncode:
        pytest.skip("the superuser can write anywhere, and may not mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@pytest.mark.slow
def test_a_finished_run_that_cannot_be_written_to_is_read(finished: Path) -> None:
    before = json.loads((finished / "manifest.json").read_text())
    with read_only(finished) as folder:
        for verb in ("report", "measure", "certify"):
            done = kyomei(verb, folder, "--json")
            assert done.returncode == 0, (verb, done.stderr.decode())
            assert json.loads(done.stdout)
        assert kyomei("train", folder, "--resume").returncode == 0
        for verb in (("certify", folder, "--baseline", "l1"), ("train", folder, "--overwrite", *OPTIONS)):
            assert "Expected permission" in refused(kyomei(*verb))
        assert "Expected permission" in refused(kyomei("harvest", folder / "below", *OPTIONS))
    assert json.loads((finished / "manifest.json").read_text()) == before


@pytest.mark.slow
def test_what_is_up_to_date_is_read_while_another_process_works(finished: Path) -> None:
    with Run.open(finished).lock():
        for verb in (("certify", finished), ("train", finished, "--resume")):
            done = kyomei(*verb)
            assert done.returncode == 0, done.stderr.decode()
        assert "locked by process" in refused(kyomei("certify", finished, "--baseline", "l1"))
