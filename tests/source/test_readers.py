"""Readers: every format record by record, what is no text by name, and nothing but KyomeiError from any bytes."""

from __future__ import annotations

import bz2
import contextlib
import datetime
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyomei.errors import AddressError, DataError, KyomeiError
from kyomei.source import readers, records
from kyomei.source.corpus import Corpus
from kyomei.source.files import _DECOMPRESSORS
from kyomei.source.readers import READERS, REFUSED
from kyomei.source.records import Fields

TEXTS = ["the first text", "zweiter, mit Umlaut: ü", 'a "third" one\nof two lines', "犬と猫 🦊"]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def numpy_file(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    write = np.savez_compressed if compressed else np.save
    write(buffer, np.random.default_rng(0).standard_normal((40, 5)))
    return buffer.getvalue()


def separated(delimiter: str, texts: list[str] = TEXTS) -> bytes:
    rows = "".join(delimiter.join((str(n), '"' + t.replace('"', '""') + '"')) + "\r\n" for n, t in enumerate(texts))
    return (delimiter.join(("id", "text")) + "\r\n" + rows).encode()


def lines(texts: list[str] = TEXTS, **dump: Any) -> bytes:
    return "".join(json.dumps({"id": n, "text": t}, **dump) + "\n" for n, t in enumerate(texts)).encode()


RECORD_FILES: dict[str, bytes] = {
    "x.jsonl": lines(),
    "X.JSONL": lines(ensure_ascii=False),
    "x.ndjson": b"\n \n".join(lines().split(b"\n")),
    "lines.json": lines(),
    "pretty.json": b"".join(json.dumps({"text": t}, indent=2).encode() for t in TEXTS),
    "array.json": json.dumps([{"text": t} for t in TEXTS], indent=1).encode(),
    "strings.json": json.dumps(TEXTS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(),
    "utf16.jsonl": lines(ensure_ascii=False).decode().encode("utf-16"),
    "utf16.json": json.dumps([{"text": t} for t in TEXTS], ensure_ascii=False).encode("utf-16"),
    "x.csv": separated(","),
    "bom.csv": b"\xef\xbb\xbf" + separated(","),
    "semicolons.csv": separated(";"),
    "x.TSV": separated("\t"),
    "x.parquet": parquet(pa.table({"id": range(4), "text": TEXTS})),
    "x.parq": parquet(pa.table({"text": pa.array(TEXTS, pa.large_string())})),
    "codes.parquet": parquet(pa.table({"text": pa.array(TEXTS).dictionary_encode()})),
    "twice.parquet": parquet(pa.Table.from_arrays([pa.array(TEXTS)] * 2, names=["text", "text"])),
    "x.jsonl.gz": gzip.compress(lines()),
    "two-members.jsonl.gz": gzip.compress(lines(TEXTS[:2])) + gzip.compress(lines(TEXTS[2:])),
    "x.csv.bz2": bz2.compress(separated(",")),
    "x.json.XZ": lzma.compress(lines()),
    "x.jsonl.zst": zstd(lines()),
    "two-frames.jsonl.zst": zstd(lines(TEXTS[:2])) + zstd(lines(TEXTS[2:])),
}
with contextlib.suppress(AttributeError, pa.ArrowNotImplementedError):  # older pyarrows write no such column
    RECORD_FILES["view.parquet"] = parquet(pa.table({"text": pa.array(TEXTS).cast(pa.string_view())}))


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def texts_of(address: Any, **options: Any) -> list[str]:
    return [document.text for document in Corpus(address, **options)]


@pytest.mark.parametrize("name", RECORD_FILES)
def test_records_are_read_one_by_one(tmp_path: Path, name: str) -> None:
    address = write(tmp_path, name, RECORD_FILES[name])
    assert texts_of(address) == TEXTS
    assert texts_of(str(tmp_path)) == TEXTS
    names = [document.name for document in Corpus(address)]
    assert len(set(names)) == 4 and all(n.startswith(f"{name}:") for n in names)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.parquet"])
def test_a_nested_field_is_reached_by_dots(tmp_path: Path, name: str) -> None:
    nested = [{"meta": {"text": t, "n": 1}, "a.b": "no"} for t in TEXTS]
    content = parquet(pa.Table.from_pylist(nested)) if name.endswith("parquet") else json.dumps(nested[0]).encode()
    address = write(tmp_path, name, content)
    assert texts_of(address, fields=Fields("meta.text"))[0] == TEXTS[0]
    assert texts_of(address, fields=Fields("a.b"))[0] == "no"
    with pytest.raises(DataError, match=r"text or chat messages in 'meta'. Found dict in x"):
        texts_of(address, fields=Fields("meta"))
    with pytest.raises(DataError, match=r"a field 'meta.txt' in every record"):
        texts_of(address, fields=Fields("meta.txt"))


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.TXT", "README", "code.py", "x.txt.gz", "x.md.zst", "notes.bz2"])
def test_other_text_is_one_document(tmp_path: Path, name: str) -> None:
    body = "first line\r\nzweite: ü 🦊\n{not a record}"
    pack = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    assert texts_of(write(tmp_path, name, pack(body.encode()))) == [body.replace("\r\n", "\n")]
    assert texts_of(write(tmp_path, name, pack(body.encode("utf-16")))) == [body.replace("\r\n", "\n")]
    assert texts_of(write(tmp_path, name, pack(b"\xef\xbb\xbf" + body.encode()))) == [body.replace("\r\n", "\n")]


@pytest.mark.parametrize(
    "body",
    [
        "text, and more text\nin a second line, with a comma",
        "Title\n\n1,2,3\nand words",
        "a | b | text",
        "3.14159 is a number\n",
        "3.1415926535\n8979323846\n",
        "\x1b[1mbold\x1b[0m and a form feed\f",
        "one bell \a in a long enough line of plain text, which is no reason to refuse it",
    ],
)
def test_text_that_looks_a_little_like_a_table_is_text(tmp_path: Path, body: str) -> None:
    assert texts_of(write(tmp_path, "x.txt", body.encode())) == [body]


BINARY = bytes(range(128, 255)) * 40
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "x.pdf": (b"%PDF-1.4\n" + BINARY, "Extract its text"),
    "renamed.txt": (b"%PDF-1.4\ntext", "a PDF"),
    "x.png": (b"\x89PNG\r\n", "no text"),
    "x.html": (b"<html><body><p>text</p></body></html>", "web page"),
    "x.arrow": (b"ARROW1\0\0", "Convert it to .parquet"),
    "x.npy": (b"\x93NUMPY", "binary"),
    "x.zip": (b"PK\x03\x04", "Unpack"),
    "unknown": (b"some text and a \0 byte", "binary"),
    "unknown.bin2": (BINARY, "binary"),
    "latin.txt": ("Müller".encode("latin-1"), "UTF-8"),
    "nul-later.txt": (b"x" * 10_000 + b"\0", "binary"),
    "records.txt": (lines(), "rename it to .jsonl"),
    "table.txt": (separated(","), "rename it to .csv"),
    "table": (separated("\t"), "rename it to .csv or .tsv"),
    "numbers.txt": (b"1.5,2,-3e4\n" * 900, "a table of numbers"),
    "array.dat": (numpy_file(), "binary"),
    "archive.txt": (numpy_file(compressed=True), "zip"),
    "matrix.txt": (safetensors.torch.save({"x": torch.ones(40)}), "binary"),
    "control.txt": (bytes(range(1, 128)) * 9, "control characters"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "x.parquet.gz": (gzip.compress(RECORD_FILES["x.parquet"]), "Decompress it"),
    "other.parquet": (parquet(pa.table({"label": [1, 2]})), "with label"),
    "other.csv": (b"id,label\n1,2\n", "with id, label"),
    "empty.parquet": (b"", "empty"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_text_is_refused_by_name_and_skipped_in_folders(tmp_path: Path, name: str) -> None:
    content, said = UNREADABLE[name]
    address = write(tmp_path, name, content)
    with pytest.raises(DataError, match=name) as refused:
        texts_of(address)
    assert said.lower() in str(refused.value).lower()
    with pytest.raises(DataError, match=rf"some text. Found none in .*skipped 1 file \(.*\): {name}"):
        texts_of(str(tmp_path))
    write(tmp_path, "good.txt", b"good")
    corpus = Corpus(str(tmp_path))
    assert [document.text for document in corpus] == ["good"]
    (skipped,) = corpus.log.to_dict()["skipped"].values()
    assert skipped == {"files": 1, "first": [name]} and name in str(corpus.log)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(lines() * 50)[:-20]),
        ("cut.jsonl.zst", zstd(lines() * 50)[:-5]),
        ("no.jsonl.gz", b"plain"),
        ("no.jsonl.xz", b"plain"),
        ("no.jsonl.bz2", b"plain"),
        ("no.jsonl.zst", b"plain"),
        ("no.parquet", b"plain"),
        ("cut.parquet", RECORD_FILES["x.parquet"][:-9]),
        ("cut.json", RECORD_FILES["array.json"][:-9]),
        ("open.json", b'[{"text": "a"}, {"text": "b"}'),
        ("cut.json", b'{"text": "abc'),
        ("words.json", b'{"text": oops}'),
        ("odd.utf16.jsonl", b"\xff\xfe{"),
        ("quotes.csv", b'id,text\n1,"' + b"x" * 70_000),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_CHARACTERS", 60_000)
    with pytest.raises(DataError, match=name):
        texts_of(write(tmp_path, name, content))


BAD_RECORDS: dict[str, tuple[str, str]] = {
    "oops": ("{oops", r"one JSON object a line. Found x.jsonl:2"),
    "near": ('{"txt": "x"}', r"a field 'text' .* Found x.jsonl:2 with txt. Did you mean .*'txt'"),
    "other": ('{"body": "x"}', r"with body. Set source.text_field"),
    "none": ("{}", "with no field"),
    "number": ('{"text": 3}', "Found int in x.jsonl:2"),
    "ids": ('{"text": [3, 4]}', "Found token ids in x.jsonl:2"),
    "texts": ('{"text": ["a", "b"]}', "Found a list of texts in x.jsonl:2"),
    "mixed": (
        '{"text": ["a", {}]}',
        "template takes. Found a list of something else, in x.jsonl:2",
    ),
    "bare": ("7", "Found int in x.jsonl:2"),
    "latin": ('{"text": "Müller"}', "text in UTF-8. Found other bytes in x.jsonl:2"),
    "deep": ("[" * 100_000, "Found x.jsonl:2"),
    "digits": ('{"text": ' + "9" * 10_000 + "}", "x.jsonl:2"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_is_named_or_counted(tmp_path: Path, kind: str) -> None:
    line, message = BAD_RECORDS[kind]
    encoded = line.encode("latin-1" if kind == "latin" else "utf-8")
    address = write(tmp_path, "x.jsonl", b'{"text": "fine"}\n' + encoded + b'\n{"text": "fine too"}\n')
    with pytest.raises(DataError, match=message):
        texts_of(address)
    corpus = Corpus(address, skip_bad_records=True)
    assert [document.text for document in corpus] == ["fine", "fine too"]
    assert corpus.log.num_bad_records == 1 and "x.jsonl:2" in str(corpus.log)
    assert "x.jsonl:2" in corpus.log.to_dict()["bad_records"]["first"][0]


def test_bytes_dates_and_numbers_in_a_column_are_refused(tmp_path: Path) -> None:
    columns = [b"bytes"], [datetime.date(2026, 1, 1)], [1.5], [[1, 2]], [{"text": "x"}]
    for number, column in enumerate(columns):
        address = write(tmp_path, f"{number}.parquet", parquet(pa.table({"text": column})))
        with pytest.raises(DataError, match=rf"{number}.parquet:0"):
            texts_of(address)


def test_text_that_is_no_unicode_is_replaced_and_counted(tmp_path: Path) -> None:
    content = b'{"text": "cut \\ud83d emoji"}\n{"text": "a \\u0000 byte"}\n{"text": "\\ufeffplain"}\n'
    corpus = Corpus(write(tmp_path, "x.jsonl", content))
    assert [document.text for document in corpus] == ["cut \ufffd emoji", "a \ufffd byte", "plain"]
    assert corpus.log.replaced == 2 and "replaced NUL or surrogates in 2 documents" in str(corpus.log)


def test_a_column_with_bytes_that_are_no_text_names_its_row(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")])
    address = write(tmp_path, "x.parquet", parquet(pa.table({"text": bad})))
    with pytest.raises(DataError, match=r"other bytes in x.parquet:1"):
        texts_of(address)
    assert texts_of(address, skip_bad_records=True) == ["ok"]


def test_names_that_are_no_text_are_written_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"text")
    (document,) = Corpus(str(tmp_path))
    assert document.name == "caf\\xe9.txt"


def test_values_larger_than_the_buffer_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_JSON_CHARACTERS", 5)
    for name in ("array.json", "pretty.json", "strings.json"):
        assert texts_of(write(tmp_path, name, RECORD_FILES[name])) == TEXTS
    monkeypatch.setattr(readers, "MOST_CHARACTERS", 100)
    with pytest.raises(DataError, match=r"long.json"):
        texts_of(write(tmp_path, "long.json", json.dumps([{"text": "x" * 400}]).encode()))


def test_a_document_too_long_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_CHARACTERS", 100)
    monkeypatch.setattr(records, "MOST_CHARACTERS", 100)
    for name, content in (("x.txt", b"y" * 101), ("x.jsonl", lines(["y" * 101])), ("x.csv", b"text\n" + b"y" * 101 + b"\n")):
        with pytest.raises(DataError, match=name):
            texts_of(write(tmp_path, name, content))


# What any bytes may become: files of every ending, with a start that fits it now and then.
_endings = sorted({*READERS, *list(REFUSED)[:4], "", ".unknown"})
_packings: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    **{f"{ending} ": bytes for ending in _DECOMPRESSORS},
}
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("text"), inner, max_size=3),
    max_leaves=6,
)
_records = st.lists(st.fixed_dictionaries({"text": _values}) | _values, max_size=4)
_contents = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass")),
    _records.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    _records.map(lambda rows: json.dumps(rows).encode("utf-16")),
    st.tuples(st.sampled_from(sorted(RECORD_FILES)), st.integers(0, 400), st.binary(max_size=3)).map(
        lambda cut: RECORD_FILES[cut[0]][: cut[1]] + cut[2] + RECORD_FILES[cut[0]][cut[1] + len(cut[2]) :]
    ),
)
_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), content=_contents, skip=st.booleans(), name=_names, direct=st.booleans())
def test_only_named_errors_come_out_of_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, content: bytes, skip: bool, name: str, direct: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    packing = data.draw(st.sampled_from(sorted(_packings)))
    path = folder / (name.strip(".") + data.draw(st.sampled_from(_endings)) + packing.strip())
    try:
        path.write_bytes(_packings[packing](content))
    except OSError:
        return  # a name that this file system does not take
    field = data.draw(st.sampled_from(["text", "a.b", ""]))
    try:
        for document in Corpus(str(path) if direct else str(folder), Fields(field, data.draw(st.sampled_from([None, "g"])))):
            document.text.encode()
            document.name.encode()
            assert "\0" not in document.text
    except KyomeiError as error:
        str(error).encode()


