"""Wide first: training begins with more latents than are asked for; part by part those that are missed least are left out.

A latent that starts at random falls to whatever feature is near, and at the width that is asked for it can hardly leave: what
a dictionary lacks, and what it has twice, then depends on the seed. A wider dictionary has room for nearly all that any seed
would find. Which of it stays is decided by the data: by how much the error grows without each latent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.dictionary.kernels import added_at, sampled_products
from kyomei.learning.sample import Sample
from kyomei.learning.spread import Spread
from kyomei.source.rows import Rows

PARTS = 4
"""Parts of a training that begins wide; each has one width."""
WIDEST, MOST_PER_DIM = 4, 12
"""Times the width, and latents a dimension, with which a training begins where the recipe says nothing. What a site holds is
bounded by its dimension: at 32 a dimension the wide start cost time and certified less (docs/tried.md)."""
SAMPLE_ROWS = 16_384
"""Rows by which latents are judged at most; four times as many chose no better and took a seventh of a fit (docs/tried.md)."""


def widths(width: int, dim: int, widest: float | None) -> list[int]:
    """Widths of the parts before the last, in equal ratios; one part of the width itself where nothing is narrowed.

    Args:
        width: at the end.
        dim: of the rows.
        widest: times that width at the beginning; none: `WIDEST`, but no more latents than `MOST_PER_DIM` allows.
    """
    first = round(min(WIDEST * width, MOST_PER_DIM * dim) if widest is None else widest * width)
    if first <= width:
        return [width]
    return [round(width * (first / width) ** (1 - part / PARTS)) for part in range(PARTS)]


def missed(sae: Spread, rows: Rows) -> Float[Tensor, " own"]:
    """By how much the squared error of a sample grows without each latent, the others' values left alone.

    Without its part z d the residual r of a row becomes r + z d, so the sum over rows is of z² ‖d‖² + 2 z d·r.
    """
    own = sae.to(sae.encoder.device, torch.float32)
    norm = own.decoder.square().sum(dim=1)
    growth = torch.zeros_like(norm)
    for rows_of_block in Sample.of(rows, SAMPLE_ROWS).blocks():
        x = rows_of_block.to(norm.device)
        code = own.encode(x)
        rest = x - own.decode(code)
        latent, value = code.col_indices(), code.values()
        along = sampled_products(code.crow_indices(), latent, rest, own.decoder)
        added_at(growth, latent, value * (value * norm[latent] + 2 * along))
    return growth.cpu()


def narrowed(sae: Spread, rows: Rows, width: int) -> Spread:
    """The same with the latents that are missed most, in the order in which they were.

    Args:
        sae: a trained dictionary; of several ranks all call.
        rows: what it was trained on.
        width: of the result.
    """
    if width >= sae.width:
        return sae
    most = sae.mesh.joined(missed(sae, rows)).topk(width).indices.sort().values
    kept = sae.chosen(most[sae.mesh.share(width)])
    return replace(kept, k=None if sae.k is None else min(sae.k, width), provenance={})
