"""What a dictionary keeps of the activations, at what price in active latents, and what the language model loses by it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from kyomei.dictionary.edits import Reconstruction
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, EvidenceError
from kyomei.evidence.codes import Autoencoder, Codec, Coded, coded_blocks, firing_counts, joined, mesh_of
from kyomei.evidence.site import check_site
from kyomei.source.rows import RowsLike, open_rows

WINDOWS_PER_BATCH = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class SpliceableModel(Protocol):
    """A language model in which one site's activation can be replaced."""

    def logits(
        self, ids: Tensor, splice: tuple[str, Any] | None = None, *, side: Literal["output", "input"] = "output"
    ) -> Tensor:
        """Next-token logits [windows, context, vocabulary] for ids [windows, context]."""
        ...


class TokenWindows(Protocol):
    """Packed text."""

    @property
    def ids(self) -> Any:
        """Token ids, int64 [windows, context]."""
        ...


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Reconstruction and sparsity over all rows.

    Attributes:
        fvu: fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖².
        l0_mean: mean number of active latents in a row.
        l0_std: its population standard deviation over rows.
        l0_quantiles: active latents in a row at the given share of rows.
        dead_share: share of latents active in no row at all.
        frequency: share of rows in which each latent is active [width].
        num_rows: rows seen; a latent rarer than 1 / num_rows may count as dead.
    """

    fvu: float
    l0_mean: float
    l0_std: float
    l0_quantiles: dict[float, int]
    dead_share: float
    frequency: Float64[Tensor, " width"]
    num_rows: int

    @property
    def explained_variance(self) -> float:
        """1 − FVU."""
        return 1.0 - self.fvu

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; the frequencies as a list."""
        return {
            "fvu": self.fvu,
            "l0_mean": self.l0_mean,
            "l0_std": self.l0_std,
            "l0_quantiles": {f"{share:g}": value for share, value in self.l0_quantiles.items()},
            "dead_share": self.dead_share,
            "frequency": self.frequency.tolist(),
            "num_rows": self.num_rows,
        }


class FidelitySums:
    """What fidelity is made of, block by block, with float64 sums."""

    def __init__(self, sae: Autoencoder, dim: int) -> None:
        self._error, self._squares, self._num_rows = 0.0, 0.0, 0
        self._mesh, width = mesh_of(sae), sae.width
        self._shift: Tensor | None = None
        self._total = torch.zeros(dim, dtype=torch.float64)
        self._rows_of_l0 = np.zeros(width + 1, dtype=np.int64)
        self._fired: np.ndarray | None = None

    def add(self, block: Coded) -> None:
        x = block.x.double().cpu()
        self._error += float((x - block.reconstruction.double().cpu()).square().sum())
        # Sums of squares about a point near the mean do not cancel, so one pass is as good as two.
        self._shift = x.mean(dim=0) if self._shift is None else self._shift
        shifted = x - self._shift
        self._total += shifted.sum(dim=0)
        self._squares += float(shifted.square().sum())
        fired = firing_counts(block.code)
        self._fired = fired if self._fired is None else self._fired + fired
        self._rows_of_l0 += np.bincount(block.active, minlength=len(self._rows_of_l0))
        self._num_rows += len(x)

    def figures(self) -> Fidelity:
        """Of all blocks so far.

        Raises:
            DataError: all rows are equal, which leaves no variance to explain.
        """
        rows = self._num_rows
        variance = self._squares - float(self._total.square().sum()) / rows
        if not variance > 1e-12 * self._squares:
            raise DataError("rows that vary", f"{rows} equal rows", "measure on more than one distinct row")
        mean, std, quantiles = _l0_spread(torch.from_numpy(self._rows_of_l0))
        fired = joined(np.zeros(0, dtype=np.int64) if self._fired is None else self._fired, self._mesh)
        dead = float((fired == 0).mean())
        return Fidelity(self._error / variance, mean, std, quantiles, dead, torch.from_numpy(fired).double() / rows, rows)


def fidelity(sae: Autoencoder, rows: RowsLike) -> Fidelity:
    """Fraction of variance unexplained, L0, dead latents and firing frequencies, in one pass with float64 sums.

    Args:
        sae: the autoencoder to measure.
        rows: activations [rows, dim] that it was not trained on, or whatever holds them; for the share of dead latents
            to mean something, about a million, or all there are.

    Warns:
        SiteWarning: the rows come from elsewhere than those it was trained on; see `check_site`.

    Raises:
        DataError: if all rows are equal, which leaves no variance to explain.
    """
    opened = open_rows(rows)
    if isinstance(sae, SparseAutoencoder) and sae.provenance:
        check_site(sae, opened)
    sums = FidelitySums(sae, opened.dim)
    for (block,) in coded_blocks([sae], opened):
        sums.add(block)
    return sums.figures()


