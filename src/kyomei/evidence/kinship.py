"""Latents that are several latents in another dictionary, or part of one: feature splitting seen from the activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import sparse

from kyomei.evidence.codes import firing_counts, total

MIN_INSIDE = 0.5
"""A part fires inside its whole in at least this share of its firings, and twice as often as chance would have it."""
MAX_PARTS = 8
MIN_MULTIPLE_CORRELATION = 0.7


@dataclass(frozen=True, eq=False)
class Kinship:
    """How well several latents together stand for one.

    Attributes:
        split: multiple correlation of each latent with the other dictionary's latents that fire inside it [width]; 0 with
            fewer than two of them.
        merged: the same for the latent of the other dictionary in which this one fires, with all of this dictionary's latents
            inside that [width].
    """

    split: Float64[np.ndarray, " width"]
    merged: Float64[np.ndarray, " width"]

    @property
    def is_split(self) -> Bool[np.ndarray, " width"]:
        """Two or more latents of the other dictionary together follow it."""
        return self.split >= MIN_MULTIPLE_CORRELATION

    @property
    def is_merged(self) -> Bool[np.ndarray, " width"]:
        """It and its siblings together follow one latent of the other dictionary."""
        return self.merged >= MIN_MULTIPLE_CORRELATION

    @classmethod
    def of(cls, a: sparse.csr_array, b: sparse.csr_array) -> Kinship:
        """Kinship of the latents of `a` with those of `b`.

        Args:
            a: code of the first dictionary [rows, width].
            b: code of the other on the same rows [rows, width'].
        """
        together = _pattern(a).T @ _pattern(b)
        wholes_in_a = _parts(together, firing_counts(a), firing_counts(b), a.shape[0])
        wholes_in_b = _parts(together.T, firing_counts(b), firing_counts(a), a.shape[0])
        split = _multiple_correlations(a, b, wholes_in_a)
        whole = _multiple_correlations(b, a, wholes_in_b)
        merged = np.zeros(a.shape[1])
        for latent, parts in wholes_in_b.items():
            np.maximum.at(merged, parts, whole[latent])
        return cls(split, merged)


def _pattern(code: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array((np.ones(code.nnz, dtype=np.float32), code.indices, code.indptr), shape=code.shape)


def _parts(
    together: sparse.csr_array, whole_counts: Int64[np.ndarray, " w"], part_counts: Int64[np.ndarray, " p"], num_rows: int
) -> dict[int, Int64[np.ndarray, " parts"]]:
    """For each whole (a row of `together`) the two or more latents that fire inside it, the most frequent ones first."""
    overlap = together.tocoo()
    inside = overlap.data / part_counts[overlap.col].clip(min=1)
    chance = whole_counts[overlap.row] / num_rows
    kept = (inside >= MIN_INSIDE) & (inside >= 2 * chance)
    row, col, data = overlap.row[kept], overlap.col[kept], overlap.data[kept]
    order = np.lexsort((col, -data, row))
    row, col = row[order], col[order]
    starts = np.searchsorted(row, np.arange(len(whole_counts) + 1))
    lists = {i: col[starts[i] : min(starts[i] + MAX_PARTS, starts[i + 1])] for i in np.unique(row).tolist()}
    return {i: np.asarray(parts, dtype=np.int64) for i, parts in lists.items() if len(parts) > 1}


def _multiple_correlations(
    a: sparse.csr_array, b: sparse.csr_array, parts: dict[int, Int64[np.ndarray, " parts"]]
) -> Float64[np.ndarray, " width"]:
    """Multiple correlation of latents of `a` with their parts in `b`: R² = cᵀ G⁻¹ c / variance, from centred products."""
    rows = a.shape[0]
    a_columns, b_columns = a.astype(np.float64).tocsc(), b.astype(np.float64).tocsc()
    mean_a, mean_b = total(a) / rows, total(b) / rows
    result = np.zeros(a.shape[1])
    for latent, chosen in parts.items():
        x, y = a_columns[:, [latent]], b_columns[:, chosen]
        gram = (y.T @ y).toarray() / rows - np.outer(mean_b[chosen], mean_b[chosen])
        cross = (y.T @ x).toarray().ravel() / rows - mean_b[chosen] * mean_a[latent]
        variance = float(x.power(2).sum()) / rows - mean_a[latent] ** 2
        if variance > 0:
            solved = np.linalg.lstsq(gram, cross, rcond=1e-10)[0]
            result[latent] = np.sqrt(np.clip(cross @ solved / variance, 0, 1))
    return result
