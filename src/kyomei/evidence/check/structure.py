"""What a quick search says about the sparse structure of rows: two disjoint halves, searched apart, and Gaussian nulls.

What both halves find is structure; how much of it both find says how much neither saw; and what the found directions do on rows
held out from both says which premises of the theory hold (arXiv:2506.14002, decomposable data: H1–H3, V1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import ResonanceRecipe
from kyomei.dictionary.cosines import nearest
from kyomei.errors import DataError
from kyomei.evidence.check.behaviour import NOTHING, Coded, Geometry, Meetings, Spread, coded, geometry, given, spread
from kyomei.evidence.check.second_opinion import SecondOpinion, second_opinion
from kyomei.learning.directions import Directions
from kyomei.learning.merging import distinct, not_mixtures
from kyomei.learning.occurrence import estimate_occurrence
from kyomei.learning.resonance import resonate
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import Rows, RowsLike, TensorRows, open_rows
from kyomei.source.surrogate import GaussianSurrogate

QUICK = ResonanceRecipe(neurons=512, rounds=1, steps=8, batch_rows=8192, frequencies=(0.002, 0.01, 0.03), leave_out_sums=False)
"""The search that every check makes, whatever the data: the calibration holds for this one only."""
NULL_NEURONS = 256
HALF_SHARE = 0.45
HALF_ROWS, HELD_OUT_ROWS, SPREAD_ROWS = 50_000, 16_384, 32_768
MIN_ROWS, MIN_ROWS_PER_DIM = 2000, 5
CLEAR_ROWS = 20
"""A frequency is tried if at least this many rows of a half clear its threshold."""
REPRODUCED, SAME, PRECISE = 0.7, 0.85, 0.9
"""Cosines in whitened space: found again at all, the same direction, and the same direction with little noise."""
SPLIT_DIRECTIONS, SPLIT_ROWS = 96, 2000
PARENT, NOT_PARENT = 0.6, 0.5
"""P(parent | child) is above the first and P(child | parent) below the second in a parent-child pair."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Structure:
    """Plain numbers about rows; shares lie in [0, 1], cosines in whitened space unless said otherwise.

    Attributes:
        num_rows: rows there are.
        sampled_rows: rows in one half's search.
        dim: coordinates of theirs that vary.
        found: stable directions of each half.
        candidates: distinct directions of each half, unstable ones included.
        basin_share: share of random starts that ended in a stable direction.
        reproduced: share of the stable directions found again, anywhere in the other half's union, above the null's level.
        num_reproduced: how many of them, of both halves together, with repetitions.
        null_level: cosine above which "found again" counts: 0.7, or the null's 99th percentile where that is more.
        null_reproduced: the same share on Gaussian surrogates, all of whose directions are kept.
        null_stable: share of the surrogates' directions that are stable.
        distinct: reproduced directions, each once.
        features: of these, the ones that are no mixture of others.
        captures: features that the first half, the second half and both found as stable directions.
        precise_share: share of the features found again at a cosine above 0.9.
        agreement: cosine at which a feature was found again.
        occurrence: estimated share of rows in which a feature occurs, on held-out rows.
        explained: share of a held-out whitened row's energy that a positive sum of at most eight features explains.
        active: features with at least half of their largest weight in a held-out row's sum.
        in_part: share of the weights in such sums that are a fraction of the feature's largest ones: a direction that stands
            for two partners is half there where one of them is.
        partner: largest P(j | i) over the other features j, for each feature i, in such sums.
        chance_partner: median of what independent features would have there.
        child_share: share of the features that are a child of another.
        split: the largest variance among the rows of one feature over that of noise; 1 is one feature, more is several in one.
        balance: coefficient of variation of a feature's active scores.
        coherence: largest cosine of a feature with another, in input space.
        chance_coherence: median of what as many random directions would have there.
        second: what a joint dictionary of each half says.
        constant: coordinates that never vary; they are left out.
    """

    num_rows: int
    sampled_rows: int
    dim: int
    found: tuple[int, int]
    candidates: tuple[int, int]
    basin_share: float
    reproduced: float
    num_reproduced: int
    null_level: float
    null_reproduced: float
    null_stable: float
    distinct: int
    features: int
    captures: tuple[int, int, int]
    precise_share: float
    agreement: Spread
    occurrence: Spread
    explained: Spread
    active: Spread
    in_part: float
    partner: Spread
    chance_partner: float
    child_share: float
    split: Spread
    balance: Spread
    coherence: Spread
    chance_coherence: float
    second: SecondOpinion
    constant: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a spread is a list of its three numbers."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Structure:
        """What `to_dict` gave."""
        return cls(**_typed(values, cls))


