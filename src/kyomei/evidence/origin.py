"""Where a feature comes from: how much of its activation the current token and its position already account for.

Token and position identity reproduce perfectly, in a model with random weights as well, so a reproduced feature says what was
learnt only as far as they do not account for it. Two figures each say how far they do. R² says how well their means predict the
activation. It stays low for a feature that fires on some occurrences of one token only, or with varying strength; the share of
the activation that lies on few tokens, or at the same positions, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy.typing import NDArray
from scipy import sparse

from kyomei.errors import EvidenceError
from kyomei.evidence.codes import joined, total
from kyomei.learning.mesh import Mesh

OriginName = Literal["token", "position", "context-or-unexplained"]
ORIGINS: tuple[OriginName, ...] = ("token", "position", "context-or-unexplained")
EXPLAINED = 0.5
"""A feature comes from the token or the position when they explain at least this share of its variance, or hold this share of
its activation."""
FEW_TOKENS = 8
"""Tokens on which a feature's activation may lie for these to be what it is about: more make a class, or a context."""
LATENTS_AT_ONCE = 1024
"""Latents whose means by token are held at a time: dense, distinct tokens × latents."""
TOKENS_NAMED = 8
TOKENS_MASS = 0.9
"""Tokens are named until together they hold this share of a feature's activation."""
_FIGURES = ("token", "position", "both", "token_mass", "position_mass", "firing")


@dataclass(frozen=True, eq=False)
class Origin:
    """How far token and position account for each latent, on documents other than those they were fitted on.

    Attributes:
        token: R² of the mean activation by current token [width].
        position: R² of the mean activation by position in the window [width].
        both: R² of the sum of both effects [width].
        token_mass: share of the activation, beyond what chance puts there, that lies on the at most eight tokens that hold most
            of it on other documents [width].
        position_mass: the same of the positions that hold more of it than chance, however many [width].
        top_tokens: for each latent its strongest token ids and their shares of its whole activation.
        firing: share of the occurrences of its top tokens on which the latent is active [width]; 0 for one that never is.
    """

    token: Float64[np.ndarray, " width"]
    position: Float64[np.ndarray, " width"]
    both: Float64[np.ndarray, " width"]
    token_mass: Float64[np.ndarray, " width"]
    position_mass: Float64[np.ndarray, " width"]
    top_tokens: list[list[tuple[int, float]]]
    firing: Float64[np.ndarray, " width"]

    def kind(self, latent: int) -> OriginName:
        """Token or position, whichever accounts for more, by R² or by mass, if it or both together account for half.

        A feature of one token in some contexts only is a token's, and `firing` says on how many of its occurrences.
        """
        token = max(self.token[latent], self.token_mass[latent])
        position = max(self.position[latent], self.position_mass[latent])
        if max(token, position, self.both[latent]) < EXPLAINED:
            return "context-or-unexplained"
        return "token" if token >= position else "position"

    def to_dict(self, latent: int) -> dict[str, Any]:
        """Plain figures of one latent."""
        r2 = {name: round(float(getattr(self, name)[latent]), 4) for name in ("token", "position", "both")}
        mass = {name: round(float(getattr(self, f"{name}_mass")[latent]), 4) for name in ("token", "position")}
        return {"kind": self.kind(latent), "r2": r2, "mass": mass, "firing": round(float(self.firing[latent]), 4)}


def joined_origin(own: Origin, mesh: Mesh) -> Origin:
    """The origins of all ranks' latents, on every rank."""
    if mesh.size == 1:
        return own
    figures = {name: joined(getattr(own, name), mesh) for name in _FIGURES}
    return Origin(**figures, top_tokens=list(chain.from_iterable(mesh.tell(own.top_tokens))))


def require_documents(document: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " documents"]:
    """The distinct documents of rows; raises EvidenceError where there is only one: half of them is scored on the others."""
    names = np.unique(document)
    if len(names) < 2:
        raise EvidenceError("evidence from at least two documents", f"rows of {len(names)}", "give more documents")
    return names


