"""Bets on ranks: the level is kept whenever one looks, for any law and any reference, and a turn is seen."""

from __future__ import annotations

import numpy as np
import pytest

from kyomei.evidence.betting import MOST, STEP, TAILS, Bets

ROUNDS = 4000


def edges_of(*values: float, size: int) -> np.ndarray:
    return np.tile(np.array(values, dtype=np.float64), (size, 1))


def watched(reference: np.ndarray, stream: np.ndarray, edges: np.ndarray, seed: int = 0) -> Bets:
    """Each column a statistic by itself."""
    rng, bets = np.random.default_rng(seed), Bets(edges)
    which = np.arange(reference.shape[1])
    for row in reference:
        bets.count(bets.cells(row, which))
    for row in stream:
        bets.bet(bets.cells(row, which), rng.random(len(which)))
    return bets


def by_hand(reference: list[float], stream: list[float], edges: list[float], draws: list[float]) -> float:
    """E after the stream, from the definition: every stake with every bet, document by document."""
    cells = [sum(edge < x for edge in edges) for x in reference]
    ps = []
    for x, u in zip(stream, draws, strict=True):
        cell = sum(edge < x for edge in edges)
        higher, equal = sum(c > cell for c in cells), sum(c == cell for c in cells)
        ps.append((higher + u * (equal + 1)) / (len(cells) + 1))
        cells.append(cell)
    steps = -(-len(stream) // STEP)
    stakes = [0.5, *(0.5 / (k * (k + 1)) for k in range(1, steps))]
    high = [lambda p, d=d, a=a: a / d if p <= d else (1 - a) / (1 - d) for d, a in TAILS]
    bets = [*high, *(lambda p, f=f: f(1 - p) for f in high)]
    laid = sum(
        stake / len(bets) * sum(float(np.prod([f(p) for p in ps[number * STEP :]])) for f in bets)
        for number, stake in enumerate(stakes)
    )
    return 1 - sum(stakes) + laid


def test_evidence_is_what_the_definition_says() -> None:
    rng = np.random.default_rng(0)
    reference, stream, edges = rng.normal(size=30), rng.normal(0.3, size=120), [-1.0, 0.0, 0.5, 2.0]
    draws = np.random.default_rng(5)
    wanted = by_hand(list(reference), list(stream), edges, [float(draws.random(1)[0]) for _ in stream])
    found = watched(reference[:, None], stream[:, None], edges_of(*edges, size=1), seed=5)
    assert found.values[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("documents", [5, 60])
@pytest.mark.parametrize("law", ["normal", "ties", "heavy"])
def test_the_level_is_kept_at_all_times_together(law: str, documents: int) -> None:
    """So many streams, each with a reference of its own; small ones count, since their own error is part of the test."""
    rng, size = np.random.default_rng(3), (documents + 260, ROUNDS)
    values = {
        "normal": lambda: rng.normal(size=size),
        "ties": lambda: (rng.random(size) < 0.1) * 1.0,
        "heavy": lambda: rng.standard_cauchy(size=size),
    }[law]()
    bets = watched(values[:documents], values[documents:], edges_of(0.0, 0.5, 1.0, 3.0, size=ROUNDS))
    for level in (0.2, 0.05):
        share = float(bets.reached(level).mean())
        assert share <= level + 3 * (level / ROUNDS) ** 0.5, (level, share)
    assert bets.reached(0.2).any(), "it can be reached at all"


def test_the_stakes_never_come_to_more_than_one_and_wealth_to_no_overflow() -> None:
    bets = watched(np.zeros((400, 1)), np.ones((2000, 1)), edges_of(0.5, size=1))
    assert np.isfinite(bets.values).all() and bets.wealth.max() <= MOST
    quiet = Bets(edges_of(0.5, size=1))
    quiet.wealth[:] = 0
    laid = 0.0
    for _ in range(7):
        quiet._lay()
        quiet.bets += STEP
        laid = float(quiet.wealth.sum())
        assert laid + quiet.rest == pytest.approx(1.0)


@pytest.mark.parametrize("before", [0, 600])
def test_a_turn_is_seen_soon_however_late_it_comes(before: int) -> None:
    rng, size = np.random.default_rng(1), 200
    quiet = rng.normal(size=(300 + before, size))
    turned = np.where(rng.random((250, size)) < 0.15, 4.0, rng.normal(size=(250, size)))
    edges = edges_of(-1.0, 0.0, 1.0, 2.0, 3.0, size=size)
    bets = watched(quiet[:300], np.concatenate([quiet[300:], turned]), edges)
    assert bets.reached(0.0125).mean() >= 0.9


def test_it_goes_on_from_what_it_remembered() -> None:
    rng = np.random.default_rng(2)
    values, edges = rng.normal(size=(200, 5)), edges_of(-0.5, 0.5, size=5)
    draws = rng.random((100, 5))
    whole, first, second = Bets(edges), Bets(edges), Bets(edges)
    which = np.arange(5)
    for bets in (whole, first):
        for row in values[:100]:
            bets.count(bets.cells(row, which))
    for row, draw in zip(values[100:], draws, strict=True):
        whole.bet(whole.cells(row, which), draw)
    for row, draw in zip(values[100:163], draws, strict=False):
        first.bet(first.cells(row, which), draw)
    second.restore(first.arrays("x"), "x")
    for row, draw in zip(values[163:], draws[63:], strict=True):
        second.bet(second.cells(row, which), draw)
    assert np.array_equal(second.values, whole.values) and np.array_equal(second.highest, whole.highest)
