"""What tells a goal without a dictionary: a linear probe on activations, and the words of a document alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.sparse import csr_matrix, diags

from kyomei.evidence.goals.pooling import Pooling
from kyomei.evidence.goals.search import Sides, weigh

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01)
"""Of the probe and of the bag of tokens; which is best is seen where sets are chosen."""
LEAST_DOCUMENTS = 2
"""Documents that fit, at least, in which a token must stand to be a column."""


def probe(
    rows: Mapping[Pooling, Float32[np.ndarray, "documents dim"]], sides: Sides
) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    """Scores of a linear probe on pooled activations, and how it was chosen."""
    tries = []
    for pooling, x in rows.items():
        for penalty in PENALTIES:
            weights, intercept = weigh(x[sides.fit].astype(np.float64), sides.values[sides.fit], sides.kind, penalty)
            scores = intercept + x @ weights
            tries.append((sides.told(scores[sides.choose]), scores, {"pooling": pooling, "penalty": penalty}))
    _, scores, how = max(tries, key=lambda one: one[0])
    return scores, how


def bag_of_tokens(counts: csr_matrix, sides: Sides) -> tuple[Float64[np.ndarray, " documents"], dict[str, Any]]:
    """Scores of a regression on the tokens of each document: ln(1 + count), of unit length, and how it was chosen."""
    from sklearn.linear_model import LogisticRegression, Ridge

    often = np.asarray((counts[sides.fit] > 0).sum(axis=0)).ravel() >= LEAST_DOCUMENTS
    x = counts[:, np.flatnonzero(often)].astype(np.float64).log1p()
    norms = np.sqrt(np.asarray(x.power(2).sum(axis=1)).ravel())
    x = (diags(1 / np.where(norms > 0, norms, 1.0)) @ x).tocsr()
    if not x.shape[1]:
        return np.zeros(x.shape[0]), {"tokens": 0}
    tries = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / penalty, max_iter=1000) if sides.kind == "label" else Ridge(alpha=penalty)
        model.fit(x[sides.fit], sides.values[sides.fit])
        scores = np.asarray(x @ np.ravel(model.coef_) + np.ravel(model.intercept_)[0])
        tries.append((sides.told(scores[sides.choose]), scores, {"penalty": penalty}))
    _, scores, how = max(tries, key=lambda one: one[0])
    return scores, {"tokens": int(often.sum()), **how}
