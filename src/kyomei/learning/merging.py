"""Which directions are one: neighbours merged, and sums told from their parts."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.kernels import added_at
from kyomei.learning.mesh import Mesh

MIXTURE_COSINE, MIXTURE_PARTS, LEAST_PART = 0.92, 3, 0.2
"""A direction this near to a positive sum of at most so many others, each with this weight or more, is their mixture."""
NEAREST_PART, NEIGHBOURS, BLOCK = 0.4, 256, 1024
"""A mixture of four is at least this near to one of its parts, and parts are among so many neighbours."""
SUM_PARTS = 4
CHANCE_ASKED, CHANCE = 100, 0.02
"""Random directions that are asked, and the share of them that may be sums by chance."""


def distinct(vectors: Float[Tensor, "k dim"], cosine: float, mesh: Mesh | None = None) -> Int[Tensor, "kept"]:
    """Indices of rows none of which lies within `cosine` of an earlier kept one.

    Blockwise, so memory is O(block × kept) and 100,000 rows never meet all at once. Ranks share the products; each then takes
    the same rows.
    """
    kept: list[int] = []
    for start in range(0, len(vectors), 4096):
        block = vectors[start : start + 4096]
        free = torch.ones(len(block), dtype=torch.bool)
        if kept:
            free = (nearest_of(block, vectors[kept], mesh)[1] <= cosine).cpu()
        candidates = free.nonzero().flatten()
        near = _near(block[candidates], cosine, mesh).cpu()
        taken = torch.zeros(len(candidates), dtype=torch.bool)
        for i in range(len(candidates)):
            if not taken[i]:
                kept.append(start + int(candidates[i]))
                taken |= near[i]
    return torch.tensor(kept, dtype=torch.long, device=vectors.device)


def merge(
    vectors: Float[Tensor, "neurons dim"],
    sharpness: Float[Tensor, "neurons"],
    cosine: float,
    counts: Int[Tensor, "neurons"],
    mesh: Mesh | None = None,
) -> tuple[Float[Tensor, "k dim"], Int[Tensor, "k"]]:
    """Cluster means of neurons around the sharpest of them, and the sum of the members' counts; ranks share the products."""
    if not len(vectors):
        return vectors, counts
    order = sharpness.argsort(descending=True, stable=True)
    vectors = vectors[order]
    counts = counts[order]
    leaders = vectors[distinct(vectors, cosine, mesh)]
    sums = torch.zeros_like(leaders)
    support = torch.zeros(len(leaders), dtype=torch.long, device=vectors.device)
    for block, count in zip(torch.split(vectors, 4096), torch.split(counts, 4096), strict=True):
        leader, _ = nearest_of(block, leaders, mesh)
        added_at(sums, leader, block * count[:, None])
        support.index_add_(0, leader, count)
    return normalize(sums, dim=1), support


def nearest_of(
    vectors: Float[Tensor, "k dim"], leaders: Float[Tensor, "leaders dim"], mesh: Mesh | None = None
) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """Index of the leader with the largest cosine to each unit row, and that cosine; ranks share the rows."""

    def own(part: Tensor) -> tuple[Tensor, Tensor]:
        found = nearest(part, leaders)
        return found.row, found.cosine

    index, cosine = (mesh or Mesh()).in_parts(own, vectors)
    return index, cosine


def _near(vectors: Float[Tensor, "k dim"], cosine: float, mesh: Mesh | None) -> Bool[Tensor, "k k"]:
    (near,) = (mesh or Mesh()).in_parts(lambda own: (own @ vectors.T > cosine,), vectors)
    return near


def not_mixtures(vectors: Float[Tensor, "k dim"], support: Int[Tensor, " k"], parts: int = MIXTURE_PARTS) -> Bool[Tensor, " k"]:
    """Which directions are no positive sum of a few others, asked from the one that fewest starts fell to upwards.

    Few features make few combinations of active ones, and each combination is then an exact cluster of rows that is found as
    if it were a feature; but it is a sum of features, and the features are no positive sums of it.

    Args:
        vectors: unit directions.
        support: random starts that ended in each.
        parts: of a sum at most.
    """
    if not len(vectors):
        return torch.ones(0, dtype=torch.bool, device=vectors.device)
    rows = vectors.double().cpu().numpy()
    neighbours, nearest_other = _neighbours(vectors)
    left = np.ones(len(rows), dtype=bool)
    for i in support.argsort(stable=True).tolist():
        if nearest_other[i] >= NEAREST_PART:
            left[i] = False
            others = neighbours[i][left[neighbours[i]]]
            left[i] = not _is_mixture(rows[i], rows[others], parts)
    return torch.from_numpy(left).to(vectors.device)


def no_sums(vectors: Float[Tensor, "k dim"], support: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which directions are no sums of up to `SUM_PARTS` others, of fewer where dimensions do not tell such sums from chance.

    In few dimensions anything is a sum of a few of many directions: of 64 in 16 dimensions, 13 % of random ones are sums of
    four, 3 % of three. What is left must not make sums of random directions.
    """
    for parts in range(SUM_PARTS, 1, -1):
        left = not_mixtures(vectors, support, parts)
        if _chance(vectors[left], parts) <= CHANCE:
            return left
    return torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)


def _chance(vectors: Float[Tensor, "k dim"], parts: int) -> float:
    """Share of random directions that are sums of these."""
    generator = torch.Generator().manual_seed(0)
    random = normalize(torch.randn(CHANCE_ASKED, vectors.shape[1], generator=generator), dim=1).double().numpy()
    rows = vectors.double().cpu().numpy()
    return float(np.mean([_is_mixture(one, rows, parts) for one in random])) if len(rows) else 0.0


def _neighbours(vectors: Float[Tensor, "k dim"]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those nearest to each direction, of which parts of a sum are some, and the largest cosine with another."""
    count = min(NEIGHBOURS, len(vectors))
    blocks, largest = [], []
    for first in range(0, len(vectors), BLOCK):
        cosine = vectors[first : first + BLOCK].float() @ vectors.float().T
        cosine[:, first:].fill_diagonal_(-1.0)
        found = cosine.topk(count, dim=1)
        blocks.append(found.indices.cpu().numpy())
        largest.append(found.values[:, 0].cpu().numpy())
    return np.concatenate(blocks), np.concatenate(largest)


def _is_mixture(target: NDArray[np.float64], others: NDArray[np.float64], parts: int) -> bool:
    """Non-negative orthogonal matching pursuit of a unit vector with unit rows, a few steps."""
    chosen: list[int] = []
    rest = target
    for _ in range(min(parts, len(others))):
        best = int((others @ rest).argmax())
        if best in chosen or others[best] @ rest <= 0:
            return False
        chosen.append(best)
        weights, _ = nnls(others[chosen].T, target)
        rest = target - weights @ others[chosen]
        if (weights >= LEAST_PART).sum() > 1 and 1 - rest @ rest >= MIXTURE_COSINE**2:
            return True
    return False
