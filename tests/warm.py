"""Processes that are forked from one which has imported everything and begun nothing, so that many starts pay for imports once.

Each is a real process: it can be killed, told to stop and waited for. Whoever tests how the command line itself starts, signals
that come while it imports, or an environment that an interpreter reads, starts an interpreter instead.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])
SECONDS_TO_END = 300.0


def begun(
    work: Callable[..., object],
    *arguments: object,
    err: Path,
    out: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> BaseProcess:
    """Begin a piece of work in a process of its own.

    Args:
        work: a function of a module that can be imported.
        arguments: that it is called with.
        err: file that what it writes to standard error is added to.
        out: the same of standard output; none: the same file.
        env: variables of its environment, beside those of this process when the first of all was begun.
        cwd: folder that it works in.
    """
    process = FORKS.Process(target=_work, args=(work, arguments, (out or err, err), dict(env or {}), cwd), daemon=True)
    with pytest.MonkeyPatch.context() as patched:
        # The first one starts the process that all are forked from. Threads would not survive a fork.
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("TOKENIZERS_PARALLELISM", "false")
        patched.chdir(ROOT)
        process.start()
    return process


def ended(process: BaseProcess, seconds: float = SECONDS_TO_END) -> int:
    """The exit status of a process, once it has ended; negative: the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None, f"still there after {seconds:.0f} s"
    return process.exitcode


def verb(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """A verb of the command line in a process of its own, to its end."""
    line = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        status = ended(begun(command_line, *line, err=err, out=out, env=env, cwd=cwd))
        return subprocess.CompletedProcess(line, status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def command_line(*arguments: str) -> None:
    """What `kyomei` does with these arguments."""
    from kyomei.__main__ import main

    sys.argv = ["kyomei", *arguments]
    main()


def ranks(size: int) -> list[dict[str, str]]:
    """What torchrun would tell each of so many processes in its environment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _work(
    work: Callable[..., object],
    arguments: tuple[object, ...],
    streams: tuple[Path, Path],
    env: dict[str, str],
    cwd: Path | None,
) -> None:
    os.environ |= env
    if cwd is not None:
        os.chdir(cwd)
    for number, path in enumerate(streams, start=1):
        with open(path, "a") as file:
            os.dup2(file.fileno(), number)
    import torch

    # After a fork the first call that counts threads makes their pool anew, and two threads that do so at once fail:
    # "Invalid thread pool!" (`pthreadpool` in torch's caffe2/utils/threadpool/pthreadpool-cpp.cc).
    torch.set_num_threads(torch.get_num_threads())
    # As in a new interpreter: lines are written when they end.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", buffering=1, closefd=False) for number in (1, 2))
    work(*arguments)
