"""A direction's logits go through the model's own last norm, whatever the architecture calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.source.architectures import build, small_tokenizer

from kyomei.errors import ModelError
from kyomei.source.model import LanguageModel

LAST_NORMS = {
    "llama": "model.norm",
    "gemma2": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}


@pytest.mark.parametrize("kind", LAST_NORMS)
def test_the_last_norm_is_found_by_what_it_does(kind: str) -> None:
    inner: Any = build(kind)
    model = LanguageModel(inner, small_tokenizer(), kind)
    norm = inner.get_submodule(LAST_NORMS[kind])
    with torch.no_grad():  # scales and shifts of their own, so that leaving them out would show
        for weight in norm.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    head = inner.get_output_embeddings().weight
    v = torch.randn(5, head.shape[1], generator=torch.Generator().manual_seed(0))
    found = model.unembed(v)
    assert found.shape == (5, head.shape[0]) and float(found.mean(dim=1).abs().max()) < 1e-4
    unit = v / v.square().mean(dim=1, keepdim=True).sqrt()
    with torch.no_grad():
        expected = (norm(unit) - norm(torch.zeros_like(unit))) @ head.T
    assert torch.allclose(found, expected - expected.mean(dim=1, keepdim=True), atol=1e-4)
    assert torch.allclose(model.unembed(7 * v), found, atol=1e-4), "a direction has no length"
    assert torch.allclose(model.unembed(-v), -found, atol=1e-3)
    assert model._unembedding is not None and model._unembedding.norm is norm


def test_what_has_no_head_or_another_width_is_refused() -> None:
    bert = LanguageModel(build("bert"), small_tokenizer(), "bert")
    with pytest.raises(ModelError, match="without an unembedding"):
        bert.unembed(torch.randn(2, 16))
    llama = LanguageModel(build("llama"), small_tokenizer(), "llama")
    with pytest.raises(ModelError, match="directions of width 16"):
        llama.unembed(torch.randn(2, 24))


def test_every_id_has_a_text() -> None:
    model = LanguageModel(build("llama"), small_tokenizer(), "llama")
    texts = model.vocabulary()
    assert len(texts) == len(model.tokenizer) and all(texts)


def test_a_piece_of_a_character_is_named_by_its_bytes() -> None:
    model = LanguageModel.load("embedded")
    texts = model.vocabulary()
    pieces = [texts[i].strip("<>") for i in model.tokenizer("漢", add_special_tokens=False)["input_ids"]]
    assert len(pieces) > 1 and " ".join(pieces) == "漢".encode().hex(" ").upper()
    assert not any("\ufffd" in text for text in texts)
