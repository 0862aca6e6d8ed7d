"""What an index knows of every latent, as the batch files that SAEDashboard writes and Neuronpedia's converter reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.dictionary.card import shown_model
from kyomei.errors import RunError
from kyomei.runs import MANIFEST, Run
from kyomei.source.sites import Site, layer_of
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.convert import said_by
from kyomei.stages.exports import note_export
from kyomei.stages.family import refuse_family
from kyomei.stages.harvested import site_of, tokens_of
from kyomei.stages.index import OWN, index_states, opened
from kyomei.stages.publish import told
from kyomei.views.queries import Index

NAME = "neuronpedia"
FEATURES_PER_FILE = 128
DIGITS = 3
"""After the point, as SAEDashboard rounds."""
NOT_KNOWN = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist", "vector",
)  # fmt: skip
"""Lists of a feature that stay empty: an index has no such figures."""


def export_features(source: Path, folder: Path, *, dictionary: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write FOLDER/batch-0.json, batch-1.json, …, with examples of text, and certificate.json where a certificate holds.

    A file is one object: "model_id", "layer", "sae_set", "sae_id_suffix" and "features". A feature has its strongest examples
    under "activations" (bin_min and bin_contains −1), then those of each tenth of its active rows, the strongest first.

    Args:
        source: a run with an index of the dictionary.
        folder: where it goes.
        dictionary: of the run, such as "replicas-1"; none: the one that ships.
        overwrite: whether batch files that are there may go.

    Returns:
        "folder", "model", "layer", "sae_set", "features", "examples", "files" and "text".

    Raises:
        RunError: there is no trained run, no index, no layer that the site is in, or files are there already.
    """
    if not (source / MANIFEST).exists():
        raise RunError(
            "a run", f"none in {source}", "name a run: what a dictionary is active on is known of rows, which a run has"
        )
    run = Run.open(source)
    refuse_family(run)
    _, sae, certificate = opened(run, dictionary)
    layer, known = _layer(site_of(run)), said_by(run, sae).provenance
    there = sorted(folder.glob("batch-*.json"))
    if there and not overwrite:
        raise RunError("a folder without batch files", f"some in {folder}", "name another folder, or add --overwrite")
    index = _index(run, dictionary or OWN)
    for path in there:
        path.unlink()
    shared = {
        "n_prompts_total": len(tokens_of(run, "evidence").ids),
        "n_tokens_in_prompt": index.facts["context"],
        "dataset": known["dataset"],
    }
    head = {
        "model_id": shown_model(known["model"]) or "",
        "layer": layer,
        "sae_set": f"kyomei-{index.facts['mechanism']}",
        "sae_id_suffix": None,
    }
    files: list[str] = []
    examples, latents = 0, index.examples_of_all()
    try:
        while features := [_feature(index, latent, found, shared) for latent, found in islice(latents, FEATURES_PER_FILE)]:
            name = f"batch-{len(files)}.json"
            batch = json.dumps({**head, "features": features}, ensure_ascii=False, allow_nan=False)
            write_atomic(folder / name, batch.encode())
            files.append(name)
            examples += sum(len(feature["activations"]) for feature in features)
    finally:
        index.close()
    if certificate is not None:
        # Its tokens go: they are not masked as those of an index may be.
        told(certificate, examples=False).write(folder / CERTIFICATE)
    note_export(run, "features for Neuronpedia, with examples", folder, text=True)
    return {
        "folder": str(folder), "model": head["model_id"], "layer": layer, "sae_set": head["sae_set"], "features": sae.width,
        "examples": examples, "files": [*files, *([CERTIFICATE] if certificate else [])],
        "text": "pieces of the run's text are in these files",
    }  # fmt: skip


def _layer(site: str) -> int:
    number = layer_of(Site.parse(site).path).rpartition(".")[2]
    if not number.isdigit():
        raise RunError(
            "a site in a layer, whose number Neuronpedia asks for", f"'{site}'", "export a run whose site is in a layer"
        )
    return int(number)


def _index(run: Run, name: str) -> Index:
    (one,) = [each for each in index_states(run) if each.name == name]
    if not one.state.is_ready:
        found, do = f"{one.state.condition}: {one.state.reason}", f"run `kyomei index {run.folder} --dictionary {name}` first"
        raise RunError(f"an index of {name}", found, do)
    return Index(one.folder)


def _feature(index: Index, latent: int, examples: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> dict[str, Any]:
    known = index.feature(latent)
    assert known is not None  # the index is whole, and the latent is one of its width
    edges = known["histogram_edges"] or []
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    top, bottom = known["logits_top"], known["logits_bottom"]
    return {
        "feature_index": latent,
        **{name: [] for name in NOT_KNOWN},
        "neg_str": [each["token"] for each in bottom],
        "neg_values": _rounded(each["value"] for each in bottom),
        "pos_str": [each["token"] for each in top],
        "pos_values": _rounded(each["value"] for each in top),
        "frac_nonzero": known["frequency"],
        "freq_hist_data_bar_values": _rounded(centres),
        "freq_hist_data_bar_heights": known["histogram"] or [],
        **shared,
        "activations": list(_activations(known, examples)),
    }


def _activations(known: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Examples in the order of the index. An interval reaches from the weakest to the strongest sample of its tenth."""
    tenths: dict[int, list[float]] = {}
    for example in examples:
        tenths.setdefault(example["decile"], []).append(example["activation"])
    for example in examples:
        if example["kind"] == "top":
            bounds = {"bin_min": -1, "bin_max": round(known["max_activation"], DIGITS), "bin_contains": -1}
        else:
            low, high = _rounded((min(tenths[example["decile"]]), max(tenths[example["decile"]])))
            bounds = {"bin_min": low, "bin_max": high, "bin_contains": known["frequency"] / 10}
        yield {
            **bounds,
            "tokens": example["tokens"],
            # Rows that the harvest left out have no activation; the layout asks for a number.
            "values": _rounded(value or 0.0 for value in example["activations"]),
            "qualifying_token_index": example["focus"],
        }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
