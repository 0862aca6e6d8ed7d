"""What the recovery theorem asks of data and width, how far known data lie from it, and what a learnt dictionary identified.

The statements are asymptotic and their constants unknown, so every comparison is a margin on a log scale, not a yes or no:
log10 of how many times a quantity could still grow before it met its bound. Positive is inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped, unused-ignore]
from scipy.special import betaincinv  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from kyomei.dictionary.cosines import cosine_blocks, nearest
from kyomei.errors import EvidenceError
from kyomei.evidence.cosines import unit_rows
from kyomei.evidence.intervals import as_percent

COMPARABLE = 0.1
"""Our reading of "comparable coefficients" (H2): the smallest is at least this share of the median one."""
ENTRIES_PER_BLOCK = 2**21
"""Entries of H that one sparse product meets at a time."""


@dataclass(frozen=True)
class Band:
    """Frequencies p between a lower bound and the least of several upper ones.

    Attributes:
        lower: lower bound.
        upper_terms: each upper bound by its formula.
    """

    lower: float
    upper_terms: Mapping[str, float]

    @property
    def binding(self) -> str:
        """The formula of the least upper bound."""
        return min(self.upper_terms, key=lambda name: self.upper_terms[name])

    @property
    def upper(self) -> float:
        """The least upper bound."""
        return self.upper_terms[self.binding]

    @property
    def decades(self) -> float:
        """log10 of upper over lower; below 0 where the band is empty."""
        return math.log10(self.upper) - math.log10(self.lower)

    @property
    def empty(self) -> bool:
        """Whether no frequency lies strictly between the bounds."""
        return self.upper <= self.lower

    def margins(self, p: float) -> dict[str, float]:
        """log10 distance of a frequency to the lower and to each upper bound; positive is inside."""
        _refuse_outside("p", p, 0, 1)
        to_upper = {name: math.log10(bound / p) for name, bound in self.upper_terms.items()}
        return {"lower": math.log10(p / self.lower), **to_upper}

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        return {
            "lower": self.lower,
            "upper": self.upper,
            "binding": self.binding,
            "upper_terms": dict(self.upper_terms),
            "decades": self.decades,
            "empty": self.empty,
        }


@dataclass(frozen=True)
class Superposition:
    """Where a dictionary of n features in d dimensions stands.

    Attributes:
        ratio: n / d.
        decades_above_root_n: log10(d / √n), below 0 in heavy superposition.
        decades_above_crossing: log10(d / √(n/s)), the dimension from which √f and no longer f·d bounds the band.
    """

    ratio: float
    decades_above_root_n: float
    decades_above_crossing: float

    @property
    def regime(self) -> str:
        """ "heavy" below d = √n, where the theory's band is narrow, "light" from there on."""
        return "light" if self.decades_above_root_n >= 0 else "heavy"


def width_bound(n: float, p: float, s: float, epsilon: float = 0.0) -> float:
    """log10 of the width n · p^(−s/(1−ε)²) from which random starts reach every feature.

    The bound is astronomic where rows are dense (s = 20 at p = 0.09: 10^23), so rest no verdict on it.

    Args:
        n: number of features.
        p: target activation frequency, in (0, 1].
        s: active features in a row.
        epsilon: slack ε of the theorem, in [0, 1).

    Raises:
        EvidenceError: an argument is out of range.

    Source: arXiv:2506.14002, Theorem 6.1 (width).
    """
    _refuse_sizes(n=n, s=s)
    _refuse_outside("p", p, 0, 1)
    _refuse_slack(epsilon)
    return math.log10(n) - s / (1 - epsilon) ** 2 * math.log10(p)


