"""Who did what to a run, with which code and where: the history in its manifest. Torch-free."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from kyomei import __version__
from kyomei.errors import Interrupted, KyomeiError

OPERATOR = "KYOMEI_OPERATOR"
"""Environment variable with the name of whoever runs Kyomei; nothing is recorded of them without it."""
MOST_ACTS = 200
"""Acts that a history holds: the first one, and the last ones."""
_OUTCOME_LETTERS = 300


@dataclass(frozen=True)
class Act:
    """One verb, or one call of the library, that writes to a run.

    Attributes:
        command: what was typed.
        began: when, in UTC.
        host: on which machine.
        pid: in which process.
        operator: who, if they say so.
        kyomei: version of Kyomei.
        git: commit of the working directory, and whether files under version control differed from it; none: it is in no
            repository.
        threads: CPU threads that torch uses; none: it is not loaded.
    """

    command: str
    began: str
    host: str
    pid: int
    operator: str | None
    kyomei: str
    git: dict[str, Any] | None
    threads: int | None

    @classmethod
    def now(cls, command: str) -> Act:
        """An act that begins now, in this process."""
        operator, torch = os.environ.get(OPERATOR), sys.modules.get("torch")
        threads = None if torch is None else torch.get_num_threads()
        return cls(command, now(), socket.gethostname(), os.getpid(), operator, __version__, _git(), threads)


class _Verb:
    current: Act | None = None


def processes() -> int:
    """How many processes were started together, by torchrun or what speaks its language; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def begin_verb() -> None:
    """Take what this process does to runs from here on as one act: the command line's."""
    _Verb.current = Act.now(command_line())


def hide(option: str) -> None:
    """Let the act of this process not tell what an option was given: it is to be forgotten."""
    if _Verb.current is not None:
        words, after = [], False
        for word in shlex.split(_Verb.current.command):
            words.append("…" if after else f"{option}=…" if word.startswith(f"{option}=") else word)
            after = word == option
        _Verb.current = replace(_Verb.current, command=" ".join(words))


def command_line() -> str:
    """What was typed."""
    return shlex.join(["kyomei", *sys.argv[1:]])


def begun(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history with the act that begins now at its end. Its end and its outcome are not known: a crash leaves it so.

    A verb may take up a run several times: its act stands there once.
    """
    act = _Verb.current or Act.now(shlex.join(sys.orig_argv))
    entry = {**asdict(act), "ended": None, "outcome": None}
    same = bool(history) and all(history[-1].get(key) == entry[key] for key in ("began", "host", "pid", "command"))
    history = [*(history[:-1] if same and _Verb.current else history), entry]
    return history if len(history) <= MOST_ACTS else [history[0], *history[len(history) - MOST_ACTS + 1 :]]


def ended(history: list[dict[str, Any]], error: BaseException | None = None) -> list[dict[str, Any]]:
    """A history whose last act ended now, by an error or without one."""
    return [*history[:-1], {**history[-1], "ended": now(), "outcome": _outcome(error)}]


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, Interrupted) or not isinstance(error, Exception):
        return "stopped"
    words = str(error) if isinstance(error, KyomeiError) else f"{type(error).__name__}: {error}"
    return f"failed: {words}"[:_OUTCOME_LETTERS]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether it is dirty; none where git knows of none."""
    commit, changes = _asked_of_git("rev-parse", "HEAD"), _asked_of_git("status", "--porcelain", "-uno")
    return None if commit is None else {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _asked_of_git(*words: str) -> str | None:
    command = ["git", "-c", "core.fsmonitor=false", *words]
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        asked = subprocess.run(command, env=env, capture_output=True, timeout=10, check=True, text=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return asked.stdout.strip()
