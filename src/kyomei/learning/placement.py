"""What training starts from: at random, at resonant directions, or at both in two tiers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import AdaptingSettings, Recipe
from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.mechanisms import CLASSES, BiasAdaptation, Mechanism, mechanism_from
from kyomei.dictionary.mechanisms import aimed_l0 as l0_aimed_at
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning.anchoring import ACTIVE_SHARE, CLEAR_SHARE, Cone, anchored_decoders, usual_scores
from kyomei.learning.directions import Directions
from kyomei.learning.latents import Latents, random_start, trained_latents
from kyomei.learning.least_squares import least_squares, own_codes, to_scipy
from kyomei.learning.mesh import Mesh
from kyomei.learning.spaces import Normalisation, Whitening
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
EXPLAINS = 0.8
"""Resonant latents that explain this share of the variance make a dictionary by themselves."""


@dataclass(frozen=True)
class Plan:
    """What training starts from: latents in normalised space and the mechanism with its first thresholds."""

    latents: Latents
    mechanism: Mechanism
    cone: Cone | None = None
    """What the decoders of the first latents are kept in when all are refitted at the end; none: they are not."""


def random_plan(rows: Rows, recipe: Recipe, seed: int, varies: Bool[Tensor, " dim"] | None = None) -> Plan:
    """Random unit rows and the mechanism in the paper's form; the width defaults to four times the dimension."""
    width = recipe.dictionary.width or 4 * rows.dim
    tied = recipe.mechanism.ties_random if recipe.dictionary.tied is None else recipe.dictionary.tied
    mechanism = mechanism_from(recipe, width)
    return Plan(random_start(width, rows.dim, seed, tied, varies), mechanism)


