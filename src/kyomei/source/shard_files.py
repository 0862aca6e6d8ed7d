"""One shard: a safetensors file of rows as they are stored, and the token that each comes from."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt8
from torch import Tensor

from kyomei.errors import DataError
from kyomei.stores import Store, StoredFile

Dtype = Literal["float32", "float16", "bfloat16", "int8"]
ROWS, SCALES, ROW_TOKENS = "activations", "scales", "row_tokens"

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# numpy has no bfloat16: its bits are mapped as integers.
_STORED: dict[str, tuple[str, type[np.generic]]] = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", np.int16),
    "int8": ("I8", np.int8),
}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8}
_NAMES = {torch.int64: "I64", torch.int8: "I8", **{of: _STORED[name][0] for name, of in _TORCH.items()}}
_LARGEST = 127
_HEAD_BYTES = 4096
"""The header of a shard is shorter."""
REDO = "harvest again with --resume: only this shard is redone"


def stored(x: Float[Tensor, "rows dim"], dtype: Dtype) -> dict[str, Tensor]:
    """Rows as a shard stores them, by name.

    Of int8 each row has a scale, the largest of its absolute values / 127, and its values are multiples of that.
    """
    x = x.detach().cpu()
    if dtype != "int8":
        return {ROWS: x.to(_TORCH[dtype]).contiguous()}
    x = x.float()
    scales = x.abs().amax(dim=1) / _LARGEST
    steps = (x / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return {ROWS: steps.clamp(-_LARGEST, _LARGEST).to(torch.int8), SCALES: scales}


def packed(tensors: dict[str, Tensor]) -> list[bytes | memoryview]:
    """Tensors as a safetensors file, piece by piece: what safetensors.torch.save gives as one copy of all of it.

    Args:
        tensors: contiguous, on the CPU, of the dtypes that shards have.
    """
    # As the library orders them: the widest first, so that all are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        span = [end, end := end + tensor.numel() * tensor.element_size()]
        head[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces = [tensors[name].flatten().view(torch.uint8).numpy().data for name in order if tensors[name].numel()]
    return [len(text).to_bytes(8, "little"), text, *pieces]


def in_memory(dtype: Dtype) -> torch.dtype:
    """How rows are kept until they are stored; int8 is made of whole rows."""
    return _TORCH.get(dtype, torch.float32)


def bytes_of_row(dtype: Dtype, dim: int) -> int:
    """Bytes that a row takes, the number of its token included."""
    return _BYTES[_STORED[dtype][0]] * dim + (4 if dtype == "int8" else 0) + 8


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn an error of the system into a DataError that names the shard."""
    try:
        yield
    except OSError as error:
        raise DataError(f"shard {name} to stay readable", f"{error}", "keep the folder in place") from error


