"""A record of a corpus to its document: where the text stands in it, and what is no text."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from kyomei.errors import DataError
from kyomei.source.chat import chat_text
from kyomei.source.text import Document

MOST_CHARACTERS = 1 << 28
"""Longest document; more is rather a corpus in one piece, and would have to be held in memory."""
_NO_CHARACTERS = re.compile("[\0\ud800-\udfff]")
_SKIP = "correct that record, or leave such records out with --skip-bad-records"


class RecordError(DataError):
    """One record is unusable; those after it may be fine."""

    def __init__(self, expected: str, found: str, do: str = _SKIP) -> None:
        super().__init__(expected, found, do)


class UnreadableFile(DataError):
    """A whole file is of a kind that is not read.

    Attributes:
        reason: a few words for a list of skipped files.
    """

    def __init__(self, name: str, reason: str, do: str, expected: str = "files of text or records") -> None:
        super().__init__(expected, f"{name}, {reason}", do)
        self.reason = reason


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what.

    Args:
        text: its text or chat messages; "a.b" is the field b of the record in field a.
        group: what documents of one origin share, such as a conversation or a repository; none: each stands alone.
        every: whether all other fields of a record are read as well.
    """

    text: str = "text"
    group: str | None = None
    every: bool = False


_ABSENT = object()


def document_of(name: str, record: Any, fields: Fields, tokenizer: Any, strip_bos: bool) -> tuple[Document, bool]:
    """The document of one record, and whether characters of it had to be replaced.

    A bare string is its own text. NUL and lone surrogates, which are no text, become U+FFFD.

    Args:
        name: of the record, for errors and provenance.
        record: what a reader gave: a record, a text, or the RecordError that stands in its place.
        fields: where the text is.
        tokenizer: its chat template turns messages into text.
        strip_bos: whether windows begin with BOS anyway, so that the template's own is one too many.

    Raises:
        RecordError: the record has no such field, or there is something else than text or chat messages in it.
    """
    if isinstance(record, RecordError):
        raise record
    value = _field(record, fields.text) if isinstance(record, dict) else record
    if value is _ABSENT:
        raise RecordError(*without_field(name, fields.text, list(record)))
    text = _text(name, value, fields.text, tokenizer, strip_bos)
    if len(text) > MOST_CHARACTERS:
        raise RecordError(f"documents of at most {MOST_CHARACTERS:,} characters", f"{len(text):,} in {name}")
    clean = _NO_CHARACTERS.sub("\ufffd", text.removeprefix("\ufeff"))
    return Document(name, clean, group=_group(name, record, fields.group)), "\ufffd" in clean and clean != text


def without_field(name: str, field: str, fields: list[Any]) -> tuple[str, str, str]:
    """What to say where a record or a table lacks a field: what was expected, what is there, what to do."""
    names = [" ".join(str(key).split())[:40] for key in fields[:100]]
    near = difflib.get_close_matches(field, names, n=1)
    do = f"did you mean source.text_field '{near[0]}'" if near else "set source.text_field to the one that holds the text"
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"a field '{field}' in every record", f"{name} with {listed or 'no field'}", do


def _field(record: dict[Any, Any], field: str) -> Any:
    if field in record:
        return record[field]
    value: Any = record
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def _text(name: str, value: Any, field: str, tokenizer: Any, strip_bos: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    expected = f"text or chat messages in '{field}'"
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            raise RecordError(expected, f"token ids in {name}", "give the text that the ids stand for")
        if value and all(isinstance(item, str) for item in value):
            raise RecordError(expected, f"a list of texts in {name}", "join them to one text, or make each a record")
        try:
            return chat_text(value, tokenizer, strip_bos)
        except ValueError as error:
            raise RecordError("chat messages that the model's template takes", f"{error}, in {name}") from error
    raise RecordError(expected, f"{type(value).__name__} in {name}", "set source.text_field to the one that holds the text")


def _group(name: str, record: Any, field: str | None) -> str | None:
    if field is None or not isinstance(record, dict):
        return None
    value = _field(record, field)
    if value is _ABSENT:
        expected, found, _ = without_field(name, field, list(record))
        raise RecordError(expected, found, "set source.group_field to a field that every record has")
    if isinstance(value, dict | list) or value is None:
        raise RecordError(f"a name or a number in '{field}'", f"{type(value).__name__} in {name}")
    return str(value)
