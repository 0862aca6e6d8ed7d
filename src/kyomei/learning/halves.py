"""The rows a search looks at: whitened, of norm 1, in two halves to find in and a part held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.kernels import bfloat16_is_fast
from kyomei.learning.mesh import Mesh
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import Rows, near

HELD_OUT_SHARE = 0.1
CHUNK_ROWS = 2048
"""Rows scored at a time: the score matrix stays in cache, and memory does not grow with the batch."""
CHUNK_ROWS_ELSEWHERE = 32_768
"""The same on a GPU, where every product of few rows is a wait."""
HELD_BYTES = 2**30
"""Whitened rows of up to so many bytes are made once and held; more are read and whitened for each step, a third of a step."""
POLISH_ROWS = 131_072


def held_bytes(num_rows: int, dim: int) -> int:
    """What a search holds of so many rows."""
    whole = 4 * num_rows * dim
    return whole if whole <= HELD_BYTES else 0


class Halves:
    """Whitened unit-norm rows in three contiguous parts: two halves to find in, and rows held out."""

    def __init__(self, rows: Rows, whitening: Whitening, device: str, mesh: Mesh) -> None:
        self.rows, self.whitening, self.device, self.mesh = near(rows, device), whitening, device, mesh
        self.chunk_rows = CHUNK_ROWS if device == "cpu" else CHUNK_ROWS_ELSEWHERE
        self.quick = torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
        """Precision of the scores that choose rows; the means of these rows are float32's."""
        self.varies = whitening.varies
        self.num_finding = int(rows.num_rows * (1 - HELD_OUT_SHARE))
        self.borders = (0, self.num_finding // 2, self.num_finding)
        self._held: Tensor | None = None
        if held_bytes(rows.num_rows, rows.dim):
            self._held = self._all()

    def read_exactly(self) -> None:
        """From now on rows are read anew and scored in float32."""
        self.quick, self._held = torch.float32, None

    def _all(self) -> Tensor:
        held, first = torch.empty(self.rows.num_rows, self.rows.dim, device=self.device), 0
        for part in self.read(np.arange(len(held))):
            held[first : first + len(part)] = part
            first += len(part)
        return held

    def read(self, index: np.ndarray) -> Iterator[Tensor]:
        """Whitened rows of norm 1, some at a time."""
        for start in range(0, len(index), self.chunk_rows):
            part = index[start : start + self.chunk_rows]
            if self._held is None:
                yield normalize(self.whitened(part), dim=1)
            else:
                yield self._held.index_select(0, torch.from_numpy(part).to(self.device))

    def spread(self, most: int) -> Tensor:
        """Rows of norm 1 from everywhere, all of them where they are no more than so many."""
        if self._held is not None and len(self._held) <= most:
            return self._held
        index = np.linspace(0, self.rows.num_rows - 1, min(self.rows.num_rows, most)).astype(np.int64)
        return torch.cat(list(self.read(index)))

    def whitened(self, index: np.ndarray) -> Tensor:
        """Whitened rows with their norm kept."""
        return self.whitening.whiten(self.rows.read(index).to(self.device))

    def batch(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Rows to find in; all of them where so many are asked for, which drawn ones would not be."""
        if count >= self.num_finding:
            return np.arange(self.num_finding)
        return np.sort(rng.integers(0, self.num_finding, size=count))

    def half(self, which: int, rng: np.random.Generator, count: int) -> np.ndarray:
        first, last = self.borders[which], self.borders[which + 1]
        if last - first <= count:
            return np.arange(first, last)
        return np.sort(rng.choice(last - first, size=count, replace=False)) + first

    def held_out(self) -> Iterator[Tensor]:
        """Whitened held-out rows with their norm kept: occurrence is read from the linear score."""
        last = min(self.rows.num_rows, self.num_finding + POLISH_ROWS)
        for start in range(self.num_finding, last, self.chunk_rows):
            x = self.rows.read(np.arange(start, min(start + self.chunk_rows, last))).to(self.device)
            yield self.whitening.whiten(x)
