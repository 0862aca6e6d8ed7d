"""Least squares of rows by sparse codes: what descent needs to know of them, on one process or on many.

Narrow dictionaries are fitted by the Gram matrix of their codes, which is width × width: of several ranks each has the rows of
its own latents. Wide ones are fitted by the codes themselves: a rank has those of its own latents, in every step all of them
add up what their latents reconstruct, and no pair of latents is held. Both give the same gradients, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from kyomei.dictionary.kernels import Active, csr_matmul
from kyomei.learning.mesh import Mesh
from kyomei.learning.spread import in_turn

DENSE_GRAM = 0.05
"""Share of pairs of latents that are active together from which their Gram matrix is kept whole."""
RIDGE = 1e-4
GRAM_ADVANTAGE = 20.0
"""A step by the Gram matrix costs a latent so many times less for each number than one by the codes does."""
BLOCK_ROWS = 4096
"""Rows whose reconstructions the ranks add up at a time."""
LATENTS_AT_ONCE = 1024
"""Latents whose decoders the ranks send each other at a time."""
Blocks = Iterable[tuple[Tensor | sparse.csr_array, Float[Tensor, "rows dim"]]]
"""Sparse CSR codes [rows, own] of this rank's latents and centred rows [rows, dim]; all ranks have the same rows."""


