"""Files that hold autoencoders: JSON and tensors, read without running anything that is in them."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from kyomei.atomic import appearing, write_atomic
from kyomei.errors import DataError, KyomeiError

_SAFETENSORS_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
AGAIN = "restore the file from a copy, or write it anew"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path.name} of a saved autoencoder", f"no {path}", "check the folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"JSON in {path}", f"{error}", "restore the file from a copy, or train again") from error
    if not isinstance(held, dict):
        raise DataError(f"a mapping in {path}", f"a {type(held).__name__}", AGAIN)
    return held


def write_json(path: Path, held: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole or not at all."""
    write_atomic(path, (json.dumps(held, indent=2) + "\n").encode())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors.

    Raises:
        DataError: there is none, or it is damaged.
    """
    with _damage_named(path):
        return tensors_from_bytes(path.read_bytes())


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what reading a file of safetensors raises into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path.name} of a saved autoencoder", f"none in {path.parent}", "copy the whole folder") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"safetensors in {path}", f"damage: {error}", "restore the file from a copy, or train again") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, from any device, whole or not at all."""
    write_atomic(path, tensors_to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def write_safetensors_in_pieces(
    path: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, pieces: Iterable[Tensor]
) -> None:
    """Write the same bytes as `write_safetensors`, of tensors that are never here as a whole.

    Args:
        path: the file, which appears whole or not at all.
        shapes: of all tensors.
        dtype: theirs.
        pieces: their rows, tensors in the order of their names.

    Raises:
        RunError: the disk is full.
    """
    bytes_each, name_of_dtype = torch.empty(0, dtype=dtype).element_size(), _SAFETENSORS_DTYPES[dtype]
    described: dict[str, Any] = {}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + bytes_each * math.prod(shapes[name])
        described[name] = {"dtype": name_of_dtype, "shape": list(shapes[name]), "data_offsets": [begin, end]}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with appearing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            file.write(_as_bytes(piece))


def _as_bytes(piece: Tensor) -> bytes:
    return piece.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def read_rows_of_safetensors(path: Path, rows: Callable[[str, int], slice | None]) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, of some only a part of the rows.

    Args:
        path: of the file.
        rows: which of a tensor of that name and length, which is 0 of a single number; none: all.

    Raises:
        DataError: there is none, or it is damaged.
    """
    tensors = {}
    with _damage_named(path), safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  not a dict
            held = file.get_slice(name)
            which = rows(name, (held.get_shape() or [0])[0])
            # A copy: what is read through the file's map would count as resident as long as the file is open.
            tensors[name] = (file.get_tensor(name) if which is None else held[which.start : which.stop]).clone()
    return tensors


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a .npz archive, as tensors.

    Raises:
        DataError: it is damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except Exception as error:  # on damaged bytes the readers raise whatever their parsers come upon
        raise DataError(f"arrays of numbers in {path}", f"{error}", AGAIN) from error


def read_torch(path: Path) -> dict[str, Any]:
    """What torch.save wrote: a mapping of tensors and plain values. Nothing else in the file is looked at, or run.

    Raises:
        DataError: it is damaged, or holds anything else.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever it comes upon
        found = f"{str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
        do = "save its state_dict() with torch.save, where the file comes from"
        raise DataError(f"tensors in {path}; pickled code is never run", found, do) from error
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise DataError(f"a state_dict in {path}", f"a {type(held).__name__}", "save its state_dict() with torch.save")
    return held


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state_dict as torch.load reads it, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, buffer)
    write_atomic(path, buffer.getvalue())


def tensors_of(held: Mapping[str, Any], names: tuple[str, ...], path: Path) -> list[Tensor]:
    """Some of a file's tensors.

    Raises:
        DataError: one is not there, or holds no real numbers.
    """
    missing = [name for name in names if not isinstance(held.get(name), Tensor)]
    if missing:
        found = ", ".join(sorted(map(str, held))[:20]) or "nothing"
        raise DataError(f"the tensors {', '.join(names)} in {path}", found, "check that the whole folder was copied")
    return [held[name] for name in names]


def require_sound(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise DataError unless tensors are finite and of one floating dtype; the threshold of a silent latent may be infinite."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise DataError(f"tensors of one floating dtype in {path}", found, "copy the whole folder anew")
    for name, tensor in tensors.items():
        values = tensor.float()
        wrong = int((values.isnan() if name == "threshold" else ~values.isfinite()).sum())
        if wrong:
            found = f"{wrong:,} value(s) that are NaN or infinite"
            raise DataError(f"a finite {name} in {path}", found, "restore the file from a copy, or train again")


def consistent(path: Path, error: KyomeiError) -> DataError:
    """What is said where tensors and settings of a file do not fit together."""
    return DataError(f"a consistent autoencoder in {path}: {error.expected}", error.found, "copy it anew")
