"""Files that appear whole or not at all, and what is left of those that did not. The standard library alone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kyomei.errors import RunError

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Name of what a process is writing, or was when it was killed."""


def write_atomic(path: Path | str, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees either all of it or what was there before.

    Args:
        path: the file; its folder is made when missing.
        data: its whole content.

    Raises:
        RunError: the disk is full, or nothing may be written there. What was there before is untouched, and no temporary
            file is left.
    """
    with appearing(path) as file:
        file.write(data)


@contextlib.contextmanager
def appearing(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which appears whole when the block ends, or not at all.

    Raises:
        RunError: as `write_atomic` does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is not there.

    Raises:
        RunError: the disk is full, or nothing may be written there.
    """
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)


def sync_file(path: Path) -> None:
    """Make what a file holds survive a power cut, where others wrote it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some file systems refuse, and then their own order has to do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def refusals_named(path: Path | str) -> Iterator[None]:
    """Turn "no space left", an exhausted quota and "no permission" inside the block into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        refusal = refusal_of(error, path)
        if refusal is None:
            raise
        raise refusal from error


def refusal_of(error: OSError, path: Path | str) -> RunError | None:
    """What a full disk or a lack of permission is to a user; none for other errors."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError("permission", f"none for {path}", "choose or copy it to a folder that you can read and write to")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        do = "free some space, then resume; what was complete is kept"
        return RunError("space on the disk", f"none left while writing {path}", do)
    return None


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file's content, in hexadecimal; memory stays flat."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes were writing in a folder or below it: files, and whole folders such as checkpoints."""
    for path in list(folder.rglob(".*.tmp")):
        if TEMPORARY.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
