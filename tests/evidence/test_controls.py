"""The Gaussian surrogate: the data's first two moments, no third, any order of reading."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from kyomei.config import Recipe
from kyomei.errors import DataError, EvidenceError
from kyomei.evidence.controls import CONTROLS, GAUSSIAN, RANDOM_WEIGHTS, control_named
from kyomei.source.rows import Rows, open_rows
from kyomei.source.surrogate import GaussianSurrogate

ROOT = torch.randn(7, 7, generator=torch.Generator().manual_seed(3))
COVARIANCE, MEAN = ROOT @ ROOT.T + 0.1 * torch.eye(7), torch.arange(7.0) * 10


def surrogate(num_rows: int = 40_000, seed: int = 0) -> GaussianSurrogate:
    return GaussianSurrogate(COVARIANCE, MEAN, num_rows=num_rows, seed=seed)


def test_moments_match() -> None:
    rows = surrogate()
    x = torch.cat(list(rows.blocks())).double()
    n, scale = len(x), float(COVARIANCE.diagonal().max())
    assert (x.mean(dim=0) - MEAN).abs().max() < 5 * (scale / n) ** 0.5
    assert (x.T.cov() - COVARIANCE).abs().max() < 5 * scale * (2 / n) ** 0.5


def test_rows_are_normal_and_independent() -> None:
    """Kurtosis and tails of a normal; odd and even coordinates and neighbouring rows share nothing."""
    x = GaussianSurrogate(torch.eye(6), torch.zeros(6), num_rows=50_000, seed=1).read(np.arange(50_000)).double()
    assert (x.pow(4).mean(dim=0) - 3).abs().max() < 0.25
    assert ((x.abs() > 1.959964).double().mean(dim=0) - 0.05).abs().max() < 0.005
    assert (x.square().T.cov() - 2 * torch.eye(6)).abs().max() < 0.15
    assert ((x[1:] * x[:-1]).mean(dim=0)).abs().max() < 0.02


def test_a_row_depends_on_seed_and_number_alone() -> None:
    rows = surrogate(10_000)
    whole = torch.cat(list(rows.blocks(999)))
    index = np.random.default_rng(0).integers(0, 10_000, 5_000)
    assert torch.allclose(rows.read(index), whole[torch.from_numpy(index)], atol=1e-4)
    assert torch.equal(rows.read(index), surrogate(10_000).read(index))
    assert not torch.allclose(rows.read(index), surrogate(10_000, seed=1).read(index), atol=1e-2)
    assert len(torch.unique(whole, dim=0)) == 10_000


def test_it_is_rows_and_reads_shuffled_ones_fast() -> None:
    rows = GaussianSurrogate(torch.eye(256), torch.zeros(256), num_rows=10**9)
    assert isinstance(rows, Rows)
    assert open_rows(rows) is rows
    start = time.perf_counter()
    read = rows.read(np.random.default_rng(0).integers(0, 10**9, 16_384))
    assert read.shape == (16_384, 256)
    assert read.dtype == torch.float32
    assert time.perf_counter() - start < 5
    assert rows.read(np.empty(0, dtype=np.int64)).shape == (0, 256)


def test_a_singular_covariance_stays_in_its_plane() -> None:
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64) / 5
    x = GaussianSurrogate(torch.outer(direction, direction), torch.zeros(2), num_rows=100).read(np.arange(100))
    assert (x @ torch.tensor([4.0, -3.0])).abs().max() < 1e-5
    assert x.std() > 0.3


@pytest.mark.parametrize(
    ("covariance", "mean", "message"),
    [
        (torch.eye(3), torch.zeros(2), "covariance \\[3, 3\\], mean \\[2\\]"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(2), "symmetric"),
        (torch.diag(torch.tensor([1.0, -1.0])), torch.zeros(2), "semi-definite"),
        (torch.full((2, 2), float("nan")), torch.zeros(2), "finite"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance: torch.Tensor, mean: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GaussianSurrogate(covariance, mean, num_rows=5)


def test_rows_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="from 0 to 9"):
        surrogate(10).read(np.array([10]))


# Nulls as objects


def test_each_control_takes_one_thing_away() -> None:
    rows = open_rows(torch.randn(500, 7, generator=torch.Generator().manual_seed(0)))
    plain = Recipe.parse({"resonance": {"joint": True}})
    for name, control in CONTROLS.items():
        assert control.name == name and control.survives
        changed = control.recipe(plain)
        differing = {
            f"{section}.{key}"
            for section in ("source", "resonance", "dictionary", "mechanism", "train")
            for key, value in getattr(changed, section)
            if value != getattr(getattr(plain, section), key)
        }
        assert differing == set(control.settings) and differing
        assert (control.rows(rows, 3) is rows) == (control is not GAUSSIAN)
    assert RANDOM_WEIGHTS.own_activations and not GAUSSIAN.own_activations


def test_the_gaussian_control_keeps_the_moments_of_the_rows() -> None:
    x = surrogate(20_000).read(np.arange(20_000)).square()  # far from Gaussian
    null = GAUSSIAN.rows(open_rows(x), 5)
    y = torch.cat(list(null.blocks()))
    assert null.num_rows == 20_000
    scale = x.std(dim=0).clamp_min(1e-3)
    assert ((x.mean(dim=0) - y.mean(dim=0)) / scale).abs().max() < 0.1


def test_an_unknown_control_is_explained() -> None:
    with pytest.raises(EvidenceError, match=r"gaussian, random-weights, frozen-decoder.*'shuffled'"):
        control_named("shuffled")
