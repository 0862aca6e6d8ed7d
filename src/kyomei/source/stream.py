"""Activations straight from the model, through a bounded shuffle buffer: nothing is stored, and nothing depends on timing."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from kyomei.source.ranks import ALONE, Ranks
from kyomei.source.rows import TensorRows
from kyomei.source.text import Tokens

KEPT_SHARE = 0.9
"""Rows of a buffer, as a share of its tokens: some tokens are special or have massive activations, and every buffer has to have
as many rows as any other, so that which rows make a step is known without running the model."""
HELD = 2
MOST_WAITED = 0.1
"""Share of a training's time that steps may wait for rows before the language model is said to bound it."""


@dataclass(frozen=True)
class _Made:
    """What this rank's passes made of a buffer: their rows, one pass under the other, and how many each has."""

    rows: Float32[Tensor, "rows dim"]
    counts: list[int]


@dataclass(frozen=True)
class _Buffer:
    """A buffer whose rows lie on several ranks.

    Attributes:
        made: this rank's rows.
        owner: the rank that has each row.
        place: where it has it.
    """

    made: Float32[Tensor, "rows dim"]
    owner: Int64[np.ndarray, " all_rows"]
    place: Int64[np.ndarray, " all_rows"]

    @classmethod
    def of(cls, made: Tensor, counts: list[list[int]]) -> _Buffer:
        """Put together what all ranks made: pass p is the next one of rank p modulo how many there are."""
        passes = [(rank, turn) for turn in range(len(counts[0])) for rank in range(len(counts)) if turn < len(counts[rank])]
        sizes = [counts[rank][turn] for rank, turn in passes]
        starts = [sum(counts[rank][:turn]) for rank, turn in passes]
        owner = np.repeat([rank for rank, _ in passes], sizes).astype(np.int64)
        place = np.concatenate([np.arange(first, first + size) for first, size in zip(starts, sizes, strict=True)])
        return cls(made, owner, place.astype(np.int64))


