"""Which features tell a goal, alone and in small sets. Sets need scikit-learn: the extra "goals"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.sparse import csc_matrix, csr_matrix
from scipy.stats import norm, rankdata

from kyomei.evidence.goals.detector import Kind
from kyomei.evidence.goals.figures import auc_of, r2_of
from kyomei.evidence.goals.pooling import Pooling
from kyomei.evidence.reproduction import benjamini_hochberg

MOST_FEATURES = 5
"""Features of the largest set."""
CANDIDATES = 256
"""Features, those that tell most alone, among which sets are looked for."""
AS_GOOD = 0.005
"""A smaller set is taken that is behind the best by no more than this, in AUC or R², and by a tenth of what the best lacks."""
_COLUMNS = 256
_PENALTY = 1.0
"""C of scikit-learn's logistic regression, and alpha of its ridge, on features of unit variance."""

Pooled = Mapping[Pooling, csc_matrix]
"""Pooled activations [documents, features] by pooling."""


def p_values(
    pooled: Pooled, values: Float64[np.ndarray, "documents goals"], groups: Int64[np.ndarray, " documents"]
) -> dict[Pooling, Float64[np.ndarray, "features goals"]]:
    """How likely a feature alone would go with a goal as closely by chance, two-sided, for several goals of the same documents.

    The ranks of a feature's pooled activation are compared with those of the values: for a label this is Mann and Whitney's
    test, for a score Spearman's, ties taken into account. Where groups have several documents, the variance is the larger of
    that of exchanged documents and of Σ over groups of (Σ rank · value)², both centred: documents of a group count together.

    Args:
        pooled: by pooling, of the documents.
        values: of each goal.
        groups: number of each document's group.
    """
    n = len(groups)
    centred = np.apply_along_axis(rankdata, 0, values) - (n + 1) / 2
    names, own = np.unique(groups, return_inverse=True)
    by_group = csr_matrix((np.ones(n), (own, np.arange(n))), shape=(len(names), n)) if len(names) < n else None
    found: dict[Pooling, Float64[np.ndarray, "features goals"]] = {}
    for pooling, matrix in pooled.items():
        parts = []
        for first in range(0, matrix.shape[1], _COLUMNS):
            ranks = rankdata(matrix[:, first : first + _COLUMNS].toarray(), axis=0) - (n + 1) / 2
            with_goal = ranks.T @ centred
            variance = np.outer((ranks**2).sum(axis=0), (centred**2).sum(axis=0)) / (n - 1)
            if by_group is not None:
                for goal in range(centred.shape[1]):
                    sums = by_group @ (ranks * centred[:, [goal]])
                    variance[:, goal] = np.maximum(variance[:, goal], (sums**2).sum(axis=0))
            z = np.abs(with_goal) / np.sqrt(np.where(variance > 0, variance, np.inf))
            parts.append(np.maximum(2 * norm.sf(z), 1e-300))
        found[pooling] = np.concatenate(parts)
    return found


