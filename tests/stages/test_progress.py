"""What a log file is told of work that takes long."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from kyomei.stages import progress
from kyomei.stages.progress import Reporter


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Standard error is a file, and a minute a twentieth of a second; the environment wants colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    return capfd


def test_a_log_file_is_told_what_how_far_how_fast_and_how_long(log: pytest.CaptureFixture[str]) -> None:
    with Reporter().progress("train replicas/0") as tick:
        for done in range(500, 560):
            tick(done, 1000)
            time.sleep(0.005)
    said = log.readouterr().err
    lines = said.splitlines()
    pattern = r"train replicas/0: (\d+) of 1,000, [\d,.]+/s, \d+ seconds left"
    found = [re.fullmatch(pattern, line) for line in lines[:-1]]
    assert len(found) >= 2 and all(found) and re.fullmatch(r"train replicas/0: \d\.\d seconds", lines[-1])
    assert "\x1b" not in said and "\r" not in said
    # What an earlier process did is not counted as fast work.
    rates = [float(line.split(", ")[-2].removesuffix("/s").replace(",", "")) for line in lines[:-1]]
    assert max(rates) < 300


def test_work_that_does_not_say_how_far_it_is_is_seen_to_go_on(log: pytest.CaptureFixture[str]) -> None:
    with Reporter().progress("check"):
        time.sleep(0.2)
    assert log.readouterr().err.startswith("check: at work\ncheck: at work\n")


def test_work_that_stands_still_promises_nothing(log: pytest.CaptureFixture[str]) -> None:
    with Reporter().progress("check") as tick:
        tick(3, 8)
        time.sleep(0.2)
    assert "check: 3 of 8, 0/s\n" in log.readouterr().err


def test_short_work_is_one_line(log: pytest.CaptureFixture[str]) -> None:
    with Reporter().progress("check") as tick:
        tick(1, 1)
    assert re.fullmatch(r"check: 0\.0 seconds\n", log.readouterr().err)


def test_an_error_ends_the_lines(log: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"), Reporter().progress("check"):
        raise ValueError("boom")
    log.readouterr()
    time.sleep(0.15)
    assert log.readouterr().err == ""


def test_a_dumb_terminal_is_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with Reporter(Console(file=file, force_terminal=True)).progress("check") as tick:
        tick(1, 2)
    assert file.getvalue().startswith("check: ") and "\x1b" not in file.getvalue()


def test_a_library_call_in_a_pipe_leaves_no_thread_behind() -> None:
    code = (
        "import threading; from kyomei.stages.progress import Reporter\n"
        "with Reporter().progress('x') as tick: tick(1, 2)\n"
        "print(threading.active_count())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
