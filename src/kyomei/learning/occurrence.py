"""How often a feature occurs, and how many features there are: estimates that need no ground truth."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kyomei.dictionary.kernels import scattered

SCORE_ROWS = 32_768
"""Held-out rows that the occurrence estimate uses at most."""
NEURONS_PER_BLOCK = 64
EM_STEPS = 40
BINS = 512
"""Bins of a direction's scores in which they are told apart."""
OWN_SHARE, UNEVEN, PER_STABLE = 0.6, 4.5, (1.7, 6.0, 25.0)
"""Kinds of searches: mixtures are many; some features occur much more often than others; else by how many directions were come
to for each stable one."""


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
    scattered(total, bins, scores)
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


BY_KIND = Factors(
    (0.5, 1.5, 2.5, 3.5, 4.5),
    ((0.13, 1.07), (0.84, 2.23), (0.95, 1.1), (0.95, 1.39), (0.95, 1.42), (0.95, 59.0)),
)
"""Truth ÷ estimate of the number of features, by kind of search (bench/number.py)."""


def unseen_share(support: Int[Tensor, "k"], num_starts: int) -> float:
    """Chance that one more start ends where none has ended yet: starts that ended alone, over all (Good 1953).

    Args:
        support: starts that ended in each direction that was new to them.
        num_starts: all of them, those that ended at known directions too.
    """
    return float((support == 1).sum()) / num_starts


class Richness(NamedTuple):
    """What a search says about how many features there are.

    Attributes:
        own: directions that are no mixture of others: the estimate.
        found: directions.
        per_stable: distinct directions that the search came to, unstable ones included, for each of those that it found.
        spread: how much more often the tenth of the features that occur most occurs than the tenth that occurs least.
    """

    own: int
    found: int
    per_stable: float
    spread: float

    @property
    def group(self) -> int:
        """Which of the kinds of searches whose error was measured apart, in the order of `BY_KIND`."""
        if self.own < OWN_SHARE * self.found:
            return 0
        if self.spread > UNEVEN:
            return 1
        return 2 + bisect_left(PER_STABLE, self.per_stable)

    @property
    def interval(self) -> tuple[int, int]:
        """It held the planted number in 96 % of the sets that it was not fitted on; rare and dense features make it wide.

        Where nothing was found it is 0 to 0, and nothing is known.
        """
        low, high = BY_KIND.interval(self.own, self.group)
        return math.floor(low), math.ceil(high)


def richness(own: int, found: int, frequency: Float[Tensor, " own"], num_candidates: int) -> Richness:
    """Number of features: of the directions that were found, those that are no positive sum of a few others.

    Features of rows with few combinations of them make each combination a cluster, which is found beside the features. Features
    that no start fell to are not counted; where they are many, starts end in unstable directions too, and the interval is wide.

    Args:
        own: directions that are no sums of others.
        found: these, and the sums.
        frequency: share of rows in which each of the former occurs.
        num_candidates: distinct directions that the search came to, found or unstable.
    """
    if not own:
        return Richness(0, found, math.inf, 1.0)
    low, high = frequency.double().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64, device=frequency.device)).tolist()
    return Richness(own, found, num_candidates / found, high / max(low, 1e-9))
