"""The code of all rows on the disk, by latent: rows are encoded once, and every later pass reads what it needs."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy import sparse
from torch import Tensor

from kyomei.atomic import remove_temporaries, write_atomic
from kyomei.dictionary.kernels import active_above
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.least_squares import to_scipy
from kyomei.source.rows import Rows

ROWS_PER_FILE = 16_384
ROWS_AT_ONCE = 2048
ENTRIES_AT_ONCE = 2**23
"""Active entries held at a time: latents are taken in groups of at most so many."""
_MADE_FROM = "made_from.json"

Progress = Callable[[int, int], None]


@final
class CodeStore:
    """Sparse codes of rows in files of some rows each, latent by latent.

    A file that is there is whole: a build that was killed goes on after the last one.

    Args:
        folder: where the files are; those that were made from something else are removed.
        sae: the dictionary.
        rows: activations [rows, dim].
        made_from: digests by name of what the code depends on.
    """

    def __init__(self, folder: Path, sae: SparseAutoencoder, rows: Rows, made_from: Mapping[str, str]) -> None:
        self._folder, self._sae, self._rows = folder, sae, rows
        self.width, self.num_rows = sae.width, rows.num_rows
        wanted = json.dumps(dict(sorted(made_from.items())), indent=1).encode()
        mark = folder / _MADE_FROM
        if not mark.exists() or mark.read_bytes() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            write_atomic(mark, wanted)
        remove_temporaries(folder)

    def fill(self, progress: Progress | None = None) -> None:
        """Encode the rows that are not encoded yet, with as many threads as torch has.

        Each thread has its own rows: threads that share a product wait for one another after every small block of it.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
                self._fill(pool, progress)
        finally:
            torch.set_num_threads(threads)

    def _fill(self, pool: ThreadPoolExecutor, progress: Progress | None) -> None:
        for number, first in enumerate(range(0, self.num_rows, ROWS_PER_FILE)):
            last = min(first + ROWS_PER_FILE, self.num_rows)
            if not _is_whole(self._path(number)):
                code = self._encoded(first, last, pool)
                arrays = {"starts": code.indptr.astype(np.int64), "row": code.indices.astype(np.int32), "value": code.data}
                write_atomic(self._path(number), save(arrays))
            if progress is not None:
                progress(last, self.num_rows)

    def _encoded(self, first: int, last: int, pool: ThreadPoolExecutor) -> sparse.csc_array:
        begins = range(first, last, ROWS_AT_ONCE)
        blocks = (self._rows.read(np.arange(begin, min(begin + ROWS_AT_ONCE, last))) for begin in begins)
        found = list(pool.map(functools.partial(active_entries, self._sae), blocks))
        latents, rows, values = zip(*found, strict=True)
        rows = tuple(row + (begin - first) for row, begin in zip(rows, begins, strict=True))
        return _by_latent(np.concatenate(latents), np.concatenate(rows), np.concatenate(values), (last - first, self.width))

    def counts(self) -> Int64[np.ndarray, " width"]:
        """Rows in which each latent is active."""
        counts = np.zeros(self.width, dtype=np.int64)
        for _, held in self._files():
            counts += np.diff(held.get_slice("starts")[:])
        return counts

    def groups(self) -> Iterator[tuple[int, sparse.csc_array]]:
        """All latents in order, as many at a time as have `ENTRIES_AT_ONCE` active entries: (first latent, [rows, latents]).

        Within a latent, rows ascend.
        """
        counts, first = self.counts(), 0
        ends = np.concatenate([[0], np.cumsum(counts)])
        while first < self.width:
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + ENTRIES_AT_ONCE, side="right")) - 1)
            yield first, self._columns(first, last)
            first = last

    def _columns(self, first: int, last: int) -> sparse.csc_array:
        latents, rows, values = [], [], []
        for offset, held in self._files():
            starts = held.get_slice("starts")[first : last + 1]
            span = slice(int(starts[0]), int(starts[-1]))
            latents.append(np.repeat(np.arange(last - first), np.diff(starts)))
            rows.append(held.get_slice("row")[span].astype(np.int64) + offset)
            values.append(held.get_slice("value")[span])
        shape = (self.num_rows, last - first)
        return _by_latent(np.concatenate(latents), np.concatenate(rows), np.concatenate(values), shape)

    def of_rows(self, taken: Int64[np.ndarray, " taken"]) -> sparse.csc_array:
        """The code [taken, width] of some rows, whose numbers ascend."""
        latents, rows, values = [], [], []
        for offset, held in self._files():
            row = held.get_slice("row")[:].astype(np.int64) + offset
            place = np.searchsorted(taken, row).clip(max=len(taken) - 1)
            kept = taken[place] == row
            latents.append(np.repeat(np.arange(self.width), np.diff(held.get_slice("starts")[:]))[kept])
            rows.append(place[kept])
            values.append(held.get_slice("value")[:][kept])
        shape = (len(taken), self.width)
        return _by_latent(np.concatenate(latents), np.concatenate(rows), np.concatenate(values), shape)

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"codes-{number:05d}.safetensors"

    def _files(self) -> Iterator[tuple[int, Any]]:
        """Each file with the number of its first row."""
        for number, first in enumerate(range(0, self.num_rows, ROWS_PER_FILE)):
            with safe_open(self._path(number), framework="numpy") as held:
                yield first, held


@torch.no_grad()
def active_entries(sae: SparseAutoencoder, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latent, row and activation (float32) of every active entry of the code of rows [rows, dim], by latent, then row."""
    if sae.k is None and sae.encoder.dtype == torch.float32 and sae.encoder.device.type == "cpu":
        above = sae.threshold if sae.bias is None else sae.threshold - sae.bias
        active, value = active_above(sae.centred(x), sae.encoder, above)
        if sae.activation == "relu":
            value = value - above[active.latent]
        elif sae.bias is not None:
            value = value + sae.bias[active.latent]
        return active.latent.numpy(), active.row.numpy(), value.numpy()
    z = sae.encode(x, sparse=True)
    code = to_scipy(z.float()).tocsc()
    return np.repeat(np.arange(sae.width), np.diff(code.indptr)), code.indices.astype(np.int64), code.data


def _by_latent(latent: np.ndarray, row: np.ndarray, value: np.ndarray, shape: tuple[int, int]) -> sparse.csc_array:
    """Entries by latent; those of one latent stay in their order."""
    entries = sparse.coo_array((value.astype(np.float32), (row, latent)), shape=shape)
    entries.has_canonical_format = True  # each entry is there once: nothing is to be summed
    return entries.tocsc()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (FileNotFoundError, SafetensorError, OSError):
        return False
