"""Streamed moments against torch's own, and what cannot be whitened."""

from __future__ import annotations

import pytest
import torch

from kyomei.errors import DataError
from kyomei.learning.spaces import Normalisation, Whitening
from kyomei.source.rows import open_rows


def correlated(rows: int = 3000, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(rows, dim, generator=generator) @ mixing + 100


def test_whitened_rows_have_zero_mean_and_unit_covariance() -> None:
    x = correlated()
    z = Whitening.fit(open_rows(x)).whiten(x).double()
    assert torch.allclose(z.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(z.T @ z / len(z), torch.eye(6, dtype=torch.float64), atol=1e-3)


def test_moments_are_those_of_float64_even_around_a_large_mean() -> None:
    x = correlated() + 1e4
    white = Whitening.fit(open_rows(x))
    covariance = white.backward.double() @ white.backward.double()
    expected = torch.cov(x.double().T, correction=0)
    assert torch.allclose(covariance, expected, rtol=1e-3, atol=1e-3)
    assert torch.allclose(white.mean.double(), x.double().mean(0), rtol=1e-6)


def test_forward_and_backward_are_inverse() -> None:
    white = Whitening.fit(open_rows(correlated()))
    assert torch.allclose(white.forward @ white.backward, torch.eye(6), atol=1e-4)


def test_outlier_rows_are_left_out_and_counted() -> None:
    x = correlated()
    broken = x.clone()
    broken[7] += 1e6
    clean, robust = Whitening.fit(open_rows(x)), Whitening.fit(open_rows(broken))
    assert robust.num_outliers == 1
    assert torch.allclose(clean.backward, robust.backward, rtol=2e-2, atol=2e-2)


def test_coordinates_that_never_vary_have_no_part() -> None:
    x = correlated()
    x[:, 2], x[:, 5] = 5.0, 0.0
    others = [0, 1, 3, 4]
    whole, reduced = Whitening.fit(open_rows(x)), Whitening.fit(open_rows(x[:, others]))
    assert whole.varies.tolist() == [True, True, False, True, True, False]
    for both in ("forward", "backward"):
        assert torch.allclose(getattr(whole, both)[others][:, others], getattr(reduced, both))
        assert not getattr(whole, both)[[2, 5]].any() and not getattr(whole, both)[:, [2, 5]].any()
    assert torch.allclose(whole.whiten(x)[:, others], reduced.whiten(x[:, others]), atol=1e-4)
    varies = Normalisation.measure(open_rows(x)).varies
    assert varies is not None and torch.equal(varies, whole.varies)


def test_rows_that_are_all_equal_are_refused() -> None:
    for measured in (Whitening.fit, Normalisation.measure):
        with pytest.raises(DataError, match="rows that differ"):
            measured(open_rows(torch.ones(50, 3)))


def test_fewer_rows_than_dimensions() -> None:
    with pytest.raises(DataError, match=r"more rows than dimensions \(6\)\. Found 5 rows"):
        Whitening.fit(open_rows(correlated()[:5]))


def test_non_finite_rows_are_named() -> None:
    x = correlated()
    x[1234, 3] = float("nan")
    with pytest.raises(DataError, match="row 1234"):
        Whitening.fit(open_rows(x))
