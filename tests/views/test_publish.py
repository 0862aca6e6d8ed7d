"""What a run publishes: its dictionary, its certificate, a card of its figures, and no text unless it is asked for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages.certify import verdict_of
from kyomei.stages.measure import measure_run
from kyomei.stages.progress import Reporter


def published(folder: Path, run: Run, *options: str) -> str:
    done = CliRunner().invoke(app, ["publish", str(run.folder), str(folder), "--local", *options])
    assert done.exit_code == 0, done.stderr
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_is_filled_from_the_run_and_no_text_goes_along(indexed: Run, tmp_path: Path) -> None:
    card = published(tmp_path / "out", indexed, "--licence", "mit")
    assert verdict_of(indexed).headline in card and "the same rule certifies" in card and "license: mit" in card
    assert re.search(r"\| certified \| .*\d", card) and "| model | " in card
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "certificate.json", "config.json", "sae.safetensors"}
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["features"] and not any(feature.get("tokens") for feature in certificate["features"])
    everything = "".join((tmp_path / "out" / name).read_bytes().decode("latin-1") for name in names)
    assert str(indexed.folder) not in everything
    sae = kyomei.SparseAutoencoder.from_pretrained(tmp_path / "out")
    assert sae.provenance["site"] and "run" not in sae.provenance


@pytest.fixture
def measured(indexed: Run, tmp_path: Path) -> Run:
    """The run with examples in real text, which could go along."""
    run = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    with run.lock():
        measure_run(run, Reporter())
    assert run.path("examples.json").exists()
    return run


def test_no_text_goes_along_unasked(measured: Run, tmp_path: Path) -> None:
    published(tmp_path / "out", measured)
    texts = [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").iterdir()]
    assert not (tmp_path / "out" / "examples.json").exists()
    examples = json.loads(measured.path("examples.json").read_text(encoding="utf-8"))
    pieces = ["".join(token for token, _ in context)[4:20] for example in examples for context in example["contexts"]]
    assert len(pieces) > 10 and not any(piece in text for piece in pieces for text in texts)


def test_text_goes_along_where_it_is_asked_for(measured: Run, tmp_path: Path) -> None:
    published(tmp_path / "out", measured, "--examples")
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    own = json.loads(measured.path("certificate.json").read_text(encoding="utf-8"))
    assert [f.get("tokens") for f in certificate["features"]] == [f.get("tokens") for f in own["features"]]
    assert (tmp_path / "out" / "examples.json").read_bytes() == measured.path("examples.json").read_bytes()


def test_a_certificate_goes_along_with_an_exported_dictionary_too(indexed: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(indexed.folder), str(tmp_path / "sl"), "--format", "saelens"])
    assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(app, ["publish", str(tmp_path / "sl"), str(tmp_path / "out"), "--local"])
    assert done.exit_code == 0, done.stderr
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["features"] and not any(feature.get("tokens") for feature in certificate["features"])


def test_a_folder_with_a_dictionary_is_not_written_over(indexed: Run, tmp_path: Path) -> None:
    published(tmp_path / "out", indexed)
    done = CliRunner().invoke(app, ["publish", str(indexed.folder), str(tmp_path / "out"), "--local"])
    assert done.exit_code == 2 and "Name another folder" in done.stderr


@pytest.mark.parametrize("dictionary", ["replicas-1"])
def test_another_dictionary_of_a_run_has_no_verdict(indexed: Run, tmp_path: Path, dictionary: str) -> None:
    card = published(tmp_path / "out", indexed, "--dictionary", dictionary)
    assert verdict_of(indexed).headline not in card and "No certificate travels" in card
    assert not (tmp_path / "out" / "certificate.json").exists()
