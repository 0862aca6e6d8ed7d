"""How often a feature occurs, and how many features there are: estimates that need no ground truth."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCORE_ROWS = 32_768
"""Held-out rows that the occurrence estimate uses at most."""
NEURONS_PER_BLOCK = 64
EM_STEPS = 40
BINS = 512
"""Bins of a direction's scores in which they are told apart."""


def estimate_occurrence(
    whitened_rows: Callable[[], Iterator[Float[Tensor, "rows dim"]]], w: Float[Tensor, "k dim"]
) -> Float[Tensor, "k"]:
    """Share of rows in which each feature occurs, from its score distribution on held-out rows.

    A score is a mixture of rows without the feature and rows with it, fitted by expectation maximisation as two normal
    components of free width whose upper one is the feature. The threshold at which a direction was found is no estimate
    of occurrence, because only the clearest occurrences clear it.

    Args:
        whitened_rows: gives the held-out rows, norm kept, [rows, dim] at a time.
        w: unit directions in whitened space.

    Returns:
        Frequencies in (0, 1), float32.
    """
    taken: list[Tensor] = []
    for block in whitened_rows():
        taken.append(block)
        if sum(map(len, taken)) >= SCORE_ROWS:
            break
    z = torch.cat(taken)
    return torch.cat([_upper_share(z @ part.T) for part in torch.split(w, NEURONS_PER_BLOCK)]) if len(w) else w.new_zeros(0)


def _upper_share(scores: Float[Tensor, "rows k"]) -> Float[Tensor, "k"]:
    """Mixing weight of the upper of two normal components, by expectation maximisation from a split at the 97th percentile."""
    score, count = _histogram(scores)
    above = (count.flip(0).cumsum(dim=0) - count.flip(0)).flip(0)  # rows in higher bins
    weight = (above < 0.03 * len(scores)).to(scores.dtype)
    for _ in range(EM_STEPS):
        share = ((weight * count).sum(dim=0) / len(scores)).clamp(1e-6, 0.5)
        high, high_variance = _weighted_moments(score, weight * count)
        low, low_variance = _weighted_moments(score, (1 - weight) * count)
        log_odds = (
            torch.logit(share)
            + 0.5 * (low_variance.log() - high_variance.log())
            + 0.5 * ((score - low) ** 2 / low_variance - (score - high) ** 2 / high_variance)
        )
        # A wider upper component would also claim the far lower tail, where a feature cannot be.
        weight = torch.where(score > low, torch.sigmoid(log_odds), 0.0)
    return ((weight * count).sum(dim=0) / len(scores)).clamp_min(1.0 / len(scores)).float()


def _weighted_moments(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum(dim=0).clamp_min(1e-6)
    mean = (weight * scores).sum(dim=0) / total
    variance = (weight * (scores - mean) ** 2).sum(dim=0) / total
    return mean, variance.clamp_min(1e-4)


def _histogram(scores: Float[Tensor, "rows k"]) -> tuple[Float[Tensor, "bins k"], Float[Tensor, "bins k"]]:
    """Mean score and number of rows of every bin, each column over its own range: a fortieth of the numbers to go over."""
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    bins = ((scores - low) * (BINS / (high - low).clamp_min(1e-12))).long().clamp_(0, BINS - 1)
    count, total = (scores.new_zeros(BINS, scores.shape[1]) for _ in range(2))
    count.scatter_add_(0, bins, torch.ones_like(scores))
    total.scatter_add_(0, bins, scores)
    return total / count.clamp_min(1), count


@dataclass(frozen=True)
class Factors:
    """By what factor the truth lies off an estimate, as measured on planted data: an interval that is calibrated, not derived.

    Attributes:
        cuts: values of a statistic, rising, that divide the planted sets into groups.
        factors: for each group the least and the largest truth ÷ estimate, the outermost few left out.
    """

    cuts: tuple[float, ...]
    factors: tuple[tuple[float, float], ...]

    @classmethod
    def fit(cls, ratio: Sequence[float], at: Sequence[float], cuts: tuple[float, ...], coverage: float = 0.95) -> Factors:
        """From truth ÷ estimate and the statistic of planted sets.

        Split conformal, on each side: of m ratios the ⌈(m + 1) q⌉-th is taken (Vovk et al., 2005), the outermost where there is
        none.
        """
        groups: list[list[float]] = [[] for _ in range(len(cuts) + 1)]
        for value, statistic in sorted(zip(ratio, at, strict=True)):
            groups[bisect_left(cuts, statistic)].append(value)
        factors = []
        for group in groups:
            upper = min(math.ceil((len(group) + 1) * (1 + coverage) / 2), len(group)) - 1
            factors.append((group[len(group) - 1 - upper], group[upper]) if group else (0.0, math.inf))
        return cls(cuts, tuple(factors))

    def interval(self, estimate: float, at: float) -> tuple[float, float]:
        """What the estimate's group says of the truth; it holds the estimate itself."""
        low, high = self.factors[bisect_left(self.cuts, at)]
        return estimate * min(low, 1.0), estimate * max(high, 1.0)


def unseen_share(support: Int[Tensor, "k"], num_starts: int) -> float:
    """Chance that one more start ends where none has ended yet: starts that ended alone, over all (Good 1953).

    Args:
        support: starts that ended in each direction that was new to them.
        num_starts: all of them, those that ended at known directions too.
    """
    return float((support == 1).sum()) / num_starts


def estimate_richness(support: Int[Tensor, "k"]) -> tuple[int, tuple[int, int]]:
    """Number of features, the unseen ones included, with a 95 % interval.

    Each random start is a draw of one feature, so the features that no start fell to are counted as unseen species are:
    Chao's bias-corrected estimator from those drawn once and twice, with its log-normal interval (Chao 1984, 1987).

    Args:
        support: starts that ended in each direction; 0 for one that was found otherwise: it is seen, but was never drawn.
    """
    seen = len(support)
    once, twice = int((support == 1).sum()), int((support == 2).sum())
    unseen = once * (once - 1) / (2 * (twice + 1))
    if unseen == 0:
        return seen, (seen, seen)
    ratio = once / max(twice, 1)
    variance = max(twice, 1) * (ratio**4 / 4 + ratio**3 + ratio**2 / 2)
    spread = math.exp(1.96 * math.sqrt(math.log(1 + variance / unseen**2)))
    return round(seen + unseen), (round(seen + unseen / spread), round(seen + unseen * spread))
