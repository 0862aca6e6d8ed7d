"""Planted data keeps every promise of its law: sparsity, frequencies, co-occurrence, norms, noise, purity, speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kyomei.errors import RecipeError
from kyomei.source.planted import CHILD_SHARE, COEFFICIENT_RANGE, HIGHEST_FREQUENCY, Planted

ROWS = 60_000


def support(h: torch.Tensor) -> NDArray[np.bool_]:
    return h.to_dense().numpy() > 0


def partner_rates(active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """P(partner is present | feature is present) for every feature."""
    partner = active.reshape(len(active), -1, 2)[:, :, ::-1].reshape(active.shape)
    rates: NDArray[np.float64] = (active & partner).sum(0) / active.sum(0)
    return rates


LAWS: list[dict[str, Any]] = [
    {"active": 3},
    {"active": (3, 20), "coefficient": "uniform"},
    {"active": 4, "frequency": "zipf"},
    {"active": (2, 6), "frequency": "zipf", "coefficient": "uniform", "co_occurrence": 0.3},
    {"active": (4, 7), "co_occurrence": 0.5},
    {"active": 1},
    {"active": 1, "frequency": "zipf"},
    {"active": (2, 5), "hierarchy": (3, 2), "coefficient": "uniform"},
]


@pytest.mark.parametrize("law", LAWS)
def test_shapes_norms_and_x_is_h_times_v(law: dict[str, Any]) -> None:
    planted = Planted(n_features=64, dim=24, seed=3, **law)
    x, h = planted.sample(2000, seed=1)
    assert (x.shape, x.dtype) == ((2000, 24), torch.float32)
    assert (h.shape, h.dtype, h.layout) == ((2000, 64), torch.float32, torch.sparse_csr)
    torch.sparse_csr_tensor(h.crow_indices(), h.col_indices(), h.values(), h.shape, check_invariants=True)
    dense = h.to_dense()
    assert (h.values() > 0).all()
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2000), atol=1e-6, rtol=0)
    torch.testing.assert_close(x, dense @ planted.features, atol=1e-6, rtol=0)


@pytest.mark.parametrize("superposition", ["gaussian", "orthogonal"])
def test_features_are_unit_rows(superposition: Any) -> None:
    features = Planted(30, 40, 3, seed=1, superposition=superposition).features
    assert (features.shape, features.dtype) == ((30, 40), torch.float32)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(30), atol=1e-6, rtol=0)
    overlap = (features @ features.T - torch.eye(30)).abs().max()
    if superposition == "orthogonal":
        assert overlap < 1e-5
    else:
        assert 0.2 < overlap < 0.8


def test_uniform_rows_have_exactly_the_active_features_equally_often() -> None:
    planted = Planted(n_features=32, dim=16, active=4, seed=1)
    _, h = planted.sample(ROWS, seed=2)
    active = support(h)
    assert (active.sum(1) == 4).all()
    np.testing.assert_allclose(planted.frequencies, 4 / 32)
    assert np.abs(active.mean(0) - 4 / 32).max() < 5 * np.sqrt(0.125 * 0.875 / ROWS)
    together = (active.T.astype(float) @ active) / ROWS
    expected = 4 * 3 / (32 * 31)
    off_diagonal = together[~np.eye(32, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 5.5 * np.sqrt(expected / ROWS), "every pair meets equally often"


@pytest.mark.parametrize(("n_features", "active"), [(5, 5), (6, 5), (3, 1)])
def test_nearly_all_features_may_be_active(n_features: int, active: int) -> None:
    _, h = Planted(n_features, 4, active).sample(3000, seed=0)
    assert (support(h).sum(1) == active).all()
    assert np.abs(support(h).mean(0) - active / n_features).max() < 0.05


def test_a_tuple_is_an_equal_mixture() -> None:
    planted = Planted(n_features=128, dim=42, active=(3, 20), seed=0)
    _, h = planted.sample(ROWS, seed=0)
    counts = np.diff(h.crow_indices().numpy())
    assert set(counts) == {3, 20}
    assert abs((counts == 3).mean() - 0.5) < 5 * 0.5 / np.sqrt(ROWS)
    np.testing.assert_allclose(planted.frequencies, 11.5 / 128)
    assert np.abs(support(h).mean(0) - 11.5 / 128).max() < 0.006


@pytest.mark.parametrize("active", [1, 3, (2, 8)])
def test_zipf_frequencies_fall_as_one_over_rank_with_the_mean_asked_for(active: Any) -> None:
    planted = Planted(n_features=200, dim=16, active=active, seed=1, frequency="zipf")
    _, h = planted.sample(ROWS, seed=5)
    seen, expected = support(h).mean(0), planted.frequencies
    assert abs(expected.sum() - np.mean(active)) < 1e-9
    assert np.abs(seen - expected).max() < 5 * np.sqrt(0.25 / ROWS)
    assert (np.abs(seen - expected) < 5.5 * np.sqrt(expected / ROWS) + 1e-5).all()
    assert np.diff(h.crow_indices().numpy()).min() >= 1, "no row is empty"
    uncut = expected < HIGHEST_FREQUENCY * 0.5
    products = expected * np.arange(1, 201)
    assert np.ptp(products[uncut]) < 1e-9 * products.max()


def test_zipf_frequencies_are_cut_and_keep_their_sum() -> None:
    expected = Planted(20, 4, 12, frequency="zipf").frequencies
    assert abs(expected.sum() - 12) < 1e-9
    assert expected.max() == HIGHEST_FREQUENCY
    assert (expected == HIGHEST_FREQUENCY).sum() > 1
    assert (np.diff(expected) <= 0).all()


def test_zipf_features_know_nothing_of_each_other() -> None:
    _, h = Planted(50, 4, 6, frequency="zipf").sample(ROWS, seed=1)
    active = support(h)[:, :6].astype(float)
    correlation = np.corrcoef(active.T)
    assert np.abs(correlation - np.eye(6)).max() < 0.03


@pytest.mark.parametrize(
    ("active", "frequency", "target"),
    [
        (2, "uniform", 0.3),
        ((3, 20), "uniform", 0.5),
        (5, "uniform", 0.7),
        (4, "uniform", 0),
        (6, "zipf", 0.4),
        ((3, 8), "zipf", 0.9),
    ],
)
def test_partners_meet_as_often_as_asked(active: Any, frequency: Any, target: float) -> None:
    planted = Planted(64, 8, active, seed=2, frequency=frequency, co_occurrence=target)
    _, h = planted.sample(ROWS, seed=3)
    present = support(h)
    counts = present.sum(1)
    if frequency == "uniform":
        assert set(counts) == set(planted.sparsities)
    assert abs(counts.mean() - np.mean(active)) < 0.08
    rates, n_seen = partner_rates(present), present.sum(0)
    assert (np.abs(rates - target) < 6 * np.sqrt(target * (1 - target) / n_seen) + 1e-9).all()
    seen, expected = present.mean(0), planted.frequencies
    assert (np.abs(seen - expected) < 6 * np.sqrt(expected / ROWS)).all()
    assert (expected[::2] == expected[1::2]).all(), "partners are equally frequent"


def test_without_co_occurrence_partners_are_strangers() -> None:
    present = support(Planted(64, 8, 4).sample(ROWS, seed=3)[1])
    assert np.abs(partner_rates(present) - 3 / 63).max() < 0.025


@pytest.mark.parametrize(
    ("n_features", "active", "hierarchy", "frequency"),
    [(64, 3, (3, 2), "uniform"), (70, (1, 3), (2, 3), "uniform"), (60, 3, (4, 2), "zipf"), (16, 2, (1, 2), "uniform")],
)
def test_a_child_occurs_only_with_its_parent(n_features: int, active: Any, hierarchy: Any, frequency: Any) -> None:
    planted = Planted(n_features, 8, active, seed=1, hierarchy=hierarchy, frequency=frequency)
    present, parents = support(planted.sample(ROWS, seed=2)[1]), planted.parents
    roots = np.flatnonzero(parents < 0)
    assert len(roots) == planted.n_trees == n_features // planted.tree_size
    children = np.flatnonzero(parents >= 0)
    assert not (present[:, children] & ~present[:, parents[children]]).any(), "P(parent | child) = 1"
    siblings = np.zeros((n_features, n_features))
    siblings[parents[children], children] = 1
    assert (siblings.sum(1)[present.any(0) & (siblings.sum(1) > 0)] == hierarchy[0]).all()
    brought = present.astype(np.int64) @ siblings.T
    assert brought.max() == 1, "siblings exclude one another"
    inner = siblings.sum(1) > 0
    given = brought.sum(0)[inner] / present.sum(0)[inner]
    assert (np.abs(given - CHILD_SHARE) < 6 * np.sqrt(0.16 / present.sum(0)[inner])).all()
    assert abs(present[:, roots].sum(1).mean() - np.mean(active)) < 0.05
    seen, expected = present.mean(0), planted.frequencies
    assert (np.abs(seen - expected) < 6 * np.sqrt(expected / ROWS)).all()


def test_without_a_hierarchy_no_feature_has_a_parent() -> None:
    planted = Planted(10, 4, 2)
    assert (planted.parents == -1).all()
    assert (planted.tree_size, planted.n_trees) == (1, 10)


def test_constant_coefficients_are_equal_and_uniform_ones_fill_their_range() -> None:
    _, equal = Planted(64, 8, 4).sample(1000, seed=0)
    torch.testing.assert_close(equal.values(), torch.full_like(equal.values(), 0.5))
    _, spread = Planted(64, 8, 4, coefficient="uniform").sample(20_000, seed=0)
    rows = spread.values().reshape(-1, 4)
    ratio = (rows.max(1).values / rows.min(1).values).numpy()
    assert ratio.max() < COEFFICIENT_RANGE[1] / COEFFICIENT_RANGE[0] + 1e-4
    assert ratio.max() > 2.5
    assert ratio.min() < 1.2


@pytest.mark.parametrize(("dim", "noise"), [(8, 0.1), (64, 0.5), (1, 0.3)])
def test_noise_is_the_share_of_the_signal_asked_for(dim: int, noise: float) -> None:
    planted = Planted(32, dim, 3, seed=1, noise=noise, coefficient="uniform")
    x, h = planted.sample(20_000, seed=1)
    signal = h.to_dense() @ planted.features
    rest = x - signal
    assert abs((rest.norm(dim=1).mean() / signal.norm(dim=1).mean()).item() / noise - 1) < 0.04
    assert rest.mean(0).abs().max() < 5 * rest.std() / np.sqrt(20_000)
    spread = rest.std(0)
    assert spread.max() / spread.min() < 1.1, "the same in every coordinate"


def test_a_sample_is_a_pure_function_of_both_seeds() -> None:
    options: dict[str, Any] = {"n_features": 64, "dim": 16, "active": (2, 5), "noise": 0.1, "coefficient": "uniform"}
    planted = Planted(seed=1, **options)
    x, h = planted.sample(500, seed=7)
    planted.sample(100, seed=8)
    torch.manual_seed(0)
    again_x, again_h = Planted(seed=1, **options).sample(500, seed=7)
    assert torch.equal(x, again_x)
    assert torch.equal(h.to_dense(), again_h.to_dense())
    other_x, other_h = planted.sample(500, seed=8)
    assert not torch.equal(h.to_dense(), other_h.to_dense())
    assert not torch.equal(x, other_x)
    elsewhere = Planted(seed=2, **options)
    assert not torch.equal(elsewhere.features, planted.features)
    assert not torch.equal(elsewhere.sample(500, seed=7)[1].to_dense(), h.to_dense())


def test_drawing_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Planted(16, 8, 2, noise=0.1).sample(100, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_rows_beyond_one_chunk_differ_from_those_in_the_first() -> None:
    planted = Planted(4096, 4, 2)
    _, h = planted.sample(9000, seed=0)
    columns = h.col_indices().reshape(-1, 2)
    assert not torch.equal(columns[:4096], columns[4096:8192])
    assert len(columns) == 9000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active": 65}, r"Expected active of at most n_features \(64\)\. Found 65\. Lower active"),
        ({"active": (3, 65)}, "Found 65"),
        ({"active": 0}, "Expected active as a whole number of at least 1. Found 0"),
        ({"active": ()}, "Found an empty tuple"),
        ({"active": 2.5}, "Expected active as a whole number of at least 1. Found 2.5"),
        ({"active": True}, "Found True"),
        ({"n_features": 0, "active": 1}, "Expected n_features as a whole number of at least 1"),
        ({"dim": -1}, "Expected dim as a whole number"),
        ({"seed": -1}, "Expected seed as a whole number of at least 0. Found -1"),
        ({"frequency": "zip"}, "Expected frequency of 'uniform' or 'zipf'. Found 'zip'"),
        ({"coefficient": "gauss"}, "Expected coefficient of 'constant' or 'uniform'"),
        ({"superposition": "none"}, "Expected superposition of 'gaussian' or 'orthogonal'"),
        ({"superposition": "orthogonal"}, r"Expected at most 16 orthogonal features in 16 dimensions\. Found n_features=64"),
        ({"noise": -0.1}, "Expected noise of 0 or more. Found -0.1"),
        ({"noise": float("nan")}, "Found nan"),
        ({"noise": float("inf")}, "Found inf"),
        ({"co_occurrence": 1.0}, r"Expected co_occurrence in \[0, 1\)\. Found 1.0"),
        ({"co_occurrence": -0.1}, "Found -0.1"),
        ({"n_features": 63, "co_occurrence": 0.1}, "Expected an even n_features with co_occurrence. Found 63"),
        ({"active": 40, "co_occurrence": 0.1}, "Expected active of at most half of n_features"),
        ({"active": 1, "co_occurrence": 0.1}, "Expected co_occurrence of at most 0 with active=1. Found 0.1"),
        ({"active": 3, "co_occurrence": 0.8}, "Expected co_occurrence of at most 0.667 with active=3"),
        ({"hierarchy": (4, 2)}, r"Expected n_features in whole trees of 5\. Found 64"),
        ({"hierarchy": (3, 1)}, "Expected levels of the hierarchy as a whole number of at least 2. Found 1"),
        ({"hierarchy": (3, 2), "active": 17}, r"Expected active of at most the number of trees \(16\)\. Found active=17"),
        ({"hierarchy": (3, 2), "co_occurrence": 0.1}, "Expected a hierarchy or a co_occurrence. Found both"),
        ({"active": 60, "frequency": "zipf"}, "Expected active well below n_features with a zipf frequency"),
        ({"active": 1, "frequency": "zipf", "co_occurrence": 0.5}, "Expected active of at least 2 with zipf"),
    ],
)
def test_an_impossible_law_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Planted(**{"n_features": 64, "dim": 16, "active": 3, **options})


@pytest.mark.parametrize(("rows", "seed", "name"), [(0, 0, "rows"), (2.0, 0, "rows"), (1, -1, "seed")])
def test_an_impossible_sample_is_explained(rows: Any, seed: int, name: str) -> None:
    with pytest.raises(RecipeError, match=f"Expected {name} as a whole number"):
        Planted(16, 8, 2).sample(rows, seed)


@pytest.mark.slow
@pytest.mark.parametrize("frequency", ["uniform", "zipf"])
def test_a_million_rows_of_1024_features_take_under_10_seconds(frequency: Any) -> None:
    planted = Planted(n_features=1024, dim=128, active=10, frequency=frequency, noise=0.1, coefficient="uniform")
    began = time.process_time()  # processor time of all threads: other work on the machine does not count
    x, h = planted.sample(1_000_000, seed=0)
    seconds = time.process_time() - began
    print(f"{frequency}: {seconds:.1f} s")
    assert x.shape == (1_000_000, 128)
    assert abs(h.values().numel() / 1e6 - 10) < 0.02
    assert seconds < 10
