"""What a training begins with: weights in normalised space, and the normalisation itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.mechanisms import Finish
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.source.shards import Rows


@dataclass(frozen=True)
class Start:
    """Weights from which training starts, in normalised space.

    Attributes:
        encoder: encoder rows [width, dim].
        decoder: decoder rows [width, dim]; none: tied to the encoder.
        hold: encoders (tied: also decoders) that are not trained [width].
        anchor: least cosine of each decoder row to its start, untied only; −1 is free [width]. None: all are free.
        centre: b_pre [dim]; none: zero.
    """

    encoder: Float[Tensor, "width dim"]
    decoder: Float[Tensor, "width dim"] | None
    hold: Bool[Tensor, " width"]
    anchor: Float[Tensor, " width"] | None = None
    centre: Float[Tensor, " dim"] | None = None


def random_start(width: int, dim: int, seed: int, tied: bool) -> Start:
    """Random unit rows; an untied decoder starts as a copy of the encoder.

    Args:
        width: number of latents.
        dim: dimension of the input.
        seed: seed of the draw.
        tied: whether encoder and decoder share their rows.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder = normalize(torch.randn(width, dim, generator=generator), dim=1)
    return Start(encoder, None if tied else encoder.clone(), torch.zeros(width, dtype=torch.bool))


@dataclass(frozen=True)
class Normalisation:
    """Centring and one global scale, x_n = (x − mean) / scale, so that E‖x_n‖² = 1.

    Attributes:
        mean: mean row [dim], float64.
        scale: root mean square of ‖x − mean‖.
    """

    mean: Float[Tensor, " dim"]
    scale: float

    @classmethod
    def measure(cls, rows: Rows) -> Normalisation:
        """The normalisation of rows, from one pass in float64.

        Raises:
            DataError: if a row is not finite, or all rows are equal.
        """
        # Sums are taken around the first row, so that a large common offset does not cancel digits.
        origin: Tensor | None = None
        total, squares, count = torch.zeros(rows.dim, dtype=torch.float64), 0.0, 0
        for block in rows.blocks():
            values = block.to("cpu", torch.float64)
            origin = values[0] if origin is None else origin
            shifted = values - origin
            square = shifted.square().sum().item()
            if not math.isfinite(square):
                row = count + int((~torch.isfinite(values).all(dim=1)).nonzero()[0])
                raise DataError("finite activations", f"a value that is not, in row {row}", "remove or repair that row")
            total, squares, count = total + shifted.sum(dim=0), squares + square, count + len(values)
        shift = total / max(count, 1)
        variance = squares / max(count, 1) - shift.square().sum().item()
        if origin is None or squares == 0 or variance <= 1e-14 * squares / count:
            raise DataError("rows that differ", f"{count} rows that are all equal", "check what these activations come from")
        return cls(origin + shift, math.sqrt(variance))

    def to(self, like: Tensor) -> Normalisation:
        """The same in the dtype and on the device of another tensor."""
        return Normalisation(self.mean.to(like.dtype).to(like.device), self.scale)

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
        return SparseAutoencoder(
            scale[:, None] * encoder.detach(),
            None if decoder is None else decoder.detach().clone(),
            (self.scale * scale * finish.threshold.detach()).to(encoder),
            center.to(encoder.dtype).to(encoder.device),
            activation=finish.activation,
            k=finish.k,
            offset=None if finish.offset is None else (self.scale * finish.offset).to(encoder),
        )
