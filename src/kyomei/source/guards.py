"""What every row has to be: finite, and one of those there are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from kyomei.errors import DataError


def require_finite(
    x: Shaped[Tensor, "rows dim"], where: str, first_row: int = 0, do: str = "remove or repair that row"
) -> None:
    """Raise DataError naming `where`, the row (counted from `first_row`) and the value if `x` holds NaN or infinity."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row = int((~finite.all(dim=1)).nonzero()[0])
        value = float(x[row][~finite[row]][0])
        raise DataError("finite activations", f"{value} in {where}, row {first_row + row}", do)


def require_inside(index: Int64[np.ndarray, " batch"], num_rows: int) -> None:
    """Raise DataError if a row number is not one of `num_rows` rows."""
    if len(index) and (index.min() < 0 or index.max() >= num_rows):
        raise DataError(f"row numbers from 0 to {num_rows - 1}", f"{index.min()} to {index.max()}", "correct the row numbers")
