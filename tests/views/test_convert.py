"""The verbs that give a dictionary to other libraries and take it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages.harvested import tokens_of

FILES = Path(__file__).parents[1] / "dictionary" / "formats" / "files"


def done(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2 and result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
def test_a_run_goes_out_and_comes_back_with_its_certificate(indexed: Run, tmp_path: Path, format: str) -> None:
    out = done("export", indexed.folder, tmp_path / "theirs", "--format", format)
    back = done("import", tmp_path / "theirs", tmp_path / "ours")
    own, theirs, ours = (kyomei.load(path) for path in (indexed.path("replicas/0"), tmp_path / "theirs", tmp_path / "ours"))
    x = 3 * torch.randn(200, own.dim, generator=torch.Generator().manual_seed(0)) + own.center
    for other in (theirs, ours):
        torch.testing.assert_close(other.encode(x), own.encode(x), rtol=1e-5, atol=1e-4)
        source, first = indexed.recipe.source, tokens_of(indexed, "evidence").ids[:, 0]
        known = {"context": source.context, "dataset": Path(source.address).name}
        assert other.provenance == {**own.provenance, **known, "prepend_bos": bool((first == first[0]).all())}
    assert out["certificate"] == own.provenance["certificate"] and back["folded"] == out["folded"] * (format != "saelens")
    for name in ("theirs", "ours"):
        kept = json.loads((tmp_path / name / "certificate.json").read_text())
        assert kept == json.loads(indexed.path("certificate.json").read_text())


def test_a_dictionary_of_another_library_goes_through_to_a_third(tmp_path: Path) -> None:
    facts = done("export", FILES / "saelens-topk-rescaled", tmp_path / "theirs", "--format", "sparsify")
    assert (facts["from"], facts["to"], facts["k"]) == ("SAELens", "sparsify", 4)
    assert facts["folded"] == ["the norms of the decoder, into the encoder"]
    shown = CliRunner().invoke(app, ["import", str(tmp_path / "theirs"), str(tmp_path / "ours")]).stdout
    assert "sparsify → Kyomei" in shown and "nothing: the tensors are the same, bit by bit" in shown


def test_nothing_is_written_over_unasked(indexed: Run, tmp_path: Path) -> None:
    source = FILES / "saelens-standard"
    done("import", source, tmp_path)
    assert "Expected a folder without a dictionary" in refused("import", source, tmp_path)
    (tmp_path / "certificate.json").write_text("of what was there before")
    done("import", source, tmp_path, "--overwrite")
    assert not (tmp_path / "certificate.json").exists()
    # Two formats in one folder would be read as either of them.
    done("export", tmp_path, tmp_path / "other", "--format", "saelens")
    assert "a dictionary of SAELens in" in refused("import", source, tmp_path / "other", "--overwrite")
    done("export", tmp_path / "other", tmp_path / "other", "--format", "saelens", "--overwrite")
    assert "a run in" in refused("import", source, indexed.folder, "--overwrite")
    assert "a format" not in refused("export", tmp_path / "nothing", tmp_path / "new", "--format", "saelens")
    assert not (tmp_path / "new").exists()
