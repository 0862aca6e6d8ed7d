"""The columns of features.parquet, from the certificate, the rows, and the other latents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.certificate import weakest
from kyomei.evidence.codes import Coded, ExplainedSums, encode_rows
from kyomei.evidence.reproduction import match, rows_used, space_of
from kyomei.learning.spaces import Whitening
from kyomei.runs import plain
from kyomei.source.rows import Rows
from kyomei.views.index.codes import ROWS_AT_ONCE, CodeStore
from kyomei.views.index.examples import LatentFigures
from kyomei.views.index.layout import NEIGHBOURS as LAID_OUT
from kyomei.views.index.layout import layout
from kyomei.views.index.relations import NEIGHBOURS, Named, kin, nearest_directions
from kyomei.views.index.schema import NOT_CERTIFIED
from kyomei.views.index.subject import Subject

EXPLAINED_ROWS = 131_072
"""Rows, evenly spread, on which parts of the explained variance are measured where no certificate says them."""

Columns = dict[str, Any]


def evidence_columns(subject: Subject, codes: CodeStore, space: Whitening | None) -> Columns:
    """Status, origin and the numbers behind them: the certificate's, or what can be said without one.

    Args:
        subject: the dictionary.
        codes: of all rows.
        space: in which it is compared with others; none: there are too few rows to tell.
    """
    certificate = subject.certificate
    if certificate is None:
        nothing: Columns = dict.fromkeys(("origin", "certificate", "agreement"), [None] * subject.sae.width)
        measured = _shares(_explained(subject, codes))
        status = [NOT_CERTIFIED] * subject.sae.width
        return {"status": status, **nothing, "explained": measured, "partners": _partners_of(subject, space)}
    names, features = certificate["replicas"][1:], _features(subject)
    live = [feature if feature.get("status", "dead") != "dead" else None for feature in features]
    # Of a sample, parts of the whole dictionary are measured here.
    whole = certificate.get("sampled") is None
    explained = np.array([f["explained variance"] for f in features]) if whole else _explained(subject, codes)
    return {
        "status": [feature.get("status", NOT_CERTIFIED) for feature in features],
        "origin": [feature and feature["origin"]["kind"] for feature in live],
        "certificate": [json.dumps(plain(feature), ensure_ascii=False) if feature else None for feature in features],
        "agreement": [feature and weakest(feature) for feature in live],
        "explained": _shares(explained),
        "partners": [_certified(feature, names) if feature else [] for feature in live],
    }


def _features(subject: Subject) -> list[dict[str, Any]]:
    """What the certificate says of every latent; nothing of one that was not tested."""
    known = {feature["index"]: feature for feature in (subject.certificate or {"features": ()})["features"]}
    return [known.get(latent, {}) for latent in range(subject.sae.width)]


def _certified(feature: dict[str, Any], names: Sequence[str]) -> Named:
    """A latent's partner in each other replica, from the certificate's matching."""
    return _partner(names, *(feature[name] for name in ("partner", "encoder_mcs", "decoder_mcs", "correlation")))


def _partner(names: Sequence[str], *numbers: Sequence[Any]) -> Named:
    return [
        {"replica": name, "latent": latent, "encoder": encoder, "decoder": decoder, "correlation": correlation}
        for name, latent, encoder, decoder, correlation in zip(names, *numbers, strict=True)
    ]


def _partners_of(subject: Subject, space: Whitening | None) -> list[Named]:
    """Partners in the other replicas of a dictionary that no certificate is of."""
    sae, rows = subject.sae, subject.rows
    if space is None or not subject.others:
        return [[] for _ in range(sae.width)]
    index = rows_used(rows.num_rows)
    code = encode_rows(sae, rows, index)
    found = [match(sae, other, space, code, encode_rows(other, rows, index)) for other in subject.others.values()]
    columns = [[getattr(one, name) for one in found] for name in ("partner", "encoder", "decoder", "correlation")]
    alive = np.diff(code.tocsc().indptr) > 0
    names = list(subject.others)
    return [_partner(names, *([c[i] for c in column] for column in columns)) if alive[i] else [] for i in range(sae.width)]


def _explained(subject: Subject, codes: CodeStore) -> Float64[np.ndarray, " width"]:
    """Each latent's part of the explained variance, on rows evenly spread."""
    sae, rows = subject.sae, subject.rows
    index = np.linspace(0, rows.num_rows - 1, min(EXPLAINED_ROWS, rows.num_rows)).astype(np.int64)
    code, sums = codes.of_rows(index).tocsr(), ExplainedSums(sae)
    for first in range(0, len(index), ROWS_AT_ONCE):
        x, z = rows.read(index[first : first + ROWS_AT_ONCE]), code[first : first + ROWS_AT_ONCE]
        unit = torch.from_numpy(z @ sae.decoder.detach().float().numpy()) + sae.center.float()
        reconstruction = sae.row_scale(x).float() * unit if sae.unit_rows else unit
        sums.add(Coded(first, x, z, reconstruction, np.diff(z.indptr)))
    return sums.figures()