@dataclass(frozen=True)
class CrossEntropy:
    """Next-token loss in nats, with the site untouched, reconstructed and silenced.

    Attributes:
        original: with the site's own output.
        spliced: with the site replaced by its reconstruction.
        zero_ablated: with the site replaced by zeros.
        num_tokens: predictions averaged over.
        left_special: tokens at which the site keeps its own activation, being special.
        left_norm: tokens at which it does so for the norm of its activation.
        positions: tokens in all.
        recovered_error: standard error of `recovered` over the windows of text; none for one window, or where `recovered` is
            none.
    """

    original: float
    spliced: float
    zero_ablated: float
    num_tokens: int
    left_special: int
    left_norm: int
    positions: int
    recovered_error: float | None = None

    @classmethod
    def of_windows(
        cls, losses: Float64[Tensor, "windows 3"], context: int, left_special: int = 0, left_norm: int = 0
    ) -> CrossEntropy:
        """From the mean loss of each window of `context` tokens, untouched, reconstructed and silenced."""
        original, spliced, zero_ablated = losses.mean(dim=0).tolist()
        predictions, positions = len(losses) * (context - 1), len(losses) * context
        found = cls(original, spliced, zero_ablated, predictions, left_special, left_norm, positions)
        if len(losses) < 2 or found.recovered is None:
            return found
        # A ratio of two means that vary together from window to window, to first order.
        residual = losses[:, 2] - losses[:, 1] - found.recovered * (losses[:, 2] - losses[:, 0])
        error = float(residual.std()) / len(losses) ** 0.5 / (zero_ablated - original)
        return replace(found, recovered_error=error)

    @property
    def recovered(self) -> float | None:
        """(zero-ablated − spliced) / (zero-ablated − original); none if silencing the site costs nothing."""
        cost = self.zero_ablated - self.original
        return (self.zero_ablated - self.spliced) / cost if cost > 0 else None

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain figures."""
        return {
            "original": self.original,
            "spliced": self.spliced,
            "zero_ablated": self.zero_ablated,
            "recovered": self.recovered,
            "recovered_error": self.recovered_error,
            "num_tokens": self.num_tokens,
            "left_special": self.left_special,
            "left_norm": self.left_norm,
            "positions": self.positions,
        }


@torch.no_grad()
def cross_entropy_recovered(
    model: SpliceableModel,
    tokens: TokenWindows | Shaped[Tensor, "windows context"] | np.ndarray[Any, Any],
    site: str,
    sae: Codec,
    max_windows: int = 64,
    *,
    side: Literal["output", "input"] = "output",
    special_ids: Collection[int] = (),
    max_norm: float = math.inf,
) -> CrossEntropy:
    """What the model's next-token loss loses when a site's activation is replaced by its reconstruction.

    Args:
        model: where the site is; asked for `logits(ids, splice=(site, codec), side=side)`.
        tokens: ids [windows, context], or an object that has them as `.ids`.
        site: the replaced activation's.
        sae: reconstructs the site's rows [rows, dim].
        max_windows: windows measured, spread evenly over `tokens`.
        side: whether what the site's module gives is replaced, or what goes into it.
        special_ids: at these tokens the site keeps its own activation, since no dictionary is trained on their rows.
        max_norm: above this norm an activation is kept as well, for the same reason.

    Raises:
        EvidenceError: if there is no window of at least two tokens, or max_windows is below 1.
    """
    ids = torch.as_tensor(tokens if isinstance(tokens, Tensor | np.ndarray) else tokens.ids).cpu().long()
    if ids.ndim != 2 or len(ids) == 0 or ids.shape[1] < 2 or max_windows < 1:
        found = f"ids of shape {list(ids.shape)}, max_windows {max_windows}"
        raise EvidenceError("ids [windows, at least 2] and at least one window", found, "pass packed windows of tokens")
    ids = ids[torch.linspace(0, len(ids) - 1, min(max_windows, len(ids))).round().long()]
    not_text = torch.tensor(sorted(special_ids), dtype=torch.int64)
    losses, left_special, left_norm = [], 0, 0
    for batch in torch.split(ids, WINDOWS_PER_BATCH):
        special = torch.isin(batch, not_text)
        reconstructed, silenced = (_Splice(codec, special, max_norm) for codec in (sae, _Zero()))
        splices = (None, (site, reconstructed), (site, silenced))
        logits = (model.logits(batch, splice=splice, side=side) for splice in splices)
        losses.append(torch.stack([_next_token_losses(each, batch) for each in logits], dim=1))
        left_special, left_norm = left_special + int(special.sum()), left_norm + reconstructed.left_norm
    return CrossEntropy.of_windows(torch.cat(losses), ids.shape[1], left_special, left_norm)


class _Zero:
    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


class _Splice:
    """A codec on rows, for an activation of any leading shape; special tokens and rows of too large a norm pass untouched."""

    def __init__(self, codec: Codec, special: Shaped[Tensor, "windows context"], max_norm: float) -> None:
        self._codec: Any = Reconstruction(codec) if isinstance(codec, SparseAutoencoder) else codec
        self._special, self._max_norm = special, max_norm
        self.left_norm = 0

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        rows = z.reshape(-1, z.shape[-1])
        reconstruction = self._codec.decode(self._codec.encode(rows)).to(z)
        special = self._special.flatten().to(z.device)
        massive = (rows.norm(dim=-1) > self._max_norm) & ~special
        self.left_norm = int(massive.sum())
        return torch.where((special | massive)[:, None], rows, reconstruction).reshape(z.shape)


def _next_token_losses(
    logits: Float[Tensor, "windows context vocabulary"], ids: Int64[Tensor, "windows context"]
) -> Float64[Tensor, " windows"]:
    # A window at a time: a float32 copy of a whole batch of logits can be larger than the model.
    pairs = zip(logits, ids.to(logits.device), strict=True)
    losses = [float(cross_entropy(window[:-1].float(), target[1:])) for window, target in pairs]
    return torch.tensor(losses, dtype=torch.float64)


def _l0_spread(rows_of_l0: Int64[Tensor, " counts"]) -> tuple[float, float, dict[float, int]]:
    """Mean, standard deviation and quantiles of L0 from how many rows have each value."""
    values, weights = torch.arange(len(rows_of_l0), dtype=torch.float64), rows_of_l0.double()
    num_rows = float(weights.sum())
    mean = float((values * weights).sum()) / num_rows
    std = (float(((values - mean).square() * weights).sum()) / num_rows) ** 0.5
    reached = weights.cumsum(dim=0)
    quantiles = {q: int(torch.searchsorted(reached, torch.tensor(q * num_rows, dtype=torch.float64))) for q in QUANTILES}
    return mean, std, quantiles
