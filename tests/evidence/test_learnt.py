"""A direction learnt on a stream: the level is kept though it is fitted on the stream, and what turns is found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from kyomei.evidence.documents import DocumentFigures, DocumentTable
from kyomei.evidence.learnt import LIVE, RIDGE, STEP, Discriminant, Learnt

WIDTH = 30


def document(rng: np.random.Generator, foreign: bool = False) -> DocumentFigures:
    """Rates that vary by document; a foreign one has six features shifted, each by less than its own spread."""
    logs = rng.normal(3.0, 1.0, WIDTH) + 0.9 * foreign * (np.arange(WIDTH) < 6)
    fired = np.maximum(np.rint(1e6 * 1e-3 * np.expm1(np.maximum(logs, 0.1))), 1).astype(np.int32)
    latents, ones = np.arange(WIDTH, dtype=np.int32), np.ones(WIDTH, dtype=np.float32)
    return DocumentFigures(1_000_000, latents, fired, ones, ones, 1.0, 4.0)


def table(rng: np.random.Generator, count: int) -> DocumentTable:
    return DocumentTable.of([document(rng) for _ in range(count)], WIDTH)


def fed(learnt: Learnt, stream: list[DocumentFigures], draws: np.ndarray) -> Learnt:
    for each, uniforms in zip(stream, draws, strict=True):
        learnt.bet(each, uniforms)
    return learnt


def test_the_discriminant_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((12, 20)) * (rng.random((12, 20)) < 0.4)
    usual, mean = rng.random(20), rng.random(20)
    weight = 1 / np.sqrt((rows.var(axis=0) + rows.var(axis=0).mean()) * 20)
    covariance = np.cov((rows * weight).T, bias=True)
    wanted = np.linalg.solve(covariance + RIDGE * np.eye(20), (mean - usual) * weight) * weight * RIDGE
    found = Discriminant(csr_matrix(rows), usual).against(mean)
    assert found / np.linalg.norm(found) == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)


def test_the_level_is_kept_by_directions_that_are_fitted_on_the_stream() -> None:
    """Small references: their own error is the largest part."""
    rng, levels, highest = np.random.default_rng(1), (0.2, 0.05), []
    for _ in range(100):
        learnt = fed(Learnt(table(rng, 4), table(rng, 16)), [document(rng) for _ in range(120)], rng.random((120, LIVE)))
        highest.append(learnt.highest)
    for level in levels:
        share = float((np.array(highest) >= 1 / level).mean())
        assert share <= level + 3 * (level / len(highest)) ** 0.5, (level, share)


def test_a_turn_that_no_feature_shows_by_itself_is_found_and_its_features_are_named() -> None:
    rng = np.random.default_rng(2)
    learnt = Learnt(table(rng, 40), table(rng, 200))
    stream = [document(rng, foreign=rng.random() < 0.5) for _ in range(250)]
    fed(learnt, stream, rng.random((250, LIVE)))
    assert learnt.highest >= 100
    assert set(learnt.carriers(4)) <= set(range(6)) and len(learnt.carriers(4)) == 4


def test_it_looks_at_nothing_but_what_came_before_and_goes_on_from_what_it_remembered() -> None:
    rng = np.random.default_rng(3)
    scale, ranked = table(rng, 10), table(rng, 30)
    stream, draws = (
        [document(rng, foreign=True) for _ in range(STEP * (LIVE + 2) + 7)],
        rng.random((STEP * (LIVE + 2) + 7, LIVE)),
    )
    first, other = (fed(Learnt(scale, ranked), stream[:STEP], draws[:STEP]) for _ in range(2))
    assert first.value == pytest.approx(1 / 3), "nothing was ranked before there was a direction"
    other.bet(document(rng), draws[STEP])
    assert np.array_equal(first.directions, other.directions)
    whole, second = fed(Learnt(scale, ranked), stream, draws), Learnt(scale, ranked)
    second.restore(first.arrays("x"), "x")
    shapes = {name: array.shape for name, array in first.arrays("x").items()}
    fed(second, stream[STEP:], draws[STEP:])
    assert {name: array.shape for name, array in second.arrays("x").items()} == shapes
    for name, array in whole.arrays("x").items():
        assert np.array_equal(array, second.arrays("x")[name]), name


def test_a_reference_of_one_document_is_enough_to_go_on_with() -> None:
    rng = np.random.default_rng(4)
    learnt = fed(Learnt(table(rng, 1), table(rng, 1)), [document(rng) for _ in range(60)], rng.random((60, LIVE)))
    assert learnt.highest >= 1.0 and np.isfinite(learnt.value)
