"""How many bytes of tensors and arrays are alive at once, counted where they are made: no noise, nothing of the libraries."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _stored(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of dense tensors; a sparse one's parts are tensors by themselves."""
    return (each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor) and each.layout == torch.strided)


def _is_of_a_file(address: int) -> bool:
    """Whether memory is a file's map: its pages are shared by all processes, and given back when others need room."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():  # elsewhere such memory is counted
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, end = (int(value, 16) for value in span.split("-"))
        if first <= address < end:
            return inode != "0"
    return False


class LiveBytes(TorchDispatchMode):
    """Counts inside its block: bytes of tensors that operations of this thread made, and of NumPy's arrays.

    What a file is mapped to is not counted, nor what operations need while they run.

    Attributes:
        most: largest number of bytes alive at once so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most, self._tensors = 0, 0
        self._sizes: dict[int, int] = {}

    @property
    def most(self) -> int:
        self._look()
        return self._most

    def __enter__(self) -> LiveBytes:
        tracemalloc.start(1)
        self._before = tracemalloc.get_traced_memory()[0]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._look()
        super().__exit__(*error)
        tracemalloc.stop()

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        self._look()
        known = {storage._cdata for storage in _stored((given, named))}
        made = operation(*given, **(named or {}))
        if operation is torch.ops.aten.set_.source_Storage and _is_of_a_file(given[1].data_ptr()):
            return made
        for storage in _stored(made):
            # A view, or memory of NumPy's that is counted there, was among what the operation was given.
            if storage._cdata not in known and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._tensors += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
        self._look()
        return made

    def _freed(self, which: int) -> None:
        self._tensors -= self._sizes.pop(which)

    def _look(self) -> None:
        self._most = max(self._most, self._tensors + tracemalloc.get_traced_memory()[1] - self._before)
        tracemalloc.reset_peak()
