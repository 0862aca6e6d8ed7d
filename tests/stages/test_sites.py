"""Sites of every kind through the verbs: harvested, replaced in the model, or said at the start why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from tests.source.architectures import saved
from torch import Tensor
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.evidence.fidelity import cross_entropy_recovered
from kyomei.source.model import LanguageModel
from kyomei.source.text import Tokens

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "one", "cat", "sat", "on", "some", "mat")
SETTINGS = {
    "source.context": 32,
    "source.num_tokens": 6000,
    "source.spread": 1,
    "source.replicas": 2,
    "source.windows_per_shard": 24,
    "mechanism.name": "topk",
    "mechanism.k": 4,
    "dictionary.width": 32,
    "train.steps": 10,
    "train.batch_rows": 64,
}


def run_kyomei(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(24):
        words = " ".join(WORDS[(i * k * k + k) % len(WORDS)] for k in range(1, 400 + 7 * i))
        (folder / f"{i:02d}.txt").write_text(f"{words} number {i}.")
    return folder


def options(text: Path, model: Path, **more: Any) -> list[str]:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--model", str(model), "--text", str(text), "--threads", "1", *pairs]


def measured(folder: Path) -> tuple[Result, dict[str, Any]]:
    done = run_kyomei("measure", folder)
    assert done.exit_code == 0, done.stderr
    return done, json.loads((folder / "evidence.json").read_text())


class KeepsMassive:
    """A dictionary that leaves rows above a norm as they are."""

    def __init__(self, sae: Any, bound: float) -> None:
        self.sae, self.bound = sae, bound

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return torch.where(x.norm(dim=1, keepdim=True) > self.bound, x, self.sae.decode(self.sae.encode(x)))


@pytest.mark.slow
def test_rows_left_out_of_training_are_left_alone_when_a_site_is_replaced(text: Path, tmp_path: Path) -> None:
    """Not replaced unsaid: the harvest dropped them for their norm, so no dictionary has learnt them."""
    site, folder = "model.layers.1.mlp", tmp_path / "run"
    model_folder = saved("llama", tmp_path / "model")
    assert run_kyomei("train", folder, *options(text, model_folder, source__norm_bound=1.2)).exit_code == 0
    meta = json.loads((folder / f"activations/evidence/{site}/index.json").read_text())["meta"]
    assert meta["dropped_norm"] > 0
    _, evidence = measured(folder)
    (figures,) = evidence["cross_entropy"].values()
    model, tokens = LanguageModel.load(str(model_folder)), Tokens.load(folder / "tokens/evidence")
    special = model.special_ids

    class Unless(KeepsMassive):
        def decode(self, x: Tensor) -> Tensor:
            return torch.where(keep[:, None], x, super().decode(x))

    keep = torch.zeros(0)
    losses = []
    for window in tokens.ids[torch.linspace(0, len(tokens.ids) - 1, min(32, len(tokens.ids))).round().long()]:
        keep = torch.isin(window, torch.tensor(sorted(special)))
        codec = Unless(kyomei.load(folder / "replicas/0"), 1.2 * meta["median_norm"])
        losses.append(cross_entropy_recovered(model, window[None], site, codec).spliced)
    assert figures["spliced"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert figures["left_norm"] > 0 and figures["left_special"] > 0
    assert run_kyomei("report", folder).exit_code == 0
    said = f"{figures['left_special']} special and {figures['left_norm']} of massive norm kept theirs"
    assert said in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "site", "side"),
    [
        ("opt", "model.decoder.layers.1.fc2", "output"),
        ("opt", "model.decoder.layers.1.fc1", "input"),
        ("llama", "model.layers.1.self_attn.o_proj", "input"),
        ("llama", "model.layers.1.self_attn", "input"),
        ("bart", "model.encoder.layers.1.fc2", "output"),
        ("t5", "decoder.block.1", "output"),
        ("llava", "model.language_model.layers.1.mlp", "output"),
    ],
)
def test_what_can_be_harvested_is_measured_in_the_model(text: Path, tmp_path: Path, kind: str, site: str, side: str) -> None:
    folder, model = tmp_path / "run", saved(kind, tmp_path / "model")
    trained = run_kyomei("train", folder, *options(text, model, source__side=side), "--site", site)
    assert trained.exit_code == 0, trained.stderr
    assert "no cross-entropy" not in trained.stderr
    _, evidence = measured(folder)
    (figures,) = evidence["cross_entropy"].values()
    assert figures["original"] != figures["spliced"] != figures["zero_ablated"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "site", "reason"),
    [
        ("bert", "encoder.layer.1.output.dense", "predicts no tokens"),
        ("xlnet", "transformer.layer.1.ff", "sees the tokens that it would have to predict"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_harvest_and_by_measure_and_report(
    text: Path, tmp_path: Path, kind: str, site: str, reason: str
) -> None:
    folder, model = tmp_path / "run", saved(kind, tmp_path / "model")
    trained = run_kyomei("train", folder, *options(text, model), "--site", site)
    assert trained.exit_code == 0, trained.stderr
    assert trained.stderr.index("no cross-entropy will be measured") < trained.stderr.index("harvest replica-0")
    done, evidence = measured(folder)
    assert evidence["cross_entropy"] == {} and reason in evidence["cross_entropy_note"]
    assert "No cross-entropy is measured" in done.stdout
    assert run_kyomei("report", folder).exit_code == 0
    assert f"No cross-entropy is measured: {evidence['cross_entropy_note']}." in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("roberta", {"source.context": 33}, "windows of at most 32 tokens"),
        ("mpnet", {"source.context": 33}, "windows of at most 32 tokens"),
        ("albert", {"source.sites": '["encoder.albert_layer_groups.0.albert_layers.0#3"]'}, "runs 3 times in a pass"),
        ("blip-2", {}, "pixel_values"),
        ("whisper", {}, "input_features"),
        ("clip", {}, "a pass on token ids fails"),
        ("llama", {"source.sites": '["model.rotary_emb"]'}, "one vector a token"),
    ],
)
def test_what_cannot_be_harvested_is_refused_before_anything_is_written(
    text: Path, tmp_path: Path, kind: str, more: dict[str, Any], said: str
) -> None:
    model = saved(kind, tmp_path / "model")
    done = run_kyomei("harvest", tmp_path / "run", *options(text, model, **more))
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("t5", "encoder.block.1.layer.1.DenseReluDense"),
        ("bart", "model.encoder.layers.1.fc2"),
        ("llava", "model.language_model.layers.1.mlp"),
        ("gemma3", "model.language_model.layers.1.mlp"),
        ("qwen2_5_vl", "model.language_model.layers.1.mlp"),
        ("opt", "model.decoder.layers.1.fc2"),
    ],
)
def test_without_a_site_the_middle_mlp_of_the_text_part_is_harvested_from_the_checkpoint(
    text: Path, tmp_path: Path, kind: str, site: str
) -> None:
    """Weights left at random would differ from one harvest to the next."""
    model = saved(kind, tmp_path / "model")
    digests = []
    for name in ("a", "b"):
        done = run_kyomei("harvest", tmp_path / name, *options(text, model))
        assert done.exit_code == 0, done.stderr
        index = json.loads((tmp_path / name / "activations" / "evidence" / site / "index.json").read_text())
        digests.append([shard["sha256"] for shard in index["shards"]])
    assert digests[0] == digests[1]


def test_which_call_of_a_shared_layer_is_taken_is_said(text: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "run", saved("albert", tmp_path / "model")
    done = run_kyomei("harvest", folder, *options(text, model))
    site = "encoder.albert_layer_groups.0.albert_layers.0.ffn_output"
    assert done.exit_code == 0, done.stderr
    assert f"{site} runs 3 times in a pass: call #1 is taken" in " ".join(done.stderr.split())
    assert (folder / "activations" / "evidence" / f"{site}#1" / "index.json").exists()
