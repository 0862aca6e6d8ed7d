"""What else tells a goal: a linear probe on activations, all certified features together, and the words of a document alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.sparse import csr_matrix, diags

from kyomei.evidence.goals.pooling import Pooling
from kyomei.evidence.goals.search import Pooled, Sides, weigh

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01)
"""Of the probe and of the bag of tokens; which is best is seen where sets are chosen."""
LEAST_DOCUMENTS = 2
"""Documents that fit, at least, in which a token must stand to be a column."""


def probe(
    rows: Mapping[Pooling, Float32[np.ndarray, "documents dim"]], sides: Sides
) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    """Scores of a linear probe on pooled activations, and how it was chosen."""
    tries: list[_Try] = []
    for pooling, x in rows.items():
        for penalty in PENALTIES:
            weights, intercept = weigh(x[sides.fit].astype(np.float64), sides.values[sides.fit], sides.kind, penalty)
            scores = intercept + x @ weights
            tries.append((sides.told(scores[sides.choose]), scores, {"pooling": pooling, "penalty": penalty}))
    return _best(tries)


def all_features(pooled: Pooled, sides: Sides) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    """Scores of a regression on all certified features, each of unit mean square: what is lost by taking only a few of them."""
    tries = []
    for pooling, matrix in pooled.items():
        x = matrix.tocsr().astype(np.float64)
        size = np.sqrt(np.asarray(x[sides.fit].power(2).mean(axis=0)).ravel())
        x = (x @ diags(np.where(size > 0, 1 / np.where(size > 0, size, 1.0), 0.0))).tocsr()
        tries += [(told, scores, {"pooling": pooling, **how}) for told, scores, how in _regressions(x, sides)]
    return _best(tries)


def bag_of_tokens(counts: csr_matrix, sides: Sides) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    """Scores of a regression on the tokens of each document: ln(1 + count), of unit length, and how it was chosen."""
    often = np.asarray((counts[sides.fit] > 0).sum(axis=0)).ravel() >= LEAST_DOCUMENTS
    x = counts[:, np.flatnonzero(often)].astype(np.float64).log1p()
    norms = np.sqrt(np.asarray(x.power(2).sum(axis=1)).ravel())
    scores, how = _best(_regressions((diags(1 / np.where(norms > 0, norms, 1.0)) @ x).tocsr(), sides))
    return scores, {"tokens": int(often.sum()), **how}


_Try = tuple[float, Float64[np.ndarray, " documents"], dict[str, Any]]
"""How well scores tell the goal where sets are chosen, the scores, and how they came about."""


def _regressions(x: csr_matrix, sides: Sides) -> list[_Try]:
    """Regressions on sparse columns, one for each penalty."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if not x.shape[1]:
        scores = np.zeros(x.shape[0])
        return [(sides.told(scores[sides.choose]), scores, {})]
    tries = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / penalty, max_iter=1000) if sides.kind == "label" else Ridge(alpha=penalty)
        model.fit(x[sides.fit], sides.values[sides.fit])
        scores = np.asarray(x @ np.ravel(model.coef_) + np.ravel(model.intercept_)[0])
        tries.append((sides.told(scores[sides.choose]), scores, {"penalty": penalty}))
    return tries


def _best(tries: list[_Try]) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    _, scores, how = max(tries, key=lambda one: one[0])
    return scores, how
