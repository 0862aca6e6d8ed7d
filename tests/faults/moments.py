"""An act that is killed at any moment at which it changes what is on the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any


def stopped_at(moment: int, act: Callable[[], Any]) -> int | None:
    """Act in a process of its own that is killed at its n-th rename, removal or flush.

    Returns:
        None if it was killed; else how many such moments there were.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        passed = count(1)

        def struck(function: Any) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                if next(passed) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **more)

            return call

        for name in ("replace", "unlink", "fsync"):
            setattr(os, name, struck(getattr(os, name)))
        Path.unlink = struck(Path.unlink)  # type: ignore[method-assign]
        act()
        os.write(write, str(next(passed) - 1).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as said:
        told = said.read()
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "the act itself failed"
    return None if os.WIFSIGNALED(status) else int(told)
