"""The sparse products of a step in Triton, for CUDA: fp32 accumulation whatever the dtype of the matrices.

One program makes one row (or one block of it) of the result and walks the active entries of that row, a tile of them at a time,
so rows of any density, empty ones included, give the same bytes on every run: nothing is added atomically.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = (512, 1024)
"""Columns of a tile: a thread holds neighbouring ones, of all entries of it, and adds them up alone (docs/tried.md)."""
NUMBERS, MOST_ENTRIES = 2**12, 128
"""Numbers in a tile of a product that only adds rows up, and active entries in it at most."""
MULTIPLIED = 4
"""Entries of a tile where rows are multiplied as well: by one warp, whose sums need no other."""
SCANNED = 1024
"""Scores that are compared with their bounds at once."""


@triton.jit
def _csr_matmul(starts, columns, values, dense, out, dim, BLOCK: tl.constexpr, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < dim
    end = tl.load(starts + row + 1)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(tl.load(starts + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        column = tl.load(columns + entry, mask=there, other=0).to(tl.int64)
        value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
        read = there[:, None] & inside[None, :]
        tile = tl.load(dense + column[:, None] * dim + place[None, :], mask=read, other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * tile, axis=0)
    own = out + row * dim + place
    before = tl.load(own, mask=inside, other=0.0).to(tl.float32)
    tl.store(own, before + total, mask=inside)


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    starts, columns, values, a, b, out, gradient, dim, BLOCK: tl.constexpr, ENTRIES: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    for block in range(0, dim, BLOCK):
        place = block + tl.arange(0, BLOCK)
        inside = place < dim
        own = tl.load(a + row * dim + place, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(begin, end, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            there = entry < end
            column = tl.load(columns + entry, mask=there, other=0).to(tl.int64)
            read = there[:, None] & inside[None, :]
            tile = tl.load(b + column[:, None] * dim + place[None, :], mask=read, other=0.0).to(tl.float32)
            along = tl.sum(own[None, :] * tile, axis=1)
            along += tl.load(out + entry, mask=there & (block > 0), other=0.0)
            tl.store(out + entry, along, mask=there)
            if ADD:
                value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
                total += tl.sum(value[:, None] * tile, axis=0)
        if ADD:
            into = gradient + row * dim + place
            before = tl.load(into, mask=inside, other=0.0).to(tl.float32)
            tl.store(into, before + total, mask=inside)
        # The next block adds to what this one has stored.
        tl.debug_barrier()


@triton.jit
def _counts(scores, bound, out, rows, BY_ROW: tl.constexpr, SCANNED: tl.constexpr):  # type: ignore[no-untyped-def]
    latent = tl.program_id(0).to(tl.int64)
    count = tl.zeros((SCANNED,), dtype=tl.int32)
    for first in range(0, rows, SCANNED):
        row = first + tl.arange(0, SCANNED)
        score = tl.load(scores + latent * rows + row, mask=row < rows, other=float("-inf")).to(tl.float32)
        if BY_ROW:
            counted = score >= tl.load(bound + row, mask=row < rows, other=float("inf")).to(tl.float32)
        else:
            counted = score > tl.load(bound + latent)
        count += counted.to(tl.int32)
    tl.store(out + latent, tl.sum(count, axis=0))


@triton.jit
def _entries(  # type: ignore[no-untyped-def]
    scores, bound, starts, found_row, found_score, rows, BY_ROW: tl.constexpr, SCANNED: tl.constexpr
):
    latent = tl.program_id(0).to(tl.int64)
    at = tl.load(starts + latent)
    for first in range(0, rows, SCANNED):
        row = first + tl.arange(0, SCANNED)
        score = tl.load(scores + latent * rows + row, mask=row < rows, other=float("-inf")).to(tl.float32)
        if BY_ROW:
            counted = score >= tl.load(bound + row, mask=row < rows, other=float("inf")).to(tl.float32)
        else:
            counted = score > tl.load(bound + latent)
        number = counted.to(tl.int32)
        place = at + tl.cumsum(number, axis=0) - 1
        tl.store(found_row + place, row, mask=counted)
        tl.store(found_score + place, score.to(found_score.dtype.element_ty), mask=counted)
        at += tl.sum(number, axis=0)


def _columns(dim: int) -> int:
    """Columns of a tile: those that leave the fewest idle, the more of two that leave as many."""
    if dim <= COLUMNS[0]:
        return int(triton.next_power_of_2(dim))
    return min(COLUMNS, key=lambda block: (triton.cdiv(dim, block) * block, -block))


def csr_matmul(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor, out: Tensor) -> Tensor:
    """out += S dense, where S is the CSR matrix [len(starts) − 1, len(dense)]; returns out.

    Args:
        starts: where each row's entries start, int32 [rows + 1].
        columns: int32 [entries].
        values: [entries].
        dense: contiguous [columns, dim].
        out: contiguous [rows, dim].
    """
    rows, dim = len(starts) - 1, dense.shape[1]
    if rows and dim:
        block = _columns(dim)
        tile = {"BLOCK": block, "ENTRIES": min(MOST_ENTRIES, NUMBERS // block), "num_warps": 2 if block > 256 else 1}
        kernel: Any = _csr_matmul[(rows, triton.cdiv(dim, block))]
        kernel(starts, columns, values, dense.contiguous(), out, dim, **tile)
    return out


def sampled_products(
    starts: Tensor, columns: Tensor, a: Tensor, b: Tensor, values: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """a[i]·b[j] at every entry (i, j) of a CSR pattern [len(a), len(b)], in float32 or wider.

    Args:
        starts, columns: as in `csr_matmul`.
        a: contiguous [rows, dim].
        b: contiguous [columns, dim].
        values: [entries]; where they are given, out += S b for the CSR matrix S of them, by the same reading of b.
        out: contiguous [rows, dim].
    """
    found = torch.empty(len(columns), dtype=torch.promote_types(a.dtype, torch.float32), device=a.device)
    if len(columns):
        tile = {"BLOCK": min(COLUMNS[0], _columns(a.shape[1])), "ENTRIES": MULTIPLIED, "num_warps": 1}
        adds = values is not None and out is not None
        given = (values, out) if adds else (found, found)
        kernel: Any = _products[(len(starts) - 1,)]
        matrices = a.contiguous(), b.contiguous(), found, given[1]
        kernel(starts, columns, given[0], *matrices, a.shape[1], ADD=adds, **tile)
    return found


def entries_above(scores: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where scores exceed their latent's bound.

    Args:
        scores: contiguous [latents, rows].
        bound: [latents], float32.

    Returns:
        Entries of each latent [latents], int64; rows of the entries, latent by latent and ascending in each [entries], int32;
        the scores there [entries], in the dtype of the bounds.
    """
    return _found(scores, bound, by_row=False)


def entries_reaching(scores: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where scores reach the bound of their row [rows]."""
    return _found(scores, bound.contiguous(), by_row=True)


def _found(scores: Tensor, bound: Tensor, by_row: bool) -> tuple[Tensor, Tensor, Tensor]:
    latents, rows = scores.shape
    counts = torch.zeros(latents, dtype=torch.int32, device=scores.device)
    if scores.numel():
        count: Any = _counts[(latents,)]
        count(scores, bound, counts, rows, BY_ROW=by_row, SCANNED=SCANNED)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if latents else 0
    row = torch.empty(total, dtype=torch.int32, device=scores.device)
    score = torch.empty(total, dtype=bound.dtype, device=scores.device)
    if total:
        fill: Any = _entries[(latents,)]
        fill(scores, bound, ends - counts, row, score, rows, BY_ROW=by_row, SCANNED=SCANNED)
    return counts.long(), row, score
