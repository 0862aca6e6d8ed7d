"""Makes an index: rows are encoded once, then latents are read in groups that fit into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.nn.functional import normalize

from kyomei.atomic import make_folder, refusals_named, remove, remove_temporaries, sync_folder, write_atomic
from kyomei.evidence.certificate import weakest
from kyomei.evidence.reproduction import rows_used
from kyomei.learning.spaces import Whitening
from kyomei.provenance import now
from kyomei.runs import plain
from kyomei.views.index.codes import CodeStore, Progress
from kyomei.views.index.examples import LatentFigures, Places, read_group
from kyomei.views.index.relations import NEIGHBOURS, Named, kin, nearest_directions
from kyomei.views.index.schema import (
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    EXAMPLE_COLUMNS,
    EXAMPLES,
    FEATURE_COLUMNS,
    FEATURES,
    INDEX,
    NOT_CERTIFIED,
    SCHEMA_VERSION,
    TABLES,
)
from kyomei.views.index.state import as_json, file_facts
from kyomei.views.index.subject import Subject

WORK = "work"
"""Folder of what a build keeps until it has ended."""
DOCUMENTS_AT_ONCE = 1000

Watched = Callable[[str], AbstractContextManager[Progress]]
"""A step's name to what shows its progress."""


def build(subject: Subject, folder: Path, watched: Watched | None = None) -> None:
    """Make the index of a dictionary; a build that was killed goes on with the rows that it had encoded.

    Args:
        subject: what it is made from.
        folder: where it goes: nothing in it counts until index.json says that it is complete.
        watched: shows progress.

    Raises:
        RunError: the disk is full.
        DataError: rows, tokens and dictionary do not fit together.
    """
    watched = watched or (lambda _: nullcontext(lambda done, total: None))
    make_folder(folder)
    remove_temporaries(folder)
    _write_index(folder, subject, {"complete": False, "started": now()})
    for name in TABLES:
        (folder / name).unlink(missing_ok=True)
    _write_documents(subject, folder / DOCUMENTS)
    codes = CodeStore(folder / WORK, subject.sae, subject.rows, subject.made_from)
    with watched("encode") as progress:
        codes.fill(progress)
    places = Places(subject.tokens, subject.rows.row_tokens())
    with watched("examples") as progress:
        figures = _write_examples(subject, codes, places, folder / EXAMPLES, progress)
    columns = {**_certificate_columns(subject), **_figure_columns(figures, codes.counts(), subject)}
    with watched("relations"):
        columns |= _relation_columns(subject, codes)
    _write_features(columns, folder / FEATURES)
    files = {name: file_facts(folder / name) for name in TABLES}
    _write_index(folder, subject, {"complete": True, "finished": now(), "files": files})
    codes.remove()


def _write_index(folder: Path, subject: Subject, progress: dict[str, Any]) -> None:
    """index.json: what the index is of, what it was made from, and how far it is."""
    certificate = subject.certificate
    known = None if certificate is None else {k: v for k, v in certificate.items() if k not in ("features", "data")}
    facts = {
        "schema_version": SCHEMA_VERSION,
        "name": subject.name,
        **subject.facts,
        "width": subject.sae.width,
        "dim": subject.sae.dim,
        "rows": subject.rows.num_rows,
        "tokens": subject.tokens.num_tokens,
        "documents": len(subject.tokens.documents),
        "has_text": subject.tokens.has_text,
        "seed": subject.seed,
        "certificate_state": subject.certificate_state,
        "certificate": known,
        "made_from": dict(subject.made_from),
        **progress,
    }
    write_atomic(folder / INDEX, as_json(facts))


def _write_documents(subject: Subject, path: Path) -> None:
    documents, has_text = subject.tokens.documents, subject.tokens.has_text
    with _parquet(path, DOCUMENT_COLUMNS) as writer:
        for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
            part = documents[first : first + DOCUMENTS_AT_ONCE]
            columns = {
                "document": range(first, first + len(part)),
                "name": [document.name for document in part],
                "text": [document.text if has_text else None for document in part],
            }
            writer.write_table(pa.table(columns, schema=DOCUMENT_COLUMNS))


