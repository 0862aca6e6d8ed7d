"""Files of numbers: one reader for each format, from a path to the matrix in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors
import torch
from torch import Tensor

from kyomei.errors import DataError, KyomeiError, in_one_line

NAMED = "::"
"""Stands between a file and the name of the matrix in it that is wanted."""
USUAL = "activations"
"""The name that is taken where a file holds several matrices."""


def read_matrix(path: Path, key: str | None = None) -> Tensor | np.ndarray[Any, Any]:
    """The matrix in a file, by its ending; one that can be mapped into memory is.

    Args:
        path: of a file that is there.
        key: the name of the matrix; none: the only one there, or the one called "activations".

    Raises:
        DataError: it is of no known kind, is damaged, or does not hold the matrix.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        do = "convert the file to one of these"
        raise DataError(f"a file of activations ({', '.join(READERS)}), a folder of shards or a run", f"{path}", do)
    try:
        return reader(path, key)
    except KyomeiError:
        raise
    except Exception as error:  # on damaged bytes the readers raise whatever their parsers come upon
        found = f"{path}: {in_one_line(error)}"
        do = "write it again, or check that it was copied whole"
        raise DataError(f"a {path.suffix} file of numbers", found, do) from error


def _npy(path: Path, key: str | None) -> np.ndarray[Any, Any]:
    if key is not None:
        raise DataError("a file of several matrices to choose from", f"{path}, which holds one", f"leave {NAMED}{key} out")
    mapped: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.memmap):
        raise DataError("a .npy file", f"{path}, which is an archive of several", "rename it to .npz")
    return mapped


def _npz(path: Path, key: str | None) -> np.ndarray[Any, Any]:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError("a .npz archive", f"{path}, which is none", "rename it to .npy")
    with archive:
        arrays = {name: archive[name] for name in archive.files if key in (None, name)}
        names = archive.files
    return arrays[_chosen({name: array.shape for name, array in arrays.items()}, key, path, names)]


def _torch(path: Path, key: str | None) -> Tensor:
    """What torch.save wrote: a tensor, or a dict with one in it. Only this reads such files; nothing in them is run."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files of the old format cannot be mapped
        held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, Tensor) and key is None:
        return held
    if not isinstance(held, dict):
        found = f"{path}, which holds a {type(held).__name__}"
        raise DataError("a file of one tensor, or of a dict of tensors", found, "save the rows with torch.save(x, …)")
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    return tensors[_chosen({name: tuple(t.shape) for name, t in tensors.items()}, key, path)]


def _safetensors(path: Path, key: str | None) -> Tensor:
    with safetensors.safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
        tensor: Tensor = file.get_tensor(_chosen(shapes, key, path))
    return tensor


def _chosen(shapes: Mapping[str, tuple[int, ...]], key: str | None, path: Path, names: list[str] | None = None) -> str:
    """The name of the matrix that is wanted, or the only one that may be."""
    if key is not None:
        if key not in shapes:
            found = f"{', '.join(shapes if names is None else names) or 'none'} in {path}"
            raise DataError(f"a matrix called '{key}'", found, "choose one of these")
        return key
    matrices = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if USUAL in matrices:
        return USUAL
    if len(matrices) != 1:
        found = f"{', '.join(matrices) or 'none'} in {path}"
        raise DataError(f"one matrix, or one called '{USUAL}'", found, f"name the one you want: {path}{NAMED}NAME")
    return matrices[0]


def _parquet(path: Path, key: str | None) -> np.ndarray[Any, Any]:
    """One column of lists of numbers, a row each; or numeric columns alone, one for each dimension."""
    with pq.ParquetFile(path, memory_map=True) as file:
        schema = file.schema_arrow
        lists = [f.name for f in schema if _is_list(f.type) and _is_number(f.type.value_type)]
        if key is not None or lists:
            column = _chosen({name: (1, 1) for name in lists}, key, path)
            return _of_lists(file, column, path)
        others = [f.name for f in schema if not _is_number(f.type)]
        if others or not len(schema):
            found = f"{path}, with {', '.join(others[:8]) or 'no column'}"
            do = "leave the other columns out, or put the rows in one column of lists"
            raise DataError("columns of numbers, or one column of lists of numbers", found, do)
        out = np.empty((file.metadata.num_rows, len(schema)), np.float32)
        first = 0
        for batch in file.iter_batches():
            for place, values in enumerate(batch.columns):
                # A missing value becomes NaN, which is then named as what is not finite.
                out[first : first + len(batch), place] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
            first += len(batch)
        return out


def _of_lists(file: pq.ParquetFile, column: str, path: Path) -> np.ndarray[Any, Any]:
    blocks: list[np.ndarray[Any, Any]] = []
    for batch in file.iter_batches(columns=[column]):
        values = batch.column(0)
        lengths = set(pc.list_value_length(values).unique().to_pylist())
        lengths |= {block.shape[1] for block in blocks[-1:]}
        if len(lengths) > 1 or None in lengths:
            found = f"lengths {', '.join(map(str, sorted(lengths, key=str)))} in {column} of {path}"
            raise DataError("lists of one length", found.replace("None", "missing"), "leave the others out")
        numbers = values.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        blocks.append(numbers.reshape(len(values), -1))
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


READERS: dict[str, Callable[[Path, str | None], Tensor | np.ndarray[Any, Any]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    **dict.fromkeys((".parquet", ".parq", ".pq"), _parquet),
}
"""Ending, in lower case, to what reads such files."""
