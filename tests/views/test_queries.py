"""Queries give what the tables hold; what is asked is never part of a query, and no other file can be read."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from kyomei.errors import DataError
from kyomei.runs import Run
from kyomei.views import queries
from kyomei.views.queries import SORTS, Index


@pytest.fixture(scope="module")
def index(indexed: Run) -> Iterator[Index]:
    held = Index(indexed.path("explore/replicas-0"))
    yield held
    held.close()


def test_the_overview_counts_every_latent_once(index: Index) -> None:
    found = index.overview()
    json.dumps(found, allow_nan=False)
    assert sum(found["status"].values()) == found["width"] == 64
    assert found["live"] == sum(bin_["count"] for bin_ in found["frequencies"]) == sum(found["origin"].values())
    assert sum(found["origin_certified"].values()) == found["status"].get("certified", 0)
    assert found["certificate_state"] == "holds" and "features" not in found["certificate"]
    assert found["mapped"] and found["documents"] > 1 and "made_from" not in found


def test_pages_together_are_the_whole_list(index: Index) -> None:
    pages = [index.features(page=(number, 10)) for number in range(1, 8)]
    latents = [row["latent"] for page in pages for row in page["rows"]]
    assert sorted(latents) == list(range(64)) and {page["total"] for page in pages} == {64}
    assert index.features(page=(99, 10))["rows"] == []


@pytest.mark.parametrize("key", SORTS)
@pytest.mark.parametrize("descending", [False, True])
def test_every_order(index: Index, key: str, descending: bool) -> None:
    rows = index.features(order=(key, descending), page=(1, 100))["rows"]
    values = [index.feature(row["latent"])[key] for row in rows]  # type: ignore[index]
    known = [value for value in values if value is not None]
    assert values[: len(known)] == known, "none comes last"
    if key != "status":
        assert known == sorted(known, reverse=descending)


def test_filters_are_what_they_say(index: Index) -> None:
    everything = index.features(page=(1, 100))["rows"]
    for status in {row["status"] for row in everything}:
        found = index.features(status=[status], page=(1, 100))["rows"]
        assert found == [row for row in everything if row["status"] == status]
    middle = sorted(row["frequency"] for row in everything)[32]
    low = index.features(frequency=(None, middle), page=(1, 100))["rows"]
    high = index.features(frequency=(middle, None), page=(1, 100))["rows"]
    assert {r["latent"] for r in low} | {r["latent"] for r in high} == set(range(64))
    assert all(row["frequency"] <= middle for row in low) and all(row["frequency"] >= middle for row in high)
    assert [row["latent"] for row in index.features(latents=[5, 3], order=("latent", False))["rows"]] == [3, 5]
    kinds = index.features(origin=["token"], page=(1, 100))["rows"]
    assert all(row["origin"] == "token" for row in kinds)


def test_text_is_found_whatever_its_case(index: Index) -> None:
    row = next(row for row in index.features(page=(1, 100))["rows"] if any(t.strip().isalpha() for t in row["top_tokens"]))
    token = next(t.strip() for t in row["top_tokens"] if t.strip().isalpha())
    for asked in (token, token.upper(), f" {token.lower()} "):
        assert row["latent"] in index.matching(q=asked)
    assert index.matching(q="7") and 7 in index.matching(q="7")
    assert index.matching(q="no such words anywhere", named=[9, 2]) == [2, 9]


@pytest.mark.parametrize(
    "asked",
    [
        "'; DROP TABLE features; --",
        "' OR '1'='1",
        '" OR ""="',
        "%",
        "_____",
        "x'; COPY features TO '/tmp/stolen.csv'; --",
        "')) UNION SELECT * FROM read_csv('/etc/passwd') --",
        "\x00",
        "\\",
        "{{7*7}}",
        "9" * 40,
    ],
)
def test_what_is_asked_is_text_and_nothing_else(index: Index, asked: str) -> None:
    plain = asked.strip().lower()
    expected = [n for n in range(64) if plain in index.feature(n)["token_text"]]  # type: ignore[index]
    assert index.matching(q=asked) == expected
    assert index.matching(status=[asked]) == [] and index.matching(origin=[asked]) == []
    assert index.examples(0, asked) == []
    with pytest.raises(DataError, match="an order among"):
        index.features(order=(asked, False))
    assert index.overview()["width"] == 64


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{folder}/index.json')",
        "COPY features TO '{folder}/copied.parquet'",
        "ATTACH '{folder}/other.db'",
        "SET enable_external_access = true",
        "SET threads = 8",
        "INSTALL httpfs",
    ],
)
def test_no_query_reaches_another_file(index: Index, query: str) -> None:
    with pytest.raises(duckdb.Error):
        index._connection.execute(query.format(folder=index.folder))


def test_examples_come_strongest_first(index: Index) -> None:
    latent = index.features(order=("frequency", True), page=(1, 1))["rows"][0]["latent"]
    both = index.examples(latent)
    assert both == index.examples(latent, "top") + index.examples(latent, "decile")
    strongest = index.examples(latent, "top")
    assert [e["rank"] for e in strongest] == list(range(len(strongest)))
    assert {e["decile"] for e in index.examples(latent, "decile", 4)} == {4}
    first = strongest[0]
    assert index.example(latent, first["example"]) == first
    assert index.example(latent, -5) is None and index.feature(64) is None and index.examples(64) == []


def test_the_examples_of_all_are_those_of_each(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LATENTS_AT_ONCE", 7)
    found = list(index.examples_of_all())
    assert [latent for latent, _ in found] == list(range(64))
    assert all(examples == index.examples(latent) for latent, examples in found)
    assert any(examples for _, examples in found)


def test_a_document_is_shown_around_an_example(index: Index) -> None:
    example = index.examples(index.features(page=(1, 1))["rows"][0]["latent"], "top")[0]
    text = "".join(example["tokens"])
    found = index.document(example["document"], example["start"], 2 * len(text))
    assert found is not None and found["name"] == example["document_name"]
    offset = example["start"] - found["start"]
    assert found["text"][offset : offset + len(text)] == text
    assert index.document(10**6) is None
    assert len(index.document(example["document"], 0, 10**9)["text"]) <= 20_000  # type: ignore[index]


def test_the_map_has_every_live_latent(index: Index) -> None:
    columns = index.map()
    assert len(columns["latent"]) == index.overview()["live"] and len({len(column) for column in columns.values()}) == 1
    json.dumps(columns, allow_nan=False)


def test_many_threads_ask_at_once(index: Index) -> None:
    expected, wrong = index.features(page=(1, 100)), []

    def ask(latent: int) -> None:
        for _ in range(10):
            if index.features(page=(1, 100)) != expected or index.feature(latent)["latent"] != latent:  # type: ignore[index]
                wrong.append(latent)

    threads = [threading.Thread(target=ask, args=(latent,)) for latent in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_no_whole_index_is_refused(indexed: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        Index(tmp_path)
    copy = Path(shutil.copytree(indexed.path("explore/replicas-0"), tmp_path / "it's a 'copy'"))
    assert Index(copy).overview()["width"] == 64
    held = (copy / "features.parquet").read_bytes()
    (copy / "features.parquet").write_bytes(held[:-8] + b"\0" * 8)
    with pytest.raises(DataError, match=r"features\.parquet"):
        Index(copy)