def _shares(parts: Float64[np.ndarray, " width"]) -> list[float | None]:
    parts = parts.clip(min=0)
    whole = float(parts.sum())
    return [float(part) / whole for part in parts] if np.isfinite(whole) and whole > 0 else [None] * len(parts)


def figure_columns(figures: Sequence[LatentFigures], frequency: Float64[np.ndarray, " width"], subject: Subject) -> Columns:
    """What the rows say of each latent by itself."""
    named = [[text for text, _ in feature.get("tokens", ())] for feature in _features(subject)]
    tokens = [dict.fromkeys([*f.top_tokens, *more]) for f, more in zip(figures, named, strict=True)]
    return {
        "frequency": frequency,
        "max_activation": [f.maximum for f in figures],
        "mean_activation": [f.mean for f in figures],
        "top_tokens": [f.top_tokens for f in figures],
        "token_text": ["\n".join(texts).lower() for texts in tokens],
        "histogram": [f.histogram for f in figures],
        "histogram_edges": [f.edges for f in figures],
    }


def relation_columns(subject: Subject, codes: CodeStore, space: Whitening | None) -> Columns:
    """What each latent has to do with the others of its dictionary, and its place on the map.

    Args:
        subject: the dictionary.
        codes: of all rows.
        space: in which directions are compared; none: as they are.
    """
    width = subject.sae.width
    live = np.flatnonzero(codes.counts() > 0)
    near = nearest_directions(_directions(subject.sae.decoder[torch.from_numpy(live)], space), live, max(NEIGHBOURS, LAID_OUT))
    decoder: list[Named] = [[] for _ in range(width)]
    for latent, others, cosines in zip(live.tolist(), near.latent.tolist(), near.cosine.tolist(), strict=True):
        pairs = list(zip(others, cosines, strict=True))[:NEIGHBOURS]
        decoder[latent] = [{"latent": other, "cosine": round(cosine, 4)} for other, cosine in pairs]
    found = kin(codes.of_rows(rows_used(codes.num_rows)))
    x, y = np.full((2, width), np.nan)
    x[live], y[live] = layout(near, live, subject.seed).T
    return {
        "neighbours_decoder": decoder,
        "neighbours_coactivation": found.together,
        "parents": found.parents,
        "children": found.children,
        "x": _or_none(x),
        "y": _or_none(y),
    }


def _directions(decoder: Tensor, space: Whitening | None) -> Float[Tensor, "live dim"]:
    rows = decoder.detach().cpu().float()
    return normalize(rows if space is None else rows @ space.forward, dim=1)


def _or_none(values: Float64[np.ndarray, " width"]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def comparison_space(sae: SparseAutoencoder, rows: Rows) -> Whitening | None:
    """The whitened space that a dictionary's directions are compared in; none where there are too few rows to tell."""
    try:
        return space_of([sae], rows)
    except DataError:
        return None
