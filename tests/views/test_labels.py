"""Labels are entries that nobody overwrites: what holds is the newest of each author, and merging is a union."""

from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.views.samples import HOSTILE

from kyomei.errors import DataError, RunError
from kyomei.views.labels import Label, Labels
from kyomei.views.strings import LANGUAGES, STRINGS, catalogue


def label(latent: int = 3, words: str = "colons", **more: Any) -> Label:
    return Label.new(**{"dictionary": "replicas-0", "digest": "ab", "latent": latent, "label": words, "author": "ann", **more})


def said(labels: Labels, latent: int | None = None) -> list[tuple[int, str, str]]:
    return [(entry.latent, entry.author, entry.label) for entry in labels.of("replicas-0", "ab", latent)]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(tmp_path / "explore" / "labels.sqlite")


def test_the_newest_entry_of_each_author_holds(labels: Labels) -> None:
    assert said(labels) == [] and list(labels.exported()) == []
    labels.add(label(words="colon"))
    labels.add(label(words="colons that open blocks"))
    labels.add(label(words="':' before a newline", author="ben"))
    labels.add(label(5, "names"))
    assert said(labels) == [(3, "ben", "':' before a newline"), (3, "ann", "colons that open blocks"), (5, "ann", "names")]
    assert said(labels, 5) == [(5, "ann", "names")]
    labels.add(label(words=""))
    assert said(labels, 3) == [(3, "ben", "':' before a newline")]
    assert len(list(labels.exported())) == 5


def test_an_automatic_label_stands_beside_that_of_a_person(labels: Labels) -> None:
    labels.add(label(words="by hand"))
    labels.add(label(words="by a model", kind="automatic", score=0.8, null_score=0.5, source="m at http://localhost:1"))
    hand, model = labels.of("replicas-0", "ab")
    assert (hand.kind, model.kind, model.score, model.null_score) == ("manual", "automatic", 0.8, 0.5)


def test_another_dictionary_of_the_same_name_has_no_labels(labels: Labels) -> None:
    labels.add(label())
    assert labels.of("replicas-0", "cd") == [] and labels.of("replicas-1", "ab") == []
    assert labels.stale("replicas-0", "cd") == 1 and labels.stale("replicas-0", "ab") == 0


def test_search_takes_text_as_text(labels: Labels) -> None:
    labels.add(label(1, "100% sure_thing", note="Ärger in der Straße"))
    labels.add(label(2, "other"))
    for text, latents in (("%", [1]), ("_", [1]), ("STRASSE", [1]), ("' OR 1=1 --", []), ("", []), ("OTHER", [2])):
        assert labels.found("replicas-0", "ab", text) == latents, text


def test_merging_is_a_union_in_any_order(tmp_path: Path) -> None:
    ann, ben = Labels(tmp_path / "a.sqlite"), Labels(tmp_path / "b.sqlite")
    ann.add(label(words="first"))
    ben.add(label(words="second", author="ben"))
    both = [*ann.exported(), "", *ben.exported()]
    assert ann.merge(reversed(both)) == {"added": 1, "known": 1}
    assert ben.merge(both) == {"added": 1, "known": 1}
    assert ann.merge(both) == {"added": 0, "known": 2}
    assert list(ann.exported()) == list(ben.exported())
    assert said(ann) == said(ben)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"latent": 1}',
        '{"dictionary": "d", "digest": "x", "latent": 1, "label": "no time"}',
        json.dumps({**label().to_dict(), "latent": -1}),
        json.dumps({**label().to_dict(), "latent": True}),
        json.dumps({**label().to_dict(), "kind": "official"}),
        json.dumps({**label().to_dict(), "score": "high"}),
        json.dumps({**label().to_dict(), "time": "yesterday"}),
        json.dumps({**label().to_dict(), "label": "x" * 201}),
        json.dumps({**label().to_dict(), "more": 1}),
    ],
)
def test_a_file_with_a_wrong_line_changes_nothing(labels: Labels, line: str) -> None:
    good = json.dumps(label().to_dict())
    with pytest.raises(DataError, match="line 2"):
        labels.merge([good, line])
    assert said(labels) == []


def test_what_turns_or_hides_text_is_taken_out_and_markup_stays_text(labels: Labels) -> None:
    entry = labels.add(label(words=f"a\x00b\u202ec\n{HOSTILE}"[:200], note="line\nline\x1b[31m"))
    assert entry.label.startswith("abc <script>") and "\u202e" not in entry.label
    assert entry.note == "line\nline[31m"
    assert labels.of("replicas-0", "ab")[0].label == entry.label


def test_many_writers_lose_nothing(labels: Labels) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: labels.add(label(i, f"label {i}")), range(60)))
    assert len(said(labels)) == 60


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can be written"):
        Labels(tmp_path / "file" / "labels.sqlite").add(label())
    (tmp_path / "labels.sqlite").write_text("no database at all, but long enough to be looked at" * 9)
    with pytest.raises(RunError, match=r"labels\.sqlite"):
        Labels(tmp_path / "labels.sqlite").of("replicas-0", "ab")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_reading_does_not_write(labels: Labels) -> None:
    labels.add(label())
    labels.path.parent.chmod(0o500)
    try:
        assert len(said(labels)) == 1
        with pytest.raises(RunError):
            labels.add(label(4))
    finally:
        labels.path.parent.chmod(0o700)


def test_labels_are_read_again_only_when_somebody_changed_them(labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    labels.add(label(words="old"))
    assert said(labels) == [(3, "ann", "old")]
    before = labels.path.stat()
    Labels(labels.path).add(label(words="new"))
    os.utime(labels.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert labels.path.stat().st_size == before.st_size and said(labels) == [(3, "ann", "new")]
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: pytest.fail("read again"))
    assert said(labels) == [(3, "ann", "new")] and labels.found("replicas-0", "ab", "NEW") == [3]


def test_a_reader_holds_a_file_that_it_cannot_change(labels: Labels) -> None:
    labels.add(label())
    with labels._reading() as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        assert connection is not None
        connection.execute("DELETE FROM labels")


# ── Words ──


def test_both_languages_say_everything_with_the_same_places() -> None:
    import string

    def places(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, (english, japanese) in STRINGS.items():
        assert english and japanese and places(english) == places(japanese), key
    assert [set(catalogue(language)) for language in LANGUAGES] == [set(STRINGS)] * 2
    with pytest.raises(DataError):
        catalogue("xx")
