"""What a mechanism's objective needs of one batch: on the active set alone, or by autograd on whole matrices."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.dictionary.kernels import Active, active_above, bfloat16_is_fast, csr_matmul, products_and_sums, sampled_products

DENSE_ABOVE, DENSE_ABOVE_ON_GPUS = 0.15, 0.055
"""Density of the code above which whole matrices are faster; on an H100 reckoned from 0.5 to 4 % (docs/results.md)."""


ROUNDING = 2**-7
"""Share of a threshold by which candidates begin below it: numbers of bfloat16 are 2⁻⁸ of each other apart. Where a score is
small beside its factors' norms, their rounding may be more, and an entry just above its threshold is left out."""


def is_dense(density: float, device: torch.device) -> bool:
    """Whether a code of this density is faster on whole matrices."""
    return density > (DENSE_ABOVE_ON_GPUS if device.type == "cuda" else DENSE_ABOVE)


def alone(x: Tensor) -> Tensor:
    """What one rank has to add from the others: nothing."""
    return x


@dataclass(frozen=True)
class Others:
    """What other ranks have of a batch.

    Attributes:
        num_rows: rows over which the loss is a mean, those of other ranks included; none: these.
        over_latents: adds up what ranks with other latents reconstruct of the same rows; differentiable.
        centre_share: share of b_pre that this rank adds to that sum, so that its gradient is a sum over ranks as well.
    """

    num_rows: int | None = None
    over_latents: Callable[[Tensor], Tensor] = alone
    centre_share: float = 1.0


class Products(ABC):
    """What a mechanism's objective needs of one batch, whichever way it is computed.

    Args:
        x: normalised rows [rows, dim].
        encoder: W_enc [width, dim], a leaf whose gradient buffer is filled; so are those of decoder and centre.
        decoder: W_dec [width, dim]; the same tensor where tied.
        centre: b_pre [dim].
        others: what other ranks have of the batch.
        autocast: dtype of the scores' product; none: that of the weights.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows dim"],
        encoder: Float[Tensor, "width dim"],
        decoder: Float[Tensor, "width dim"],
        centre: Float[Tensor, " dim"],
        *,
        others: Others = Others(),
        autocast: torch.dtype | None = None,
    ) -> None:
        self.x, self.encoder, self.decoder, self.centre = x, encoder, decoder, centre
        self.num_rows = others.num_rows or len(x)
        self.over_latents, self.centre_share, self.autocast = others.over_latents, others.centre_share, autocast

    @property
    @abstractmethod
    def scores(self) -> Float[Tensor, "rows width"]:
        """All scores (x − b_pre) W_encᵀ to choose by, without gradient; perhaps of fewer digits than `scores_at`."""

    @abstractmethod
    def above(self, threshold: Float[Tensor, " width"]) -> tuple[Active, Float[Tensor, " active"] | None]:
        """Entries whose score exceeds its latent's threshold, and their scores where they are at hand."""

    @abstractmethod
    def scores_at(self, active: Active, known: Float[Tensor, " active"] | None = None) -> Float[Tensor, " active"]:
        """Scores of active entries, as known from `above`; differentiable."""

    @abstractmethod
    def decode(self, active: Active, values: Float[Tensor, " active"]) -> Float[Tensor, "rows dim"]:
        """z W_dec on this rank's latents; differentiable."""

    def reconstruct(self, active: Active, values: Float[Tensor, " active"]) -> Float[Tensor, "rows dim"]:
        """x̂ = z W_dec + b_pre; differentiable."""
        return self.over_latents(self.decode(active, values) + self.centre_part)

    @property
    def centre_part(self) -> Float[Tensor, " dim"]:
        """What this rank adds of b_pre."""
        return self.centre if self.centre_share == 1 else self.centre * self.centre_share

    def frozen(self) -> Products:
        """The same with a decoder that takes no gradient."""
        other = copy.copy(self)  # what has been computed is shared
        other.decoder = self.decoder.detach()
        return other


class DenseProducts(Products):
    """By autograd on whole matrices."""

    @cached_property
    def _scores(self) -> Tensor:
        with self._precision():
            # (x − b_pre) W_encᵀ with b_pre's part apart: its gradient then needs no product over the whole batch.
            return torch.nn.functional.linear(self.x, self.encoder, -(self.encoder @ self.centre))

    def _precision(self) -> Any:
        return nullcontext() if self.autocast is None else torch.autocast(self.x.device.type, dtype=self.autocast)

    @property
    def scores(self) -> Tensor:
        return self._scores.detach()

    def above(self, threshold: Tensor) -> tuple[Active, Tensor | None]:
        return Active.of(self.scores > threshold), None

    def scores_at(self, active: Active, known: Tensor | None = None) -> Tensor:
        return self._scores.reshape(-1)[active.row * active.width + active.latent].to(self.encoder.dtype)

    def decode(self, active: Active, values: Tensor) -> Tensor:
        with self._precision():
            product: Tensor = active.dense(values) @ self.decoder
        return product.to(self.encoder.dtype)


