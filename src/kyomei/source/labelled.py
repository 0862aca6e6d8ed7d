"""Labelled text: records of a file with a text, what is known of it, and perhaps a group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.atomic import sha256_of
from kyomei.errors import DataError
from kyomei.source.files import local_file
from kyomei.source.readers import read_file
from kyomei.source.records import Fields, RecordError, document_of
from kyomei.source.text import Document

LABEL, SCORE, GOAL = "label", "score", "goal"
"""Columns with a meaning of their own: what is known of a text, and which goal that is about."""


@dataclass(frozen=True)
class LabelledFile:
    """A file of labelled text; its texts are read twice, and never held together.

    Args:
        path: .jsonl, .ndjson, .json, .csv, .tsv or .parquet, also compressed.
        text_field: column of the text.
        group_field: column of what keeps documents together; of a name that no record has: each stands alone.
        tokenizer: of the model; its chat template turns messages into text.
        strip_bos: whether windows begin with BOS anyway.
    """

    path: Path
    text_field: str = "text"
    group_field: str = "group"
    tokenizer: Any = None
    strip_bos: bool = False

    def records(self) -> Iterator[tuple[Document, dict[str, Any]]]:
        """Every record that has a text: the document, with its group, and its other columns.

        Raises:
            DataError: there is no such file, or a record in it cannot be read.
        """
        if not self.path.is_file():
            raise DataError("a file of labelled text", f"none at {self.path}", "name a .jsonl, .csv or .parquet file")
        fields = Fields(self.text_field, every=True)
        for name, record in read_file(local_file(self.path, self.path.name), fields):
            if not isinstance(record, dict | RecordError):
                expected = f"records with '{self.text_field}' and a label or a score"
                raise DataError(expected, f"no record in {name}", "give a .jsonl, .csv or .parquet file")
            document = self._document(name, record, fields)
            if document.text.strip():
                assert isinstance(record, dict)
                others = {key: value for key, value in record.items() if key not in (self.text_field, self.group_field)}
                group = record.get(self.group_field)
                known = None if group is None or group == "" else str(group)
                yield Document(document.name, document.text, group=known), others

    def _document(self, name: str, record: Any, fields: Fields) -> Document:
        try:
            return document_of(name, record, fields, self.tokenizer, self.strip_bos)[0]
        except RecordError as error:
            do = "correct that record, or name the column of the text with --text-field"
            raise DataError(error.expected, error.found, do) from error

    def sha256(self) -> str:
        """Digest of the file."""
        return sha256_of(self.path)


@dataclass(frozen=True, eq=False)
class Labels:
    """What a file says of its texts.

    Attributes:
        texts: digest of every distinct text, in the order in which it first comes; a text in several records is one document.
        groups: of each text; none: it stands alone.
        goals: by name, of each text its value, as the file has it; none: it has none for this goal.
    """

    texts: list[str]
    groups: list[str | None]
    goals: dict[str, list[Any]]

    @classmethod
    def read(cls, file: LabelledFile, goals: tuple[str, ...] = ()) -> Labels:
        """Read a file once.

        Each goal has a column, or its records name it in the column "goal" and say "label" or "score". Without a column
        "goal" and without `goals`, the columns "label" and "score" are taken; one alone is called as the file is.

        Args:
            file: what to read.
            goals: columns, or names in the column "goal"; empty: all that are there.

        Raises:
            DataError: a record cannot be read, a goal is not there, or one text has two values for one goal.
        """
        numbers: dict[str, int] = {}
        groups: list[str | None] = []
        values: dict[str, dict[int, Any]] = {}
        columns: dict[str, None] = {}
        for document, record in file.records():
            digest = digest_of(document.text)
            at = numbers.setdefault(digest, len(numbers))
            if at == len(groups):
                groups.append(document.group)
            columns.update(dict.fromkeys(record))
            for name, value in _said(record, goals).items():
                if value is None or value == "":
                    continue
                if values.setdefault(name, {}).setdefault(at, value) != value:
                    found = f"{values[name][at]!r} and {value!r} for one text, again in {document.name}"
                    raise DataError(f"one value of '{name}' for a text", found, "correct the file, or leave one of them out")
        _require(file, list(columns), values, goals)
        if GOAL not in columns and not goals and len(values) == 1:
            values = {_stem(file.path): next(iter(values.values()))}
        return cls(list(numbers), groups, {name: [own.get(at) for at in range(len(groups))] for name, own in values.items()})


def digest_of(text: str) -> str:
    """What stands for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _said(record: dict[str, Any], goals: tuple[str, ...]) -> dict[str, Any]:
    """The values of one record by goal."""
    if GOAL in record and not any(name in record for name in goals):
        name = str(record[GOAL])
        value = record.get(LABEL, record.get(SCORE))
        return {name: value} if not goals or name in goals else {}
    return {name: record[name] for name in (goals or (LABEL, SCORE)) if name in record}


def _require(file: LabelledFile, columns: list[str], values: dict[str, dict[int, Any]], goals: tuple[str, ...]) -> None:
    """Raise DataError unless every goal that is asked for has a value, and there is one."""
    missing = [name for name in goals if name not in values]
    if missing or not values:
        found = f"{json.dumps(columns, ensure_ascii=False)} in {file.path}" if columns else f"no record in {file.path}"
        expected = f"values of '{missing[0]}'" if missing else "a column 'label' or 'score', or one that is named"
        raise DataError(expected, found, "name the columns that are goals with --goal, one for each")


def _stem(path: Path) -> str:
    """A file's name without its endings."""
    return path.name.split(".")[0] or path.name
