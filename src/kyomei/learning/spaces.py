"""Mean and covariance of rows in one pass, and the whitening that resonance works in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kyomei.dictionary.mechanisms.base import Finish
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.source.rows import Rows

OUTLIER_NORM = 10.0
"""Rows farther from the centre than this many median distances do not enter the covariance."""
SAMPLE_ROWS = 4096
"""Rows from which the centre and the median distance are estimated."""
EIGENVALUE_FLOOR = 1e-6
"""Eigenvalues are clamped at this share of the largest one."""
CONSTANT = 1e-12
"""A coordinate of at most this share of the largest variance does not vary, such as a dead ReLU unit: rounding, if not zero."""


def require_enough(rows: Rows) -> None:
    """Raise DataError where there are no more rows than dimensions: no covariance of theirs could be inverted."""
    if rows.num_rows <= rows.dim:
        do = "harvest more tokens or choose a smaller site"
        raise DataError(f"more rows than dimensions ({rows.dim})", f"{rows.num_rows} rows", do)


LEAST_DEVIATION, MOST_DEVIATION = 1e-18, 1e18
"""Standard deviations whose squares float32 can hold."""


def varying(variance: Float[Tensor, " dim"]) -> Bool[Tensor, " dim"]:
    """Coordinates that vary, by the variance of each.

    Raises:
        DataError: none does, or float32 cannot hold the squares.
    """
    most = float(variance.max())
    if not most > 0:
        raise DataError("rows that differ", "rows that are all equal", "check what these activations come from")
    if not LEAST_DEVIATION <= math.sqrt(most) <= MOST_DEVIATION:
        expected = f"rows with a standard deviation from {LEAST_DEVIATION:g} to {MOST_DEVIATION:g}"
        raise DataError(expected, f"{math.sqrt(most):.3g}", "scale them by a constant, or leave out the rows that are so large")
    return variance > CONSTANT * most


@dataclass(frozen=True)
class Whitening:
    """The linear map z = C^(−1/2) (x − μ). A coordinate that never varies is 0 in z, and in both maps.

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
            DataError: there are no more rows than dimensions, or all are equal.
        """
        require_enough(rows)
        mean, covariance, outliers = _moments(rows)
        varies = varying(covariance.diagonal())
        # With coordinates that never vary the covariance is one block and zeros: only the block is inverted.
        values, vectors = torch.linalg.eigh(covariance[varies][:, varies])
        values = values.clamp_min(EIGENVALUE_FLOOR * float(values.max()))
        forward, backward = torch.zeros_like(covariance), torch.zeros_like(covariance)
        block = torch.outer(varies, varies)
        forward[block] = ((vectors * values.rsqrt()) @ vectors.T).flatten()
        backward[block] = ((vectors * values.sqrt()) @ vectors.T).flatten()
        return cls(mean.float(), forward.float(), backward.float(), outliers)

    @property
    def varies(self) -> Bool[Tensor, " dim"]:
        """Coordinates that vary in the rows that the map was fitted on."""
        return self.backward.diagonal() > 0

    def within(self, kept: Bool[Tensor, " dim"]) -> Whitening:
        """The same map for rows of which only some coordinates are kept; the others do not vary."""
        return Whitening(self.mean[kept], self.forward[kept][:, kept], self.backward[kept][:, kept], self.num_outliers)

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


@dataclass(frozen=True)
class Normalisation:
    """Centring and one global scale, x_n = (x − mean) / scale, so that E‖x_n‖² = 1.

    Attributes:
        mean: mean row [dim], float64.
        scale: root mean square of ‖x − mean‖.
        varies: coordinates that vary [dim]; none: it was not asked.
    """

    mean: Float[Tensor, " dim"]
    scale: float
    varies: Bool[Tensor, " dim"] | None = None

    @classmethod
    def measure(cls, rows: Rows) -> Normalisation:
        """The normalisation of rows, from one pass in float64.

        Raises:
            DataError: if a row is not finite, or all rows are equal.
        """
        # Sums are taken around the first row, so that a large common offset does not cancel digits.
        origin: Tensor | None = None
        total, squares, count = (*torch.zeros(2, rows.dim, dtype=torch.float64), 0)
        for block in rows.blocks():
            values = block.to("cpu", torch.float64)
            origin = values[0] if origin is None else origin
            shifted = values - origin
            square = shifted.square().sum(dim=0)
            if not bool(square.isfinite().all()):
                row = count + int((~torch.isfinite(values).all(dim=1)).nonzero()[0])
                raise DataError("finite activations", f"a value that is not, in row {row}", "remove or repair that row")
            total, squares, count = total + shifted.sum(dim=0), squares + square, count + len(values)
        shift = total / max(count, 1)
        spread = (squares / max(count, 1) - shift.square()).clamp_min(0)
        if origin is None or not bool((spread > 1e-14 * squares / count).any()):
            raise DataError("rows that differ", f"{count} rows that are all equal", "check what these activations come from")
        return cls(origin + shift, math.sqrt(float(spread.sum())), varying(spread))

    def to(self, like: Tensor) -> Normalisation:
        """The same in the dtype and on the device of another tensor."""
        return replace(self, mean=self.mean.to(like.dtype).to(like.device))

    def apply(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Normalised rows, in the dtype and on the device of the mean."""
        return (x.to(self.mean.device, self.mean.dtype) - self.mean) / self.scale

    def undo(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """What normalised rows, or a centre, are in raw input: float64, on the CPU."""
        return self.mean.cpu().double() + self.scale * x.detach().cpu().double()

    def fold(self, encoder: Tensor, decoder: Tensor | None, centre: Float[Tensor, " dim"], finish: Finish) -> SparseAutoencoder:
        """The autoencoder on raw input that does what these normalised weights and a finished mechanism do."""
        center = self.undo(centre)
        scale = encoder.new_ones(len(encoder)) if finish.scale is None else finish.scale.to(encoder)
        if decoder is None and finish.scale is not None:
            decoder = encoder
        bias = None if finish.offset is None else (self.scale * finish.offset).to(encoder)
        threshold = (self.scale * scale * finish.threshold.detach()).to(encoder)
        return SparseAutoencoder(
            scale[:, None] * encoder.detach(),
            None if decoder is None else decoder.detach().clone(),
            # Where there is an offset, no active latent has a negative value; rounding must not undo that.
            threshold if bias is None else (threshold + bias).clamp_min(0),
            center.to(encoder.dtype).to(encoder.device),
            activation=finish.activation,
            k=finish.k,
            bias=bias,
        )
