"""A dictionary without a run is explored on a text that is named: rows, index and answers, "not certified" throughout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.views.explorer_samples import client_of
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.dictionary.formats import write
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, RunError
from kyomei.stages.alone import Alone, index_alone
from kyomei.stages.explore import explorer_of_alone
from kyomei.stages.progress import Reporter
from kyomei.views.queries import Index

SITE = "model.layers.1.mlp"


def dictionary(folder: Path, dim: int = 256) -> Path:
    encoder = torch.nn.functional.normalize(torch.randn(48, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    SparseAutoencoder(encoder, None, torch.full((48,), 8.0), torch.zeros(dim)).save(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Write to jane{number}@example.org, or wait. " * 200, encoding="utf-8")
    return folder


def test_one_command_makes_an_index_of_any_dictionary(tmp_path: Path, text: Path) -> None:
    folder = dictionary(tmp_path / "sae")
    asked = ["--model", "embedded", "--site", SITE, "--text", str(text), "--tokens", "2048", "--redact", "--json"]
    done = CliRunner().invoke(app, ["index", str(folder), *asked])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["dictionary"]
    assert facts["condition"] == "ready" and facts["width"] == 48
    index = Index(facts["folder"])
    found = index.overview()
    assert found["status"] == {"not certified": 48} and found["certificate_state"] == "none" and found["origin"] == {}
    assert found["redaction"]["kinds"]["e-mail"] > 0 and found["site"] == SITE and found["tokens"] == 2048
    sae, rows = kyomei.load(folder), kyomei.open_rows(folder / "explore/activations" / SITE)
    code = sae.encode(rows.read(np.arange(rows.num_rows)))
    examples = pq.read_table(Path(facts["folder"]) / "examples.parquet").to_pylist()
    assert examples and "@" not in "".join("".join(e["tokens"]) for e in examples)
    for example in examples:
        assert example["activation"] == pytest.approx(float(code[example["example"], example["latent"]]), rel=1e-4)
    again = CliRunner().invoke(app, ["index", str(folder), "--json"])
    assert again.exit_code == 0 and "harvest" not in again.stderr, "nothing is done twice, and nothing need be said twice"


def test_what_the_dictionary_says_of_itself_need_not_be_said(tmp_path: Path, text: Path) -> None:
    folder = dictionary(tmp_path / "sae")
    with pytest.raises(RunError, match="--model and --site and --text"):
        Alone.asked(folder, None, {})
    sae = kyomei.load(folder)
    sae.provenance = {"model": "embedded", "site": SITE, "side": "input", "context": 64, "prepend_bos": True}
    sae.save(folder)
    alone = Alone.asked(folder, tmp_path / "elsewhere", {"source.text": str(text)})
    assert (alone.site, alone.recipe.source.side, alone.recipe.source.model) == (SITE, "input", "embedded")
    assert (alone.recipe.source.context, alone.recipe.source.force_bos) == (64, True), "windows as it was trained on"
    assert alone.out == tmp_path / "elsewhere" and not alone.out.exists()


def test_a_folder_of_saelens_is_explored_with_one_command(tmp_path: Path, text: Path) -> None:
    sae = kyomei.load(dictionary(tmp_path / "ours"))
    sae.provenance = {"model": "embedded", "hook_name": "blocks.1.hook_mlp_out", "context": 64, "prepend_bos": True}
    write(sae, tmp_path / "theirs", "saelens")
    asked = ["explore", str(tmp_path / "theirs"), "--text", str(text), "--tokens", "1024", "--index-only"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    alone = Alone.asked(tmp_path / "theirs", None, {})
    windows = alone.tokens().ids
    assert windows.shape[1] == 64 and len(set(windows[:, 0].tolist())) == 1, "as it was trained on: 64 tokens, BOS first"
    for client in client_of(explorer_of_alone(alone), read_only=True):
        rows = client.get("/api/features").json()["rows"]
        feature = client.get(f"/api/features/{rows[0]['latent']}").json()
        assert len(rows) == 48 and feature["status"] == "not certified"


def test_another_text_gives_other_rows_and_another_site_is_refused(tmp_path: Path, text: Path) -> None:
    folder = dictionary(tmp_path / "sae")
    said = {"source.model": "embedded", "source.sites": [SITE], "source.text": str(text), "source.num_tokens": 1024}
    first = index_alone(Alone.asked(folder, None, said), Reporter())
    second = index_alone(Alone.asked(folder, None, {"source.num_tokens": 2048}), Reporter())
    assert first.state.is_ready and second.state.is_ready
    assert 2 * first.state.facts["tokens"] == second.state.facts["tokens"] == 2048
    other = dictionary(tmp_path / "other", dim=64)
    with pytest.raises(DataError, match="rows of dimension 64"):
        index_alone(Alone.asked(other, None, said), Reporter())
