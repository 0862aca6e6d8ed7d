"""What a training begins with: weights in normalised space, and the normalisation itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize


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
