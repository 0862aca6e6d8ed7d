"""The law of rows on shares and latents whose law is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit, logit

from kyomei.errors import EvidenceError
from kyomei.evidence.rows_law import COVERAGE, PREMISE, REACH, FiringsLaw, Foretold, RowsLaw

ROWS = [12_000, 18_000, 25_000, 35_000, 50_000]


def share_of(rows: float, noise: float = 0.0) -> float:
    return float(expit(1 - 50_000 / rows + noise))


def latents(rng: np.random.Generator, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, and p(certified) at 10,000 rows: log odds −3 + 0.7 log(firings); dead and dense latents among them."""
    frequency = np.exp(rng.normal(-6, 1.5, count)).clip(0, 0.09)
    frequency[:20], frequency[20:40] = 0.0, 0.3
    return frequency, p_of(frequency, 10_000)


def p_of(frequency: np.ndarray, rows: float) -> np.ndarray:
    alive = frequency > 0
    return np.where(alive, expit(-3 + 0.7 * np.log(np.where(alive, frequency, 1) * rows)), 0.0)


def within_binomial_error(held: int, trials: int) -> bool:
    """Three standard errors about the coverage that is claimed."""
    return abs(held / trials - COVERAGE) < 3 * (COVERAGE * (1 - COVERAGE) / trials) ** 0.5


# ── Rows ──


def test_points_on_a_line_give_it_back() -> None:
    law = RowsLaw.fit(ROWS, [share_of(rows) for rows in ROWS])
    assert law.slope == pytest.approx(50_000 / ROWS[0]) and law.residual == pytest.approx(0, abs=1e-9)
    told = law.share(300_000)
    assert told.estimate == pytest.approx(share_of(300_000)) and told.low == pytest.approx(told.high)


def test_the_interval_is_the_textbooks() -> None:
    """Prediction interval of simple regression, worked out for y = 0, 1, 2.2, 2.8 at x = 0, 1, 2, 3: t(0.95; 2) = 2.920."""
    law = RowsLaw.fit([4 / (4 - x) for x in (0.0, 1.0, 2.0, 3.0)], list(expit([0.0, 1.0, 2.2, 2.8])))
    assert law.slope == pytest.approx(4 * 0.96)
    residual = np.sqrt(np.sum((np.array([0, 1, 2.2, 2.8]) - 0.06 - 0.96 * np.arange(4)) ** 2) / 2)
    reach = 2.91998558 * residual * np.sqrt(1 + 1 / 4 + 2**2 / 5)
    told = law.share(4 / (4 - 3.5))
    assert logit(told.estimate) == pytest.approx(3.42) and told.high is not None
    assert logit(told.high) - 3.42 == pytest.approx(reach, rel=1e-6)


def test_intervals_of_shares_and_of_rows_hold_as_often_as_they_say() -> None:
    rng, shares, rows, trials = np.random.default_rng(0), 0, 0, 300
    for _ in range(trials):
        law = RowsLaw.fit(ROWS, [share_of(each, noise) for each, noise in zip(ROWS, rng.normal(0, 0.05, 5), strict=True)])
        new = share_of(100_000, rng.normal(0, 0.05))
        shares += law.share(100_000).holds(new)
        rows += law.rows_for(new).holds(100_000)
    assert within_binomial_error(shares, trials) and shares == rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-0.1, 0.1), min_size=5, max_size=5), st.floats(0.1, 0.9))
def test_each_end_of_the_rows_is_where_an_end_of_the_share_comes_to_the_wish(noise: list[float], wished: float) -> None:
    law = RowsLaw.fit(ROWS, [share_of(each, off) for each, off in zip(ROWS, noise, strict=True)])
    try:
        rows = law.rows_for(wished)
    except EvidenceError as error:
        assert not law.share(ROWS[0] / REACH).estimate <= wished <= law.share(ROWS[-1] * REACH).estimate, error
        return
    assert law.share(rows.estimate).estimate == pytest.approx(wished)
    if rows.low is not None:
        assert law.share(rows.low).high == pytest.approx(wished) and rows.low <= rows.estimate
    if rows.high is not None:
        assert law.share(rows.high).low == pytest.approx(wished) and rows.high >= rows.estimate


