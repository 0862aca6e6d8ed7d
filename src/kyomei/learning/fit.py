"""From rows to a dictionary: resonance, then training, with nothing to tune."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kyomei.config import Recipe, TrainRecipe
from kyomei.dictionary.figures import SAMPLE_ROWS, five_digits
from kyomei.dictionary.formats import CONFIG_FILE
from kyomei.dictionary.mechanisms import TopK
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning import checkpoint
from kyomei.learning.anchoring import Cone, anchored_decoders
from kyomei.learning.checkpoint import resume_step
from kyomei.learning.detection import detectors
from kyomei.learning.directions import Directions
from kyomei.learning.latents import random_start, trained_latents
from kyomei.learning.least_squares import BLOCK_ROWS, least_squares
from kyomei.learning.mesh import Mesh
from kyomei.learning.narrowing import narrowed, widths
from kyomei.learning.placement import (
    ANCHOR_ROWS,
    EXPLAINS,
    aimed_l0,
    default_width,
    explained_by_resonance,
    random_plan,
    resonant_plan,
)
from kyomei.learning.resonance import resonate
from kyomei.learning.sample import Sample, evenly
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread
from kyomei.learning.training import train
from kyomei.learning.undisturbed import undisturbed
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import Rows, RowsLike, as_seen, open_rows
from kyomei.source.stream import StreamedRows

WARM_FOLDER = "warm"


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


@undisturbed
def fit(
    x: RowsLike,
    recipe: Recipe | Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    directions: Directions | None = None,
    stream: StreamedRows | None = None,
    workplace: Workplace | None = None,
) -> SparseAutoencoder:
    """Learn a sparse dictionary of rows.

    Args:
        x: activations [rows, dim], in whatever `open_rows` takes, or rows that a model makes while it is trained
            (`StreamedRows`).
        recipe: how, as a recipe or a dict of settings, nested or by dotted keys; the default finds directions by resonance and
            needs no knowledge of the data.
        seed: overrides the recipe's.
        directions: resonant directions found before, if there are any, of rows of norm 1 where the recipe asks for such
            (`UnitRows`); otherwise they are found here.
        stream: what training steps read in place of `x`, from which directions, thresholds and the last fit then come.
        workplace: folder of checkpoints, listeners and ranks; none: this process alone, saving nothing.

    Returns:
        The dictionary, on raw input; of several ranks, whole on each.

    Raises:
        DataError, RecipeError, TrainingError, Interrupted: see `resonate` and `train`.
    """
    recipe, rows = Recipe.of(recipe), open_rows(x)
    seed = recipe.seed if seed is None else seed
    given: dict[str, Any] = {"directions": directions, "stream": stream, "workplace": workplace}
    return fit_spread(rows, recipe, seed=seed, **given).whole()


def fit_spread(
    rows: Rows,
    recipe: Recipe,
    *,
    seed: int,
    directions: Directions | None = None,
    stream: StreamedRows | None = None,
    workplace: Workplace | None = None,
) -> Spread:
    """`fit` where no rank ever has more than its own latents: it returns this rank's share of them."""
    work = replace(workplace or Workplace(), device=choose_device(recipe.device))
    if isinstance(rows, StreamedRows) and (starts_from_resonance(recipe) or recipe.mechanism.detects):
        do = "harvest the rows first, or set mechanism.start to random and mechanism.detectors to false"
        raise RecipeError("stored rows for a resonant start or detectors, which visit them many times", "a stream", do)
    unit = recipe.dictionary.unit_rows
    if unit and (stream is not None or isinstance(rows, StreamedRows)):
        do = "harvest the rows first, or set dictionary.unit_rows to false"
        raise RecipeError("stored rows for dictionary.unit_rows", "a stream", do)
    # What steps read is normalised as what latents are placed by.
    stored = rows.sample() if isinstance(rows, StreamedRows) else rows
    normalisation = Normalisation.measure(as_seen(stored, unit))
    sae = _learnt(as_seen(rows, unit), recipe, seed, directions, stream, work, normalisation)
    sae = replace(sae, unit_rows=unit)
    known = {
        "mechanism": recipe.mechanism.label,
        "recipe": recipe.sha256,
        "seed": seed,
        "normalisation": {
            "mean_norm": five_digits(float(normalisation.mean.norm())),
            "scale": five_digits(normalisation.scale),
        },
        "sample": sae.figures(stored.read(evenly(stored, SAMPLE_ROWS))).to_dict(),
    }
    return replace(sae, provenance=known)


