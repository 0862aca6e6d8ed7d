"""Activation rows from whatever holds them: tensors, arrays, data frames, files, folders of shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from kyomei.arrays import Numbers, as_torch, numbers_of, unit_rows
from kyomei.errors import DataError
from kyomei.source.guards import require_finite, require_inside
from kyomei.source.matrices import NAMED, READERS, read_matrix
from kyomei.source.shards import RELEASE_BYTES, ShardFolder, drop_pages

NEAR_SHARE = 0.25
"""Share of a GPU's free memory that rows may take: the rest is for what is learnt of them."""


@runtime_checkable
class Rows(Protocol):
    """Activation rows that can be read in any order."""

    @property
    def num_rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order."""
        ...

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        ...


RowsLike: TypeAlias = Rows | Numbers | str | Path
"""What `open_rows` takes."""


def open_rows(x: RowsLike) -> Rows:
    """Rows from whatever holds them: the one place where they are taken in.

    Args:
        x: numbers [rows, dim] or [batch, context, dim], which become batch · context rows: a tensor on any device, an ndarray
            of any dtype, order and strides, a list, a data frame, a sparse matrix. Or a file of them (.npy, .npz, .pt, .pth,
            .safetensors, .parquet; where it holds several, `FILE::NAME` says which), or the folder of one site's shards. Or
            `Rows`, which are returned as they are. The folder may be at an fsspec address, such as s3://bucket/folder.

    Raises:
        DataError: nothing is there, the shape is wrong, there are no rows, a value is not finite, or a file is damaged.
        AddressError: the address does not answer.
    """
    if isinstance(x, str | Path):
        return _open_path(str(x))
    if not isinstance(x, Tensor | np.ndarray) and isinstance(x, Rows):
        return x
    return TensorRows(x)


@final
class TensorRows:
    """Rows of numbers in memory, or of a mapped file, which is never in memory as a whole.

    Args:
        x: numbers [rows, dim] or [batch, context, dim].
        name: what holds them, for errors.

    Raises:
        DataError: the shape is wrong, there are no rows, or a value is not finite.
    """

    def __init__(self, x: Numbers, name: str = "") -> None:
        held = numbers_of(x)
        self._held = held.detach() if isinstance(held, Tensor) else held
        name = name or ("tensor" if isinstance(held, Tensor) else "array")
        shape = list(held.shape)
        if len(shape) not in (2, 3):
            # One vector may be one row, or one column of as many rows: the caller has to say which.
            one = "pass x[None] if it is one row, x[:, None] if each number is one"
            do = one if len(shape) == 1 else "flatten it to two axes"
            raise DataError("rows [rows, dim], or [batch, context, dim]", f"shape {shape} of the {name}", do)
        if 0 in shape:
            raise DataError("at least one row and one column", f"shape {shape} of the {name}", "check what produced it")
        self._leading, self.dim = tuple(shape[:-1]), int(shape[-1])
        self.num_rows = math.prod(self._leading)
        self._touched = 0
        require_finite(self.blocks(), name)

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order, on the tensor's device."""
        require_inside(index, self.num_rows)
        place = np.unravel_index(index, self._leading)
        if isinstance(self._held, Tensor):
            return self._held[tuple(torch.from_numpy(axis).to(self._held.device) for axis in place)].float()
        taken = as_torch(self._held[place]).float()
        if isinstance(self._held, np.memmap) and self._held.mode == "r":
            self._dropped(self._held, index)
        return taken

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for first in range(0, self.num_rows, rows_per_block):
            last = min(first + rows_per_block, self.num_rows)
            if isinstance(self._held, Tensor) and len(self._leading) == 1:
                yield self._held[first:last].float()  # a view, where it is float32 already
            else:
                yield self.read(np.arange(first, last))

    def _dropped(self, mapped: np.memmap[Any, Any], index: Int64[np.ndarray, " batch"]) -> None:
        """Drop the pages of a mapped file once so many may have become resident."""
        if len(index):
            self._touched += int(index.max() - index.min() + 1) * self.dim * mapped.itemsize
        if self._touched >= RELEASE_BYTES:
            self._touched = 0
            drop_pages(mapped)


@final
class UnitRows:
    """The same rows, each divided by its norm, as the paper's algorithm takes them; a row of zeros stays one.

    Args:
        rows: activations as they are.

    Source: arXiv:2506.14002, algorithm 1 ("sample and normalise").
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self.num_rows, self.dim = rows, rows.num_rows, rows.dim

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order."""
        return unit_rows(self._rows.read(index))[0]

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for block in self._rows.blocks(rows_per_block):
            yield unit_rows(block)[0]


def as_seen(rows: Rows, unit_rows: bool) -> Rows:
    """Rows as a dictionary sees them whose recipe has this for `dictionary.unit_rows`."""
    return UnitRows(rows) if unit_rows else rows


def near(rows: Rows, device: torch.device | str) -> Rows:
    """The same rows in the memory of a GPU, where they take no more than `NEAR_SHARE` of what is free there.

    Rows that are read many times in random order cost more to find and to send than to use.
    """
    device = torch.device(device)
    if 4 * rows.num_rows * rows.dim > NEAR_SHARE * free_bytes(device) or rows.read(np.arange(1)).device.type == device.type:
        return rows
    held = torch.empty(rows.num_rows, rows.dim, device=device)
    first = 0
    for block in rows.blocks(2**16):
        held[first : first + len(block)] = block.to(device)
        first += len(block)
    return TensorRows(held)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing uses; none of other devices, which are not asked."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _open_path(address: str) -> Rows:
    """The rows at PATH, at PATH::NAME, or at an address."""
    if "://" in address and not _is_there(Path(address)):
        return ShardFolder(address)
    path, _, key = address.rpartition(NAMED) if NAMED in address and not _is_there(Path(address)) else (address, "", "")
    place = Path(path)
    if not _is_there(place):
        kinds = ", ".join(READERS)
        do = f"check the path: a file ({kinds}), a folder of shards, which `kyomei harvest` makes, or a run"
        raise DataError("activations", f"nothing at {path}", do)
    if place.is_dir():
        return ShardFolder(place)
    return TensorRows(read_matrix(place, key or None), path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or with a NUL in it
        return False
