"""Sparse codes of many rows at once, as SciPy matrices: what certificates and origins are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy import sparse
from torch import Tensor

from kyomei.dictionary.kernels import sampled_products, supported
from kyomei.dictionary.products import is_dense
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.least_squares import to_scipy
from kyomei.learning.mesh import Mesh
from kyomei.learning.spread import Spread
from kyomei.source.rows import Rows

SCORES_PER_BLOCK = 2**24
"""Entries of a dense code held at a time (64 MB in float32)."""
COLUMNS_AT_ONCE = 128
"""Latents whose codes the ranks of a mesh send each other at a time."""


class Codec(Protocol):
    """What can stand in for a site's output: decode(encode(x))."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class Autoencoder(Codec, Protocol):
    """A dictionary with a known number of latents."""

    @property
    def width(self) -> int: ...


def mesh_of(sae: Autoencoder) -> Mesh:
    """The ranks that share a dictionary's latents out."""
    return sae.mesh if isinstance(sae, Spread) else Mesh()


def encode_rows(sae: SparseAutoencoder | Spread, rows: Rows, index: Int64[np.ndarray, " taken"]) -> sparse.csr_array:
    """The code of chosen rows: float32 CSR [taken, width], of a rank its own latents' columns of it.

    Args:
        sae: the dictionary.
        rows: activations.
        index: row numbers, in the order in which they are wanted.
    """
    blocks = []
    for part in _parts(len(index)):
        x = rows.read(index[part])
        blocks.append(to_scipy(sae.encode(x) if isinstance(sae, Spread) else sae.encode(x, sparse=True)))
    return sparse.vstack(blocks, format="csr")


class Coded(NamedTuple):
    """Some rows as one dictionary writes them.

    Attributes:
        first: number of the first row.
        x: the rows [block, dim].
        code: of the rows, CSR [block, width]; of a rank its own latents' columns of it.
        reconstruction: x̂ [block, dim].
        active: latents active in each row, those of all ranks [block].
    """

    first: int
    x: Tensor
    code: sparse.csr_array
    reconstruction: Tensor
    active: Int64[np.ndarray, " block"]


