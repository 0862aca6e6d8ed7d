"""Latents in normalised space: the one form in which they are drawn, placed, joined and trained from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread

DRAWN_AT_ONCE = 1024
"""Random rows drawn at a time; each number of them is drawn as it would be with all others."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents in normalised space.

    Attributes:
        encoder: encoder rows [width, dim].
        decoder: decoder rows [width, dim]; the encoder's where tied.
        centre: b_pre [dim].
        threshold: score above which each is active [width]; NaN: not given yet.
        frequency: share of rows in which each is active [width]; 0 where it was not counted.
        hold: encoders (tied: also decoders) that are not trained [width].
        anchor: least cosine of each decoder row to its start, untied only; −1 is free [width].
        tied: whether encoder and decoder are one.
    """

    encoder: Float[Tensor, "width dim"]
    decoder: Float[Tensor, "width dim"]
    centre: Float[Tensor, " dim"]
    threshold: Float[Tensor, " width"]
    frequency: Float[Tensor, " width"]
    hold: Bool[Tensor, " width"]
    anchor: Float[Tensor, " width"]
    tied: bool

    @classmethod
    def of(cls, encoder: Float[Tensor, "width dim"], decoder: Float[Tensor, "width dim"] | None, **known: Tensor) -> Latents:
        """Latents of which only these things are known, without a decoder tied; they are trained freely, around the mean."""
        width, dim = encoder.shape
        unknown = {
            "centre": encoder.new_zeros(dim),
            "threshold": encoder.new_full((width,), torch.nan),
            "frequency": encoder.new_zeros(width),
            "hold": torch.zeros(width, dtype=torch.bool),
            "anchor": torch.full((width,), -1.0),
        }
        return cls(encoder, encoder if decoder is None else decoder, **(unknown | known), tied=decoder is None)

    @classmethod
    def none(cls, dim: int) -> Latents:
        """No latents at all, untied."""
        return cls.of(torch.zeros(0, dim), torch.zeros(0, dim))

    @property
    def width(self) -> int:
        return len(self.encoder)

    def part(self, which: slice) -> Latents:
        """Some of them."""
        return self._with({name: value[which] for name, value in self._rows()})

    def then(self, others: Latents) -> Latents:
        """These, and others after them; the centre stays."""
        return self._with({name: torch.cat([value, getattr(others, name)]) for name, value in self._rows()})

    def joined(self, join: Callable[[Tensor], Tensor]) -> Latents:
        """The same with those of others: whatever has a row for each latent goes through `join`."""
        return self._with({name: join(value) for name, value in self._rows()})

    def _rows(self) -> Iterator[tuple[str, Tensor]]:
        """Everything of which each latent has a row of its own."""
        return ((name, value) for name, value in vars(self).items() if name not in ("centre", "tied"))

    def _with(self, rows: dict[str, Any]) -> Latents:
        return replace(self, **rows)


def random_start(
    width: int,
    dim: int,
    seed: int,
    tied: bool,
    varies: Bool[Tensor, " dim"] | None = None,
    which: slice | None = None,
) -> Latents:
    """Random unit rows; an untied decoder starts as a copy of the encoder.

    Args:
        width: number of latents.
        dim: dimension of the input.
        seed: seed of the draw.
        tied: whether encoder and decoder share their rows.
        varies: coordinates that vary in the rows; in others latents have no part, and training gives them none. None: all.
        which: of the latents, those that are wanted; none: all. The others are drawn, and not held.
    """
    generator = torch.Generator().manual_seed(seed)
    start, stop = (0, width) if which is None else (which.start, which.stop)
    parts = [torch.zeros(0, dim)]
    for first in range(0, stop, DRAWN_AT_ONCE):
        drawn = torch.randn(min(DRAWN_AT_ONCE, width - first), dim, generator=generator)
        parts.append(drawn[max(0, start - first) : max(0, stop - first)].clone())
    encoder = normalize(torch.cat(parts), dim=1)
    if varies is not None and not bool(varies.all()):
        encoder = normalize(encoder * varies, dim=1)
    return Latents.of(encoder, None if tied else encoder.clone())


def trained_latents(sae: SparseAutoencoder | Spread, normalisation: Normalisation) -> Latents:
    """The latents of a trained dictionary in normalised space, to be trained further; of a rank its own."""
    centre = ((sae.center.cpu().double() - normalisation.mean.cpu().double()) / normalisation.scale).float()
    encoder, decoder = (rows.detach().cpu().float() for rows in (sae.encoder, sae.decoder))
    return Latents.of(encoder, normalize(decoder, dim=1), centre=centre)
