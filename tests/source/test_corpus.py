"""A corpus: found wherever it lies, read no further than asked, with a word on all that was skipped."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kyomei.config import Recipe
from kyomei.errors import DataError, RecipeError
from kyomei.source import corpus as module
from kyomei.source import stdlib
from kyomei.source.corpus import Corpus
from kyomei.source.records import Fields
from kyomei.source.stdlib import is_held_out, stdlib_documents, stdlib_files
from kyomei.source.text import Document


def test_a_folder_gives_all_files_below_it_in_an_order_of_the_seed(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for n in range(8):
        (tmp_path / "b" / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "b" / "c" / "x.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    read = {seed: [d.name for d in Corpus(str(tmp_path), seed=seed)] for seed in (0, 1)}
    expected = {*(f"b/{n}.txt" for n in range(8)), "b/c/x.jsonl:1", "b/c/x.jsonl:3"}
    assert set(read[0]) == set(read[1]) == expected and read[0] != read[1]
    assert read[0] == [d.name for d in Corpus(str(tmp_path), seed=0)]


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.txt").write_text("far")
    (tmp_path / "corpus" / "near.txt").write_text("near")
    (tmp_path / "corpus" / "sub" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "corpus" / "loop.txt").symlink_to(tmp_path / "corpus" / "loop.txt")
    corpus = Corpus(str(tmp_path / "corpus"))
    assert sorted(d.text for d in corpus) == ["far", "near"]
    assert corpus.log.skipped == {"a broken link": ["broken.txt", "loop.txt"]}


@pytest.mark.parametrize("gone", ["sub", "sub/b.txt"])
def test_what_cannot_be_looked_at_is_skipped(gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or a file whose owner takes it away while it is listed."""
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / name).write_text(name)
    stat = os.stat

    def denied(path: Any, **how: Any) -> os.stat_result:
        if Path(path) == tmp_path / gone:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", denied)
    corpus = Corpus(str(tmp_path))
    assert [d.text for d in corpus] == ["a.txt"]
    assert [reason for reason in corpus.log.skipped] == ["Permission denied"]


def test_missing_text_is_an_error_at_once(tmp_path: Path) -> None:
    for nothing in (str(tmp_path / "nowhere"), "", " ", "a\0b", "x" * 5000):
        with pytest.raises(DataError, match=r'a folder or a file of text. Found nothing at .* "stdlib"'):
            Corpus(nothing)


def test_an_empty_corpus_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"some text. Found none in .*: 0 documents. Check source.text"):
        list(Corpus(str(tmp_path)))
    (tmp_path / "x.jsonl").write_text('{"text": null}\n' * 9)
    corpus = Corpus(str(tmp_path))
    with pytest.raises(DataError, match="some text"):
        list(corpus)
    assert corpus.log.blank == 9


def test_an_endless_stream_of_blanks_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLANK_IN_A_ROW", 50)
    (tmp_path / "x.jsonl").write_text('{"text": "some"}\n' + '{"text": " "}\n' * 60)
    with pytest.raises(DataError, match=r"documents with text. Found 50 blank ones in a row, up to x.jsonl:51"):
        list(Corpus(str(tmp_path / "x.jsonl")))


def test_groups_are_read_beside_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "who": {"id": 7}}\n{"text": "b", "who": {"id": "8"}}\n{"text": "c"}\n')
    corpus = Corpus(str(tmp_path / "x.jsonl"), Fields("text", "who.id"), skip_bad_records=True)
    assert [(d.text, d.group) for d in corpus] == [("a", "7"), ("b", "8")]
    with pytest.raises(DataError, match=r"a field 'who.id' .* x.jsonl:3 with text. Set source.group_field"):
        list(Corpus(str(tmp_path / "x.jsonl"), Fields("text", "who.id")))


