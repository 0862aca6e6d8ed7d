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
from kyomei.learning.mesh import Mesh

MIXTURE_COSINE, MIXTURE_PARTS, LEAST_PART = 0.92, 3, 0.2
"""A direction this near to a positive sum of at most so many others, each with this weight or more, is their mixture."""
ALL_ASKED, SAMPLED = 2048, 512
"""Directions up to which each is asked whether it is a mixture, and how many are of more: the time grows with the square."""


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
        sums.index_add_(0, leader, block * count[:, None])
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


def not_mixtures(vectors: Float[Tensor, "k dim"], support: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which directions are no positive sum of a few others, asked from the one that fewest starts fell to upwards.

    Few features make few combinations of active ones, and each combination is then an exact cluster of rows that is found as
    if it were a feature; but it is a sum of features, and the features are no positive sums of it.
    """
    rows = vectors.double().numpy()
    left = np.ones(len(rows), dtype=bool)
    for i in support.argsort(stable=True).tolist():
        left[i] = False
        left[i] = not _is_mixture(rows[i], rows[left])
    return torch.from_numpy(left)


def mixture_share(vectors: Float[Tensor, "k dim"], support: Int[Tensor, " k"]) -> float:
    """Share of directions that are a positive sum of a few others; of very many, evenly taken ones are asked.

    Those are compared with the directions that more starts fell to, mixtures among them or not: a sum has fewer than its parts.
    """
    if len(vectors) <= ALL_ASKED:
        return 1 - float(not_mixtures(vectors, support).double().mean()) if len(vectors) else 0.0
    rows = vectors[support.argsort(descending=True, stable=True)].numpy()
    asked = np.linspace(0, len(rows) - 1, SAMPLED).astype(np.int64)
    return float(np.mean([_is_mixture(rows[i], rows[:i]) for i in asked]))


def _is_mixture(target: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Non-negative orthogonal matching pursuit of a unit vector with unit rows, a few steps."""
    chosen: list[int] = []
    rest = target
    for _ in range(min(MIXTURE_PARTS, len(others))):
        best = int((others @ rest).argmax())
        if best in chosen or others[best] @ rest <= 0:
            return False
        chosen.append(best)
        weights, _ = nnls(others[chosen].T, target)
        rest = target - weights @ others[chosen]
        if (weights >= LEAST_PART).sum() > 1 and 1 - rest @ rest >= MIXTURE_COSINE**2:
            return True
    return False
