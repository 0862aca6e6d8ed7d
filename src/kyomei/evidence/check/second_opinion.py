"""A second search of another kind, to say how far the first one can be trusted: a joint dictionary of each half.

Resonance finds directions one by one; a joint refinement (learning/refinement.py) lets them compete for the rows and adds those
that are missing. What it makes of both halves alike is a second opinion, and where the two differ one of them is wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.cosines import nearest, nearest_other
from kyomei.evidence.check.behaviour import (
    NO_CODE,
    NOTHING,
    Coded,
    Geometry,
    Meetings,
    Spread,
    chance_coherence,
    coded,
    geometry,
    meetings,
    spread,
)
from kyomei.learning.merging import distinct
from kyomei.learning.refinement import AGREED, SAME, refine
from kyomei.learning.spaces import Whitening

CROWDED = 0.99
"""A direction is apart if this share of random directions would have a nearer neighbour at most as near as its own."""


class SecondOpinion(NamedTuple):
    """What the joint dictionaries of both halves hold, and how the search compares.

    Attributes:
        directions: that both halves' dictionaries agree on, each once.
        agreed_share: share of a half's dictionary that the other half's confirms.
        found_share: share of the agreed directions that the search found as well, in input space.
        found_apart_share: share of them that it found and that lie no nearer to another than random ones would: children of one
            parent do lie nearer.
        confirmed_share: share of the search's features that are among the agreed directions.
        moved: cosine of the search's features with the nearest agreed direction.
        geometry: of the agreed directions.
        meetings: of nearest agreed directions.
        coded: held-out rows as sums of them.
    """

    directions: int
    agreed_share: float
    found_share: float
    found_apart_share: float
    confirmed_share: float
    moved: Spread
    geometry: Geometry
    meetings: Meetings
    coded: Coded


NO_OPINION = SecondOpinion(0, 0.0, 0.0, 0.0, 0.0, NOTHING, Geometry(NOTHING, 0.0), Meetings(0.0, 0.0), NO_CODE)


def second_opinion(
    halves: tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]],
    held_out: Float[Tensor, "rows dim"],
    features: Float[Tensor, "k dim"],
    found: Float[Tensor, "f dim"],
    white: Whitening,
    *,
    seed: int,
) -> SecondOpinion:
    """Refine the search's features on both halves and compare.

    Args:
        halves: whitened rows of each half.
        held_out: whitened rows of neither.
        features: the search's, unit rows in whitened space; the refinement begins there.
        found: every stable direction of the search, unit rows in input space.
        white: the map between the spaces.
        seed: of the refinement's draws.
    """
    if len(features) < 2:
        return NO_OPINION
    first, second = (refine(z, features, seed=seed + number) for number, z in enumerate(halves))
    if not len(first) or not len(second):
        return NO_OPINION
    here, there = (nearest(*pair).cosine > AGREED for pair in ((first, second), (second, first)))
    agreed = first[here]
    agreed = agreed[distinct(agreed, SAME)]
    share = float(here.double().mean() + there.double().mean()) / 2
    if len(agreed) < 2:
        return NO_OPINION._replace(directions=len(agreed), agreed_share=share)
    vectors, own = (normalize(w @ white.backward, dim=1) for w in (agreed, features))
    was_found = nearest(vectors, found).cosine > AGREED
    apart = nearest_other(vectors).cosine <= chance_coherence(len(agreed), vectors.shape[1], CROWDED)
    moved = nearest(own, vectors).cosine
    return SecondOpinion(
        directions=len(agreed),
        agreed_share=share,
        found_share=_share(was_found),
        found_apart_share=_share(was_found & apart),
        confirmed_share=_share(moved > AGREED),
        moved=spread(moved),
        geometry=geometry(vectors),
        meetings=meetings(torch.cat(halves), agreed, vectors),
        coded=coded(held_out, agreed),
    )


def _share(mask: Tensor) -> float:
    return float(mask.to(torch.float64).mean())
