"""Latents that are several latents in another dictionary, or part of one: feature splitting seen from the activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy import sparse

from kyomei.evidence.codes import columns_in_turn, columns_picked, firing_counts, joined, total
from kyomei.learning.mesh import Mesh
from kyomei.learning.spread import in_turn

MIN_INSIDE = 0.5
"""A part fires inside its whole in at least this share of its firings, and twice as often as chance would have it."""
MAX_PARTS = 8
PAIRS_AT_ONCE = 2**14
"""Pairs of a latent and a part of it that the ranks of a mesh send each other at a time."""
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
    def of(cls, a: sparse.csr_array, b: sparse.csr_array, mesh: Mesh | None = None) -> Kinship:
        """Kinship of the latents of `a` with those of `b`.

        Args:
            a: code of the first dictionary [rows, width]; of several ranks, its own latents' columns of it.
            b: code of the other on the same rows [rows, width'], likewise.
            mesh: the ranks; none: this process has all latents.
        """
        mesh = mesh or Mesh()
        in_a, in_b = _overlaps(a, b, mesh)
        widths = [sum(mesh.tell(code.shape[1])) for code in (a, b)]
        split, _ = _wholes(a, b, in_a, mesh)
        whole, wholes_in_b = _wholes(b, a, in_b, mesh)
        merged = np.zeros(widths[0])
        for latent, parts in wholes_in_b.items():
            np.maximum.at(merged, parts, whole[latent])
        return cls(joined(split, mesh), joined(merged[None], mesh).max(axis=0))


class _Overlaps(NamedTuple):
    """Latents that fire inside others.

    Attributes:
        whole: of one dictionary, by number among those of this rank.
        part: of the other dictionary, by number among all.
        together: rows in which both fire.
    """

    whole: Int64[np.ndarray, " pairs"]
    part: Int64[np.ndarray, " pairs"]
    together: Shaped[np.ndarray, " pairs"]


def _overlaps(a: sparse.csr_array, b: sparse.csr_array, mesh: Mesh) -> tuple[_Overlaps, _Overlaps]:
    """Latents of `b` inside this rank's of `a`, and latents of `a` inside this rank's of `b`."""
    counts, pattern, found = firing_counts(a), _pattern(a).T, []
    for first, columns in columns_in_turn(b, mesh):
        pairs = (pattern @ _pattern(columns)).tocoo()
        row, col, together = pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data
        at, size = (counts[row], a.shape[0]), np.diff(columns.indptr)[col]
        is_part, is_whole = _inside(together, size, at[0], at[1]), _inside(together, at[0], size, at[1])
        kept = is_part | is_whole
        found.append((row[kept], first + col[kept], together[kept], is_part[kept], is_whole[kept]))
    row, col, together, is_part, is_whole = (np.concatenate(values) for values in zip(*found, strict=True))
    lengths = np.array([mesh.tell(code.shape[1]) for code in (a, b)])
    first_a, first_b = lengths[:, : mesh.rank].sum(axis=1)
    ours = _Overlaps(row[is_part], col[is_part], together[is_part])
    # What is inside a latent of `b` is known where its parts are.
    theirs = torch.from_numpy(np.stack([col, first_a + row, together.astype(np.int64)], axis=1)[is_whole])
    end_b, every = first_b + b.shape[1], in_turn(theirs, mesh, PAIRS_AT_ONCE)
    own = [pairs[(pairs[:, 0] >= first_b) & (pairs[:, 0] < end_b)] for _, pairs in every]
    whole, part, both = torch.cat([theirs[:0], *own]).numpy().T
    return ours, _Overlaps(whole - first_b, part, both)


def _inside(together: np.ndarray, part: np.ndarray, whole: np.ndarray, num_rows: int) -> Bool[np.ndarray, " pairs"]:
    """Whether a latent of so many firings fires inside one of so many."""
    share = together / part.clip(min=1)
    inside: np.ndarray = (share >= MIN_INSIDE) & (share >= 2 * whole / num_rows)
    return inside


def _pattern(code: Any) -> Any:
    return type(code)((np.ones(code.nnz, dtype=np.float32), code.indices, code.indptr), shape=code.shape)


def _parts(overlaps: _Overlaps) -> dict[int, Int64[np.ndarray, " parts"]]:
    """For each whole the two or more latents that fire inside it, the most frequent ones first."""
    whole, part, together = overlaps
    order = np.lexsort((part, -together, whole))
    whole, part = whole[order], part[order]
    distinct, starts = np.unique(whole, return_index=True)
    ends = np.append(starts, len(whole))[1:] if len(starts) else starts
    places = zip(distinct.tolist(), starts.tolist(), ends.tolist(), strict=True)
    lists = {i: part[start : min(start + MAX_PARTS, end)] for i, start, end in places}
    return {i: parts for i, parts in lists.items() if len(parts) > 1}


def _wholes(
    a: sparse.csr_array, b: sparse.csr_array, overlaps: _Overlaps, mesh: Mesh
) -> tuple[Float64[np.ndarray, " own"], dict[int, Int64[np.ndarray, " parts"]]]:
    """Multiple correlations of this rank's latents of `a` with what fires inside them, and that by latent."""
    parts, result = _parts(overlaps), np.zeros(a.shape[1])
    groups = list(_groups(parts, max(b.shape[1], MAX_PARTS)))
    # All ranks take as many turns: in each the codes of all latents of `b` come by.
    for turn in range(max(mesh.tell(len(groups)))):
        group = groups[turn] if turn < len(groups) else []
        wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(parts[i] for i in group)]))
        columns = columns_picked(b, wanted, mesh)
        result += _multiple_correlations(a, columns, {i: np.searchsorted(wanted, parts[i]) for i in group})
    return result, parts


def _groups(parts: dict[int, Int64[np.ndarray, " parts"]], most: int) -> Iterator[list[int]]:
    """Wholes that have at most so many parts together."""
    group: list[int] = []
    held = 0
    for latent, own in parts.items():
        if group and held + len(own) > most:
            yield group
            group, held = [], 0
        group.append(latent)
        held += len(own)
    if group:
        yield group


def _multiple_correlations(
    a: sparse.csr_array, b: sparse.csc_array, parts: dict[int, Int64[np.ndarray, " parts"]]
) -> Float64[np.ndarray, " own"]:
    """Multiple correlation of latents of `a` with their parts in `b`: R² = cᵀ G⁻¹ c / variance, from centred products."""
    rows = a.shape[0]
    result = np.zeros(a.shape[1])
    if not parts:
        return result
    a_columns, b_columns = a.tocsc(), b.tocsc()
    mean_a, mean_b = total(a) / rows, total(b) / rows
    for latent, chosen in parts.items():
        x, y = a_columns[:, [latent]].astype(np.float64), b_columns[:, chosen].astype(np.float64)
        gram = (y.T @ y).toarray() / rows - np.outer(mean_b[chosen], mean_b[chosen])
        cross = (y.T @ x).toarray().ravel() / rows - mean_b[chosen] * mean_a[latent]
        variance = float(x.power(2).sum()) / rows - mean_a[latent] ** 2
        if variance > 0:
            solved = np.linalg.lstsq(gram, cross, rcond=1e-10)[0]
            result[latent] = np.sqrt(np.clip(cross @ solved / variance, 0, 1))
    return result
