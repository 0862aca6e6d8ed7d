"""From rows to a dictionary: resonance, then training, with nothing to tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import Recipe
from kyomei.dictionary.mechanisms import BA, GBA, Mechanism, mechanism_from
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning.anchoring import ACTIVE_SHARE, CodeMoments, Cone, anchored_decoders, to_scipy, usual_scores
from kyomei.learning.covariance import Whitening
from kyomei.learning.resonance import Directions, resonate
from kyomei.learning.trainer import EventSink, Normalisation, Start, random_start, train
from kyomei.source.shards import Rows, open_rows

CALIBRATION_ROWS = 16_384
"""Rows from which the first thresholds are taken."""
ANCHOR_ROWS = 131_072
"""Rows from which thresholds and decoders of resonant latents are computed."""
CENTRINGS = 3
"""Turns in which the centre and the latents' decoders follow each other."""
REFIT_BLOCK_ROWS = 8192
TARGET_RANGE = (1e-4, 0.3)
"""Target frequencies are kept within this range: rarer cannot be counted, commoner is not sparse."""


@dataclass(frozen=True)
class Plan:
    """What training starts from: weights in normalised space and the mechanism with its first thresholds."""

    start: Start
    mechanism: Mechanism
    cone: Cone | None = None
    """What the decoders of the first latents are kept in when all are refitted at the end; none: they are not."""


def choose_device(asked: str) -> str:
    """The device that "auto" stands for here; anything else as it is, if it is there.

    Raises:
        RecipeError: the device asked for is not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(asked.split(":")[0], False):
        raise RecipeError("an available device", f"'{asked}', which torch does not see", "use --device auto or cpu")
    return asked


def fit(
    x: Shaped[Tensor, "rows dim"] | Shaped[np.ndarray, "rows dim"] | str | Path | Rows,
    recipe: Recipe | None = None,
    *,
    seed: int | None = None,
    directions: Directions | None = None,
    folder: Path | None = None,
    resume: bool = False,
    sink: EventSink | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
) -> SparseAutoencoder:
    """Learn a sparse dictionary of rows.

    Args:
        x: activations [rows, dim], or a folder of shards.
        recipe: how; the default finds directions by resonance and needs no knowledge of the data.
        seed: overrides the recipe's.
        directions: resonant directions found before, if there are any; otherwise they are found here.
        folder: where checkpoints go.
        resume: go on from the newest checkpoint in `folder`.
        sink: takes training metrics.
        stop: asked before every step; once true, training is saved and `Interrupted` raised.
        progress: called with (steps done, steps in all).

    Returns:
        The dictionary, on raw input.

    Raises:
        DataError, RecipeError, TrainingError, Interrupted: see `resonate` and `train`.
    """
    recipe = recipe or Recipe()
    seed = recipe.seed if seed is None else seed
    rows = open_rows(x)
    device = choose_device(recipe.device)
    if starts_from_resonance(recipe):
        directions = directions or resonate(rows, seed=seed, recipe=recipe.resonance, device=device)
        plan = resonant_plan(rows, recipe, directions, seed)
    else:
        plan = random_plan(rows, recipe, seed)
    sae = train(
        plan.start,
        plan.mechanism,
        rows,
        recipe.train,
        seed=seed,
        device=device,
        dtype=getattr(torch, recipe.dtype),
        folder=folder,
        sink=sink,
        stop=stop,
        progress=progress,
        resume=resume,
    )
    return sae if plan.cone is None else refit(sae, rows, plan.cone)


def starts_from_resonance(recipe: Recipe) -> bool:
    """Whether a recipe's mechanism is one that resonant directions start."""
    return recipe.mechanism.from_resonance


def random_plan(rows: Rows, recipe: Recipe, seed: int) -> Plan:
    """Random unit rows and the mechanism in the paper's form; the width defaults to four times the dimension."""
    width = recipe.dictionary.width or 4 * rows.dim
    tied = recipe.mechanism.name in ("gba", "ba") if recipe.dictionary.tied is None else recipe.dictionary.tied
    mechanism = mechanism_from(recipe.mechanism, width, recipe.dictionary.activation)
    return Plan(random_start(width, rows.dim, seed, tied), mechanism)


