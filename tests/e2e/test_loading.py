"""Models that cannot be loaded whole, through the command line: one line, exit code 2, and no run begun."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.source.gguf_files import write_gguf
from tests.warm import verb

from kyomei.source.model import LanguageModel
from kyomei.source.text import EMBEDDED

SETTINGS = ("source.context=32", "source.spread=1", "source.windows_per_shard=24", "dictionary.width=64")


def harvest(run: Path, model: Path | str, tokens: int = 6000, *more: str) -> subprocess.CompletedProcess[str]:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    line = ["harvest", run, "--model", model, "--tokens", str(tokens), "--threads", "1"]
    return verb(*line, *options, *more)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama with the embedded model's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED / "model")
    small: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **small)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_damaged_model_is_one_line_and_no_run_is_begun(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    save_file({name: w for name, w in load_file(path).items() if "layers.1.mlp" not in name}, path, metadata={"format": "pt"})
    done = harvest(tmp_path / "run", model)
    assert done.returncode == 2
    *before, line = done.stderr.splitlines()
    assert len(before) <= 1  # the versions
    # Of the layers up to the site, which are all that is loaded.
    assert line.startswith(f"kyomei: Expected every weight of a LlamaForCausalLM at {model}. Found 3 of 21 missing: ")
    assert not (tmp_path / "run").exists()


def test_a_model_saved_while_compiled_is_harvested_and_said(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    save_file({f"_orig_mod.{name}": w for name, w in load_file(path).items()}, path, metadata={"format": "pt"})
    done = harvest(tmp_path / "run", model)
    assert done.returncode == 0, done.stderr
    assert f"{model}: the names of its weights had _orig_mod. in them, from how it was trained; undone" in done.stderr


def test_a_gguf_file_is_harvested_without_a_bar(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="reading GGUF files needs kyomei[gguf]")
    file = write_gguf(LanguageModel.load(str(model)), tmp_path / "tiny.gguf")
    done = harvest(tmp_path / "run", file)
    assert done.returncode == 0, done.stderr
    assert not any(mark in done.stderr for mark in ("%|", "it/s", "Converting"))
    assert list((tmp_path / "run" / "activations").rglob("*.safetensors"))
