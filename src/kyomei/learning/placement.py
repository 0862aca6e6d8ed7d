"""What training starts from: at random, at resonant directions, or at both in two tiers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import AdaptingSettings, Recipe
from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.mechanisms import CLASSES, BiasAdaptation, Mechanism, mechanism_from
from kyomei.dictionary.mechanisms import aimed_l0 as l0_aimed_at
from kyomei.dictionary.sae import Activation
from kyomei.errors import RecipeError
from kyomei.learning.anchoring import ACTIVE_SHARE, CLEAR_SHARE, SCORED_AT_ONCE, Cone, anchored_decoders, usual_scores_in_turn
from kyomei.learning.directions import Directions
from kyomei.learning.latents import Latents, random_start, trained_latents
from kyomei.learning.least_squares import BLOCK_ROWS, least_squares, to_scipy
from kyomei.learning.mesh import Mesh
from kyomei.learning.sample import Sample
from kyomei.learning.spaces import Normalisation, Whitening
from kyomei.learning.spread import Spread, in_turn, numbers
from kyomei.source.rows import Rows

CALIBRATION_ROWS = 16_384
"""Rows from which the first thresholds are taken."""
ANCHOR_ROWS = 131_072
"""Rows from which thresholds and decoders of resonant latents are computed."""
CENTRINGS = 3
"""Turns in which the centre and the latents' decoders follow each other."""
TARGET_RANGE = (1e-4, 0.3)
"""Target frequencies are kept within this range: rarer cannot be counted, commoner is not sparse."""
SAME_COSINE = 0.9
"""A direction at this cosine, in whitened space, to the encoder of a frequent latent is that latent."""
THRESHOLD_BINS = 2**14
LEAST_AT_ONCE, TURNS = 16, 64
"""Neurons whose first biases are sought at a time: so many at least, or a part of a rank's that takes so many turns."""
EXPLAINS = 0.8
"""Resonant latents that explain this share of the variance make a dictionary by themselves."""


@dataclass(frozen=True)
class Plan:
    """What training starts from: latents in normalised space and the mechanism with its first thresholds.

    Attributes:
        latents: of a rank its share of them, here and in the cone.
        mechanism: of all of them.
        cone: what the decoders of the first latents are kept in when all are refitted at the end; none: they are not.
    """

    latents: Latents
    mechanism: Mechanism
    cone: Cone | None = None


def random_plan(
    rows: Rows, recipe: Recipe, seed: int, varies: Bool[Tensor, " dim"] | None = None, mesh: Mesh | None = None
) -> Plan:
    """Random unit rows and the mechanism in the paper's form; the width defaults to four times the dimension."""
    width = recipe.dictionary.width or 4 * rows.dim
    tied = recipe.mechanism.ties_random if recipe.dictionary.tied is None else recipe.dictionary.tied
    mechanism = mechanism_from(recipe, width)
    return Plan(random_start(width, rows.dim, seed, tied, varies, (mesh or Mesh()).share(width)), mechanism)


