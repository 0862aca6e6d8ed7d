"""Origins: R² against a slow reference, and features whose origin is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from kyomei.errors import EvidenceError
from kyomei.evidence.origin import Origin, origin, share_difference

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
    for name in ("token", "position", "both"):
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
