"""Latents that stay what was found: thresholds at a share of a usual score, decoders by least squares within a cone.

Trained by gradients, decoders of held encoders drift apart between replicas where the data has little variance, and thresholds
that follow a price per latent differ with the decoders. Both are given by the data instead: a feature's coefficients are of
comparable size (premise H2 of arXiv:2506.14002), so a latent is active from half its usual score; and its decoder is the one
that reconstructs best among those at a cosine of at least `anchor`, in whitened space, to its direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.learning.least_squares import LeastSquares
from kyomei.learning.spaces import Whitening

STRONGEST_SHARE, STRONGEST_ROWS = 3e-4, 10
"""The usual score of a latent is the mean over this share of the rows, those where it is largest, but at least so many."""
ACTIVE_SHARE, CLEAR_SHARE = 0.5, 0.7
"""A latent is active from this share of its usual score; from the second where free latents stand beside it, which reconstruct
more with an active place in the code than an unclear occurrence does."""
SWEEPS = 60
MOVED_AT_ONCE = 128
SCORED_AT_ONCE = 128
"""Latents whose scores of a block of rows are held at a time."""
BISECTIONS = 14


def usual_scores_in_turn(
    blocks: Iterable[Float[Tensor, "block dim"]], num_rows: int, encoder: Float[Tensor, "own dim"]
) -> Float[Tensor, " own"]:
    """`usual_scores` of so many rows that come by some at a time."""
    best = encoder.new_full((len(encoder), _num_strongest(num_rows)), -torch.inf)
    for x in blocks:
        for held, some in zip(torch.split(best, SCORED_AT_ONCE), torch.split(encoder, SCORED_AT_ONCE), strict=True):
            scores = some @ x.T
            new = (scores.amax(dim=1) > held[:, -1]).nonzero().flatten()
            held[new] = torch.cat([held[new], scores[new]], dim=1).topk(held.shape[1], dim=1).values
    return best.mean(dim=1)


def _num_strongest(num_rows: int) -> int:
    return min(num_rows, max(STRONGEST_ROWS, round(STRONGEST_SHARE * num_rows)))


def usual_scores(x: Float[Tensor, "rows dim"], encoder: Float[Tensor, "width dim"]) -> Float[Tensor, " width"]:
    """Mean of each latent's largest scores x·e."""
    count = _num_strongest(len(x))
    # Latents in rows: the largest of contiguous numbers are found many times faster.
    parts = [(rows @ x.T).topk(count, dim=1).values.mean(dim=1) for rows in torch.split(encoder, 256)]
    return torch.cat(parts) if parts else x.new_zeros(0)


