"""How sharply each latent singles out some rows, and which rows those are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.evidence.codes import Autoencoder, Coded, coded_blocks, firing_counts, joined, total
from kyomei.learning.mesh import Mesh
from kyomei.source.rows import RowsLike, open_rows


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Per latent, over all rows, rows where it is silent included.

    Attributes:
        max_activation: largest activation, in the input's units [width].
        mean: mean activation [width].
        std: population standard deviation [width].
        frequency: share of rows with a non-zero activation [width].
        num_rows: rows seen.
    """

    max_activation: Float[Tensor, " width"]
    mean: Float[Tensor, " width"]
    std: Float[Tensor, " width"]
    frequency: Float[Tensor, " width"]
    num_rows: int

    @property
    def z_score(self) -> Float[Tensor, " width"]:
        """(max − mean) / std, 0 where the activation never changes (arXiv:2506.14002)."""
        return torch.where(self.std > 0, (self.max_activation - self.mean) / self.std.clamp_min(1e-300), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, one entry for each latent."""
        columns = {
            "max_activation": self.max_activation,
            "mean": self.mean,
            "std": self.std,
            "z_score": self.z_score,
            "frequency": self.frequency,
        }
        return {"num_rows": self.num_rows, **{name: values.tolist() for name, values in columns.items()}}


class SelectivitySums:
    """What selectivity is made of, block by block, with float64 sums."""

    def __init__(self, width: int, mesh: Mesh | None = None) -> None:
        self._mesh = mesh or Mesh()
        self._total, self._squares = np.zeros(width), np.zeros(width)
        self._fired, self._largest = np.zeros(width, dtype=np.int64), np.full(width, -np.inf)
        self._num_rows = 0

    def add(self, block: Coded) -> None:
        code = block.code.astype(np.float64)
        self._total += total(code)
        self._squares += total(code.power(2))
        self._fired += firing_counts(code)
        self._largest = np.maximum(self._largest, code.max(axis=0).toarray().ravel())
        self._num_rows += code.shape[0]

    def figures(self) -> Selectivity:
        """Of all blocks so far."""
        mean, squares = self._total / self._num_rows, self._squares / self._num_rows
        variance = squares - mean**2
        # Rounding alone leaves a variance of this order on a latent that never changes.
        std = np.sqrt(np.where(variance > 1e-12 * squares, variance, 0.0))
        figures = self._largest, mean, std, self._fired / self._num_rows
        largest, average, spread, frequency = (torch.from_numpy(joined(values, self._mesh)) for values in figures)
        return Selectivity(largest, average, spread, frequency, self._num_rows)


class StrongestRows:
    """The rows in which each latent is most active, strongest first; of equals, the earlier row.

    Attributes:
        row: numbers of the rows [width, count], −1 where a latent is positive in fewer.
        activation: of the latent there [width, count], 0 where there is no row.
    """

    def __init__(self, width: int, count: int) -> None:
        """Of so many latents, those of this rank; see `joined`."""
        self.row = np.full((width, count), -1, dtype=np.int64)
        self.activation = np.zeros((width, count), dtype=np.float32)

    def add(self, block: Coded) -> None:
        entries = block.code.tocoo()
        # Rows come in order, so one that only equals the weakest kept cannot enter: few candidates are left to sort.
        new = entries.data > self.activation[entries.col, -1]
        latent, row, value = entries.col[new], entries.row[new] + block.first, entries.data[new]
        _merge(self.row, self.activation, latent, row, value.astype(np.float32))

    def joined(self, mesh: Mesh) -> StrongestRows:
        """Those of all ranks' latents."""
        every = StrongestRows(0, 0)
        every.row, every.activation = joined(self.row, mesh), joined(self.activation, mesh)
        return every


def selectivity(sae: Autoencoder, rows: RowsLike) -> Selectivity:
    """Largest activation, mean, spread and frequency of every latent, in one pass with float64 sums.

    Args:
        sae: an autoencoder whose code is measured.
        rows: activations [rows, dim], or whatever holds them.
    """
    sums = SelectivitySums(sae.width)
    for (block,) in coded_blocks([sae], open_rows(rows)):
        sums.add(block)
    return sums.figures()


def _merge(best_row: np.ndarray, best: np.ndarray, latent: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
    """Let candidates enter the kept rows of their latents, in place."""
    touched = np.unique(latent)
    count = best.shape[1]
    latent = np.concatenate([np.repeat(touched, count), latent])
    row = np.concatenate([best_row[touched].ravel(), row])
    value = np.concatenate([best[touched].ravel(), value])
    order = np.lexsort((row, -value, latent))
    latent, row, value = latent[order], row[order], value[order]
    rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
    kept = rank < count
    best_row[latent[kept], rank[kept]], best[latent[kept], rank[kept]] = row[kept], value[kept]