def _learnt(
    rows: Rows,
    recipe: Recipe,
    seed: int,
    directions: Directions | None,
    stream: StreamedRows | None,
    work: Workplace,
    normalisation: Normalisation,
) -> Spread:
    """The dictionary that `fit` returns."""
    learn = functools.partial(
        train,
        rows=rows if stream is None else stream,
        seed=seed,
        dtype=getattr(torch, recipe.dtype),
        normalisation=normalisation,
    )
    if not starts_from_resonance(recipe):
        plan = random_plan(rows, recipe, seed, normalisation.varies, work.mesh)
        sae = learn(plan.latents, plan.mechanism, recipe=recipe.train, workplace=work)
        return Spread.of(detectors(sae.whole(), rows, seed), work.mesh) if recipe.mechanism.detects else sae
    if directions is None:
        directions = resonate(rows, seed=seed, recipe=recipe.search, device=str(work.device), mesh=work.mesh)
    warm, warm_steps = None, 0
    if _leaves_much(rows, recipe, directions, normalisation, work.mesh):
        warm_steps = round(recipe.mechanism.placing.first_share * recipe.train.steps)
        width = recipe.dictionary.width or default_width(directions, rows)
        warm = _wide_first(learn, rows, recipe, width, warm_steps, seed, normalisation, work)
    plan = resonant_plan(rows, recipe, directions, seed, normalisation, warm, work.mesh, work.device)
    sae = learn(plan.latents, plan.mechanism, **_part(recipe.train, warm_steps, recipe.train.steps, work))
    sae = _about(sae, plan.latents.hold, normalisation.undo(plan.latents.centre))
    return sae if plan.cone is None else refit(sae, rows, plan.cone)


def _about(sae: Spread, held: Bool[Tensor, " own"], placed: Float[Tensor, " dim"]) -> Spread:
    """The same with held latents that are active where they were when they were placed.

    Training moved the centre since, and with it the scores of latents whose encoders and thresholds it did not move.

    Args:
        sae: a trained dictionary.
        held: its latents of that kind; of a rank, among its own.
        placed: the centre at which they were given their thresholds.
    """
    if bool(held.any()):
        moved = sae.encoder @ (sae.center - placed.to(sae.center))
        return replace(sae, threshold=torch.where(held.to(moved.device), sae.threshold - moved, sae.threshold))
    return sae


def _part(recipe: TrainRecipe, first: int, last: int, work: Workplace) -> dict[str, Any]:
    """How some of the steps are trained: the learning rate falls as that of the whole does, at the end of the last part."""
    steps, total = last - first, recipe.steps
    decay = 0.0 if last < total else min(1.0, recipe.decay_share * total / max(1, steps))
    changed = {} if steps == total else {"steps": steps, "decay_share": decay}
    return {"recipe": recipe.model_copy(update=changed), "workplace": work.after(first, total)}


def _leaves_much(rows: Rows, recipe: Recipe, directions: Directions, normalisation: Normalisation, mesh: Mesh) -> bool:
    """Whether resonant latents leave so much of the rows that others have to be learnt before they are placed."""
    if recipe.train.freeze != "none" or not recipe.mechanism.placing.first_share:
        return False
    return explained_by_resonance(rows, recipe, directions, normalisation, mesh) < EXPLAINS


