"""Certificates for dictionaries from elsewhere: replicas of our own on the same site test them, by the same rule."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kyomei.atomic import make_folder
from kyomei.config import Recipe
from kyomei.dictionary.figures import SAMPLE_ROWS, SampleFigures
from kyomei.dictionary.formats import TENSORS_FILE, read
from kyomei.dictionary.hub import fetch
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError, RunError
from kyomei.runs import Run
from kyomei.stages.arms import IMPORT_FILE, Pair, imported_pair, made_for
from kyomei.stages.certify import certify_run, verdict_of
from kyomei.stages.family import refuse_family
from kyomei.stages.harvest import Source, harvest_run, open_source
from kyomei.stages.harvested import STAGE, site_of
from kyomei.stages.place import recipe_for
from kyomei.stages.plan import plan
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_run, trained
from kyomei.views.numbers import duration

_ON_THE_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:/(?P<within>[^@]+))?(?:@(?P<revision>.+))?")
_USUAL = ("params", "sae", "sae_weights", "ae")
LATER = ("check", "measure")
"""Parts of a plan that a certificate does without."""


@dataclass(frozen=True, eq=False)
class Foreign:
    """A dictionary from elsewhere.

    Attributes:
        name: its name in a run.
        origin: where it was read, as it was asked for.
        kind: format and mechanism, in words.
        sae: the dictionary.
    """

    name: str
    origin: str
    kind: str
    sae: SparseAutoencoder

    @classmethod
    def read(cls, asked: str) -> Foreign:
        """Read a dictionary.

        Args:
            asked: a file or folder of any format that `kyomei.load` reads; or OWNER/NAME, OWNER/NAME/FOLDER or either of them
                with @REVISION behind it, on the hub of Hugging Face.

        Raises:
            DataError: nothing is there, or no sparse autoencoder.
        """
        path, hub = Path(asked), _ON_THE_HUB.fullmatch(asked)
        if path.exists() or hub is None:
            # A file that every folder has says nothing.
            own = path if path.is_dir() or path.stem not in _USUAL else path.parent
            named = own.resolve().name if own.is_dir() else own.stem
        else:
            path = fetch(hub["name"], hub["revision"], hub["within"])
            named = asked.partition("@")[0].partition("/")[2]
        found = read(path)
        name = re.sub(r"[^\w.]+", "-", named).strip("-.") or "sae"
        return cls(name, asked, f"{found.format}, {found.mechanism}", found.sae)


def certify_foreign(
    folder: Path,
    foreign: Foreign,
    said: dict[str, Any],
    reporter: Reporter,
    agree: Callable[[], bool],
    *,
    latents: int | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Certify a dictionary from elsewhere in a run that is there, or in one that is made for it.

    The run is one of the default recipe, at the dictionary's own width and L0 unless something else is said, so that it can be
    certified, measured and explored as any other. Its replicas learn from documents of their own, and a latent is certified if
    every one of them has it: encoder, decoder and activation, by the rule that the run's own latents go through. Its null has
    set that rule; a null's latent is looked for among as many others.

    Args:
        folder: of the run; what is there is gone on with.
        foreign: the dictionary.
        said: settings of the recipe by dotted key.
        reporter: shows progress, and what it will take.
        agree: asked once that is said.
        latents: how many are tested, drawn at random; none: all.
        command: what began it, for the manifest of a new run.

    Returns:
        What `certify_run` does, with the verdict of this dictionary, its certificate first.

    Raises:
        RunError: neither the dictionary nor what is said names model, site and text; the run has other settings; or the user
            does not agree.
        DataError: the dictionary is not of the site.
    """
    run, source = _existing(folder, said), None
    if run is None:
        recipe = _recipe(foreign, said)
        source = open_source(recipe, reporter)
        recipe = _matched(recipe, foreign, source, said, reporter)
        if not _agreed(recipe, reporter, agree):
            raise RunError("a yes", "no", "nothing was written; ask for less with --tokens, --width or --steps")
        run = Run.create(folder, recipe, command=command, facts=made_for(foreign.name))
    elif not trained(run) and not _agreed(run.recipe, reporter, agree):
        raise RunError("a yes", "no", f"{folder} is as it was")
    with run.lock():
        if not run.done(STAGE):
            harvest_run(run, reporter, source)
        pair = import_into(run, foreign, latents)
        train_run(run, reporter)
        facts = certify_run(run, reporter)
    answer = verdict_of(run, pair=pair).to_dict()
    return {**_first(facts, pair), "run": str(run.folder), "dictionary": pair.places[0], "verdict": answer}


