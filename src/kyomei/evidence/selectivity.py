"""How sharply each latent singles out some rows, and which rows those are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from kyomei.errors import EvidenceError
from kyomei.evidence.fidelity import Autoencoder, rows_per_block
from kyomei.source.rows import Rows, open_rows


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Per latent, over all rows, rows where it is silent included.

    Attributes:
        max_activation: largest activation, in the input's units [width].
        mean: mean activation [width].
        std: population standard deviation [width].
        frequency: share of rows with a non-zero activation [width].
        num_rows: rows seen.
    """

    max_activation: Float[Tensor, " width"]
    mean: Float[Tensor, " width"]
    std: Float[Tensor, " width"]
    frequency: Float[Tensor, " width"]
    num_rows: int

    @property
    def z_score(self) -> Float[Tensor, " width"]:
        """(max − mean) / std, 0 where the activation never changes (arXiv:2506.14002)."""
        return torch.where(self.std > 0, (self.max_activation - self.mean) / self.std.clamp_min(1e-300), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, one entry for each latent."""
        columns = {
            "max_activation": self.max_activation,
            "mean": self.mean,
            "std": self.std,
            "z_score": self.z_score,
            "frequency": self.frequency,
        }
        return {"num_rows": self.num_rows, **{name: values.tolist() for name, values in columns.items()}}


@torch.no_grad()
def selectivity(sae: Autoencoder, rows: Rows | Tensor | np.ndarray[Any, Any] | str | Path) -> Selectivity:
    """Largest activation, mean, spread and frequency of every latent, in one pass with float64 sums.

    Args:
        sae: an autoencoder whose code is measured.
        rows: activations [rows, dim], or whatever holds them.
    """
    rows = open_rows(rows)
    total, squares, fired = (torch.zeros(sae.width, dtype=torch.float64) for _ in range(3))
    largest = torch.full((sae.width,), -torch.inf, dtype=torch.float64)
    for block in rows.blocks(rows_per_block(sae)):
        z = sae.encode(block)
        total += z.sum(dim=0, dtype=torch.float64).cpu()
        squares += torch.linalg.vector_norm(z, dim=0, dtype=torch.float64).square().cpu()
        fired += z.count_nonzero(dim=0).cpu()
        largest = torch.maximum(largest, z.amax(dim=0).double().cpu())
    mean = total / rows.num_rows
    variance = squares / rows.num_rows - mean.square()
    # Rounding alone leaves a variance of this order on a latent that never changes.
    variance = torch.where(variance > 1e-12 * squares / rows.num_rows, variance, 0.0)
    return Selectivity(largest, mean, variance.sqrt(), fired / rows.num_rows, rows.num_rows)


@torch.no_grad()
def strongest_rows(
    sae: Autoencoder,
    rows: Rows | Tensor | np.ndarray[Any, Any] | str | Path,
    latents: Shaped[Tensor, " latents"],
    count: int,
) -> tuple[Int64[Tensor, "latents count"], Float32[Tensor, "latents count"]]:
    """The rows in which given latents are most active, strongest first; of equals, the earlier row.

    Args:
        sae: an autoencoder whose code is searched.
        rows: activations [rows, dim], or whatever holds them.
        latents: numbers of the latents to search for [latents].
        count: rows to return for each.

    Returns:
        Row numbers [latents, count], −1 where a latent is positive in fewer rows, and activations [latents, count], 0 there.

    Raises:
        EvidenceError: if a latent's number is out of range, or count is below 1.
    """
    rows = open_rows(rows)
    latents = latents.detach().cpu().long()
    if latents.ndim != 1 or count < 1 or bool(((latents < 0) | (latents >= sae.width)).any()):
        expected = f"latents [n] from 0 to {sae.width - 1} and a count of at least 1"
        raise EvidenceError(expected, f"latents of shape {list(latents.shape)}, count {count}", "correct them")
    best_row = np.full((len(latents), count), -1, dtype=np.int64)
    best = np.zeros((len(latents), count), dtype=np.float32)
    first_row = 0
    for block in rows.blocks(rows_per_block(sae)):
        code = sae.encode(block)
        z = code[:, latents.to(code.device)].float().cpu().numpy()
        # Rows come in order, so one that only equals the weakest kept cannot enter: few candidates are left to sort.
        row, latent = np.nonzero(z > best[:, -1])
        _merge(best_row, best, latent, row + first_row, z[row, latent])
        first_row += len(block)
    return torch.from_numpy(best_row), torch.from_numpy(best)


def _merge(best_row: np.ndarray, best: np.ndarray, latent: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
    """Let candidates enter the kept rows of their latents, in place."""
    touched = np.unique(latent)
    count = best.shape[1]
    latent = np.concatenate([np.repeat(touched, count), latent])
    row = np.concatenate([best_row[touched].ravel(), row])
    value = np.concatenate([best[touched].ravel(), value])
    order = np.lexsort((row, -value, latent))
    latent, row, value = latent[order], row[order], value[order]
    rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
    kept = rank < count
    best_row[latent[kept], rank[kept]], best[latent[kept], rank[kept]] = row[kept], value[kept]
