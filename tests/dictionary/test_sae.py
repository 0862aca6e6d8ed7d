"""The autoencoder's code against the formula, written out row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kyomei.dictionary import sae as sae_module
from kyomei.dictionary.sae import SparseAutoencoder, keep_top_k
from kyomei.errors import DataError, RecipeError

WIDTH, DIM = 9, 5


def build(activation: str = "jumprelu", tied: bool = False, **changes: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    encoder = torch.randn(WIDTH, DIM, generator=generator)
    decoder = torch.nn.functional.normalize(torch.randn(WIDTH, DIM, generator=generator), dim=1)
    parts: dict[str, Any] = {
        "encoder": encoder,
        "decoder": None if tied else decoder,
        "threshold": torch.rand(WIDTH, generator=generator),
        "center": torch.randn(DIM, generator=generator),
        "activation": activation,
        "k": 2 if activation == "topk" else None,
    } | changes
    return SparseAutoencoder(**parts)


def inputs(rows: int = 7) -> Tensor:
    return 2 * torch.randn(rows, DIM, generator=torch.Generator().manual_seed(4))


def slow_code(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), sae.width)
    for row in range(len(x)):
        for latent in range(sae.width):
            bias = 0.0 if sae.bias is None else float(sae.bias[latent])
            score = float(((x[row] - sae.center) * sae.encoder[latent]).sum()) + bias
            if score > float(sae.threshold[latent]):
                z[row, latent] = score - float(sae.threshold[latent]) if sae.activation == "relu" else score
        if sae.k is not None:
            for latent in z[row].argsort(descending=True)[sae.k :]:
                z[row, latent] = 0
    return z


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk"])
def test_encode_and_decode_follow_the_formula(activation: str, tied: bool, biased: bool) -> None:
    sae, x = build(activation, tied, bias=torch.linspace(-1, 1, WIDTH) if biased else None), inputs()
    expected = slow_code(sae, x)
    assert 0 < (expected > 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(x), expected)
    decoder = sae.encoder if tied else sae.decoder
    torch.testing.assert_close(sae(x), expected @ decoder + sae.center)


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk"])
def test_sparse_code_is_the_dense_one_in_csr_whatever_the_block(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = build(activation), inputs(11)
    for scores_per_block in (1, 4 * WIDTH, 2**20):
        monkeypatch.setattr(sae_module, "SCORES_PER_BLOCK", scores_per_block)
        z = sae.encode(x, sparse=True)
        assert z.layout == torch.sparse_csr
        assert int((z.values() == 0).sum()) == 0
        torch.testing.assert_close(z.to_dense(), sae.encode(x))
        torch.testing.assert_close(sae.decode(z), sae(x))
    assert sae.encode(x[:0], sparse=True).shape == (0, WIDTH)


def test_ndarrays_other_dtypes_and_leading_dimensions_are_accepted() -> None:
    sae, x = build(), inputs(6)
    torch.testing.assert_close(sae.encode(x.double().numpy()), sae.encode(x))
    torch.testing.assert_close(sae.encode(x.view(2, 3, DIM)), sae.encode(x).view(2, 3, WIDTH))
    torch.testing.assert_close(sae.encode(x[0]), sae.encode(x)[0])
    torch.testing.assert_close(sae.decode(np.asarray(sae.encode(x))), sae(x))


def test_a_score_at_the_threshold_is_not_active() -> None:
    sae = SparseAutoencoder(torch.eye(2), None, torch.tensor([1.0, 0.0]), torch.zeros(2))
    assert sae.encode(torch.tensor([[1.0, 0.0], [1.5, 2.0]])).tolist() == [[0.0, 0.0], [1.5, 2.0]]


def test_to_keeps_tied_tied_and_changes_a_copy() -> None:
    sae = build(tied=True)
    other = sae.to(dtype=torch.float64)
    assert other.tied and other.decoder is other.encoder and other.encoder.dtype == torch.float64
    assert sae.encoder.dtype == torch.float32
    torch.testing.assert_close(other(inputs()).float(), sae(inputs()), rtol=1e-4, atol=1e-5)


def test_topk_keeps_only_positive_scores_and_passes_their_gradient() -> None:
    scores = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 4.0, -3.0]], requires_grad=True)
    z = keep_top_k(scores, 2)
    assert z.tolist() == [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 4.0, 0.0]]
    torch.autograd.backward(z.sum())
    assert scores.grad is not None and scores.grad.tolist() == [[1, 0, 1, 0], [0, 0, 1, 0]]


def test_wrong_dimensions_say_what_was_expected() -> None:
    sae = build()
    with pytest.raises(DataError, match=r"inputs of dimension 5.*\[7, 4\].*site"):
        sae.encode(inputs()[:, :4])
    with pytest.raises(DataError, match=r"codes of width 9.*\[7, 5\]"):
        sae.decode(inputs())
    with pytest.raises(DataError, match=r"shape \[rows, dim\].*Flatten"):
        sae.encode(inputs(6).view(2, 3, DIM), sparse=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"decoder": torch.zeros(WIDTH, DIM + 1)}, DataError, r"decoder of shape \[9, 5\]"),
        ({"threshold": torch.zeros(DIM)}, DataError, r"threshold of shape \[9\].*\[5\]"),
        ({"center": torch.zeros(())}, DataError, r"center of shape \[5\]"),
        ({"encoder": torch.zeros(0, DIM)}, DataError, r"\[width, dim\].*\[0, 5\]"),
        ({"activation": "gelu"}, RecipeError, "jumprelu, relu, topk.*'gelu'"),
        ({"activation": "topk", "k": WIDTH + 1}, RecipeError, "between 1 and 9.*k=10"),
        ({"activation": "topk", "k": None}, RecipeError, "k=None"),
        ({"k": 3}, RecipeError, "none otherwise.*jumprelu with k=3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**changes)
