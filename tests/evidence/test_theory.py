"""The theorem's terms in closed form, its premises against slow references, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.errors import EvidenceError
from kyomei.evidence import theory
from kyomei.evidence.recovery import recovery
from kyomei.evidence.theory import (
    decomposability,
    frequency_band,
    identifiability,
    incoherence_bound,
    resonance_band,
    sparsity_bound,
    superposition,
    width_bound,
)
from kyomei.source.planted import Planted

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 10**6)
sparsities = st.integers(1, 60)
slacks = st.floats(0, 0.9)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coefficients(seed: int, rows: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(rows, n, generator=generator) + 0.1
    h = h * (torch.rand(rows, n, generator=generator) < 0.3)
    h[0, 0] = 1.0
    return h


def test_the_width_bound_by_hand() -> None:
    assert width_bound(128, 0.1, 3) == pytest.approx(math.log10(128) + 3)
    assert width_bound(128, 0.1, 3, epsilon=0.5) == pytest.approx(math.log10(128) + 12)
    assert width_bound(64, 1.0, 20) == pytest.approx(math.log10(64))
    # The number itself would overflow a float.
    assert width_bound(10**4, 1e-4, 200) == pytest.approx(804)


@given(sizes, st.floats(1e-6, 1), sparsities, slacks)
def test_the_width_bound_is_linear_in_n_and_exponential_in_s(n: int, p: float, s: int, epsilon: float) -> None:
    here = width_bound(n, p, s, epsilon)
    assert width_bound(10 * n, p, s, epsilon) == pytest.approx(here + 1, abs=1e-6)
    step = width_bound(n, p, s + 1, epsilon) - here
    assert step == pytest.approx(width_bound(n, p, s + 2, epsilon) - width_bound(n, p, s + 1, epsilon), abs=1e-6)
    assert step == pytest.approx(-math.log10(p) / (1 - epsilon) ** 2, abs=1e-6)


def test_the_band_by_hand() -> None:
    band = frequency_band(10_000, 100, 4)
    assert band.lower == pytest.approx(1e-4)
    terms = {"n^(−(1+1/s)/2)": 10**-2.5, "n^(−2(1+ε)²/s)": 1e-2, "d^(1−ς)/n": 1e-2}
    assert dict(band.upper_terms) == pytest.approx(terms)
    assert band.binding == "n^(−(1+1/s)/2)"
    assert band.decades == pytest.approx(1.5)
    assert band.margins(1e-3) == pytest.approx({"lower": 1, **{k: math.log10(v) + 3 for k, v in terms.items()}})
    assert frequency_band(10_000, 100, 4, epsilon=0.5).upper_terms["n^(−2(1+ε)²/s)"] == pytest.approx(10**-4.5)
    assert frequency_band(10_000, 100, 4, varsigma=0.5).upper_terms["d^(1−ς)/n"] == pytest.approx(1e-3)
    assert frequency_band(10_000, 2, 20).binding == "d^(1−ς)/n"
    # The imbalanced set of the paper lies above its band.
    assert frequency_band(128, 42, 20).upper == pytest.approx(0.078, abs=5e-4)


@given(sizes, st.integers(2, 10**5), sparsities)
def test_the_band_is_empty_for_two_active_features_or_fewer(n: int, d: int, s: int) -> None:
    band = frequency_band(n, d, s)
    assert band.upper == min(band.upper_terms.values())
    assert (s > 2) or band.decades <= 1e-9
    assert band.empty == (band.upper <= band.lower)
    assert band.to_dict()["binding"] in band.upper_terms


@given(st.integers(4, 10**6), st.integers(1, 10**4), st.integers(1, 4))
def test_the_resonance_band_widens_until_the_crossing(n: int, d: int, s: int) -> None:
    band, place = resonance_band(n, d, s), superposition(n, d, s)
    f = s / n
    assert band.lower == f
    assert band.upper == pytest.approx(min(math.sqrt(f), f * d))
    assert band.decades == pytest.approx(min(-math.log10(f) / 2, math.log10(d)), abs=1e-9)
    assert (place.decades_above_crossing < -1e-9) <= (band.binding == "f·d")
    assert (place.regime == "heavy") == (d < math.sqrt(n))
    assert place.decades_above_crossing == pytest.approx(place.decades_above_root_n + math.log10(s) / 2)
    assert place.ratio == n / d


@given(st.integers(2, 10**6), sparsities)
def test_the_sparsity_bound_is_where_occurrence_meets_the_band(n: int, s: int) -> None:
    below = s <= sparsity_bound(n, s) * (1 + 1e-12)
    assert below == (s / n <= frequency_band(n, 10, s).upper_terms["n^(−(1+1/s)/2)"] * (1 + 1e-12))


@pytest.mark.parametrize(("n", "d"), [(128, 100), (128, 42), (60, 6)])
def test_the_incoherence_bound_is_the_largest_cosine_of_gaussian_features(n: int, d: int) -> None:
    measured = [decomposability(torch.eye(n), normal(seed, n, d)).incoherence for seed in range(20)]
    assert np.median(measured) == pytest.approx(incoherence_bound(n, d), rel=0.05)
    assert incoherence_bound(n, 1) == 1.0
    assert incoherence_bound(1, d) == 0.0


@given(seeds, st.integers(2, 40), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_premises_equal_the_slow_reference(seed: int, rows: int, n: int) -> None:
    h, v = coefficients(seed, rows, n), normal(seed + 1, n, 5)
    found = decomposability(h.to_sparse_csr(), v)
    present = (h > 0).numpy()
    assert found.sparsity_max == present.sum(axis=1).max()
    assert found.sparsity_mean == pytest.approx(present.sum(axis=1).mean())
    assert np.allclose(found.frequency, present.mean(axis=0))
    shares = [
        (present[:, i] & present[:, j]).sum() / present[:, i].sum()
        for i in range(n)
        for j in range(n)
        if i != j and present[:, i].any()
    ]
    assert found.co_occurrence == pytest.approx(max(shares, default=0.0))
    if found.co_occurring:
        i, j = found.co_occurring
        assert (present[:, i] & present[:, j]).sum() / present[:, i].sum() == pytest.approx(found.co_occurrence)
    for i in range(n):
        values = h[:, i][h[:, i] > 0].double().numpy()
        if len(values):
            assert found.balance[i] == pytest.approx(values.min() / np.median(values))
            assert found.variation[i] == pytest.approx(values.std() / values.mean(), abs=1e-9)
        else:
            assert math.isnan(found.balance[i])
    units = v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1)[:, None]
    cosines = np.abs(units @ units.T) - 2 * np.eye(n)
    assert found.incoherence == pytest.approx(cosines.max(), abs=1e-6)
    assert found.coherent is not None and cosines[found.coherent] == pytest.approx(cosines.max(), abs=1e-6)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_premises_ignore_order_scale_and_layout(seed: int) -> None:
    h, v = coefficients(seed, 30, 7), normal(seed + 1, 7, 5)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    scale = normal(seed + 2, 7).exp()
    before = decomposability(h, v)
    after = decomposability((h / scale)[:, order].to_sparse_csr(), (v * scale[:, None])[order])
    assert after.margins == pytest.approx(before.margins, abs=1e-5)
    assert torch.allclose(after.frequency, before.frequency[order])
    assert torch.allclose(after.balance, before.balance[order], equal_nan=True, rtol=1e-5)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    h, v = coefficients(3, 200, 12), normal(4, 12, 6)
    whole = decomposability(h, v)
    monkeypatch.setattr(theory, "ENTRIES_PER_BLOCK", 5)
    monkeypatch.setattr("kyomei.dictionary.cosines.COSINES_PER_BLOCK", 20)
    blockwise = decomposability(h, v)
    assert blockwise.margins == pytest.approx(whole.margins, abs=1e-5)
    assert (blockwise.co_occurring, blockwise.coherent) == (whole.co_occurring, whole.coherent)


def test_stored_zeros_are_no_occurrences() -> None:
    h = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]]).to_sparse_csr()
    h.values()[1] = 0.0
    found = decomposability(h, torch.eye(3))
    assert found.frequency.tolist() == [0.5, 0.5, 0.0]
    assert found.co_occurrence == 0.0
    assert found.co_occurring is None
    assert found.margins["co_occurrence"] == math.inf
    assert found.to_dict()["margins_log10"]["co_occurrence"] is None
    assert h.values().tolist() == [1.0, 0.0, 0.5]


def test_planted_data_have_the_premises_that_were_planted() -> None:
    planted = Planted(n_features=64, dim=32, active=4, co_occurrence=0.5, coefficient="uniform", seed=2)
    found = decomposability(planted.sample(20_000, seed=3)[1], planted.features)
    assert found.sparsity_mean == 4 == found.sparsity_max
    assert np.allclose(found.frequency, planted.frequencies, atol=0.01)
    assert found.co_occurrence == pytest.approx(0.5, abs=0.05)
    assert found.co_occurring is not None and found.co_occurring[0] // 2 == found.co_occurring[1] // 2
    assert found.margins["co_occurrence"] == pytest.approx(math.log10(64**-0.5 / 0.5), abs=0.05)
    assert 0.2 < found.smallest_balance < 1
    assert "ρ₂ 0." in str(found) and "outside" in str(found)


def test_the_imbalanced_set_lies_outside_low_co_occurrence() -> None:
    planted = Planted(n_features=128, dim=42, active=(3, 20), seed=0)
    found = decomposability(planted.sample(20_000, seed=1)[1], planted.features)
    assert found.margins["co_occurrence"] < 0 < found.co_occurrence
    assert found.co_occurrence == pytest.approx(0.15, abs=0.03)


@given(seeds, st.integers(0, 12), st.integers(1, 8), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_identifiability_equals_the_slow_reference(seed: int, k: int, n: int, tau: float) -> None:
    learnt, truth = normal(seed, k, 4), normal(seed + 1, n, 4)
    found = identifiability(learnt, truth, tau=tau)
    units = [m.double().numpy() / np.linalg.norm(m.double().numpy(), axis=1)[:, None] for m in (learnt, truth)]
    cosines = units[0] @ units[1].T
    best = cosines.max(axis=0) if k else np.full(n, -1.0)
    assert np.allclose(found.error, 1 - best, atol=1e-5)
    clear = np.abs(cosines.max(axis=1) - tau) > 1e-5 if k else np.zeros(0, bool)
    expected = np.where(cosines.max(axis=1) >= tau, cosines.argmax(axis=1), -1) if k else np.zeros(0, int)
    assert (found.belongs_to.numpy()[clear] == expected[clear]).all()
    assert found.num_rows_of.sum() == (found.belongs_to >= 0).sum()
    assert found.identified_share == pytest.approx(recovery(learnt, truth).frr(tau), abs=0.02 if n < 9 and clear.all() else 1)


@given(seeds, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_identifiability_up_to_permutation_scale_and_splitting(seed: int, copies: int) -> None:
    truth = normal(seed, 6, 24)
    learnt = truth[:4] + 0.05 * normal(seed + 1, 4, 24)
    once = identifiability(learnt, truth)
    order = torch.randperm(4 * copies, generator=torch.Generator().manual_seed(seed))
    scale = normal(seed + 2, 4 * copies, 1).exp()
    again = identifiability((learnt.repeat(copies, 1) * scale)[order], 2 * truth)
    assert torch.allclose(once.error, again.error, atol=1e-5)
    assert again.num_rows_of.tolist() == [copies] * 4 + [0, 0]
    assert again.identified_share == once.identified_share == pytest.approx(4 / 6)
    assert again.split_share == pytest.approx(4 / 6 if copies > 1 else 0)
    assert again.rows_per_found == copies
    assert again.alien_share == 0


def test_rows_that_belong_to_none_and_negative_ones() -> None:
    truth = torch.eye(4)
    learnt = torch.cat([truth[:2], -truth[2:3], torch.ones(1, 4)])
    found = identifiability(learnt, truth)
    assert found.belongs_to.tolist() == [0, 1, -1, -1]
    assert found.error.tolist() == pytest.approx([0, 0, 0.5, 0.5])
    assert found.alien_share == 0.5
    assert found.to_dict()["epsilon"]["largest"] == pytest.approx(0.5)
    assert "50.0 % of 4 features identified" in str(found)
    assert identifiability(torch.empty(0, 4), truth).error.tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: width_bound(128, 0.0, 3), r"p in \(0, 1\]"),
        (lambda: width_bound(128, 0.1, 3, epsilon=1), "slack"),
        (lambda: frequency_band(128, 0, 3), "d of 1 or more"),
        (lambda: frequency_band(128, 42, 3, varsigma=-0.1), "slack"),
        (lambda: resonance_band(128, 42, 3).margins(2), r"p in \(0, 1\]"),
        (lambda: decomposability(torch.ones(3, 2), torch.eye(4)), r"h of shape \[rows, 4\]"),
        (lambda: decomposability(-torch.eye(4), torch.eye(4)), "finite coefficients of 0 or more"),
        (lambda: decomposability(torch.zeros(3, 4), torch.eye(4)), "an active feature"),
        (lambda: identifiability(torch.eye(3), torch.eye(4)), r"\[3, 3\] against \[4, 4\]"),
        (lambda: identifiability(torch.eye(4), torch.eye(4), tau=0), r"tau in \(0, 1\]"),
    ],
)
def test_impossible_questions_are_refused(call: object, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.slow
def test_a_million_rows() -> None:
    planted = Planted(n_features=1024, dim=8, active=8, seed=0)
    h = planted.sample(1_000_000, seed=1)[1]
    found = decomposability(h, planted.features)
    # By chance 7 of 1,023 others are present; the largest of a million shares, each of some 7,800 rows, lies 5σ above.
    chance, rows_of = 7 / 1023, 1_000_000 * 8 / 1024
    assert found.co_occurrence == pytest.approx(chance + 5 * math.sqrt(chance / rows_of), rel=0.15)
    assert found.sparsity_mean == 8
