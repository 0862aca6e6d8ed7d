"""What delphi would read of a run: every active entry at its place in the windows, split by latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.dictionary.formats import load
from kyomei.runs import Run
from kyomei.stages import delphi
from kyomei.stages.harvested import activations, site_of, tokens_of


def test_files_hold_the_code_of_every_window_as_delphi_reads_them(
    indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delphi, "LATENTS_PER_FILE", 24)
    asked = ["export", str(indexed.folder), str(tmp_path / "cache"), "--format", "delphi"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    sae, rows, tokens = load(indexed.path("replicas/0")), activations(indexed, "evidence"), tokens_of(indexed, "evidence")
    place = tmp_path / "cache" / site_of(indexed)
    got = torch.zeros(len(tokens.ids), tokens.context, sae.width)
    # The names give the bounds; a reader adds the first to the latents.
    files = sorted(place.glob("*.safetensors"), key=lambda path: int(path.stem.split("_")[0]))
    assert [path.stem for path in files][:2] == ["0_23", "24_47"] and int(files[-1].stem.split("_")[1]) == sae.width - 1
    for path in files:
        held = load_file(path)
        assert held["locations"].dtype == np.uint16 and held["activations"].dtype == np.float16
        assert np.array_equal(held["tokens"], tokens.ids.numpy())
        window, position, latent = held["locations"].astype(np.int64).T
        assert np.array_equal(np.lexsort((latent, position, window)), np.arange(len(window)))
        got[window, position, latent + int(path.stem.split("_")[0])] = torch.tensor(held["activations"]).float()
    at = torch.tensor(np.array(rows.row_tokens()))
    wanted = torch.zeros(len(tokens.ids) * tokens.context, sae.width)
    wanted[at] = sae.encode(torch.cat(list(rows.blocks())))
    assert (wanted > 0).any()
    torch.testing.assert_close(got.flatten(0, 1), wanted, rtol=1e-3, atol=1e-3)
    settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
    assert settings["ctx_len"] == tokens.context and settings["model_name"] == indexed.recipe.source.model
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 2 and "add --overwrite" in again.stderr


def test_a_dictionary_without_rows_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "cache"), "--format", "delphi"])
    assert done.exit_code == 2 and "Expected a run" in done.stderr
