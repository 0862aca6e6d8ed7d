"""What a dictionary does on one document, in a few sums; and many documents in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from scipy.sparse import csr_matrix
from torch import Tensor

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.codes import SCORES_PER_BLOCK

SMALL_RATE = 1e-3
"""ε of log(1 + r / ε), by which rates are seen on axes: rare features count there, too."""
_TINY = 1e-30
_COLUMNS = ("num_rows", "error", "squares", "starts", "latents", "fired", "peak", "total")


@dataclass(frozen=True, eq=False)
class DocumentFigures:
    """One document as one dictionary writes it.

    Attributes:
        num_rows: its rows, one a token.
        latents: those that are active on any of them, ascending [active].
        fired: rows on which each of them is active [active].
        peak: largest activation of each [active].
        total: sum of the activations of each over the rows [active].
        error: Σ‖x − x̂‖² over the rows.
        squares: Σ‖x − center‖² over the rows, about the dictionary's own center.
    """

    num_rows: int
    latents: Int32[np.ndarray, " active"]
    fired: Int32[np.ndarray, " active"]
    peak: Float32[np.ndarray, " active"]
    total: Float32[np.ndarray, " active"]
    error: float
    squares: float

    @property
    def rates(self) -> Float64[np.ndarray, " active"]:
        """Share of the rows on which each active latent fires."""
        return self.fired / float(self.num_rows)

    @property
    def log_rates(self) -> Float64[np.ndarray, " active"]:
        """log(1 + r / ε) of the rates; of a silent latent it is 0."""
        found: np.ndarray = np.log1p(self.rates / SMALL_RATE)
        return found

    @property
    def unexplained(self) -> float:
        """Share of the squares that the reconstruction leaves, error / squares."""
        return self.error / max(self.squares, _TINY)

    def pooled(self, latents: Int64[np.ndarray, " asked"], pooling: str) -> Float64[np.ndarray, " asked"]:
        """Largest ("max") or mean ("mean") activation of some latents over the document; 0 for silent ones."""
        values = self.peak if pooling == "max" else self.total / np.float32(self.num_rows)
        at = np.searchsorted(self.latents, latents)
        inside = at < len(self.latents)
        found = np.zeros(len(latents))
        hit = inside.copy()
        hit[inside] = self.latents[at[inside]] == np.asarray(latents)[inside]
        found[hit] = values[at[hit]]
        return found


@final
class DocumentSums:
    """The figures of a document, a few rows at a time: memory does not grow with its length.

    Args:
        sae: the dictionary.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self._fired = np.zeros(sae.width, dtype=np.int64)
        self._peak = np.zeros(sae.width, dtype=np.float32)
        self._total = np.zeros(sae.width)
        self._error, self._squares, self.num_rows = 0.0, 0.0, 0

    @torch.no_grad()
    def add(self, x: Float32[Tensor, "rows dim"]) -> None:
        """Count some rows in.

        Raises:
            DataError: they are of another dimension than the dictionary's, or not finite.
        """
        if x.ndim != 2 or x.shape[1] != self._sae.dim:
            found = f"rows of shape {list(x.shape)}"
            raise DataError(f"rows of dimension {self._sae.dim}, as the dictionary takes", found, "give rows of its own site")
        if not bool(torch.isfinite(x).all()):
            raise DataError("finite activations", "NaN or infinity in a document", "run the model in float32 or bfloat16")
        step = max(1, SCORES_PER_BLOCK // self._sae.width)
        for first in range(0, len(x), step):
            self._add(x[first : first + step].to(self._sae.encoder))

    def _add(self, x: Tensor) -> None:
        code = self._sae.encode(x)
        self._error += float((x - self._sae.decode(code, x)).double().square().sum())
        self._squares += float((x - self._sae.row_scale(x) * self._sae.center).double().square().sum())
        self._fired += (code != 0).sum(dim=0).cpu().numpy()
        self._peak = np.maximum(self._peak, code.amax(dim=0).float().cpu().numpy())
        self._total += code.sum(dim=0, dtype=torch.float64).cpu().numpy()
        self.num_rows += len(x)

    def figures(self) -> DocumentFigures | None:
        """Of all rows so far; none where there are none."""
        if not self.num_rows:
            return None
        latents = np.flatnonzero(self._fired).astype(np.int32)
        fired, peak = self._fired[latents].astype(np.int32), self._peak[latents]
        total = self._total[latents].astype(np.float32)
        return DocumentFigures(self.num_rows, latents, fired, peak, total, self._error, self._squares)


@dataclass(frozen=True, eq=False)
class DocumentTable:
    """The figures of many documents, one after the other.

    Attributes:
        width: of the dictionary.
        num_rows, error, squares: of each document [documents].
        starts: where its active latents begin and end [documents + 1].
        latents, fired, peak, total: of all documents [active].
    """

    width: int
    num_rows: Int64[np.ndarray, " documents"]
    error: Float64[np.ndarray, " documents"]
    squares: Float64[np.ndarray, " documents"]
    starts: Int64[np.ndarray, " documents+1"]
    latents: Int32[np.ndarray, " active"]
    fired: Int32[np.ndarray, " active"]
    peak: Float32[np.ndarray, " active"]
    total: Float32[np.ndarray, " active"]

    @classmethod
    def of(cls, documents: Iterable[DocumentFigures], width: int) -> DocumentTable:
        """A table of some documents."""
        held = list(documents)
        starts = np.cumsum([0, *(len(each.latents) for each in held)], dtype=np.int64)

        def joined(name: str, dtype: type[np.generic]) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype=dtype), *(getattr(each, name) for each in held)]).astype(dtype)

        return cls(
            width,
            np.array([each.num_rows for each in held], dtype=np.int64),
            np.array([each.error for each in held], dtype=np.float64),
            np.array([each.squares for each in held], dtype=np.float64),
            starts,
            joined("latents", np.int32),
            joined("fired", np.int32),
            joined("peak", np.float32),
            joined("total", np.float32),
        )

    def __len__(self) -> int:
        return len(self.num_rows)

    def __getitem__(self, at: int) -> DocumentFigures:
        own = slice(int(self.starts[at]), int(self.starts[at + 1]))
        sparse = (self.latents[own], self.fired[own], self.peak[own], self.total[own])
        return DocumentFigures(int(self.num_rows[at]), *sparse, float(self.error[at]), float(self.squares[at]))

    def __iter__(self) -> Iterator[DocumentFigures]:
        return (self[at] for at in range(len(self)))

    @property
    def rates(self) -> Float64[np.ndarray, " width"]:
        """Share of all rows on which each latent fires."""
        fired = np.bincount(self.latents, self.fired, minlength=self.width)
        found: np.ndarray = fired / max(1, int(self.num_rows.sum()))
        return found

    @property
    def log_rates(self) -> csr_matrix:
        """log(1 + r / ε) of every document's rates, sparse [documents, width]."""
        seen = np.log1p(self.fired / np.repeat(self.num_rows, np.diff(self.starts)) / SMALL_RATE)
        return csr_matrix((seen, self.latents, self.starts), shape=(len(self), self.width))

    def arrays(self) -> dict[str, np.ndarray]:
        """Its columns, as `of_arrays` takes them."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], width: int, prefix: str = "") -> DocumentTable:
        """A table from its columns, whose names begin with `prefix`."""
        return cls(width, *(arrays[prefix + name] for name in _COLUMNS))
