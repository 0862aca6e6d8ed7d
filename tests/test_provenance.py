"""What the manifest says of who did what to a run, with which code and where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import kyomei
from kyomei import provenance
from kyomei.config import Recipe
from kyomei.errors import Interrupted, RunError
from kyomei.provenance import MOST_ACTS, OPERATOR
from kyomei.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Recipe())


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the command line's."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kyomei", "train", "runs/two words"])
    monkeypatch.setattr(provenance._Verb, "current", None)
    provenance.begin_verb()


def test_an_act_is_open_until_it_ends(run: Run, verb: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.manifest["history"] == []
    with run.lock():
        (act,) = run.manifest["history"]
        assert act["command"] == "kyomei train 'runs/two words'" and act["host"] == socket.gethostname()
        assert act["pid"] == os.getpid() and act["kyomei"] == kyomei.__version__ and act["threads"] == 1
        assert act["ended"] is None and act["outcome"] is None, "as a crash would leave it"
    (act,) = run.manifest["history"]
    assert act["outcome"] == "done" and act["ended"] >= act["began"]


def test_a_verb_that_takes_a_run_up_twice_is_one_act(run: Run, verb: None) -> None:
    for _ in range(2):
        with run.lock():
            pass
    (act,) = run.manifest["history"]
    assert act["outcome"] == "done"


def test_calls_of_the_library_are_acts_of_their_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance._Verb, "current", None)
    for _ in range(2):
        with run.lock():
            pass
    assert [Path(act["command"].split()[0]).name for act in run.manifest["history"]] == [Path(sys.orig_argv[0]).name] * 2


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RunError("a", "b", "c"), "failed: Expected a. Found b. C."),
        (ZeroDivisionError("x"), "failed: ZeroDivisionError: x"),
        (Interrupted("a", "b", "c"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_how_an_act_ended_is_told(run: Run, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), run.lock():
        raise error
    assert run.manifest["history"][-1]["outcome"] == outcome


def test_a_history_keeps_its_beginning_and_does_not_grow_for_ever(run: Run) -> None:
    run.note(history=[{"command": str(i)} for i in range(MOST_ACTS)])
    with run.lock():
        pass
    history = run.manifest["history"]
    assert len(history) == MOST_ACTS and history[0]["command"] == "0" and history[1]["command"] == "2"
    assert history[-1]["outcome"] == "done"


def test_a_run_of_before_histories_gets_one(run: Run) -> None:
    manifest = run.manifest
    del manifest["history"]
    run.write_json("manifest.json", manifest)
    with run.lock():
        pass
    assert len(run.manifest["history"]) == 1


def test_the_operator_is_whoever_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance._Verb, "current", None)
    for name in ("Ada", None):
        monkeypatch.setenv(OPERATOR, name) if name else monkeypatch.delenv(OPERATOR)
        with run.lock():
            pass
    assert [act["operator"] for act in run.manifest["history"]] == ["Ada", None]


def test_the_commit_of_the_working_directory_is_told_and_whether_it_is_dirty(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance._Verb, "current", None)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git_of_an_act() -> object:
        with run.lock():
            return run.manifest["history"][-1]["git"]

    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    assert git_of_an_act() is None
    (project / "notes").write_text("a")
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "notes"], [*person, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_of_an_act() == {"commit": head, "dirty": False}
    (project / "notes").write_text("b")
    assert git_of_an_act() == {"commit": head, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_of_an_act() is None