def import_into(run: Run, foreign: Foreign, latents: int | None = None) -> Pair:
    """Put a dictionary into a run, where its other stages find it.

    Args:
        run: harvested; this process holds its lock.
        foreign: the dictionary.
        latents: how many of them a certificate is of; none: all.

    Raises:
        DataError: it is of another dimension than the site.
        RunError: another dictionary has its name there.
    """
    pair = imported_pair(run, foreign.name)
    folder, file = pair.arm.path(run, 0), f"{pair.arm.folder}/{IMPORT_FILE}"
    source = run.recipe.source
    sae = foreign.sae.to("cpu", torch.float32)
    sae.provenance = {**sae.provenance, "model": source.model, "site": site_of(run), "side": source.side}
    if not (folder / TENSORS_FILE).exists():
        make_folder(folder)
        sae.save(folder)
    elif _digest(pair.arm.dictionary(run, 0)) != _digest(sae):
        do = f"name another folder, or copy {foreign.origin} to another name"
        raise RunError(f"a new name in {run.folder}", f"'{foreign.name}', which another dictionary has there", do)
    run.write_json(file, {"from": foreign.origin, "format": foreign.kind, "latents": latents})
    run.record(pair.arm.folder)
    run.finish(pair.arm.stage(0))
    return pair


def _digest(sae: SparseAutoencoder) -> str:
    """SHA-256 of what a dictionary computes, whatever file it came in."""
    tensors = (sae.encoder, sae.decoder, sae.threshold, sae.center, sae.bias)
    found = hashlib.sha256(f"{sae.activation} {sae.k}{' unit rows' if sae.unit_rows else ''}".encode())
    for tensor in tensors:
        found.update(b"" if tensor is None else tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def _existing(folder: Path, said: dict[str, Any]) -> Run | None:
    """The run that is there, unless something else is asked of it."""
    if not folder.exists():
        return None
    run = Run.open(folder)
    refuse_family(run)
    Run.find(folder, run.recipe.with_values(said), resume=True)
    return run


def _recipe(foreign: Foreign, said: dict[str, Any]) -> Recipe:
    recipe = recipe_for(foreign.sae, foreign.origin, {"dictionary.width": foreign.sae.width, **said})
    if len(recipe.source.sites) != 1:
        raise RecipeError("one site, the dictionary's", f"{len(recipe.source.sites)}", "name the one that it is of")
    return recipe


def _matched(recipe: Recipe, foreign: Foreign, source: Source, said: dict[str, Any], reporter: Reporter) -> Recipe:
    """The recipe with as many active latents in a row as the dictionary has on a sample of the first replica's rows."""
    figures = sample_of(foreign.sae, source, recipe)
    reporter.note(
        f"{foreign.origin}: {foreign.kind}, width {foreign.sae.width:,}, L0 {figures.l0:.3g}, FVU {figures.fvu:.3g} here"
    )
    if figures.fvu >= 1:
        do = "check model, site and side, and how it normalises its inputs"
        reporter.note(f"it explains nothing of these rows: they may not be of its site; {do}")
    if "dictionary.l0" in said:
        return recipe
    most = float(recipe.dictionary.width or foreign.sae.width)
    return recipe.with_values({"dictionary.l0": min(most, max(1.0, float(f"{figures.l0:.3g}")))})


def sample_of(sae: SparseAutoencoder, source: Source, recipe: Recipe) -> SampleFigures:
    """A dictionary's figures on the first rows of the first replica, as a harvest would keep them.

    Raises:
        DataError: it is of another dimension than the site.
    """
    tokens, model, (site, *_) = source.tokens["replica-0"], source.model, source.sites
    wanted, batch, parts, kept = SAMPLE_ROWS, recipe.source.windows_per_batch, [], 0
    special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
    for first in range(0, len(tokens.ids), batch):
        windows = slice(first, first + batch)
        rows = model.capture(tokens.ids[windows], [site], recipe.source.side)[site].flatten(0, 1).float().cpu()
        parts.append(rows[~tokens.is_special(windows, special).flatten()] if recipe.source.drop_special else rows)
        kept += len(parts[-1])
        if kept >= wanted:
            break
    x = torch.cat(parts)[:wanted]
    sae.require_dim(x.shape[1], site)
    norms = x.norm(dim=1)
    return SampleFigures.measure(sae, x[norms <= recipe.source.norm_bound * norms.median()])


def _agreed(recipe: Recipe, reporter: Reporter, agree: Callable[[], bool]) -> bool:
    """Say what it will take, and ask."""
    found = plan(recipe)
    seconds = sum(value for part, value in found.seconds.items() if part not in LATER)
    dictionary, replicas = recipe.dictionary, recipe.source.replicas
    shape = f"width {dictionary.width:,}" + ("" if dictionary.l0 is None else f", L0 {dictionary.l0:.3g}")
    what = f"{replicas} replicas and 2 nulls of {shape}, {recipe.train.steps:,} steps each, {found.harvested_tokens:,} tokens"
    cost = f"about {duration(seconds)}, {found.memory_bytes / 1e9:.1f} GB of memory and {found.disk_bytes / 1e9:.2g} GB of disk"
    reporter.note(f"{what}: {cost}")
    return agree()


def _first(facts: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """The facts with what is about a pair before all else."""
    named = ("certificates", "files", "best")
    return {**facts, **{key: {pair.name: facts[key][pair.name], **facts[key]} for key in named}}