@settings(max_examples=200, deadline=None)
@given(record=_values, field=st.text(max_size=5) | st.just("text"))
def test_only_named_errors_come_out_of_any_record(record: Any, field: str) -> None:
    try:
        document, _ = records.document_of("x:1", record, Fields(field), None, False)
        document.text.encode()
    except KyomeiError as error:
        assert "x:1" in str(error)


@settings(max_examples=100, deadline=None)
@given(address=st.text(max_size=30) | st.sampled_from(["x://y", "memory://", "s3:/", "datasets:", "/dev/null", "a" * 5000]))
def test_only_named_errors_come_out_of_any_address(address: str) -> None:
    try:
        Corpus(address)
    except KyomeiError as error:
        assert "Expected" in str(error)


def test_files_elsewhere_are_read_through_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for name, content in (("x.jsonl.gz", RECORD_FILES["x.jsonl.gz"]), ("deep/er/x.parquet", RECORD_FILES["x.parquet"])):
        memory.pipe(f"/corpus/{name}", content)
    memory.pipe("/corpus/.hidden/x.txt", b"no")
    memory.pipe("/corpus/a.png", b"\x89PNG")
    assert texts_of("memory://corpus/x.jsonl.gz") == TEXTS
    corpus = Corpus("memory://corpus")
    assert sorted(document.text for document in corpus) == sorted(TEXTS * 2)
    assert corpus.log.to_dict()["files"] == {".jsonl (decompressed from .gz)": 1, ".parquet": 1}
    assert {document.name for document in Corpus("memory://corpus/deep")} == {f"er/x.parquet:{n}" for n in range(4)}
    with pytest.raises(DataError, match=r"text at memory://nowhere. Found FileNotFoundError"):
        Corpus("memory://nowhere")
    with pytest.raises(AddressError, match=r"nosuch://x to answer. Found ValueError: Protocol not known.*Check the address"):
        Corpus("nosuch://x")


def test_a_missing_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(AddressError, match=r"a driver for s3://bucket/x. Found ImportError: Install s3fs to access S3. Insta"):
        Corpus("s3://bucket/x")
