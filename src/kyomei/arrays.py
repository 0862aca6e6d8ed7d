"""Numbers from whatever holds them in memory: the one conversion, for rows, for codes and for vectors that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kyomei.errors import DataError


@runtime_checkable
class HasArray(Protocol):
    """What gives itself as an ndarray, as data frames and the arrays of other libraries do."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


@runtime_checkable
class HasDlpack(Protocol):
    """What lends its memory, as arrays on a GPU do."""

    def __dlpack__(self) -> Any: ...


Numbers: TypeAlias = (
    Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."] | Sequence[Sequence[float]] | Sequence[Tensor] | HasArray | HasDlpack
)
"""Real numbers: a tensor, an ndarray, a list, a data frame, a sparse matrix, or an array of another library."""

_DO = "pass a tensor, an ndarray, a data frame or a list of lists"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def numbers_of(x: Numbers) -> Tensor | np.ndarray[Any, Any]:
    """The tensor or ndarray that holds real numbers, of any shape; nothing is copied where that can be avoided.

    Sparse matrices become dense, quantised ones plain; booleans are 0 and 1.

    Args:
        x: a tensor or an ndarray of any dtype, order and strides; a list of such or of numbers; or what offers `__array__`,
            `__dlpack__` or `__dataframe__`.

    Raises:
        DataError: there is none, or it holds complex numbers, texts, objects, masked or missing values.
    """
    if isinstance(x, Tensor):
        return _real_tensor(x)
    if isinstance(x, np.ndarray):
        return _real_array(x)
    if isinstance(x, list | tuple):
        return _of_list(x)
    return _of_other(x)


def tensor_of(x: Numbers) -> Tensor:
    """The same as a tensor, with the gradients and on the device of one that was given."""
    held = numbers_of(x)
    return held if isinstance(held, Tensor) else as_torch(held)


def code_of(z: Numbers) -> Tensor:
    """A code as a tensor: sparse in CSR, where it was given so, or dense."""
    return z if isinstance(z, Tensor) and z.layout == torch.sparse_csr else tensor_of(z)


def as_torch(array: np.ndarray[Any, Any]) -> Tensor:
    """An ndarray of real numbers as a tensor that shares its memory where torch can, or a copy in float32 or float64."""
    if array.dtype.type not in (np.float16, np.float32, np.float64):
        wide = array.dtype.type is np.longdouble or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
        array = array.astype(np.float64 if wide else np.float32)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    tensor: Tensor = torch.from_numpy(np.asarray(array))
    return tensor


def _real_tensor(x: Tensor) -> Tensor:
    if x.is_meta:
        raise DataError("a tensor with values", "one on the meta device", "load its values first")
    if x.is_complex():
        raise DataError("real numbers", f"a tensor of dtype {x.dtype}", "convert it to float32")
    if x.is_nested:
        raise DataError("one tensor", "a nested tensor of several", "join its parts with torch.cat")
    if x.is_quantized:
        x = x.dequantize()
    if x.layout != torch.strided:
        x = x.to_dense()
    # Of other dtypes, such as float8 and unsigned ones, torch can do little but convert them.
    return x if x.dtype in _FLOATS + _INTEGERS else x.float()


def _real_array(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(x, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(x).sum())
        if masked:
            raise DataError("numbers in every place", f"{masked} masked value(s)", "fill them, or leave their rows out")
        x = x.data
    # bfloat16 and float8 of other libraries are dtypes of the package ml_dtypes; numpy itself has none.
    if x.dtype.kind not in "fiub" and x.dtype.type.__module__ != "ml_dtypes":
        raise DataError("real numbers", f"an ndarray of dtype {x.dtype}", "convert it to float32")
    return x if isinstance(x, np.memmap) else np.asarray(x)


def _of_list(x: Sequence[Any]) -> Tensor | np.ndarray[Any, Any]:
    try:
        if x and all(isinstance(row, Tensor) for row in x):
            return _real_tensor(torch.stack(list(x)))
        return _real_array(np.asarray(x))
    except DataError:
        raise
    except Exception as error:  # what is in the list may raise anything when it is converted
        found = f"a list that is none ({type(error).__name__})"
        raise DataError("rows of equal length in a list", found, "join its parts with torch.cat") from error


def _of_other(x: Any) -> Tensor | np.ndarray[Any, Any]:
    """What converts itself: SciPy's sparse matrices, data frames, arrays of other libraries."""
    for offers, convert in (
        ("toarray", lambda: x.toarray()),
        ("__array__", lambda: np.asarray(x)),
        ("__dlpack__", lambda: torch.utils.dlpack.from_dlpack(x)),
        ("__dataframe__", lambda: np.asarray(_interchanged(x))),
    ):
        if hasattr(type(x), offers):
            try:
                given = convert()
            except Exception:  # the next way may do, as __dlpack__ for what lies on a GPU
                continue
            if isinstance(given, Tensor):
                return _real_tensor(given)
            if isinstance(given, np.ndarray):
                return _real_array(given)
    raise DataError("numbers", f"a value of type {type(x).__name__}", _DO)


def _interchanged(x: Any) -> Any:
    from pyarrow import interchange

    return interchange.from_dataframe(x)


def unit_rows(x: Float[Tensor, "*rows dim"]) -> tuple[Float[Tensor, "*rows dim"], Float[Tensor, "*rows 1"]]:
    """Rows divided by their norms, and the norms; a row of zeros stays one, and its norm is 0.

    Rows are divided by their largest entry first, so that no square leaves the range of their dtype.

    Args:
        x: finite rows [..., dim] of a floating dtype.

    Returns:
        Rows of norm 1 [..., dim] and the norms [..., 1], in the dtype and on the device of the rows.
    """
    largest = x.abs().amax(dim=-1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0), largest * norm
