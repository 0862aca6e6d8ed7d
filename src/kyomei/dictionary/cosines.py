"""Which direction lies nearest to which: the one search for largest cosines, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

COSINES_PER_BLOCK = 2**24
"""Cosines held at a time (64 MB in float32): a table of 20,000 × 20,000 is never allocated to take its maxima."""


class Nearest(NamedTuple):
    """For each of some directions the nearest one among others.

    Attributes:
        cosine: the largest; 0 where there is nothing to compare with.
        row: whose it is, the first of equals; −1 where there is nothing to compare with.
    """

    cosine: Float[Tensor, " k"]
    row: Int64[Tensor, " k"]


def cosine_blocks(a: Float[Tensor, "k dim"], b: Float[Tensor, "l dim"]) -> Iterator[tuple[int, Float[Tensor, "block l"]]]:
    """Cosines between unit rows, some rows of `a` at a time: (first row, cosines [block, l])."""
    rows = max(1, COSINES_PER_BLOCK // max(1, len(b)))
    for start in range(0, len(a), rows):
        yield start, a[start : start + rows] @ b.T


def nearest(a: Float[Tensor, "k dim"], b: Float[Tensor, "l dim"]) -> Nearest:
    """The row of `b` nearest to each row of `a`; rows are of unit norm."""
    if not len(a) or not len(b):
        return Nearest(a.new_zeros(len(a)), torch.full((len(a),), -1, device=a.device))
    return _joined([cosines.max(dim=1) for _, cosines in cosine_blocks(a, b)])


def nearest_other(vectors: Float[Tensor, "k dim"]) -> Nearest:
    """The nearest other row of the same set; rows are of unit norm."""
    if len(vectors) < 2:
        return nearest(vectors, vectors[:0])
    found: list[tuple[Tensor, Tensor]] = []
    for start, cosines in cosine_blocks(vectors, vectors):
        cosines.diagonal(start).fill_(-2.0)
        found.append(cosines.max(dim=1))
    return _joined(found)


def _joined(blocks: Sequence[tuple[Tensor, Tensor]]) -> Nearest:
    return Nearest(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
