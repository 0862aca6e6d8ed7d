"""The sparse step: only the scores are dense; all that follows touches the active set alone.

With x_c = x − b_pre, scores s = x_c W_encᵀ, A their active set, z the values there and e = ∂loss/∂x̂:

    x̂ = z W_dec + b_pre          g = e W_decᵀ on A          ∂W_dec = zᵀ e
    ∂W_enc = ∂sᵀ x_c             ∂b_pre = Σ e − Σ ∂s W_enc

where ∂s on A follows from g by autograd over one number per active entry: that is all a mechanism has to write. These are
three products of a sparse and a dense matrix and one sampled product, in CSR on the CPU and in Triton on CUDA
(`kernels_triton`). Scores are made in blocks of latents that stay in the cache and are never stored. `DenseProducts` is the
same step by autograd on whole matrices: the reference for tests, and faster where the code is dense.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

SCORES_PER_BLOCK = 2**20
"""Scores made at once; 4 MB in float32 are still in the cache when they are compared with their thresholds."""
SCORES_PER_BLOCK_ELSEWHERE = 2**29
"""The same on a GPU, where fewer and larger products are faster: 1 GB in bfloat16."""


class Active:
    """The active entries of a code, ordered by latent and then by row.

    Args:
        latent: latent of each entry, ascending [active].
        row: row of each entry, ascending within a latent [active].
        num_rows: rows of the batch.
        width: number of latents.
    """

    def __init__(self, latent: Int64[Tensor, " active"], row: Int64[Tensor, " active"], num_rows: int, width: int) -> None:
        self.latent, self.row, self.num_rows, self.width = latent, row, num_rows, width

    @classmethod
    def of(cls, mask: Tensor) -> Active:
        """The true entries of a mask [rows, width]."""
        num_rows, width = mask.shape
        index = nonzero(mask.T.contiguous())
        return cls(index // num_rows, index % num_rows, num_rows, width)

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def density(self) -> float:
        """Active share of all entries."""
        return len(self) / max(1, self.num_rows * self.width)

    @cached_property
    def counts(self) -> Int64[Tensor, " width"]:
        """Active rows of each latent."""
        return counted(self.latent, self.width)

    @cached_property
    def latent_starts(self) -> Tensor:
        """Where each latent's entries start [width + 1], int32."""
        return _starts(self.counts)

    @cached_property
    def row_starts(self) -> Tensor:
        """Where each row's entries start in `by_row` order [rows + 1], int32."""
        return _starts(counted(self.row, self.num_rows))

    @cached_property
    def by_row(self) -> Int64[Tensor, " active"]:
        """The permutation that orders entries by row and then by latent."""
        # A radix sort over two bytes takes half as long as over four.
        keys = self.row.to(torch.int16) if self.num_rows < 2**15 else self.row.to(torch.int32)
        return keys.argsort(stable=True)

    @cached_property
    def row32(self) -> Tensor:
        return self.row.to(torch.int32)

    @cached_property
    def latent32_by_row(self) -> Tensor:
        return self.latent.to(torch.int32)[self.by_row]

    def sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " width"]:
        """Sum of each latent's values [width]; the same bytes on every run."""
        if values.device.type != "cuda":
            return values.new_zeros(self.width).index_add_(0, self.latent, values)
        # `index_add_` on CUDA adds in whatever order its threads come.
        ones = values.new_ones(self.num_rows, 1)
        return csr_matmul(self.latent_starts, self.row32, values, ones, values.new_zeros(self.width, 1))[:, 0]

    def dense(self, values: Float[Tensor, " active"]) -> Float[Tensor, "rows width"]:
        """Values in a matrix that is zero elsewhere; differentiable."""
        flat = values.new_zeros(self.num_rows * self.width)
        return flat.index_put((self.row * self.width + self.latent,), values).view(self.num_rows, self.width)


def counted(index: Int64[Tensor, " entries"], length: int) -> Int64[Tensor, " length"]:
    """How often each number below a length occurs, like `torch.bincount`, which on a GPU waits for the largest."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=length)
    return index.new_zeros(length).scatter_add_(0, index, torch.ones_like(index))


def nonzero(mask: Tensor) -> Int64[Tensor, " true"]:
    """Flat indices of the true entries of a contiguous mask, ascending."""
    if mask.device.type == "cpu":
        # NumPy skips runs of zeros a word at a time: a fifth of torch.nonzero's time at 0.5 % density.
        return torch.from_numpy(np.flatnonzero(mask.numpy().reshape(-1)))
    return mask.reshape(-1).nonzero().reshape(-1)


def compared(scores: Tensor, bound: Tensor, how: np.ufunc) -> Tensor:
    """np.greater or np.greater_equal of scores and bounds of their dtype: on a processor NumPy takes less than half of torch's
    time."""
    scores, bound = scores.detach(), bound.detach()
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(how(scores.numpy(), bound.numpy()))
    if scores.device.type == "cpu" and scores.dtype == bound.dtype == torch.bfloat16 and bool((bound > 0).all()):
        # Positive floats stand in the order of their bits read as integers, and negative ones below them.
        return torch.from_numpy(how(scores.view(torch.int16).numpy(), bound.view(torch.int16).numpy()))
    return scores > bound if how is np.greater else scores >= bound


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Whether products in bfloat16 take a fraction of float32's time: the processor has instructions for them.

    A GPU's are as fast, but there products of scores are little of the work.
    """
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.device(device).type == "cpu" and any(has is not None and has() for has in known)


