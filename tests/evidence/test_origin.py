"""Origins: R² against a slow reference, and features whose origin is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import sparse

from kyomei.errors import EvidenceError
from kyomei.evidence.origin import ORIGINS, Origin, origin, share_difference

ROWS, CONTEXT = 6_000, 20
RNG = np.random.default_rng(0)
TOKEN = RNG.integers(100, 130, ROWS)
POSITION = np.arange(ROWS) % CONTEXT
DOCUMENT = np.arange(ROWS) // 150


def measured(columns: dict[str, np.ndarray]) -> Origin:
    return origin(sparse.csr_array(np.stack(list(columns.values()), axis=1)), TOKEN, POSITION, DOCUMENT)


def test_known_origins() -> None:
    by_token, by_position = (TOKEN == 107) * 2.0, (POSITION < 4) * 1.5
    context = RNG.random(ROWS) * (RNG.random(ROWS) < 0.2)
    mixed = (TOKEN % 2) * 1.0 + (POSITION >= 10) * 1.0
    found = measured({"token": by_token, "position": by_position, "context": context, "mixed": mixed, "dead": np.zeros(ROWS)})
    assert [found.kind(i) for i in (0, 1, 2, 4)] == ["token", "position", "context-or-unexplained", "context-or-unexplained"]
    assert found.token[0] == pytest.approx(1, abs=1e-9) and found.position[1] == pytest.approx(1, abs=1e-9)
    assert abs(found.token[2]) < 0.05 and abs(found.both[2]) < 0.05
    assert found.token[3] == pytest.approx(0.5, abs=0.03) and found.both[3] > 0.98
    assert found.top_tokens[0] == [(107, pytest.approx(1.0))]
    assert found.top_tokens[4] == []
    assert found.to_dict(0)["r2"]["token"] == 1.0


@pytest.fixture(scope="module")
def streams() -> ModuleType:
    """The planted streams of bench/origins.py."""
    spec = importlib.util.spec_from_file_location("bench_origins", Path(__file__).parents[2] / "bench" / "origins.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [10, 11])
def test_planted_origins_are_told_right_at_all_frequencies(streams: ModuleType, seed: int) -> None:
    """By R² alone, four in ten token features and one position feature in twenty were."""
    p = streams.planted(seed, each=80, rows=40_000)
    found = origin(p.code, p.stream.token, p.stream.position, p.stream.document)
    told = np.array([found.kind(i) for i in range(len(p.kind))])
    for kind in ORIGINS:
        assert (told[p.kind == kind] == kind).mean() >= 0.95, kind


def test_a_feature_of_some_occurrences_of_a_token_is_the_tokens_and_says_of_how_many() -> None:
    code = (TOKEN == 107) * (RNG.random(ROWS) < 0.3) * RNG.lognormal(0, 0.5, ROWS)
    found = measured({"some": code, "dead": np.zeros(ROWS)})
    assert found.token[0] < 0.5, "the mean of the token explains little"
    assert found.kind(0) == "token"
    figures = found.to_dict(0)
    assert figures["mass"]["token"] == pytest.approx(1, abs=1e-9) and abs(figures["mass"]["position"]) < 0.2
    assert figures["firing"] == pytest.approx(0.3, abs=0.1)
    assert found.to_dict(1) == {
        "kind": "context-or-unexplained",
        "r2": {"token": 0.0, "position": 0.0, "both": 0.0},
        "mass": {"token": 0.0, "position": 0.0},
        "firing": 0.0,
    }


def test_masses_equal_a_loop_over_rows() -> None:
    z = RNG.random(ROWS) * np.isin(TOKEN, (101, 105)) + 0.2 * (RNG.random(ROWS) < 0.1)
    halves = np.isin(DOCUMENT, np.unique(DOCUMENT)[::2])
    held = chance = 0.0
    for fit in (halves, ~halves):
        excess = {t: z[fit & (t == TOKEN)].sum() / z[fit].sum() - (TOKEN[fit] == t).mean() for t in np.unique(TOKEN)}
        chosen = np.isin(TOKEN, [t for t in sorted(excess, key=lambda t: -excess[t])[:8] if excess[t] > 0])
        held += z[~fit & chosen].sum()
        chance += z[~fit].sum() * chosen[~fit].mean()
    assert measured({"z": z}).token_mass[0] == pytest.approx((held - chance) / (z.sum() - chance), abs=1e-9)


def test_r2_equals_a_loop_over_rows() -> None:
    z = RNG.random(ROWS) * (TOKEN % 3 == 0) + 0.3 * (POSITION % 5)
    found = measured({"z": z})
    halves = np.isin(DOCUMENT, np.unique(DOCUMENT)[::2])
    slow = []
    for fit in (halves, ~halves):
        mean = z[fit].mean()
        token_effect = {t: z[fit & (t == TOKEN)].mean() - mean for t in np.unique(TOKEN[fit])}
        left = np.array([z[i] - mean - token_effect.get(TOKEN[i], 0.0) for i in range(ROWS)])
        position_effect = {p: left[fit & (p == POSITION)].mean() for p in range(CONTEXT)}
        rest = np.array([left[i] - position_effect[POSITION[i]] for i in range(ROWS)])
        spread = ((z[~fit] - mean) ** 2).sum()
        slow.append([1 - (left[~fit] ** 2).sum() / spread, 1 - (rest[~fit] ** 2).sum() / spread])
    assert found.token[0] == pytest.approx(np.mean(slow, axis=0)[0], abs=1e-9)
    assert found.both[0] == pytest.approx(np.mean(slow, axis=0)[1], abs=1e-9)


def test_unseen_tokens_are_predicted_by_the_mean() -> None:
    token = np.where(DOCUMENT % 2 == 0, 1, 2)
    found = origin(sparse.csr_array(np.where(token == 1, 1.0, 0.0)[:, None] + 0.1), token, POSITION, DOCUMENT)
    assert found.kind(0) == "context-or-unexplained"


def test_blocks_of_latents_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = {str(i): RNG.random(ROWS) * (TOKEN % (i + 2) == 0) for i in range(5)}
    whole = measured(code)
    monkeypatch.setattr("kyomei.evidence.origin.LATENTS_AT_ONCE", 2)
    parts = measured(code)
    for name in ("token", "position", "both", "token_mass", "position_mass", "firing"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), atol=1e-12)


def test_bad_input_is_refused() -> None:
    code = sparse.csr_array(np.ones((ROWS, 1)))
    with pytest.raises(EvidenceError, match="two documents"):
        origin(code, TOKEN, POSITION, np.zeros(ROWS))
    with pytest.raises(EvidenceError, match="one token"):
        origin(code, TOKEN[:-1], POSITION, DOCUMENT)


def test_the_bootstrap_interval_is_that_of_a_difference_of_shares() -> None:
    a, b = np.arange(400) < 200, np.arange(900) < 90
    found = share_difference(a, b, seed=3)
    assert found["difference"] == pytest.approx(0.4)
    half = 1.96 * np.sqrt(0.25 / 400 + 0.09 / 900)
    assert found["low"] == pytest.approx(0.4 - half, abs=0.01) and found["high"] == pytest.approx(0.4 + half, abs=0.01)
    assert share_difference(a, b, seed=3) == found
    with pytest.raises(EvidenceError, match="both sides"):
        share_difference(a, b[:0], seed=0)