def _plain(value: Any) -> Any:
    if isinstance(value, SecondOpinion | Geometry | Meetings | Coded):
        return {name: _plain(inner) for name, inner in value._asdict().items()}
    return list(value) if isinstance(value, tuple) else value


def _typed(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Plain values as the tuples that the fields of a kind hold."""
    hints, fields = get_type_hints(kind), {}
    for name, value in values.items():
        if isinstance(value, dict):
            fields[name] = hints[name](**_typed(value, hints[name]))
        elif isinstance(value, list):
            fields[name] = Spread(*value) if hints[name] is Spread else tuple(value)
        else:
            fields[name] = value
    return fields


class Searched(NamedTuple):
    """What `search` leaves: the structure, and the directions of both halves for those who know the truth."""

    structure: Structure
    halves: tuple[Directions, Directions]


class _Sample(NamedTuple):
    """Two halves and the rows held out from both, in memory, rows spread over all of them, and the whitening of all rows.

    Of the coordinates only those that vary are there.
    """

    halves: tuple[TensorRows, TensorRows]
    held_out: Tensor
    spread: Tensor
    white: Whitening


def search(
    x: RowsLike,
    *,
    seed: int = 0,
    device: str = "cpu",
    null: bool = True,
    progress: Progress | None = None,
) -> Searched:
    """Search two disjoint halves of the rows, and their Gaussian surrogates, and measure what was found.

    Args:
        x: activations [rows, dim], in whatever `open_rows` takes. The halves are the first and the second 45 % of them, in
            order; at most 50,000 rows of each are searched.
        seed: of every draw; the halves' searches use different streams of it.
        device: where the search runs.
        null: whether the surrogates are searched; without them their figures are 0 and the null's level stays at 0.7.
        progress: called with (steps done, steps in all).

    Raises:
        DataError: too few rows, non-finite values.
    """
    rows = open_rows(x)
    sample = _sample(rows, seed)
    num_searched = sample.halves[0].num_rows
    frequencies = tuple(p for p in QUICK.frequencies if p * num_searched >= CLEAR_ROWS) or QUICK.frequencies[-1:]
    recipe = QUICK.model_copy(update={"frequencies": frequencies})
    seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]
    jobs: list[tuple[Rows, ResonanceRecipe]] = [(half, recipe) for half in sample.halves]
    if null:
        keep_all = recipe.model_copy(update={"neurons": NULL_NEURONS, "min_stability": -1.0})
        jobs += [(_surrogate(sample.white, num_searched, stream), keep_all) for stream in seeds[2:]]
    found = []
    for number, (part, chosen) in enumerate(jobs):
        step = _shifted(progress, number * len(frequencies), len(jobs) * len(frequencies))
        found.append(resonate(part, seed=seeds[number], recipe=chosen, device=device, progress=step))
    halves = (found[0], found[1])
    starts = 2 * recipe.neurons * len(frequencies)
    again = _found_again(halves, sample.white.forward)
    measured = {
        "num_rows": rows.num_rows,
        "sampled_rows": num_searched,
        "dim": len(sample.white.mean),
        "constant": rows.dim - len(sample.white.mean),
        "found": (len(halves[0]), len(halves[1])),
        "candidates": (len(halves[0].candidates), len(halves[1].candidates)),
        "basin_share": float(again.support.sum()) / starts,
        **_beside_null(again.cosine, tuple(found[2:]), sample.white.forward, recipe.min_stability),
        **_features(again, halves, sample, seed),
    }
    return Searched(Structure(**measured), halves)


def _sample(rows: Rows, seed: int) -> _Sample:
    least = max(MIN_ROWS, MIN_ROWS_PER_DIM * rows.dim)
    if rows.num_rows < least:
        found = f"{rows.num_rows:,} rows"
        raise DataError(f"at least {least:,} rows for {rows.dim} dimensions", found, "harvest more tokens")
    white = Whitening.fit(rows)
    rng = np.random.default_rng([seed, 0])
    borders = [0, *(int(share * rows.num_rows) for share in (HALF_SHARE, 2 * HALF_SHARE)), rows.num_rows]
    parts = []
    for first, last, most in zip(borders, borders[1:], (HALF_ROWS, HALF_ROWS, HELD_OUT_ROWS), strict=False):
        index = np.arange(first, last)
        if len(index) > most:
            index = np.sort(rng.choice(index, size=most, replace=False))
        parts.append(rows.read(index).cpu()[:, white.varies])
    spread = torch.cat(parts)
    spread = spread[:: math.ceil(len(spread) / SPREAD_ROWS)]
    return _Sample((TensorRows(parts[0]), TensorRows(parts[1])), parts[2], spread, white.within(white.varies))


def _surrogate(white: Whitening, num_rows: int, seed: int) -> TensorRows:
    drawn = GaussianSurrogate(white.backward @ white.backward, white.mean, num_rows=num_rows, seed=seed)
    return TensorRows(drawn.read(np.arange(num_rows)))


def _shifted(progress: Progress | None, done_before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(done_before + done, total)


class _Again(NamedTuple):
    """Stable directions of both halves, the first half's first, in the space whitened on all rows.

    own: which half; cosine: the largest with the other half's union, unstable directions included.
    """

    w: Float[Tensor, "k dim"]
    own: Int[Tensor, " k"]
    cosine: Float[Tensor, " k"]
    support: Int[Tensor, " k"]


def _found_again(halves: tuple[Directions, Directions], metric: Float[Tensor, "dim dim"]) -> _Again:
    stable = [normalize(half.vectors @ metric, dim=1) for half in halves]
    cosines = [nearest(stable[i], _union(halves[1 - i], metric)).cosine for i in (0, 1)]
    own = torch.cat([torch.full((len(w),), i) for i, w in enumerate(stable)])
    return _Again(torch.cat(stable), own, torch.cat(cosines), torch.cat([half.support for half in halves]))


def _union(directions: Directions, metric: Float[Tensor, "dim dim"]) -> Float[Tensor, "c dim"]:
    return normalize(directions.candidates @ directions.whitening.backward @ metric, dim=1)


def _beside_null(
    cosine: Float[Tensor, " k"], nulls: tuple[Directions, ...], metric: Float[Tensor, "dim dim"], min_stability: float
) -> dict[str, Any]:
    """Directions found again beside those of the Gaussian surrogates."""
    level, null_reproduced, null_stable = REPRODUCED, 0.0, 0.0
    if nulls:
        null_cosine = nearest(normalize(nulls[0].vectors @ metric, dim=1), _union(nulls[1], metric)).cosine
        level = max(REPRODUCED, float(null_cosine.quantile(0.99)))
        null_reproduced = float((null_cosine > level).double().mean())
        null_stable = float((torch.cat([null.stability for null in nulls]) >= min_stability).double().mean())
    above = int((cosine > level).sum())
    return {
        "reproduced": above / max(1, len(cosine)),
        "num_reproduced": above,
        "null_level": level,
        "null_reproduced": null_reproduced,
        "null_stable": null_stable,
    }


def _features(again: _Again, halves: tuple[Directions, Directions], sample: _Sample, seed: int) -> dict[str, Any]:
    """The reproduced directions that are no mixtures, and what they do on held-out rows."""
    metric = sample.white.forward
    chosen = (again.cosine > REPRODUCED).nonzero().flatten()
    chosen = chosen[again.support[chosen].argsort(descending=True, stable=True)]
    chosen = chosen[distinct(again.w[chosen], SAME)]
    vectors = normalize(again.w[chosen] @ sample.white.backward, dim=1)
    kept = not_mixtures(vectors, again.support[chosen])
    w, vectors = again.w[chosen[kept]], vectors[kept]
    in_half = [nearest(w, again.w[again.own == i]).cosine > SAME for i in (0, 1)]
    counts = (int(in_half[0].sum()), int(in_half[1].sum()), int((in_half[0] & in_half[1]).sum()))
    # In its own half a direction is itself: the smaller of the two cosines is the one with the other half.
    agreement = torch.minimum(*(nearest(w, _union(half, metric)).cosine for half in halves))
    held_out = sample.white.whiten(sample.held_out)
    first, second = (sample.white.whiten(half.read(np.arange(half.num_rows))) for half in sample.halves)
    found = torch.cat([half.vectors for half in halves])
    return {
        "distinct": len(chosen),
        "features": len(w),
        "captures": counts,
        "precise_share": float((agreement > PRECISE).double().mean()) if len(w) else 0.0,
        "agreement": spread(agreement),
        **geometry(vectors)._asdict(),
        "split": _splits(sample.white.whiten(sample.spread), w),
        **_behaviour(held_out, w),
        **coded(held_out, w)._asdict(),
        "second": second_opinion((first, second), held_out, w, found, sample.white, seed=seed),
    }


def _behaviour(z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"]) -> dict[str, Any]:
    """Occurrence, balance and children of the features on held-out whitened rows."""
    if len(w) < 2:
        return {"occurrence": NOTHING, "balance": NOTHING, "child_share": 0.0}
    frequency = estimate_occurrence(lambda: iter([z]), w)
    scores = z @ w.T
    counts = (frequency * len(z)).round().long().clamp(2, len(z))
    active = scores >= scores.sort(dim=0, descending=True).values.gather(0, counts[None] - 1)
    mean = (scores * active).sum(dim=0) / counts
    variance = ((scores - mean) ** 2 * active).sum(dim=0) / counts
    companions = given(active.float())
    is_child = (companions > PARENT) & (companions.T < NOT_PARENT) & (frequency[None] > 1.5 * frequency[:, None])
    return {
        "occurrence": spread(frequency),
        "child_share": float(is_child.any(dim=1).double().mean()),
        "balance": spread(variance.sqrt() / mean.abs().clamp_min(1e-6)),
    }


def _splits(z: Float[Tensor, "rows dim"], w: Float[Tensor, "k dim"]) -> Spread:
    """Largest eigenvalue of the rows of one feature, apart from it, over that of as many rows of noise.

    Rows of one feature differ by the other features, which point everywhere; rows of several features that one direction
    stands for, such as two partners or a parent and its children, differ along few axes.
    """
    if len(w) == 0:
        return NOTHING
    w = w[torch.linspace(0, len(w) - 1, min(SPLIT_DIRECTIONS, len(w))).long()]
    frequency = estimate_occurrence(lambda: iter([z]), w)
    values = []
    for direction, share in zip(w, frequency.tolist(), strict=True):
        count = min(len(z), max(60, min(SPLIT_ROWS, round(share * len(z)))))
        scores, index = (z @ direction).topk(count)
        rest = z[index] - scores[:, None] * direction
        rest = (rest - rest.mean(dim=0)).double()  # rows of one feature may all be equal: float32 may then not converge
        eigenvalues = torch.linalg.eigvalsh(rest.T @ rest / count)
        edge = (1 + math.sqrt(z.shape[1] / count)) ** 2  # Marchenko and Pastur (1967)
        values.append(eigenvalues[-1] / eigenvalues.mean().clamp_min(1e-6) / edge)
    return spread(torch.stack(values).float())
