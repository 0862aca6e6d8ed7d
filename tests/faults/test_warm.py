"""Forked verbs are processes like any, and the process that they are forked from has no thread that they would lack."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.warm import begun, ended, verb


def tell_of_parent() -> None:
    """Print where this process is, a variable, and the threads of the process that it was forked from."""
    print(os.getcwd(), os.environ["SAID"])
    print(*(path.read_text().strip() for path in Path(f"/proc/{os.getppid()}/task").glob("*/comm")), file=sys.stderr)


def test_a_forked_verb_tells_its_status_and_what_it_wrote(tmp_path: Path) -> None:
    done = verb("list", "nowhere", "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("kyomei: Expected") and "nowhere" in done.stderr and not done.stdout
    shown = verb("--help")
    assert shown.returncode == 0 and "harvest" in shown.stdout and not shown.stderr


def test_a_fork_can_be_killed(tmp_path: Path) -> None:
    process = begun(time.sleep, 60, err=tmp_path / "said")
    process.kill()
    assert ended(process) == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_what_is_forked_from_has_one_thread(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    assert ended(begun(tell_of_parent, err=err, out=out, env={"SAID": "so"}, cwd=tmp_path)) == 0
    assert out.read_text().split() == [str(tmp_path), "so"]
    # Arrow's allocator has one, and knows of forks.
    assert len([name for name in err.read_text().splitlines()[-1].split() if not name.startswith("jemalloc")]) == 1