class SparseProducts(Products):
    """On the active set alone; gradients of weights are added to their buffers, as autograd would."""

    @cached_property
    def centred(self) -> Tensor:
        """x − b_pre [rows, dim]."""
        return self.x - self.centre.detach()

    @cached_property
    def scores(self) -> Tensor:
        return (self._chosen_by(self.encoder) @ self._chosen_by(self.centred).T).T

    @property
    def _chosen_by_fewer_digits(self) -> bool:
        """Whether all scores are quickly made in bfloat16, and those of chosen entries in the dtype of weights."""
        return self.autocast is None and self.x.dtype == torch.float32 and bfloat16_is_fast(self.x.device)

    def _chosen_by(self, x: Tensor) -> Tensor:
        """In the dtype of the product of all scores."""
        return x.detach().bfloat16() if self._chosen_by_fewer_digits else self._scored(x)

    def _scored(self, x: Tensor) -> Tensor:
        """In the dtype of products."""
        return x.detach().to(self.autocast or x.dtype)

    def _gathered(self, x: Tensor) -> Tensor:
        """In the dtype of products that gather rows: torch's, on the CPU, take no other than that of the weights."""
        return self._scored(x) if x.device.type == "cuda" else x.detach()

    def above(self, threshold: Tensor) -> tuple[Active, Tensor | None]:
        if not self._chosen_by_fewer_digits:
            return active_above(self._scored(self.centred), self._scored(self.encoder), threshold)
        lower = (threshold - ROUNDING * threshold.abs()).bfloat16()
        active, _ = active_above(self._chosen_by(self.centred), self._chosen_by(self.encoder), lower)
        scores = self._exact(active)
        above = scores > threshold[active.latent]
        return Active(active.latent[above], active.row[above], active.num_rows, active.width), scores[above]

    def _exact(self, active: Active) -> Tensor:
        """Scores of some entries, in the weights' dtype."""
        return sampled_products(active.latent_starts, active.row32, self.encoder.detach(), self.centred)

    def scores_at(self, active: Active, known: Tensor | None = None) -> Tensor:
        if known is None and self._chosen_by_fewer_digits:
            known = self._exact(active)
        elif known is None:
            known = self.scores.T.reshape(-1).index_select(0, active.latent * active.num_rows + active.row)
        known, weights = known.to(self.encoder.dtype), (self.encoder, self.centre)
        scores: Tensor = _ScoresAt.apply(known, *weights, self._gathered(self.centred), active)  # type: ignore[no-untyped-call]
        return scores

    def decode(self, active: Active, values: Tensor) -> Tensor:
        low = self._gathered(self.decoder)
        decoded: Tensor = _Decode.apply(values, self.decoder, low, active)  # type: ignore[no-untyped-call]
        return decoded


class _ScoresAt(torch.autograd.Function):
    """Known scores with the gradients of (x − b_pre)·w_m."""

    @staticmethod
    def forward(ctx: Any, known: Tensor, encoder: Tensor, centre: Tensor, centred: Tensor, active: Active) -> Tensor:
        ctx.weights, ctx.centred, ctx.active = (encoder, centre), centred, active
        return known

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        (encoder, centre), active = ctx.weights, ctx.active
        if encoder.requires_grad:
            csr_matmul(active.latent_starts, active.row32, grad, ctx.centred, _buffer(encoder))
        if centre.requires_grad:
            _buffer(centre).sub_(active.sums(grad) @ encoder.detach())
        return (None,) * 5


class _Decode(torch.autograd.Function):
    """z W_dec from the active entries of z; `low` is W_dec in the dtype of products."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, low: Tensor, active: Active) -> Tensor:
        ctx.decoder, ctx.active = decoder, active
        ctx.save_for_backward(values, low)
        out = decoder.new_zeros(active.num_rows, decoder.shape[1])
        return csr_matmul(active.row_starts, active.latent32_by_row, values[active.by_row], low, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (values, low), decoder, active = ctx.saved_tensors, ctx.decoder, ctx.active
        pattern, error = (active.latent_starts, active.row32), grad.to(low.dtype).contiguous()
        if decoder.requires_grad:
            found = products_and_sums(*pattern, values.detach(), low, error, _buffer(decoder))
        else:
            found = sampled_products(*pattern, low, error)
        return found.to(values.dtype), None, None, None


def _buffer(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
