"""Directions as they are compared: scaled to unit rows, and matched one to one."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.arrays import Numbers, tensor_of
from kyomei.dictionary.cosines import cosine_blocks
from kyomei.errors import EvidenceError

Vectors = Numbers
"""One vector a row: a tensor, an ndarray, a list of lists or whatever else `kyomei.arrays` takes."""


def unit_rows(vectors: Vectors, name: str) -> Float[Tensor, "rows dim"]:
    """Rows scaled to norm 1 in float32; a zero row stays zero, so that its cosine with anything is 0.

    Raises:
        EvidenceError: unless the tensor is [rows, dim] and finite; `name` says which one it was.
    """
    vectors = tensor_of(vectors)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise EvidenceError(f"{name} of shape [rows, dim]", f"shape {list(vectors.shape)}", "pass one vector a row")
    vectors = vectors.detach().float()
    finite = torch.isfinite(vectors).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise EvidenceError(f"finite {name}", f"NaN or infinity in row {row}", "find out which step produced it")
    # A float32 norm overflows or vanishes for extreme scales; scaling by the largest entry first is exact enough.
    largest = vectors.abs().amax(dim=1, keepdim=True)
    return normalize(vectors / torch.where(largest > 0, largest, 1.0), dim=1)


def matched_cosine(a: Float[Tensor, "k dim"], b: Float[Tensor, "l dim"]) -> float:
    """Mean |cos| over the best one-to-one matching of unit rows, min(k, l) pairs.

    Exact (Hungarian); needs 8·k·l bytes and, at worst, time of order min(k, l)²·max(k, l).

    Returns:
        The mean, 0 if either side is empty.

    Source: arXiv:2505.20254 (PW-MCC); the MCC of `sae_lens.synthetic`.
    """
    if len(a) > len(b):
        a, b = b, a
    if len(a) == 0:
        return 0.0
    # Costs rather than gains, in float64 and with no more rows than columns: scipy then makes no copy of its own.
    costs = np.empty((len(a), len(b)))
    for start, cosines in cosine_blocks(a, b):
        costs[start : start + len(cosines)] = -cosines.abs().cpu().numpy()
    rows, columns = linear_sum_assignment(costs)
    return float(min(1.0, -costs[rows, columns].mean()))