def rows_per_block(width: int) -> int:
    """Rows to encode at a time so that their dense code stays small."""
    return max(1, min(8192, SCORES_PER_BLOCK // width))


def coded_blocks(dictionaries: Sequence[Autoencoder], rows: Rows) -> Iterator[list[Coded]]:
    """Every row once, in order: each block as every dictionary writes it."""
    first = 0
    for x in rows.blocks(rows_per_block(max(sae.width for sae in dictionaries))):
        yield [Coded(first, x, *_coded(sae, x)) for sae in dictionaries]
        first += len(x)


@torch.no_grad()
def _coded(sae: Autoencoder, x: Tensor) -> tuple[sparse.csr_array, Tensor, Int64[np.ndarray, " block"]]:
    if isinstance(sae, SparseAutoencoder | Spread):
        z = sae.encode(x) if isinstance(sae, Spread) else sae.encode(x, sparse=True)
        active = mesh_of(sae).sum_over_all(z.crow_indices().diff()).cpu().numpy()
        return to_scipy(z if z.dtype == torch.float64 else z.float()), sae.decode(z, x), active
    dense = sae.encode(x)
    code = sparse.csr_array(dense.cpu().numpy())
    return code, sae.decode(dense), np.diff(code.indptr).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Moments:
    """First two moments of the latents of two codes over the same rows.

    Attributes:
        a: code of the first dictionary [rows, width].
        b: code of the second [rows, width'].
    """

    a: sparse.csr_array
    b: sparse.csr_array

    def correlation(self, latents: Int64[np.ndarray, " n"], partners: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Pearson correlation of given latents of `a` with given ones of `b`; 0 where one never changes."""
        count = self.a.shape[0]
        a, b = self.a.tocsc()[:, latents].astype(np.float64), self.b.tocsc()[:, partners].astype(np.float64)
        mean_a, mean_b = total(a) / count, total(b) / count
        variance = (total(a.power(2)) / count - mean_a**2) * (total(b.power(2)) / count - mean_b**2)
        covariance = total(a.multiply(b)) / count - mean_a * mean_b
        r: np.ndarray = np.divide(covariance, np.sqrt(variance.clip(0)), out=np.zeros(len(latents)), where=variance > 0)
        return r


def joined(values: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What every rank has for its own latents, of all latents on every rank."""
    return values if mesh.size == 1 else mesh.joined(torch.from_numpy(np.ascontiguousarray(values))).numpy()


def columns_in_turn(code: sparse.csr_array, mesh: Mesh) -> Iterator[tuple[int, sparse.csc_array]]:
    """The codes of all ranks' latents, some latents at a time, on every rank: (number of the first of them, columns)."""
    own, first = code.tocsc(), 0
    for source, count in enumerate(mesh.tell(code.shape[1])):
        for start in range(0, count, COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, count)
            here = own[:, start:stop] if source == mesh.rank else None
            yield first + start, _from_rank(source, here, (code.shape[0], stop - start), code.dtype, mesh)
        first += count


def _from_rank(
    source: int, columns: sparse.csc_array | None, shape: tuple[int, int], dtype: np.dtype[Any], mesh: Mesh
) -> sparse.csc_array:
    """Columns of one rank, on all."""
    if mesh.size == 1 and columns is not None:
        return columns
    starts = torch.zeros(shape[1] + 1, dtype=torch.int64) if columns is None else torch.from_numpy(columns.indptr).long()
    starts = mesh.from_rank(source, starts)
    count = int(starts[-1])
    place = torch.zeros(count, dtype=torch.int32) if columns is None else torch.from_numpy(columns.indices).int()
    values = torch.from_numpy(np.zeros(count, dtype=dtype) if columns is None else columns.data)
    place, values = mesh.from_rank(source, place), mesh.from_rank(source, values)
    return sparse.csc_array((values.numpy(), place.numpy(), starts.int().numpy()), shape=shape)


def columns_picked(code: sparse.csr_array, wanted: Int64[np.ndarray, " wanted"], mesh: Mesh) -> sparse.csc_array:
    """The codes of some latents of all ranks, by ascending number; each rank wants what it wants."""
    parts = [
        columns[:, wanted[(wanted >= first) & (wanted < first + columns.shape[1])] - first]
        for first, columns in columns_in_turn(code, mesh)
    ]
    return sparse.hstack(parts, format="csc") if parts else code.tocsc()[:, :0]


def partner_correlation(
    a: sparse.csr_array, b: sparse.csr_array, partner: Int64[np.ndarray, " own"], mesh: Mesh
) -> Float64[np.ndarray, " own"]:
    """Pearson correlation of this rank's latents of `a` with their partners among all ranks' latents of `b`."""
    own, found = a.tocsc(), np.zeros(a.shape[1])
    for first, columns in columns_in_turn(b, mesh):
        here = np.flatnonzero((partner >= first) & (partner < first + columns.shape[1]))
        if len(here):
            found[here] = Moments(own[:, here], columns).correlation(np.arange(len(here)), partner[here] - first)
    return found


def total(code: Any) -> Float64[np.ndarray, " width"]:
    """Sum over the rows of a sparse matrix, in float64."""
    return np.asarray(code.sum(axis=0, dtype=np.float64)).ravel()


def firing_counts(code: sparse.csr_array) -> Int64[np.ndarray, " width"]:
    """Rows in which each latent is active."""
    return np.bincount(code.indices, minlength=code.shape[1]).astype(np.int64)


def _parts(count: int, size: int = 8192) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _products(a: Tensor, b: Tensor, code: sparse.csr_array) -> Float[np.ndarray, " active"]:
    """a[row]·b[latent] at the active entries of a code, in its order."""
    if is_dense(code.nnz / max(1, code.shape[0] * code.shape[1]), a.device) or not supported(a.device, a.dtype):
        return np.asarray((a @ b.T).numpy()[np.repeat(np.arange(code.shape[0]), np.diff(code.indptr)), code.indices])
    starts, columns = (torch.from_numpy(part.astype(np.int32)) for part in (code.indptr, code.indices))
    products: np.ndarray = sampled_products(starts, columns, a, b).numpy()
    return products


class ExplainedSums:
    """Each latent's part of the explained variance, its own mean taken off, block by block.

    With x̃ = x − mean(x), r = x̂ − mean(x) and b = mean(r), the explained sum of squares Σ‖x̃‖² − Σ‖x̃ − r‖² = Σ r·(2x̃ − r) is
    Σ_i Σ_rows (z_i − z̄_i) d_i·(2x̃ − r) − rows ‖b‖²: the parts add up to 1 − FVU but for the squared bias of the mean. Means
    are known at the end only, so sums are taken about the first block's. With unit rows z is taken in the rows' own scale, and
    what the centre explains by rows' lengths belongs to no latent.
    """

    def __init__(self, sae: SparseAutoencoder | Spread) -> None:
        self._sae, self._decoder, self._mesh = sae, sae.decoder.detach().cpu(), mesh_of(sae)
        self._products, self._activation = np.zeros((2, len(self._decoder)))
        self._x, self._reconstruction = (torch.zeros(sae.dim, dtype=torch.float64) for _ in range(2))
        self._squares, self._num_rows = 0.0, 0
        self._shift: Tensor | None = None

    def add(self, block: Coded) -> None:
        if self._shift is None:
            self._shift = block.x.double().mean(dim=0).float().cpu()
        x, reconstruction = block.x.cpu() - self._shift, block.reconstruction.cpu() - self._shift
        code = block.code.tocsr()
        if self._sae.unit_rows:
            code = code.multiply(self._sae.row_scale(block.x).cpu().numpy()).tocsr()
        products = _products((2 * x - reconstruction).to(self._decoder), self._decoder, code)
        self._products += np.bincount(code.indices, code.data * products, len(self._products))
        self._activation += total(code)
        self._x += x.sum(dim=0, dtype=torch.float64)
        self._reconstruction += reconstruction.sum(dim=0, dtype=torch.float64)
        self._squares += float(x.double().square().sum())
        self._num_rows += len(x)

    def figures(self) -> Float64[np.ndarray, " width"]:
        """Of all blocks so far: shares of the variance [width]."""
        mean = self._x / self._num_rows
        bias = self._reconstruction - self._x
        # About the mean instead of the first block's, 2x̃ − r is smaller by the mean; Σ_rows (2x̃ − r) = −rows b.
        to_mean = self._decoder.double() @ (bias / self._num_rows - mean)
        squares = self._squares - self._num_rows * float(mean.square().sum())
        return joined((self._products + self._activation * to_mean.numpy()) / squares, self._mesh)
