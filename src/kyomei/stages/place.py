"""Where the rows of a dictionary without a run come from: what it says of itself, and what is said besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kyomei.config import Recipe
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RunError
from kyomei.source.hook_names import hub_id

_OPTIONS = {"source.model": "--model", "source.sites": "--site", "source.text": "--text"}


def recipe_for(sae: SparseAutoencoder, place: str, said: Mapping[str, Any], *, needs_text: bool = True) -> Recipe:
    """The default recipe on rows that a dictionary takes.

    Args:
        sae: the dictionary; what it says of its model, site and windows holds where nothing else is said.
        place: where it was read, for messages.
        said: settings of the recipe by dotted key.
        needs_text: whether there has to be a text, or only a model and a site.

    Raises:
        RunError: neither the dictionary nor what is said names model, site or text.
    """
    given = {**_source_of(sae), **said}
    asked = {key: option for key, option in _OPTIONS.items() if needs_text or key != "source.text"}
    missing = [option for key, option in asked.items() if key not in given]
    if missing:
        wanted = "a model, a site and a text to take rows from" if needs_text else "the dictionary's model and site"
        found = f"a dictionary in {place} that does not say, and no {', '.join(missing)}"
        raise RunError(wanted, found, f"add {' and '.join(missing)}")
    return Recipe().with_values(given)


def _source_of(sae: SparseAutoencoder) -> dict[str, Any]:
    """Settings of the source, by dotted key, as far as a dictionary says where it comes from."""
    known = sae.provenance
    own = {f"source.{key}": known.get(key) for key in ("model", "revision", "side", "context")}
    site = known.get("site") or known.get("hook_name")
    own["source.sites"] = [site] if site else None
    own["source.force_bos"] = known.get("prepend_bos")
    if "hook_name" in known and own["source.model"]:
        own["source.model"] = hub_id(own["source.model"])
    return {key: value for key, value in own.items() if value}
