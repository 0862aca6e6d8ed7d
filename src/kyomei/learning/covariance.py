"""Mean and covariance of rows in one pass, and the whitening that resonance works in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.errors import DataError
from kyomei.source.shards import Rows

OUTLIER_NORM = 10.0
"""Rows farther from the centre than this many median distances do not enter the covariance."""
SAMPLE_ROWS = 4096
"""Rows from which the centre and the median distance are estimated."""
EIGENVALUE_FLOOR = 1e-6
"""Eigenvalues are clamped at this share of the largest one."""


@dataclass(frozen=True)
class Whitening:
    """The linear map z = C^(−1/2) (x − μ).

    Attributes:
        mean: μ, float32 [dim].
        forward: C^(−1/2), symmetric, float32 [dim, dim].
        backward: C^(1/2), symmetric, float32 [dim, dim].
        num_outliers: rows left out of μ and C because of their distance from the centre.
    """

    mean: Float[Tensor, "dim"]
    forward: Float[Tensor, "dim dim"]
    backward: Float[Tensor, "dim dim"]
    num_outliers: int

    @classmethod
    def fit(cls, rows: Rows) -> Whitening:
        """Whitening of all rows, streamed once in float64.

        Raises:
            DataError: with fewer rows than dimensions, or with coordinates that never change.
        """
        if rows.num_rows <= rows.dim:
            do = "harvest more tokens or choose a smaller site"
            raise DataError(f"more rows than dimensions ({rows.dim})", f"{rows.num_rows} rows", do)
        mean, covariance, outliers = _moments(rows)
        variance = covariance.diagonal()
        constant = torch.nonzero(variance <= 1e-12 * variance.max()).flatten().tolist()
        if constant:
            shown = ", ".join(map(str, constant[:8])) + (", …" if len(constant) > 8 else "")
            raise DataError(
                "coordinates that vary", f"{len(constant)} constant column(s): {shown}", "drop these columns before you train"
            )
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(EIGENVALUE_FLOOR * float(values.max()))
        forward = (vectors * values.rsqrt()) @ vectors.T
        backward = (vectors * values.sqrt()) @ vectors.T
        return cls(mean.float(), forward.float(), backward.float(), outliers)

    def whiten(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Rows with zero mean and unit covariance."""
        return (x - self.mean) @ self.forward

    def to(self, device: str | torch.device) -> Whitening:
        """The same map on another device."""
        return Whitening(self.mean.to(device), self.forward.to(device), self.backward.to(device), self.num_outliers)


def _moments(rows: Rows) -> tuple[Tensor, Tensor, int]:
    """Mean, covariance (float64) and the number of outlier rows left out."""
    index = np.linspace(0, rows.num_rows - 1, min(SAMPLE_ROWS, rows.num_rows)).astype(np.int64)
    sample = rows.read(index).cpu().double()
    centre = sample.median(dim=0).values
    bound = OUTLIER_NORM * float((sample - centre).norm(dim=1).median())
    count, outliers = 0, 0
    total = torch.zeros(rows.dim, dtype=torch.float64)
    products = torch.zeros(rows.dim, rows.dim, dtype=torch.float64)
    for block in rows.blocks():
        # Centring first keeps float64 sums exact to rounding even when the mean dwarfs the spread.
        shifted = block.cpu().double() - centre
        inside = shifted.norm(dim=1) <= bound if bound > 0 else torch.ones(len(block), dtype=torch.bool)
        outliers += len(block) - int(inside.sum())
        shifted = shifted[inside]
        count += len(shifted)
        total += shifted.sum(dim=0)
        products += shifted.T @ shifted
    offset = total / count
    return centre + offset, products / count - torch.outer(offset, offset), outliers
