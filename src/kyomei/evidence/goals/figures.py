"""How well scores tell a goal: figures with intervals, by drawing whole groups of documents again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import beta, rankdata

DRAWS = 2000
LEVEL = 0.95
_NUMBERS_PER_BLOCK = 1 << 22
Weights = Float64[np.ndarray, "draws documents"]
Statistic = Callable[[Weights], Float64[np.ndarray, " draws"]]


def auc_of(scores: Float64[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> Statistic:
    """Area under the ROC curve: the chance that a document with the label has a higher score than one without, ties half.

    A weight counts a document as often; a draw without one of the two kinds is NaN.
    """
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)

    def auc(weights: Weights) -> Float64[np.ndarray, " draws"]:
        ordered = weights[:, order]
        positive, negative = (np.add.reduceat(ordered * mask[order], first, axis=1) for mask in (label, ~label))
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray((positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))

    return auc


def share_of(among: Bool[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> Statistic:
    """The share of some documents that hits are; NaN where none of them is drawn."""

    def share(weights: Weights) -> Float64[np.ndarray, " draws"]:
        whole = weights @ among
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ (among & hits)) / np.where(whole > 0, whole, np.nan))

    return share


def r2_of(scores: Float64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]) -> Statistic:
    """1 − Σ(value − score)² / Σ(value − mean)², the mean that of the draw."""

    def r2(weights: Weights) -> Float64[np.ndarray, " draws"]:
        whole = weights.sum(axis=1)
        mean = weights @ values / whole
        spread = weights @ values**2 - whole * mean**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(1 - (weights @ (values - scores) ** 2) / np.where(spread > 1e-12 * whole, spread, np.nan))

    return r2


def rank_correlation_of(scores: Float64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]) -> Statistic:
    """Spearman's correlation, of ranks among all documents; 0 where one side never changes."""
    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (scores, values))

    def correlation(weights: Weights) -> Float64[np.ndarray, " draws"]:
        whole = weights.sum(axis=1)
        mean_a, mean_b = weights @ a / whole, weights @ b / whole
        covariance = weights @ (a * b) - whole * mean_a * mean_b
        variances = (weights @ a**2 - whole * mean_a**2) * (weights @ b**2 - whole * mean_b**2)
        return np.asarray(np.where(variances > 1e-9, covariance / np.sqrt(np.maximum(variances, 1e-9)), 0.0))

    return correlation


@dataclass(frozen=True, eq=False)
class Draws:
    """Groups drawn with replacement, with all their documents; the same draws whenever it is asked.

    Args:
        groups: number of each document's group [n].
        seed: of the draws.
        count: how many draws.
    """

    groups: Int64[np.ndarray, " n"]
    seed: int
    count: int = DRAWS

    def blocks(self) -> Iterator[Weights]:
        """How often each document stands in each draw, some draws at a time."""
        names, own = np.unique(self.groups, return_inverse=True)
        rng = np.random.default_rng([self.seed, self.count])
        step = max(1, _NUMBERS_PER_BLOCK // max(1, len(self.groups)))
        for first in range(0, self.count, step):
            size = min(step, self.count - first)
            counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
            yield np.asarray(counts[:, own], dtype=np.float64)

    def of(self, statistic: Statistic) -> Float64[np.ndarray, " draws"]:
        """A statistic of every draw."""
        return np.concatenate([statistic(weights) for weights in self.blocks()])


def figure(statistic: Statistic, draws: Draws, edge: tuple[float, float, int] | None = None) -> dict[str, Any]:
    """A figure of all documents, with the interval that 95 % of the draws lie in.

    Where a figure is as good or as bad as can be, so is every draw, which says nothing. There the open end is that of the
    exact interval of a share (Clopper and Pearson 1934).

    Args:
        statistic: of weighted documents.
        draws: of the documents.
        edge: the least and the largest value that the figure can have, and the number of groups that it rests on; none: it has
            no such ends.

    Returns:
        "value" and "interval", NaN where there is nothing to count.
    """
    value = float(statistic(np.ones((1, len(draws.groups))))[0])
    tail = (1 - LEVEL) / 2
    drawn = draws.of(statistic)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    if edge is not None and edge[2] > 0:
        least, most, count = edge
        if value == most:
            low = min(low, least + (most - least) * beta.ppf(tail, count, 1))
        if value == least:
            high = max(high, least + (most - least) * beta.ppf(1 - tail, 1, count))
    return {"value": value, "interval": [float(low), float(high)]}