def resonant_plan(
    rows: Rows,
    recipe: Recipe,
    directions: Directions,
    seed: int,
    normalisation: Normalisation,
    warm: Spread | None = None,
    mesh: Mesh | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Resonant latents that are anchored, and free neurons for what they leave.

    A direction w in whitened space scores a row by w·C^(−1/2)(x − μ), whose best linear prediction of x is C^(1/2) w: there its
    decoder begins, and its encoder carries the norm, so that a row v of the dictionary scores 1 on itself. Thresholds, decoders
    and the centre then follow from the rows (learning/anchoring.py).

    Args:
        rows: what is trained on.
        recipe: width, shares and targets.
        directions: clearest first.
        seed: of the free neurons' random starts.
        normalisation: of the rows.
        warm: a dictionary trained on these rows by itself. Its frequent latents become the free neurons: they are what
            reconstruction rests on and what training finds again from any start, while rare ones differ with the seed and give
            way to directions.
        mesh: ranks that place a share of the latents each; none: this process alone.
        device: where decoders are fitted, of a process alone.
    """
    mesh = mesh or Mesh()
    if recipe.dictionary.tied:
        do = "leave dictionary.tied out, or set mechanism.start to random"
        raise RecipeError("an untied dictionary for a resonant start", "dictionary.tied = true", do)
    normalisation, varies = normalisation.to(directions.whitened), normalisation.varies
    width = recipe.dictionary.width or default_width(directions, rows)
    learnt = None if warm is None else _Learnt.of(warm, rows, normalisation)
    which = _divided(recipe, directions, learnt, width, mesh)
    num_found, l0, here = len(which), aimed_l0(recipe, width), mesh.share(width)
    own_found, own_free = _before(here, num_found), _after(here, num_found)
    cone = Cone.around(directions.whitened[which[own_found]], recipe.mechanism.placing.anchor, directions.whitening)
    free = Latents.none(rows.dim) if learnt is None else learnt.latents(own_free, width - num_found)
    x = Sample.of(rows, ANCHOR_ROWS, normalisation)
    # Fitted beside latents that explain the rows without them, decoders of features that are sums' parts would drift.
    alone = recipe.dictionary.width is None and warm is not None and num_found > 0
    beside = Latents.none(rows.dim) if alone else free
    anchoring = _Anchoring(x, directions.whitening, cone, beside, 0.0 if alone else l0, recipe.dictionary.activation, mesh)
    found, explained = replace(anchoring, device=device).run()
    if alone:
        common = _free_threshold(x, found, free, l0, found.centre, mesh)
        found = found.then(replace(free, threshold=common.expand(free.width)))
    rest = _after(here, sum(mesh.tell(found.width)))
    latents = found.then(random_start(width - sum(mesh.tell(found.width)), rows.dim, seed, False, varies, rest))
    if selects(recipe):
        return Plan(latents, mechanism_from(recipe, width))
    frozen = recipe.train.freeze != "none"
    hold = recipe.mechanism.placing.hold and not frozen
    is_found = numbers(here) < num_found
    latents = replace(latents, hold=is_found & hold, anchor=torch.where(is_found, 1.0 if hold else cone.cosine, -1.0))
    if frozen:
        # Targets of a frozen control are placed as for the directions; its rows are random.
        latents = replace(random_start(width, rows.dim, seed, False, varies, here), frequency=latents.frequency)
    # A frozen control learns nothing first, but aims at the L0 of what it is the control of.
    aims = warm is not None or (frozen and explained < EXPLAINS)
    sample, aimed = Sample(rows, _drawn(rows, seed), normalisation), l0 if aims else recipe.dictionary.l0
    mechanism = _adapting(recipe, latents, num_found, sample, aimed, warm is not None, mesh)
    return Plan(latents, mechanism, cone if hold and not alone else None)


def _before(here: slice, first: int) -> slice:
    """The part of a rank's latents that comes before the others begin."""
    return slice(min(here.start, first), min(here.stop, first))


def _after(here: slice, first: int) -> slice:
    """The rest of it, numbered from where the others begin."""
    return slice(max(here.start - first, 0), max(here.stop - first, 0))


def selects(recipe: Recipe) -> bool:
    """Whether the mechanism compares the latents of a row: it is trained as a whole, and nothing is kept in place."""
    return not isinstance(recipe.mechanism, AdaptingSettings)


@dataclass(frozen=True, eq=False)
class _Learnt:
    """A trained dictionary, its latents taken the most frequent first.

    Attributes:
        warm: the dictionary.
        frequency: of all of its latents, in that order [width].
        order: their numbers [width].
        normalisation: into whose space they are brought.
    """

    warm: Spread
    frequency: Float[Tensor, " width"]
    order: Int64[Tensor, " width"]
    normalisation: Normalisation

    @classmethod
    def of(cls, warm: Spread, rows: Rows, normalisation: Normalisation) -> _Learnt:
        """By how often they are active on rows."""
        warm, sample = warm.to("cpu", torch.float32), Sample.of(rows, CALIBRATION_ROWS)
        fired = torch.zeros(len(warm.encoder), dtype=torch.int64)
        for x in sample.blocks():
            fired += torch.bincount(warm.encode(x).col_indices(), minlength=len(fired))
        frequency = warm.mesh.joined(fired) / len(sample)
        return cls(warm, *frequency.sort(descending=True, stable=True), normalisation)

    def latents(self, which: slice, end: int) -> Latents:
        """Some of them, before the end, in normalised space; each rank asks for its own."""
        which = _before(which, end)
        found = trained_latents(self.warm.chosen(self.order[which]), self.normalisation)
        return replace(found, frequency=self.frequency[which])

    def own_units(self, least: float, white: Whitening) -> Float[Tensor, "frequent dim"]:
        """This rank's latents of at least such a frequency, as unit rows in whitened space."""
        is_frequent = torch.zeros(self.warm.width, dtype=torch.bool)
        is_frequent[self.order[self.frequency >= least]] = True
        encoder = trained_latents(self.warm, self.normalisation).encoder[is_frequent[self.warm.here]]
        return normalize(encoder @ white.backward, dim=1)


def _divided(recipe: Recipe, directions: Directions, learnt: _Learnt | None, width: int, mesh: Mesh) -> Int64[Tensor, " found"]:
    """Numbers of the directions that find room; learnt latents stay beside them.

    A width that follows from the directions has room for all of them, and they stay, whatever else is learnt. Where it is
    given, frequent latents go first.
    """
    placing = recipe.mechanism.placing
    others, num_frequent = torch.arange(len(directions)), 0
    if learnt is not None and recipe.dictionary.width is not None:
        num_frequent = int((learnt.frequency >= placing.frequent).sum())
        others = _apart(directions, learnt.own_units(placing.frequent, directions.whitening), mesh)
    share = 1.0 if num_frequent else placing.share
    return others[: min(math.ceil(share * width), len(others), width - min(width, num_frequent))]


def explained_by_resonance(
    rows: Rows, recipe: Recipe, directions: Directions, normalisation: Normalisation, mesh: Mesh | None = None
) -> float:
    """Share of the variance that as many resonant latents as have room explain by themselves, on a sample of the rows."""
    mesh = mesh or Mesh()
    own = mesh.share(min(len(directions), recipe.dictionary.width or len(directions)))
    cone = Cone.around(directions.whitened[own], recipe.mechanism.placing.anchor, directions.whitening)
    x = Sample.of(rows, CALIBRATION_ROWS, normalisation.to(directions.whitened))
    # Further turns of the centre moved it by 0.004 at most on planted sets.
    return _Anchoring(x, directions.whitening, cone, Latents.none(rows.dim), 0.0, "jumprelu", mesh).run(turns=1)[1]


def aimed_l0(recipe: Recipe, width: int) -> float:
    """Active latents per row to aim at, where resonance does not explain the rows."""
    return l0_aimed_at(recipe.dictionary.l0, width)


def default_width(directions: Directions, rows: Rows) -> int:
    """Room for twice as many features as were found or are reckoned to be there."""
    return 2 * max(len(directions), directions.n_features, rows.dim // 2)


def _adapting(
    recipe: Recipe, latents: Latents, num_found: int, sample: Sample, l0: float | None, shared: bool, mesh: Mesh
) -> Mechanism:
    """Group bias adaptation for a resonant start: with gba found latents keep their thresholds and free neurons are steered."""
    placing, frozen = recipe.mechanism.placing, recipe.train.freeze != "none"
    frequency, threshold = mesh.joined(latents.frequency), mesh.joined(latents.threshold)
    is_found = torch.arange(len(frequency)) < num_found
    targets, groups = spectrum_targets(frequency[:num_found], len(frequency) - num_found, placing.groups, l0)
    given, fixed = ~threshold.isnan(), is_found & (placing.hold and not frozen)
    # Only biases that are adapted keep to the paper's range: a held latent's usual score may be of any size.
    bias = -torch.where(fixed, threshold, threshold.clamp(0, 1))
    own = latents.threshold.isnan()
    bias[~given] = mesh.joined(_first_biases(sample, latents.encoder[own], targets[mesh.share(len(targets))][own]))
    made = CLASSES[type(recipe.mechanism)]
    assert issubclass(made, BiasAdaptation)
    return made.placed(
        recipe.mechanism,
        targets,
        groups,
        recipe.dictionary.l0,
        bias=bias,
        activation=recipe.dictionary.activation,
        shared=~is_found if shared and not frozen else None,
        fixed=fixed,
    )


def _apart(directions: Directions, own: Float[Tensor, "frequent dim"], mesh: Mesh) -> Int64[Tensor, " apart"]:
    """Directions that no latent stands for, of which each rank has some, as unit rows in whitened space."""
    asked = directions.whitened[mesh.share(len(directions))]
    largest = asked.new_zeros(len(asked))
    for _, latents in in_turn(own, mesh):
        largest = torch.maximum(largest, nearest(asked, latents).cosine)
    return (mesh.joined(largest) < SAME_COSINE).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class _Anchoring:
    """Thresholds at a share of the usual score, decoders within the cone, and the centre that the two agree on.

    Free latents share one threshold, at which the code has the L0 asked for; all decoders are fitted together. Their centre
    is theirs as well: where it is off the mean along axes of little variance, whitened scores are off by many deviations, so
    beside free latents a usual score is one about the mean. Each of several ranks has its latents, and reads all rows.
    """

    x: Sample
    white: Whitening
    cone: Cone
    free: Latents
    l0: float
    activation: Activation
    mesh: Mesh
    device: torch.device | str = "cpu"
    """Where decoders are fitted, of a process alone."""

    def run(self, turns: int = CENTRINGS) -> tuple[Latents, float]:
        """This rank's resonant latents, then its free ones, and the share of the rows' variance that all explain."""
        mesh, cone, free = self.mesh, self.cone, self.free
        num_all, num_free = (sum(mesh.tell(count)) for count in (len(cone.directions) + free.width, free.width))
        encoder, decoder = self._begun()
        found = encoder[: len(cone.directions)]
        centre, explained = free.centre.float(), 0.0
        last = Latents.of(encoder, decoder, centre=centre)
        # Thresholds that stay need all rows. Beside free latents decoders are trained further and fitted anew at the end.
        seen = self.x.thinned(4) if num_free else self.x
        # A centre that was trained with free latents is not moved.
        for _ in range(0 if not num_all else 1 if num_free else turns):
            threshold = self._threshold(found, centre, num_free)
            codes = Spread(num_all, encoder, decoder, threshold, centre, self.activation, mesh=mesh)
            fitted, frequency, rest, explained = self._fitted(seen, codes)
            gain = fitted.norm(dim=1).clamp_min(1e-6)
            # Free latents are trained further: their scale and direction are theirs.
            gain[len(found) :], fitted[len(found) :] = 1.0, decoder[len(found) :]
            known = {"threshold": threshold * gain, "frequency": frequency, "centre": centre}
            last = Latents.of(encoder * gain[:, None], fitted / gain[:, None], **known)
            centre = centre + rest
        return last, explained

    def _begun(self) -> tuple[Float[Tensor, "own dim"], Float[Tensor, "own dim"]]:
        """Encoders, those of resonant latents with scores of 1 on their decoders, and the decoders' unit rows."""
        pattern = self.cone.directions @ self.white.backward
        found = (self.cone.directions @ self.white.forward) * pattern.norm(dim=1, keepdim=True)
        return torch.cat([found, self.free.encoder]), torch.cat([normalize(pattern, dim=1), self.free.decoder])

    def _threshold(self, found: Float[Tensor, "found dim"], centre: Float[Tensor, " dim"], num_free: int) -> Tensor:
        """Of this rank's latents."""
        about = torch.zeros_like(centre) if num_free else centre
        share = CLEAR_SHARE if num_free else ACTIVE_SHARE
        usual = usual_scores_in_turn((x - about for x in self.x.blocks()), len(self.x), found)
        threshold = share * usual + found @ (about - centre)
        if not num_free:
            return threshold
        given = Latents.of(found, None, threshold=threshold)
        common = _free_threshold(self.x, given, self.free, self.l0, centre, self.mesh)
        return torch.cat([threshold, common.expand(self.free.width)])

    def _fitted(self, seen: Sample, codes: Spread) -> tuple[Tensor, Tensor, Tensor, float]:
        """Decoders by least squares, how often each is active, the mean of what they leave, and the share explained."""
        kept: list[sparse.csr_array] = []
        there = codes.to(self.device if self.mesh.size == 1 else "cpu", codes.decoder.dtype)
        at = there.decoder.device

        def blocks() -> Iterator[tuple[Tensor | sparse.csr_array, Tensor]]:
            for x in seen.blocks(BLOCK_ROWS):
                code = there.encode(x.to(at))
                kept.append(to_scipy(code))
                yield kept[-1] if at.type == "cpu" else code, x.to(at) - there.center

        squares = least_squares(blocks(), len(seen), self.mesh)
        fitted = anchored_decoders(squares, there.decoder, self.cone.to(at)).cpu()
        sums = torch.zeros(2, 2, codes.dim, dtype=torch.float64)
        fired = torch.zeros(len(fitted), dtype=torch.int64)
        for code, x in zip(kept, seen.blocks(BLOCK_ROWS), strict=True):
            fired += torch.from_numpy(np.bincount(code.indices, minlength=len(fired)))
            y = x - codes.center
            rest = y - self.mesh.sum_over_all(torch.from_numpy(code @ fitted.numpy()))
            for place, values in enumerate((y, rest)):
                each = (values.sum(dim=0, dtype=torch.float64), values.square().sum(dim=0, dtype=torch.float64))
                sums[place] += torch.stack(each)
        means = sums / len(seen)
        variance = (means[:, 1] - means[:, 0].square()).sum(dim=1)
        return fitted, fired / len(seen), means[1, 0].float(), 1 - float(variance[1] / variance[0])


def _free_threshold(
    x: Sample, found: Latents, free: Latents, l0: float, centre: Float[Tensor, " dim"], mesh: Mesh
) -> Float[Tensor, ""]:
    """The threshold at which free latents fire as often as resonant ones leave of L0.

    It is one of their scores, the n-th largest of all. Ranks count scores in bins first and look only into the bin that has it.

    Args:
        x: rows.
        found, free: latents; of several ranks each gives its own.
        l0: active latents per row to aim at.
        centre: about which rows are scored.
        mesh: the ranks.
    """
    sample = x.thinned(max(1, len(x) // CALIBRATION_ROWS))
    # No score is larger.
    reach = max((float((rows - centre).norm(dim=1).max()) for rows in sample.blocks()), default=0.0)
    norms = free.encoder.norm(dim=1)
    top = max(mesh.tell(reach * float(norms.max()) if len(norms) else 0.0))
    taken, counts = 0, torch.zeros(THRESHOLD_BINS, dtype=torch.int64)
    for rows in sample.blocks():
        y = rows - centre
        for encoder, threshold in zip(
            torch.split(found.encoder, SCORED_AT_ONCE), torch.split(found.threshold, SCORED_AT_ONCE), strict=True
        ):
            taken += int((y @ encoder.T > threshold).sum())
        for encoder in torch.split(free.encoder, SCORED_AT_ONCE):
            counts += torch.bincount(_bin(y @ encoder.T, top)[0], minlength=THRESHOLD_BINS)
    taken, num_free = (sum(mesh.tell(count)) for count in (taken, free.width))
    left = min(max(1, round(l0 * len(sample) - taken)), max(1, len(sample) * num_free - 1))
    above = mesh.sum_over_all(counts).flip(0).cumsum(0).flip(0)
    if not num_free or left > int(above[0]):
        return rows.new_zeros(())  # so many are not positive
    place = int((above >= left).nonzero()[-1])
    left -= int(above[place + 1]) if place + 1 < THRESHOLD_BINS else 0
    inside = [norms.new_zeros(0)]
    for rows in sample.blocks():
        for encoder in torch.split(free.encoder, SCORED_AT_ONCE):
            bins, scores = _bin((rows - centre) @ encoder.T, top)
            inside.append(scores[bins == place])
    return mesh.joined(torch.cat(inside)).topk(left).values[-1]


def _bin(scores: Tensor, top: float) -> tuple[Int64[Tensor, " positive"], Float[Tensor, " positive"]]:
    """Bins of the positive scores, and these."""
    positive = scores[scores > 0]
    return (positive * (THRESHOLD_BINS / max(top, 1e-30))).long().clamp_max(THRESHOLD_BINS - 1), positive


def spectrum_targets(
    frequency: Float[Tensor, "found"], num_free: int, num_groups: int, l0: float | None = None
) -> tuple[Float[Tensor, "width"], Int[Tensor, "width"]]:
    """Target activation frequencies and groups from a spectrum of frequencies.

    Args:
        frequency: of each resonant latent.
        num_free: neurons without a direction.
        num_groups: groups K at most.
        l0: active latents per row to aim at; free neurons share what the resonant ones leave of it. None: free neurons are
            spread evenly over the groups' targets.

    Returns:
        Targets [width] and group numbers [width], resonant latents first.
    """
    spectrum = frequency.clamp(*TARGET_RANGE) if len(frequency) else torch.logspace(-1, -3, num_groups)
    # Equal parts of the sorted spectrum, from the most frequent to the rarest; a target is an upper bound, so each part has its
    # largest frequency for one.
    parts = spectrum.sort(descending=True, stable=True).indices.tensor_split(min(num_groups, len(spectrum)))
    level = torch.stack([spectrum[part].max() for part in parts])
    group = torch.empty(len(spectrum), dtype=torch.long)
    for number, part in enumerate(parts):
        group[part] = number
    if l0 is None or not num_free:
        free_group = torch.arange(num_free) * len(level) // max(1, num_free)
    else:
        left = (l0 - float(frequency.sum())) / num_free
        level = torch.cat([level, torch.tensor([left]).clamp(*TARGET_RANGE)])
        free_group = torch.full((num_free,), len(level) - 1)
    groups = torch.cat([group[: len(frequency)], free_group])
    return level[groups].float(), groups


def _drawn(rows: Rows, seed: int) -> Int64[np.ndarray, " taken"]:
    """Rows from which first biases are taken."""
    if rows.num_rows <= CALIBRATION_ROWS:
        return np.arange(rows.num_rows)
    return np.sort(np.random.default_rng([seed, 1]).integers(0, rows.num_rows, size=CALIBRATION_ROWS))


def _first_biases(sample: Sample, encoders: Float[Tensor, "own dim"], targets: Float[Tensor, " own"]) -> Float[Tensor, " own"]:
    """Biases at which each neuron fires at its target on normalised rows, within the paper's range [−1, 0].

    Starting there spares the dense first phase in which biases only creep down from zero.
    """
    thresholds = [encoders.new_zeros(0)]
    at_once = max(LEAST_AT_ONCE, len(encoders) // TURNS)
    for encoder, target in zip(torch.split(encoders, at_once), torch.split(targets, at_once), strict=True):
        scores = torch.cat([encoder @ x.T for x in sample.blocks()], dim=1)
        place = (target * len(sample)).round().long().clamp(1, len(sample)) - 1
        thresholds.append(scores.sort(dim=1, descending=True).values.gather(1, place[:, None])[:, 0])
    return -torch.cat(thresholds).clamp(0, 1)
