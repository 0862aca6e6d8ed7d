"""Fidelity and cross-entropy against slow references and closed forms."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, EvidenceError
from kyomei.evidence import codes as module
from kyomei.evidence.fidelity import cross_entropy_recovered, fidelity


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder(seed: int = 0, width: int = 12, dim: int = 5, threshold: float = 0.8) -> SparseAutoencoder:
    rows = torch.nn.functional.normalize(normal(seed, width, dim))
    return SparseAutoencoder(rows, None, torch.full((width,), threshold), torch.zeros(dim))


@given(st.integers(0, 10_000), st.floats(-1e4, 1e4), st.sampled_from([1, 7, 1000]))
@settings(max_examples=20, deadline=None)
def test_equals_two_passes_in_numpy(seed: int, offset: float, block: int) -> None:
    x = normal(seed, 60, 5) + offset
    # In float64, so that splitting rows into other blocks does not change the reconstruction.
    sae = autoencoder(seed + 1).to(dtype=torch.float64)
    sae.center = torch.full((5,), offset, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCORES_PER_BLOCK", block * sae.width)
        found = fidelity(sae, x)
    z, xhat, plain = sae.encode(x).numpy(), sae(x).numpy(), x.double().numpy()
    assert found.fvu == pytest.approx(((plain - xhat) ** 2).sum() / ((plain - plain.mean(axis=0)) ** 2).sum(), rel=1e-9)
    l0 = (z != 0).sum(axis=1)
    assert found.l0_mean == pytest.approx(l0.mean())
    assert found.l0_std == pytest.approx(l0.std(), abs=1e-9)
    expected = {q: int(np.quantile(l0, q, method="inverted_cdf")) for q in found.l0_quantiles}
    assert found.l0_quantiles == expected
    assert np.allclose(found.frequency.numpy(), (z != 0).mean(axis=0))
    assert found.dead_share == pytest.approx(((z != 0).sum(axis=0) == 0).mean())
    assert found.num_rows == 60


def test_closed_forms() -> None:
    x = normal(0, 200, 4)
    both_signs = torch.cat([torch.eye(4), -torch.eye(4)])
    exact = SparseAutoencoder(both_signs, None, torch.zeros(8), torch.zeros(4))
    assert fidelity(exact, x).fvu < 1e-12
    assert fidelity(exact, x).l0_mean == 4.0
    silent = SparseAutoencoder(both_signs, None, torch.full((8,), 1e9), x.mean(dim=0))
    found = fidelity(silent, x)
    assert found.fvu == pytest.approx(1.0, abs=1e-6)
    assert found.explained_variance == pytest.approx(0.0, abs=1e-6)
    assert (found.l0_mean, found.dead_share) == (0.0, 1.0)
    assert found.to_dict()["l0_quantiles"] == {"0.05": 0, "0.25": 0, "0.5": 0, "0.75": 0, "0.95": 0}


def test_equal_rows_are_refused() -> None:
    with pytest.raises(DataError, match="3 equal rows"):
        fidelity(autoencoder(), torch.full((3, 5), 0.1))


class ToyModel:
    """Embedding → site → unembedding; the splice sees windows, as in a transformer."""

    def __init__(self, vocabulary: int = 11, dim: int = 5) -> None:
        self.embedding, self.unembedding = normal(7, vocabulary, dim), normal(8, dim, vocabulary)
        self.seen: list[tuple[int, ...]] = []
        self.side = "output"

    def logits(self, ids: Tensor, splice: tuple[str, Any] | None = None, *, side: str = "output") -> Tensor:
        site = self.embedding[ids]
        self.seen.append(tuple(ids.shape))
        if splice is not None:
            name, codec = splice
            assert (name, side) == ("layer", self.side)
            site = codec.decode(codec.encode(site))
        return site @ self.unembedding


class Reconstruct:
    """A codec on rows only: it fails on anything but [rows, dim]."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def encode(self, x: Tensor) -> Tensor:
        assert x.ndim == 2
        return x

    def decode(self, z: Tensor) -> Tensor:
        return self.scale * z


IDS = torch.randint(0, 11, (9, 6), generator=torch.Generator().manual_seed(4))


def slow_loss(model: ToyModel, ids: Tensor, scale: float, special: set[int]) -> float:
    losses = []
    for window in ids.tolist():
        for here, following in pairwise(window):
            site = model.embedding[here] * (1 if here in special else scale)
            logits = (site @ model.unembedding).double().numpy()
            losses.append(np.log(np.exp(logits).sum()) - logits[following])
    return float(np.mean(losses))


