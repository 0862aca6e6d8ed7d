"""Where rows and tokens of a harvest lie: a folder here, or an fsspec address such as s3://bucket/folder. Torch-free.

Files of an address are copied to this machine as they are wanted (`Copies`) and checked against their SHA-256 when they come.
Where there is no room for a copy, ranges are read.
"""

from __future__ import annotations

import bisect
import contextlib
import fnmatch
import hashlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias, TypeVar, final

from kyomei.atomic import (
    TEMPORARY,
    appearing,
    make_folder,
    refusal_of,
    refusals_named,
    remove,
    remove_temporaries,
    sha256_of,
    sync_file,
    write_atomic,
)
from kyomei.errors import AddressError, DataError, KyomeiError, RunError, in_one_line

T = TypeVar("T")

CACHE, CACHE_GB = "KYOMEI_CACHE", "KYOMEI_CACHE_GB"
"""Names of what the environment says of copies: their folder, and how many GB they may take."""
USUAL_GB = 20.0
GAP_BYTES = 64 << 10
"""Ranges that are so near to each other are one request: it takes longer to ask than to read so much."""
_PIECE_BYTES = 8 << 20
_STALE_SECONDS = 3600
AGAIN = "check the address, the network and your credentials, then give the same command again, with --resume where it has that"


