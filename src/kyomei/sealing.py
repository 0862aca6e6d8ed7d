"""What tells later whether a byte of a run has changed: digests of its files, and files that vouch for themselves. Torch-free.

A manifest names every file that was written while its run was held (`written_since`). A file that is written at other times,
such as labels, has its digest beside it (`vouched`). The manifest itself ends in a digest of its own bytes (`sealed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from kyomei.atomic import TEMPORARY, sha256_of, write_atomic
from kyomei.locks import LOCK, one_at_a_time

SEAL = "sha256"
"""Last key of a file that vouches for itself: SHA-256 of its bytes with zeros in place of the digest."""
BESIDE = ".sha256"
"""What the name of a file's digest adds to the file's own."""
FORGETTING = "forgetting"
"""Folder of what `kyomei forget` prepares in a run."""
UNFINISHED = f"{FORGETTING}/begun"
"""Is there as long as some of it is done and some is not."""
_LOCK = "a lock, which comes and goes with the process that holds the folder"
_STAGED = "prepared by `kyomei forget`, which ends or clears it"
_UNFINISHED = "left by a process that was killed while it wrote; the next verb removes it"
_UNSEALED = "0" * 64
_SEALED = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}\n\Z')

Stat = tuple[int, ...]
_known: dict[str, tuple[Stat, str]] = {}


def sealed(values: Mapping[str, Any]) -> bytes:
    """Values as JSON whose last key is a digest of all its bytes."""
    plain = {key: value for key, value in values.items() if key != SEAL}
    text = json.dumps({**plain, SEAL: _UNSEALED}, indent=1, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{digest}"\n}}\n'.join(text.rsplit(f'{_UNSEALED}"\n}}\n', 1)).encode()


def seal_of(content: bytes) -> Literal["whole", "broken", "none"]:
    """Whether the bytes of a file that vouches for itself are those that were written; "none": it does not."""
    found = _SEALED.search(content)
    if found is None:  # one that was changed may have lost the form of its end
        return "broken" if SEAL.encode() in content[-100:] else "none"
    blank = content[: found.start(1)] + _UNSEALED.encode() + content[found.end(1) :]
    return "whole" if hashlib.sha256(blank).hexdigest().encode() == found[1] else "broken"


def files_of(folder: Path, holder: str) -> dict[str, Stat]:
    """The files that belong to a folder, by relative name: not those of a folder inside it that has a `holder` of its own.

    Left out are `holder` itself, locks, and what is being written.
    """
    found: dict[str, Stat] = {}
    for name, why in _walked(folder, holder):
        if why is None:
            with contextlib.suppress(FileNotFoundError):
                found[name] = _stat(folder / name)
    return found


def uncovered(folder: Path, holder: str) -> dict[str, str]:
    """What `files_of` leaves out beside `holder`, by name, with why: nothing can vouch for a file that does not stay."""
    return {name: why for name, why in _walked(folder, holder) if why is not None}


def _walked(folder: Path, holder: str) -> Iterator[tuple[str, str | None]]:
    """The files of a folder, by relative name, but for `holder` and folders with one of their own, and why one is left out."""
    for place, inside, names in os.walk(folder):
        here = Path(place)
        inside[:] = sorted(name for name in inside if not (here / name / holder).is_file())
        parts = here.relative_to(folder).parts
        unfinished = any(TEMPORARY.fullmatch(part) for part in parts)
        for name in names:
            why = _STAGED if FORGETTING in parts else _UNFINISHED if unfinished or TEMPORARY.fullmatch(name) else None
            if parts or name != holder:
                yield (here / name).relative_to(folder).as_posix(), _LOCK if name == LOCK else why


def digest_of(path: Path) -> str:
    """SHA-256 of a file, computed once in a process for as long as the file stays as it is."""
    stat, key = _stat(path), _key(path)
    held = _known.get(key)
    if held is None or held[0] != stat:
        held = _known[key] = stat, sha256_of(path)
    return held[1]


def written_since(
    folder: Path, before: Mapping[str, Stat], after: Mapping[str, Stat], outputs: Mapping[str, str]
) -> dict[str, str]:
    """The digests that a manifest holds once a process lets go of its run.

    A file that was not touched meanwhile keeps the digest it has: where its bytes changed before, that is found out.

    Args:
        folder: of the run.
        before, after: what `files_of` gave when the run was taken up, and gives now.
        outputs: digests by name that the manifest holds so far.
    """
    own = {name: stat for name, stat in after.items() if not vouched_for(folder / name)}
    written = {name for name, stat in own.items() if before.get(name) != stat or name not in outputs}
    gone = {name for name in outputs if name not in after and name in before}
    kept = {name: digest for name, digest in outputs.items() if name not in gone}
    return dict(sorted({**kept, **{name: digest_of(folder / name) for name in written}}.items()))


def settled(folder: Path, before: Mapping[str, Stat], after: Mapping[str, Stat], outputs: Mapping[str, str]) -> dict[str, str]:
    """The same where a process is stopped in its work: what it touched last, and has not recorded, has no digest for now."""
    return {
        name: digest
        for name, digest in outputs.items()
        if before.get(name) == after.get(name) or _known.get(_key(folder / name)) == (after.get(name), digest)
    }


def untouched(after: Mapping[str, Stat], outputs: Mapping[str, str], since: str) -> dict[str, str]:
    """The same where a process was killed: without what was written since it began, an ISO 8601 time."""
    began = datetime.fromisoformat(since).timestamp()
    return {name: digest for name, digest in outputs.items() if name not in after or after[name][1] / 1e9 < began}


def beside(path: Path) -> Path:
    """Where the digest of a file that vouches for itself is."""
    return path.with_name(path.name + BESIDE)


def vouched_for(path: Path) -> bool:
    """Whether a file has its digest beside it, or is one."""
    return beside(path).exists() or (path.name.endswith(BESIDE) and path.with_name(path.name.removesuffix(BESIDE)).exists())


def digest_line(path: Path) -> bytes:
    """What stands beside a file: its digest and name, as sha256sum writes and checks them."""
    return f"{sha256_of(path)}  {path.name}\n".encode()


@contextlib.contextmanager
def vouched(path: Path) -> Iterator[None]:
    """Change a file in a block, one process at a time, and leave its digest beside it; for files that change at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent):
        yield
        if path.exists():
            write_atomic(beside(path), digest_line(path))


def write_vouched(path: Path, data: bytes) -> None:
    """Write a file, one process at a time, once its digest is beside it: where the file is, all is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent):
        write_atomic(beside(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode())
        write_atomic(path, data)


def append_vouched(path: Path, line: str) -> None:
    """Add a line to a file of lines, with its digest beside it."""
    with vouched(path), open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _key(path: Path) -> str:
    return os.fspath(path.absolute())


def _stat(path: Path) -> Stat:
    found = os.stat(path, follow_symlinks=False)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
