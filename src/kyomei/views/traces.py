"""Does a file have anything of a document in it? Every format that a run may hold is decoded before it is searched."""

from __future__ import annotations

import contextlib
import html
import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int64
from safetensors import safe_open

LENGTH = 8
"""Tokens in a row that show where a text comes from."""
_LETTERS = 8
_PIECE = re.compile(r"\w+|[^\w\s]")
_SPACES = re.compile(r"\s+")
_TAG = re.compile(r"<[^>]*>")
_MULTIPLIERS = np.array([pow(1_000_003, power, 2**61 - 1) for power in range(LENGTH)], dtype=np.int64)


@final
class Trace:
    """What tells a document: its stretches of eight tokens, as texts and as ids.

    Args:
        texts: of the documents looked for.
        spans: their tokens in order, as texts, in stretches that follow each other.
        ids: the ids of the same stretches.
        others: texts and ids of all other documents: what stands there, too, tells nothing.
    """

    def __init__(
        self,
        texts: Iterable[str],
        spans: Iterable[list[str]],
        ids: Iterable[Int64[np.ndarray, " n"]],
        others: tuple[list[str], list[Int64[np.ndarray, " n"]]] = ([], []),
    ) -> None:
        self._by_start: dict[str, set[str]] = defaultdict(set)
        for pieces in spans:
            for first in range(len(pieces) - LENGTH + 1):
                self._learn("".join(pieces[first : first + LENGTH]))
        for text in texts:
            found = [match.span() for match in _PIECE.finditer(text)]
            for first in range(len(found) - LENGTH + 1):
                self._learn(text[found[first][0] : found[first + LENGTH - 1][1]])
        self._grams = {tuple(gram) for part in ids for gram in _grams(part).tolist()}
        self._hashes = np.array(sorted({_hash(np.array(gram))[0] for gram in self._grams}), dtype=np.int64)
        self._others = others
        self._plain_others: list[str] | None = None

    def _learn(self, stretch: str) -> None:
        plain = _plain(stretch)
        if len(plain) >= _LETTERS:
            self._by_start[plain[:_LETTERS]].add(plain)

    def in_text(self, text: str) -> bool:
        """Whether a text has a stretch that is the document's alone, whatever its spaces."""
        plain = _plain(text)
        for first in range(len(plain) - _LETTERS + 1):
            for stretch in self._by_start.get(plain[first : first + _LETTERS], ()):
                if plain.startswith(stretch, first) and not self._is_others(stretch):
                    return True
        return False

    def in_ids(self, ids: Int64[np.ndarray, " n"]) -> bool:
        """Whether token ids have a stretch that is the document's alone."""
        if not len(self._hashes) or len(ids) < LENGTH:
            return False
        grams = _grams(ids)
        hits = np.flatnonzero(np.isin(_hash(grams), self._hashes))
        return any(gram in self._grams and not self._is_others_ids(gram) for gram in map(tuple, grams[hits].tolist()))

    def _is_others(self, stretch: str) -> bool:
        if self._plain_others is None:
            self._plain_others = [_plain(text) for text in self._others[0]]
        return any(stretch in text for text in self._plain_others)

    def _is_others_ids(self, gram: tuple[int, ...]) -> bool:
        wanted = np.array(gram)
        return any(len(part) >= LENGTH and bool((_grams(part) == wanted).all(axis=1).any()) for part in self._others[1])

    def in_file(self, path: Path) -> bool:
        """Whether a file has one, in any form that its format allows.

        A file of another format than its name says is searched as bytes: text in UTF-8 or UTF-16, ids as integers.
        """
        decode = _DECODERS.get(path.suffix)
        if decode is not None:
            try:
                return any(self.in_text(found) if isinstance(found, str) else self.in_ids(found) for found in decode(path))
            except Exception:
                return self._in_bytes(path.read_bytes())
        return self._in_bytes(path.read_bytes())

    def _in_bytes(self, content: bytes) -> bool:
        if any(self.in_text(content.decode(encoding, "ignore")) for encoding in ("utf-8", "utf-16-le")):
            return True
        for kind in (np.int16, np.uint16, np.int32, np.int64):
            size = np.dtype(kind).itemsize
            for first in range(size):
                count = (len(content) - first) // size
                if count and self.in_ids(np.frombuffer(content, kind, count, first).astype(np.int64)):
                    return True
        return False


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


def _grams(ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "grams 8"]:
    if len(ids) < LENGTH:
        return np.zeros((0, LENGTH), dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(np.asarray(ids, dtype=np.int64), LENGTH)


def _hash(grams: Int64[np.ndarray, "... 8"]) -> Int64[np.ndarray, " grams"]:
    with np.errstate(over="ignore"):
        found: Int64[np.ndarray, " grams"] = (np.atleast_2d(grams) * _MULTIPLIERS).sum(axis=1)
        return found


Found = str | Int64[np.ndarray, " n"]


def _json(path: Path) -> Iterator[Found]:
    yield from _of_value(json.loads(path.read_bytes()))


def _json_lines(path: Path) -> Iterator[Found]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from _of_value(json.loads(line))


def _of_value(value: Any) -> Iterator[Found]:
    """All strings of a value together, since a list of tokens is a text, each list of numbers, and each string alone."""
    strings: list[str] = []
    keys: list[str] = []
    numbers: list[list[int]] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            strings.append(value)
        elif isinstance(value, dict):
            keys.extend(map(str, value))
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            whole = [item for item in value if isinstance(item, int)]
            if len(whole) >= LENGTH:
                numbers.append(whole)
            for item in value:
                walk(item)

    walk(value)
    yield "".join(strings)
    yield from (*strings, *keys)
    yield from (np.array(each, dtype=np.int64) for each in numbers if max(map(abs, each)) < 2**62)


def _html(path: Path) -> Iterator[Found]:
    text = path.read_text(encoding="utf-8", errors="replace")
    yield html.unescape(text)
    yield html.unescape(_TAG.sub("", text))


def _text(path: Path) -> Iterator[Found]:
    yield path.read_bytes().decode("utf-8", "ignore")


def _parquet(path: Path) -> Iterator[Found]:
    held = pq.ParquetFile(path)
    for group in range(held.num_row_groups):
        for row in held.read_row_group(group).to_pylist():
            yield from _of_value(row)


def _tensors(path: Path) -> Iterator[Found]:
    with safe_open(path, framework="numpy") as held:
        yield from (held.metadata() or {}).values()
        for name in held.keys():  # noqa: SIM118  not a dict
            if held.get_slice(name).get_dtype().startswith(("I", "U")):
                yield held.get_tensor(name).astype(np.int64).ravel()


def _sqlite(path: Path) -> Iterator[Found]:
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield from _of_value([item.decode("utf-8", "ignore") if isinstance(item, bytes) else item for item in row])
    yield from _text(path)


def _duckdb(path: Path) -> Iterator[Found]:
    import duckdb

    with contextlib.closing(duckdb.connect(str(path), read_only=True)) as connection:
        for (table,) in connection.execute("SELECT table_name FROM information_schema.tables").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"').fetchall():
                yield from _of_value(list(row))


_DECODERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".html": _html,
    ".htm": _html,
    ".svg": _html,
    ".parquet": _parquet,
    ".safetensors": _tensors,
    ".sqlite": _sqlite,
    ".db": _sqlite,
    ".duckdb": _duckdb,
    **dict.fromkeys((".txt", ".md", ".csv", ".tsv", ".yaml", ".js", ".css", ".log"), _text),
}
