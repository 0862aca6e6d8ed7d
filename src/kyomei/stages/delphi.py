"""Where latents are active, as delphi (automatic interpretation, EleutherAI) caches it: it need not run the model again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from safetensors.numpy import save

from kyomei.atomic import write_atomic
from kyomei.dictionary.card import shown_model
from kyomei.errors import RunError
from kyomei.runs import MANIFEST, Run
from kyomei.stages.exports import note_export
from kyomei.stages.family import refuse_family
from kyomei.stages.harvested import activations, site_of, tokens_of
from kyomei.stages.index import opened
from kyomei.views.index.codes import active_entries

NAME = "delphi"
LATENTS_PER_FILE = 4096
PART = "evidence"
_LARGEST_SHORT = 2**16


def export_latents(source: Path, folder: Path, *, dictionary: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write FOLDER/SITE/FIRST_LAST.safetensors and config.json, from the documents that no training saw.

    A file holds the latents FIRST to LAST: "locations" [entries, 3] of window, position and latent less FIRST (uint16 where
    that suffices, else uint32), "activations" [entries] (float16), by window, position, latent; and "tokens" [windows,
    context], the ids of all windows. Tokens that the harvest left out have no activation.

    Args:
        source: a run.
        folder: where it goes; delphi calls it its cache.
        dictionary: of the run, such as "replicas-1"; none: the one that ships.
        overwrite: whether files that are there may go.

    Returns:
        "folder", "site", "windows", "context", "entries" and "files".

    Raises:
        RunError: there is no trained run, or files are there already.
    """
    if not (source / MANIFEST).exists():
        do = "name a run: where a dictionary is active is known of rows, which a run has"
        raise RunError("a run", f"none in {source}", do)
    run = Run.open(source)
    refuse_family(run)
    _, sae, _ = opened(run, dictionary)
    site, tokens, rows = site_of(run), tokens_of(run, PART), activations(run, PART)
    place = folder / site
    if not overwrite and any(place.glob("*.safetensors")):
        raise RunError("a folder without cached latents", f"some in {place}", "name another folder, or add --overwrite")
    places, found, first = rows.row_tokens(), [], 0
    for block in rows.blocks():
        latent, row, value = active_entries(sae, block)
        found.append((latent.astype(np.int64), places[first + row], value.astype(np.float32)))
        first += len(block)
    latents, at, values = (np.concatenate(each) for each in zip(*found, strict=True))
    files = []
    for start in range(0, sae.width, LATENTS_PER_FILE):
        last = min(start + LATENTS_PER_FILE, sae.width) - 1
        mine = (latents >= start) & (latents <= last)
        name = f"{start}_{last}.safetensors"
        held = _tensors(latents[mine] - start, at[mine], values[mine], tokens.context)
        write_atomic(place / name, save({**held, "tokens": tokens.ids.numpy()}))
        files.append(name)
    for old in place.glob("*.safetensors"):
        if old.name not in files:
            old.unlink()  # of other latents, which a reader would take for these
    source_of = run.recipe.source
    settings = {"ctx_len": tokens.context, "n_tokens": tokens.num_tokens, "n_splits": len(files), "batch_size": 1}
    address = shown_model(source_of.address)
    dataset = {"dataset_repo": address, "dataset_split": "", "dataset_name": "", "dataset_column": "text"}
    config = {**dataset, **settings, "model_name": shown_model(source_of.model)}
    write_atomic(place / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    note_export(run, "latents for delphi, with token ids", folder, text=True)
    windows = len(tokens.ids)
    return {
        "folder": str(folder), "site": site, "windows": windows, "context": tokens.context,
        "entries": len(values), "files": [*files, "config.json"],
        "text": "ids of all tokens of these windows are in these files, unmasked",
    }  # fmt: skip


def _tensors(
    latent: Int64[np.ndarray, " entries"],
    at: Int64[np.ndarray, " entries"],
    value: Float32[np.ndarray, " entries"],
    context: int,
) -> dict[str, np.ndarray]:
    """Locations and activations of one file, in reading order."""
    order = np.lexsort((latent, at))
    locations = np.stack([at // context, at % context, latent], axis=1)[order]
    small = locations.size == 0 or int(locations.max()) < _LARGEST_SHORT
    return {
        "locations": np.ascontiguousarray(locations.astype(np.uint16 if small else np.uint32)),
        "activations": value[order].astype(np.float16),
    }
