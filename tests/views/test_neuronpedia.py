"""What Neuronpedia's converter would read of a run: its latents with figures and examples, as SAEDashboard has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages import neuronpedia
from kyomei.stages.harvested import site_of, tokens_of
from kyomei.views.queries import Index

BATCH = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix": type(None), "features": list}
"""Fields of a batch file and their types, as SAEDashboard's NeuronpediaDashboardBatch has them; likewise those below."""
WHOLE = ("feature_index", "n_prompts_total", "n_tokens_in_prompt")
REALS = (
    *(f"neuron_alignment_{name}" for name in ("values", "l1")),
    *(f"correlated_{of}_{name}" for of in ("neurons", "features") for name in ("l1", "pearson")),
    *(f"{of}_hist_data_bar_{name}" for of in ("freq", "logits") for name in ("values", "heights")),
    *("neg_values", "pos_values", "decoder_weights_dist", "vector"),
)
INDICES = ("neuron_alignment_indices", "correlated_neurons_indices", "correlated_features_indices")
WORDS = ("neg_str", "pos_str")
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def export(run: Run, folder: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["export", str(run.folder), str(folder), "--format", "neuronpedia", *more])


def check_layout(feature: dict[str, Any]) -> None:
    assert set(feature) == {*WHOLE, *REALS, *INDICES, *WORDS, "frac_nonzero", "dataset", "activations"}
    assert all(type(feature[name]) is int for name in WHOLE) and type(feature["dataset"]) is str
    assert all(isinstance(value, (int, float)) for name in REALS for value in feature[name])
    assert all(type(value) is str for name in WORDS for value in feature[name])
    assert 0 <= feature["frac_nonzero"] <= 1
    assert len(feature["freq_hist_data_bar_values"]) == len(feature["freq_hist_data_bar_heights"])
    for example in feature["activations"]:
        assert set(example) == ACTIVATION
        # The converter takes the largest value of each, so that none may be empty.
        assert len(example["tokens"]) == len(example["values"]) > example["qualifying_token_index"] >= 0
        assert all(type(value) is float for value in example["values"])


def test_every_latent_is_in_a_batch_with_what_the_index_knows(
    indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "FEATURES_PER_FILE", 24)
    done = export(indexed, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "pieces of the run's text are in these files" in done.stdout
    batches = [json.loads((tmp_path / "out" / f"batch-{n}.json").read_text(encoding="utf-8")) for n in range(3)]
    for batch in batches:
        assert {name: type(value) for name, value in batch.items()} == BATCH
        assert (batch["model_id"], batch["sae_set"]) == (indexed.recipe.source.model, "kyomei-topk")
        assert f".{batch['layer']}." in site_of(indexed)
    features = [feature for batch in batches for feature in batch["features"]]
    assert [feature["feature_index"] for feature in features] == list(range(64))
    index, tokens = Index(indexed.path("explore/replicas-0")), tokens_of(indexed, "evidence")
    for latent, examples in index.examples_of_all():
        feature, known = features[latent], index.feature(latent)
        assert known is not None
        check_layout(feature)
        assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"]) == (len(tokens.ids), tokens.context)
        assert feature["frac_nonzero"] == known["frequency"]
        assert feature["pos_str"] == [each["token"] for each in known["logits_top"]] and len(feature["pos_str"]) == 10
        assert feature["neg_values"] == pytest.approx([each["value"] for each in known["logits_bottom"]], abs=1e-3)
        assert feature["freq_hist_data_bar_heights"] == (known["histogram"] or [])
        assert [each["tokens"] for each in feature["activations"]] == [each["tokens"] for each in examples]
        for got, example in zip(feature["activations"], examples, strict=True):
            at = got["qualifying_token_index"]
            assert got["values"][at] == pytest.approx(example["activation"], abs=1e-3)
            if example["kind"] == "top":
                assert (got["bin_min"], got["bin_contains"]) == (-1, -1)
                assert got["bin_max"] == pytest.approx(known["max_activation"], abs=1e-3) and got["bin_max"] >= max(
                    got["values"]
                )
            else:
                assert got["bin_min"] <= got["values"][at] <= got["bin_max"]
                assert got["bin_contains"] == pytest.approx(known["frequency"] / 10)
    index.close()
    assert any(feature["activations"] for feature in features)
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert len(certificate["features"]) == 64 and not any(feature.get("tokens") for feature in certificate["features"])


def test_what_is_there_goes_only_where_asked_and_leaves_no_batch_behind(indexed: Run, tmp_path: Path) -> None:
    (tmp_path / "batch-7.json").write_text("{}", encoding="utf-8")
    refused = export(indexed, tmp_path)
    assert refused.exit_code == 2 and "add --overwrite" in refused.stderr
    assert export(indexed, tmp_path, "--overwrite", "--dictionary", "replicas-1").exit_code == 0
    # One certificate is of the dictionary that ships, none of the other replicas.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch-0.json"]


def test_a_run_without_an_index_is_told_to_make_it(indexed: Run, tmp_path: Path) -> None:
    shutil.copytree(indexed.folder, tmp_path / "run", ignore=shutil.ignore_patterns("explore"))
    done = export(Run.open(tmp_path / "run"), tmp_path / "out")
    assert done.exit_code == 2 and "kyomei index" in done.stderr and not (tmp_path / "out").exists()
