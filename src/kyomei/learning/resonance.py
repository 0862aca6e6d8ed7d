"""Resonance: the theory's decoupled algorithm on whitened data, which finds directions in seconds and says how many there are.

With the output scale a → 0 the neurons of a sparse autoencoder decouple and each follows E[φ(w·x + b) x] on the sphere
(arXiv:2506.14002, simplified bias adaptation). Held at a target activation frequency p by its threshold, a random neuron is
pulled to the feature that it already resembles most: it resonates. On whitened rows the other features stop pulling.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import ResonanceRecipe
from kyomei.dictionary.kernels import active_above, added_at, csr_matmul
from kyomei.errors import DataError
from kyomei.learning.anchoring import usual_scores
from kyomei.learning.directions import Directions
from kyomei.learning.halves import POLISH_ROWS, Halves
from kyomei.learning.merging import distinct, merge, nearest_of, no_sums
from kyomei.learning.mesh import Mesh
from kyomei.learning.occurrence import estimate_occurrence, richness, unseen_share
from kyomei.learning.refinement import JOINT_ROWS, explained, refine_jointly, thinned
from kyomei.learning.spaces import Whitening, require_enough
from kyomei.learning.undisturbed import undisturbed
from kyomei.source.rows import RowsLike, open_rows

FREQUENCY_LADDER = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
ROWS_ABOVE_THRESHOLD = 50
"""A frequency is tried when at least this many rows of the data clear its threshold: fewer make a noisy mean."""
MIN_ROWS = 10
"""Fewer rows cannot be divided into two halves to find in and some to count on."""
THRESHOLD_ROWS = 8192
"""Rows of a batch from which thresholds are taken: the quantile costs more than the products it gates."""
BATCH_ROWS_ABOVE, ENOUGH_ROWS_ABOVE, LEAST_BATCH_ROWS = 10, 100, 8192
"""An iteration takes more rows than the recipe says where fewer than the first would clear a threshold, as one row is no mean,
and fewer where more than the second would: more do not sharpen the mean of a start that is still on its way."""
UNSEEN_SHARE = 0.05
"""Another round of starts follows while the chance that a further start finds something new is above this."""
ROUND_STABILITY, STABLE_ROUND = 0.7, 0.1
"""Rounds end when less than the second, a share of what the last one found, is as stable as the first: the rest is noise."""
COVERED_SHARE = 0.8
"""A direction covers the rows from this share of its threshold on; later rounds start at rows that none covers."""
POOL_ROWS = 65_536
MET_COSINE, FIRST_MEETING, MEET_EVERY = 0.95, 4, 3
"""Neurons above this cosine on their way will end in the same direction. They are looked for after so many steps, and again
after so many more."""
PUSH_COSINE = 0.8
"""How far a direction is pushed, to opposite sides, before each half of the rows refines it: unpulled, they agree by 0.28."""
RARE_SHARE = 0.1
"""A direction that fewer starts fall to than this share of the median is a mixture between features, not one more."""
PROBE_FREQUENCIES, PROBE_NEURONS, PROBE_STREAM = 2, 512, 2000
"""A round of so many starts at each of the highest frequencies finds parts of which sums may be made."""
MIXED_SHARE, MOSTLY_SUMS = 0.1, 0.5
"""A search does not end with enough directions while more than the first, a share of them, are sums; rounds at a frequency end
when more than the second of what the last one found is."""
JOINT_FROM, JOINT_EXPLAINED = 0.4, 0.6
"""Explained shares of the median row from which a joint refinement is tried, and from which its result stands: below them rows
are no sums of a few directions, and least squares would fit to what is not there."""
TRIAL_ROWS = 2000
JOINT_STREAM = 1000
POLISH_STEPS = 3
CLARITY_ROWS = 200_000


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Found:
    """Directions at one frequency, in whitened space, best first."""

    w: Tensor
    p: Tensor
    support: Tensor
    stability: Tensor
    sharpness: Tensor

    def select(self, index: Tensor) -> _Found:
        """The directions at an index or under a mask."""
        return _Found(*(value[index] for value in vars(self).values()))

    def sharpest_first(self) -> _Found:
        return self.select(self.sharpness.argsort(descending=True, stable=True))

    @staticmethod
    def join(parts: list[_Found]) -> _Found:
        return _Found(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


@undisturbed
def resonate(
    x: RowsLike,
    *,
    seed: int = 0,
    recipe: ResonanceRecipe | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Directions:
    """Find the directions in which neurons resonate with features of the data.

    Args:
        x: activations [rows, dim], in whatever `open_rows` takes.
        seed: seeds the random starts and the batches.
        recipe: how to search; the default suits any data.
        device: where the products run.
        progress: called with (frequencies done, frequencies in all).
        mesh: ranks that share the neurons; every rank calls and gets the same. None: this process alone.

    Returns:
        Distinct directions, one row each, those first whose strongest scores are largest.

    Raises:
        DataError: too few rows, non-finite values.

    Source: arXiv:2506.14002, §6 (decoupled bias adaptation); whitening, merging and halves are ours.
    """
    recipe = recipe or ResonanceRecipe()
    rows = open_rows(x)
    require_enough(rows)
    if rows.num_rows < MIN_ROWS:
        raise DataError(f"at least {MIN_ROWS} rows to search in", f"{rows.num_rows} rows", "harvest more tokens")
    whitening = Whitening.fit(rows).to(device)
    data = Halves(rows, whitening, device, mesh or Mesh())
    ladder = recipe.frequencies or default_frequencies(data.num_finding)
    ends, parts = _Ends(recipe, data, ladder[-PROBE_FREQUENCIES:], [seed, PROBE_STREAM]), []
    for i, p in enumerate(ladder):
        parts.append(_search(data, p, recipe, ends, seed=[seed, i]))
        done = ends.enough(_Found.join(parts))
        if progress is not None:
            progress(len(ladder) if done else i + 1, len(ladder))
        if done:
            break
    everything = _Found.join(parts).sharpest_first()
    found = _stable(everything, recipe, data.mesh)
    support = _support_of_union(parts, found.w, recipe.merge_cosine, data.mesh)
    if len(support):
        usual = support >= RARE_SHARE * float(support.cpu().double().median())
        found, support = found.select(usual), support[usual]
    if recipe.joint and len(found.w):
        found, support = _jointly(data, found, support, parts, recipe, seed)
    features = _no_sums(found.w, support, recipe)
    sums = int((~features).sum())
    found, support = found.select(features), support[features]
    clearest = _clarity(data, found.w).argsort(descending=True, stable=True)
    found, support = found.select(clearest), support[clearest]
    # The stable ones stand first, so that none of them gives way to a sharper but unstable neighbour.
    candidates = torch.cat([found.w, everything.w])
    candidates = candidates[distinct(candidates, recipe.merge_cosine, data.mesh)]
    frequency = estimate_occurrence(data.held_out, found.w)
    vectors = normalize(found.w @ whitening.backward, dim=1).cpu()
    number = richness(len(vectors), len(vectors) + sums, frequency, len(candidates))
    return Directions(
        vectors=vectors,
        encoders=normalize(found.w @ whitening.forward, dim=1).cpu(),
        whitened=found.w.cpu(),
        found_at=found.p.cpu(),
        frequency=frequency.cpu(),
        support=support.cpu(),
        stability=found.stability.cpu(),
        candidates=candidates.cpu(),
        n_features=number.own,
        interval=number.interval,
        whitening=whitening.to("cpu"),
        converged=ends.converged,
        sums=sums,
    )


def default_frequencies(num_rows: int) -> tuple[float, ...]:
    """The part of the frequency ladder that `num_rows` rows can resolve; never empty."""
    resolved = tuple(p for p in FREQUENCY_LADDER if p * num_rows >= ROWS_ABOVE_THRESHOLD)
    return resolved or FREQUENCY_LADDER[-1:]


def rows_of_step(recipe: ResonanceRecipe, p: float) -> int:
    """Rows of one iteration at a frequency."""
    most = min(recipe.batch_rows, max(LEAST_BATCH_ROWS, math.ceil(ENOUGH_ROWS_ABOVE / p)))
    return max(most, math.ceil(BATCH_ROWS_ABOVE / p))


def frequency_threshold(scores: Float[Tensor, "rows neurons"], p: float) -> Float[Tensor, "neurons"]:
    """Threshold above which each neuron fires on a share `p` of the rows.

    This is −b of the paper's bias, set to meet the target activation frequency exactly (arXiv:2506.14002, §3) instead of
    approached in steps of γ.
    """
    count = max(1, round(p * len(scores)))
    return scores.topk(count, dim=0).values[-1]


def _jointly(
    data: Halves, found: _Found, support: Tensor, parts: list[_Found], recipe: ResonanceRecipe, seed: int
) -> tuple[_Found, Tensor]:
    """Directions after a joint refinement, where the rows are sums of a few of them; otherwise as they were.

    What stands in for a direction's stability is the cosine of the halves' versions; a direction that was added is ascribed to
    the frequency of its nearest neighbour.
    """
    rng = np.random.default_rng([seed, JOINT_STREAM])
    halves = tuple(data.whitened(data.half(which, rng, JOINT_ROWS)).cpu() for which in (0, 1))
    if explained(thinned(torch.cat(halves), TRIAL_ROWS), found.w.cpu()) < JOINT_FROM:
        return found, support
    joint = refine_jointly((halves[0], halves[1]), found.w.cpu(), seed=seed)
    if joint.explained < JOINT_EXPLAINED or not len(joint.w):
        return found, support
    w = joint.w.to(data.device)
    nearest, _ = nearest_of(w, found.w)
    refined = _Found(w, found.p[nearest], found.support[nearest], joint.agreement.to(data.device), found.sharpness[nearest])
    return refined, _support_of_union(parts, w, recipe.merge_cosine, data.mesh)


def _clarity(data: Halves, w: Tensor) -> Tensor:
    """Mean of each direction's strongest scores on rows of unit norm: it foretells best whether other rows have it."""
    return usual_scores(data.spread(CLARITY_ROWS), w)


