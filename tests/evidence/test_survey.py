"""One pass gives what slow references give, whatever the blocks, for all dictionaries at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence import codes
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.selectivity import selectivity
from kyomei.evidence.survey import STRONGEST, survey
from kyomei.source.rows import TensorRows


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(0, 500, 6) + 3
DICTIONARIES = [
    SparseAutoencoder(normal(1, 16, 6), normal(2, 16, 6) / 6, torch.full((16,), 2.0), X.mean(dim=0) + 0.1),
    SparseAutoencoder(normal(3, 9, 6), None, torch.zeros(9), X.mean(dim=0), activation="topk", k=3),
]


def parts_slowly(sae: SparseAutoencoder) -> np.ndarray:
    """Σ_rows (z_i − z̄_i) d_i·(2x̃ − r) over Σ‖x̃‖², in float64 from whole tables."""
    x, z = X.double().numpy(), sae.encode(X).double().numpy()
    mean = x.mean(axis=0)
    rest = 2 * (x - mean) - (sae(X).double().numpy() - mean)
    products = ((z - z.mean(axis=0)) * (rest @ sae.decoder.double().numpy().T)).sum(axis=0)
    return products / ((x - mean) ** 2).sum()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_every_figure_equals_its_slow_reference(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(codes, "SCORES_PER_BLOCK", 16 * block)
    taken = np.array([0, 3, 4, 100, 499])
    found = survey(DICTIONARIES, TensorRows(X), taken, num_explained=2)
    x = X.double().numpy()
    for sae, one in zip(DICTIONARIES, found, strict=True):
        z = sae.encode(X).double().numpy()
        error = ((x - sae(X).double().numpy()) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        assert one.fidelity.fvu == pytest.approx(error, rel=1e-6)
        assert one.fidelity.l0_mean == pytest.approx((z != 0).sum(axis=1).mean())
        assert np.allclose(one.selectivity.std, z.std(axis=0), rtol=1e-6, atol=1e-9)
        assert np.allclose(one.selectivity.max_activation, z.max(axis=0))
        assert one.explained is not None and np.allclose(one.explained, parts_slowly(sae), rtol=1e-6, atol=1e-6)
        assert one.code is not None and np.allclose(one.code.toarray(), z[taken], atol=1e-6)
        for latent in range(sae.width):
            order = np.lexsort((np.arange(len(z)), -z[:, latent]))[:STRONGEST]
            expected = np.where(z[order, latent] > 0, z[order, latent], 0)
            assert np.allclose(one.strongest.activation[latent], expected, atol=1e-6)


def test_single_figures_are_those_of_the_survey() -> None:
    (found,) = survey(DICTIONARIES[:1], TensorRows(X))
    assert found.code is None and found.explained is None
    assert fidelity(DICTIONARIES[0], X).to_dict() == found.fidelity.to_dict()
    assert selectivity(DICTIONARIES[0], X).to_dict() == found.selectivity.to_dict()


def test_every_row_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read, blocks = TensorRows(X), [], TensorRows.blocks
    monkeypatch.setattr(TensorRows, "blocks", lambda self, size: (read.append(len(b)) or b for b in blocks(self, size)))
    survey(DICTIONARIES, rows, np.arange(500), num_explained=1)
    assert sum(read) == 500
