"""Detectors find what a careful decoding finds, at the price of a product."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning import detection
from kyomei.learning.detection import best_thresholds, detectors, half_magnitude_code, usual_coefficients
from kyomei.source.planted import Planted
from kyomei.source.rows import TensorRows

PLANTED = Planted(n_features=48, dim=24, active=(1, 3), seed=1)
X, CODE = PLANTED.sample(6_000, seed=2)[:2]
CODE = CODE.to_dense()
ROWS = TensorRows(X)
TRUE = normalize(PLANTED.features, dim=1)


def f1(found: Tensor, truth: Tensor) -> float:
    """Mean over latents."""
    hits = (found & truth).sum(dim=0)
    return float((2 * hits / (found.sum(dim=0) + truth.sum(dim=0)).clamp_min(1)).mean())


def linear(decoder: Tensor, threshold: float = 0.5) -> SparseAutoencoder:
    return SparseAutoencoder(decoder, None, torch.full((len(decoder),), threshold), torch.zeros(decoder.shape[1]))


def test_detectors_detect_better_than_the_matched_filter_and_as_the_careful_code() -> None:
    unseen, code = PLANTED.sample(3_000, seed=3)[:2]
    truth = code.to_dense() > 0
    before = max(f1(linear(TRUE, t).encode(unseen) > 0, truth) for t in (0.3, 0.5, 0.7))
    sae = linear(TRUE)
    careful = half_magnitude_code(unseen, TRUE, usual_coefficients(sae, X))
    found = detectors(sae, ROWS, seed=0)
    after = f1(found.encode(unseen) > 0, truth)
    assert f1(torch.from_numpy(careful.toarray()) > 0, truth) > 0.95
    assert after > 0.9 > before + 0.05
    assert torch.equal(found.decoder, TRUE) and bool((found.encode(unseen) >= 0).all())


def test_values_are_the_coefficients_on_a_line() -> None:
    found = detectors(linear(TRUE), TensorRows(X + 0.3), seed=0)
    z = detectors(linear(TRUE), ROWS, seed=0).encode(X)
    both = (z > 0) & (CODE > 0)
    ratio = z[both] / CODE[both]
    assert float((ratio - 1).abs().median()) < 0.15
    assert found.width == 48


def test_the_centre_makes_no_difference() -> None:
    moved = torch.linspace(-1, 1, 24)
    shifted = SparseAutoencoder(TRUE, None, torch.full((48,), 0.5), moved)
    a, b = detectors(linear(TRUE), ROWS, seed=0), detectors(shifted, TensorRows(X + moved), seed=0)
    assert torch.allclose(a.encode(X[:200]), b.encode(X[:200] + moved), atol=1e-3)


def test_blocks_of_latents_and_a_silent_latent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decoder = torch.cat([TRUE, -TRUE[:1]])
    sae = SparseAutoencoder(decoder, None, torch.cat([torch.full((48,), 0.5), torch.tensor([99.0])]), torch.zeros(24))
    whole = detectors(sae, ROWS, seed=0)
    monkeypatch.setattr(detection, "LATENTS_PER_BLOCK", 7)
    parts = detectors(sae, ROWS, seed=0)
    assert torch.allclose(whole.encode(X[:500]), parts.encode(X[:500]), atol=1e-4)
    assert not bool(whole.encode(X)[:, 48].any())
    whole.save(tmp_path)
    assert torch.equal(kyomei.load(tmp_path).encode(X[:50]), whole.encode(X[:50]))


def test_best_thresholds_equal_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 3, generator=generator)
    present = (scores + torch.randn(200, 3, generator=generator) > 1).float()
    present[:, 2] = 0
    found = best_thresholds(scores, present)

    def own(j: int, t: float) -> float:
        return f1(scores[:, [j]] > t, present[:, [j]] > 0)

    for j in range(2):
        middles = [(a + b) / 2 for a, b in zip(sorted(scores[:, j].tolist()), sorted(scores[:, j].tolist())[1:], strict=False)]
        assert own(j, float(found[j])) == pytest.approx(max(own(j, t) for t in middles))
    assert found[2] == torch.inf


def test_the_careful_code_is_the_best_of_all_supports_where_features_are_orthogonal() -> None:
    decoder, rng = torch.eye(6), np.random.default_rng(0)
    y = torch.from_numpy(rng.normal(size=(40, 6))).float()
    code = half_magnitude_code(y, decoder, torch.ones(6)).toarray()
    for row, own in zip(y.numpy(), code, strict=True):
        allowed = [set(c) for r in range(7) for c in combinations(range(6), r) if all(row[i] >= 0.5 for i in c)]
        best = max(allowed, key=lambda c: sum(row[i] ** 2 for i in c))
        assert {int(i) for i in np.flatnonzero(own)} == best
        assert own[list(best)] == pytest.approx(row[list(best)], abs=1e-3)


def test_a_recipe_asks_for_detectors() -> None:
    values = {"mechanism.name": "matryoshka", "mechanism.k": 2, "dictionary.width": 64, "train.steps": 300}
    plain = kyomei.fit(X, kyomei.Recipe().with_values(values))
    detecting = kyomei.fit(X, kyomei.Recipe().with_values(values | {"mechanism.detectors": True}))
    assert torch.equal(plain.decoder, detecting.decoder) and not torch.equal(plain.encoder, detecting.encoder)
    with pytest.raises(RecipeError, match="a setting of topk, batchtopk, matryoshka"):
        kyomei.Recipe().with_values({"mechanism.detectors": True})
