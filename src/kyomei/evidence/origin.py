"""Where a feature comes from: how much of its activation the current token and its position already explain.

Token and position identity reproduce perfectly, in a model with random weights as well, so a reproduced feature says what was
learnt only as far as they do not explain it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy.typing import NDArray
from scipy import sparse

from kyomei.errors import EvidenceError
from kyomei.evidence.codes import total

OriginName = Literal["token", "position", "context-or-unexplained"]
ORIGINS: tuple[OriginName, ...] = ("token", "position", "context-or-unexplained")
EXPLAINED = 0.5
"""A feature comes from the token or the position when they explain at least this much of its variance."""
LATENTS_AT_ONCE = 1024
"""Latents whose means by token are held at a time: dense, distinct tokens × latents."""
TOKENS_NAMED = 8
TOKENS_MASS = 0.9
"""Tokens are named until together they hold this share of a feature's activation."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Share of each latent's variance that the token, the position, or both explain on documents they were not fitted on.

    Attributes:
        token: R² of the mean activation by current token [width].
        position: R² of the mean activation by position in the window [width].
        both: R² of the sum of both effects [width].
        top_tokens: for each latent its strongest token ids and their shares of its whole activation.
    """

    token: Float64[np.ndarray, " width"]
    position: Float64[np.ndarray, " width"]
    both: Float64[np.ndarray, " width"]
    top_tokens: list[list[tuple[int, float]]]

    def kind(self, latent: int) -> OriginName:
        """Token or position, whichever explains more, if the two together explain half; otherwise context or unexplained."""
        token, position = self.token[latent], self.position[latent]
        if max(token, position, self.both[latent]) < EXPLAINED:
            return "context-or-unexplained"
        return "token" if token >= position else "position"

    def to_dict(self, latent: int) -> dict[str, Any]:
        """Plain figures of one latent."""
        shares = {name: round(float(getattr(self, name)[latent]), 4) for name in ("token", "position", "both")}
        return {"kind": self.kind(latent), "r2": shares}


def origin(
    code: sparse.csr_array,
    token: Int64[np.ndarray, " rows"],
    position: Int64[np.ndarray, " rows"],
    document: Shaped[np.ndarray, " rows"],
) -> Origin:
    """R² of every latent's activation from token identity, from position, and from both.

    Means are taken over one half of the documents and scored on the other, both ways, and averaged; R² is against the mean
    of the half they were taken on, so it can fall below 0.

    Args:
        code: activations [rows, width].
        token: id of the current token of each row.
        position: its position in the window.
        document: number of its document.

    Raises:
        EvidenceError: the arrays are of different lengths, or there are fewer than two documents.
    """
    lengths = {code.shape[0], len(token), len(position), len(document)}
    names = np.unique(document)
    if len(lengths) > 1 or len(names) < 2:
        found = f"{sorted(lengths)} rows, {len(names)} documents"
        raise EvidenceError("one token, position and document for each row, and two documents", found, "use harvested rows")
    # Every second document: both halves then see the whole corpus.
    first = np.isin(document, names[::2])
    tokens, positions = _one_hot(token), _one_hot(position)
    columns = code.tocsc()
    parts = []
    for start in range(0, code.shape[1], LATENTS_AT_ONCE):
        block = columns[:, start : start + LATENTS_AT_ONCE].tocsr()
        scores = [_score(block, tokens, positions, half) for half in (first, ~first)]
        parts.append(np.mean(scores, axis=0))
    by_token, by_position, by_both = np.concatenate(parts, axis=1)
    return Origin(by_token, by_position, by_both, _top_tokens(code, tokens, np.unique(token)))


def _one_hot(values: Int64[np.ndarray, " rows"]) -> sparse.csr_array:
    """[rows, distinct values], a one at each row's value."""
    _, number = np.unique(values, return_inverse=True)
    rows = len(values)
    shape = (rows, int(number.max()) + 1)
    return sparse.csr_array((np.ones(rows), number, np.arange(rows + 1)), shape=shape)


