"""SAEBench's object computes what the dictionary does, with unit decoder rows; its attributes say how."""

from __future__ import annotations

import pytest
import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.dictionary.saebench import SAEBenchAdapter


def dictionary(activation: str) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    encoder, decoder = torch.randn(2, 12, 5, generator=generator)
    threshold = torch.zeros(12) if activation == "topk" else torch.rand(12, generator=generator)
    k = 3 if activation == "topk" else None
    return SparseAutoencoder(encoder, decoder, threshold, torch.randn(5, generator=generator), activation=activation, k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk"])
def test_it_is_the_same_function_with_unit_rows(activation: str) -> None:
    sae = dictionary(activation)
    it = SAEBenchAdapter(sae, "gpt2-small", "blocks.3.hook_resid_post", 3)
    x = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(it(x), sae(x))
    z = it.encode(x)
    assert z.shape == (2, 50, 12) and torch.equal(z > 0, sae.encode(x) > 0)
    torch.testing.assert_close(it.W_dec.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(z @ it.W_dec + it.b_dec, it.decode(z))
    # An active code is linear in the row, by the attributes alone.
    scores = (x - it.b_dec) @ it.W_enc + it.b_enc
    torch.testing.assert_close(z[z > 0], scores[z > 0])


def test_settings_and_moves() -> None:
    it = SAEBenchAdapter(dictionary("jumprelu"), "gpt2-small", "blocks.3.hook_resid_post", 3)
    facts = it.cfg.to_dict()
    assert facts["d_in"] == 5 and facts["d_sae"] == 12 and facts["architecture"] == "jumprelu" and facts["hook_layer"] == 3
    assert facts["normalize_activations"] == "none" and facts["dtype"] == "float32"
    same = it.to(dtype=torch.float64)
    assert same is it and it.dtype == it.W_enc.dtype == torch.float64 and it.cfg.dtype == "float64"


def test_a_move_keeps_what_was_written_into_the_settings() -> None:
    """SAEBench standardises the settings, and moves the SAE then."""
    it = SAEBenchAdapter(dictionary("topk"), "gpt2-small", "blocks.3.hook_resid_post", 3)
    it.cfg.metadata = "theirs"  # type: ignore[attr-defined]
    assert it.to(dtype=torch.float64).cfg.metadata == "theirs"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("said", "held"), [({}, True), ({"prepend_bos": None}, True), ({"prepend_bos": False}, False)])
def test_windows_begin_as_the_dictionary_says(said: dict[str, object], held: bool) -> None:
    sae = dictionary("relu")
    sae.provenance = said
    assert SAEBenchAdapter(sae, "gpt2-small", "blocks.3.hook_resid_post", 3).cfg.prepend_bos is held