def _wide_first(
    learn: Callable[..., Spread],
    rows: Rows,
    recipe: Recipe,
    width: int,
    steps: int,
    seed: int,
    normalisation: Normalisation,
    work: Workplace,
) -> Spread:
    """TopK from a random start, wider than asked and narrowed part by part, for the first steps of a training.

    Dead latents are not revived: they are the first to be left out.
    """
    k = max(1, round(aimed_l0(recipe, width)))
    parts = widths(width, rows.dim, recipe.mechanism.placing.widest)
    latents = random_start(parts[0], rows.dim, seed, False, normalisation.varies, work.mesh.share(parts[0]))
    ends = [round(steps * number / len(parts)) for number in range(len(parts) + 1)]
    for number, (wide, narrower) in enumerate(pairwise([*parts, width])):
        part = _part(recipe.train, ends[number], ends[number + 1], work.within(f"{WARM_FOLDER}/{number}"))
        done = _finished(part["workplace"])
        if done is None:
            done = narrowed(learn(latents, TopK(wide, min(k, wide)), **part), rows, narrower)
            _finish(done, part["recipe"].steps, part["workplace"])
        sae, latents = done, trained_latents(done, normalisation)
    return sae


def _finished(work: Workplace) -> Spread | None:
    """What a part left that ended before; none: it has to be trained, from its last checkpoint if it has one."""
    # The settings' file is written last: where it is, the tensors are whole.
    if work.folder is None or not work.resume or not work.mesh.tell((work.folder / CONFIG_FILE).exists())[0]:
        return None
    if work.mesh.leads:
        checkpoint.delete(work.folder)
    return Spread.load(work.folder, work.mesh)


def _finish(sae: Spread, steps: int, work: Workplace) -> None:
    """Save what the next part begins with, in place of checkpoints, which are several times as large."""
    if work.folder is None:
        return
    replace(sae, provenance={"steps": steps}).save(work.folder)
    if work.mesh.leads:
        checkpoint.delete(work.folder)


def steps_done(folder: Path) -> int:
    """Steps of a dictionary's training that are behind it, from which a resumed one goes on."""
    return resume_step(folder) + sum(map(_part_steps, (folder / WARM_FOLDER).glob("*")))


def _part_steps(folder: Path) -> int:
    config = folder / CONFIG_FILE
    if not config.exists():
        return resume_step(folder)
    return int(json.loads(config.read_text(encoding="utf-8"))["provenance"]["steps"])


def starts_from_resonance(recipe: Recipe) -> bool:
    """Whether a recipe's mechanism is one that resonant directions start."""
    return recipe.mechanism.from_resonance


def refit(sae: Spread, rows: Rows, cone: Cone) -> Spread:
    """The same latents with decoders that reconstruct best together, the first of them within the cone.

    Gradients leave noise where the data has little variance, alike in no two replicas; least squares leaves none.

    Args:
        sae: a trained dictionary of threshold latents; of several ranks each fits its own, and all call.
        rows: what it was trained on; at most `ANCHOR_ROWS` of them are used, evenly taken.
        cone: of the first latents' decoders; of a rank, of its own.
    """
    # Ranks tell each other codes and rows on the CPU.
    device = sae.encoder.device if sae.mesh.size == 1 else torch.device("cpu")
    own, cone = sae.to(device, torch.float32), cone.to(device)
    sample = Sample.of(rows, ANCHOR_ROWS)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for x in sample.blocks(BLOCK_ROWS):
            yield own.encode(x), x.to(device) - own.center

    fitted = anchored_decoders(least_squares(blocks(), len(sample), own.mesh), own.decoder, cone)
    gain = fitted.norm(dim=1)
    # A latent that never fires has no decoder to fit.
    gain, fitted = torch.where(gain > 0, gain, 1.0), torch.where(gain[:, None] > 0, fitted, own.decoder)
    scaled: dict[str, Any] = {
        "encoder": own.encoder * gain[:, None],
        "decoder": fitted / gain[:, None],
        "threshold": own.threshold * gain,
    }
    return replace(own, **scaled).to(sae.encoder.device, sae.encoder.dtype)
