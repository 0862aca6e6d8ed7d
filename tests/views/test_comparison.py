"""What of one dictionary is in another: planted so that the answer is known."""

from __future__ import annotations

import pytest
import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.source.rows import open_rows
from kyomei.views.comparison import compare


def of(rows: torch.Tensor, threshold: float = 0.5) -> SparseAutoencoder:
    return SparseAutoencoder(rows, None, torch.full((len(rows),), threshold), torch.zeros(rows.shape[1]))


def test_shared_split_only_and_dead_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(6000, 8, generator=generator) < 0.08
    active[:, 1] &= ~active[:, 0]  # three parts of one whole, never together
    active[:, 5] &= ~(active[:, 0] | active[:, 1])
    x = active.float() * (1 + torch.rand(6000, 8, generator=generator)) + 0.01 * torch.randn(6000, 8, generator=generator)
    axes = torch.eye(8)
    whole = torch.nn.functional.normalize(axes[0] + axes[1] + axes[5], dim=0)
    dead = -axes[7]
    a = of(torch.stack([axes[2], axes[3], whole, axes[4], dead]))
    b = of(torch.stack([axes[3], axes[0], axes[1], axes[2], axes[6], axes[5]]))
    found = compare(a, b, open_rows(x))
    kinds = {row["latent"]: row["kind"] for row in found["rows"]}
    assert kinds == {0: "shared", 1: "shared", 2: "split", 3: "only"}
    partners = {row["latent"]: row["partners"][0]["latent"] for row in found["rows"]}
    assert (partners[0], partners[1]) == (3, 0) and partners[2] in (1, 2, 5)
    assert found["counts"] == {"shared": 2, "split": 1, "merged": 0, "only": 1} and found["dead"] == 1
    back = {row["latent"]: row["kind"] for row in compare(b, a, open_rows(x))["rows"]}
    assert back[1] == back[2] == back[5] == "merged" and back[4] == "only"


def test_dictionaries_of_other_sites_are_refused() -> None:
    with pytest.raises(DataError, match="same site"):
        compare(of(torch.eye(8)), of(torch.eye(5)), open_rows(torch.randn(100, 8)))
