"""Activation rows in checked safetensors shards on disk, read in any order with bounded memory."""

from __future__ import annotations

import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from kyomei.errors import DataError
from kyomei.source.guards import require_finite, require_inside
from kyomei.source.journals import INDEX, read_journal
from kyomei.source.shard_files import REDO, Dtype, MappedShard, advise_drop, bytes_of_row
from kyomei.stores import Copies, Store, StoreLike, store_at

# Mapped pages count as resident memory until dropped. One touched row faults in 64 KiB around it, or megabytes where the page
# cache holds large folios, so that a few rows make a whole shard resident. How much is resident is asked for each time that
# CHECK_BYTES may have come; where the system does not tell, pages are dropped then.
RELEASE_BYTES = 128 << 20
CHECK_BYTES = 64 << 20

FEW_ROWS = 64
"""So many rows of a shard here that is not mapped are read by themselves: mapping it costs as much as reading them."""
_FILES_SHARE = 8
"""A folder keeps at most one in so many of the files open that this process may open: several folders may be in use."""


@final
class ShardFolder:
    """Rows of one site in memory-mapped shards; resident memory and open files stay bounded however many rows there are.

    Shards at an address are copied to this machine as they are read, and checked against their sha256 when they come; what the
    copies have no room for is read in ranges (`kyomei.stores.Copies`).

    Args:
        folder: a folder or an address that holds index.json and the shards that it names.
        verify: check every shard's sha256 and that every value is finite, which reads all bytes once; not done at an address.

    Raises:
        DataError: something is missing, damaged, of another width or dtype, or not finite; the shard is named.
        AddressError: the address does not answer.
    """

    def __init__(self, folder: StoreLike, *, verify: bool = True) -> None:
        self.store = store_at(folder)
        index = _read_index(self.store)
        try:
            self.site: str = index["site"]
            self.dtype: Dtype = index["dtype"]
            self.dim: int = int(index["dim"])
            self.num_rows: int = int(index["num_rows"])
            self.meta: dict[str, Any] = dict(index["meta"])
            self.shards: list[dict[str, Any]] = index["shards"]
            self._mapped = [MappedShard(self.store, entry, self.dtype, self.dim) for entry in self.shards]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"{self.store}/{INDEX}: {type(error).__name__}: {error}"
            raise DataError(f"a whole {INDEX}", found, "delete its folder and harvest again") from error
        self._ends = np.cumsum([shard.num_rows for shard in self._mapped], dtype=np.int64)
        if len(self._ends) == 0 or int(self._ends[-1]) != self.num_rows or self.num_rows == 0:
            found = f"{sum(self._ends[-1:])} in its shards"
            raise DataError(f"{self.num_rows} rows, as in {self.store}/{INDEX}", found, "harvest this site again")
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        largest = max(shard.num_rows for shard in self._mapped) * bytes_of_row(self.dtype, self.dim)
        room = math.inf if self.store.is_here else Copies.of_environment().most_bytes
        # Shards of an address take room among the copies while they are mapped.
        self._most_open, self._fits = max(1, int(min(_most_open(), room / largest))), len(self._mapped) * largest <= room
        self._lock = threading.Lock()
        self._unchecked = 0
        self._resident = resident_file_bytes()
        if verify or not self.store.is_here:
            self._verify()

    def _verify(self) -> None:
        wrong = self.store.differing({entry["file"]: str(entry.get("sha256")) for entry in self.shards})
        if wrong:
            found = "other bytes (sha256 differs)" if self.store.has(wrong[0]) else "nothing of that name"
            raise DataError(f"{wrong[0]} as it was written", f"{found} in {self.store}", REDO)
        if not self.store.is_here:
            return
        for shard, end in zip(self._mapped, self._ends, strict=True):
            for first in range(0, shard.num_rows, 8192):
                stop = min(first + 8192, shard.num_rows)
                start = int(end) - shard.num_rows
                block = self.read(np.arange(start + first, start + stop))
                require_finite(block, f"shard {shard.name} of {self.store}", first)

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order."""
        require_inside(index, self.num_rows)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        out = torch.empty(len(index), self.dim)
        cuts = np.searchsorted(ordered, np.concatenate([[0], self._ends]))
        for number in np.flatnonzero(np.diff(cuts)):
            shard, first, last = self._mapped[number], cuts[number], cuts[number + 1]
            local = ordered[first:last] - (self._ends[number] - shard.num_rows)
            place = torch.from_numpy(order[first:last])
            # A few rows of an address that has room for copies are worth one: others will be asked for.
            by_themselves = not self._fits or (self.store.is_here and len(local) <= FEW_ROWS)
            if by_themselves and self._is_full_without(int(number)):
                out[place] = shard.read_few(local)
                continue
            out[place] = self._opened(int(number)).read(local)
            self._unchecked += shard.span_bytes(local)
            if self._unchecked >= CHECK_BYTES:
                self._unchecked = 0
                if not self._resident or resident_file_bytes() - self._resident >= RELEASE_BYTES:
                    self._release()
        return out

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for first in range(0, self.num_rows, rows_per_block):
            yield self.read(np.arange(first, min(first + rows_per_block, self.num_rows)))

    def row_tokens(self) -> Int64[np.ndarray, " rows"]:
        """Where each row comes from: window × context + position in the part's tokens."""
        return np.concatenate([shard.row_tokens() for shard in self._mapped])

    def _is_full_without(self, number: int) -> bool:
        """Whether another shard would have to be closed for this one."""
        with self._lock:
            return number not in self._open and len(self._open) >= self._most_open

    def _opened(self, number: int) -> MappedShard:
        """A shard that stays mapped until so many others were read: a mapping keeps its file open."""
        with self._lock:
            self._open[number] = self._mapped[number]
            self._open.move_to_end(number)
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)[1].close()
        return self._mapped[number]

    def _release(self) -> None:
        with self._lock:
            mapped = list(self._open.values())
        for shard in mapped:
            shard.release()
        self._unchecked = 0
        self._resident = resident_file_bytes()


def resident_file_bytes() -> int:
    """Bytes of files that are resident in this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


def drop_pages(mapped: np.memmap[Any, Any]) -> None:
    """Drop the resident pages of a file that is mapped for reading; they come back when they are read again."""
    advise_drop(getattr(mapped, "_mmap", None))


def _most_open() -> int:
    """How many shards of a folder may be mapped at a time."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1024
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if limit == resource.RLIM_INFINITY else max(1, min(1024, limit // _FILES_SHARE))


def _read_index(store: Store) -> dict[str, Any]:
    journal = read_journal(store)
    if journal is not None and "num_rows" in journal:
        return journal
    if journal is not None:
        raise DataError("a finished harvest", f"an interrupted one in {store}", "harvest again with --resume")
    if not store.has(""):
        raise DataError("a folder of activation shards", f"nothing at {store}", "check the path, or run `kyomei harvest`")
    # A part of a harvest holds sites; a run holds parts.
    found = [*store.names(f"*/{INDEX}"), *store.names(f"activations/*/*/{INDEX}")]
    inside = sorted(name.removesuffix(f"/{INDEX}") for name in found)
    do = f"name one of its sites: {', '.join(inside)}" if inside else "check the path, or run `kyomei harvest`"
    raise DataError(f"a folder with {INDEX}", f"{store} without one", do)
