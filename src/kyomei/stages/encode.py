"""Features of any text, token by token: a dictionary of a run, or one without a run, at its site in the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.atomic import write_atomic
from kyomei.config import Recipe
from kyomei.dictionary.figures import usual_bound
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.certificate import Certificate
from kyomei.runs import Run
from kyomei.source.passages import Passage, Passages
from kyomei.source.text import Document, Encoded
from kyomei.stages.certify import certificate_of_files
from kyomei.stages.family import refuse_family
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import site_of
from kyomei.stages.index import dictionaries, opened
from kyomei.stages.place import recipe_for


@dataclass(frozen=True, eq=False)
class Encoding:
    """A dictionary and where its rows come from.

    Attributes:
        title: what it is called.
        sae: the dictionary.
        recipe: names the model, the side and the context.
        site: in the model.
        status: of every latent, by its number; empty without a certificate.
    """

    title: str
    sae: SparseAutoencoder
    recipe: Recipe
    site: str
    status: dict[int, str]


def of_run(folder: Path, name: str | None) -> Encoding:
    """A dictionary of a run.

    Args:
        folder: of the run.
        name: such as "replicas-1"; none: what the run is about.

    Raises:
        RunError: there is no run, a family, or no such dictionary.
    """
    run = Run.open(folder)
    refuse_family(run)
    title, sae, certificate = opened(run, name or next(iter(dictionaries(run)), None))
    return Encoding(title, sae, run.recipe, site_of(run), _statuses(certificate))


def of_folder(folder: Path, said: dict[str, Any]) -> Encoding:
    """A dictionary without a run.

    Args:
        folder: of the dictionary.
        said: settings of the source by dotted key; what is not said is as the dictionary says of itself.

    Raises:
        RunError: neither says which model or site.
        EvidenceError: the certificate beside it is of another dictionary.
    """
    sae = load(folder)
    recipe = recipe_for(sae, str(folder), said, needs_text=False)
    status = _statuses(certificate_of_files(folder, sae.width))
    return Encoding(folder.resolve().name, sae, recipe, recipe.source.sites[0], status)


def _statuses(certificate: Certificate | None) -> dict[int, str]:
    if certificate is None or not certificate.is_of_this_rule:
        return {}
    return {feature["index"]: feature["status"] for feature in certificate.features}


@torch.no_grad()
def encode(encoding: Encoding, texts: Sequence[str], top: int | None = None) -> dict[str, Any]:
    """Active features at every token of some texts.

    A text longer than the model's windows is read in windows one after the other, as a harvest would. Tokens that stand for no
    text and massive rows, on which no dictionary is trained, have no features.

    Args:
        encoding: the dictionary at its site.
        texts: each by itself.
        top: features of a token at most, strongest first; none: all.

    Returns:
        "dictionary", "model", "site", "side"; "texts": of each its tokens: "id", "token", "features" ("latent", "activation"
        and, where there is a certificate, "status"), and "left_out", how many more are active.

    Raises:
        DataError: a text is blank, or the dictionary is of another dimension than the site.
    """
    model = load_model(encoding.recipe)
    sae, source = encoding.sae.to(model.device), encoding.recipe.source
    passages = Passages(model, encoding.site, source, usual_bound(sae))
    found: list[list[dict[str, Any]]] = []
    for batch in passages.batches(Document(f"text {number}", text) for number, text in enumerate(texts)):
        tokens: list[dict[int, dict[str, Any]]] = [{} for _ in batch]
        for passage in passages.read(batch):
            tokens[passage.text].update(_tokens(encoding, sae, batch[passage.text], passage, top))
        found += [[each[at] for at in sorted(each)] for each in tokens]
    if len(found) < len(texts) or not texts:
        raise DataError("some text", "blank text" if texts else "none", "give a few words, or pipe them in")
    place = {"dictionary": encoding.title, "model": model.name, "site": encoding.site, "side": source.side}
    return {**place, "texts": found}


def _tokens(
    encoding: Encoding, sae: SparseAutoencoder, encoded: Encoded, passage: Passage, top: int | None
) -> dict[int, dict[str, Any]]:
    """The tokens of one window by their numbers in the text."""
    ends = [*encoded.starts[1:].tolist(), len(encoded.document.text)]
    code = code_of(sae, encoding.site, passage).cpu()
    found = {}
    for at, (token, row) in enumerate(zip(passage.ids.tolist(), code, strict=True), start=passage.first):
        text = encoded.document.text[int(encoded.starts[at]) : ends[at]]
        found[at] = {"id": token, "token": text, **_features(encoding, row, top)}
    return found


def code_of(sae: SparseAutoencoder, site: str, passage: Passage) -> Float[Tensor, "tokens width"]:
    """A dictionary's code of a window, zero at rows that a harvest would not keep.

    Raises:
        DataError: the dictionary is of another dimension than the site.
    """
    rows = passage.rows
    sae.require_dim(rows.shape[1], site)
    return torch.where(passage.kept[:, None], sae.encode(rows), 0.0)


def _features(encoding: Encoding, row: torch.Tensor, top: int | None) -> dict[str, Any]:
    latents = row.nonzero().flatten()
    order = latents[row[latents].argsort(descending=True, stable=True)]
    chosen = order[:top].tolist()
    features = [{"latent": i, "activation": float(row[i]), **_status(encoding, i)} for i in chosen]
    return {"features": features, "left_out": len(order) - len(chosen)}


def _status(encoding: Encoding, latent: int) -> dict[str, str]:
    return {"status": encoding.status[latent]} if latent in encoding.status else {}


def write_parquet(found: dict[str, Any], path: Path) -> int:
    """Write what `encode` found, a row for each active feature of each token.

    Columns: text, position (numbers from 0), id and token, latent, activation, status (null without a certificate).

    Returns:
        How many rows.
    """
    rows = [
        {"text": number, "position": position, "id": token["id"], "token": token["token"], "status": None, **feature}
        for number, tokens in enumerate(found["texts"])
        for position, token in enumerate(tokens)
        for feature in token["features"]
    ]
    types = {"text": pa.int32(), "position": pa.int32(), "id": pa.int32(), "token": pa.string(), "latent": pa.int32()}
    types |= {"activation": pa.float32(), "status": pa.string()}
    notes = {key: str(found[key]) for key in ("dictionary", "model", "site", "side")}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(types.items()), notes)), buffer)
    write_atomic(path, buffer.getvalue())
    return len(rows)
