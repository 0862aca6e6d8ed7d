"""Signals end the command line in one line, wherever they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from kyomei import signals
from kyomei.signals import NOTICE, SIGNALS, STATUS

BEGIN = """
import hashlib, os, signal, sys, time
from kyomei import signals
from kyomei.errors import Interrupted
from kyomei.signals import asked, listening, saving

signals.SECONDS_TO_LEAVE, signals.SECONDS_OF_ONE = float(sys.argv[1]), 0.5

def ready():
    print("ready", flush=True)

with listening():
"""
SAID = f"kyomei: {NOTICE}\n"


def begin(work: str, seconds_to_leave: float = 60) -> subprocess.Popen[str]:
    """Work under `listening`, once it is there."""
    code = BEGIN + "\n".join(f"    {line}" for line in work.strip().splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(seconds_to_leave)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_work_where_it_is_in_one_line(number: signal.Signals) -> None:
    process = begin("try:\n    ready(); time.sleep(60)\nfinally:\n    print('cleaned', flush=True)")
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (STATUS, "cleaned\n", SAID)


def test_work_that_saves_itself_is_asked_and_says_what_it_saved() -> None:
    work = "with saving():\n    ready()\n    while not asked(): time.sleep(0.01)\n"
    work += "    time.sleep(0.5)\n    raise Interrupted('40 steps', 'a stop after 3, saved', 'go on')"
    process = begin(work, seconds_to_leave=0.1)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == STATUS
    assert said == "kyomei: Expected 40 steps. Found a stop after 3, saved. Go on.\n"


def test_work_that_was_saved_before_it_asked_leaves_at_its_end() -> None:
    work = "with saving():\n    with saving():\n        ready(); time.sleep(1)\n    print('saved', flush=True)\ntime.sleep(60)"
    process = begin(work)
    process.terminate()
    assert process.communicate(timeout=30) == ("saved\n", SAID)
    assert process.returncode == STATUS


@pytest.mark.parametrize(
    "work",
    [
        "with saving(patient=False):\n    ready(); time.sleep(60)",
        "ready()\nwhile True:\n    try: time.sleep(0.1)\n    except BaseException: pass",
        "ready(); hashlib.pbkdf2_hmac('sha256', b'one long call', b'', 10**9)",
    ],
)
def test_a_process_that_does_not_hear_ends_all_the_same(work: str) -> None:
    process = begin(work, seconds_to_leave=0.5)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (STATUS, SAID)


def test_a_second_signal_ends_what_is_saving_and_one_sent_twice_does_not() -> None:
    process = begin("with saving():\n    ready(); hashlib.pbkdf2_hmac('sha256', b'one long call', b'', 10**9)")
    process.terminate()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (STATUS, SAID)


def test_a_signal_where_nothing_can_be_raised_is_heard_a_moment_later() -> None:
    work = "class Collected:\n    def __del__(self): ready(); time.sleep(1)\nheld = Collected()\ndel held\ntime.sleep(60)"
    process = begin(work, seconds_to_leave=60)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (STATUS, SAID)


def test_an_error_that_a_library_made_of_a_signal_is_no_traceback() -> None:
    work = "try:\n    ready(); time.sleep(60)\nexcept BaseException as error:\n    raise RuntimeError('lost') from error"
    process = begin(work)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (STATUS, SAID)


def test_errors_that_are_none_of_a_signal_are_shown() -> None:
    process = begin("ready(); raise RuntimeError('a bug')")
    assert "RuntimeError: a bug" in process.communicate(timeout=30)[1]
    assert process.returncode == 1


def test_a_signal_after_the_work_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + "    pass\nos.kill(os.getpid(), signal.SIGTERM)\nprint('end')", "60"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which signals a process takes")
@pytest.mark.parametrize("wait", [0.0, 0.5, 1.5])
def test_a_verb_takes_signals_while_it_imports(wait: float) -> None:
    verb = [sys.executable, "-m", "kyomei", "planted", "--rows", "1000000"]
    process = subprocess.Popen(verb, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not _takes_signals(process.pid):
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == STATUS
    assert said.endswith(SAID) and said.count("\n") <= 2 and "Traceback" not in said


def _takes_signals(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_a_library_takes_no_signals() -> None:
    # A shell leaves SIGINT ignored in what it starts in the background.
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
    with signals.saving():
        assert not signals.asked()
