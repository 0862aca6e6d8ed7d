"""Encoders as detectors: linear scores that reconstruct best are not those that tell best whether a feature is there.

A trained decoder says what features look like. Which of them a row is made of is then a matter of decoding it carefully, once:
features' coefficients are of comparable size (premise H2 of arXiv:2506.14002), so a latent is taken up from half its usual
coefficient, the largest first and all of them fitted together. Those codes are too slow for use; the linear encoder that
detects their supports best, by logistic regression, is not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.least_squares import to_scipy
from kyomei.learning.refinement import CHUNK_ROWS, positive_code
from kyomei.learning.sample import evenly
from kyomei.source.rows import Rows

ROWS = 40_000
"""Rows that are decoded carefully, evenly taken."""
PARTS, TAKE, KEEP = 12, 0.5, 0.3
"""Parts of a code at most; share of its usual coefficient from which a latent is taken up, and below which it is left out."""
STEPS, BATCH_ROWS, RATE = 400, 2048, 0.02
SHARPNESS = 8.0
"""What the least-squares solution is multiplied by where the regression begins: probabilities near 0 and 1."""
LATENTS_PER_BLOCK = 512
RIDGE = 1e-3


def detectors(sae: SparseAutoencoder, rows: Rows, seed: int) -> SparseAutoencoder:
    """The same decoders with encoders and thresholds that detect when a careful decoding would use them.

    Args:
        sae: a trained dictionary, its decoder rows of unit norm.
        rows: what it was trained on.
        seed: of the regressions' batches.

    Returns:
        A JumpReLU dictionary whose values are those codes' coefficients, as a line over the score; latents that no code uses
        stay silent.
    """
    own = sae.to("cpu", torch.float32)
    x = rows.read(evenly(rows, ROWS)).float().cpu()
    code = half_magnitude_code(x - own.center, own.decoder, usual_coefficients(own, x))
    mean = x.mean(dim=0)
    scale = (x - mean).square().mean().sqrt()
    u = (x - mean) / scale
    columns = code.tocsc()
    parts = [
        _detected(u, torch.from_numpy(columns[:, first : first + LATENTS_PER_BLOCK].toarray()), seed)
        for first in range(0, own.width, LATENTS_PER_BLOCK)
    ]
    weight, slope, threshold, offset = (torch.cat([part[i] for part in parts]) for i in range(4))
    # A score is of x − centre, the regression's of (x − mean) / scale: the constant between them goes to the bias.
    encoder = slope[:, None] * weight / scale
    bias = offset + encoder @ (own.center - mean)
    # `offset` is such that no value of an active latent is negative; rounding must not undo that.
    found = SparseAutoencoder(
        encoder, own.decoder, (slope * threshold + offset).clamp_min(0), own.center, activation="jumprelu", bias=bias
    )
    return found.to(sae.encoder.device, sae.encoder.dtype)


def usual_coefficients(sae: SparseAutoencoder, x: Float[Tensor, "rows dim"]) -> Float[Tensor, " width"]:
    """Mean value of each latent where it is active; infinite for one that never is."""
    code = sae.encode(x, sparse=True)
    count = torch.bincount(code.col_indices(), minlength=sae.width)
    total = torch.zeros(sae.width).index_add_(0, code.col_indices(), code.values())
    return torch.where(count > 0, total / count.clamp_min(1), torch.inf)


def half_magnitude_code(
    y: Float[Tensor, "rows dim"], decoder: Float[Tensor, "width dim"], usual: Float[Tensor, " width"]
) -> sparse.csr_array:
    """Positive sums in which a direction is taken up only from half its usual coefficient.

    Args:
        y: rows less the centre.
        decoder: unit directions.
        usual: their usual coefficients.

    Returns:
        Coefficients, float32 CSR [rows, width].
    """
    parts = []
    for rows in torch.split(y, CHUNK_ROWS):
        code = positive_code(rows, decoder, PARTS, TAKE * usual)
        parts.append(to_scipy(torch.where(code > KEEP * usual, code, 0.0).to_sparse_csr()))
    return sparse.vstack(parts, format="csr")


def _detected(u: Tensor, code: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [latents, dim], slopes, thresholds before the slope and offsets after it, for the codes of some latents."""
    present = (code > 0).float()
    weight = _logistic(u, present, seed)
    scores = u @ weight.T
    threshold = best_thresholds(scores, present)
    slope, level = _coefficients(scores, code, scores > threshold)
    # No value of an active latent is negative.
    return weight, slope, threshold, torch.where(threshold < torch.inf, torch.maximum(level, -slope * threshold), 0.0)


def _logistic(u: Tensor, present: Tensor, seed: int) -> Tensor:
    """Weights of one-against-the-rest regressions, begun at the least-squares solution."""
    rng = np.random.default_rng(seed)
    gram = u.T @ u / len(u)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    frequency = present.mean(dim=0)
    weight: Tensor = SHARPNESS * torch.linalg.solve(gram + ridge, u.T @ (present - frequency) / len(u)).T
    intercept = torch.logit(frequency.clamp(1e-4, 1 - 1e-4))
    weight, intercept = weight.contiguous().requires_grad_(), intercept.requires_grad_()
    optimiser = torch.optim.Adam([weight, intercept], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        index = torch.from_numpy(rng.integers(0, len(u), size=BATCH_ROWS) if len(u) > BATCH_ROWS else np.arange(len(u)))
        logits = u[index] @ weight.T + intercept
        loss = binary_cross_entropy_with_logits(logits, present[index], reduction="sum") / len(index)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return weight.detach()


def best_thresholds(scores: Float[Tensor, "rows latents"], present: Float[Tensor, "rows latents"]) -> Float[Tensor, " latents"]:
    """Threshold of each column at which the F1 of its detections is greatest; infinite where nothing is to be detected."""
    total = present.sum(dim=0)
    thresholds = torch.full_like(total, math.inf)
    for j in total.nonzero().flatten().tolist():
        value, index = scores[:, j].topk(min(len(scores), max(50, 2 * int(total[j]))))
        f1 = 2 * present[index, j].cumsum(0) / (torch.arange(1, len(index) + 1) + total[j])
        best = int(f1.argmax())
        thresholds[j] = value[best : best + 2].mean() - 1e-6
    return thresholds


def _coefficients(scores: Tensor, code: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and level of the codes' coefficients over the scores, where active."""
    n = on.sum(dim=0).clamp_min(1)
    score, value = (scores * on).sum(dim=0) / n, (code * on).sum(dim=0) / n
    covariance = (scores * code * on).sum(dim=0) / n - score * value
    variance = (scores.square() * on).sum(dim=0) / n - score.square()
    slope = torch.maximum(covariance / variance.clamp_min(1e-6), 1e-3 * value.clamp_min(1e-3))
    return slope, value - slope * score