def resonant_plan(
    rows: Rows,
    recipe: Recipe,
    directions: Directions,
    seed: int,
    normalisation: Normalisation,
    warm: SparseAutoencoder | None = None,
    mesh: Mesh | None = None,
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
        mesh: ranks that place a share of the latents each, all calling with the same arguments; none: this process alone.
    """
    mesh = mesh or Mesh()
    if recipe.dictionary.tied:
        do = "leave dictionary.tied out, or set mechanism.start to random"
        raise RecipeError("an untied dictionary for a resonant start", "dictionary.tied = true", do)
    normalisation, varies = normalisation.to(directions.whitened), normalisation.varies
    learnt = Latents.none(rows.dim) if warm is None else _by_frequency(warm, rows, normalisation)
    cone, free = _divided(recipe, directions, learnt, width := recipe.dictionary.width or default_width(directions, rows))
    num_found, l0 = len(cone.directions), aimed_l0(recipe, width)
    x = normalisation.apply(rows.read(evenly(rows, ANCHOR_ROWS)))
    # Fitted beside latents that explain the rows without them, decoders of features that are sums' parts would drift.
    alone = recipe.dictionary.width is None and warm is not None and num_found > 0
    beside = Latents.none(rows.dim) if alone else free
    anchoring = _Anchoring(x, directions.whitening, cone, beside, 0.0 if alone else l0, recipe.dictionary.activation, mesh)
    found, explained = anchoring.run()
    if alone:
        own, others = (latents.part(mesh.share(latents.width)) for latents in (found, free))
        common = _free_threshold(x - found.centre, own, others, l0, mesh)
        found = found.then(replace(free, threshold=common.expand(free.width)))
    latents = found.then(random_start(width - found.width, rows.dim, seed, tied=False, varies=varies))
    if selects(recipe):
        return Plan(latents, mechanism_from(recipe, width))
    frozen = recipe.train.freeze != "none"
    hold = recipe.mechanism.placing.hold and not frozen
    is_found = torch.arange(width) < num_found
    latents = replace(latents, hold=is_found & hold, anchor=torch.where(is_found, 1.0 if hold else cone.cosine, -1.0))
    if frozen:
        # Targets of a frozen control are placed as for the directions; its rows are random.
        latents = replace(random_start(width, rows.dim, seed, tied=False, varies=varies), frequency=latents.frequency)
    # A frozen control learns nothing first, but aims at the L0 of what it is the control of.
    aims = warm is not None or (frozen and explained < EXPLAINS)
    sample = normalisation.apply(rows.read(_drawn(rows, seed)))
    mechanism = _adapting(recipe, latents, num_found, sample, l0 if aims else recipe.dictionary.l0, warm is not None)
    return Plan(latents, mechanism, cone if hold and not alone else None)


def selects(recipe: Recipe) -> bool:
    """Whether the mechanism compares the latents of a row: it is trained as a whole, and nothing is kept in place."""
    return not isinstance(recipe.mechanism, AdaptingSettings)


def _divided(recipe: Recipe, directions: Directions, learnt: Latents, width: int) -> tuple[Cone, Latents]:
    """The directions that find room, and the learnt latents that stay beside them.

    A width that follows from the directions has room for all of them, and they stay, whatever else is learnt. Where it is
    given, frequent latents go first.
    """
    placing = recipe.mechanism.placing
    frequent = int((learnt.frequency >= placing.frequent).sum())
    num_frequent = 0 if recipe.dictionary.width is None else frequent
    others = directions.whitened[_apart(directions, learnt.encoder[:num_frequent])]
    share = 1.0 if num_frequent else placing.share
    num_found = min(math.ceil(share * width), len(others), width - min(width, num_frequent))
    cone = Cone.around(others[:num_found], placing.anchor, directions.whitening)
    return cone, learnt.part(slice(width - num_found))


def explained_by_resonance(
    rows: Rows, recipe: Recipe, directions: Directions, normalisation: Normalisation, mesh: Mesh | None = None
) -> float:
    """Share of the variance that as many resonant latents as have room explain by themselves, on a sample of the rows."""
    cone = Cone.around(directions.whitened[: recipe.dictionary.width], recipe.mechanism.placing.anchor, directions.whitening)
    x = normalisation.to(directions.whitened).apply(rows.read(evenly(rows, CALIBRATION_ROWS)))
    # Further turns of the centre moved it by 0.004 at most on planted sets.
    return _Anchoring(x, directions.whitening, cone, Latents.none(rows.dim), 0.0, "jumprelu", mesh or Mesh()).run(turns=1)[1]


def aimed_l0(recipe: Recipe, width: int) -> float:
    """Active latents per row to aim at, where resonance does not explain the rows."""
    return l0_aimed_at(recipe.dictionary.l0, width)


def default_width(directions: Directions, rows: Rows) -> int:
    """Room for twice as many features as were found or are reckoned to be there."""
    return 2 * max(len(directions), directions.n_features, rows.dim // 2)


def _adapting(
    recipe: Recipe, latents: Latents, num_found: int, sample: Float[Tensor, "rows dim"], l0: float | None, shared: bool
) -> Mechanism:
    """Group bias adaptation for a resonant start: with gba found latents keep their thresholds and free neurons are steered."""
    placing, frozen = recipe.mechanism.placing, recipe.train.freeze != "none"
    is_found = torch.arange(latents.width) < num_found
    targets, groups = spectrum_targets(latents.frequency[:num_found], latents.width - num_found, placing.groups, l0)
    given, fixed = ~latents.threshold.isnan(), is_found & (placing.hold and not frozen)
    # Only biases that are adapted keep to the paper's range: a held latent's usual score may be of any size.
    bias = -torch.where(fixed, latents.threshold, latents.threshold.clamp(0, 1))
    bias[~given] = _first_biases(sample, latents.encoder[~given], targets[~given])
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


def _by_frequency(warm: SparseAutoencoder, rows: Rows, normalisation: Normalisation) -> Latents:
    """All latents of a trained dictionary in normalised space, the most frequent first."""
    warm = warm.to("cpu", torch.float32)
    code = warm.encode(rows.read(evenly(rows, CALIBRATION_ROWS)).float(), sparse=True)
    frequency, order = (torch.bincount(code.col_indices(), minlength=warm.width) / len(code)).sort(descending=True, stable=True)
    latents = trained_latents(warm, normalisation)
    return replace(latents, encoder=latents.encoder[order], decoder=latents.decoder[order], frequency=frequency)


def _apart(directions: Directions, encoder: Float[Tensor, "k dim"]) -> Int64[Tensor, " apart"]:
    """Directions that none of some encoder rows, in normalised space, stands for."""
    own = normalize(encoder @ directions.whitening.backward, dim=1)
    return (nearest(directions.whitened, own).cosine < SAME_COSINE).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class _Anchoring:
    """Thresholds at a share of the usual score, decoders within the cone, and the centre that the two agree on.

    Free latents share one threshold, at which the code has the L0 asked for; all decoders are fitted together. Their centre
    is theirs as well: where it is off the mean along axes of little variance, whitened scores are off by many deviations, so
    beside free latents a usual score is one about the mean. Of several ranks each has its share of the latents, and all rows.
    """

    x: Float[Tensor, "rows dim"]
    white: Whitening
    cone: Cone
    free: Latents
    l0: float
    activation: Activation
    mesh: Mesh

    def run(self, turns: int = CENTRINGS) -> tuple[Latents, float]:
        """Resonant latents, then the free ones, and the share of the rows' variance that they explain."""
        x, mesh, num_found = self.x, self.mesh, len(self.cone.directions)
        own = mesh.share(num_found + self.free.width)
        cone = self.cone.part(own)
        free = self.free.part(slice(max(0, own.start - num_found), max(0, own.stop - num_found)))
        pattern = cone.directions @ self.white.backward
        found = (cone.directions @ self.white.forward) * pattern.norm(dim=1, keepdim=True)
        encoder, decoder = torch.cat([found, free.encoder]), torch.cat([normalize(pattern, dim=1), free.decoder])
        centre, explained = free.centre.to(x), 0.0
        last = Latents.of(encoder, decoder, centre=centre)
        share = CLEAR_SHARE if self.free.width else ACTIVE_SHARE
        # Thresholds that stay need all rows. Beside free latents decoders are trained further and fitted anew at the end.
        seen = x[::4] if self.free.width else x
        # A centre that was trained with free latents is not moved.
        for _ in range(0 if not num_found + self.free.width else 1 if self.free.width else turns):
            about = torch.zeros_like(centre) if self.free.width else centre
            threshold = share * usual_scores(x - about, found) + found @ (about - centre)
            if self.free.width:
                given = Latents.of(found, None, threshold=threshold)
                common = _free_threshold(x - centre, given, free, self.l0, mesh)
                threshold = torch.cat([threshold, common.expand(free.width)])
            code = own_codes(seen, encoder, decoder, threshold, centre, self.activation)
            fitted = anchored_decoders(least_squares([(code, seen - centre)], len(seen), mesh), decoder, cone)
            frequency = torch.bincount(code.col_indices(), minlength=last.width) / len(seen)
            rest = seen - centre - mesh.sum_over_all(torch.from_numpy(to_scipy(code) @ fitted.numpy()))
            explained = 1 - float(rest.var(dim=0, correction=0).sum() / seen.var(dim=0, correction=0).sum())
            gain = fitted.norm(dim=1).clamp_min(1e-6)
            # Free latents are trained further: their scale and direction are theirs.
            gain[len(found) :], fitted[len(found) :] = 1.0, decoder[len(found) :]
            known = {"threshold": threshold * gain, "frequency": frequency, "centre": centre}
            last = Latents.of(encoder * gain[:, None], fitted / gain[:, None], **known)
            centre = centre + rest.mean(dim=0)
        return last.joined(mesh.joined), explained


def _free_threshold(x: Float[Tensor, "rows dim"], found: Latents, free: Latents, l0: float, mesh: Mesh) -> Float[Tensor, ""]:
    """The threshold at which free latents fire as often as resonant ones leave of L0.

    Args:
        x: rows about their centre.
        found, free: latents; of several ranks each gives its own.
        l0: active latents per row to aim at.
        mesh: the ranks.
    """
    x = x[:: max(1, len(x) // CALIBRATION_ROWS)]
    parts = zip(torch.split(found.encoder, 256), torch.split(found.threshold, 256), strict=True)
    counts = torch.tensor([sum(int((x @ e.T > t).sum()) for e, t in parts), free.width])
    taken, num_free = (int(count) for count in mesh.sum_over_all(counts))
    left = min(max(1, round(l0 * len(x) - taken)), max(1, len(x) * num_free - 1))
    highest = x.new_zeros(0)
    for encoder in torch.split(free.encoder, 256):
        scores = torch.cat([highest, (x @ encoder.T).flatten()])
        highest = scores.topk(min(left, len(scores))).values
    highest = mesh.joined(highest)
    return highest.topk(min(left, len(highest))).values[-1].clamp_min(0) if num_free else x.new_zeros(())


def evenly(rows: Rows, count: int) -> Int64[np.ndarray, " taken"]:
    return np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows)).astype(np.int64)


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


def _first_biases(
    x: Float[Tensor, "rows dim"], encoders: Float[Tensor, "neurons dim"], targets: Float[Tensor, " neurons"]
) -> Float[Tensor, " neurons"]:
    """Biases at which each neuron fires at its target on normalised rows, within the paper's range [−1, 0].

    Starting there spares the dense first phase in which biases only creep down from zero.
    """
    thresholds = []
    for encoder, target in zip(torch.split(encoders, 256), torch.split(targets, 256), strict=True):
        ordered = (x @ encoder.T).sort(dim=0, descending=True).values
        place = (target * len(x)).round().long().clamp(1, len(x)) - 1
        thresholds.append(ordered.gather(0, place[None])[0])
    return -torch.cat(thresholds).clamp(0, 1)
