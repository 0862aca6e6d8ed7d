"""One shard: a safetensors file of rows as they are stored, and the token that each comes from."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from kyomei.errors import DataError

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
_LARGEST = 127
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


def in_memory(dtype: Dtype) -> torch.dtype:
    """How rows are kept until they are stored; int8 is made of whole rows."""
    return _TORCH.get(dtype, torch.float32)


def bytes_of_row(dtype: Dtype, dim: int) -> int:
    """Bytes that a row takes, the number of its token included."""
    return _BYTES[_STORED[dtype][0]] * dim + (4 if dtype == "int8" else 0) + 8


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error of the system into a DataError that names the shard."""
    try:
        yield
    except OSError as error:
        raise DataError(f"shard {path.name} to stay readable", f"{error}", "keep the folder in place") from error


@final
class MappedShard:
    """One shard file, mapped into memory from when it is first read until it is closed."""

    def __init__(self, folder: Path, entry: dict[str, Any], dtype: Dtype, dim: int) -> None:
        self.path, self.num_rows, self._dim, self._dtype = folder / entry["file"], int(entry["num_rows"]), dim, dtype
        layout = _layout(self.path)
        stored_as, self._as_numpy = _STORED[dtype]
        wanted = {ROWS: (stored_as, [self.num_rows, dim]), ROW_TOKENS: ("I64", [self.num_rows])}
        if dtype == "int8":
            wanted[SCALES] = ("F32", [self.num_rows])
        for name, (kind, shape) in wanted.items():
            self._check(layout, name, kind, shape)
        self._start = {name: layout[name]["span"][0] for name in wanted}
        self._mapping: mmap.mmap | None = None

    def _check(self, layout: dict[str, Any], name: str, dtype: str, shape: list[int]) -> None:
        held = layout.get(name, {})
        if held.get("shape") != shape or held.get("dtype") != dtype:
            found = f"{held.get('dtype', 'nothing')} {held.get('shape', '')}".strip()
            raise DataError(f"{name} of {dtype} {shape}, as in the index", f"{found} in {self.path}", "harvest this site again")
        first, last = held["span"]
        if last - first != math.prod(shape) * _BYTES[dtype]:
            raise DataError("a safetensors shard", f"a damaged header in {self.path}", REDO)

    def _view(self, name: str, dtype: type[np.generic], count: int) -> Shaped[np.ndarray, " values"]:
        mapping = self._mapping
        if mapping is None:
            with _named(self.path), open(self.path, "rb", buffering=0) as file:
                mapping = self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapping, dtype, count, self._start[name])

    def row_tokens(self) -> Int64[np.ndarray, " rows"]:
        """A copy of where the rows come from."""
        return self._view(ROW_TOKENS, np.int64, self.num_rows).copy()

    def read(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        rows = self._view(ROWS, self._as_numpy, self.num_rows * self._dim).reshape(self.num_rows, self._dim)
        return self._as_float(rows[local], self._view(SCALES, np.float32, self.num_rows)[local] if self._has_scales else None)

    def read_few(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The same without a mapping."""
        rows = np.empty((len(local), self._dim), self._as_numpy)
        scales = np.empty((len(local), 1), np.float32) if self._has_scales else None
        with _named(self.path), open(self.path, "rb", buffering=0) as file:
            self._fill(file, ROWS, rows, local)
            if scales is not None:
                self._fill(file, SCALES, scales, local)
        return self._as_float(rows, None if scales is None else scales[:, 0])

    def _fill(
        self, file: FileIO, name: str, out: Shaped[np.ndarray, "batch width"], local: Int64[np.ndarray, " batch"]
    ) -> None:
        """Read some rows of what the file holds by a name."""
        bytes_of, size = out.data.cast("B"), out.strides[0]
        for place, row in enumerate(local.tolist()):
            file.seek(self._start[name] + row * size)
            if file.readinto(bytes_of[place * size : (place + 1) * size]) != size:
                raise DataError("a complete shard", f"{self.path}, which ends before row {row}", REDO)

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


def _layout(path: Path) -> dict[str, Any]:
    """Header of a safetensors file: name → dtype, shape and span, in bytes from the start of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        for entry in header.values():
            first, last = entry["data_offsets"]
            entry["span"] = (8 + length + int(first), 8 + length + int(last))
    except FileNotFoundError as error:
        raise DataError(f"shard {path.name}", f"no such file in {path.parent}", REDO) from error
    except OSError as error:
        raise DataError(f"shard {path.name} to be readable", f"{error}", "check the file and its permissions") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError("a safetensors shard", f"a damaged header in {path}", REDO) from error
    end = max((entry["span"][1] for entry in header.values()), default=size + 1)
    if end != size:
        raise DataError("a complete shard", f"{path} of {size} bytes, truncated or overgrown", REDO)
    return dict(header)


def advise_drop(mapping: mmap.mmap | None) -> None:
    """Drop the resident pages of a mapping; they come back when they are read again."""
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
