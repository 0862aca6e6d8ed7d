"""What is masked, what is not, and that an index shows nothing of it while tokens keep their places."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kyomei.errors import RecipeError, RunError
from kyomei.runs import Run
from kyomei.source.text import Tokens
from kyomei.stages import index as stage
from kyomei.stages.progress import Reporter
from kyomei.views.index.redaction import MASK, Redaction
from kyomei.views.queries import Index


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("e-mail", "jane.doe+spam@mail.example.co.uk"),
        ("e-mail", "日本@例え.jp"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "378282246310005"),
        ("phone", "+81 90-1234-5678"),
        ("phone", "+1 (555) 010-9999"),
        ("phone", "(555) 010-9999"),
        ("phone", "555-010-9999"),
        ("phone", "03-1234-5678"),
        ("key", "sk-proj-abcdefghijklmnopqrstuvwx0123456789"),
        ("key", "ghp_abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"),
        ("key", "AKIAIOSFODNN7EXAMPLE"),
        ("key", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
        ("key", "hf_abcdefghijklmnopqrstuvwxyzABCDEF"),
        ("key", "xoxb-123456789012-abcdefghij"),
        ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
        ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc+/=\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_each_kind_is_masked_whole_and_nothing_beside_it(kind: str, secret: str) -> None:
    before, after = "見よ: <", "> and so on"
    text, counts = Redaction().mask(before + secret + after)
    assert text == before + re.sub(r"\S", MASK, secret) + after
    assert counts == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return x @ y.T",
        "version 1.2.3 of 2026-11-26, at 12:30:45",
        "4111 1111 1111 1112",
        "0000000000000000",
        "3.14159265358979323846",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "sk-learn is a package",
        "for i in range(1000000000000):",
        "decorator @property",
        "127.0.0.1:8321 and 192.168.0.1",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redaction().mask(text) == (text, {})


def test_a_keys_name_stays() -> None:
    text, counts = Redaction().mask('API_KEY = "0123456789abcdefXYZ"')
    assert text == f'API_KEY = "{MASK * 19}"' and counts == {"key": 1}


def test_patterns_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "patterns"
    file.write_text("# people\nJane \\w+\n\n(?i)project x\n", encoding="utf-8")
    text, counts = Redaction.read(file).mask("Jane Roe of PROJECT X wrote to a@b.org")
    assert text == "████ ███ of ███████ █ wrote to ███████" and counts == {"pattern": 2, "e-mail": 1}
    file.write_text("(", encoding="utf-8")
    with pytest.raises(RecipeError, match="regular expressions"):
        Redaction.read(file)
    with pytest.raises(RecipeError, match="a file of regular expressions"):
        Redaction.read(tmp_path / "none")


@pytest.mark.parametrize("unit", ["a", "1", "1 ", "a.", "+1", "eyJ", "-----BEGIN ", "0-", "a@", "@", "(5", "api_key=", "sk-"])
def test_no_text_makes_it_slow(unit: str) -> None:
    began = time.perf_counter()
    Redaction().mask(unit * 50_000)
    assert time.perf_counter() - began < 5


def masked(run: Run, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """The run's evidence documents with an address in each, at the place of tokens that are there."""
    documents = [
        replace(d, text=d.text[:200] + " jane@exam.org, " + d.text[216:], name=f"jane@x.org/{d.name}") for d in tokens.documents
    ]
    changed = replace(tokens, documents=documents)
    monkeypatch.setattr(stage, "tokens_of", lambda *_: changed)
    return changed


def test_an_index_shows_nothing_that_is_masked(indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    tokens = masked(copy, stage.tokens_of(copy, "evidence"), monkeypatch)
    pattern = tmp_path / "patterns"
    pattern.write_text("self", encoding="utf-8")
    stage.redact(copy.path(stage.FOLDER), True, pattern)
    assert stage.index_states(copy)[0].state.condition == "stale"
    stage.index_run(copy, Reporter(), ["replicas-0"])
    folder = copy.path("explore/replicas-0")
    for name in ("documents", "examples"):
        text = "".join(str(row) for row in pq.read_table(folder / f"{name}.parquet").to_pylist())
        assert "jane@" not in text and "self" not in text and MASK in text
    for feature in pq.read_table(folder / "features.parquet").to_pylist():
        assert "jane@" not in str(feature) and all("self" not in token for token in feature["top_tokens"])
    index = Index(folder)
    said = index.overview()["redaction"]
    assert said["kinds"]["e-mail"] >= 2 * len(tokens.documents) and said["kinds"]["pattern"] > 0
    assert said["count"] == sum(said["kinds"].values()) and said["patterns"] == 1
    shown = stage.shown_tokens(copy)
    for example in index.examples(index.features()["rows"][0]["latent"]):
        at = example["window"] * tokens.context + example["position"]
        assert example["tokens"][example["focus"]] == shown.text_at(at)
        assert len(shown.text_at(at)) == len(tokens.text_at(at))


def test_a_run_remembers_what_is_masked(indexed: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    stage.redact(copy.path(stage.FOLDER), True)
    stage.index_run(copy, Reporter(), ["replicas-0"])
    stage.redact(copy.path(stage.FOLDER), None)
    assert stage.indexed(copy, ["replicas-0"]) and Index(copy.path("explore/replicas-0")).overview()["redaction"] is not None
    stage.redact(copy.path(stage.FOLDER), False)
    assert not stage.indexed(copy, ["replicas-0"])
    stage.index_run(copy, Reporter(), ["replicas-0"])
    assert Index(copy.path("explore/replicas-0")).overview()["redaction"] is None
    copy.path("explore/redaction.json").write_text("{")
    with pytest.raises(RunError, match="what is to be redacted"):
        stage.index_run(copy, Reporter(), ["replicas-0"])
    with pytest.raises(RecipeError, match="--no-redact"):
        stage.redact(copy.path(stage.FOLDER), False, tmp_path / "patterns")
