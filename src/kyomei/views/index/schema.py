"""The files of an index, column by column."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column or its meaning changes: an index of another version is made anew."""
INDEX, FEATURES, EXAMPLES, DOCUMENTS = "index.json", "features.parquet", "examples.parquet", "documents.parquet"
TABLES = (FEATURES, EXAMPLES, DOCUMENTS)
NOT_CERTIFIED = "not certified"


def _structs(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(fields.items())))


_INT, _REAL, _TEXT = pa.int32(), pa.float32(), pa.string()

FEATURE_COLUMNS = pa.schema(
    {
        "latent": _INT,
        "status": _TEXT,
        "origin": _TEXT,
        "certificate": _TEXT,
        "agreement": _REAL,
        "frequency": _REAL,
        "max_activation": _REAL,
        "mean_activation": _REAL,
        "explained": _REAL,
        "top_tokens": pa.list_(_TEXT),
        "token_text": _TEXT,
        "histogram": pa.list_(_INT),
        "histogram_edges": pa.list_(_REAL),
        "neighbours_decoder": _structs(latent=_INT, cosine=_REAL),
        "neighbours_coactivation": _structs(latent=_INT, value=_REAL),
        "parents": _structs(latent=_INT, given=_REAL),
        "children": _structs(latent=_INT, given=_REAL),
        "partners": _structs(replica=_TEXT, latent=_INT, encoder=_REAL, decoder=_REAL, correlation=_REAL),
        "logits_top": _structs(token=_TEXT, value=_REAL),
        "logits_bottom": _structs(token=_TEXT, value=_REAL),
        "x": _REAL,
        "y": _REAL,
    }
)
"""features.parquet: one row a latent, in order."""

EXAMPLE_COLUMNS = pa.schema(
    {
        "latent": _INT,
        "kind": _TEXT,
        "decile": pa.int8(),
        "rank": pa.int16(),
        "example": pa.int64(),
        "activation": _REAL,
        "document": _INT,
        "document_name": _TEXT,
        "window": _INT,
        "position": _INT,
        "start": _INT,
        "focus": pa.int16(),
        "tokens": pa.list_(_TEXT),
        "activations": pa.list_(_REAL),
    }
)
"""examples.parquet: sorted by latent, then kind ("top" first), decile (strongest first) and rank."""

DOCUMENT_COLUMNS = pa.schema({"document": _INT, "name": _TEXT, "text": pa.large_string()})
"""documents.parquet: one row a document that the rows are of; the text is null where it was not kept."""