def resonant_plan(rows: Rows, recipe: Recipe, directions: Directions, seed: int) -> Plan:
    """Resonant latents that are anchored, and free neurons for what they leave.

    A direction w in whitened space scores a row by w·C^(−1/2)(x − μ), whose best linear prediction of x is C^(1/2) w: there its
    decoder begins, and its encoder carries the norm, so that a row v of the dictionary scores 1 on itself. Thresholds, decoders
    and the centre then follow from the rows (learning/anchoring.py). Groups are equal parts of the frequencies that come out;
    free neurons start at random and share what is left of `dictionary.l0`, or span the same frequencies.
    """
    if recipe.dictionary.tied:
        do = "leave dictionary.tied out, or set mechanism.start to random"
        raise RecipeError("an untied dictionary for a resonant start", "dictionary.tied = true", do)
    width = recipe.dictionary.width or 2 * max(len(directions), directions.n_features, rows.dim // 2)
    selects = recipe.mechanism.name in ("topk", "batchtopk")
    share = 1.0 if selects else recipe.mechanism.resonant_share
    num_found = min(math.ceil(share * width), len(directions))
    # A code that is selected row by row is trained as a whole: resonance says where it starts, nothing is kept there.
    cone = Cone.around(directions.whitened[:num_found], -1.0 if selects else recipe.mechanism.anchor, directions.whitening)
    found = _anchored_latents(rows, directions.whitening, cone)
    is_found = torch.arange(width) < num_found
    frozen = recipe.train.freeze != "none"
    hold = recipe.mechanism.hold_resonant and not selects and not frozen
    chance = random_start(width - num_found, rows.dim, seed, tied=True).encoder if width > num_found else found.encoder[:0]
    start = Start(
        torch.cat([found.encoder, chance]),
        torch.cat([found.decoder, chance]),
        is_found if hold else torch.zeros_like(is_found),
        torch.where(is_found, 1.0 if hold else cone.cosine, -1.0),
        found.centre,
    )
    if frozen:
        # A frozen control differs in its rows only: targets and first thresholds are placed as for the directions.
        start = random_start(width, rows.dim, seed, tied=False)
    if selects:
        return Plan(start, mechanism_from(recipe.mechanism, width))
    targets, groups = spectrum_targets(found.frequency, width - num_found, recipe.mechanism.groups, recipe.dictionary.l0)
    bias = _first_biases(rows, start, targets, seed)
    if not frozen:
        bias[:num_found] = -found.threshold.clamp(0, 1)
    options = recipe.mechanism.model_dump(include={"gamma_down", "gamma_up", "epsilon", "adapt_every"})
    activation = recipe.dictionary.activation
    kept = cone if hold and activation == "jumprelu" else None
    if recipe.mechanism.name == "ba":
        one_target = float(targets.double().log().mean().exp())
        return Plan(start, BA(width, one_target, bias=bias, activation=activation, **options), kept)
    return Plan(start, GBA(targets, groups, bias=bias, activation=activation, **options), kept)


class _Latents(NamedTuple):
    """Resonant latents in normalised space, decoder rows of unit norm."""

    encoder: Tensor
    decoder: Tensor
    threshold: Tensor
    centre: Tensor
    frequency: Tensor


def _anchored_latents(rows: Rows, white: Whitening, cone: Cone) -> _Latents:
    """Thresholds at half the usual score, decoders within the cone, and the centre that the two agree on."""
    normalisation = Normalisation.measure(rows).to(cone.directions)
    x = normalisation.apply(rows.read(_evenly(rows, ANCHOR_ROWS)))
    decoder = cone.directions @ white.backward
    encoder = (cone.directions @ white.forward) * decoder.norm(dim=1, keepdim=True)
    decoder, centre = normalize(decoder, dim=1), x.new_zeros(rows.dim)
    threshold, frequency = x.new_zeros(0), x.new_zeros(0)
    for _ in range(CENTRINGS if len(encoder) else 0):
        threshold = ACTIVE_SHARE * usual_scores(x - centre, encoder)
        code = SparseAutoencoder(encoder, decoder, threshold, centre).encode(x, sparse=True)
        moments = CodeMoments.of([(code, x - centre)])
        fitted = anchored_decoders(moments, decoder, cone)
        frequency = torch.bincount(code.col_indices(), minlength=len(encoder)) / len(x)
        rest = x - centre - torch.from_numpy(to_scipy(code) @ fitted.numpy())
        gain = fitted.norm(dim=1).clamp_min(1e-6)
        last = encoder * gain[:, None], fitted / gain[:, None], threshold * gain, centre, frequency
        centre = centre + rest.mean(dim=0)
    return _Latents(*last) if len(encoder) else _Latents(encoder, decoder, threshold, centre, frequency)


def refit(sae: SparseAutoencoder, rows: Rows, cone: Cone) -> SparseAutoencoder:
    """The same latents with decoders that reconstruct best together, the first of them within the cone.

    Gradients leave noise where the data has little variance, alike in no two replicas; least squares leaves none.

    Args:
        sae: a trained dictionary of threshold latents.
        rows: what it was trained on; at most `ANCHOR_ROWS` of them are used, evenly taken.
        cone: of the first latents' decoders.
    """
    own = sae.to("cpu", torch.float32)
    index = _evenly(rows, ANCHOR_ROWS)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for part in np.array_split(index, max(1, len(index) // REFIT_BLOCK_ROWS)):
            x = rows.read(part).float()
            yield own.encode(x, sparse=True), x - own.center

    decoder = anchored_decoders(CodeMoments.of(blocks()), own.decoder, cone)
    gain = decoder.norm(dim=1)
    # A latent that never fires has no decoder to fit.
    gain, decoder = torch.where(gain > 0, gain, 1.0), torch.where(gain[:, None] > 0, decoder, own.decoder)
    refitted = SparseAutoencoder(
        own.encoder * gain[:, None], decoder / gain[:, None], own.threshold * gain, own.center, activation=own.activation
    )
    return refitted.to(sae.encoder.device, sae.encoder.dtype)


def _evenly(rows: Rows, count: int) -> Int64[np.ndarray, " taken"]:
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


def _first_biases(rows: Rows, start: Start, targets: Tensor, seed: int) -> Tensor:
    """Biases at which each neuron fires at its target on a sample of rows, within the paper's range [−1, 0].

    Starting there spares the dense first phase in which biases only creep down from zero.
    """
    rng = np.random.default_rng([seed, 1])
    index = np.sort(rng.integers(0, rows.num_rows, size=min(rows.num_rows, CALIBRATION_ROWS)))
    normalisation = Normalisation.measure(rows).to(start.encoder)
    x = normalisation.apply(rows.read(index))
    thresholds = []
    for encoder, target in zip(torch.split(start.encoder, 256), torch.split(targets, 256), strict=True):
        ordered = (x @ encoder.T).sort(dim=0, descending=True).values
        place = (target * len(x)).round().long().clamp(1, len(x)) - 1
        thresholds.append(ordered.gather(0, place[None])[0])
    return -torch.cat(thresholds).clamp(0, 1)
