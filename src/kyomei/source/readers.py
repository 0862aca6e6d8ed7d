"""Formats of text: one reader for each, from an open file to a stream of records."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from kyomei.errors import DataError
from kyomei.source.files import TextFile, decoded, lines_of, naming, undecodable
from kyomei.source.records import MOST_CHARACTERS, Fields, RecordError, UnreadableFile, without_field

Records = Iterator[tuple[str, Any]]
"""(name of the record, the record, a text, or the RecordError that stands in its place)."""

_DELIMITERS = (",", ";", "\t", "|")
_PARQUET_ROWS = 256
_JSON_CHARACTERS = 1 << 16
_IGNORED_IN_JSON = re.compile(r"[\s,]*")
_MAGIC = {b"%PDF": "a PDF", b"\x89PNG": "a picture", b"PK\x03\x04": "a zip archive", b"PAR1": "Parquet by another ending"}
_LFS_POINTER = "version https://git-lfs.github.com/spec/"
_HEAD_CHARACTERS = 8192
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_SHARE = 0.02
_NUMBERS = re.compile(r"[\s\d.,;|+eE-]*\d[,;|\t][\s\d.,;|+eE-]*")
_CELL = re.compile(r"\s*\"?\w[\w.-]{0,40}\"?\s*")


def read_file(file: TextFile, fields: Fields) -> Records:
    """The records of a file, by its ending; a file of no known ending is one text, if it is text at all.

    Raises:
        UnreadableFile: before the first record: it is of a kind that is not read, or lacks the field.
        DataError: it is damaged, or not what its ending says; the file is named.
    """
    if file.ending in REFUSED:
        what, do = REFUSED[file.ending]
        raise UnreadableFile(file.name, what, do)
    reader = READERS.get(file.ending, _plain)
    if reader is _parquet and file.compression:
        raise UnreadableFile(file.name, f"Parquet inside {file.compression}", "decompress it: Parquet is compressed already")
    with naming(file.name), file.open() as opened:
        yield from reader(opened, file.name, fields)


def _plain(file: io.BufferedReader, name: str, fields: Fields) -> Records:
    """A whole text."""
    head = file.peek(8192)[:8192]
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is not None:
        raise UnreadableFile(name, kind, "convert it to text first")
    stream = decoded(file)
    if stream.encoding == "utf-8-sig" and b"\0" in head:
        raise UnreadableFile(name, "binary", "convert it to text first")
    text = stream.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise UnreadableFile(name, "larger than a document may be", "cut it into documents, such as records of a .jsonl file")
    if "\0" in text or undecodable(text):
        raise UnreadableFile(name, "binary, or text in another encoding than UTF-8", "convert it to UTF-8 if it is text")
    kind, do = _by_another_ending(text, name, fields)
    if kind:
        raise UnreadableFile(name, kind, do)
    yield name, text


def _by_another_ending(text: str, name: str, fields: Fields) -> tuple[str, str]:
    """What a text is that is no document, and what to do; two empty words if it may be one."""
    first = text[: text.find("\n") + 1] or text
    head = text[:_HEAD_CHARACTERS]
    if text.startswith("{") and isinstance(_parsed(first, name), dict):
        return "JSON lines by another ending", "rename it to .jsonl"
    if text.startswith(_LFS_POINTER):
        return "a pointer to a file that was not fetched", "run `git lfs pull`"
    if len(_CONTROL.findall(head)) > _CONTROL_SHARE * len(head):
        return "binary: control characters", "give text"
    if _NUMBERS.fullmatch(head):
        return "a table of numbers", "give text"
    for delimiter in _DELIMITERS:
        # One line alone may be a sentence; a header has a row below it.
        cells = first.strip().split(delimiter)
        is_header = len(cells) > 1 and all(map(_CELL.fullmatch, cells))
        if is_header and fields.text in (cell.strip(' "') for cell in cells) and delimiter in text[len(first) :]:
            return "a table by another ending", "rename it to .csv or .tsv"
    return "", ""


def _json_lines(file: io.BufferedReader, name: str, fields: Fields) -> Records:
    """One JSON value a line."""
    for number, line in enumerate(lines_of(decoded(file, newline="\n"), name), start=1):
        if not line.isspace():
            yield f"{name}:{number}", _parsed(line, f"{name}:{number}")


def _parsed(line: str, where: str) -> Any:
    if not line.isascii() and undecodable(line):
        return RecordError("text in UTF-8", f"other bytes in {where}")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return RecordError("one JSON object a line", f"{where}: {error}", "correct that line, or --skip-bad-records")


def _json(file: io.BufferedReader, name: str, fields: Fields) -> Records:
    """An array of records, one record, or one after the other."""
    for number, value in enumerate(_json_values(decoded(file), name), start=1):
        yield f"{name}:{number}", value


def _json_values(stream: TextIO, name: str) -> Iterator[Any]:
    """The elements of an array, or the values that follow one another, with no more in memory than one of them."""
    decoder = json.JSONDecoder()
    buffer, at, number, in_array = "", 0, 0, False
    while True:
        at = _IGNORED_IN_JSON.match(buffer, at).end()  # type: ignore[union-attr]
        if at < len(buffer):
            if buffer[at] == "[" and not number and not in_array:
                in_array, at = True, at + 1
                continue
            if buffer[at] == "]" and in_array:
                return
        value, stop, wrong = _decoded_value(decoder, buffer, at)
        if stop is not None and stop < len(buffer):
            number, at = number + 1, stop
            yield value
            continue
        # The value may go on past what was read: of a long one, twice as much is read each time.
        more = "" if len(buffer) - at > MOST_CHARACTERS else stream.read(max(_JSON_CHARACTERS, len(buffer) - at))
        if not more:
            if stop is not None:
                yield value
            if in_array or (at < len(buffer) and stop is None):
                found = f"{name}: {wrong or 'an array without an end'}, in value {number + 1}"
                raise DataError("JSON: an array of records, a record, or one a line", found, "correct the file")
            return
        if undecodable(more):
            raise DataError("text in UTF-8", f"other bytes in {name}, after value {number}", "save it as UTF-8")
        buffer, at = buffer[at:] + more, 0


def _decoded_value(decoder: json.JSONDecoder, buffer: str, at: int) -> tuple[Any, int | None, str]:
    """A value and where it ends; or what is wrong with it, unless reading on may help.

    Raises:
        ValueError: it is no JSON, however it goes on.
    """
    if at >= len(buffer):
        return None, None, ""
    try:
        return *decoder.raw_decode(buffer, at), ""
    except json.JSONDecodeError as error:
        may_go_on = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
        if not may_go_on:
            raise ValueError(f"no JSON: {error.msg} at {buffer[error.pos : error.pos + 20]!r}") from error
        return None, None, error.msg


def _table(*delimiters: str) -> Callable[[io.BufferedReader, str, Fields], Records]:
    """A reader of separated values with a line of names first; the first delimiter that yields the field is taken."""

    def read(file: io.BufferedReader, name: str, fields: Fields) -> Records:
        csv.field_size_limit(MOST_CHARACTERS)
        lines = lines_of(decoded(file, newline=""), name)
        first = next(lines, None)
        if first is None:
            return
        headers = [(delimiter, next(csv.reader([first], delimiter=delimiter), [])) for delimiter in delimiters]
        fitting = [(delimiter, header) for delimiter, header in headers if fields.text in header]
        if not fitting:
            raise _lacks(name, fields, headers[0][1])
        delimiter, header = fitting[0]
        rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
        next(rows)
        for number, row in enumerate(rows, start=1):
            where = f"{name}:{number}"
            if any(map(undecodable, row)):
                yield where, RecordError("text in UTF-8", f"other bytes in {where}")
            elif row:
                yield where, dict(zip(header, row, strict=False))

    return read


def _lacks(name: str, fields: Fields, found: list[str]) -> UnreadableFile:
    expected, there, do = without_field(name, fields.text, found)
    return UnreadableFile(name, there.removeprefix(f"{name} ") + f", without '{fields.text}'", do, expected)


def _parquet(file: io.BufferedReader, name: str, fields: Fields) -> Records:
    """The rows of a Parquet file; only the columns that are wanted are read, a few rows at a time."""
    if not file.peek(1):
        raise UnreadableFile(name, "empty", "write it again")
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise DataError("a Parquet file", f"{name}: {error}", "write it again, or rename it") from error
    names = table.schema_arrow.names
    wanted = [field for field in (fields.text, fields.group) if field is not None]
    if any(field not in names and field.split(".")[0] not in names for field in wanted[:1]):
        raise _lacks(name, fields, names)
    number = 0
    for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=None if fields.every else wanted):
        columns = {column: _values(batch.column(i)) for i, column in reversed(list(enumerate(batch.schema.names)))}
        for row in range(batch.num_rows):
            record = {column: values[row] for column, values in columns.items()}
            wrong = next((value for value in record.values() if isinstance(value, UnicodeError)), None)
            where = f"{name}:{number}"
            yield where, record if wrong is None else RecordError("text in UTF-8", f"other bytes in {where}")
            number += 1


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; a UnicodeError in the place of one that is not UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeError as error:
        return error


READERS: dict[str, Callable[[io.BufferedReader, str, Fields], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table(*_DELIMITERS),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".parq": _parquet,
    ".pq": _parquet,
    ".txt": _plain,
    ".md": _plain,
}
"""Ending, in lower case, to what reads such files."""

_EXTRACT, _CONVERT, _UNPACK = "extract its text first", "convert it to .parquet or .jsonl", "unpack it first"
REFUSED = {
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".ps"), ("a document for printing", _EXTRACT)),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("a web page with its markup", _EXTRACT)),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), ("a spreadsheet", _CONVERT)),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ("an Arrow file", _CONVERT)),
    **dict.fromkeys((".avro", ".orc", ".db", ".sqlite", ".h5", ".hdf5", ".lance"), ("a database", _CONVERT)),
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth", ".bin", ".safetensors", ".gguf", ".pkl"), ("binary: numbers", "give text")),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp3", ".wav", ".mp4"), ("no text", "give text")),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".z", ".lz4", ".br"), ("a compressed archive", _UNPACK)),
}
"""Ending, in lower case, to (what such a file is, what to do): binary kinds, and text that is mostly markup."""
