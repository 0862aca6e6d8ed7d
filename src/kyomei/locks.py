"""The lock of a run: one process at a time, on one machine or on several that share a file system. The standard library alone.

The lock is a file that names its holder. On the same machine the holder is alive if its process is. Of one on another machine
nothing but the file is seen, so each holder touches its file every `HEARTBEAT_SECONDS`, and one whose file stays untouched for
`SILENT_SECONDS` of watching is taken for dead. Clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kyomei.atomic import write_atomic
from kyomei.errors import RunError

LOCK = "lock"
HEARTBEAT_SECONDS = 10.0
"""How often a holder touches its lock."""
SILENT_SECONDS = 60.0
"""How long the lock of another machine is watched before it is taken over: a file system of several may show a touch late."""
_WATCH_SECONDS = 1.0


class _Holder(NamedTuple):
    """Who holds a lock, and how its file was when this was read: with the next heartbeat it compares unequal."""

    pid: int
    started: str | None
    host: str
    inode: int
    touched_ns: int

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_alive_here(self) -> bool:
        return self.is_here and _started(self.pid) == self.started


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        RunError: a live process holds it, or another machine took it over while this one slept. The lock of a dead process is
            taken over.
    """
    inode, stop = _acquire(folder)
    try:
        yield
    finally:
        stop.set()
        other = _release(folder, inode)
    if other is not None:
        raise _refusal(folder, other, "see what it made of it: this process was silent for too long")


def refuse_if_locked(folder: Path) -> None:
    """Nothing, where no live process holds a folder.

    Raises:
        RunError: one does. Whether one on another machine does may take a minute to see.
    """
    holder = _holder(folder)
    if holder is not None and not holder.is_here and _watched(folder, holder) == holder:
        return
    _refuse_if_alive(folder, _holder(folder))


def _acquire(folder: Path) -> tuple[int, threading.Event]:
    """Write the lock file and keep touching it; returns its inode, and what ends the touching."""
    silent = None
    while True:
        with one_at_a_time(folder):
            holder = _holder(folder)
            if holder is None or holder == silent or (holder.is_here and not holder.is_alive_here):
                return _write(folder)
        if not holder.is_here and _watched(folder, holder) == holder:
            silent = holder
        else:
            _refuse_if_alive(folder, _holder(folder))


def _write(folder: Path) -> tuple[int, threading.Event]:
    path, stop = folder / LOCK, threading.Event()
    holder = {"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()}
    write_atomic(path, json.dumps(holder).encode())
    # The open file is touched, not the path: what another holder may have put there is left alone.
    handle = os.open(path, os.O_RDONLY)
    threading.Thread(target=_beat, args=(handle, stop), name="lock", daemon=True).start()
    return os.fstat(handle).st_ino, stop


def _release(folder: Path, inode: int) -> _Holder | None:
    """Remove the lock file that was written as `inode`; who holds the folder instead, if another took it over."""
    with contextlib.suppress(FileNotFoundError), one_at_a_time(folder):
        other = _holder(folder)
        if other is not None and other.inode != inode:
            return other
        (folder / LOCK).unlink(missing_ok=True)
    return None


def _beat(handle: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(handle)
    os.close(handle)


def _watched(folder: Path, holder: _Holder) -> _Holder | None:
    """The holder once the lock file has changed, or as it was where it has not for long enough."""
    words = "%s is locked by process %d on %s: watching up to %.0f seconds for a sign of life"
    logging.getLogger("kyomei").warning(words, folder, holder.pid, holder.host, SILENT_SECONDS)
    until, there = time.monotonic() + SILENT_SECONDS, _holder(folder)
    while there == holder and time.monotonic() < until:
        time.sleep(min(_WATCH_SECONDS, SILENT_SECONDS))
        there = _holder(folder)
    return there


def _refuse_if_alive(folder: Path, holder: _Holder | None) -> None:
    if holder is not None and (holder.is_alive_here or not holder.is_here):
        raise _refusal(folder, holder, "wait for it to end, or stop it")


def _refusal(folder: Path, holder: _Holder, do: str) -> RunError:
    return RunError("a run that no process works on", f"{folder} locked by process {holder.pid} on {holder.host}", do)


def _holder(folder: Path) -> _Holder | None:
    """Who the lock file names; none without one, or for one that no Kyomei wrote: it is written atomically."""
    try:
        # Opened, because file systems over a network then ask for its times anew.
        with open(folder / LOCK, "rb") as file:
            status, said = os.fstat(file.fileno()), json.loads(file.read())
        return _Holder(int(said["pid"]), said["started"], str(said["host"]), status.st_ino, status.st_mtime_ns)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the lock file and replace it, or two could both take over a stale one."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the lock file alone has to do
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _started(pid: int) -> str | None:
    """When a live process started, in the words of the system; None without such a process.

    A process number alone would not do: numbers are used again.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name in brackets may itself hold spaces
        state, ticks_since_boot = fields[0], fields[19]
        return None if state in "ZX" else f"{boot} {ticks_since_boot}"
    shown = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else " ".join(start.split())