def _score(
    code: sparse.csr_array, tokens: sparse.csr_array, positions: sparse.csr_array, fit: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """R² by token, by position and by both on the rows outside `fit`.

    Codes are centred on the mean over `fit` implicitly: effects are deviations from it, and are 0 for values never seen there.
    """
    z, z_test = code[fit].astype(np.float64), code[~fit].astype(np.float64)
    mean = total(z) / z.shape[0]
    t, t_test, p, p_test = tokens[fit], tokens[~fit], positions[fit], positions[~fit]
    token_effect = _effect(t, (t.T @ z).toarray(), mean)
    position_effect = _effect(p, (p.T @ z).toarray(), mean)
    # One pass of backfitting: the position's effect on what the token leaves. Text is nearly balanced in the two.
    rest_effect = _effect(p, (p.T @ z).toarray() - (p.T @ t) @ token_effect, mean)
    count, squares = z_test.shape[0], total(z_test.power(2))
    spread = squares - 2 * mean * total(z_test) + count * mean**2
    token_sums, position_sums = (t_test.T @ z_test).toarray(), (p_test.T @ z_test).toarray()
    token_left = _left(spread, total(t_test), token_sums, mean, token_effect)
    position_left = _left(spread, total(p_test), position_sums, mean, position_effect)
    rest_sums = position_sums - (p_test.T @ t_test) @ token_effect
    both_left = _left(token_left, total(p_test), rest_sums, mean, rest_effect)
    lefts = (token_left, position_left, both_left)
    r2 = [1 - np.divide(left, spread, out=np.ones_like(spread), where=spread > 0) for left in lefts]
    return r2[0], r2[1], r2[2]


def _effect(one_hot: sparse.csr_array, sums: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean deviation from `mean` for each value [values, width]; 0 for a value that does not occur."""
    counts = total(one_hot)[:, None]
    effect: NDArray[np.float64] = np.divide(sums - counts * mean, counts, out=np.zeros_like(sums), where=counts > 0)
    return effect


def _left(
    spread: NDArray[np.float64],
    counts: NDArray[np.float64],
    sums: NDArray[np.float64],
    mean: NDArray[np.float64],
    effect: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Sum of squares left after an effect is taken off: Σ(r − e)² = Σr² − 2 Σ_v e_v Σ_{rows of v} r + Σ_v n_v e_v²."""
    residual_sums = sums - counts[:, None] * mean
    left: NDArray[np.float64] = spread - 2 * (effect * residual_sums).sum(axis=0) + (counts[:, None] * effect**2).sum(axis=0)
    return left


def _top_tokens(
    code: sparse.csr_array, tokens: sparse.csr_array, ids: Int64[np.ndarray, " distinct"]
) -> list[list[tuple[int, float]]]:
    """Tokens by their share of each latent's whole activation, until together they hold nearly all of it."""
    mass = (tokens.T @ code.astype(np.float64)).tocsc()
    named = []
    for latent in range(code.shape[1]):
        begin, end = mass.indptr[latent], mass.indptr[latent + 1]
        shares = mass.data[begin:end] / max(mass.data[begin:end].sum(), 1e-300)
        order = np.argsort(-shares, kind="stable")[:TOKENS_NAMED]
        needed = int(np.searchsorted(np.cumsum(shares[order]), TOKENS_MASS)) + 1
        chosen = order[:needed]
        named.append([(int(ids[mass.indices[begin + i]]), float(shares[i])) for i in chosen])
    return named


def share_difference(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " m"], seed: int, draws: int = 10_000) -> dict[str, float]:
    """Difference of two shares with its 95 % bootstrap interval, features drawn with replacement on either side.

    Args:
        a: for each feature of the first kind, whether it counts.
        b: the same of the second kind.
        seed: of the draws.
        draws: how many.

    Raises:
        EvidenceError: one side has no feature.
    """
    if len(a) == 0 or len(b) == 0:
        raise EvidenceError("features on both sides", f"{len(a)} and {len(b)}", "train wider or on more rows")
    rng = np.random.default_rng([seed, draws])
    # The number of successes among n draws with replacement is binomial: no draw of single features is needed.
    shares = [rng.binomial(len(side), side.mean(), size=draws) / len(side) for side in (a, b)]
    low, high = np.quantile(shares[0] - shares[1], (0.025, 0.975))
    return {
        "first": float(a.mean()),
        "second": float(b.mean()),
        "difference": float(a.mean() - b.mean()),
        "low": float(low),
        "high": float(high),
    }
