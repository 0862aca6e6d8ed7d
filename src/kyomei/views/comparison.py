"""Two dictionaries of one site, latent by latent: what both have, what the other has in pieces, what only one has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.codes import encode_rows, firing_counts
from kyomei.evidence.kinship import Kinship
from kyomei.evidence.reproduction import MIN_CORRELATION, MIN_COSINE, Match, match, space_of
from kyomei.source.rows import Rows

KINDS = ("shared", "split", "merged", "only")
ROWS = 20_000
"""Rows, evenly spread, on which activations are compared."""


def compare(a: SparseAutoencoder, b: SparseAutoencoder, rows: Rows) -> dict[str, Any]:
    """Every live latent of one dictionary in another.

    A latent is shared if one of the other's has its direction, by encoder and by decoder in whitened space, and follows its
    activations, each above 0.7; no null is asked, so that this certifies nothing. Split and merged are as certificates have it.

    Args:
        a, b: dictionaries of the same site; they may differ in width.
        rows: of that site.

    Returns:
        "rows": "latent", "kind" and the nearest of the other's as "partners" of "latent", "cosine" (the smaller of both) and
        "correlation"; "counts" by kind; "dead" latents, which are left out.

    Raises:
        DataError: the dictionaries are of another dimension than the rows.
    """
    if not a.dim == b.dim == rows.dim:
        dims = f"dictionaries of dimension {a.dim} and {b.dim} and rows of {rows.dim}"
        raise DataError("dictionaries of one site", dims, "compare dictionaries of the same site")
    index = np.linspace(0, rows.num_rows - 1, min(ROWS, rows.num_rows)).astype(np.int64)
    code_a, code_b = (encode_rows(sae, rows, index) for sae in (a, b))
    found, kinship = match(a, b, space_of((a, b), rows), code_a, code_b), Kinship.of(code_a, code_b)
    shared = (found.encoder >= MIN_COSINE) & (found.decoder >= MIN_COSINE) & (found.correlation >= MIN_CORRELATION)
    kinds = np.select([shared, kinship.is_split, kinship.is_merged], KINDS[:3], KINDS[3])
    live = np.flatnonzero(firing_counts(code_a) > 0)
    rows_made = [_row(int(latent), str(kinds[latent]), found) for latent in live]
    order = {kind: number for number, kind in enumerate(KINDS)}
    rows_made.sort(key=lambda row: (order[row["kind"]], -row["partners"][0]["cosine"], row["latent"]))
    counts = Counter(row["kind"] for row in rows_made)
    return {"rows": rows_made, "counts": {kind: counts[kind] for kind in KINDS}, "dead": a.width - len(live)}


def _row(latent: int, kind: str, found: Match) -> dict[str, Any]:
    cosine, correlation = float(found.joint[latent]), float(found.correlation[latent])
    partner = {"latent": int(found.partner[latent]), "cosine": cosine, "correlation": correlation}
    return {"latent": latent, "kind": kind, "partners": [partner]}