class LeastSquares(Protocol):
    """E‖x − z D‖² / 2 and a small ridge, as a function of the decoder D; of several ranks, of this one's rows of it."""

    @property
    def bounds(self) -> Float[Tensor, " width"]:
        """Row sums of the Gram matrix E[z zᵀ], which no curvature exceeds."""

    def descent(self, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
        """The negative gradient."""


def to_scipy(code: Tensor | sparse.csr_array) -> sparse.csr_array:
    """A sparse CSR tensor as SciPy's."""
    if isinstance(code, sparse.csr_array):
        return code
    arrays = (t.detach().cpu().numpy() for t in (code.values(), code.col_indices(), code.crow_indices()))
    return sparse.csr_array(tuple(arrays), shape=tuple(code.shape))


@dataclass(frozen=True, eq=False)
class CodeMoments:
    """Rows and codes as means over rows.

    Attributes:
        gram: E[z zᵀ], sparse [own, width].
        products: E[z xᵀ] [own, dim].
        first: which latent the first of this rank's is.
        mesh: the ranks that hold the other latents.
    """

    gram: sparse.csr_array
    products: Float[Tensor, "own dim"]
    first: int = 0
    mesh: Mesh = field(default_factory=Mesh)

    @classmethod
    def of(cls, blocks: Blocks, mesh: Mesh | None = None) -> CodeMoments:
        """Moments of blocks; none: this process has all latents."""
        mesh = mesh or Mesh()
        gram, products, count, first, width = None, None, 0, 0, 0
        for code, x in blocks:
            z = to_scipy(code)
            if gram is None:
                parts = mesh.tell(z.shape[1])
                first, width = sum(parts[: mesh.rank]), sum(parts)
            everybody = z if mesh.size == 1 else _everybodys(z, first, width, mesh)
            own, with_x = (z.T @ everybody).tocsr(), torch.from_numpy(z.T @ x.cpu().numpy())
            gram, products = (own, with_x) if gram is None or products is None else (gram + own, products + with_x)
            count += len(x)
        if gram is None or products is None:
            raise ValueError("no rows")
        return cls(gram / count, products / count, first, mesh)

    @cached_property
    def _ridged(self) -> sparse.csr_array:
        diagonal, place = self.gram.diagonal(self.first)[: self.gram.shape[0]], self.first
        ridge = sparse.diags_array([RIDGE * diagonal], offsets=[place], shape=self.gram.shape, format="csr")
        return (self.gram + ridge).astype(np.float32).tocsr()

    @cached_property
    def _by_column(self) -> sparse.csc_array:
        return self._ridged.tocsc()

    @cached_property
    def _dense(self) -> Float[Tensor, "own width"] | None:
        # Frequent latents meet in most pairs: their Gram matrix is sparse no more.
        is_full = self._ridged.nnz > DENSE_GRAM * np.prod(self._ridged.shape)
        return torch.from_numpy(self._ridged.toarray()) if is_full else None

    @property
    def bounds(self) -> Float[Tensor, " own"]:
        return torch.from_numpy(np.asarray(abs(self._ridged).sum(axis=1)).ravel())

    def descent(self, decoder: Float[Tensor, "own dim"]) -> Float[Tensor, "own dim"]:
        if self.mesh.size == 1:
            dense = self._dense
            product = torch.from_numpy(self._ridged @ decoder.numpy()) if dense is None else dense @ decoder
            return torch.sub(self.products.to(decoder), product, out=product)
        left = self.products.to(decoder, copy=True)
        for first, rows in in_turn(decoder, self.mesh, LATENTS_AT_ONCE):
            pairs = slice(first, first + len(rows))
            if self._dense is not None:
                left -= self._dense[:, pairs] @ rows
            else:
                left -= torch.from_numpy(self._by_column[:, pairs] @ rows.numpy())
        return left


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
    def of(cls, blocks: Blocks, mesh: Mesh) -> SharedCodes:
        """The codes of blocks."""
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
        left = explained.div_(-self._count).add_(self.products)
        left -= self.ridge[:, None] * decoder
        return left


class _Block(NamedTuple):
    """Codes of some rows, by latent and by row."""

    active: Active
    by_latent: Float[Tensor, " active"]
    by_row: Float[Tensor, " active"]

    @classmethod
    def of(cls, code: Tensor) -> _Block:
        rows, width = code.shape
        row = torch.repeat_interleave(torch.arange(rows, device=code.device), code.crow_indices().diff())
        order = code.col_indices().argsort(stable=True)
        active = Active(code.col_indices()[order], row[order], rows, width)
        return cls(active, code.values()[order], code.values())

    def decoded(self, decoder: Tensor) -> Tensor:
        """z D [rows, dim]."""
        out = decoder.new_zeros(self.active.num_rows, decoder.shape[1])
        return csr_matmul(self.active.row_starts, self.active.latent32_by_row, self.by_row, decoder, out)

    def gathered(self, x: Float[Tensor, "rows dim"], out: Float[Tensor, "width dim"]) -> Tensor:
        """out += zᵀ x; returns out."""
        return csr_matmul(self.active.latent_starts, self.active.row32, self.by_latent, x, out)


@dataclass(frozen=True, eq=False)
class NearCodes:
    """Codes on a GPU, where gathering rows costs less than pairs of latents do at any width.

    Attributes:
        blocks: of all rows.
        products: E[z xᵀ] [width, dim].
        ridge: [width].
    """

    blocks: list[_Block]
    products: Float[Tensor, "width dim"]
    ridge: Float[Tensor, " width"]

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Float[Tensor, "rows dim"]]]) -> NearCodes:
        """The codes of blocks on one device."""
        held: list[_Block] = []
        products, squares = None, None
        for code, x in blocks:
            block = _Block.of(code)
            if products is None or squares is None:
                products, squares = x.new_zeros(code.shape[1], x.shape[1]), x.new_zeros(code.shape[1])
            block.gathered(x, products)
            squares += block.active.sums(block.by_latent.square())
            held.append(block)
        if products is None or squares is None:
            raise ValueError("no rows")
        count = sum(block.active.num_rows for block in held)
        return cls(held, products / count, RIDGE * squares / count)

    @property
    def _count(self) -> int:
        return sum(block.active.num_rows for block in self.blocks)

    @property
    def bounds(self) -> Float[Tensor, " width"]:
        total = self.ridge.new_zeros(len(self.ridge), 1)
        for active, by_latent, by_row in self.blocks:
            sizes = _Block(active, by_latent.abs(), by_row.abs())
            sizes.gathered(sizes.decoded(torch.ones_like(total)), total)
        return total[:, 0] / self._count + self.ridge

    def descent(self, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
        explained = torch.zeros_like(decoder)
        for block in self.blocks:
            block.gathered(block.decoded(decoder), explained)
        return self.products.to(decoder) - explained / self._count - self.ridge[:, None] * decoder


def least_squares(blocks: Blocks, num_rows: int, mesh: Mesh) -> LeastSquares:
    """What descent needs, in the cheaper of both ways; on one GPU by the codes.

    Args:
        blocks: of this rank's latents.
        num_rows: in all blocks.
        mesh: the ranks that share the latents.
    """
    each: Iterator[tuple[Tensor, Tensor]] = iter(blocks)
    code, x = next(each)
    if isinstance(code, Tensor) and code.device.type != "cpu" and mesh.size == 1:
        return NearCodes.of(chain([(code, x)], each))
    code = to_scipy(code)
    active, width = (int(count) for count in mesh.sum_over_all(torch.tensor([code.nnz, code.shape[1]])))
    entries = active / len(x) * num_rows / max(1, width)
    kind = CodeMoments if width <= GRAM_ADVANTAGE * entries else SharedCodes
    return kind.of(chain([(code, x)], each), mesh)


def _everybodys(z: sparse.csr_array, first: int, width: int, mesh: Mesh) -> sparse.csr_array:
    """The codes of all ranks, side by side."""
    own = z.tocoo()
    own_columns = torch.from_numpy(own.coords[1].astype(np.int64) + first)
    rows = mesh.joined(torch.from_numpy(own.coords[0].astype(np.int64))).numpy()
    columns, values = mesh.joined(own_columns).numpy(), mesh.joined(torch.from_numpy(own.data)).numpy()
    return sparse.coo_array((values, (rows, columns)), shape=(z.shape[0], width)).tocsr()
