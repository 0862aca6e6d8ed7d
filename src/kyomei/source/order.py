"""The order in which training visits rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Shaped

from kyomei.errors import DataError
from kyomei.source.rows import Rows

ROWS_AT_ONCE = 2**15
"""Rows whose places are found together."""


class BatchOrder:
    """Which rows make which batch: a fresh permutation each epoch, a pure function of seed and step, with nothing stored.

    A Feistel network permutes the smallest power of four that holds all rows; values past the last row are encrypted
    again until they fall inside (cycle walking; Black and Rogaway, 2002). Batches run across the borders of epochs.

    Args:
        num_rows: rows there are.
        batch_rows: rows in a batch.
        seed: seed of every epoch's permutation.
    """

    ROUNDS = 8

    def __init__(self, num_rows: int, batch_rows: int, seed: int) -> None:
        if num_rows < 1 or batch_rows < 1:
            raise DataError("at least one row and one row a batch", f"{num_rows} rows, batches of {batch_rows}", "add rows")
        self.num_rows, self.batch_rows, self.seed = num_rows, batch_rows, seed
        half = max(1, ((num_rows - 1).bit_length() + 1) // 2)
        self._found: tuple[int, Int64[np.ndarray, " count"]] | None = None
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)

    def indices(self, step: int) -> Int64[np.ndarray, " batch_rows"]:
        """Row numbers of the batch at `step`, counted from 0."""
        if step < 0:
            raise DataError("a step of at least 0", f"{step}", "count steps from 0")
        # Small batches are found many at a time: NumPy takes as long for one.
        together = max(1, min(ROWS_AT_ONCE, self.num_rows) // self.batch_rows)
        first = step - step % together
        found = self._found
        if found is None or found[0] != first:
            found = self._found = first, self._positions(first * self.batch_rows, together * self.batch_rows)
        start = (step - first) * self.batch_rows
        return found[1][start : start + self.batch_rows].copy()

    def _positions(self, first: int, count: int) -> Int64[np.ndarray, " count"]:
        """Row numbers at some places of all epochs in a row."""
        position = first + np.arange(count, dtype=np.int64)
        epoch, within = np.divmod(position, self.num_rows)
        out = np.empty_like(position)
        for number in range(int(epoch[0]), int(epoch[-1]) + 1):
            chosen = epoch == number
            out[chosen] = self._permute(number, within[chosen].astype(np.uint64))
        return out

    def _permute(self, epoch: int, x: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        keys = np.random.SeedSequence([self.seed, epoch]).generate_state(self.ROUNDS, np.uint64)
        x = self._feistel(x, keys)
        outside = np.flatnonzero(x >= self.num_rows)
        while len(outside):
            x[outside] = self._feistel(x[outside], keys)
            outside = outside[x[outside] >= self.num_rows]
        return x

    def _feistel(self, x: Shaped[np.ndarray, " n"], keys: Shaped[np.ndarray, " rounds"]) -> Shaped[np.ndarray, " n"]:
        left, right = x >> self._half, x & self._mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(0xD6E8FEB86659FD93)
            mixed ^= mixed >> np.uint64(32)
            left, right = right, left ^ (mixed & self._mask)
        return (left << self._half) | right


def order_of(rows: Rows, batch_rows: int, seed: int) -> BatchOrder:
    """The order in which training visits rows: their own, where they have one."""
    own = getattr(rows, "order", None)
    order: BatchOrder = BatchOrder(rows.num_rows, batch_rows, seed) if own is None else own(batch_rows, seed)
    return order
