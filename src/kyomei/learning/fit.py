"""From rows to a dictionary: resonance, then training, with nothing to tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import Recipe
from kyomei.dictionary.mechanisms import BA, GBA, Mechanism, mechanism_from
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning.resonance import Directions, resonate
from kyomei.learning.trainer import EventSink, Normalisation, Start, random_start, train
from kyomei.source.shards import Rows, open_rows

CALIBRATION_ROWS = 16_384
"""Rows from which the first thresholds are taken."""
TARGET_RANGE = (1e-4, 0.3)
"""Target frequencies are kept within this range: rarer cannot be counted, commoner is not sparse."""


@dataclass(frozen=True)
class Plan:
    """What training starts from: weights in normalised space and the mechanism with its first thresholds."""

    start: Start
    mechanism: Mechanism


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
    return train(
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


def starts_from_resonance(recipe: Recipe) -> bool:
    """Whether a recipe's mechanism is one that resonant directions start."""
    return recipe.mechanism.name in ("gba", "ba") and recipe.mechanism.start == "resonance"


def random_plan(rows: Rows, recipe: Recipe, seed: int) -> Plan:
    """Random unit rows and the mechanism in the paper's form; the width defaults to four times the dimension."""
    width = recipe.dictionary.width or 4 * rows.dim
    tied = recipe.mechanism.name in ("gba", "ba") if recipe.dictionary.tied is None else recipe.dictionary.tied
    mechanism = mechanism_from(recipe.mechanism, width, recipe.dictionary.activation)
    return Plan(random_start(width, rows.dim, seed, tied), mechanism)


def resonant_plan(rows: Rows, recipe: Recipe, directions: Directions, seed: int) -> Plan:
    """Resonant encoders, least-squares decoders, thresholds at the estimated occurrence, and free neurons for the rest.

    Free neurons start from directions that resonance found but was less sure of, then at random.

    A direction w in whitened space scores a row by w·C^(−1/2)(x − μ), whose best linear prediction of x is C^(1/2) w: that
    is its decoder, and its encoder carries the norm, so that a row v of the dictionary scores 1 on itself.
    Groups are placed at quantiles of the occurrence spectrum; free neurons span the same spectrum.
    """
    if recipe.dictionary.tied:
        do = "leave dictionary.tied out, or set mechanism.start to random"
        raise RecipeError("an untied dictionary for a resonant start", "dictionary.tied = true", do)
    white = directions.whitening
    width = recipe.dictionary.width or 2 * max(len(directions), directions.n_features, rows.dim // 2)
    num_found = min(width, len(directions))
    found = directions.candidates[:width]
    decoded = found @ white.backward
    encoder = (found @ white.forward) * decoded.norm(dim=1, keepdim=True)
    chance = random_start(width - len(found), rows.dim, seed, tied=True).encoder if width > len(found) else encoder[:0]
    targets, groups = spectrum_targets(directions.frequency[:num_found], width - num_found, recipe.mechanism.groups)
    start = Start(
        torch.cat([encoder, chance]),
        torch.cat([normalize(decoded, dim=1), chance]),
        torch.arange(width) < (num_found if recipe.mechanism.hold_resonant else 0),
        torch.where(torch.arange(width) < num_found, recipe.mechanism.anchor, -1.0),
    )
    if recipe.train.freeze != "none":
        # A frozen control differs in its rows only: targets and first thresholds are placed as for the directions.
        start = random_start(width, rows.dim, seed, tied=False)
    bias = _first_biases(rows, start, targets, seed)
    options = recipe.mechanism.model_dump(include={"gamma_down", "gamma_up", "epsilon", "adapt_every"})
    activation = recipe.dictionary.activation
    if recipe.mechanism.name == "ba":
        one_target = float(targets.double().log().mean().exp())
        return Plan(start, BA(width, one_target, bias=bias, activation=activation, **options))
    return Plan(start, GBA(targets, groups, bias=bias, activation=activation, **options))


def spectrum_targets(
    frequency: Float[Tensor, "found"], num_free: int, num_groups: int
) -> tuple[Float[Tensor, "width"], Int[Tensor, "width"]]:
    """Target activation frequencies and groups from an estimated occurrence spectrum.

    Args:
        frequency: estimated occurrence of each resonant direction.
        num_free: neurons without a direction; they are spread evenly over the groups' targets.
        num_groups: groups K at most.

    Returns:
        Targets [width] and group numbers [width], resonant directions first.
    """
    spectrum = frequency.clamp(*TARGET_RANGE) if len(frequency) else torch.logspace(-1, -3, num_groups)
    # Equal parts of the sorted spectrum, from the most frequent to the rarest, each at its own geometric mean.
    parts = spectrum.sort(descending=True, stable=True).indices.tensor_split(min(num_groups, len(spectrum)))
    level = torch.stack([spectrum[part].log().mean().exp() for part in parts])
    group = torch.empty(len(spectrum), dtype=torch.long)
    for number, part in enumerate(parts):
        group[part] = number
    free_group = torch.arange(num_free) * len(level) // max(1, num_free)
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
