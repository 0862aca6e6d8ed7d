"""Joint refinement: rows as sparse positive sums of directions, and directions refitted to the rows, in turn.

Resonance moves every direction alone, so a direction keeps a share of whatever comes along with its feature. Here directions
compete for the rows, as in the method of optimal directions (Engan, Aase and Husøy, 1999), with codes that are never negative:
what another direction explains no longer pulls.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.cosines import nearest
from kyomei.learning.merging import distinct, not_mixtures

PARTS = 8
"""Directions in the code of one row at most."""
ROUNDS, SETTLING = 14, 4
"""Rounds of coding and refitting; in the last few of them no direction is added or dropped."""
ROWS, JOINT_ROWS = 6000, 12_000
"""Rows that a refinement is fitted on, evenly taken; of each half, where two are compared."""
MIN_ROWS_CODED = 10
"""A direction in the codes of fewer rows is not refitted, and dropped where directions are dropped."""
ADDED_SHARE = 0.1
"""Directions added every second round, beside those there are: remainders of badly explained rows."""
PASSES, AGREED = 2, 0.9
"""Refinements of both halves one after the other, and the cosine from which the halves agree on a direction."""
SAME = 0.85
"""Directions above this cosine are one."""
CHUNK_ROWS = 1024
_RIDGE = 1e-3


def positive_code(
    z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"], parts: int = PARTS, least: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "rows k"]:
    """Rows as positive sums of a few unit directions: orthogonal matching pursuit whose negative weights are cut to zero.

    Directions compete for a row, so that one is not counted as active because it resembles another that is.

    Args:
        z: rows.
        w: unit directions.
        parts: directions in the code of one row at most.
        least: products with what is left of a row from which a direction is taken up; none: any.
    """
    least = w.new_full((len(w),), -torch.inf) if least is None else least
    return torch.cat([_coded(rows, w, min(parts, len(w)), least) for rows in torch.split(z, CHUNK_ROWS)])


def _coded(
    z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"], parts: int, least: Float[Tensor, " k"]
) -> Float[Tensor, "rows k"]:
    code = z.new_zeros(len(z), len(w))
    live, rest, chosen = torch.arange(len(z)), z, torch.zeros(len(z), 0, dtype=torch.long)
    for number in range(1, parts + 1):
        scores = rest @ w.T
        value, best = torch.where(scores >= least, scores, -torch.inf).scatter(1, chosen, -torch.inf).max(dim=1)
        more = value > -torch.inf
        live, chosen = live[more], torch.cat([chosen[more], best[more, None]], dim=1)
        if not len(live):
            break
        own, rows = w[chosen], z[live]
        gram = own @ own.mT + 1e-4 * torch.eye(number)
        weights = torch.linalg.solve(gram, own @ rows[:, :, None])[:, :, 0].clamp_min(0)
        code[live[:, None], chosen] = weights
        rest = rows - (weights[:, None, :] @ own)[:, 0]
    return code


class Joint(NamedTuple):
    """Directions that the joint refinements of two halves of the rows agree on.

    Attributes:
        w: unit directions in whitened space.
        agreement: cosine between the two halves' versions of each.
        explained: median share of a row's energy that a sum of at most eight of them explains.
    """

    w: Float[Tensor, "k dim"]
    agreement: Float[Tensor, " k"]
    explained: float


def refine_jointly(
    halves: tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]], start: Float[Tensor, "k dim"], *, seed: int
) -> Joint:
    """Refine on two halves apart, keep what both make, and do so again from there; mixtures of others are left out.

    Args:
        halves: whitened rows, float32.
        start: unit directions in whitened space.
        seed: of the draws.
    """
    w, agreement = start, torch.ones(len(start))
    for number in range(PASSES):
        first, second = (refine(z, w, seed=seed + PASSES * which + number, rows=JOINT_ROWS) for which, z in enumerate(halves))
        if not len(first) or not len(second):
            return Joint(start[:0], agreement[:0], 0.0)
        cosine, partner = nearest(first, second)
        both = cosine > AGREED
        w, agreement = normalize(first[both] + second[partner[both]], dim=1), cosine[both]
        kept = distinct(w, SAME)
        w, agreement = w[kept], agreement[kept]
    rows = torch.cat([thinned(z, ROWS) for z in halves])
    kept = not_mixtures(w, (positive_code(rows, w) > 0).sum(dim=0)).nonzero().flatten()
    return Joint(w[kept], agreement[kept], explained(rows, w[kept]))


def explained(z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"]) -> float:
    """Share of the median row's energy that a sum of at most eight of the directions explains."""
    left = (z - positive_code(z, w) @ w).square().sum(dim=1) / z.square().sum(dim=1).clamp_min(1e-6)
    return 1 - float(left.median())


def thinned(z: Float[Tensor, "rows dim"], rows: int) -> Float[Tensor, "some dim"]:
    """At most so many rows, evenly taken."""
    return z[:: max(1, math.ceil(len(z) / rows))]


def refine(
    z: Float[Tensor, "rows dim"], start: Float[Tensor, "k dim"], *, seed: int = 0, rounds: int = ROUNDS, rows: int = ROWS
) -> Float[Tensor, "l dim"]:
    """Directions that explain whitened rows together, begun at those that were found one by one.

    Args:
        z: whitened rows, float32.
        start: unit directions in whitened space.
        seed: draws the rows whose remainders become new directions.
        rounds: of coding and refitting.
        rows: that it is fitted on at most, evenly taken.

    Returns:
        Unit directions, their number its own; none if `start` has none.
    """
    rng = torch.Generator().manual_seed(seed)
    z, w = thinned(z, rows), start
    for number in range(rounds if len(start) else 0):
        code = positive_code(z, w)
        w, uses = _refitted(z, code, w), (code > 0).sum(dim=0)
        if number < rounds - SETTLING:
            rest = z - code @ w
            w = _without_doubles(w, uses)
            if number % 2 == 0:
                w = torch.cat([w, _remainders(rest, max(4, round(ADDED_SHARE * len(w))), rng)])
    return w


def _refitted(z: Float[Tensor, "rows dim"], code: Float[Tensor, "rows k"], w: Float[Tensor, "k dim"]) -> Float[Tensor, "k dim"]:
    """Least squares of the rows on their codes, at unit length."""
    gram = code.T @ code
    gram += _RIDGE * gram.diagonal().mean().clamp_min(1e-6) * torch.eye(len(gram))
    fitted = torch.linalg.solve(gram, code.T @ z)
    often = (code > 0).sum(dim=0) >= MIN_ROWS_CODED
    return normalize(torch.where(often[:, None], fitted, w), dim=1)


def _without_doubles(w: Float[Tensor, "k dim"], uses: Float[Tensor, " k"]) -> Float[Tensor, "kept dim"]:
    order = uses.argsort(descending=True, stable=True)
    kept = order[distinct(w[order], SAME)]
    return w[kept[uses[kept] >= MIN_ROWS_CODED]]


def _remainders(rest: Float[Tensor, "rows dim"], number: int, rng: torch.Generator) -> Float[Tensor, "number dim"]:
    """Remainders of some of the rows of which most is left."""
    most = rest.square().sum(dim=1).topk(min(len(rest), 20 * number)).indices
    return normalize(rest[most[torch.randperm(len(most), generator=rng)[:number]]], dim=1)
