"""Gaussian rows with the mean and covariance of the data, and nothing else of them: the null of every figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt64
from torch import Tensor

from kyomei.errors import DataError

ROWS_DRAWN_AT_ONCE = 4096
_STREAM = 0x6761_7573  # keeps these draws apart from others under the same seed
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)


@final
class GaussianSurrogate:
    """Normal rows with the mean and covariance of the data, and nothing else of them.

    Row i is a pure function of (seed, i), computed when read: nothing is stored, and a shuffled read costs what one in
    order does.

    Args:
        covariance: symmetric and positive semi-definite [dim, dim].
        mean: [dim].
        num_rows: rows to offer.
        seed: of all draws.

    Raises:
        DataError: if the shapes do not fit, or the covariance is not finite, symmetric and positive semi-definite.
    """

    def __init__(
        self, covariance: Shaped[Tensor, "dim dim"], mean: Shaped[Tensor, " dim"], *, num_rows: int, seed: int = 0
    ) -> None:
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(mean) == 0 or num_rows < 1:
            found = f"covariance {list(covariance.shape)}, mean {list(mean.shape)}, {num_rows} rows"
            raise DataError("a covariance [dim, dim], a mean [dim] and at least one row", found, "correct the shapes")
        self.num_rows, self.dim, self.seed = num_rows, len(mean), seed
        self._mean = mean.detach().cpu().float()
        self._factor = _square_root(covariance.detach().cpu().double()).float()
        self._key, self._second_key = np.random.SeedSequence([seed, _STREAM]).generate_state(2, np.uint64)

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order.

        Raises:
            DataError: if a row number is out of range.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(index) and (index.min() < 0 or index.max() >= self.num_rows):
            found = f"{index.min()} to {index.max()}"
            raise DataError(f"row numbers from 0 to {self.num_rows - 1}", found, "correct the row numbers")
        rows = torch.empty(len(index), self.dim)
        for start in range(0, len(index), ROWS_DRAWN_AT_ONCE):
            chosen = slice(start, start + ROWS_DRAWN_AT_ONCE)
            rows[chosen] = self._normal(index[chosen]) @ self._factor + self._mean
        return rows

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for start in range(0, self.num_rows, rows_per_block):
            yield self.read(np.arange(start, min(start + rows_per_block, self.num_rows)))

    def _normal(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """Standard normal rows: SplitMix64 on a counter, then Box-Muller on the halves of each 64-bit word."""
        pairs = (self.dim + 1) // 2
        counter = index.astype(np.uint64)[:, None] * np.uint64(pairs) + np.arange(pairs, dtype=np.uint64)
        word = _mix(_mix(counter * _GOLDEN + self._key) ^ self._second_key)
        high = (word >> np.uint64(32)).astype(np.float32)
        low = (word & np.uint64(0xFFFF_FFFF)).astype(np.float32)
        radius = np.sqrt(np.float32(-2) * np.log((high + np.float32(1)) * np.float32(2**-32)))
        angle = low * np.float32(2 * np.pi * 2**-32)
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        normal: Tensor = torch.from_numpy(values[:, : self.dim])
        return normal


def _mix(word: UInt64[np.ndarray, "rows pairs"]) -> UInt64[np.ndarray, "rows pairs"]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), on arrays of uint64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: np.ndarray[Any, Any] = word ^ (word >> np.uint64(31))
    return mixed


def _square_root(covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """The symmetric square root, in float64."""
    scale = float(covariance.abs().max())
    if not np.isfinite(scale) or not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * scale):
        raise DataError("a finite, symmetric covariance", "one that is not", "compute it in float64 from finite rows")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if float(values[0]) < -1e-5 * scale:
        raise DataError("a positive semi-definite covariance", f"eigenvalue {float(values[0]):.3g}", "recompute it in float64")
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
