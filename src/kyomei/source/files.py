"""Files of a corpus on this machine or elsewhere: found, opened, decompressed and decoded."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import importlib
import io
import lzma
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa

from kyomei.errors import DataError, KyomeiError, in_one_line
from kyomei.source.records import MOST_CHARACTERS, UnreadableFile
from kyomei.stores import answering

_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def _zstandard(file: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(pa.input_stream(file, compression="zstd"))


_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
    ".zstd": _zstandard,
}


@dataclass(frozen=True)
class TextFile:
    """One file of a corpus.

    Args:
        name: what to call it; always encodable.
        opened: opens it for reading bytes.
    """

    name: str
    opened: Callable[[], BinaryIO]

    @property
    def compression(self) -> str:
        """Its last ending, in lower case, if that names a compression; else empty."""
        ending = PurePosixPath(self.name).suffix.lower()
        return ending if ending in _DECOMPRESSORS else ""

    @property
    def ending(self) -> str:
        """The ending, in lower case, that names its format; empty if there is none."""
        return PurePosixPath(self.name[: len(self.name) - len(self.compression)]).suffix.lower()

    @property
    def kind(self) -> str:
        """Its endings, for a list of what was read."""
        return f"{self.ending or 'without ending'}{f' (decompressed from {self.compression})' if self.compression else ''}"

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Its content, decompressed.

        Raises:
            UnreadableFile: it cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.opened())
                if self.compression:
                    file = stack.enter_context(_DECOMPRESSORS[self.compression](file))
            except OSError as error:
                raise UnreadableFile(self.name, error.strerror or str(error), "check the file and its permissions") from error
            # Buffered readers of gzip, bz2 and lzma have `peek`, but give a byte at a time where a stream just began.
            yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(Any, file))


def local_file(path: Path, name: str) -> TextFile:
    """A file on this machine; bytes of a name that are not UTF-8 are written as \\xff."""
    return TextFile(os.fsencode(name).decode("utf-8", "backslashreplace"), lambda: path.open("rb"))


def local_files(folder: Path, skip: Callable[[str, str], None]) -> list[TextFile]:
    """Every file below a folder, in name order, through links as well but each folder once; hidden ones are left out.

    Args:
        folder: where to look.
        skip: called with (name, reason) for what cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    files = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=lambda e: skip(_shown(e.filename), str(e.strerror))):
        status = _status(root, _shown(root), skip)
        if status is None or (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith("."):
                file = local_file(path, path.relative_to(folder).as_posix())
                status = _status(path, file.name, skip)
                if status is not None and stat.S_ISREG(status.st_mode):
                    files.append(file)
                elif status is not None:
                    skip(file.name, "no ordinary file")
    return files


def _status(path: str | Path, name: str, skip: Callable[[str, str], None]) -> os.stat_result | None:
    """What stands at a path, behind a link as well; of what cannot be looked at, such as a folder that another process has just
    deleted or a link into somebody else's, the reason goes to skip."""
    try:
        return os.stat(path)
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path)
        skip(name, "a broken link" if broken else str(error.strerror))
    return None


def _shown(name: Any) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def remote_files(address: str) -> tuple[list[TextFile], bool]:
    """The file at an fsspec address such as s3://bucket/folder, or all below it in name order; and whether it is a folder.

    Raises:
        DataError: nothing is there.
        AddressError: there is no driver for it, or it does not answer.
    """
    try:
        with answering(address, FileNotFoundError):
            fsspec: Any = importlib.import_module("fsspec")
            system, path = fsspec.core.url_to_fs(address)
            if system.info(path)["type"] != "directory":
                return [TextFile(PurePosixPath(path).name, lambda: system.open(path, "rb"))], False
            found = sorted(system.find(path))
    except FileNotFoundError as error:
        do = "check the address, the network and your credentials"
        raise DataError(f"text at {address}", in_one_line(error), do) from error
    root = path.rstrip("/") + "/"

    def opener(place: str) -> Callable[[], BinaryIO]:
        return lambda: cast(BinaryIO, system.open(place, "rb"))

    names = {place: place.removeprefix(root) for place in found}
    visible = [place for place in found if not any(part.startswith(".") for part in names[place].split("/"))]
    return [TextFile(names[place], opener(place)) for place in visible], True


def decoded(file: io.BufferedReader, newline: str | None = None) -> TextIO:
    """The text of a file: UTF-16 and UTF-32 by their byte-order mark, else UTF-8.

    Bytes that are not UTF-8 become lone surrogates, so that a reader can name the record they stand in (`undecodable`).
    """
    head = file.peek(4)[:4]
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline)


def undecodable(text: str) -> bool:
    """Whether a decoded text has bytes in it that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def lines_of(stream: TextIO, name: str) -> Iterator[str]:
    """Lines with their ends, none longer than a document may be.

    Raises:
        DataError: a line is longer.
    """
    while line := stream.readline(MOST_CHARACTERS + 1):
        if len(line) > MOST_CHARACTERS:
            raise DataError(
                f"lines of at most {MOST_CHARACTERS:,} characters", f"a longer one in {name}", "cut it into records"
            )
        yield line


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside the block into a DataError that names what was read.

    Decompressors, Arrow, codecs and the drivers of remote files raise kinds of their own.
    """
    try:
        yield
    except KyomeiError:
        raise
    except Exception as error:
        do = "write it again, or check that it was copied whole"
        raise DataError(f"{name} to be readable to its end", in_one_line(error), do) from error
