"""What a latent has to do with others of its dictionary: near directions, common rows, parents and children."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import sparse
from torch import Tensor

from kyomei.dictionary.cosines import cosine_blocks
from kyomei.evidence.check.structure import NOT_PARENT, PARENT
from kyomei.evidence.codes import firing_counts

NEIGHBOURS = 10
"""Latents named of each kind."""
MIN_TOGETHER = 5
"""Rows that two latents must share for anything to be said of it."""
MIN_CHILD = 20
"""Rows in which a child must be active."""
LATENTS_AT_ONCE = 256
MOST_BLOCKS = 4
"""Blocks of latents at a time: each may hold a row of pairs for every latent of it."""

Named = list[dict[str, Any]]


class Neighbours(NamedTuple):
    """The nearest live latents of each live latent.

    Attributes:
        latent: their numbers, nearest first [live, count].
        cosine: with their decoder rows [live, count].
    """

    latent: Int64[np.ndarray, "live count"]
    cosine: Float[np.ndarray, "live count"]


def nearest_directions(directions: Float[Tensor, "live dim"], numbers: Int64[np.ndarray, " live"], count: int) -> Neighbours:
    """The nearest of some unit rows to each of them.

    Args:
        directions: unit rows.
        numbers: of the latents that they are of.
        count: how many; fewer where there are fewer.
    """
    count = max(0, min(count, len(directions) - 1))
    cosines, latents = [torch.zeros(0, count)], [torch.zeros(0, count, dtype=torch.int64)]
    for start, block in cosine_blocks(directions, directions):
        block.diagonal(start).fill_(-2.0)
        best = block.topk(count, dim=1)
        cosines.append(best.values)
        latents.append(best.indices)
    return Neighbours(numbers[torch.cat(latents).numpy()], torch.cat(cosines).numpy())


class Kin(NamedTuple):
    """For each latent, others by how they share its rows; lists of {"latent", "value" or "given"}, the strongest first.

    Attributes:
        together: by the correlation (phi) of being active.
        parents: latents active in most of its rows, which it is in few of the rows of; "given" is P(parent | it).
        children: those whose parent it is; "given" is P(it | child).
    """

    together: list[Named]
    parents: list[Named]
    children: list[Named]


def kin(code: sparse.csc_array) -> Kin:
    """What latents share of some rows.

    Args:
        code: of the rows [rows, width].
    """
    rows, width = code.shape
    pattern = sparse.csc_array((np.ones(code.nnz, dtype=np.float32), code.indices, code.indptr), shape=code.shape)
    by_row = pattern.tocsr()
    counts = firing_counts(by_row)

    def block(first: int) -> tuple[list[Named], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        shared = (pattern[:, first : first + LATENTS_AT_ONCE].T.tocsr() @ by_row).tocoo()
        a, b, n = shared.row + first, shared.col, shared.data
        kept = (n >= MIN_TOGETHER) & (a != b)
        a, b, n = a[kept], b[kept], n[kept].astype(np.float64)
        phi = _phi(n, counts[a], counts[b], rows)
        is_child = _is_child(n, counts[a], counts[b], rows)
        listed = _listed(a, b, phi, first, min(first + LATENTS_AT_ONCE, width), "value")
        return listed, (a[is_child], b[is_child], (n / counts[a])[is_child])

    # SciPy and NumPy let other threads work meanwhile; blocks come back in their order.
    with ThreadPoolExecutor(min(MOST_BLOCKS, torch.get_num_threads()), thread_name_prefix="relations") as pool:
        blocks = list(pool.map(block, range(0, width, LATENTS_AT_ONCE)))
    together = [each for listed, _ in blocks for each in listed]
    found = [pairs for _, pairs in blocks]
    child, parent, given = (np.concatenate(parts) for parts in zip(*found, strict=True))
    parents = _listed(child, parent, given, 0, width, "given")
    return Kin(together, parents, _listed(parent, child, given, 0, width, "given"))


def _phi(n: np.ndarray, a: np.ndarray, b: np.ndarray, rows: int) -> Float[np.ndarray, " pairs"]:
    """Correlation of two latents' being active, from the rows that they share."""
    p, q = a / rows, b / rows
    spread = np.sqrt(p * (1 - p) * q * (1 - q))
    value: np.ndarray = np.divide(n / rows - p * q, spread, out=np.zeros_like(n), where=spread > 0)
    return value


def _is_child(n: np.ndarray, a: np.ndarray, b: np.ndarray, rows: int) -> Bool[np.ndarray, " pairs"]:
    """Where the first of two latents is the child of the second, far beyond what chance makes of a frequent one."""
    inside = n / a
    return np.asarray((a >= MIN_CHILD) & (inside > PARENT) & (n / b < NOT_PARENT) & (inside >= 2 * b / rows))


def _listed(of: np.ndarray, other: np.ndarray, value: np.ndarray, first: int, last: int, name: str) -> list[Named]:
    """For each latent from `first` to `last` the others with the largest values above 0."""
    positive = np.flatnonzero(value > 0)
    order = positive[np.lexsort((other[positive], -value[positive], of[positive]))]
    of, other, value = of[order], other[order], value[order]
    starts = np.searchsorted(of, np.arange(first, last + 1))
    lists = []
    for begin, end in pairwise(starts.tolist()):
        span = slice(begin, min(begin + NEIGHBOURS, end))
        pairs = zip(other[span].tolist(), value[span].tolist(), strict=True)
        lists.append([{"latent": latent, name: round(v, 4)} for latent, v in pairs])
    return lists
