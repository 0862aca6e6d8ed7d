"""Joint refinement: codes against non-negative least squares, and planted features that single directions miss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import normalize

import kyomei
from kyomei.learning import refinement as r
from kyomei.learning.refinement import positive_code, refine


def unit(seed: int, rows: int, dim: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    """Rows of three of 60 features in 32 dimensions, whitened, and the features there."""
    planted = kyomei.Planted(n_features=60, dim=32, active=3, seed=0, coefficient="uniform")
    x = planted.sample(6000, seed=1)[0]
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return (x - x.mean(dim=0)) @ forward, normalize(planted.features @ forward, dim=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_positive_code_is_positive_and_short(seed: int) -> None:
    w, z = unit(seed, 7, 5), torch.randn(20, 5, generator=torch.Generator().manual_seed(seed + 1))
    code = positive_code(z, w)
    rest = z - code @ w
    assert (code >= 0).all()
    assert ((code > 0).sum(dim=1) <= r.PARTS).all()
    for row in range(3):
        _, least = nnls(w.T.double().numpy(), z[row].double().numpy())
        assert least <= float(rest[row].norm()) + 1e-4, "no better than the non-negative least squares over all of them"


def test_positive_code_recovers_a_sparse_row() -> None:
    w = unit(3, 30, 40)
    truth = torch.zeros(10, 30)
    for row in range(10):
        truth[row, [row, row + 7, row + 15]] = torch.tensor([1.0, 2.0, 1.5])
    assert torch.allclose(positive_code(truth @ w, w), truth, atol=0.01)


def test_chunks_do_not_change_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    w, z = unit(0, 12, 8), torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    whole = positive_code(z, w)
    monkeypatch.setattr(r, "CHUNK_ROWS", 7)
    assert torch.allclose(positive_code(z, w), whole, atol=1e-5)


def test_disturbed_features_come_back(rows: tuple[Tensor, Tensor]) -> None:
    z, features = rows
    start = normalize(features + 0.15 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    before = (start * features).sum(dim=1)
    after = (refine(z, start) @ features.T).amax(dim=0)
    assert before.median() < 0.8
    assert after.median() > 0.95 and (after > 0.9).double().mean() > 0.8


def test_missing_features_are_added_and_doubles_dropped(rows: tuple[Tensor, Tensor]) -> None:
    z, features = rows
    found = refine(z, torch.cat([features[:48], features[:5]]))
    assert ((found @ features[48:].T).amax(dim=0) > 0.9).double().mean() >= 0.4
    assert ((found @ features[:5].T > r.SAME).sum(dim=0) == 1).all()


def test_same_seed_same_directions_and_nothing_stays_nothing(rows: tuple[Tensor, Tensor]) -> None:
    z, features = rows
    first, again = (refine(z, features[:25], seed=4) for _ in range(2))
    assert torch.equal(first, again)
    assert len(refine(z, features[:0])) == 0