@final
class MappedShard:
    """One shard file, mapped into memory from when it is first read until it is closed.

    What its header says is looked at at once, or where it is at an address when it is first read.
    """

    def __init__(self, store: Store, entry: dict[str, Any], dtype: Dtype, dim: int) -> None:
        self.name, self.num_rows, self._dim, self._dtype = str(entry["file"]), int(entry["num_rows"]), dim, dtype
        self._file, self._where = store.file(self.name, str(entry.get("sha256"))), f"{store}/{self.name}"
        self._as_numpy = _STORED[dtype][1]
        self._mapping: mmap.mmap | None = None
        if store.is_here:
            self._start  # noqa: B018  looked at

    @functools.cached_property
    def _start(self) -> dict[str, int]:
        """Where in the file each thing begins."""
        layout = _layout(self._file, self._where)
        wanted = {ROWS: (_STORED[self._dtype][0], [self.num_rows, self._dim]), ROW_TOKENS: ("I64", [self.num_rows])}
        if self._has_scales:
            wanted[SCALES] = ("F32", [self.num_rows])
        for name, (kind, shape) in wanted.items():
            self._check(layout, name, kind, shape)
        return {name: layout[name]["span"][0] for name in wanted}

    def _check(self, layout: dict[str, Any], name: str, dtype: str, shape: list[int]) -> None:
        held = layout.get(name, {})
        if held.get("shape") != shape or held.get("dtype") != dtype:
            found = f"{held.get('dtype', 'nothing')} {held.get('shape', '')}".strip() + f" in {self._where}"
            raise DataError(f"{name} of {dtype} {shape}, as in the index", found, "harvest this site again")
        first, last = held["span"]
        if last - first != math.prod(shape) * _BYTES[dtype]:
            raise DataError("a safetensors shard", f"a damaged header in {self._where}", REDO)

    def _view(self, name: str, dtype: type[np.generic], count: int) -> Shaped[np.ndarray, " values"]:
        mapping = self._mapping
        if mapping is None:
            with _named(self.name):
                mapping = self._mapping = self._file.opened(_mapped)
        return np.frombuffer(mapping, dtype, count, self._start[name])

    def row_tokens(self) -> Int64[np.ndarray, " rows"]:
        """Where the rows come from."""
        return self._cut(ROW_TOKENS, 8 * self.num_rows, np.zeros(1, np.int64)).view(np.int64)

    def read(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        rows = self._view(ROWS, self._as_numpy, self.num_rows * self._dim).reshape(self.num_rows, self._dim)
        return self._as_float(rows[local], self._view(SCALES, np.float32, self.num_rows)[local] if self._has_scales else None)

    def read_few(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The same of sorted rows without a mapping."""
        size = self._dim * np.dtype(self._as_numpy).itemsize
        rows = self._cut(ROWS, size, local).view(self._as_numpy).reshape(len(local), self._dim)
        return self._as_float(rows, self._cut(SCALES, 4, local).view(np.float32) if self._has_scales else None)

    def _cut(self, name: str, size: int, local: Int64[np.ndarray, " batch"]) -> UInt8[np.ndarray, " bytes"]:
        """So many entries of so many bytes each, beginning at some places of what the file holds by a name."""
        start = self._start[name]
        with _named(self.name):
            pieces = self._file.cut([(start + row * size, start + (row + 1) * size) for row in local.tolist()])
        for row, piece in zip(local.tolist(), pieces, strict=True):
            if len(piece) != size:
                raise DataError("a complete shard", f"{self._where}, which ends before row {row + 1}", REDO)
        return np.frombuffer(bytearray(b"".join(pieces)), np.uint8)

    @property
    def _has_scales(self) -> bool:
        return self._dtype == "int8"

    def _as_float(
        self, rows: Shaped[np.ndarray, "batch dim"], scales: Float32[np.ndarray, " batch"] | None
    ) -> Float32[Tensor, "batch dim"]:
        tensor = torch.from_numpy(rows)
        x = (tensor.view(torch.bfloat16) if self._dtype == "bfloat16" else tensor).float()
        return x if scales is None else x.mul_(torch.from_numpy(scales)[:, None])

    def span_bytes(self, local: Int64[np.ndarray, " batch"]) -> int:
        """Bytes from the first to the last of these sorted rows: all of them may have become resident."""
        return int(local[-1] - local[0] + 1) * self._dim * np.dtype(self._as_numpy).itemsize

    def release(self) -> None:
        """Drop the resident pages."""
        advise_drop(self._mapping)

    def close(self) -> None:
        """Let the mapping go; a reader that is at it keeps it until it is done."""
        self._mapping = None


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb", buffering=0) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _layout(file: StoredFile, where: str) -> dict[str, Any]:
    """Header of a safetensors file: name → dtype, shape and span, in bytes from the start of the file."""
    name = Path(where).name
    try:
        size = file.size()
        head = file.cut([(0, _HEAD_BYTES)])[0]
        length = int.from_bytes(head[:8], "little")
        if length > len(head) - 8 and length < size:
            head = file.cut([(0, 8 + length)])[0]
        header = json.loads(head[8 : 8 + length]) if length < size else {}
        header.pop("__metadata__", None)
        for entry in header.values():
            first, last = entry["data_offsets"]
            entry["span"] = (8 + length + int(first), 8 + length + int(last))
    except FileNotFoundError as error:
        raise DataError(f"shard {name}", f"no such file in {where.removesuffix(f'/{name}')}", REDO) from error
    except OSError as error:
        raise DataError(f"shard {name} to be readable", f"{error}", "check the file and its permissions") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError("a safetensors shard", f"a damaged header in {where}", REDO) from error
    end = max((entry["span"][1] for entry in header.values()), default=size + 1)
    if end != size:
        raise DataError("a complete shard", f"{where} of {size} bytes, truncated or overgrown", REDO)
    return dict(header)


def advise_drop(mapping: mmap.mmap | None) -> None:
    """Drop the resident pages of a mapping; they come back when they are read again."""
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
