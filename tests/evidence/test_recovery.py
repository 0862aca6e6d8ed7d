"""Recovery against slow references, closed forms and what must not change it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.errors import DataError, EvidenceError
from kyomei.evidence import recovery as module
from kyomei.evidence.cosines import matched_cosine, unit_rows
from kyomei.evidence.recovery import Recovery, recovery

seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_cosine(a: Tensor, b: Tensor) -> np.ndarray:
    out = np.zeros((len(a), len(b)))
    for i, left in enumerate(a.double().numpy()):
        for j, right in enumerate(b.double().numpy()):
            out[i, j] = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
    return out


def slow_matching(cosines: np.ndarray) -> float:
    if cosines.shape[0] > cosines.shape[1]:
        cosines = cosines.T
    k, n = cosines.shape
    return max(np.mean([abs(cosines[i, columns[i]]) for i in range(k)]) for columns in permutations(range(n), k))


def slow_classification(z: np.ndarray, h: np.ndarray, nearest: np.ndarray) -> tuple[float, float, float]:
    figures = []
    for latent, truth in enumerate(nearest):
        tp = sum(bool(a != 0 and b > 0) for a, b in zip(z[:, latent], h[:, truth], strict=True))
        fired, present = int((z[:, latent] != 0).sum()), int((h[:, truth] > 0).sum())
        p, r = tp / fired if fired else 0.0, tp / present if present else 0.0
        figures.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    precision, recall, f1 = np.mean(figures, axis=0)
    return float(precision), float(recall), float(f1)


CONTAINERS: list[Any] = [Tensor.numpy, Tensor.tolist, Tensor.to_sparse, lambda z: z.numpy().astype(">f8")]


@pytest.mark.parametrize("container", CONTAINERS)
def test_codes_in_any_container_are_classified_alike(container: Any) -> None:
    found = recovery(torch.eye(4), torch.eye(4))
    z = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) - 0.5).relu()
    assert found.precision_recall_f1(container(z), container(z)) == found.precision_recall_f1(z, z) == (1, 1, 1)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_equals_the_slow_reference(seed: int, k: int, n: int) -> None:
    a, b = normal(seed, k, 4), normal(seed + 1, n, 4)
    found, cosines = recovery(a, b), slow_cosine(a, b)
    tau = float(np.median(cosines)) + 1e-4
    assert found.frr(tau) == pytest.approx(np.mean(cosines.max(axis=0) >= tau))
    assert found.monosemantic(tau) == pytest.approx(np.mean(cosines.max(axis=1) >= tau))
    assert found.mcc == pytest.approx(slow_matching(cosines), abs=1e-5)
    distinct = len(set(np.abs(cosines).argmax(axis=1).tolist()))
    assert (found.n_matched, found.uniqueness) == (distinct, distinct / k)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_permutation_and_positive_scale_change_nothing(seed: int) -> None:
    a, b = normal(seed, 7, 5), normal(seed + 1, 6, 5)
    order, scale = torch.randperm(7, generator=torch.Generator().manual_seed(seed)), normal(seed + 2, 7, 1).exp()
    before, after = recovery(a, b).to_dict(), recovery((a * scale)[order], 3 * b).to_dict()
    assert after == pytest.approx(before, abs=1e-5)


def test_sign_matters_for_recovery_and_not_for_matching() -> None:
    b = torch.eye(4)
    found = recovery(-b, b)
    assert found.frr(0.8) == 0.0
    assert found.monosemantic(0.8) == 0.0
    assert found.mcc == pytest.approx(1.0)
    assert found.uniqueness == 1.0


def test_closed_form_with_splitting() -> None:
    """Two learnt rows share one feature, one sits at 45° between the others, one feature is missed."""
    vectors = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 1.0, 1.0, 0]])
    found = recovery(vectors, torch.eye(4))
    assert found.frr(0.9) == 0.25
    assert found.frr(0.7) == 0.75
    assert found.monosemantic(0.9) == pytest.approx(2 / 3)
    assert found.n_matched == 2
    assert found.uniqueness == pytest.approx(2 / 3)
    assert found.mcc == pytest.approx((1 + 0 + 2**-0.5) / 3)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_classification_equals_the_slow_reference(seed: int) -> None:
    found = recovery(normal(seed, 5, 4), normal(seed + 1, 6, 4))
    z = normal(seed + 2, 40, 5) * (normal(seed + 3, 40, 5) > 1)
    h = normal(seed + 4, 40, 6).relu() * (normal(seed + 5, 40, 6) > 0.5)
    expected = slow_classification(z.numpy(), h.numpy(), found.nearest.numpy())
    assert found.precision_recall_f1(z, h) == pytest.approx(expected)
    assert found.precision_recall_f1(z.to_sparse_csr(), h.to_sparse_csr()) == pytest.approx(expected)


def test_a_perfect_code_scores_one_and_a_silent_one_zero() -> None:
    features, h = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0], [1.0, 1.0, 0]])
    assert recovery(features, features).precision_recall_f1(h, h) == (1.0, 1.0, 1.0)
    assert recovery(features, features).precision_recall_f1(torch.zeros(4, 3), h) == (0.0, 0.0, 0.0)


def test_blocks_agree_with_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, z, h = normal(0, 50, 8), normal(1, 40, 8), normal(2, 30, 50).relu(), normal(3, 30, 40).relu()
    whole = recovery(a, b)
    figures, classified = whole.to_dict(), whole.precision_recall_f1(z.to_sparse_csr(), h)
    monkeypatch.setattr("kyomei.dictionary.cosines.COSINES_PER_BLOCK", 120)
    monkeypatch.setattr(module, "CODE_ENTRIES_PER_BLOCK", 350)
    parts = recovery(a, b)
    assert parts.to_dict() == pytest.approx(figures, abs=1e-6)
    assert parts.precision_recall_f1(z.to_sparse_csr(), h) == pytest.approx(classified)


def test_zero_rows_and_extreme_scales_have_cosines() -> None:
    units = unit_rows(torch.tensor([[0.0, 0.0], [3e38, 3e38], [1e-38, 0.0]]), "vectors")
    assert torch.allclose(units, torch.tensor([[0.0, 0.0], [0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_nothing_learnt_is_a_result() -> None:
    found = recovery(torch.empty(0, 3), torch.eye(3))
    assert found.to_dict() == {
        "n_vectors": 0,
        "n_features": 3,
        "frr_0.8": 0.0,
        "frr_0.9": 0.0,
        "monosemantic_0.9": 0.0,
        "mcc": 0.0,
        "n_matched": 0,
        "uniqueness": 0.0,
    }
    assert matched_cosine(torch.empty(0, 3), torch.eye(3)) == 0.0
    assert found.precision_recall_f1(torch.empty(4, 0), torch.eye(4, 3)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("vectors", "features", "message"),
    [
        (torch.eye(3), torch.empty(0, 3), "at least one feature"),
        (torch.eye(3), torch.eye(4), r"\[3, 3\] against \[4, 4\]"),
        (torch.ones(3), torch.eye(3), r"vectors of shape \[rows, dim\]"),
        (torch.tensor([[1.0], [float("nan")]]), torch.ones(1, 1), "infinity in row 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(vectors: Tensor, features: Tensor, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        recovery(vectors, features)


def test_codes_of_other_rows_are_refused() -> None:
    found: Recovery = recovery(torch.eye(3), torch.eye(3))
    with pytest.raises(EvidenceError, match=r"z \[rows, 3\] and h \[rows, 3\]"):
        found.precision_recall_f1(torch.ones(4, 3), torch.ones(5, 3))
    with pytest.raises(DataError, match=r"numbers. Found a value of type NoneType"):
        found.precision_recall_f1(None, torch.ones(4, 3))  # type: ignore[arg-type]


def test_arrays_and_lists_are_taken_as_tensors_are() -> None:
    from kyomei.evidence.consistency import consistency

    a, b = normal(0, 6, 5), normal(1, 4, 5)
    for give in (lambda t: t.numpy(), lambda t: t.tolist(), lambda t: t.double().numpy()):
        assert recovery(give(a), give(b)).to_dict() == pytest.approx(recovery(a, b).to_dict(), abs=1e-6)
        found = consistency(give(a), give(b), null=(give(b), give(a)), metric="whitened", whitening=give(torch.eye(5)))
        assert torch.allclose(found.mcs, consistency(a, b, null=(b, a)).mcs, atol=1e-6)