def test_a_mixture_is_read_in_proportion_of_its_characters(tmp_path: Path) -> None:
    for name, length in (("long", 300), ("short", 20)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{n:04} " * length}) + "\n" for n in range(3000)))
    long, short = str(tmp_path / "long.jsonl"), str(tmp_path / "short.jsonl")
    corpus = Corpus({long: 1, short: 3})
    for _ in itertools.takewhile(lambda _: corpus.log.characters < 200_000, corpus):
        pass
    assert corpus.log.shares[short] / corpus.log.shares.total() == pytest.approx(0.75, abs=0.02)
    assert "2 .jsonl (7" in str(corpus.log) and corpus.log.exhausted == []
    assert set(corpus.log.to_dict()["characters_by_address"]) == {long, short}
    assert len(list(Corpus({long: 1, short: 3}))) == 6000  # one that ends leaves the rest to the other


def test_a_mixture_has_positive_weights() -> None:
    assert Recipe().with_values({"source.text": {"a": 0.7, "b": 0.3}}).source.address == "0.7 × a, 0.3 × b"
    for bad in ({}, {"a": 0}, {"a": -1.0}, {"a": float("inf")}, {"a": float("nan")}):
        with pytest.raises(RecipeError, match=r"source.text"):
            Recipe().with_values({"source.text": bad})


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    fake = types.ModuleType("datasets")
    fake.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_without_the_datasets_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"Found no datasets. Run `pip install 'kyomei\[datasets\]'`, or save"):
        list(Corpus("datasets:some/corpus"))


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("a/b", {"split": "train"}),
        ("a/b:en", {"config": "en", "split": "train"}),
        ("a/b:en:validation", {"config": "en", "split": "validation"}),
        ("a/b::test@abc", {"split": "test", "revision": "abc"}),
        ("a/b@v1", {"split": "train", "revision": "v1"}),
    ],
)
def test_data_sets_are_streamed_by_name_configuration_split_and_revision(
    monkeypatch: pytest.MonkeyPatch, address: str, asked: dict[str, str]
) -> None:
    def load(name: str, *config: str, **options: Any) -> list[dict[str, str]]:
        options |= dict(zip(["config"], config, strict=False))
        assert (name, options) == ("a/b", {"streaming": True, "trust_remote_code": False, **asked})
        return [{"body": "one"}, {"body": "two"}]

    fake_datasets(monkeypatch, load)
    read = [(d.name, d.text) for d in Corpus(f"datasets:{address}", Fields("body"))]
    assert read == [("a/b:0", "one"), ("a/b:1", "two")]


def test_a_data_set_that_fails_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> Iterator[dict[str, Any]]:
        if name == "missing":
            raise RuntimeError("no such dataset\nat all")
        broken = [{"text": "a"}, OSError("reset")]
        yields: dict[str, list[Any]] = {"number": [{"text": 5}], "other": [{"body": "x"}], "breaks": broken}

        def records() -> Iterator[dict[str, Any]]:
            for record in yields[name]:
                if isinstance(record, Exception):
                    raise record
                yield record

        return records()

    fake_datasets(monkeypatch, load)
    for name, said in (
        ("missing", r"the dataset missing. Found RuntimeError: no such dataset"),
        ("number", "Found int in number:0"),
        ("other", "Found other:0 with body"),
        ("breaks", r"datasets:breaks to be readable to its end. Found OSError: reset"),
    ):
        with pytest.raises(DataError, match=said) as error:
            list(Corpus(f"datasets:{name}"))
        assert "\n" not in str(error.value)


def test_no_more_of_a_stream_is_read_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    given = itertools.count()
    fake_datasets(monkeypatch, lambda *_, **__: ({"text": f"record {n}"} for n in given))
    assert len(list(itertools.islice(Corpus("datasets:endless"), 7))) == 7
    assert next(given) == 7


def test_the_standard_library_knows_what_the_model_never_saw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stdlib, "EMBEDDED", tmp_path)
    files = stdlib_files()[:40]
    monkeypatch.setattr(stdlib, "stdlib_files", lambda: files)
    by_hash = {d.name: d.held_out for d in Corpus("stdlib")}
    assert by_hash == {name: is_held_out(name) for name in by_hash}
    assert 0 < sum(by_hash.values()) < len(by_hash)
    listed = min(by_hash)
    (tmp_path / "held_out.json").write_text(json.dumps([listed]))
    assert [d.name for d in Corpus("stdlib") if d.held_out] == [listed]


def test_a_held_out_text_that_the_model_saw_by_another_name_is_not_held_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stdlib, "EMBEDDED", tmp_path)
    (tmp_path / "held_out.json").write_text(json.dumps(["a", "b"]))
    for name, body in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).write_text(body)
    monkeypatch.setattr(stdlib, "stdlib_files", lambda: [(name, tmp_path / name) for name in "abc"])
    assert stdlib_documents() == [Document("a", "one"), Document("b", "two", held_out=True), Document("c", "one")]


def test_the_standard_library_leaves_out_tests_and_packages() -> None:
    names = [name for name, _ in stdlib_files()]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