def test_what_makes_no_law_is_refused_and_what_lies_too_far_gets_no_number() -> None:
    with pytest.raises(EvidenceError, match=r"4 or more numbers of rows\. Found 3"):
        RowsLaw.fit([*ROWS[:3], ROWS[0]], [0.3, 0.4, 0.5, 0.31])
    with pytest.raises(EvidenceError, match=r"4 or more numbers of rows\. Found 0"):
        RowsLaw.fit([], [])
    with pytest.raises(EvidenceError, match=r"grows with the rows\. Found one that does not: 50\.0 % with the fewest"):
        RowsLaw.fit(ROWS, [0.5, 0.5, 0.45, 0.42, 0.4])
    law = RowsLaw.fit(ROWS, [share_of(rows) for rows in ROWS])
    with pytest.raises(EvidenceError, match="from 1,200 to 500,000 rows a replica"):
        law.share(1_000_000)
    with pytest.raises(EvidenceError, match=r"a certified share from 0\.0 % to 71\.1 %, which the law reaches"):
        law.rows_for(0.99)
    with pytest.raises(EvidenceError, match="between 0 and 1"):
        law.rows_for(70)
    scattered = RowsLaw.fit(ROWS, [0.3, 0.6, 0.2, 0.6, 0.4])
    assert scattered.rows_for(0.45).low is None and scattered.rows_for(0.45).high is None, "its slope might as well be 0"


# ── Firings ──


def test_the_curve_is_that_of_the_largest_likelihood() -> None:
    frequency, p = latents(np.random.default_rng(1), 2000)
    certified = np.random.default_rng(2).random(len(p)) < p
    law = FiringsLaw.fit(frequency, certified, 10_000)
    usual = (frequency > 0) & (frequency <= 0.1)
    x, y = np.log(frequency[usual] * 10_000), certified[usual]

    def unlikely(line: np.ndarray) -> float:
        odds = line[0] + line[1] * x
        return float(np.sum(np.logaddexp(0, odds) - y * odds))

    slow = optimize.minimize(unlikely, [0.0, 0.0], method="BFGS").x
    assert [law.at_one, law.slope] == pytest.approx(slow, rel=1e-3)
    assert law.slope == pytest.approx(0.7, abs=0.1) and law.even == pytest.approx(np.exp(3 / 0.7), rel=0.3)
    assert law.share(10_000).estimate == pytest.approx(law.found), "at its own rows it says what was found"


@pytest.mark.slow
def test_another_training_of_more_rows_lies_in_the_interval_at_least_as_often_as_it_says() -> None:
    held, trials = 0, 60
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        frequency, p = latents(rng)
        certified = rng.random(len(p)) < p
        law = FiringsLaw.fit(frequency, certified, 10_000, seed)
        later = np.where(frequency > 0.1, certified, rng.random(len(p)) < p_of(frequency, 60_000))
        held += law.share(60_000).holds(later.mean())
    assert held / trials >= COVERAGE - 3 * (COVERAGE * (1 - COVERAGE) / trials) ** 0.5


def test_the_interval_counts_how_far_projections_were_off() -> None:
    """With nothing else left to chance, an end lies where the premise's quantile puts the log odds, for each doubling."""
    frequency, p = latents(rng := np.random.default_rng(5))
    law = FiringsLaw.fit(frequency, rng.random(len(p)) < p, 10_000)
    once = {name: np.repeat(getattr(law, name)[:1], len(law.luck), axis=0) for name in ("latents", "settled", "lines", "luck")}
    settled = replace(law, **once)
    assert settled.share(10_000).low == pytest.approx(settled.share(10_000).estimate)
    for rows, doublings in ((20_000, 1), (40_000, 2), (5_000, 1)):
        told, (low, high) = settled.share(rows), np.quantile(PREMISE * doublings * law.premise[1:], [0.05, 0.95])
        assert logit([told.low, told.high]) - logit(told.estimate) == pytest.approx([low, high], abs=0.01)
        assert low < -PREMISE * doublings < PREMISE * doublings < high