def q_values(p: Mapping[Pooling, Float64[np.ndarray, " features"]]) -> Float64[np.ndarray, " features"]:
    """Benjamini and Hochberg's q-value of every feature, by its better pooling; that there are several is paid for."""
    best = np.min(list(p.values()), axis=0)
    return benjamini_hochberg(np.minimum(best * len(p), 1.0))


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one pooling with weights: v = intercept + Σ weight · activation.

    Attributes:
        pooling: of a document's tokens.
        features: columns of the pooled activations, the one that was found first first.
        weights: in their own units.
        intercept: the rest.
        chosen: its AUC or R² on the part that chooses.
    """

    pooling: Pooling
    features: tuple[int, ...]
    weights: tuple[float, ...]
    intercept: float
    chosen: float

    def values(self, pooled: Mapping[Pooling, Any]) -> Float64[np.ndarray, " documents"]:
        """v of every document."""
        x = pooled[self.pooling][:, list(self.features)].toarray()
        return np.asarray(self.intercept + x.astype(np.float64) @ np.array(self.weights))


@dataclass(frozen=True, eq=False)
class Sides:
    """Documents that fit, and documents that choose.

    Attributes:
        fit, choose: rows of the pooled activations.
        values: of the goal, for all rows.
        kind: of the goal.
    """

    fit: Int64[np.ndarray, " fit"]
    choose: Int64[np.ndarray, " choose"]
    values: Float64[np.ndarray, " documents"]
    kind: Kind

    def told(self, scores: Float64[np.ndarray, " choose"]) -> float:
        """AUC, or R², of scores on the part that chooses."""
        values = self.values[self.choose]
        statistic = auc_of(scores, values > 0) if self.kind == "label" else r2_of(scores, values)
        return float(statistic(np.ones((1, len(values))))[0])


def best_sets(
    pooled: Pooled, sides: Sides, p: Mapping[Pooling, Float64[np.ndarray, " features"]], most: int = MOST_FEATURES
) -> list[FeatureSet]:
    """Of every size up to `most` the set that tells the goal best where sets are chosen.

    For each pooling, orthogonal matching pursuit (scikit-learn) on features of unit variance finds nested sets; each is weighed
    by logistic regression, or ridge regression for a score. docs/tried.md has what else was tried.

    Args:
        pooled: activations of all documents by pooling.
        sides: which of them fit and choose, and the goal.
        p: of every feature alone, on the documents that fit.
        most: features of the largest set.

    Returns:
        The smallest first; one without features where none of them ever changes.
    """
    found: dict[int, FeatureSet] = {}
    for pooling in pooled:
        for each in _sets(pooled, pooling, sides, p[pooling], most):
            size = len(each.features)
            if size not in found or each.chosen > found[size].chosen:
                found[size] = each
    return [found[size] for size in sorted(found)]


def smallest_as_good(sets: Sequence[FeatureSet]) -> FeatureSet:
    """The smallest set that is about as good as the best."""
    best = max(each.chosen for each in sets)
    return next(each for each in sets if each.chosen >= best - min(AS_GOOD, (1 - best) / 10))


def chosen_set(pooled: Pooled, sides: Sides, sets: Sequence[FeatureSet]) -> FeatureSet:
    """The set that is taken, weighed anew by all documents that fit and choose: they are half as many again."""
    chosen = smallest_as_good(sets)
    both = replace(sides, fit=np.concatenate([sides.fit, sides.choose]))
    return weighed(chosen.pooling, np.array(chosen.features, dtype=np.int64), pooled, both)


def _sets(pooled: Pooled, pooling: Pooling, sides: Sides, p: Float64[np.ndarray, " features"], most: int) -> list[FeatureSet]:
    from sklearn.linear_model import orthogonal_mp

    matrix = pooled[pooling]
    candidates = np.argsort(p, kind="stable")[:CANDIDATES]
    x = matrix[:, candidates].toarray().astype(np.float64)
    spread = x[sides.fit].std(axis=0)
    candidates, x, spread = candidates[spread > 0], x[:, spread > 0], spread[spread > 0]
    y = sides.values[sides.fit]
    if not len(candidates):
        return [_weighed(pooling, candidates, np.zeros((len(x), 0)), sides)]
    unit = (x[sides.fit] - x[sides.fit].mean(axis=0)) / spread / math.sqrt(len(sides.fit))
    sets: list[FeatureSet] = []
    chosen: list[int] = []
    for size in range(1, min(most, len(candidates), len(sides.fit) - 1) + 1):
        weights = orthogonal_mp(unit, y - y.mean(), n_nonzero_coefs=size)
        new = [int(at) for at in np.flatnonzero(weights) if at not in chosen]
        if not new:
            break
        chosen += new
        sets.append(_weighed(pooling, candidates[chosen], x[:, chosen], sides))
    return sets


def weighed(pooling: Pooling, features: Int64[np.ndarray, " k"], pooled: Pooled, sides: Sides) -> FeatureSet:
    """Given features with weights that fit the goal."""
    return _weighed(pooling, features, pooled[pooling][:, features].toarray().astype(np.float64), sides)


def _weighed(
    pooling: Pooling, features: Int64[np.ndarray, " k"], x: Float64[np.ndarray, "documents k"], sides: Sides
) -> FeatureSet:
    weights, intercept = weigh(x[sides.fit], sides.values[sides.fit], sides.kind)
    told = sides.told(intercept + x[sides.choose] @ weights)
    return FeatureSet(pooling, tuple(features.tolist()), tuple(weights.tolist()), intercept, told)


def weigh(
    x: Float[np.ndarray, "documents k"], values: Float64[np.ndarray, " documents"], kind: Kind, penalty: float = _PENALTY
) -> tuple[Float64[np.ndarray, " k"], float]:
    """Weights, in the columns' own units, and intercept of logistic or ridge regression on columns of unit variance.

    Args:
        x: activations.
        values: 0 or 1, or numbers.
        kind: which of the two.
        penalty: larger holds weights closer to zero.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    if not x.shape[1]:
        mean = float(values.mean())
        return np.zeros(0), math.log(mean / (1 - mean)) if kind == "label" else mean
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    unit = (x - mean) / spread
    model = LogisticRegression(C=1 / penalty, max_iter=1000) if kind == "label" else Ridge(alpha=penalty)
    model.fit(unit, values)
    weights = np.asarray(model.coef_, dtype=np.float64).ravel() / spread
    return weights, float(np.ravel(model.intercept_)[0] - mean @ weights)


def threshold_of(scores: Float64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]) -> float:
    """The threshold of the largest F1, halfway to the next lower score; of equals the highest.

    Args:
        scores: of documents.
        values: 1 for those with the label, of which there are some.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(values[order] > 0)
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + (values > 0).sum())
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    at = last[int(np.argmax(f1[last]))]
    here = scores[order[at]]
    return float(here if at + 1 == len(order) else (here + scores[order[at + 1]]) / 2)