@final
class StreamedRows:
    """Rows of one site that a language model makes when they are asked for, a buffer of windows at a time.

    Row number b·R + j is the j-th row of buffer b. The next buffer is made in a thread while this one is trained on, and two
    are held at most. `order` visits the buffers one after the other and the rows of each in an order of its own, so a resumed
    training sees the rows of an undisturbed one.

    Of several ranks each runs every so many-th pass of a buffer and holds the rows of these alone; whoever reads rows gets
    them from the ranks that have them. So all ranks read at the same time, each what it wants, and the rows are those of one
    process.

    Args:
        model: where activations come from.
        tokens: windows to run.
        site: module path.
        recipe: side, windows in a pass, and which rows are dropped.
        windows_per_buffer: windows whose rows are shuffled together.
        median_norm: of the site's rows, by which massive ones are told; none: that of the first buffer.
        ranks: processes that stream together, each with the same arguments.

    Attributes:
        seconds_waited: for the model, by those who read.

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
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        model.require_sites([site])
        self.model, self.tokens, self.site, self.recipe, self._ranks = model, tokens, site, recipe, ranks
        self.num_buffers = len(tokens.ids) // windows_per_buffer
        if not self.num_buffers:
            found = f"{len(tokens.ids)} windows"
            raise DataError(f"at least {windows_per_buffer} windows", found, "use more text or a smaller buffer")
        self.windows_per_buffer = windows_per_buffer
        self.rows_per_buffer = int(KEPT_SHARE * windows_per_buffer * tokens.context)
        self.num_rows = self.num_buffers * self.rows_per_buffer
        self.seconds_waited, self.dim = 0.0, 0
        self._special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
        self._held: OrderedDict[int, Future[_Made]] = OrderedDict()
        self._buffers: dict[int, _Buffer] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)
        self._most = float("inf") if median_norm is None else recipe.norm_bound * median_norm
        self._buffer(0)
        if median_norm is None:
            self._most = recipe.norm_bound * float(self._whole(0).norm(dim=1).median())
            made = self._held[0].result()
            ordinary = made.rows.norm(dim=1) <= self._most
            counts = [int(part.sum()) for part in ordinary.split(made.counts)]
            self._place(0, _Made(made.rows[ordinary], counts))

    def read(self, index: Int64[np.ndarray, " batch"], *, ahead: bool = True) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order.

        Args:
            index: row numbers; each rank its own.
            ahead: whether rows of the buffer after these will be wanted, so that it is made meanwhile.
        """
        require_inside(index, self.num_rows)
        asked = self._ranks.tell(index)
        for number in np.unique(np.concatenate(asked) // self.rows_per_buffer):
            self._buffer(int(number), ahead)
        parts = [self._own(other)[0] for other in asked]
        owner = self._own(index)[1]
        came = self._ranks.exchange(parts, [int((owner == rank).sum()) for rank in range(self._ranks.size)])
        out = torch.empty(len(index), self.dim)
        for rank, rows in enumerate(came):
            out[torch.from_numpy(owner == rank)] = rows
        self._forget()
        return out

    def _own(self, index: Int64[np.ndarray, " batch"]) -> tuple[Float32[Tensor, "own dim"], Int64[np.ndarray, " batch"]]:
        """Those rows at `index` that this rank has, and who has each."""
        owner, place = np.empty_like(index), np.empty_like(index)
        number = index // self.rows_per_buffer
        rows = torch.empty(len(index), self.dim)
        for buffer in np.unique(number):
            held, inside = self._buffers[int(buffer)], number == buffer
            # A buffer that kept fewer rows than usual gives some of them twice.
            within = index[inside] % self.rows_per_buffer % len(held.owner)
            owner[inside], place[inside] = held.owner[within], held.place[within]
            own = inside & (owner == self._ranks.rank)
            rows[torch.from_numpy(own)] = held.made[torch.from_numpy(place[own])]
        return rows[torch.from_numpy(owner == self._ranks.rank)], owner

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time; every window is run for them."""
        for first in range(0, self.num_rows, rows_per_block):
            yield self.read(np.arange(first, min(first + rows_per_block, self.num_rows)))

    def sample(self) -> TensorRows:
        """The rows of the first buffer, for what need not be measured on all."""
        self._buffer(0)
        return TensorRows(self._whole(0))

    def order(self, batch_rows: int, seed: int) -> BufferOrder:
        """Which rows make which batch."""
        return BufferOrder(self, batch_rows, seed)

    def account(self, seconds: float) -> str:
        """What bounds a training of so many seconds that reads these rows, in a sentence."""
        waited = f"{self.seconds_waited:.1f} of {seconds:.1f} seconds"
        if self.seconds_waited > MOST_WAITED * seconds:
            do = "more processes, a larger source.windows_per_batch or --dtype bfloat16 make it faster"
            return f"the language model bounds it: steps waited for its rows in {waited}; {do}"
        return f"the language model runs behind the steps, which waited for its rows in {waited}"

    def _whole(self, number: int) -> Float32[Tensor, "all_rows dim"]:
        """All rows of a buffer that is held, on every rank."""
        held, size = self._buffers[number], self._ranks.size
        came = self._ranks.exchange([held.made] * size, [int((held.owner == rank).sum()) for rank in range(size)])
        rows = torch.empty(len(held.owner), self.dim)
        for rank, part in enumerate(came):
            rows[torch.from_numpy(held.owner == rank)] = part
        return rows

    def _buffer(self, number: int, ahead: bool = False) -> None:
        """Have a buffer, and begin the one after it if that is wanted."""
        if number not in self._buffers:
            began = time.monotonic()
            made = self._asked(number).result()
            self.seconds_waited += time.monotonic() - began
            self._place(number, made)
        following = (number + 1) % self.num_buffers
        if ahead and following != number:
            self._asked(following)

    def _place(self, number: int, made: _Made) -> None:
        told = self._ranks.tell((made.counts, made.rows.shape[1]))
        self.dim = max(dim for _, dim in told)
        counts = [counts for counts, _ in told]
        if not any(map(sum, counts)):
            raise DataError(f"rows in buffer {number}", "special tokens only", "use other text")
        self._buffers[number] = _Buffer.of(made.rows.reshape(-1, self.dim), counts)

    def _asked(self, number: int) -> Future[_Made]:
        if number not in self._held:
            self._held[number] = self._thread.submit(self._make, number)
        self._held.move_to_end(number)
        return self._held[number]

    def _forget(self) -> None:
        """Let go of all buffers but the last ones asked for."""
        while len(self._held) > HELD:
            self._buffers.pop(self._held.popitem(last=False)[0], None)

    def _make(self, number: int) -> _Made:
        """Run this rank's windows of a buffer and keep their ordinary rows."""
        first, size = number * self.windows_per_buffer, self.recipe.windows_per_batch
        kept = []
        for start in range(first + self._ranks.rank * size, first + self.windows_per_buffer, self._ranks.size * size):
            windows = slice(start, min(start + size, first + self.windows_per_buffer))
            ids = self.tokens.ids[windows]
            x = self.model.capture(ids, [self.site], self.recipe.side)[self.site].float().cpu().flatten(0, 1)
            special = self.tokens.is_special(windows, self._special).flatten()
            require_finite(x[~special], f"buffer {number} of '{self.site}'", do="run the model in float32 or bfloat16")
            wanted = x.norm(dim=1) <= self._most
            kept.append(x[wanted & ~special] if self.recipe.drop_special else x[wanted])
        return _Made(torch.cat(kept) if kept else torch.empty(0, 0), [len(part) for part in kept])


class BufferOrder(BatchOrder):
    """Buffer after buffer, each in a fresh permutation."""

    def __init__(self, rows: StreamedRows, batch_rows: int, seed: int) -> None:
        super().__init__(rows.rows_per_buffer, batch_rows, seed)
        self.num_buffers = rows.num_buffers

    def indices(self, step: int) -> Int64[np.ndarray, " batch_rows"]:
        position = step * self.batch_rows + np.arange(self.batch_rows, dtype=np.int64)
        first: Int64[np.ndarray, " batch_rows"] = position // self.num_rows % self.num_buffers * self.num_rows
        within: Int64[np.ndarray, " batch_rows"] = first + super().indices(step)
        return within

    def goes_on(self, step: int, steps: int) -> bool:
        """Whether steps up to `steps` want a later buffer than the one with which the batch of a step ends."""
        return ((step + 1) * self.batch_rows - 1) // self.num_rows < (steps * self.batch_rows - 1) // self.num_rows