@dataclass(frozen=True, eq=False)
class Cone:
    """Decoder rows within a cosine of their directions in whitened space, in the metric of the input.

    Attributes:
        directions: unit rows in whitened space [k, dim]; they belong to the first k latents.
        cosine: least cosine; −1 lets decoders go anywhere.
        axes: eigenvectors of the covariance in columns [dim, dim].
        deviations: square roots of its eigenvalues [dim]; 0 where no coordinate varies.
    """

    directions: Float[Tensor, "k dim"]
    cosine: float
    axes: Float[Tensor, "dim dim"]
    deviations: Float[Tensor, " dim"]

    @classmethod
    def around(cls, directions: Float[Tensor, "k dim"], cosine: float, space: Whitening) -> Cone:
        """The cone around whitened directions."""
        deviations, axes = torch.linalg.eigh(space.backward.double())
        # Axes of coordinates that never vary; whitening keeps the others above a thousandth of the largest deviation.
        deviations = torch.where(deviations > 1e-6 * deviations.max(), deviations, 0.0)
        # Exactly nothing of them: optimisers that go by a gradient's sign alone would make something of rounding.
        axes = axes * space.varies[:, None]
        return cls(directions, cosine, axes.to(directions), deviations.to(directions))

    def to(self, device: torch.device) -> Cone:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("directions", "axes", "deviations")}
        return replace(self, **moved)

    def part(self, which: slice) -> Cone:
        """That of some latents, of which those with directions come first."""
        return replace(self, directions=self.directions[which])

    def nearest(self, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
        """Decoder rows moved into the cone at little cost in the input's metric; rows beyond the directions stay.

        Along axis j with variance λ_j a row u moves to (λ_j u_j + L a w_j) / (λ_j + L), where a is w's best amplitude and L
        the smallest weight that reaches the cosine: axes of little variance, hardly seen in reconstruction, follow w.
        """
        if self.cosine <= -1 or not len(self.directions):
            return decoder
        moved = decoder.clone()
        # Some at a time: a bisection holds a dozen copies of what it moves.
        for first in range(0, len(self.directions), MOVED_AT_ONCE):
            directions = self.directions[first : first + MOVED_AT_ONCE]
            self._move(moved[first : first + len(directions)], directions @ self.axes)
        return moved

    def _move(self, rows: Float[Tensor, "k dim"], wanted: Float[Tensor, "k dim"]) -> None:
        """Bring decoder rows, in place, into the cone around directions in the axes' coordinates."""
        own = torch.where(self.deviations > 0, (rows @ self.axes) / self.deviations.clamp_min(1e-30), 0.0)
        cosine = (own * wanted).sum(dim=1) / own.norm(dim=1).clamp_min(1e-12)
        outside = (cosine < self.cosine).nonzero().flatten()
        if len(outside):
            rows[outside] = (self._moved(own[outside], wanted[outside]) * self.deviations) @ self.axes.T

    def _moved(self, u: Float[Tensor, "k dim"], w: Float[Tensor, "k dim"]) -> Float[Tensor, "k dim"]:
        variance = self.deviations.square()
        amplitude = ((u * w * variance).sum(dim=1) / (w * w * variance).sum(dim=1)).clamp_min(1e-3)[:, None]

        def at(log_weight: Tensor) -> Tensor:
            weight = log_weight.exp() * variance.mean()
            moved: Tensor = (variance * u + weight * amplitude * w) / (variance + weight)
            return moved

        low, high = torch.full((len(u), 1), -12.0).to(u), torch.full((len(u), 1), 6.0).to(u)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            moved = at(middle)
            inside = (moved * w).sum(dim=1, keepdim=True) >= self.cosine * moved.norm(dim=1, keepdim=True)
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        # A weight of e⁶ may still be short of a cosine of nearly 1; the direction itself never is.
        moved = at(high)
        inside = (moved * w).sum(dim=1, keepdim=True) >= (self.cosine - 1e-3) * moved.norm(dim=1, keepdim=True)
        return torch.where(inside, moved, amplitude * w)


def anchored_decoders(
    squares: LeastSquares, start: Float[Tensor, "width dim"], cone: Cone, sweeps: int = SWEEPS
) -> Float[Tensor, "width dim"]:
    """Decoder rows that minimise E‖x − z D‖² within the cone, by accelerated projected gradients (FISTA).

    Each row's step is the inverse of its row sum in the Gram matrix, which no curvature exceeds.

    Args:
        squares: of codes and centred rows; of several ranks, with this one's latents.
        start: decoder rows to begin with, their norm a latent's scale.
        cone: what the first rows are kept in.
        sweeps: gradient steps.

    Returns:
        Decoder rows, not of unit norm.

    Source: Beck and Teboulle (2009); the cone is ours.
    """
    totals = squares.bounds.to(start)
    rate = torch.where(totals > 0, 1 / totals.clamp_min(1e-12), 0.0)[:, None]
    decoder, ahead, momentum = start, start, 1.0
    for _ in range(sweeps):
        # In place: copies of all latents are what this holds at its most.
        moved = cone.nearest(squares.descent(ahead).mul_(rate).add_(ahead))
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = torch.sub(moved, decoder).mul_((momentum - 1) / grown).add_(moved)
        decoder, momentum = moved, grown
    return decoder