class StoredFile(Protocol):
    """One file of a store, whose bytes do not change."""

    def size(self) -> int:
        """In bytes."""

    def cut(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of some spans, from the first of each to before its last, in order of places; fewer where the file ends."""

    def opened(self, how: Callable[[Path], T]) -> T:
        """What a function makes of the file, or of its copy on this machine; the copy may be gone once that returns."""


class Store(Protocol):
    """A folder of files, named by paths relative to it."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""

    def __truediv__(self, name: str) -> Store: ...

    def prepare(self) -> None:
        """Make the folder where it is not there, and remove what killed processes were writing in it."""

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def names(self, pattern: str) -> list[str]:
        """What is there by a pattern such as */index.json, in order."""

    def read(self, name: str) -> bytes:
        """The content of a small file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file so that a reader, or a crash, sees all of it or what was there before."""

    def put(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Write a file, given in pieces, whose digest is written elsewhere once it is whole; a crash may leave a part of it."""

    def clear(self, *names: str) -> None:
        """Remove files, and folders with all that is in them, where they are there."""

    def differing(self, files: Mapping[str, str]) -> list[str]:
        """Those of some files, by SHA-256, that are gone or other than they were; at an address, only those that are gone."""

    def sha256(self, name: str) -> str:
        """Of a file as it is now."""

    def file(self, name: str, sha256: str) -> StoredFile:
        """One file of a known digest."""


StoreLike: TypeAlias = Store | str | Path


def store_at(place: StoreLike) -> Store:
    """The store in a folder, or at an address, which has :// in it; a store as it is."""
    if isinstance(place, str | Path):
        return RemoteStore(place) if isinstance(place, str) and "://" in place else LocalStore(Path(place))
    return place


# ── On this machine ──


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    def cut(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found = []
        with open(self.path, "rb", buffering=0) as file:
            for first, last in spans:
                file.seek(first)
                found.append(file.read(last - first))
        return found

    def opened(self, how: Callable[[Path], T]) -> T:
        return how(self.path)


@final
@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine."""

    folder: Path
    is_here = True

    def __str__(self) -> str:
        return str(self.folder)

    def __truediv__(self, name: str) -> LocalStore:
        return LocalStore(self.folder / name)

    def prepare(self) -> None:
        make_folder(self.folder)
        remove_temporaries(self.folder)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def names(self, pattern: str) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.folder / name, data)

    def put(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        with appearing(self.folder / name) as file:
            for piece in pieces:
                file.write(piece)

    def clear(self, *names: str) -> None:
        with refusals_named(self.folder):
            for name in names:
                remove(self.folder / name)

    def differing(self, files: Mapping[str, str]) -> list[str]:
        return [name for name, digest in files.items() if not self.has(name) or self.sha256(name) != digest]

    def sha256(self, name: str) -> str:
        return sha256_of(self.folder / name)

    def file(self, name: str, sha256: str) -> LocalFile:
        return LocalFile(self.folder / name)


# ── At an address ──


@contextlib.contextmanager
def answering(address: str, *passed: type[Exception], into: Path | None = None) -> Iterator[None]:
    """Turn whatever a driver of fsspec raises, but for some kinds, into an error that names the address, or the file here.

    Raises:
        AddressError: there is no driver, or the address does not answer.
        RunError: the disk is full, or there is no permission.
    """
    try:
        yield
    except KyomeiError:
        raise
    except ImportError as error:
        raise AddressError(f"a driver for {address}", in_one_line(error), "install the package it names with pip") from error
    except Exception as error:  # every driver raises kinds of its own: no such bucket, no credentials, no network
        if isinstance(error, passed):
            raise
        refusal = refusal_of(error, into or address) if isinstance(error, OSError) else None
        raise refusal or AddressError(f"{address} to answer", in_one_line(error), AGAIN) from error


@final
class Copies:
    """Whole files of addresses in a folder of this machine, by their SHA-256; those not used for longest make room.

    Args:
        folder: where; only its owner can read it.
        most_bytes: that they take; one that is larger is there alone.
    """

    def __init__(self, folder: Path, most_bytes: float) -> None:
        self.folder, self.most_bytes = folder, most_bytes

    @classmethod
    def of_environment(cls) -> Copies:
        """As KYOMEI_CACHE and KYOMEI_CACHE_GB say; else 20 GB in the user's cache.

        Raises:
            RunError: KYOMEI_CACHE_GB is no positive number.
        """
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kyomei"
        said = os.environ.get(CACHE_GB, str(USUAL_GB))
        try:
            most = float(said)
        except ValueError:
            most = 0.0
        if not most > 0:
            raise RunError(f"GB for copies of rows in {CACHE_GB}", repr(said), f"say a number such as {CACHE_GB}=50")
        return cls(Path(os.environ.get(CACHE) or usual), most * 1e9)

    def path(self, sha256: str) -> Path:
        """Where the copy of a file is, if there is one."""
        return self.folder / sha256

    def fetch(self, sha256: str, size: int, get: Callable[[Path], None]) -> bool:
        """Copy a file that is not there, whose bytes `get` writes; whether they are the right ones. Others are not kept.

        Raises:
            RunError: the disk is full.
        """
        self._make_room(size)
        temporary = self.folder / f".{sha256}-{threading.get_ident()}.{os.getpid()}.tmp"
        try:
            with refusals_named(temporary):
                get(temporary)
                if sha256_of(temporary) != sha256:
                    return False
                sync_file(temporary)  # it is not looked at again: its name says that it is whole
                os.replace(temporary, self.path(sha256))
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def drop(self, sha256: str) -> None:
        """Remove the copy of a file, if there is one."""
        self.path(sha256).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        make_folder(self.folder)
        with contextlib.suppress(PermissionError):
            self.folder.chmod(0o700)
        held, now = [], time.time()
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                if TEMPORARY.fullmatch(entry.name) and now - stat.st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)
                elif not TEMPORARY.fullmatch(entry.name):
                    held.append((stat.st_mtime, stat.st_size, entry.path))
        too_much = sum(taken for _, taken, _ in held) + size - self.most_bytes
        for _, taken, path in sorted(held):
            if too_much <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            too_much -= taken


@final
class RemoteStore:
    """A folder at an fsspec address; drivers and their settings are fsspec's.

    Args:
        address: such as s3://bucket/folder.

    Raises:
        AddressError: from every method, where the address does not answer; nothing is taken for missing then.
    """

    is_here = False

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        with self._answering():
            fsspec: Any = importlib.import_module("fsspec")
            self.system, self._root = fsspec.core.url_to_fs(self.address)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> RemoteStore:
        return RemoteStore(f"{self.address}/{name}")

    def at(self, name: str) -> str:
        """Path of a file as the driver knows it."""
        return f"{self._root.rstrip('/')}/{name}" if name else str(self._root)

    def _answering(self, *passed: type[Exception], into: Path | None = None) -> contextlib.AbstractContextManager[None]:
        return answering(self.address, *passed, into=into)

    def prepare(self) -> None:
        with self._answering():
            self.system.makedirs(self.at(""), exist_ok=True)
        self.clear(*(name for name in self._listed("") if TEMPORARY.fullmatch(name)))

    def has(self, name: str) -> bool:
        # `exists` of many drivers says no to whatever goes wrong.
        with self._answering():
            self.system.invalidate_cache()
            try:
                self.system.info(self.at(name))
            except FileNotFoundError:
                return False
            return True

    def names(self, pattern: str) -> list[str]:
        *folders, last = pattern.split("/")
        found = [""]
        for part in folders:
            found = [f"{at}{name}/" for at in found for name in self._matching(at, part, "directory")]
        return sorted(f"{at}{name}" for at in found for name in self._matching(at, last, "file"))

    def _matching(self, at: str, pattern: str, kind: str) -> list[str]:
        if "*" not in pattern:
            return [pattern] if kind == "directory" or self.has(at + pattern) else []
        return [name for name, found in self._listed(at).items() if found == kind and fnmatch.fnmatchcase(name, pattern)]

    def _listed(self, at: str) -> dict[str, str]:
        """Name and type of what is in a folder."""
        # `glob`, `find` and `walk` take a folder that cannot be listed for an empty one.
        with self._answering():
            self.system.invalidate_cache()
            try:
                found = self.system.ls(self.at(at.rstrip("/")), detail=True)
            except FileNotFoundError:
                return {}
        return {PurePosixPath(entry["name"]).name: str(entry["type"]) for entry in found}

    def read(self, name: str) -> bytes:
        with self._answering(FileNotFoundError):
            content: bytes = self.system.cat_file(self.at(name))
            return content

    def write(self, name: str, data: bytes) -> None:
        path = PurePosixPath(name)
        temporary = str(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
        with self._answering():
            self.system.pipe_file(self.at(temporary), data)
            self.system.mv(self.at(temporary), self.at(name))

    def put(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        with self._answering():
            self.system.pipe_file(self.at(name), b"".join(pieces))

    def clear(self, *names: str) -> None:
        for name in names:
            if self.has(name):
                with self._answering():
                    self.system.rm(self.at(name), recursive=True)

    def differing(self, files: Mapping[str, str]) -> list[str]:
        folders = {str(PurePosixPath(name).parent).removeprefix(".") for name in files}
        there = {str(PurePosixPath(folder, name)) for folder in folders for name in self._listed(folder)}
        return [name for name in files if name not in there]

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._answering(FileNotFoundError), self.system.open(self.at(name), "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def file(self, name: str, sha256: str) -> RemoteFile:
        return RemoteFile(self, name, sha256, Copies.of_environment())

    def size_of(self, name: str) -> int:
        """Bytes of a file."""
        with self._answering(FileNotFoundError):
            return int(self.system.info(self.at(name))["size"])

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Some ranges of a file."""
        firsts, lasts = [first for first, _ in spans], [last for _, last in spans]
        with self._answering(FileNotFoundError):
            path = self.at(name)
            return list(self.system.cat_ranges([path] * len(spans), firsts, lasts, on_error="raise"))

    def get(self, name: str, path: Path) -> None:
        """Copy a file to this machine."""
        with self._answering(FileNotFoundError, into=path):
            self.system.get_file(self.at(name), str(path))


@final
@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, or its copy on this machine where there is one."""

    store: RemoteStore
    name: str
    sha256: str
    copies: Copies

    def __str__(self) -> str:
        return f"{self.store}/{self.name}"

    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return LocalFile(self.copies.path(self.sha256)).size()
        return self.store.size_of(self.name)

    def cut(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        with contextlib.suppress(FileNotFoundError):
            return LocalFile(self.copies.path(self.sha256)).cut(spans)
        # Of a span of nothing some drivers make a request for all.
        wholes = _joined([(first, last) for first, last in spans if first < last])
        starts, read = [first for first, _ in wholes], self.store.ranges(self.name, wholes)
        found = []
        for first, last in spans:
            number = bisect.bisect_right(starts, first) - 1
            found.append(read[number][first - starts[number] : last - starts[number]] if first < last else b"")
        return found

    def opened(self, how: Callable[[Path], T]) -> T:
        """What a function makes of the copy, which is fetched where it is not there.

        Raises:
            DataError: it is not what was written.
        """
        path = self.copies.path(self.sha256)
        while True:
            # Another process may make room between its coming and its opening.
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
                return how(path)
            if not self.copies.fetch(self.sha256, self.size(), lambda to: self.store.get(self.name, to)):
                do = "delete it there, then harvest again with --resume"
                raise DataError(f"{self.name} as it was written", f"other bytes (sha256 differs) at {self.store}", do)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in fewer ranges: near ones together."""
    found: list[tuple[int, int]] = []
    for first, last in spans:
        if found and first - found[-1][1] <= GAP_BYTES:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
