"""The sparse products of a step in Triton, for CUDA: fp32 accumulation whatever the dtype of the matrices.

One program makes one row (or one block of it) of the result and walks the active entries of that row, so rows of any density,
empty ones included, give the same bytes on every run: nothing is added atomically.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 1024


@triton.jit
def _csr_matmul(starts, columns, values, dense, out, dim, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < dim
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for entry in range(tl.load(starts + row), tl.load(starts + row + 1)):
        column = tl.load(columns + entry).to(tl.int64)
        value = tl.load(values + entry).to(tl.float32)
        total += value * tl.load(dense + column * dim + place, mask=inside, other=0.0).to(tl.float32)
    own = out + row * dim + place
    before = tl.load(own, mask=inside, other=0.0).to(tl.float32)
    tl.store(own, before + total, mask=inside)


@triton.jit
def _sampled_products(starts, columns, a, b, out, dim, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    for entry in range(tl.load(starts + row), tl.load(starts + row + 1)):
        column = tl.load(columns + entry).to(tl.int64)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, dim, BLOCK):
            place = first + tl.arange(0, BLOCK)
            left = tl.load(a + row * dim + place, mask=place < dim, other=0.0).to(tl.float32)
            right = tl.load(b + column * dim + place, mask=place < dim, other=0.0).to(tl.float32)
            total += left * right
        tl.store(out + entry, tl.sum(total, axis=0))


def _block(dim: int) -> int:
    return int(min(MAX_BLOCK, triton.next_power_of_2(dim)))


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
        block = _block(dim)
        kernel: Any = _csr_matmul[(rows, triton.cdiv(dim, block))]
        kernel(starts, columns, values, dense.contiguous(), out, dim, BLOCK=block)
    return out


def sampled_products(starts: Tensor, columns: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[i]·b[j] at every entry (i, j) of a CSR pattern [len(a), len(b)], in float32 or wider.

    Args:
        starts, columns: as in `csr_matmul`.
        a: contiguous [rows, dim].
        b: contiguous [columns, dim].
    """
    out = torch.empty(len(columns), dtype=torch.promote_types(a.dtype, torch.float32), device=a.device)
    if len(columns):
        kernel: Any = _sampled_products[(len(starts) - 1,)]
        kernel(starts, columns, a.contiguous(), b.contiguous(), out, a.shape[1], BLOCK=_block(a.shape[1]))
    return out
