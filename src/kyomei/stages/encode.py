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

from kyomei.atomic import write_atomic
from kyomei.config import Recipe
from kyomei.dictionary.figures import usual_bound
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, RunError
from kyomei.runs import Run
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Encoded, Packer
from kyomei.stages.alone import source_of
from kyomei.stages.family import refuse_family
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import site_of
from kyomei.stages.index import opened


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
        name: such as "replicas-1"; none: the one that ships.

    Raises:
        RunError: there is no run, a family, or no such dictionary.
    """
    run = Run.open(folder)
    refuse_family(run)
    title, sae, certificate = opened(run, name)
    status = {} if certificate is None else {feature["index"]: feature["status"] for feature in certificate.features}
    return Encoding(title, sae, run.recipe, site_of(run), status)


def of_folder(folder: Path, said: dict[str, Any]) -> Encoding:
    """A dictionary without a run.

    Args:
        folder: of the dictionary.
        said: settings of the source by dotted key; what is not said is as the dictionary says of itself.

    Raises:
        RunError: neither says which model or site.
    """
    sae = load(folder)
    given = {**source_of(sae), **said}
    missing = [option for option, key in (("--model", "source.model"), ("--site", "source.sites")) if key not in given]
    if missing:
        found = f"a dictionary in {folder} that does not say, and no {', '.join(missing)}"
        raise RunError("the dictionary's model and site", found, f"add {' and '.join(missing)}")
    recipe = Recipe().with_values(given)
    return Encoding(folder.resolve().name, sae, recipe, recipe.source.sites[0], {})


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
    model.require_sites([encoding.site])
    source = encoding.recipe.source
    context = min(source.context, model.max_context or source.context)
    packer = Packer(model.tokenizer, context, source.force_bos)
    encoded = list(packer.encode([Document(f"text {number}", text) for number, text in enumerate(texts)]))
    if len(encoded) < len(texts) or not texts:
        raise DataError("some text", "blank text" if texts else "none", "give a few words, or pipe them in")
    place = {"dictionary": encoding.title, "model": model.name, "site": encoding.site, "side": source.side}
    return {**place, "texts": [_tokens(encoding, model, packer, each, top) for each in encoded]}


def _tokens(
    encoding: Encoding, model: LanguageModel, packer: Packer, encoded: Encoded, top: int | None
) -> list[dict[str, Any]]:
    sae, side = encoding.sae.to(model.device), encoding.recipe.source.side
    bound, special = usual_bound(sae), model.special_ids if encoding.recipe.source.drop_special else set()
    ends = [*encoded.starts[1:].tolist(), len(encoded.document.text)]
    begin = [] if packer.begin is None else [packer.begin]
    step = packer.context - len(begin)
    found = []
    for first in range(0, len(encoded.ids), step):
        ids = encoded.ids[first : first + step].tolist()
        rows = model.capture(torch.tensor([[*begin, *ids]]), [encoding.site], side)[encoding.site][0, len(begin) :].float()
        if rows.shape[1] != sae.dim:
            have = f"rows of dimension {rows.shape[1]} at {encoding.site}"
            raise DataError(f"rows of dimension {sae.dim}, as the dictionary takes", have, "name its own site: --site")
        kept = rows.norm(dim=1) <= bound
        code = torch.where(kept[:, None], sae.encode(rows), 0.0).cpu()
        for at, (token, row) in enumerate(zip(ids, code, strict=True), start=first):
            text = encoded.document.text[int(encoded.starts[at]) : ends[at]]
            found.append({"id": token, "token": text, **_features(encoding, row * (token not in special), top)})
    return found


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
