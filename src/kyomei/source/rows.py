"""Activation rows from whatever holds them: tensors, arrays, files, folders of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import safetensors
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from kyomei.errors import DataError
from kyomei.source.guards import require_finite, require_inside
from kyomei.source.shards import ShardFolder


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


def open_rows(x: Shaped[Tensor, "rows dim"] | Shaped[np.ndarray, "rows dim"] | str | Path | Rows) -> Rows:
    """Rows from whatever holds them.

    Args:
        x: numbers [rows, dim], a .npy or .safetensors file of them, the folder of one site's shards, or `Rows`, which are
            returned as they are.

    Raises:
        DataError: nothing is there, the shape is wrong, there are no rows, a value is not finite, or a file is damaged.
    """
    if isinstance(x, str | Path):
        return _open_path(Path(x))
    if isinstance(x, Tensor | np.ndarray):
        return TensorRows(x)
    if isinstance(x, Rows):
        return x
    raise DataError("a tensor, an ndarray or a shard folder", f"{type(x).__name__}", "pass one of these")


@final
class TensorRows:
    """Rows of a tensor or an ndarray in memory."""

    def __init__(self, x: Shaped[Tensor, "rows dim"] | Shaped[np.ndarray, "rows dim"]) -> None:
        if isinstance(x, np.ndarray) and x.dtype.kind not in "fiu":
            raise DataError("real numbers", f"an ndarray of dtype {x.dtype}", "convert it to float32")
        tensor = torch.as_tensor(x).detach()
        if tensor.ndim != 2:
            raise DataError("a tensor [rows, dim]", f"shape {list(tensor.shape)}", "reshape it, as with flatten(0, -2)")
        if 0 in tensor.shape:
            raise DataError("at least one row and one column", f"shape {list(tensor.shape)}", "check what produced the tensor")
        if tensor.is_complex():
            raise DataError("real numbers", f"a tensor of dtype {tensor.dtype}", "convert it to float32")
        self._tensor = tensor
        self.num_rows, self.dim = int(tensor.shape[0]), int(tensor.shape[1])
        for first_row, block in zip(range(0, self.num_rows, 8192), self.blocks(), strict=True):
            require_finite(block, "tensor", first_row)

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order, on the tensor's device."""
        require_inside(index, self.num_rows)
        return self._tensor[torch.from_numpy(index).to(self._tensor.device)].float()

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for first in range(0, self.num_rows, rows_per_block):
            yield self._tensor[first : first + rows_per_block].float()


def _open_path(path: Path) -> Rows:
    if path.suffix not in _READERS or path.is_dir():
        if path.is_file():
            do = "convert the file to one of these"
            raise DataError("a .npy or .safetensors file, a folder of shards or a run", f"{path}", do)
        return ShardFolder(path)
    if not path.exists():
        raise DataError("a file of activations", f"nothing at {path}", "check the path")
    return _READERS[path.suffix](path)


def _read_npy(path: Path) -> TensorRows:
    try:
        # Mapped, so that only the rows in use are in memory; copy-on-write, because torch wants its arrays writable.
        return TensorRows(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError("a .npy file of numbers", f"{path}: {error}", "save it again with numpy.save") from error


def _read_safetensors(path: Path) -> TensorRows:
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118  no mapping
            if "activations" not in names and len(names) != 1:
                found = f"{', '.join(names) or 'none'} in {path}"
                raise DataError("one matrix, or one called 'activations'", found, "save the activations under that name")
            return TensorRows(file.get_tensor("activations" if "activations" in names else names[0]))
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError("a .safetensors file", f"{path}: {error}", "save it again") from error


_READERS: dict[str, Callable[[Path], TensorRows]] = {".npy": _read_npy, ".safetensors": _read_safetensors}
"""How a file of activations is read, by its ending."""