def _starts(counts: Tensor) -> Tensor:
    starts = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, dim=0, out=starts[1:], dtype=torch.int32)
    return starts


def added_at(out: Tensor, index: Int64[Tensor, " values"], values: Tensor) -> Tensor:
    """`index_add_` of float values along the first dimension, which gives the same bytes on every run on CUDA too."""
    if out.device.type != "cuda":
        return out.index_add_(0, index, values)
    return out.index_put_((index,), values, accumulate=True)


def scattered(out: Tensor, index: Int64[Tensor, "values columns"], values: Float[Tensor, "values columns"]) -> Tensor:
    """`scatter_add_` of float values along the first dimension, which gives the same bytes on every run on CUDA too."""
    if out.device.type != "cuda":
        return out.scatter_add_(0, index, values)
    columns = torch.arange(out.shape[1], device=out.device)
    added_at(out.view(-1), (index * out.shape[1] + columns).flatten(), values.flatten())
    return out


def active_above(
    x: Float[Tensor, "rows dim"],
    encoder: Float[Tensor, "width dim"],
    threshold: Float[Tensor, " width"],
) -> tuple[Active, Float[Tensor, " active"]]:
    """Where scores x·w exceed their latent's threshold, and the scores there, in the thresholds' dtype.

    All scores never exist at once. Rows and encoder may be in bfloat16.
    """
    rows, width = len(x), len(encoder)
    per_block = max(1, (SCORES_PER_BLOCK if x.device.type == "cpu" else SCORES_PER_BLOCK_ELSEWHERE) // max(rows, 1))
    buffer = x.new_empty(min(per_block, width), rows)
    kernels = _triton() if x.device.type == "cuda" and threshold.dtype == torch.float32 else None
    found, values = [torch.zeros(0, dtype=torch.int64, device=x.device)], [threshold.new_zeros(0)]
    for first in range(0, width, per_block):
        part, bound = encoder[first : first + per_block], threshold[first : first + per_block]
        scores = torch.mm(part, x.T, out=buffer[: len(part)])
        if kernels is None:
            index = nonzero(compared(scores, bound[:, None], np.greater))
            values.append(scores.reshape(-1).index_select(0, index).to(threshold.dtype))
        else:
            counts, row, score = kernels.entries_above(scores, bound)
            index = torch.repeat_interleave(torch.arange(len(part), device=x.device), counts, output_size=len(row)) * rows + row
            values.append(score)
        found.append(index + first * rows)
    index = torch.cat(found)
    return Active(index // rows, index % rows, rows, width), torch.cat(values)


def reaching(
    scores: Float[Tensor, "latents rows"], least: Float[Tensor, " rows"]
) -> tuple[Int64[Tensor, " candidates"], Float[Tensor, " candidates"]]:
    """Flat indices of scores that reach their row's bound, ascending, and the scores there.

    Args:
        scores: contiguous.
        least: of each row.
    """
    kernels = _triton() if scores.device.type == "cuda" and scores.dtype != torch.float64 else None
    if kernels is None:
        index = nonzero(compared(scores, least, np.greater_equal))
        return index, scores.view(-1)[index]
    counts, row, found = kernels.entries_reaching(scores, least.to(scores.dtype))
    latent = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), counts, output_size=len(row))
    return latent * scores.shape[1] + row, found


def csr_matmul(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor, out: Tensor) -> Tensor:
    """out += S dense, where S is the CSR matrix [len(starts) − 1, len(dense)]; returns out."""
    if not supported(dense.device, dense.dtype):
        rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
        return out.index_add_(0, rows, values[:, None] * dense[columns])
    if dense.device.type == "cuda":
        _triton().csr_matmul(starts, columns, values, dense, out)
        return out
    return torch.addmm(out, csr(starts, columns, values, (len(starts) - 1, len(dense))), dense, out=out)


def sampled_products(starts: Tensor, columns: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[i]·b[j] at every entry (i, j) of a CSR pattern [len(a), len(b)]."""
    if a.device.type == "cuda":
        sampled: Tensor = _triton().sampled_products(starts, columns, a, b)
        return sampled
    pattern = csr(starts, columns, a.new_zeros(len(columns)), (len(a), len(b)))
    values: Tensor = torch.sparse.sampled_addmm(pattern, a, b.T, beta=0.0).values()
    return values


def products_and_sums(starts: Tensor, columns: Tensor, values: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`sampled_products`, and out += S b for the CSR matrix S of the values: on CUDA b is read once for both."""
    if a.device.type == "cuda":
        sampled: Tensor = _triton().sampled_products(starts, columns, a, b, values, out)
        return sampled
    csr_matmul(starts, columns, values, b, out)
    return sampled_products(starts, columns, a, b)


def csr(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse CSR tensor [rows, columns], unchecked and without the warning of its beta state."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


@functools.cache
def _triton() -> Any:
    """The Triton kernels; none where torch comes without Triton, as its CPU builds do."""
    try:
        return importlib.import_module("kyomei.dictionary.kernels_triton")
    except ImportError:
        return None


def supported(device: torch.device | str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the sparse step runs on a device in a precision; elsewhere the dense one does."""
    kind = torch.device(device).type
    # The Triton kernels add in single precision.
    return kind == "cpu" or (kind == "cuda" and dtype != torch.float64 and _triton() is not None)
