"""Makes an index: rows are encoded once, then latents are read in groups that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kyomei.atomic import appearing, make_folder, remove_temporaries, write_atomic
from kyomei.provenance import now
from kyomei.views.index.codes import CodeStore, Progress
from kyomei.views.index.columns import comparison_space, evidence_columns, figure_columns, relation_columns
from kyomei.views.index.examples import LatentFigures, Places, read_group
from kyomei.views.index.logits import logit_columns
from kyomei.views.index.schema import (
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    EXAMPLE_COLUMNS,
    EXAMPLES,
    FEATURE_COLUMNS,
    FEATURES,
    INDEX,
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
    subject, redacted = _redacted(subject)
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
    space = comparison_space(subject.sae, subject.rows)
    with watched("evidence"):
        columns = evidence_columns(subject, codes, space)
    columns |= figure_columns(figures, codes.counts() / codes.num_rows, subject)
    with watched("relations and map"):
        columns |= relation_columns(subject, codes, space)
    with watched("logits"):
        logits, note = logit_columns(subject.sae, subject.open_model)
    _write_features(columns | logits, folder / FEATURES)
    files = {name: file_facts(folder / name) for name in TABLES}
    found = {"space": "raw" if space is None else "whitened", "logits_note": note}
    _write_index(folder, subject, {"complete": True, "finished": now(), **found, "redaction": redacted, "files": files})
    codes.remove()


def _redacted(subject: Subject) -> tuple[Subject, dict[str, Any] | None]:
    """The subject with every text masked, and how often each kind of text was; none where nothing is masked."""
    redaction, certificate = subject.redaction, subject.certificate
    if redaction is None:
        return subject, None
    tokens, counts = redaction.tokens(subject.tokens)
    if certificate is not None:
        features = [
            {**feature, "tokens": [[redaction.mask(text)[0], share] for text, share in feature.get("tokens", ())]}
            for feature in certificate["features"]
        ]
        certificate = {**certificate, "features": features}
    found = {"count": counts.total(), "kinds": dict(counts), "patterns": len(redaction.patterns)}
    return replace(subject, tokens=tokens, certificate=certificate), found


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
    with appearing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer
