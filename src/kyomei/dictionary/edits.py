"""Latents scaled, clamped, ablated or steered in a row: the one place of its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError

Kind = Literal["scale", "clamp", "ablate", "steer"]
_LARGEST = 1e6


@dataclass(frozen=True)
class Edit:
    """What is done to a latent at every token.

    Args:
        latent: its number.
        kind: "scale" multiplies its activation, "clamp" sets it, "steer" adds to it, "ablate" silences it.
        value: by how much, or to what; of no meaning for "ablate".
    """

    latent: int
    kind: Kind
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DataError(f"an edit among {', '.join(get_args(Kind))}", repr(self.kind), "choose one of them")
        if not (math.isfinite(self.value) and abs(self.value) <= _LARGEST):
            raise DataError(f"a value of at most {_LARGEST:g}", f"{self.value}", "correct the value")

    def apply(self, z: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """The activations of its latent once it is done."""
        if self.kind == "scale":
            return z * self.value
        return z + self.value if self.kind == "steer" else torch.full_like(z, 0.0 if self.kind == "ablate" else self.value)


class EditedCode:
    """A codec that keeps what the dictionary does not explain: x + (decode(edited z) − decode(z)).

    Decoding is linear, so the difference is (edited z − z) D over the edited latents, in the row's scale: exactly zero where
    nothing is edited.

    Args:
        sae: the dictionary.
        edits: done one after the other.
        max_norm: rows above this norm are left alone.
    """

    def __init__(self, sae: SparseAutoencoder, edits: Sequence[Edit], max_norm: float = math.inf) -> None:
        self._sae, self._edits, self._max_norm = sae, edits, max_norm
        self._latents = sorted({edit.latent for edit in edits})

    def encode(self, x: Float[Tensor, "rows dim"]) -> tuple[Tensor, Tensor]:
        """The rows, and by how much the activations of the edited latents change [rows, edited]."""
        if all(edit.kind == "steer" for edit in self._edits):
            z = x.new_zeros(len(x), len(self._latents))  # what is added does not depend on what was there
        else:
            z = self._sae.encode(x)[:, self._latents]
        edited = {latent: z[:, i] for i, latent in enumerate(self._latents)}
        for edit in self._edits:
            edited[edit.latent] = edit.apply(edited[edit.latent])
        change = torch.stack([edited[latent] for latent in self._latents], dim=1) - z
        return x, torch.where((x.norm(dim=1) <= self._max_norm)[:, None], change, 0.0)

    def decode(self, z: tuple[Tensor, Tensor]) -> Float[Tensor, "rows dim"]:
        x, change = z
        moved = change.to(self._sae.decoder) @ self._sae.decoder[self._latents]
        return x + (self._sae.row_scale(x) * moved if self._sae.unit_rows else moved).to(x)


class Reconstruction:
    """A codec that puts a dictionary's reconstruction in the place of a row.

    Args:
        sae: the dictionary.
        max_norm: rows above this norm are left alone.
    """

    def __init__(self, sae: SparseAutoencoder, max_norm: float = math.inf) -> None:
        self._sae, self._max_norm = sae, max_norm

    def encode(self, x: Float[Tensor, "rows dim"]) -> tuple[Tensor, Tensor]:
        """The rows, and their codes [rows, width]."""
        return x, self._sae.encode(x)

    def decode(self, z: tuple[Tensor, Tensor]) -> Float[Tensor, "rows dim"]:
        x, code = z
        return torch.where((x.norm(dim=1) <= self._max_norm)[:, None], self._sae.decode(code, x).to(x), x)
