"""Figures are those of slow references, weights count documents, and intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, spearmanr

from kyomei.evidence.goals.figures import Draws, auc_of, figure, r2_of, rank_correlation_of, share_of


def slow_auc(scores: np.ndarray, label: np.ndarray) -> float:
    """Of all pairs, how many stand right; ties half."""
    pairs = [(p > n) + (p == n) / 2 for p in scores[label] for n in scores[~label]]
    return float(np.mean(pairs)) if pairs else float("nan")


def test_auc_of_weighted_documents_is_that_of_repeated_ones() -> None:
    rng = np.random.default_rng(0)
    scores, label = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    weights = rng.integers(0, 4, (7, 40))
    weights[3, label] = 0  # no document with the label is drawn
    found = auc_of(scores, label)(weights.astype(float))
    for row, value in zip(weights, found, strict=True):
        again = np.repeat(np.arange(40), row)
        assert value == pytest.approx(slow_auc(scores[again], label[again]), nan_ok=True)
    assert np.isnan(found[3])


def test_r2_and_shares_of_weighted_documents_are_those_of_repeated_ones() -> None:
    rng = np.random.default_rng(1)
    values, scores = rng.normal(size=(2, 30))
    weights = rng.integers(0, 3, (5, 30))
    among, hits = rng.random(30) < 0.5, rng.random(30) < 0.5
    r2, share = r2_of(scores, values)(weights.astype(float)), share_of(among, hits)(weights.astype(float))
    for row, one, other in zip(weights, r2, share, strict=True):
        again = np.repeat(np.arange(30), row)
        spread = ((values[again] - values[again].mean()) ** 2).sum()
        assert one == pytest.approx(1 - ((values[again] - scores[again]) ** 2).sum() / spread)
        assert other == pytest.approx(hits[again][among[again]].mean())
    whole = rank_correlation_of(scores, values)(np.ones((1, 30)))[0]
    assert whole == pytest.approx(spearmanr(scores, values).statistic)


def test_draws_take_whole_groups_and_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.array([4, 4, 7, 9, 9, 9])
    draws = Draws(groups, seed=3, count=50)
    whole = np.concatenate(list(draws.blocks()))
    assert (whole[:, 0] == whole[:, 1]).all() and (whole[:, 3] == whole[:, 5]).all()
    assert (whole[:, [0, 2, 3]].sum(axis=1) == 3).all(), "as many groups as there are"
    monkeypatch.setattr("kyomei.evidence.goals.figures._NUMBERS_PER_BLOCK", 60)
    assert len(list(draws.blocks())) == 5 and (np.concatenate(list(draws.blocks())) == whole).all()


def test_where_every_draw_is_perfect_the_interval_is_the_exact_one_of_a_share() -> None:
    label = np.repeat([True, False], 20)
    draws = Draws(np.arange(40), seed=0)
    auc = figure(auc_of(label.astype(float), label), draws, (0.0, 1.0, 20))
    assert auc["value"] == 1 and auc["interval"] == [pytest.approx(beta.ppf(0.025, 20, 1)), 1.0]
    none = figure(share_of(np.zeros(40, dtype=bool), label), draws, (0.0, 1.0, 0))
    assert np.isnan(none["value"]) and np.isnan(none["interval"]).all(), "the precision of what never fires"


def test_the_interval_covers_chance_about_as_often_as_it_says() -> None:
    """Nominal 0.95 of 200 draws: fewer than 0.90 would be 12 of the binomial's worst million."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(200):
        label, scores = rng.random(80) < 0.4, rng.normal(size=80)
        low, high = figure(auc_of(scores, label), Draws(np.arange(80), seed=0, count=400))["interval"]
        covered += low <= 0.5 <= high
    assert covered >= 180