@pytest.mark.parametrize("special", [set(), {0, 3}])
def test_cross_entropy_equals_the_slow_reference(special: set[int]) -> None:
    model = ToyModel()
    found = cross_entropy_recovered(model, IDS, "layer", Reconstruct(0.5), special_ids=special)
    original, spliced, zero = (slow_loss(model, IDS, scale, special) for scale in (1.0, 0.5, 0.0))
    assert (found.original, found.spliced, found.zero_ablated) == pytest.approx((original, spliced, zero), rel=1e-5)
    assert found.num_tokens == 45
    if zero > original:
        assert found.recovered == pytest.approx((zero - spliced) / (zero - original), rel=1e-3)
    assert (found.left_special, found.left_norm) == (sum(int((token == IDS).sum()) for token in special), 0)
    assert found.positions == 54
    if not special:
        assert zero == pytest.approx(np.log(11))


def test_rows_of_a_massive_norm_keep_their_own_activation() -> None:
    """As rows that the harvest dropped: no dictionary has learnt them."""
    model = ToyModel()
    model.side = "input"
    norms = model.embedding.norm(dim=1)
    bound = float(norms.sort().values[-4:-2].mean())
    massive = {token for token in range(11) if float(norms[token]) > bound}
    found = cross_entropy_recovered(model, IDS, "layer", Reconstruct(0.5), special_ids={3}, max_norm=bound, side="input")
    expected = [slow_loss(model, IDS, scale, massive | {3}) for scale in (1.0, 0.5, 0.0)]
    assert [found.original, found.spliced, found.zero_ablated] == pytest.approx(expected, rel=1e-5)
    assert found.left_norm == sum(int((token == IDS).sum()) for token in massive - {3}) > 0
    assert found.left_special == int((IDS == 3).sum()) > 0
    assert found.to_dict()["left_norm"] == found.left_norm


def test_a_perfect_codec_recovers_all_and_zero_nothing() -> None:
    model = ToyModel()
    # The unembedding is the embedding itself, so that silencing the site costs something.
    model.embedding = 3 * torch.nn.functional.normalize(normal(1, 11, 5))
    model.unembedding = model.embedding.T.clone()
    ids = torch.arange(11)[:, None].expand(11, 6)
    assert cross_entropy_recovered(model, ids, "layer", Reconstruct(1.0)).recovered == pytest.approx(1.0)
    assert cross_entropy_recovered(model, ids, "layer", Reconstruct(0.0)).recovered == pytest.approx(0.0)


def test_the_error_of_what_is_recovered_is_that_of_the_bootstrap() -> None:
    model, rng = ToyModel(), np.random.default_rng(5)
    model.embedding = 3 * torch.nn.functional.normalize(normal(1, 11, 5))
    model.unembedding = model.embedding.T.clone()
    # A token is mostly followed by itself, so that the site is worth something and windows differ.
    ids = torch.from_numpy(np.where(rng.random((60, 8)) < 0.95, np.arange(60)[:, None] % 11, rng.integers(0, 11, (60, 8))))
    found = cross_entropy_recovered(model, ids, "layer", Reconstruct(0.4))
    each = np.array([[slow_loss(model, window[None], scale, set()) for scale in (1.0, 0.4, 0.0)] for window in ids])
    means = each[rng.integers(0, 60, (4000, 60))].mean(axis=1)
    bootstrap = ((means[:, 2] - means[:, 1]) / (means[:, 2] - means[:, 0])).std()
    assert found.recovered_error == pytest.approx(bootstrap, rel=0.1)
    assert found.recovered_error > 0.01
    assert found.to_dict()["recovered_error"] == found.recovered_error
    assert cross_entropy_recovered(model, ids[:1], "layer", Reconstruct(0.4)).recovered_error is None


def test_no_more_windows_than_asked_and_spread_evenly() -> None:
    model = ToyModel()
    few = cross_entropy_recovered(model, IDS, "layer", Reconstruct(1.0), max_windows=3)
    assert few.num_tokens == 15
    assert {shape[0] for shape in model.seen} == {3}
    assert few.original == pytest.approx(slow_loss(model, IDS[[0, 4, 8]], 1.0, set()), rel=1e-5)


def test_recovered_is_none_where_silencing_costs_nothing() -> None:
    model = ToyModel()
    model.unembedding = torch.zeros(5, 11)
    found = cross_entropy_recovered(model, IDS, "layer", Reconstruct(0.5))
    assert found.recovered is None
    assert found.to_dict()["recovered"] is None


def test_tokens_may_be_an_object_with_ids() -> None:
    class Windows:
        ids = IDS.numpy()

    assert cross_entropy_recovered(ToyModel(), Windows(), "layer", Reconstruct(1.0)).num_tokens == 45


def test_windows_without_a_prediction_are_refused() -> None:
    for ids in (torch.zeros(0, 4, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(EvidenceError, match="packed windows"):
            cross_entropy_recovered(ToyModel(), ids, "layer", Reconstruct(1.0))
