"""Least squares of rows by sparse codes: what descent needs to know of them, on one process or on many.

One process holds the Gram matrix of the codes, which is width × width. Of several each holds the codes of its own latents
instead, and in every step all of them add up what their latents reconstruct: a rank holds its share of the codes and of the
decoder, and no pair of latents. Both give the same gradients, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.learning.mesh import Mesh

DENSE_GRAM = 0.05
"""Share of pairs of latents that are active together from which their Gram matrix is kept whole."""
RIDGE = 1e-4


class LeastSquares(Protocol):
    """E‖x − z D‖² / 2 and a small ridge, as a function of the decoder D; of several ranks, of this one's rows of it."""

    @property
    def bounds(self) -> Float[Tensor, " width"]:
        """Row sums of the Gram matrix E[z zᵀ], which no curvature exceeds."""

    def descent(self, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
        """The negative gradient."""


def to_scipy(code: Tensor) -> sparse.csr_array:
    """A sparse CSR tensor as SciPy's."""
    arrays = (t.detach().cpu().numpy() for t in (code.values(), code.col_indices(), code.crow_indices()))
    return sparse.csr_array(tuple(arrays), shape=tuple(code.shape))


def own_codes(
    x: Float[Tensor, "rows dim"],
    encoder: Float[Tensor, "own dim"],
    decoder: Float[Tensor, "own dim"],
    threshold: Float[Tensor, " own"],
    centre: Float[Tensor, " dim"],
    activation: Activation,
) -> Float[Tensor, "rows own"]:
    """Sparse CSR codes of some latents, of which a rank may have none."""
    if not len(encoder):
        return torch.zeros(len(x), 0).to_sparse_csr()
    return SparseAutoencoder(encoder, decoder, threshold, centre, activation=activation).encode(x, sparse=True)


@dataclass(frozen=True, eq=False)
class CodeMoments:
    """Rows and codes as means over rows.

    Attributes:
        gram: E[z zᵀ], sparse [width, width].
        products: E[z xᵀ] [width, dim].
    """

    gram: sparse.csr_array
    products: Float[Tensor, "width dim"]

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Float[Tensor, "rows dim"]]]) -> CodeMoments:
        """Moments of blocks of (sparse CSR codes [rows, width], centred rows [rows, dim])."""
        gram, products, count = None, None, 0
        for code, x in blocks:
            z = to_scipy(code)
            own, with_x = (z.T @ z).tocsr(), torch.from_numpy(z.T @ x.cpu().numpy())
            gram, products = (own, with_x) if gram is None or products is None else (gram + own, products + with_x)
            count += len(x)
        if gram is None or products is None:
            raise ValueError("no rows")
        return cls(gram / count, products / count)

    @cached_property
    def _ridged(self) -> sparse.csr_array:
        ridge = sparse.diags_array(RIDGE * self.gram.diagonal(), format="csr")
        return (self.gram + ridge).astype(np.float32).tocsr()

    @cached_property
    def _dense(self) -> Float[Tensor, "width width"] | None:
        # Frequent latents meet in most pairs: their Gram matrix is sparse no more.
        is_full = self._ridged.nnz > DENSE_GRAM * np.prod(self._ridged.shape)
        return torch.from_numpy(self._ridged.toarray()) if is_full else None

    @property
    def bounds(self) -> Float[Tensor, " width"]:
        return torch.from_numpy(np.asarray(abs(self._ridged).sum(axis=1)).ravel())

    def descent(self, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
        dense = self._dense
        product = torch.from_numpy(self._ridged @ decoder.numpy()) if dense is None else dense @ decoder
        return self.products.to(decoder) - product


@dataclass(frozen=True, eq=False)
class SharedCodes:
    """Codes of this rank's latents, for all rows.

    Attributes:
        codes: [rows, own], sparse, in blocks of rows.
        products: E[z xᵀ] [own, dim].
        ridge: [own].
        mesh: the ranks that hold the other latents.
    """

    codes: list[sparse.csr_array]
    products: Float[Tensor, "own dim"]
    ridge: Float[Tensor, " own"]
    mesh: Mesh

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Float[Tensor, "rows dim"]]], mesh: Mesh) -> SharedCodes:
        """The same of blocks of (sparse CSR codes [rows, own], centred rows [rows, dim]); all ranks have the same rows."""
        codes, products, squares, count = [], None, None, 0
        for code, x in blocks:
            z = to_scipy(code)
            with_x, with_self = torch.from_numpy(z.T @ x.cpu().numpy()), torch.from_numpy(z.multiply(z).sum(axis=0))
            products, squares = (
                (with_x, with_self) if products is None or squares is None else (products + with_x, squares + with_self)
            )
            codes.append(z)
            count += len(x)
        if products is None or squares is None:
            raise ValueError("no rows")
        return cls(codes, products / count, RIDGE * squares / count, mesh)

    @property
    def _count(self) -> int:
        return sum(z.shape[0] for z in self.codes)

    @property
    def bounds(self) -> Float[Tensor, " own"]:
        total = torch.zeros(len(self.ridge))
        for z in self.codes:
            together = self.mesh.sum_over_all(torch.from_numpy(abs(z).sum(axis=1)))
            total += torch.from_numpy(abs(z).T @ together.numpy())
        return total / self._count + self.ridge

    def descent(self, decoder: Float[Tensor, "own dim"]) -> Float[Tensor, "own dim"]:
        explained = torch.zeros_like(decoder)
        for z in self.codes:
            together = self.mesh.sum_over_all(torch.from_numpy(z @ decoder.numpy()))
            explained += torch.from_numpy(z.T @ together.numpy())
        return self.products.to(decoder) - explained / self._count - self.ridge[:, None] * decoder


def least_squares(blocks: Iterable[tuple[Tensor, Float[Tensor, "rows dim"]]], mesh: Mesh) -> LeastSquares:
    """What descent needs of blocks of (sparse CSR codes of this rank's latents, centred rows)."""
    return CodeMoments.of(blocks) if mesh.size == 1 else SharedCodes.of(blocks, mesh)
