"""Nearest directions: the same as from the whole table, in any block, and nothing to compare with."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from kyomei.dictionary import cosines
from kyomei.dictionary.cosines import nearest, nearest_other


def units(seed: int, rows: int, dim: int = 7) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("per_block", [1, 40, 2**24])
def test_it_is_the_maximum_of_the_whole_table(monkeypatch: pytest.MonkeyPatch, per_block: int) -> None:
    monkeypatch.setattr(cosines, "COSINES_PER_BLOCK", per_block)
    a, b = units(0, 11), units(1, 23)
    table = a @ b.T
    found = nearest(a, b)
    assert torch.allclose(found.cosine, table.amax(dim=1)) and torch.equal(found.row, table.argmax(dim=1))
    own = (a @ a.T).fill_diagonal_(-2)
    other = nearest_other(a)
    assert torch.allclose(other.cosine, own.amax(dim=1)) and torch.equal(other.row, own.argmax(dim=1))


def test_nothing_to_compare_with() -> None:
    assert nearest(units(0, 0), units(1, 3)).cosine.shape == (0,)
    alone = nearest(units(0, 2), units(1, 0))
    assert alone.cosine.tolist() == [0, 0] and alone.row.tolist() == [-1, -1]
    assert nearest_other(units(0, 1)).row.tolist() == [-1]
    # A row and its opposite are no neighbours, but each other's only ones.
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert nearest_other(pair).cosine.tolist() == [-1, -1] and nearest_other(pair).row.tolist() == [1, 0]
