"""Signals that ask the command line to leave: SIGINT, which is Ctrl-C, and SIGTERM. The standard library alone.

Every file is written so that a kill at any moment loses nothing that was finished. So a signal ends the work wherever it is, as
an exception; no loop has to ask for it. Only what saves itself, as training does, is let go on until it has, inside `saving`.
A thread sees to it that the process leaves: at the second signal, or when the exception has not ended it in time, for it waits
in one long call of a library, or was caught in one. A library that is used without the command line takes no signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from kyomei.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS = 130
"""Exit status of a process that a signal ended."""
SECONDS_TO_LEAVE = 8.0
"""From a signal to the end of a process that saves nothing."""
SECONDS_OF_ONE = 1.0
"""Signals within this time are one: a terminal and a program that passes signals on may both send it."""
NOTICE = "Stopped by a signal. What was finished is kept: the same command goes on from there, with --resume where it has that."
_TICK = 0.1


class Stop(BaseException):
    """A signal came. It is no `Exception`, so that what handles errors on the way does not take it for one."""


class _State:
    asked = False
    lost = False
    """Whether the exception came where none can be raised, as in what the collector of garbage calls."""
    saving = 0
    patient = 0


def asked() -> bool:
    """Whether a signal came."""
    return _State.asked


@contextlib.contextmanager
def saving(*, patient: bool = True) -> Iterator[None]:
    """Let a signal wait for work that asks for it with `asked`, and leaves once it has saved what it did.

    Args:
        patient: however long that takes; otherwise the process ends when its time is up, as it does everywhere else.

    Raises:
        Stop: at the end, if a signal came and the work did not ask for it any more.
    """
    _State.saving += 1
    _State.patient += patient
    try:
        yield
    finally:
        _State.saving -= 1
        _State.patient -= patient
    if _State.asked and not _State.saving:
        raise Stop


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take signals from here to the end of the process, which they end with one line and status 130. In the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python runs handlers between two of its own instructions; what is written here is seen within any call.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_see_to_it, args=(reader,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _hear)
    sys.unraisablehook = _without_stops(sys.unraisablehook)
    try:
        try:
            yield
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    except Interrupted as error:
        _leave(str(error))
    except Stop:
        _leave(NOTICE)
    except Exception:
        # A library may have made an error of its own of it.
        if not _State.asked:
            raise
        _leave(NOTICE)


def _hear(number: int, frame: FrameType | None) -> None:
    raising = _State.lost or not (_State.asked or _State.saving)
    _State.asked, _State.lost = True, False
    if raising:
        raise Stop


def _without_stops(show: Callable[[Any], object]) -> Callable[[Any], object]:
    """What Python calls with an exception that nothing can catch: one of ours is raised again instead of shown."""

    def hook(ignored: Any) -> None:
        if ignored.exc_type is Stop:
            _State.lost = True
        else:
            show(ignored)

    return hook


def _see_to_it(reader: int) -> None:
    """Wait for a signal, then leave for a process that does not do so itself."""
    while os.read(reader, 1)[0] not in SIGNALS:
        pass
    first, left = time.monotonic(), SECONDS_TO_LEAVE
    while left > 0:
        if select.select([reader], [], [], _TICK)[0]:
            if os.read(reader, 1)[0] in SIGNALS and time.monotonic() - first > SECONDS_OF_ONE:
                break
        elif not _State.patient:
            left -= _TICK
            if _State.lost:
                signal.raise_signal(signal.SIGTERM)
    _leave(NOTICE)


_leaving = threading.Lock()


def _leave(message: str) -> NoReturn:
    """End the process at once; of two threads that leave, one says why."""
    _leaving.acquire()
    with contextlib.suppress(OSError):
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
        os.write(2, f"{show_cursor}kyomei: {message}\n".encode())
    os._exit(STATUS)