def _write_examples(subject: Subject, codes: CodeStore, places: Places, path: Path, progress: Progress) -> list[LatentFigures]:
    """Write the examples of all latents, in order; returns the figures of each."""
    figures: list[LatentFigures] = []
    with _parquet(path, EXAMPLE_COLUMNS) as writer:
        for first, code in codes.groups():
            found, table = read_group(first, code, places, subject.seed)
            figures += found
            # Small row groups: a query for one latent reads only the group that it is in.
            writer.write_table(table, row_group_size=8192)
            progress(len(figures), codes.width)
    return figures


def _certificate_columns(subject: Subject) -> dict[str, Any]:
    """Status, origin and numbers of every latent as the certificate has them."""
    width, certificate = subject.sae.width, subject.certificate
    if certificate is None:
        empty: dict[str, Any] = dict.fromkeys(("origin", "certificate", "agreement", "explained"), [None] * width)
        return {"status": [NOT_CERTIFIED] * width, **empty, "partners": [[] for _ in range(width)]}
    features, names = certificate["features"], certificate["replicas"][1:]
    whole = sum(max(0.0, feature["explained variance"]) for feature in features)
    return {
        "status": [feature["status"] for feature in features],
        "origin": [feature["origin"]["kind"] if feature["status"] != "dead" else None for feature in features],
        "certificate": [json.dumps(plain(feature), ensure_ascii=False) for feature in features],
        "agreement": [weakest(feature) if feature["status"] != "dead" else None for feature in features],
        "explained": [feature["explained variance"] / whole if whole else None for feature in features],
        "partners": [_partners(feature, names) for feature in features],
    }


def _partners(feature: dict[str, Any], names: list[str]) -> Named:
    """A latent's partner in each other replica, from the certificate's matching; a dead one has none."""
    if feature["status"] == "dead":
        return []
    numbers = (feature[name] for name in ("partner", "encoder_mcs", "decoder_mcs", "correlation"))
    return [
        {"replica": name, "latent": latent, "encoder": encoder, "decoder": decoder, "correlation": correlation}
        for name, latent, encoder, decoder, correlation in zip(names, *numbers, strict=True)
    ]


def _figure_columns(figures: list[LatentFigures], counts: np.ndarray, subject: Subject) -> dict[str, Any]:
    features = subject.certificate["features"] if subject.certificate is not None else [{} for _ in figures]
    named = [[text for text, _ in feature.get("tokens", ())] for feature in features]
    return {
        "frequency": counts / subject.rows.num_rows,
        "max_activation": [f.maximum for f in figures],
        "mean_activation": [f.mean for f in figures],
        "top_tokens": [f.top_tokens for f in figures],
        "token_text": [
            "\n".join(dict.fromkeys([*f.top_tokens, *more])).lower() for f, more in zip(figures, named, strict=True)
        ],
        "histogram": [f.histogram for f in figures],
        "histogram_edges": [f.edges for f in figures],
    }


def _relation_columns(subject: Subject, codes: CodeStore) -> dict[str, Any]:
    width = subject.sae.width
    live = np.flatnonzero(codes.counts() > 0)
    metric = Whitening.fit(subject.rows).forward
    directions = normalize(subject.sae.decoder[live].detach().cpu().float() @ metric, dim=1)
    near = nearest_directions(directions, live, NEIGHBOURS)
    decoder: list[Named] = [[] for _ in range(width)]
    for latent, others, cosines in zip(live.tolist(), near.latent.tolist(), near.cosine.tolist(), strict=True):
        pairs = zip(others, cosines, strict=True)
        decoder[latent] = [{"latent": other, "cosine": round(cosine, 4)} for other, cosine in pairs]
    found = kin(codes.pattern(rows_used(codes.num_rows)))
    empty: list[Named] = [[] for _ in range(width)]
    return {
        "neighbours_decoder": decoder,
        "neighbours_coactivation": found.together,
        "parents": found.parents,
        "children": found.children,
        "logits_top": empty,
        "logits_bottom": empty,
        "x": [None] * width,
        "y": [None] * width,
    }


def _write_features(columns: dict[str, Any], path: Path) -> None:
    width = len(columns["status"])
    arrays = [pa.array(np.arange(width)).cast(pa.int32())]
    arrays += [_column(columns[field.name], field.type) for field in FEATURE_COLUMNS if field.name != "latent"]
    with _parquet(path, FEATURE_COLUMNS) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=FEATURE_COLUMNS), row_group_size=8192)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array(values).cast(kind) if isinstance(values, np.ndarray) else pa.array(values, kind)


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals_named(path):
        try:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                yield writer
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            remove(temporary)
            raise
        sync_folder(path.parent)
