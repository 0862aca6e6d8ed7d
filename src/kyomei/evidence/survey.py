"""One pass over rows gives every figure of a set of dictionaries: each row is read once and encoded once by each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.codes import Coded, ExplainedSums, coded_blocks, mesh_of
from kyomei.evidence.fidelity import Fidelity, FidelitySums
from kyomei.evidence.selectivity import Selectivity, SelectivitySums, StrongestRows
from kyomei.learning.spread import Spread
from kyomei.source.rows import Rows

STRONGEST = 20
"""Rows kept for each latent: enough to choose a few from different documents."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What one dictionary does on rows.

    Attributes:
        fidelity: reconstruction and sparsity over all rows.
        selectivity: largest activation, mean, spread and frequency of every latent.
        strongest: the rows in which each latent is most active.
        code: of the rows asked for, float32 CSR [taken, width], in their order, on a mesh the columns of this rank's latents;
            none: none were asked for.
        explained: each latent's part of the explained variance [width]; none: it was not asked for.
    """

    fidelity: Fidelity
    selectivity: Selectivity
    strongest: StrongestRows
    code: sparse.csr_array | None = None
    explained: Float64[np.ndarray, " width"] | None = None


def survey(
    dictionaries: Sequence[SparseAutoencoder | Spread],
    rows: Rows,
    taken: Int64[np.ndarray, " taken"] | None = None,
    num_explained: int = 0,
) -> list[Survey]:
    """Every figure of each dictionary, in one pass with float64 sums; memory does not grow with the rows but for `taken`.

    Args:
        dictionaries: of one input space; of those that are spread over a mesh all ranks have to call.
        rows: activations [rows, dim].
        taken: ascending numbers of the rows whose codes are kept; none: no code is kept.
        num_explained: of so many dictionaries, from the first on, the latents' parts of the explained variance are taken.

    Raises:
        DataError: all rows are equal.
    """
    passes = [_Pass(sae, rows.dim, taken, number < num_explained) for number, sae in enumerate(dictionaries)]
    for blocks in coded_blocks(dictionaries, rows):
        for one, block in zip(passes, blocks, strict=True):
            one.add(block)
    return [one.result() for one in passes]


class _Pass:
    def __init__(self, sae: SparseAutoencoder | Spread, dim: int, taken: np.ndarray | None, explains: bool) -> None:
        self._mesh, own = mesh_of(sae), len(sae.encoder)
        self._fidelity, self._selectivity = FidelitySums(sae, dim), SelectivitySums(own, self._mesh)
        self._strongest = StrongestRows(own, STRONGEST)
        self._explained = ExplainedSums(sae) if explains else None
        self._taken = taken
        self._codes: list[sparse.csr_array] = []

    def add(self, block: Coded) -> None:
        for sums in (self._fidelity, self._selectivity, self._strongest, self._explained):
            if sums is not None:
                sums.add(block)
        if self._taken is not None:
            last = block.first + block.code.shape[0]
            begin, end = np.searchsorted(self._taken, (block.first, last))
            self._codes.append(block.code[self._taken[begin:end] - block.first].astype(np.float32))

    def result(self) -> Survey:
        return Survey(
            self._fidelity.figures(),
            self._selectivity.figures(),
            self._strongest.joined(self._mesh),
            None if self._taken is None else sparse.vstack(self._codes, format="csr"),
            None if self._explained is None else self._explained.figures(),
        )
