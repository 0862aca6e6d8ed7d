"""Automatic labels of a run's latents through the user's own endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kyomei.atomic import sha256_of
from kyomei.errors import RunError
from kyomei.runs import Run
from kyomei.stages.exports import note_export
from kyomei.stages.index import index_states
from kyomei.stages.named import FOLDER
from kyomei.stages.progress import Reporter
from kyomei.views.autolabel import AutomaticLabels, Estimate
from kyomei.views.endpoint import Client
from kyomei.views.labels import FILE, Labels
from kyomei.views.queries import Index


def label_run(
    run: Run,
    client: Client,
    reporter: Reporter,
    agree: Callable[[Estimate], bool],
    *,
    dictionary: str | None = None,
    latents: int | Callable[[Index], Sequence[int]] = 50,
) -> dict[str, Any]:
    """Label latents; what is labelled already is not asked for again.

    Args:
        run: its index is there.
        client: asks the language model.
        reporter: shows progress.
        agree: is told what will be sent and what it takes, and says whether to go on.
        dictionary: its name; none: the first that the explorer shows.
        latents: how many, the first of the list, certified ones first; or what chooses them from the index.

    Returns:
        "labels" that hold, "tokens" used as the endpoint counts them.

    Raises:
        RunError: there is no index, or the endpoint fails.
    """
    states = {one.name: one for one in index_states(run)}
    chosen = states.get(dictionary or next(iter(states), ""))
    if chosen is None:
        raise RunError(f"a dictionary among {', '.join(states) or 'none'}", str(dictionary), "choose one of them")
    index = Index(chosen.folder)
    wanted = latents(index) if callable(latents) else _first(index, latents)
    digest = sha256_of(Path(run.path(chosen.path)) / "sae.safetensors")
    work = AutomaticLabels(
        index, Labels(run.path(f"{FOLDER}/{FILE}")), chosen.name, digest, wanted, client.endpoint.source, run.recipe.seed
    )
    estimate = work.estimate()
    if estimate.requests and not agree(estimate):
        return {"labels": [], "tokens": client.tokens}
    note_export(run, "examples, for automatic labels", client.endpoint.address, text=True)
    with reporter.progress("label") as progress:
        found = work.run(client, progress)
    return {"labels": [entry.to_dict() for entry in found], "tokens": client.tokens}


def _first(index: Index, count: int) -> list[int]:
    """As many as there are, from the top of the explorer's list; latents that are never active have no examples."""
    return [row["latent"] for row in index.features(frequency=(1e-12, None), page=(1, count))["rows"]]
