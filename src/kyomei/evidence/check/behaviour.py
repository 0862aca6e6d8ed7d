"""What directions do on rows: how they lie to one another, and how rows are made of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import betaincinv  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from kyomei.dictionary.cosines import nearest_other
from kyomei.learning.refinement import positive_code

CODED_ROWS, MEETING_ROWS = 4000, 8000
"""Rows coded as positive sums of features, in general and to count meetings."""
WHOLE, FULL, HALF, WEAK = 0.5, 0.6, 0.25, 0.2
"""Shares of a feature's largest weights: from the first it counts as active; from the second it is fully there, between the
third and the second in part; from the fourth it is there at all."""


class Spread(NamedTuple):
    """Tenth percentile, median and ninetieth percentile."""

    low: float
    median: float
    high: float


NOTHING = Spread(0.0, 0.0, 0.0)


def spread(values: Float[Tensor, " k"]) -> Spread:
    """Of values, all 0 where there are none."""
    if len(values) == 0:
        return NOTHING
    low, median, high = values.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Spread(low, median, high)


class Geometry(NamedTuple):
    """How unit directions lie to one another in input space.

    Attributes:
        coherence: largest cosine of a direction with another.
        chance_coherence: median of what as many random directions would have there.
    """

    coherence: Spread
    chance_coherence: float


def geometry(vectors: Float[Tensor, "k dim"]) -> Geometry:
    """Largest cosines between directions, and what as many random ones would have."""
    if len(vectors) < 2:
        return Geometry(NOTHING, 0.0)
    return Geometry(spread(nearest_other(vectors).cosine), chance_coherence(len(vectors), vectors.shape[1], 0.5))


def chance_coherence(count: int, dim: int, quantile: float) -> float:
    """Quantile of the largest cosine of a random unit vector with count − 1 others.

    P(cos > t) = I_{1−t²}((d − 1)/2, 1/2) / 2 for random unit vectors; t is where the largest of count − 1 has its quantile.
    """
    above = -math.expm1(math.log(quantile) / (count - 1))
    return math.sqrt(1 - betaincinv((dim - 1) / 2, 0.5, min(1.0, 2 * above)))


class Coded(NamedTuple):
    """What rows say when they are written as positive sums of at most eight directions.

    Attributes:
        explained: share of a row's energy that its sum explains.
        active: directions with at least half of their largest weight in a row's sum.
        in_part: share of the weights that are a fraction of the direction's largest ones: a direction that stands for two
            partners is half there where one of them is.
        partner: largest P(j | i) over the other directions j, for each direction i.
        chance_partner: median of what independent directions would have there.
    """

    explained: Spread
    active: Spread
    in_part: float
    partner: Spread
    chance_partner: float


NO_CODE = Coded(NOTHING, NOTHING, 0.0, NOTHING, 0.0)


def coded(z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"]) -> Coded:
    """Sparsity and company of unit directions in whitened rows."""
    if len(w) < 2:
        return NO_CODE
    rows = z[:: math.ceil(len(z) / CODED_ROWS)]
    weights = positive_code(rows, w)
    levels = _levels(weights)
    there = (levels > WEAK).float()
    energy = rows.square().sum(dim=1).clamp_min(1e-6)
    return Coded(
        explained=spread(1 - (rows - weights @ w).square().sum(dim=1) / energy),
        active=spread((levels > WHOLE).sum(dim=1).float()),
        in_part=float(((levels > HALF) & (levels < FULL)).sum() / max(1, int((levels > HALF).sum()))),
        partner=spread(given(there).amax(dim=1)),
        chance_partner=_chance_partner(there.mean(dim=0), there.sum(dim=0)),
    )


class Meetings(NamedTuple):
    """How often a direction and its nearest neighbour in input space are in one row, over what independence would give.

    Competing for a row makes it somewhat less than 1. Children of one parent exclude each other, and a parent is there with its
    children, in part: either moves a figure far away from 1.

    Attributes:
        at_all: counted where both have more than a fifth of their largest weight.
        wholly: counted where both have more than half of it.
    """

    at_all: float
    wholly: float


def meetings(z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"], vectors: Float[Tensor, "k dim"]) -> Meetings:
    """Of unit directions w in whitened rows; `vectors` are the same in input space."""
    levels = _levels(positive_code(z[:: math.ceil(len(z) / MEETING_ROWS)], w))
    neighbour = nearest_other(vectors).row
    ratios = []
    for least in (WEAK, WHOLE):
        there = (levels > least).float()
        share, met = there.mean(dim=0), (there * there[:, neighbour]).mean(dim=0)
        ratios.append(float(met.sum() / (share * share[neighbour]).sum().clamp_min(1 / len(levels))))
    return Meetings(*ratios)


def _levels(weights: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """Weights over each direction's largest ones."""
    return weights / weights.quantile(0.995, dim=0).clamp_min(1e-6)


def given(there: Float[Tensor, "rows k"]) -> Float[Tensor, "k k"]:
    """P(column | row) for every pair of directions, 0 on the diagonal."""
    return ((there.T @ there) / there.sum(dim=0).clamp_min(1)[:, None]).fill_diagonal_(0)


def _chance_partner(frequency: Float[Tensor, " k"], counts: Float[Tensor, " k"]) -> float:
    """Median over directions of the largest P(j | i) of independent others: the mean, plus a normal's largest of k draws."""
    reach = math.sqrt(2 * math.log(max(2, len(frequency))))
    noise = (frequency * (1 - frequency))[None].sqrt() / counts[:, None].clamp_min(1).sqrt()
    chance = (frequency[None] + reach * noise).fill_diagonal_(0).amax(dim=1)
    return float(chance.clamp_max(1).median())
