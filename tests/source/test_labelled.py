"""Labelled text is the same in every format; a text is one document, and has one value for a goal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kyomei.errors import DataError
from kyomei.source.labelled import LabelledFile, Labels

RECORDS = [
    {"text": "first", "label": 1, "stars": 4.5, "group": "a"},
    {"text": "second, with a comma", "label": 0, "stars": 1.0, "group": "a"},
    {"text": "  ", "label": 0, "stars": 1.0, "group": "b"},
    {"text": "third", "label": 0, "stars": 2.0, "group": ""},
]


def written(path: Path, records: list[dict[str, Any]]) -> LabelledFile:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return LabelledFile(path)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_every_format_says_the_same(ending: str, tmp_path: Path) -> None:
    file = written(tmp_path / f"spam.v1{ending}", RECORDS)
    alone = Labels.read(file)
    assert list(alone.goals) == ["spam"] and [float(value) for value in alone.goals["spam"]] == [1, 0, 0]
    assert alone.groups == ["a", "a", None] and len(set(alone.texts)) == 3
    several = Labels.read(file, ("label", "stars"))
    assert [float(value) for value in several.goals["stars"]] == [4.5, 1.0, 2.0] and list(several.goals) == ["label", "stars"]
    assert [document.text for document, _ in file.records()] == ["first", "second, with a comma", "third"]


def test_records_may_name_their_goal(tmp_path: Path) -> None:
    records = [
        {"text": "x", "goal": "rude", "label": 1},
        {"text": "x", "goal": "long", "label": 0},
        {"text": "y", "goal": "long", "score": 3},
    ]
    found = Labels.read(written(tmp_path / "all.jsonl", records))
    assert found.goals == {"rude": [1, None], "long": [0, 3]} and len(found.texts) == 2
    assert Labels.read(written(tmp_path / "all.jsonl", records), ("rude",)).goals == {"rude": [1, None]}


@pytest.mark.parametrize(
    ("records", "goals", "words"),
    [
        ([{"text": "x", "kind": 1}], (), r'"kind".*--goal'),
        (RECORDS, ("colour",), "values of 'colour'"),
        ([{"text": "x", "label": 1}, {"text": "x", "label": 0}], (), "1 and 0 for one text"),
        ([{"body": "x", "label": 1}], (), r"'text'.*--text-field"),
        ([{"text": " ", "label": 1}], (), "no record"),
    ],
)
def test_what_cannot_be_read_is_named(
    records: list[dict[str, Any]], goals: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        Labels.read(written(tmp_path / "f.jsonl", records), goals)


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words of no record")
    with pytest.raises(DataError, match="no record in"):
        Labels.read(LabelledFile(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="none at"):
        Labels.read(LabelledFile(tmp_path / "b.jsonl"))