def _stable(found: _Found, recipe: ResonanceRecipe, mesh: Mesh) -> _Found:
    """Distinct directions of those that are stable; the first of those that are alike stays."""
    stable = found.select((found.stability >= recipe.min_stability).nonzero().flatten())
    return stable.select(distinct(stable.w, recipe.merge_cosine, mesh))


def _asks_for_sums(recipe: ResonanceRecipe) -> bool:
    return recipe.leave_out_sums and recipe.min_stability > -1


def _no_sums(w: Tensor, support: Tensor, recipe: ResonanceRecipe) -> Tensor:
    """Which directions are features rather than sums of them, in whitened space; a null keeps all.

    Where features have few combinations, each is an exact cluster of rows, and more rows resolve more of them.
    """
    if not _asks_for_sums(recipe) or not len(w):
        return torch.ones(len(w), dtype=torch.bool, device=w.device)
    return no_sums(w, support)


class _Ends:
    """When a search ends, at each frequency and as a whole.

    Attributes:
        converged: whether every frequency searched so far ended for a reason; where the rounds ran out, more may be there.
    """

    def __init__(self, recipe: ResonanceRecipe, data: Halves, probed: tuple[float, ...], seed: list[int]) -> None:
        self.recipe, self.data, self.probed, self.seed = recipe, data, probed, seed
        self.converged = True

    def enough(self, found: _Found) -> bool:
        """Whether so many stable directions are found as are asked for; where all are kept, as in a null, all count.

        Sums of features do not count: the features may all be at frequencies that are still to be searched.
        """
        if self.recipe.enough is None:
            return False
        stable = _stable(found.sharpest_first(), self.recipe, self.data.mesh).w
        return len(stable) >= self.recipe.enough and self.sums(stable) <= MIXED_SHARE

    def at_frequency(self, rounds: int, found: _Found, latest: _Found) -> bool:
        """Whether a frequency is done after so many rounds.

        Args:
            rounds: done there.
            found: what all of them found.
            latest: what the last one did.
        """
        stable = latest.w[latest.stability >= ROUND_STABILITY]
        little_left = unseen_share(latest.support, self.recipe.neurons) <= UNSEEN_SHARE
        reason = little_left or len(stable) < STABLE_ROUND * len(latest.w) or self.enough(found)
        ran_out = rounds >= self.recipe.rounds
        # Asked last, and only where another round would follow: it costs a short search.
        reason = reason or (not ran_out and self.sums(stable) > MOSTLY_SUMS)
        self.converged &= reason or not ran_out
        return reason or ran_out

    def sums(self, w: Tensor) -> float:
        """Share of directions that are sums of what a few starts find at the highest frequencies."""
        if not _asks_for_sums(self.recipe) or not len(w):
            return 0.0
        everything = torch.cat([w, self.probes])
        asked_first = (torch.arange(len(everything)) >= len(w)).long()
        return 1 - float(_no_sums(everything, asked_first, self.recipe)[: len(w)].double().mean())

    @cached_property
    def probes(self) -> Tensor:
        rounds = []
        for i, p in enumerate(self.probed):
            rng = np.random.default_rng([*self.seed, i])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            starts = _random_starts(self.data, PROBE_NEURONS, generator)
            rounds.append(_round(self.data, starts, p, self.recipe, rng, generator))
        return _stable(_Found.join(rounds).sharpest_first(), self.recipe, self.data.mesh).w


