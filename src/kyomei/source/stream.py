"""Activations straight from the model, through a bounded shuffle buffer: nothing is stored, and nothing depends on timing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from kyomei.config import SourceRecipe
from kyomei.errors import DataError
from kyomei.source.guards import require_finite, require_inside
from kyomei.source.model import LanguageModel
from kyomei.source.order import BatchOrder
from kyomei.source.rows import TensorRows
from kyomei.source.text import Tokens

KEPT_SHARE = 0.9
"""Rows of a buffer, as a share of its tokens: some tokens are special or have massive activations, and every buffer has to have
as many rows as any other, so that which rows make a step is known without running the model."""
HELD = 2


@final
class StreamedRows:
    """Rows of one site that a language model makes when they are asked for, a buffer of windows at a time.

    Row number b·R + j is the j-th row of buffer b. The next buffer is made in a thread while this one is trained on, and two
    are held at most. `order` visits the buffers one after the other and the rows of each in an order of its own, so a resumed
    training sees the rows of an undisturbed one.

    Args:
        model: where activations come from.
        tokens: windows to run.
        site: module path.
        recipe: side, windows in a pass, and which rows are dropped.
        windows_per_buffer: windows whose rows are shuffled together.
        median_norm: of the site's rows, by which massive ones are told; none: that of the first buffer.

    Raises:
        ModelError: the site is unknown.
        DataError: there are fewer windows than a buffer has.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        site: str,
        recipe: SourceRecipe,
        windows_per_buffer: int = 256,
        median_norm: float | None = None,
    ) -> None:
        model.require_sites([site])
        self.model, self.tokens, self.site, self.recipe = model, tokens, site, recipe
        self.num_buffers = len(tokens.ids) // windows_per_buffer
        if not self.num_buffers:
            found = f"{len(tokens.ids)} windows"
            raise DataError(f"at least {windows_per_buffer} windows", found, "use more text or a smaller buffer")
        self.windows_per_buffer = windows_per_buffer
        self.rows_per_buffer = int(KEPT_SHARE * windows_per_buffer * tokens.context)
        self.num_rows = self.num_buffers * self.rows_per_buffer
        self._special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
        self._held: OrderedDict[int, Future[Tensor]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._median_norm = float("inf") if median_norm is None else median_norm
        first = self._made(0)
        self.dim = int(first.shape[1])
        if median_norm is None:
            self._median_norm = float(first.norm(dim=1).median())

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order."""
        require_inside(index, self.num_rows)
        out = torch.empty(len(index), self.dim)
        buffers = index // self.rows_per_buffer
        for number in np.unique(buffers):
            wanted = np.flatnonzero(buffers == number)
            rows = self._buffer(int(number))
            # A buffer that kept fewer rows than usual gives some of them twice.
            out[torch.from_numpy(wanted)] = rows[torch.from_numpy(index[wanted] % self.rows_per_buffer % len(rows))]
        return out

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time; every window is run for them."""
        for first in range(0, self.num_rows, rows_per_block):
            yield self.read(np.arange(first, min(first + rows_per_block, self.num_rows)))

    def sample(self) -> TensorRows:
        """The rows of the first buffer, for what need not be measured on all."""
        return TensorRows(self._buffer(0))

    def order(self, batch_rows: int, seed: int) -> BatchOrder:
        """Which rows make which batch."""
        return _BufferOrder(self, batch_rows, seed)

    def _buffer(self, number: int) -> Float32[Tensor, "rows dim"]:
        rows = self._asked(number).result()
        following = (number + 1) % self.num_buffers
        if following != number:
            self._asked(following)
        while len(self._held) > HELD:
            oldest = next(key for key in self._held if key not in (number, following))
            del self._held[oldest]
        return rows

    def _asked(self, number: int) -> Future[Tensor]:
        if number not in self._held:
            self._held[number] = self._thread.submit(self._made, number)
        self._held.move_to_end(number)
        return self._held[number]

    def _made(self, number: int) -> Float32[Tensor, "rows dim"]:
        """Run the windows of a buffer and keep their ordinary rows."""
        first = number * self.windows_per_buffer
        kept = []
        for start in range(first, first + self.windows_per_buffer, self.recipe.windows_per_batch):
            windows = slice(start, min(start + self.recipe.windows_per_batch, first + self.windows_per_buffer))
            ids = self.tokens.ids[windows]
            x = self.model.capture(ids, [self.site], self.recipe.side)[self.site].float().cpu().flatten(0, 1)
            special = self.tokens.is_special(windows, self._special).flatten()
            require_finite(x[~special], f"buffer {number} of '{self.site}'", do="run the model in float32 or bfloat16")
            wanted = x.norm(dim=1) <= self.recipe.norm_bound * self._median_norm
            kept.append(x[wanted & ~special] if self.recipe.drop_special else x[wanted])
        rows = torch.cat(kept)
        if not len(rows):
            raise DataError(f"rows in buffer {number}", "special tokens only", "use other text")
        return rows


class _BufferOrder(BatchOrder):
    """Buffer after buffer, each in a fresh permutation."""

    def __init__(self, rows: StreamedRows, batch_rows: int, seed: int) -> None:
        super().__init__(rows.rows_per_buffer, batch_rows, seed)
        self.num_buffers = rows.num_buffers

    def indices(self, step: int) -> Int64[np.ndarray, " batch_rows"]:
        position = step * self.batch_rows + np.arange(self.batch_rows, dtype=np.int64)
        first: Int64[np.ndarray, " batch_rows"] = position // self.num_rows % self.num_buffers * self.num_rows
        within: Int64[np.ndarray, " batch_rows"] = first + super().indices(step)
        return within
