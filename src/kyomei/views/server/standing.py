"""What is missing of an explorer, by the keys of the sentences that say so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def notes(
    index: Mapping[str, Any] | None,
    model: Mapping[str, Any],
    *,
    replicas: int,
    live: int | None,
    writable: bool,
    read_only: bool,
    stale_labels: int,
) -> list[dict[str, Any]]:
    """What a page has to say of its state: "key" of a sentence in the catalogue, and the "values" that stand in it.

    Args:
        index: state of the dictionary's index; none: there is no dictionary.
        model: state of the language model.
        replicas: how many dictionaries there are to compare with.
        live: latents that are ever active; none: nobody knows.
        writable: whether labels can be written.
        read_only: whether nothing is to be changed.
        stale_labels: labels of an earlier dictionary.
    """
    found = [*_of_index(index), *_of_model(model)]
    if live == 0:
        found.append(_note("no_live_latents"))
    if replicas < 2:
        found.append(_note("no_replicas"))
    if read_only:
        found.append(_note("read_only"))
    elif not writable:
        found.append(_note("read_only_folder"))
    if stale_labels:
        found.append(_note("stale_labels", count=stale_labels))
    return found


def can_write(path: Path) -> bool:
    """Whether a file can be written, or made where its folder, or the first one above that is there, can be written."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    return os.access(place, os.W_OK) and (place != path or os.access(path.parent, os.W_OK))


def _of_index(index: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if index is None or index["condition"] == "missing":
        return [_note("index_missing")]
    if index["condition"] == "running":
        return [_note("index_running")]
    if index["condition"] != "ready":
        return [_note("index_broken", found=index["reason"] or index["condition"])]
    found = []
    if index["has_text"] is False:
        found.append(_note("no_text"))
    certificate = {"none": "no_certificate", "expired": "expired_certificate"}.get(str(index["certificate_state"]))
    if certificate is not None:
        found.append(_note(certificate))
    return found


def _of_model(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    condition, reason = model["condition"], model["reason"] or {}
    if condition == "none":
        return [_note("no_model")]
    if condition == "loading":
        return [_note("model_loading")]
    if condition == "failed":
        return [_note("model_failed", found=str(reason.get("found", "")).rstrip("."))]
    if model["no_predictions"]:
        return [_note("no_causal_head", found=model["no_predictions"])]
    return []


def _note(key: str, **values: Any) -> dict[str, Any]:
    return {"key": f"state.{key}", "values": values}