def test_dense_and_dead_latents_stay_what_they_are() -> None:
    frequency, p = latents(np.random.default_rng(1))
    certified = np.random.default_rng(2).random(len(p)) < p
    plain = FiringsLaw.fit(frequency, certified, 10_000)
    usual = (frequency > 0) & (frequency <= 0.1)
    alone = FiringsLaw.fit(frequency[usual], certified[usual], 10_000)
    more = 50_000
    expected = (alone.share(more).estimate * usual.sum() + certified[frequency > 0.1].sum()) / len(frequency)
    assert plain.slope == pytest.approx(alone.slope) and plain.share(more).estimate == pytest.approx(expected)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 0.8))
def test_the_rows_that_a_share_takes_give_that_share(seed: int, wished: float) -> None:
    rng = np.random.default_rng(seed)
    frequency, p = latents(rng)
    law = FiringsLaw.fit(frequency, rng.random(len(p)) < p, 10_000, seed)
    shares = [law.share(rows).estimate for rows in (2_000, 10_000, 50_000)]
    assert shares == sorted(shares)
    if not law.share(10_000 / REACH).estimate < wished < law.share(10_000 * REACH).estimate:
        with pytest.raises(EvidenceError, match="which the law reaches"):
            law.rows_for(wished)
        return
    rows = law.rows_for(wished)
    assert law.share(rows.estimate).estimate == pytest.approx(wished, abs=1e-5)
    for end, other in ((rows.low, "high"), (rows.high, "low")):
        assert end is None or getattr(law.share(end), other) == pytest.approx(wished, abs=1e-3)


def test_an_interval_that_widens_both_ways_still_has_a_low_end() -> None:
    """Far below its own rows a projection says so little that its high end comes to the share there again."""
    rng = np.random.default_rng(0)
    frequency, p = latents(rng)
    law = FiringsLaw.fit(frequency, rng.random(len(p)) < p, 10_000)
    told = replace(law, premise=law.premise * 4)
    wished = told.share(10_000).high + 0.02
    assert told.share(10_000 / REACH).high > wished
    low = told.rows_for(wished).low
    assert low is not None and low > 10_000 and told.share(low).high == pytest.approx(wished, abs=1e-3)


def test_a_certificate_without_a_law_is_refused() -> None:
    frequency, p = latents(np.random.default_rng(1))
    with pytest.raises(EvidenceError, match="Found 0 certified and 260 not"):
        FiringsLaw.fit(frequency, np.zeros(len(p), dtype=bool), 10_000)
    with pytest.raises(EvidenceError, match="more often the more they fire"):
        FiringsLaw.fit(frequency, np.random.default_rng(2).random(len(p)) > p, 10_000)


def test_latents_that_a_number_of_firings_parts_from_all_others_give_a_finite_law() -> None:
    frequency = np.linspace(0.001, 0.09, 100)
    law = FiringsLaw.fit(frequency, frequency > 0.04, 10_000)
    assert np.isfinite(law.lines).all() and law.even == pytest.approx(400, rel=0.05)


def test_the_same_seed_gives_the_same_interval() -> None:
    frequency, p = latents(np.random.default_rng(1))
    certified = np.random.default_rng(2).random(len(p)) < p
    first, again, other = (FiringsLaw.fit(frequency, certified, 10_000, seed).share(50_000) for seed in (0, 0, 1))
    assert first == again and first.estimate == other.estimate and first.low != other.low


def test_a_figure_in_another_unit_keeps_an_end_that_is_not_known() -> None:
    assert Foretold(2.0, None, 4.0).times(3) == Foretold(6.0, None, 12.0) and Foretold(2.0, None, 4.0).holds(-9)