def frequency_band(n: float, d: float, s: float, epsilon: float = 0.0, varsigma: float = 0.0) -> Band:
    """The theorem's band 1/n ≲ p ≲ min{n^(−(1+1/s)/2), n^(−2(1+ε)²/s), d^(1−ς)/n}, term by term.

    Args:
        n: number of features.
        d: dimension.
        s: active features in a row.
        epsilon: slack ε, in [0, 1).
        varsigma: ς, in [0, 1); the theorem needs 1/ς steps.

    Raises:
        EvidenceError: an argument is out of range.

    Source: arXiv:2506.14002, Theorem 6.1 (band).
    """
    _refuse_sizes(n=n, d=d, s=s)
    _refuse_slack(epsilon)
    _refuse_slack(varsigma)
    terms = {
        "n^(−(1+1/s)/2)": n ** (-(1 + 1 / s) / 2),
        "n^(−2(1+ε)²/s)": n ** (-2 * (1 + epsilon) ** 2 / s),
        "d^(1−ς)/n": d ** (1 - varsigma) / n,
    }
    return Band(1 / n, terms)


def resonance_band(n: float, d: float, s: float) -> Band:
    """The band for s = O(1) in terms of the occurrence frequency f = s/n: f ≲ p ≲ min{√f, f·d}.

    Args:
        n: number of features.
        d: dimension.
        s: active features in a row.

    Raises:
        EvidenceError: an argument is out of range.

    Source: arXiv:2506.14002, §6 (neuron resonance).
    """
    _refuse_sizes(n=n, d=d, s=s)
    f = s / n
    return Band(f, {"√f": math.sqrt(f), "f·d": f * d})


def superposition(n: float, d: float, s: float) -> Superposition:
    """Heavy or light superposition of n features in d dimensions, s active in a row (arXiv:2506.14002, §6)."""
    _refuse_sizes(n=n, d=d, s=s)
    return Superposition(n / d, math.log10(d / math.sqrt(n)), math.log10(d / math.sqrt(n / s)))


def sparsity_bound(n: float, s: float) -> float:
    """n^((1−1/s)/2): the row sparsity up to which s/n ≤ n^(−(1+1/s)/2), the band's first term (Theorem 6.1)."""
    _refuse_sizes(n=n, s=s)
    return float(n ** ((1 - 1 / s) / 2))


def incoherence_bound(n: float, d: float) -> float:
    """The |cos| that about one pair of n independent Gaussian directions in d dimensions exceeds.

    V1 asks for o(1) without a constant; this is where the theorem's own premise, Gaussian V, puts it:
    P(|cos| > t) = I_{1−t²}((d − 1)/2, 1/2).
    """
    _refuse_sizes(n=n, d=d)
    pairs = n * (n - 1) / 2
    return math.sqrt(1 - float(betaincinv((d - 1) / 2, 0.5, 1 / (pairs + 1)))) if d > 1 else 1.0


