"""What every row has to be: finite, and one of those there are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from kyomei.errors import DataError


def require_finite(
    x: Shaped[Tensor, "rows dim"] | Iterable[Shaped[Tensor, "block dim"]],
    where: str,
    first_row: int = 0,
    do: str = "remove or repair that row",
) -> None:
    """Raise DataError if rows hold NaN or infinity: it counts such values and names the first one.

    Args:
        x: rows, or blocks of them in order.
        where: what holds them.
        first_row: number of the first row.
        do: what to do about it.
    """
    first, values, rows = "", 0, 0
    for block in (x,) if isinstance(x, Tensor) else x:
        finite = torch.isfinite(block)
        if not bool(finite.all()):
            if not first:
                row, column = (~finite).nonzero()[0].tolist()
                first = f"{float(block[row, column])} in {where}, row {first_row + row}, column {column}"
            values, rows = values + int((~finite).sum()), rows + int((~finite.all(dim=1)).sum())
        first_row += len(block)
    if first:
        count = "" if values == 1 else f", the first of {values:,} such values in {rows:,} row{'s' if rows > 1 else ''}"
        raise DataError("finite activations", first + count, do)


def require_inside(index: Int64[np.ndarray, " batch"], num_rows: int) -> None:
    """Raise DataError if a row number is not one of `num_rows` rows."""
    if len(index) and (index.min() < 0 or index.max() >= num_rows):
        raise DataError(f"row numbers from 0 to {num_rows - 1}", f"{index.min()} to {index.max()}", "correct the row numbers")
