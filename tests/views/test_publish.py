"""What a run publishes: its dictionary, its certificate, a card of its figures, and no text unless it is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages.certify import verdict_of


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


def test_text_goes_along_where_it_is_asked_for(indexed: Run, tmp_path: Path) -> None:
    published(tmp_path / "out", indexed, "--examples")
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    own = json.loads(indexed.path("certificate.json").read_text(encoding="utf-8"))
    assert [f.get("tokens") for f in certificate["features"]] == [f.get("tokens") for f in own["features"]]
    assert (tmp_path / "out" / "examples.json").exists() == indexed.path("examples.json").exists()


def test_a_folder_with_a_dictionary_is_not_written_over(indexed: Run, tmp_path: Path) -> None:
    published(tmp_path / "out", indexed)
    done = CliRunner().invoke(app, ["publish", str(indexed.folder), str(tmp_path / "out"), "--local"])
    assert done.exit_code == 2 and "Name another folder" in done.stderr


@pytest.mark.parametrize("dictionary", ["replicas-1"])
def test_another_dictionary_of_a_run_has_no_verdict(indexed: Run, tmp_path: Path, dictionary: str) -> None:
    card = published(tmp_path / "out", indexed, "--dictionary", dictionary)
    assert verdict_of(indexed).headline not in card and "No certificate travels" in card
    assert not (tmp_path / "out" / "certificate.json").exists()