@dataclass(frozen=True, repr=False, eq=False)
class Decomposability:
    """How far known coefficients and features lie from the premises of the recovery theorem.

    Attributes:
        num_rows: rows of H.
        n: features.
        dim: dimensions.
        sparsity_max: largest number of active features in a row (H1).
        sparsity_mean: its mean.
        frequency: occurrence f of every feature, a share of rows [n].
        balance: smallest over median coefficient of every feature that occurs, NaN otherwise [n] (H2).
        variation: coefficient of variation of every feature's coefficients, NaN where it never occurs [n].
        co_occurrence: ρ₂ (H3).
        co_occurring: (i, j), the pair that reaches it: j is present in that share of the rows of i.
        incoherence: largest |cos| between two features (V1).
        coherent: the pair that reaches it.
    """

    num_rows: int
    n: int
    dim: int
    sparsity_max: int
    sparsity_mean: float
    frequency: Float64[Tensor, " n"]
    balance: Float64[Tensor, " n"]
    variation: Float64[Tensor, " n"]
    co_occurrence: float
    co_occurring: tuple[int, int] | None
    incoherence: float
    coherent: tuple[int, int] | None

    @property
    def smallest_balance(self) -> float:
        """The least of the features' smallest-over-median ratios."""
        return float(np.nanmin(self.balance.numpy()))

    @property
    def bounds(self) -> dict[str, float]:
        """The bound beside each premise; see `sparsity_bound`, COMPARABLE and `incoherence_bound` for what they rest on."""
        return {
            "sparsity": sparsity_bound(self.n, max(1.0, self.sparsity_mean)),
            "balance": COMPARABLE,
            "co_occurrence": self.n**-0.5,
            "incoherence": incoherence_bound(self.n, self.dim),
        }

    @property
    def margins(self) -> dict[str, float]:
        """log10 distance of each premise to its bound; positive is inside, infinite where nothing stands against it."""
        bounds = self.bounds
        return {
            "sparsity": _decades(bounds["sparsity"], self.sparsity_mean),
            "balance": _decades(self.smallest_balance, bounds["balance"]),
            "co_occurrence": _decades(bounds["co_occurrence"], self.co_occurrence),
            "incoherence": _decades(bounds["incoherence"], self.incoherence),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; an infinite margin is None."""
        margins = {name: margin if math.isfinite(margin) else None for name, margin in self.margins.items()}
        occurring = self.frequency > 0
        return {
            "num_rows": self.num_rows,
            "n": self.n,
            "dim": self.dim,
            "sparsity": {"max": self.sparsity_max, "mean": self.sparsity_mean},
            "frequency": {
                "smallest": float(self.frequency.min()),
                "median": float(self.frequency.median()),
                "largest": float(self.frequency.max()),
                "absent": int((~occurring).sum()),
            },
            "balance": {
                "smallest_over_median": self.smallest_balance,
                "largest_variation": float(self.variation[occurring].max()),
            },
            "co_occurrence": {"rho_2": self.co_occurrence, "pair": self.co_occurring and list(self.co_occurring)},
            "incoherence": {"largest_cosine": self.incoherence, "pair": self.coherent and list(self.coherent)},
            "superposition": self.n / self.dim,
            "bounds": self.bounds,
            "margins_log10": margins,
        }

    def __str__(self) -> str:
        figures = {
            "sparsity": f"mean {self.sparsity_mean:.3g} active in a row, at most {self.sparsity_max}",
            "balance": f"smallest coefficient {self.smallest_balance:.3g} of its feature's median",
            "co_occurrence": f"ρ₂ {self.co_occurrence:.3g} at {self.co_occurring}",
            "incoherence": f"largest |cos| {self.incoherence:.3g} at {self.coherent}",
        }
        lines = [f"{self.n} features in {self.dim} dimensions (n/d {self.n / self.dim:.3g}), {self.num_rows:,} rows"]
        for name, margin in self.margins.items():
            side = "inside" if margin >= 0 else "outside"
            lines.append(f"{name}: {figures[name]}; bound {self.bounds[name]:.3g}, {abs(margin):.2f} decades {side}")
        return "\n".join(lines)

    __repr__ = __str__


def decomposability(h: Shaped[Tensor, "rows n"], features: Shaped[Tensor, "n dim"]) -> Decomposability:
    """Measure the premises of the recovery theorem on known coefficients and features.

    Args:
        h: coefficients H ≥ 0, sparse CSR or dense [rows, n].
        features: true features V, any scale [n, dim].

    Returns:
        Sparsity, frequencies, balance, ρ₂ and incoherence, each with a margin to its bound. The co-occurrences are sparse
        products of blocks of rows, so a million rows take no dense matrix.

    Raises:
        EvidenceError: if shapes do not fit, H has a negative or non-finite entry, or nothing in it is active.

    Source: arXiv:2506.14002, §5 (decomposable data: H1–H3, V1).
    """
    units = unit_rows(features, "features")
    if h.ndim != 2 or len(h) == 0 or h.shape[1] != len(units):
        raise EvidenceError(f"h of shape [rows, {len(units)}]", f"{list(h.shape)}", "pass the coefficients of these features")
    matrix = _active_entries(h)
    per_row = np.diff(matrix.indptr)
    counts = np.bincount(matrix.indices, minlength=len(units)).astype(np.float64)
    balance, variation = _coefficients(matrix)
    rho, co_occurring = _co_occurrence(matrix, counts)
    cosine, coherent = _incoherence(units)
    return Decomposability(
        num_rows=len(h),
        n=len(units),
        dim=units.shape[1],
        sparsity_max=int(per_row.max()),
        sparsity_mean=float(per_row.mean()),
        frequency=torch.from_numpy(counts / len(h)),
        balance=torch.from_numpy(balance),
        variation=torch.from_numpy(variation),
        co_occurrence=rho,
        co_occurring=co_occurring,
        incoherence=cosine,
        coherent=coherent,
    )


@dataclass(frozen=True, repr=False, eq=False)
class Identifiability:
    """What a learnt dictionary identified of the truth, up to permutation, positive scaling and feature splitting.

    Attributes:
        error: ε of every true feature, 1 − its largest cosine with a learnt row [n]; 2 if nothing was learnt.
        num_rows_of: learnt rows that belong to each true feature [n]; above 1 the feature is split.
        belongs_to: the true feature of each learnt row, −1 where none is near enough [k].
        tau: cosine from which a learnt row belongs to its nearest true feature.
    """

    error: Float[Tensor, " n"]
    num_rows_of: Int64[Tensor, " n"]
    belongs_to: Int64[Tensor, " k"]
    tau: float

    @property
    def identified_share(self) -> float:
        """Share of true features that some learnt row belongs to or comes as near as `tau`: FRR(τ)."""
        return float((self.error <= 1 - self.tau).double().mean())

    @property
    def split_share(self) -> float:
        """Share of true features that two or more learnt rows belong to."""
        return float((self.num_rows_of > 1).double().mean())

    @property
    def rows_per_found(self) -> float:
        """Mean number of learnt rows of a feature that has any; 0 if none has."""
        found = self.num_rows_of[self.num_rows_of > 0]
        return float(found.double().mean()) if len(found) else 0.0

    @property
    def alien_share(self) -> float:
        """Share of learnt rows that belong to no true feature; 0 if nothing was learnt."""
        return float((self.belongs_to < 0).double().mean()) if len(self.belongs_to) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        return {
            "tau": self.tau,
            "epsilon": {"median": float(self.error.median()), "largest": float(self.error.max())},
            "identified_share": self.identified_share,
            "split_share": self.split_share,
            "rows_per_found": self.rows_per_found,
            "most_rows": int(self.num_rows_of.max()),
            "alien_share": self.alien_share,
            "num_rows": len(self.belongs_to),
            "num_features": len(self.error),
        }

    def __str__(self) -> str:
        shares = self.identified_share, self.split_share, self.alien_share
        identified, split, alien = (as_percent(share, 1) for share in shares)
        return (
            f"{identified} of {len(self.error)} features identified within {1 - self.tau:.2g}, {split} split, "
            f"{alien} of {len(self.belongs_to)} learnt rows belong to none"
        )

    __repr__ = __str__


def identifiability(learnt: Shaped[Tensor, "k dim"], truth: Shaped[Tensor, "n dim"], *, tau: float = 0.9) -> Identifiability:
    """Compare a learnt dictionary with the truth, up to permutation, positive scaling and feature splitting.

    Args:
        learnt: learnt rows, any scale [k, dim]; k may be 0. Their sign matters, since coefficients are not negative.
        truth: true features, any scale [n, dim].
        tau: cosine from which a learnt row belongs to its nearest true feature, in (0, 1].

    Raises:
        EvidenceError: if there are no features, shapes do not fit or tau is out of range.

    Source: arXiv:2506.14002, §5 (ε-identifiability); the count of splits is ours.
    """
    _refuse_outside("tau", tau, 0, 1)
    a, b = unit_rows(learnt, "learnt"), unit_rows(truth, "truth").to(learnt.device)
    if len(b) == 0 or a.shape[1] != b.shape[1]:
        expected, found = "at least one feature, of the learnt rows' dimension", f"{list(a.shape)} against {list(b.shape)}"
        raise EvidenceError(expected, found, "compare with the features that made these data")
    near = nearest(a, b)
    belongs = torch.where(near.cosine >= tau, near.row, -1)
    best = nearest(b, a).cosine if len(a) else a.new_full((len(b),), -1.0)
    rows_of = torch.bincount(belongs[belongs >= 0], minlength=len(b))
    return Identifiability((1 - best).clamp_min(0).cpu(), rows_of.cpu(), belongs.cpu(), tau)


def _active_entries(h: Tensor) -> sparse.csr_matrix:
    """The non-zero entries of H, which must not be negative."""
    if h.layout == torch.sparse_csr:
        parts = (h.values().cpu().numpy(), h.col_indices().cpu().numpy(), h.crow_indices().cpu().numpy())
        matrix = sparse.csr_matrix(parts, shape=tuple(h.shape))
    else:
        matrix = sparse.csr_matrix(h.to_dense().cpu().numpy())
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise EvidenceError("finite coefficients of 0 or more", "another entry", "pass the coefficients H of X = HV")
    if (matrix.data == 0).any():
        matrix = matrix.copy()  # the caller's arrays are shared
        matrix.eliminate_zeros()
    if matrix.nnz == 0:
        raise EvidenceError("an active feature in some row", "none in any", "pass the coefficients H of X = HV")
    return matrix


def _coefficients(matrix: sparse.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest over median, and coefficient of variation, of each feature's coefficients."""
    columns = matrix.tocsc()
    balance, variation = np.full(matrix.shape[1], np.nan), np.full(matrix.shape[1], np.nan)
    for i, (start, stop) in enumerate(zip(columns.indptr[:-1], columns.indptr[1:], strict=True)):
        if stop > start:
            values = columns.data[start:stop].astype(np.float64)
            balance[i] = values.min() / np.median(values)
            variation[i] = values.std() / values.mean()
    return balance, variation


def _co_occurrence(matrix: sparse.csr_matrix, counts: NDArray[np.float64]) -> tuple[float, tuple[int, int] | None]:
    """ρ₂ = max over i ≠ j of |D_i ∩ D_j| / |D_i| and its pair, from sparse products of blocks of rows."""
    present = sparse.csr_matrix((np.ones(matrix.nnz, np.int32), matrix.indices, matrix.indptr), shape=matrix.shape)
    rows = max(1, ENTRIES_PER_BLOCK * matrix.shape[0] // matrix.nnz)
    total = sparse.csr_matrix((matrix.shape[1], matrix.shape[1]), dtype=np.int64)
    for start in range(0, matrix.shape[0], rows):
        block = present[start : start + rows]
        total = total + (block.T @ block).astype(np.int64)
    pairs = total.tocoo()
    apart = pairs.row != pairs.col
    if not apart.any():
        return 0.0, None
    i, j = pairs.row[apart], pairs.col[apart]
    shares = pairs.data[apart] / counts[i]
    # Ties go to the lowest pair, whatever order the products left them in.
    best = np.lexsort((j, i, -shares))[0]
    return float(shares[best]), (int(i[best]), int(j[best]))


def _incoherence(units: Tensor) -> tuple[float, tuple[int, int] | None]:
    """Largest |cos| between two different features and its pair."""
    best, pair = 0.0, None
    for start, cosines in cosine_blocks(units, units):
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, start + own] = 0
        value, place = cosines.abs().flatten().max(dim=0)
        if float(value) > best:
            best, pair = float(value), (start + int(place) // len(units), int(place) % len(units))
    return min(best, 1.0), pair


def _decades(larger: float, smaller: float) -> float:
    return math.log10(larger / smaller) if smaller > 0 else math.inf


def _refuse_sizes(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 1 <= size < math.inf:
            raise EvidenceError(f"{name} of 1 or more", f"{size}", f"correct {name}")


def _refuse_outside(name: str, value: float, above: float, at_most: float) -> None:
    if not above < value <= at_most:
        raise EvidenceError(f"{name} in ({above:g}, {at_most:g}]", f"{value}", f"correct {name}")


def _refuse_slack(value: float) -> None:
    if not 0 <= value < 1:
        raise EvidenceError("slack (ε or ς) in [0, 1)", f"{value}", "correct it")
