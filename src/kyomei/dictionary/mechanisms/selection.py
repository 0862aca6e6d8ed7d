"""Codes that keep the largest scores: of each row (TopK) or of the whole batch (BatchTopK), flat or nested (Matryoshka)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from kyomei.config import BatchTopKSettings, MatryoshkaSettings, SelectionSettings, TopKSettings
from kyomei.dictionary.kernels import Active, reaching
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, aimed_l0, counts_of, mechanism
from kyomei.dictionary.products import Products
from kyomei.dictionary.sae import Activation
from kyomei.errors import RecipeError

BLOCKS_PER_ACTIVE = 4
"""Blocks of latents for each active one whose maxima bound the k-th largest score from below."""


class Selection(Mechanism):
    """Keeps the largest positive scores; dead latents are trained on what the others leave (AuxK).

    A latent is dead once it has been silent for `dead_after` rows. The largest scores of dead latents in each row, at most half
    as many as dimensions, reconstruct the error e of the code as ê, and α‖ê − e‖² / (2 rows) is added to the loss.

    Args:
        width: number of latents.
        k: active latents per row; between 1 and width.
        auxk: weight α of the loss for dead latents; 0: there is none.
        dead_after: rows of silence after which a latent is dead.

    Source: arXiv:2406.04093, appendix A.2.
    """

    def __init__(self, width: int, k: int, auxk: float = 0.0, dead_after: int = 100_000) -> None:
        super().__init__(width)
        if not 1 <= k <= width:
            raise RecipeError(f"k between 1 and width ({width})", f"{k}", "lower mechanism.k or widen the dictionary")
        if auxk < 0 or dead_after < 1:
            raise RecipeError("auxk ≥ 0 and dead_after ≥ 1", f"{auxk} and {dead_after}", "correct the mechanism")
        self.k, self.auxk, self.dead_after = k, auxk, dead_after
        self.silent_rows = torch.zeros(width, dtype=torch.int64)

    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        return scores

    def auxiliary(self, products: Products, active: Active, scores: Tensor, error: Tensor) -> Tensor | None:
        if not self.auxk:
            return None
        dead = (self.silent_rows >= self.dead_after).nonzero().flatten()
        anywhere = self.reduce.sum_over_latents(torch.tensor(float(len(dead)), device=error.device))
        if not bool(anywhere > 0):
            return None
        own = products.scores.T.index_select(0, dead).T
        chosen = _top_rows(own, min(error.shape[1] // 2 or 1, int(anywhere)), self.reduce.gather_latents)
        among_dead = Active(dead[chosen.latent], chosen.row, chosen.num_rows, active.width)
        guess = products.over_latents(products.decode(among_dead, products.scores_at(among_dead)))
        return 0.5 * self.auxk * (guess + error.detach()).square().sum() / products.num_rows

    @torch.no_grad()
    def observe(self, active: Active, scores: Float[Tensor, " active"], values: Float[Tensor, " active"]) -> None:
        fired = self.reduce.max_over_rows((counts_of(active, values) > 0).to(torch.int32)) > 0
        self.fired |= fired
        rows = int(self.reduce.sum_over_rows(torch.tensor(active.num_rows, device=fired.device)))
        self.silent_rows = torch.where(fired, 0, self.silent_rows + rows)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"silent_rows": self.silent_rows}

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "k": self.k, "auxk": self.auxk, "dead_after": self.dead_after}


def _k_of(settings: SelectionSettings, width: int, l0: float | None) -> int:
    """The k that is given, or the nearest to the L0 aimed at."""
    return settings.k or min(width, max(1, round(aimed_l0(l0, width))))


def _top_rows(scores: Float[Tensor, "rows width"], k: int, gather: Callable[[Tensor], Tensor]) -> Active:
    """The k largest positive scores of each row, over all ranks that hold latents of it."""
    few, values = _candidates(scores, k)
    by_row = few.by_row
    rows = few.row[by_row]
    place = torch.arange(len(few), device=rows.device) - few.row_starts.long()[rows]
    padded = scores.new_full((len(scores), max(k, 1 + int(place.max()) if len(few) else 1)), -torch.inf)
    flat = rows * padded.shape[1] + place
    padded.view(-1)[flat] = values[by_row]
    best = padded.topk(k, dim=1)
    every = gather(best.values)
    if every.shape == best.values.shape:
        chosen = torch.zeros_like(padded, dtype=torch.bool).scatter_(1, best.indices, True)
    else:
        chosen = padded >= every.topk(k, dim=1).values[:, -1:]
    is_kept = torch.zeros(len(few), dtype=torch.bool, device=rows.device)
    is_kept[by_row] = chosen.view(-1)[flat]
    return Active(few.latent[is_kept], few.row[is_kept], few.num_rows, few.width)


def _candidates(scores: Float[Tensor, "rows width"], k: int) -> tuple[Active, Float[Tensor, " candidates"]]:
    """Positive scores among which each row's k largest are."""
    num_rows, width = scores.shape
    by_latent = scores.T.contiguous()
    maxima = _maxima(by_latent, k)
    least = maxima.T.contiguous().topk(k, dim=1).values[:, -1] if len(maxima) >= k else scores.new_zeros(num_rows)
    index, values = _at_least(by_latent, least)
    return Active(index // num_rows, index % num_rows, num_rows, width), values


def _maxima(by_latent: Float[Tensor, "width rows"], k: int) -> Float[Tensor, "blocks rows"]:
    """Each row's largest score in every block of latents.

    The n-th largest of the maxima is no larger than the n-th largest score, and much faster to find.
    """
    width, num_rows = by_latent.shape
    block = max(1, width // (BLOCKS_PER_ACTIVE * k))
    # The number of blocks is said: a rank without latents has none.
    return by_latent[: width // block * block].view(width // block, block, num_rows).amax(dim=1)


def _at_least(by_latent: Float[Tensor, "width rows"], least: Tensor) -> tuple[Int64[Tensor, " candidates"], Tensor]:
    """Flat indices of the positive scores that reach a bound, one for all or one for each row, and these scores."""
    return reaching(by_latent, least.clamp_min(torch.finfo(least.dtype).tiny).expand(by_latent.shape[1]))


@final
@mechanism(TopKSettings)
class TopK(Selection):
    """The k largest positive scores of each row.

    Args:
        width, k, auxk, dead_after: as in `Selection`; k is an upper bound.

    Source: arXiv:2406.04093.
    """

    @classmethod
    def from_settings(cls, settings: TopKSettings, width: int, l0: float | None, activation: Activation) -> TopK:
        return cls(width, _k_of(settings, width, l0), settings.auxk, settings.dead_after)

    def select(self, scores: Float[Tensor, "rows width"]) -> Active:
        return _top_rows(scores, self.k, self.reduce.gather_latents)

    def finish(self) -> Finish:
        # A zero threshold is "only positive scores".
        return Finish(torch.zeros(self.width, device=self.fired.device), "topk", self.k)


@mechanism(BatchTopKSettings)
class BatchTopK(Selection):
    """The k × rows largest positive scores of a batch; a threshold afterwards.

    Args:
        width, k, auxk, dead_after: as in `Selection`; k is an average over rows.
        memory: share of the running threshold that a step keeps, in [0, 1).

    Source: arXiv:2412.06410; the threshold is the running mean of each batch's smallest kept score.
    """

    def __init__(self, width: int, k: int, memory: float = 0.9, auxk: float = 0.0, dead_after: int = 100_000) -> None:
        super().__init__(width, k, auxk, dead_after)
        if not 0 <= memory < 1:
            raise RecipeError("memory within [0, 1)", f"{memory}", "choose a share, such as 0.9")
        self.memory = memory
        self.threshold = torch.zeros(())
        self.batches = torch.zeros((), dtype=torch.int64)

    @classmethod
    def from_settings(cls, settings: Any, width: int, l0: float | None, activation: Activation) -> BatchTopK:
        return cls(width, _k_of(settings, width, l0), auxk=settings.auxk, dead_after=settings.dead_after)

    def select(self, scores: Float[Tensor, "rows width"]) -> Active:
        rows = int(self.reduce.sum_over_rows(torch.tensor(len(scores), device=scores.device)))
        by_latent, count = scores.T.contiguous(), self.k * rows
        maxima = _maxima(by_latent, self.k).flatten()
        index, values = _at_least(
            by_latent, maxima.topk(count, sorted=False).values.min() if len(maxima) >= count else maxima.new_tensor(0.0)
        )
        most = min(count, by_latent.numel())
        best = pad(values, (0, max(0, most - len(values))), value=-torch.inf).topk(most)
        every = self.reduce.gather_all(best.values)
        if len(every) > most:
            kept = values >= every.topk(min(count, len(every))).values[-1]
        else:
            kept = torch.zeros_like(values, dtype=torch.bool)
            kept[best.indices[best.indices < len(values)]] = True
        return Active(index[kept] // len(scores), index[kept] % len(scores), len(scores), self.width)

    @torch.no_grad()
    def observe(self, active: Active, scores: Float[Tensor, " active"], values: Float[Tensor, " active"]) -> None:
        super().observe(active, scores, values)
        own = values.amin() if len(values) else torch.tensor(torch.inf, device=self.threshold.device)
        smallest = self.reduce.gather_all(own.reshape(1).to(self.threshold.dtype)).amin()
        # The weight makes the first batches a plain mean; a batch without an active latent says nothing.
        seen = torch.isfinite(smallest)
        weight = torch.clamp_min(1 / (self.batches + 1), 1 - self.memory)
        self.threshold = torch.where(seen, self.threshold + weight * (smallest - self.threshold), self.threshold)
        self.batches += seen

    def finish(self) -> Finish:
        return Finish(self.threshold.expand(self.width).clone(), "jumprelu")

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"threshold": self.threshold, "batches": self.batches}

    def settings(self) -> dict[str, float | int | str]:
        return super().settings() | {"memory": self.memory}


@final
@mechanism(MatryoshkaSettings)
class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK whose first latents have to reconstruct by themselves: the loss is a mean over nested dictionaries.

    Args:
        width, k, memory, auxk, dead_after: as in `BatchTopK`.
        prefixes: ends of the nested dictionaries as shares of the width, ascending, the last 1.

    Source: arXiv:2503.17547.
    """

    def __init__(
        self,
        width: int,
        k: int,
        memory: float = 0.9,
        auxk: float = 0.0,
        dead_after: int = 100_000,
        prefixes: tuple[float, ...] = MatryoshkaSettings().prefixes,
    ) -> None:
        super().__init__(width, k, memory, auxk, dead_after)
        if not prefixes or list(prefixes) != sorted(set(prefixes)) or prefixes[0] <= 0 or prefixes[-1] != 1:
            raise RecipeError("ascending prefixes in (0, 1], the last 1", f"{prefixes}", "correct mechanism.prefixes")
        self.prefixes = prefixes
        self.ends = sorted({max(1, round(share * width)) for share in prefixes})
        self.first_latent = 0
        """Number of this rank's first latent among all."""

    @classmethod
    def from_settings(
        cls, settings: MatryoshkaSettings, width: int, l0: float | None, activation: Activation
    ) -> MatryoshkaBatchTopK:
        options = settings.model_dump(include={"auxk", "dead_after", "prefixes"})
        return cls(width, _k_of(settings, width, l0), **options)

    def reconstruction(self, products: Products, active: Active, values: Tensor) -> tuple[Tensor, Tensor]:
        # Nested partial sums: each part of the latents is decoded once and added to those before it.
        starts = active.latent_starts.tolist()
        squares, so_far = values.new_zeros(()), values.new_zeros(())
        first = 0
        for end in self.ends:
            own = range(*(min(max(edge - self.first_latent, 0), active.width) for edge in (first, end)))
            entries = slice(starts[own.start], starts[own.stop])
            part = Active(active.latent[entries], active.row[entries], active.num_rows, active.width)
            decoded = products.decode(part, values[entries])
            so_far = so_far + products.over_latents(decoded if first else decoded + products.centre_part)
            squares, first = squares + (so_far - products.x).square().sum(), end
        return squares / len(self.ends), so_far - products.x

    def shard(self, part: slice) -> None:
        super().shard(part)
        self.first_latent = part.start

    def settings(self) -> dict[str, float | int | str]:
        return super().settings() | {"prefixes": ",".join(f"{share:g}" for share in self.prefixes)}
