"""One vector for a document: what its tokens' activations come to, whatever its length."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

Pooling = Literal["max", "mean"]
POOLINGS: tuple[Pooling, ...] = ("max", "mean")
"""max: the largest activation of any token, for what shows once; mean: the average over all tokens, for what runs through."""


@final
class Pool:
    """A document's tokens, a few rows at a time: memory does not grow with its length.

    Attributes:
        tokens: rows so far.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._largest: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, rows: Float[Tensor, "tokens columns"]) -> None:
        """Count some tokens in: their codes or activations, rows of silent latents included."""
        if not len(rows):
            return
        largest, total = rows.amax(dim=0), rows.sum(dim=0, dtype=torch.float64)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self._sum = total if self._sum is None else self._sum + total
        self.tokens += len(rows)

    def pooled(self, pooling: Pooling, columns: int) -> Float[Tensor, " columns"]:
        """The document's vector, float32; zeros for one without tokens.

        Args:
            pooling: how.
            columns: how many numbers a row has.
        """
        if self._largest is None or self._sum is None:
            return torch.zeros(columns)
        return (self._largest if pooling == "max" else self._sum / self.tokens).float().cpu()
