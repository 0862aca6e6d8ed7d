"""TransformerLens' names of places have the values here that they have there, on the same random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.source import architectures
from torch import Tensor

from kyomei.source.model import LanguageModel

pytestmark = pytest.mark.peers
IDS = torch.randint(5, 290, (2, 9), generator=torch.Generator().manual_seed(0))
PLACES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post")


def both(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **processing: bool
) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A tiny model, and the values that TransformerLens has of it."""
    from transformer_lens import HookedTransformer, loading

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architectures.build(kind)
        with torch.no_grad():
            for weight in model.parameters():  # biases and norms that begin as nothing would hide a place that lacks them
                if weight.ndim == 1:
                    weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        model.config.n_ctx = architectures.CONTEXT  # as it calls what GPT-2's configuration calls otherwise by now
        model.save_pretrained(folder)
        architectures.small_tokenizer().save_pretrained(folder)
        # It knows models by name only; what it needs besides is in the folder.
        monkeypatch.setattr(loading, "get_official_model_name", lambda name: name)
        off = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
        options: dict[str, Any] = {
            "hf_model": model,
            "device": "cpu",
            "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
        }
        lens = HookedTransformer.from_pretrained(str(folder), **options, **{**off, **processing})
        with torch.no_grad():
            values = dict(lens.run_with_cache(IDS, prepend_bos=False)[1])
    return LanguageModel(model, None, kind), values


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2", "gpt_neo", "gpt_neox", "opt"])
def test_values_are_those_of_transformer_lens(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, there = both(kind, tmp_path, monkeypatch)
    names = [name for place in PLACES if (name := f"blocks.1.{place}") in there]
    assert len(names) == len(PLACES) - (kind == "gpt_neox")
    for name, here in model.capture(IDS, names).items():
        torch.testing.assert_close(here, there[name], atol=1e-4, rtol=1e-4)


def test_centred_weights_take_the_mean_out_of_the_stream_as_the_note_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "blocks.1.hook_resid_post"
    model, there = both("gpt2", tmp_path, monkeypatch, center_writing_weights=True, fold_ln=True)
    here = model.capture(IDS, [name])[name]
    torch.testing.assert_close(here - here.mean(dim=-1, keepdim=True), there[name], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(here, there[name], atol=1e-2)
    assert "less its mean" in model.said_of(name)
