"""The calibrator: its fit against known laws, its promises (monotone, silent outside its range), and the one that ships."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from kyomei.errors import EvidenceError
from kyomei.evidence.check import calibration as c
from kyomei.evidence.check.behaviour import Spread
from kyomei.evidence.check.second_opinion import NO_OPINION
from kyomei.evidence.check.structure import Structure

DATA = Path(__file__).parents[3] / "bench" / "data" / "calibration.jsonl"
NAMES = ("up", "idle")


def plain_structure() -> Structure:
    line = json.loads(DATA.read_text(encoding="utf-8").splitlines()[0])
    return Structure.from_dict(line["structure"])


def at(value: float) -> Spread:
    return Spread(value, value, value)


def table(seed: int, rows: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2, 2, size=(rows, 2))


def fitted(seed: int = 0) -> c.Calibrator:
    x = table(seed)
    bare = c.fit(x, expit(2 * x[:, 0]), NAMES)
    return dataclasses.replace(bare, residuals=((-0.1, 0.1),) * (len(c.GROUPS) + 1))


def test_a_logit_law_is_recovered() -> None:
    x = table(1)
    assert np.abs(fitted().predict(x) - expit(2 * x[:, 0])).mean() < 0.03


def test_a_falling_law_is_left_flat() -> None:
    x = table(2)
    found = c.fit(x, expit(-2 * x[:, 0]), NAMES)
    assert np.ptp(found.predict(x)) < 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(-4, 4), st.floats(0, 3))
def test_more_of_a_statistic_never_means_less_recovery(seed: int, value: float, more: float) -> None:
    x = table(seed, 60)
    found = c.fit(x, np.random.default_rng(seed).uniform(size=60), NAMES)
    low, high = found.predict(np.array([[value, 0.0], [value + more, 0.0]]))
    assert 0 <= low <= high + 1e-12 <= 1 + 1e-12
    assert min(slope for part in found.slopes for slope in part) >= 0


def test_residual_quantiles_cover() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(size=4000)
    truth = predicted + rng.normal(scale=0.1, size=4000)
    quantiles = np.array(c.residual_quantiles(predicted, truth))[np.searchsorted(c.GROUPS, predicted)]
    inside = (truth >= predicted + quantiles[:, 0]) & (truth <= predicted + quantiles[:, 1])
    assert inside.mean() == pytest.approx(c.COVERAGE, abs=0.01)


def test_an_empty_group_promises_nothing() -> None:
    assert c.residual_quantiles(np.array([0.95]), np.array([0.9]))[0] == (-1.0, 1.0)


def test_outside_the_range_is_named_and_unknown() -> None:
    found = dataclasses.replace(fitted(), names=("undivided", "companions"), ranges=((-2.0, 0.0), (-0.5, 0.5)))
    structure = dataclasses.replace(plain_structure(), split=at(8.0), partner=at(0.1), chance_partner=0.1)
    assert found.outside(c.statistics(structure)) == []
    expected = found.expected(structure)
    assert expected is not None
    assert 0 <= expected.low <= expected.value <= expected.high <= 1
    beyond = dataclasses.replace(structure, split=at(8.5))
    assert found.outside(c.statistics(beyond)) == ["undivided"]
    assert found.expected(beyond) is None


def test_recaptured_is_the_share_of_the_union() -> None:
    structure = dataclasses.replace(plain_structure(), captures=(80, 60, 48))
    # Lincoln and Petersen: 80 · 60 / 48 = 100 features, of which 80 + 60 − 48 were seen.
    assert c.recaptured(structure) == pytest.approx(0.92)
    assert c.recaptured(dataclasses.replace(structure, captures=(3, 0, 0))) == 0


def test_statistics_are_finite_where_nothing_was_found() -> None:
    nothing = dict.fromkeys(
        ("agreement", "occurrence", "explained", "active", "partner", "split", "balance", "coherence"), Spread(0, 0, 0)
    )
    empty = dataclasses.replace(
        plain_structure(), features=0, captures=(0, 0, 0), chance_coherence=0.0, second=NO_OPINION, **nothing
    )
    assert np.isfinite(list(c.statistics(empty).values())).all()


def test_it_survives_json_and_refuses_another_kind() -> None:
    found = fitted()
    assert c.Calibrator.from_json(found.to_json()) == found
    with pytest.raises(EvidenceError, match="a calibrator of monotone"):
        c.Calibrator.from_json(found.to_json().replace('"version": 3', '"version": 0'))


def test_the_shipped_calibrator_was_fitted_on_the_data_beside_it() -> None:
    shipped = c.shipped()
    assert shipped.data_sha256 == hashlib.sha256(DATA.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    assert shipped.num_regimes == len(lines) >= 300
    values = [c.statistics(Structure.from_dict(line["structure"])) for line in sorted(lines, key=lambda line: line["index"])]
    assert shipped.names == tuple(values[0])
    x = np.array([[row[name] for name in shipped.names] for row in values])
    truth = np.array([line["frr_0.9"] for line in sorted(lines, key=lambda line: line["index"])])
    assert 0.3 <= (truth >= 0.9).mean() <= 0.7
    again = c.fit(x, truth, shipped.names)
    assert np.allclose(again.predict(x), shipped.predict(x), atol=0.01), "the fit reproduces from the data"
    assert np.abs(shipped.predict(x) - truth).mean() < 0.15
    for factors, cuts in ((shipped.number, c.NUMBER_CUTS), (shipped.active, c.ACTIVE_CUTS)):
        assert factors.cuts == cuts and len(factors.factors) == len(cuts) + 1
