"""Sparse codes of many rows at once, as SciPy matrices: what certificates and origins are computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy import sparse

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.anchoring import to_scipy
from kyomei.source.rows import Rows


def encode_rows(sae: SparseAutoencoder, rows: Rows, index: Int64[np.ndarray, " taken"]) -> sparse.csr_array:
    """The code of chosen rows: float32 CSR [taken, width].

    Args:
        sae: the dictionary.
        rows: activations.
        index: row numbers, in the order in which they are wanted.
    """
    blocks = []
    for part in _parts(len(index)):
        blocks.append(to_scipy(sae.encode(rows.read(index[part]), sparse=True)))
    return sparse.vstack(blocks, format="csr")


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
        a, b = self.a.astype(np.float64).tocsc()[:, latents], self.b.astype(np.float64).tocsc()[:, partners]
        mean_a, mean_b = total(a) / count, total(b) / count
        variance = (total(a.power(2)) / count - mean_a**2) * (total(b.power(2)) / count - mean_b**2)
        covariance = total(a.multiply(b)) / count - mean_a * mean_b
        r: np.ndarray = np.divide(covariance, np.sqrt(variance.clip(0)), out=np.zeros(len(latents)), where=variance > 0)
        return r


def total(code: Any) -> Float64[np.ndarray, " width"]:
    """Sum over the rows of a sparse matrix, in float64."""
    return np.asarray(code.sum(axis=0, dtype=np.float64)).ravel()


def firing_counts(code: sparse.csr_array) -> Int64[np.ndarray, " width"]:
    """Rows in which each latent is active."""
    return np.bincount(code.indices, minlength=code.shape[1]).astype(np.int64)


def _parts(count: int, size: int = 8192) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def explained_by_latent(
    sae: SparseAutoencoder, rows: Rows, index: Int64[np.ndarray, " taken"]
) -> Float64[np.ndarray, " width"]:
    """Each latent's part of the explained variance, its own mean taken off.

    With x̃ = x − mean(x), r = x̂ − mean(x) and b = mean(r), the explained sum of squares Σ‖x̃‖² − Σ‖x̃ − r‖² = Σ r·(2x̃ − r) is
    Σ_i Σ_rows (z_i − z̄_i) d_i·(2x̃ − r) − rows ‖b‖²: the parts add up to 1 − FVU but for the squared bias of the mean.

    Args:
        sae: the dictionary.
        rows: activations.
        index: row numbers to use.
    """
    mean = torch.stack([rows.read(index[part]).double().sum(dim=0) for part in _parts(len(index))]).sum(dim=0) / len(index)
    explained, activation = torch.zeros(sae.width, dtype=torch.float64), torch.zeros(sae.width, dtype=torch.float64)
    bias, squares = torch.zeros(rows.dim, dtype=torch.float64), 0.0
    for part in _parts(len(index), 2048):
        x = rows.read(index[part])
        z = sae.encode(x)
        centred, reconstructed = x - mean.float(), sae.decode(z).cpu() - mean.float()
        explained += (z * ((2 * centred - reconstructed).to(z) @ sae.decoder.T)).sum(dim=0, dtype=torch.float64).cpu()
        activation += z.sum(dim=0, dtype=torch.float64).cpu()
        bias += reconstructed.sum(dim=0, dtype=torch.float64)
        squares += float(centred.double().square().sum())
    # Σ_rows (2x̃ − r) = −rows b, so taking z̄_i off adds z̄_i d_i·(rows b).
    explained += activation / len(index) * (sae.decoder.cpu().double() @ bias)
    result: Float64[np.ndarray, " width"] = (explained / squares).numpy()
    return result