def _random_starts(data: Halves, number: int, generator: torch.Generator) -> Tensor:
    starts = torch.randn(number, data.rows.dim, generator=generator).to(data.device)
    return normalize(starts * data.varies, dim=1)


def _search(data: Halves, p: float, recipe: ResonanceRecipe, ends: _Ends, seed: list[int]) -> _Found:
    """Directions at one frequency: a round of random starts, then rounds that start at rows which nothing found covers."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    starts = _random_starts(data, recipe.neurons, generator)
    found = latest = _round(data, starts, p, recipe, rng, generator)
    rounds = 1
    while not ends.at_frequency(rounds, found, latest):
        starts = _uncovered(data, found.w, p, recipe.neurons, rng)
        latest = _round(data, starts, p, recipe, rng, generator, known=found.w)
        joined = _Found.join([found, latest])
        found = joined.select(distinct(joined.w, recipe.merge_cosine, data.mesh))
        rounds += 1
    return found


def _round(
    data: Halves,
    w: Tensor,
    p: float,
    recipe: ResonanceRecipe,
    rng: np.random.Generator,
    generator: torch.Generator,
    known: Tensor | None = None,
) -> _Found:
    """Where starts end, other than at known directions: resonate, merge early, push away, refine on each half."""
    counts = torch.ones(len(w), dtype=torch.long, device=data.device)
    batch_rows = rows_of_step(recipe, p)
    for step in range(recipe.steps):
        w, sharpness = _step(data, data.batch(rng, batch_rows), w, p)
        if step >= FIRST_MEETING and (step - FIRST_MEETING) % MEET_EVERY == 0 and step < recipe.steps - 1:
            # Neurons that have met follow one path from here on; carrying one of them saves most of the products.
            met = max(MET_COSINE, recipe.merge_cosine)
            w, counts = _unlike(*merge(w, sharpness, met, counts, data.mesh), known, met, data.mesh)
    w, counts = _unlike(*merge(w, sharpness, recipe.merge_cosine, counts, data.mesh), known, recipe.merge_cosine, data.mesh)
    halves = []
    for which, refined in enumerate(_pushed_apart(w, data.varies, generator)):
        for _ in range(POLISH_STEPS):
            refined, sharpness = _step(data, data.half(which, rng, POLISH_ROWS), refined, p)
        halves.append(refined)
    stability = (halves[0] * halves[1]).sum(dim=1)
    # A tail of Gaussian scores at this p has this mean: dividing by it makes sharpness comparable across frequencies.
    gaussian = _gaussian_tail_mean(p) / math.sqrt(int(data.varies.sum()))
    w = normalize(halves[0] + halves[1], dim=1)
    return _Found(w, torch.full_like(stability, p), counts, stability, sharpness / gaussian)


def _unlike(w: Tensor, counts: Tensor, known: Tensor | None, cosine: float, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Neurons that are not at a known direction, which another round has refined already."""
    if known is None or not len(known):
        return w, counts
    new = nearest_of(w, known, mesh)[1] <= cosine
    return w[new], counts[new]


