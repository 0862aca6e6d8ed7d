"""What every artefact of a run says of where it comes from: data, model, licences, seed, code and redaction."""

from __future__ import annotations

from typing import Any

from kyomei import __version__
from kyomei.dictionary.card import shown_model
from kyomei.runs import Run
from kyomei.views.index.redaction import Redaction

NAMES = "names"
"""Where manifests, certificates, figures, indices and dictionaries have it; the manifest has it for all other files."""
FOLDER = "explore"
"""Where a run's indices are, in its folder; what is masked in their texts is said there."""
_OWN = {"embedded": "Apache-2.0", "stdlib": "PSF-2.0"}
"""Licences of the model and the text that are always there."""


def names_of(run: Run) -> dict[str, Any]:
    """What an artefact of a run says of itself; nothing of it is a place on this machine.

    Args:
        run: harvested, or naming a harvest.

    Returns:
        "data" ("text", "sha256" of all that was read, "documents", "licence"), "model" ("name", "revision", "weights", a digest
        of them, "licence"), "site", "side", "recipe" (SHA-256), "seed", "kyomei" (version) and "redaction". A licence that
        nobody stated is "not stated".
    """
    source, manifest = run.recipe.source, run.manifest
    corpus, model = manifest.get("corpus") or {}, manifest.get("model") or {}
    masked = Redaction.kept(run.path(FOLDER))
    return {
        "data": {
            "text": _shown_text(source.text),
            "sha256": corpus.get("sha256"),
            "documents": corpus.get("documents"),
            "licence": _licence(source.text_licence, source.address),
        },
        "model": {
            "name": shown_model(model.get("name", source.model)),
            "revision": source.revision,
            "weights": model.get("weights"),
            "licence": _licence(source.model_licence, source.model),
        },
        "site": ", ".join(manifest.get("sites") or source.sites) or None,
        "side": source.side,
        "recipe": run.recipe.sha256,
        "seed": run.recipe.seed,
        "kyomei": __version__,
        "redaction": "none" if masked is None else f"texts of pages and indices masked, sha256 {masked.sha256[:12]}",
    }


def note_names(run: Run) -> None:
    """Let the manifest say what every file of the run is of."""
    names = names_of(run)
    if run.manifest.get(NAMES) != names:
        run.note(**{NAMES: names})


def _shown_text(text: str | dict[str, float]) -> str | None:
    if isinstance(text, str):
        return shown_model(text)
    return ", ".join(f"{weight:g} × {shown_model(address)}" for address, weight in text.items())


def _licence(stated: str | None, thing: str) -> str:
    return stated or _OWN.get(thing, "not stated")