def origin(
    code: sparse.csr_array,
    token: Int64[np.ndarray, " rows"],
    position: Int64[np.ndarray, " rows"],
    document: Shaped[np.ndarray, " rows"],
) -> Origin:
    """How far token identity, position, and both account for every latent's activation.

    Means are taken, and tokens and positions chosen, on one half of the documents and scored on the other, both ways, and
    averaged; R² is against the mean of the half they were taken on, so it can fall below 0, as the masses can.

    Args:
        code: activations [rows, width].
        token: id of the current token of each row.
        position: its position in the window.
        document: number of its document.

    Raises:
        EvidenceError: the arrays are of different lengths, or there are fewer than two documents.
    """
    lengths = {code.shape[0], len(token), len(position), len(document)}
    names = require_documents(document)
    if len(lengths) > 1:
        raise EvidenceError("one token, position and document for each row", f"{sorted(lengths)} rows", "use harvested rows")
    # Every second document: both halves then see the whole corpus.
    first = np.isin(document, names[::2])
    tokens, positions = _one_hot(token), _one_hot(position)
    columns = code.tocsc()
    parts = []
    for start in range(0, code.shape[1], LATENTS_AT_ONCE):
        block = columns[:, start : start + LATENTS_AT_ONCE].tocsr()
        scores = [_score(block, tokens, positions, half) for half in (first, ~first)]
        masses = [_mass(block, values, first, most) for values, most in ((tokens, FEW_TOKENS), (positions, positions.shape[1]))]
        parts.append(np.stack([*np.mean(scores, axis=0), *masses]))
    by_token, by_position, by_both, token_mass, position_mass = np.concatenate(parts or [np.zeros((5, 0))], axis=1)
    named, firing = _top_tokens(code, tokens, np.unique(token))
    return Origin(by_token, by_position, by_both, token_mass, position_mass, named, firing)


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


def _mass(
    code: sparse.csr_array, values: sparse.csr_array, first: Bool[np.ndarray, " rows"], most: int
) -> Float64[np.ndarray, " width"]:
    """Share of each latent's activation, beyond chance, on the values that hold most of it on the other half of the documents.

    Of what lies elsewhere than chance would put it: (m − b) / (1 − b), m the share of the activation on the chosen values, b
    that of the rows.
    """
    held, chance, whole = np.zeros((3, code.shape[1]))
    for fit in (first, ~first):
        chosen = _chosen(code[fit], values[fit], most)
        here, there = code[~fit].astype(np.float64), values[~fit]
        held += total((there.T @ here).multiply(chosen))
        chance += total(here) * (chosen.T @ (total(there) / there.shape[0]))
        whole += total(here)
    left = whole - chance
    share: NDArray[np.float64] = np.divide(held - chance, left, out=np.zeros_like(left), where=left > 1e-12 * whole)
    return share


def _chosen(code: sparse.csr_array, values: sparse.csr_array, most: int) -> sparse.csc_array:
    """Ones [values, width] at the at most so many values by which each latent's activation most exceeds chance."""
    mass = (values.T @ code.astype(np.float64)).tocsc()
    latent = np.repeat(np.arange(code.shape[1]), np.diff(mass.indptr))
    excess = mass.data / total(code).clip(1e-300)[latent] - (total(values) / values.shape[0])[mass.indices]
    order = np.lexsort((-excess, latent))
    place = np.arange(len(order)) - mass.indptr[latent[order]]
    taken = order[(place < most) & (excess[order] > 0)]
    return sparse.csc_array((np.ones(len(taken)), (mass.indices[taken], latent[taken])), shape=mass.shape)


def _top_tokens(
    code: sparse.csr_array, tokens: sparse.csr_array, ids: Int64[np.ndarray, " distinct"]
) -> tuple[list[list[tuple[int, float]]], Float64[np.ndarray, " width"]]:
    """Tokens by their share of each latent's whole activation, until together they hold nearly all of it.

    Beside them, the share of their occurrences on which the latent is active.
    """
    mass = (tokens.T @ code.astype(np.float64)).tocsc()
    active, occurrences = (tokens.T @ (code > 0).astype(np.float64)).tocsc(), total(tokens)
    named, firing = [], np.zeros(code.shape[1])
    for latent in range(code.shape[1]):
        column = slice(mass.indptr[latent], mass.indptr[latent + 1])
        shares, index = mass.data[column] / max(mass.data[column].sum(), 1e-300), mass.indices[column]
        order = np.argsort(-shares, kind="stable")[:TOKENS_NAMED]
        chosen = order[: int(np.searchsorted(np.cumsum(shares[order]), TOKENS_MASS)) + 1]
        named.append([(int(ids[index[i]]), float(shares[i])) for i in chosen])
        if len(chosen):
            firing[latent] = active[index[chosen], latent].sum() / occurrences[index[chosen]].sum()
    return named, firing


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
