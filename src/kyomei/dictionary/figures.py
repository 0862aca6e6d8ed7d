"""What a dictionary does on a sample of rows, in four figures: enough to tell later rows that come from elsewhere."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.config import SourceRecipe
from kyomei.dictionary.sae import SparseAutoencoder

SAMPLE_ROWS = 4096
"""Rows of such a sample, or all where there are fewer."""


@dataclass(frozen=True)
class SampleFigures:
    """Of one sample of rows.

    Attributes:
        num_rows: rows in it.
        median_norm: median of ‖x‖, which a few massive rows do not move.
        l0: mean number of active latents in a row.
        fvu: fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖²; infinite where all rows are equal.
    """

    num_rows: int
    median_norm: float
    l0: float
    fvu: float

    @classmethod
    @torch.no_grad()
    def measure(cls, sae: SparseAutoencoder, x: Float[Tensor, "rows dim"]) -> SampleFigures:
        """The figures of rows, with float64 sums."""
        code = sae.encode(x, sparse=True)
        return cls.of(x, sae.decode(code, x), int((code.values() != 0).sum()))

    @classmethod
    def of(cls, x: Float[Tensor, "rows dim"], reconstruction: Float[Tensor, "rows dim"], active: int) -> SampleFigures:
        """The same from a reconstruction and the number of active latents in all rows."""
        rows = x.to("cpu", torch.float64)
        error = float((rows - reconstruction.to("cpu", torch.float64)).square().sum())
        variance = float((rows - rows.mean(dim=0)).square().sum())
        fvu = error / variance if variance > 0 else float("inf")
        return cls(len(rows), float(rows.norm(dim=1).median()), active / len(rows), fvu)

    def to_dict(self) -> dict[str, Any]:
        """Plain figures to five digits: the last ones depend on how many threads added them up."""
        return {name: value if isinstance(value, int) else five_digits(value) for name, value in asdict(self).items()}


def five_digits(value: float) -> float:
    """A figure to five digits."""
    return float(f"{value:.5g}")


def usual_bound(sae: SparseAutoencoder) -> float:
    """Norm above which a harvest drops a row of a dictionary's site; infinite for a dictionary that does not know its rows."""
    median = (sae.provenance.get("sample") or {}).get("median_norm")
    return math.inf if median is None else SourceRecipe().norm_bound * float(median)
