"""Selectivity and strongest rows against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.evidence import codes as codes_module
from kyomei.evidence.codes import coded_blocks
from kyomei.evidence.selectivity import StrongestRows, selectivity
from kyomei.source.rows import TensorRows


class Passing:
    """A dictionary whose code is its input."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def codes(seed: int, rows: int, width: int) -> Tensor:
    """Sparse, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (rows, width), generator=generator).float() * (
        torch.rand(rows, width, generator=generator) < 0.4
    )


@given(st.integers(0, 10_000), st.sampled_from([1, 8, 64]))
@settings(max_examples=20, deadline=None)
def test_selectivity_equals_numpy(seed: int, block: int) -> None:
    z = codes(seed, 50, 4) + torch.tensor([0.0, 0.0, 0.0, 1e3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes_module, "SCORES_PER_BLOCK", 4 * block)
        found = selectivity(Passing(4), z)
    plain = z.double().numpy()
    assert np.allclose(found.max_activation, plain.max(axis=0))
    assert np.allclose(found.mean, plain.mean(axis=0))
    assert np.allclose(found.std, plain.std(axis=0), atol=1e-6)
    assert np.allclose(found.frequency, (plain != 0).mean(axis=0))
    assert np.allclose(found.z_score, (plain.max(axis=0) - plain.mean(axis=0)) / plain.std(axis=0))


def test_one_row_in_n_has_the_largest_z_score_possible() -> None:
    z = torch.zeros(101, 1)
    z[17] = 5.0
    assert selectivity(Passing(1), z).z_score.item() == pytest.approx(100**0.5)
    assert selectivity(Passing(1), 100 * z).z_score.item() == pytest.approx(100**0.5)


def test_a_latent_that_never_changes_has_z_score_zero() -> None:
    found = selectivity(Passing(2), torch.tensor([0.0, 0.1]).expand(1000, 2))
    assert found.z_score.tolist() == [0.0, 0.0]
    assert found.to_dict()["frequency"] == [0.0, 1.0]


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 64]), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_strongest_rows_equals_a_full_sort(seed: int, block: int, count: int) -> None:
    z = codes(seed, 40, 5)
    found = StrongestRows(5, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes_module, "SCORES_PER_BLOCK", 5 * block)
        for (coded,) in coded_blocks([Passing(5)], TensorRows(z)):
            found.add(coded)
    for latent in range(5):
        column = z[:, latent].numpy()
        order = [int(i) for i in np.lexsort((np.arange(40), -column)) if column[i] > 0][:count]
        missing = count - len(order)
        assert found.row[latent].tolist() == order + [-1] * missing
        assert found.activation[latent].tolist() == column[order].tolist() + [0.0] * missing
