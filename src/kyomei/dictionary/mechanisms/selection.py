"""Codes that keep the largest scores: of each row (TopK) or of the whole batch (BatchTopK), flat or nested (Matryoshka)."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from kyomei.config import MechanismRecipe
from kyomei.dictionary.kernels import Active, Products
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, counts_of
from kyomei.errors import RecipeError


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
        own = products.scores.index_select(1, dead)
        chosen = _top_rows(own, min(error.shape[1] // 2 or 1, int(anywhere)), self.reduce.gather_latents)
        mask = torch.zeros_like(products.scores, dtype=torch.bool)
        mask[:, dead] = chosen
        among_dead = Active.of(mask)
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


def _top_rows(scores: Float[Tensor, "rows width"], k: int, gather: Callable[[Tensor], Tensor]) -> Bool[Tensor, "rows width"]:
    """Mask of the k largest positive scores of each row, over all ranks that hold latents of it."""
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    padded = pad(best.values, (0, k - best.values.shape[1]), value=-torch.inf)
    every = gather(padded)
    if every.shape == padded.shape:
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best.indices, True).logical_and_(scores > 0)
    least = every.topk(k, dim=1).values[:, -1:]
    return (scores >= least) & (scores > 0)


@final
class TopK(Selection):
    """The k largest positive scores of each row.

    Args:
        width, k, auxk, dead_after: as in `Selection`; k is an upper bound.

    Source: arXiv:2406.04093.
    """

    name = "topk"

    def select(self, scores: Float[Tensor, "rows width"]) -> Active:
        return Active.of(_top_rows(scores, self.k, self.reduce.gather_latents))

    def finish(self) -> Finish:
        # A zero threshold is "only positive scores".
        return Finish(torch.zeros(self.width, device=self.fired.device), "topk", self.k)


class BatchTopK(Selection):
    """The k × rows largest positive scores of a batch; a threshold afterwards.

    Args:
        width, k, auxk, dead_after: as in `Selection`; k is an average over rows.
        memory: share of the running threshold that a step keeps, in [0, 1).

    Source: arXiv:2412.06410; the threshold is the running mean of each batch's smallest kept score.
    """

    name = "batchtopk"

    def __init__(self, width: int, k: int, memory: float = 0.9, auxk: float = 0.0, dead_after: int = 100_000) -> None:
        super().__init__(width, k, auxk, dead_after)
        if not 0 <= memory < 1:
            raise RecipeError("memory within [0, 1)", f"{memory}", "choose a share, such as 0.9")
        self.memory = memory
        self.threshold = torch.zeros(())
        self.batches = torch.zeros((), dtype=torch.int64)

    def select(self, scores: Float[Tensor, "rows width"]) -> Active:
        flat = scores.reshape(-1)
        rows = int(self.reduce.sum_over_rows(torch.tensor(len(scores), device=scores.device)))
        best = flat.topk(min(self.k * rows, len(flat)))
        every = self.reduce.gather_all(best.values)
        if len(every) > len(best.values):
            least = every.topk(min(self.k * rows, len(every))).values[-1]
            return Active.of((scores >= least) & (scores > 0))
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(0, best.indices, True).view_as(scores)
        return Active.of(kept.logical_and_(scores > 0))

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
class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK whose first latents have to reconstruct by themselves: the loss is a mean over nested dictionaries.

    Args:
        width, k, memory, auxk, dead_after: as in `BatchTopK`.
        prefixes: ends of the nested dictionaries as shares of the width, ascending, the last 1.

    Source: arXiv:2503.17547.
    """

    name = "matryoshka"

    def __init__(
        self,
        width: int,
        k: int,
        memory: float = 0.9,
        auxk: float = 0.0,
        dead_after: int = 100_000,
        prefixes: tuple[float, ...] = MechanismRecipe().prefixes,
    ) -> None:
        super().__init__(width, k, memory, auxk, dead_after)
        if not prefixes or list(prefixes) != sorted(set(prefixes)) or prefixes[0] <= 0 or prefixes[-1] != 1:
            raise RecipeError("ascending prefixes in (0, 1], the last 1", f"{prefixes}", "correct mechanism.prefixes")
        self.prefixes = prefixes
        self.ends = sorted({max(1, round(share * width)) for share in prefixes})
        self.first_latent = 0
        """Number of this rank's first latent among all."""

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
