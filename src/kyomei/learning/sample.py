"""Some of the rows, evenly taken: read whenever they are wanted, some at a time, and never held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from kyomei.learning.spaces import Normalisation
from kyomei.source.rows import Rows

BLOCK_ROWS = 512
"""Rows that are scored at a time: what a rank then holds grows with its own latents alone."""


def evenly(rows: Rows, count: int) -> Int64[np.ndarray, " taken"]:
    """Numbers of so many rows at most, evenly spread."""
    return np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a sample, normalised if need be.

    Attributes:
        rows: what they are read from.
        index: their numbers.
        normalisation: of what is read; none: it is given raw, as float32 on the CPU.
    """

    rows: Rows
    index: Int64[np.ndarray, " taken"]
    normalisation: Normalisation | None = None

    @classmethod
    def of(cls, rows: Rows, count: int, normalisation: Normalisation | None = None) -> Sample:
        """So many rows at most."""
        return cls(rows, evenly(rows, count), normalisation)

    def __len__(self) -> int:
        return len(self.index)

    def thinned(self, step: int) -> Sample:
        """Every so many of them."""
        return replace(self, index=self.index[::step])

    def blocks(self, length: int = BLOCK_ROWS) -> Iterator[Float[Tensor, "block dim"]]:
        """All of them in order, some at a time."""
        for first in range(0, len(self.index), length):
            x = self.rows.read(self.index[first : first + length])
            yield x.float().cpu() if self.normalisation is None else self.normalisation.apply(x)