def _uncovered(data: Halves, w: Tensor, p: float, number: int, rng: np.random.Generator) -> Tensor:
    """Starts at rows that lie farthest below the thresholds of all directions found: random ones end where others have been."""
    index = data.batch(rng, POOL_ROWS)
    threshold = COVERED_SHARE * _thresholds(data, index, w, p).to(w.dtype)
    margin = torch.cat(
        [
            torch.cat([(z @ part.T - t).amax(dim=1, keepdim=True) for part, t in _blocks(w, threshold)], dim=1).amax(dim=1)
            for z in data.read(index)
        ]
    )
    order = margin.argsort()[: max(number, int((margin < 0).sum()))].cpu().numpy()
    chosen = np.sort(rng.permutation(order)[:number])
    return torch.cat(list(data.read(index[chosen])))


def _blocks(w: Tensor, threshold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(w, 512), torch.split(threshold, 512), strict=True)


def _pushed_apart(w: Tensor, varies: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit rows at cosine PUSH_COSINE from `w`, to opposite sides of it.

    On Gaussian rows every direction is a fixed point of a step, so staying put proves nothing: coming back does.
    """
    noise = torch.randn(w.shape, generator=generator).to(w.device) * varies
    across = normalize(noise - (noise * w).sum(dim=1, keepdim=True) * w, dim=1) * math.sqrt(1 - PUSH_COSINE**2)
    return PUSH_COSINE * w + across, PUSH_COSINE * w - across


def _step(data: Halves, index: np.ndarray, w: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """One move of every neuron to the weighted mean of the rows above its threshold, and the mean score above it."""
    moved, sharpness = data.mesh.in_parts(lambda own: _step_of(data, index, own, p), w)
    return moved, sharpness


def _step_of(data: Halves, index: np.ndarray, w: Tensor, p: float) -> tuple[Tensor, Tensor]:
    bound, quick = _thresholds(data, index, w, p), w.to(data.quick)
    threshold = bound.to(w.dtype)
    total = torch.zeros_like(w)
    excess_sum = torch.zeros_like(threshold)
    for z in data.read(index):
        # Only a share p of the scores is above its threshold: the sums run over these alone.
        active, scores = active_above(z.to(data.quick), quick, bound)
        excess = scores.to(w.dtype) - threshold[active.latent]
        csr_matmul(active.latent_starts, active.row32, excess, z, total)
        added_at(excess_sum, active.latent, excess)
    moved = torch.where(excess_sum[:, None] > 0, normalize(total, dim=1), w)
    return moved, threshold + excess_sum / (p * len(index))


def neuron_rows_per_second(rows: Float[Tensor, "rows dim"], neurons: int, exactly: bool = False) -> float:
    """Rows × neurons that a step goes through in a second here, for `kyomei plan`.

    Args:
        rows: any rows; their first chunks are scored.
        neurons: of a round.
        exactly: read rows anew and score them in float32, as all work does that is no search.
    """
    data = Halves(open_rows(rows), Whitening.fit(open_rows(rows)), "cpu", Mesh())
    if exactly:
        data.read_exactly()
    w = normalize(torch.randn(neurons, rows.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    index = np.arange(data.num_finding)
    _step_of(data, index, w, 0.005)
    began = time.perf_counter()
    _step_of(data, index, w, 0.005)
    return len(index) * neurons / (time.perf_counter() - began)


def _thresholds(data: Halves, index: np.ndarray, w: Tensor, p: float) -> Tensor:
    """The threshold of each neuron on some of the rows, in the precision of the scores."""
    head = torch.cat([z.to(data.quick) for z in data.read(index[:: max(1, len(index) // THRESHOLD_ROWS)])])
    # Neurons in rows, seen from the side: the largest of contiguous numbers are found many times faster.
    return torch.cat([frequency_threshold((part @ head.T).T, p) for part in torch.split(w.to(data.quick), 512)])


def _gaussian_tail_mean(p: float) -> float:
    """E[g | g > θ] for standard normal g with P(g > θ) = p."""
    normal = statistics.NormalDist()
    return normal.pdf(normal.inv_cdf(1 - p)) / p


def _support_of_union(parts: list[_Found], kept: Tensor, cosine: float, mesh: Mesh) -> Tensor:
    """Random starts of all frequencies that ended within `cosine` of each kept direction."""
    support = torch.zeros(len(kept), dtype=torch.long, device=kept.device)
    for part in parts if len(kept) else ():
        for w, count in zip(torch.split(part.w, 4096), torch.split(part.support, 4096), strict=True):
            nearest, value = nearest_of(w, kept, mesh)
            support.index_add_(0, nearest[value > cosine], count[value > cosine])
    return support
