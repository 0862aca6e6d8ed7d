"""Planted data: activations X = HV + noise whose true features are known (arXiv:2506.14002, §3)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kyomei.errors import RecipeError

ZIPF_EXPONENT = 1.0
"""Exponent a of the Zipf law: a feature's occurrence frequency is proportional to 1 / rank^a."""
HIGHEST_FREQUENCY = 0.9
"""Zipf frequencies are cut here; what is cut goes to the other features, so that the mean number of active ones holds."""
COEFFICIENT_RANGE = (0.5, 1.5)
"""Range of "uniform" coefficients before a row is normalised: none vanishes (premise H2, balance)."""
CHILD_SHARE = 0.8
"""Probability that a present parent brings one of its children, each equally likely."""

Frequency = Literal["uniform", "zipf"]
Coefficient = Literal["constant", "uniform"]
Superposition = Literal["gaussian", "orthogonal"]

_FEATURES, _ROWS, _CALIBRATION = range(3)  # streams of random numbers
_CALIBRATION_ROWS = 4096
_CELLS_PER_CHUNK = 1 << 24

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Entries(NamedTuple):
    """A sparse matrix row by row: entries in each row, and the column (in order) and value of each entry."""

    counts: Ints
    columns: Ints
    values: NDArray[np.float32]

    def times(self, dense: Tensor) -> Tensor:
        """The product with a dense matrix; several times as fast as that of a sparse tensor."""
        starts = np.cumsum(self.counts) - self.counts
        columns, values = torch.from_numpy(self.columns), torch.from_numpy(self.values)
        return torch.nn.functional.embedding_bag(
            columns, dense, torch.from_numpy(starts), mode="sum", per_sample_weights=values
        )

    def to_csr(self, width: int) -> Tensor:
        """A float32 sparse CSR tensor [rows, width]."""
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(self.counts)]))
        columns, values, size = torch.from_numpy(self.columns), torch.from_numpy(self.values), (len(self.counts), width)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


@dataclass(frozen=True)
class Planted:
    """A law of data with known features: rows x = hV + noise with sparse, non-negative h of unit norm.

    Features are numbered by falling frequency. With `frequency="uniform"` every row has exactly `active` features, each equally
    often. With "zipf" a feature occurs with probability proportional to 1 / rank (cut at 0.9), on its own, and `active` is the
    mean number per row; no row is empty.

    Args:
        n_features: number of true features n; n > dim is superposition.
        dim: dimension d of a row.
        active: number of active features in a row; a tuple is an equal mixture of rows.
        seed: draws the features; together with the seed given to `sample`, the rows.
        frequency: how often features occur.
        coefficient: whether the coefficients of a row are equal, or uniform on [0.5, 1.5] before normalisation.
        noise: E‖noise‖ / E‖hV‖ of isotropic Gaussian noise.
        co_occurrence: ρ₂ of premise H3. Features 2j and 2j + 1 are partners, equally frequent, and each is present with this
            probability when the other is; None: features know nothing of each other. Where ρ₂ is small, chance meetings of
            features that are not partners may exceed it.
        hierarchy: (children, levels): features form trees of that many levels, numbered level by level, in which every parent
            has that many children. A present parent brings one child with probability 0.8, and a child never occurs without
            its parent. `active` then counts the trees that a row enters, and `frequency` is the law of the roots; None: no
            trees.
        superposition: features are "gaussian" (independent random directions) or "orthogonal" (needs n_features ≤ dim).

    Raises:
        RecipeError: an option is impossible, alone or together with another.
    """

    n_features: int
    dim: int
    active: int | tuple[int, ...]
    seed: int = 0
    frequency: Frequency = "uniform"
    coefficient: Coefficient = "constant"
    noise: float = 0.0
    co_occurrence: float | None = None
    hierarchy: tuple[int, int] | None = None
    superposition: Superposition = "gaussian"

    def __post_init__(self) -> None:
        for name, lowest in (("n_features", 1), ("dim", 1), ("seed", 0)):
            _refuse_non_integer(name, getattr(self, name), lowest)
        if not self.sparsities:
            raise RecipeError("at least one number of active features", "an empty tuple", "give active, such as 5 or (3, 20)")
        for number in self.sparsities:
            _refuse_non_integer("active", number, 1)
            if number > self.n_features:
                raise RecipeError(
                    f"active of at most n_features ({self.n_features})", str(number), "lower active or raise n_features"
                )
        for name, choices in (("frequency", Frequency), ("coefficient", Coefficient), ("superposition", Superposition)):
            if getattr(self, name) not in get_args(choices):
                allowed = " or ".join(repr(choice) for choice in get_args(choices))
                raise RecipeError(f"{name} of {allowed}", repr(getattr(self, name)), f"choose one for {name}")
        if not 0 <= self.noise < math.inf:
            raise RecipeError("noise of 0 or more", str(self.noise), "give E‖noise‖ / E‖x‖, such as 0.1")
        if self.superposition == "orthogonal" and self.n_features > self.dim:
            raise RecipeError(
                f"at most {self.dim} orthogonal features in {self.dim} dimensions",
                f"n_features={self.n_features}",
                'lower n_features, raise dim or choose superposition="gaussian"',
            )
        self._refuse_impossible_trees()
        self._refuse_impossible_law()

    def _refuse_impossible_trees(self) -> None:
        if self.hierarchy is None:
            return
        for name, number, lowest in zip(("children", "levels"), self.hierarchy, (1, 2), strict=True):
            _refuse_non_integer(f"{name} of the hierarchy", number, lowest)
        if self.co_occurrence is not None:
            raise RecipeError("a hierarchy or a co_occurrence", "both", "plant one of them")
        if self.n_features % self.tree_size:
            expected = f"n_features in whole trees of {self.tree_size}"
            raise RecipeError(expected, str(self.n_features), f"give a multiple of {self.tree_size}")
        if max(self.sparsities) > self.n_trees:
            found = f"active={max(self.sparsities)}"
            raise RecipeError(f"active of at most the number of trees ({self.n_trees})", found, "lower active or add features")

    def _refuse_impossible_law(self) -> None:
        most = max(self.sparsities)
        if self.co_occurrence is not None:
            if not 0 <= self.co_occurrence < 1:
                raise RecipeError("co_occurrence in [0, 1)", str(self.co_occurrence), "give the ρ₂ to plant, or None")
            if self.n_features % 2:
                raise RecipeError("an even n_features with co_occurrence", str(self.n_features), "add or remove a feature")
            if self.frequency == "uniform" and most > self.n_features // 2:
                found = f"active={most}, n_features={self.n_features}"
                raise RecipeError("active of at most half of n_features with co_occurrence", found, "lower active")
        if self.frequency == "zipf":
            for number in self.sparsities:
                self._zipf_units(number)
        else:
            _ = self._both_share

    @property
    def sparsities(self) -> tuple[int, ...]:
        """The numbers of active features that rows have, in equal shares."""
        return tuple(self.active) if isinstance(self.active, tuple | list) else (self.active,)

    @property
    def tree_size(self) -> int:
        """Features in a tree; 1 without a hierarchy."""
        return 1 if self.hierarchy is None else sum(self.hierarchy[0] ** level for level in range(self.hierarchy[1]))

    @property
    def n_trees(self) -> int:
        """Trees that the features form; as many as features without a hierarchy."""
        return self.n_features // self.tree_size

    @cached_property
    def parents(self) -> Ints:
        """The parent of every feature, −1 for a root: int64 [n_features]."""
        children, levels = self.hierarchy or (1, 1)
        starts = np.cumsum([0] + [self.n_trees * children**level for level in range(levels)])
        above = [starts[level - 1] + np.arange(starts[level + 1] - starts[level]) // children for level in range(1, levels)]
        return np.concatenate([np.full(self.n_trees, -1), *above]).astype(np.int64)

    @cached_property
    def features(self) -> Float[Tensor, "n_features dim"]:
        """The true features V: float32, unit rows."""
        rng = np.random.default_rng([self.seed, _FEATURES])
        directions = rng.standard_normal((self.n_features, self.dim))
        if self.superposition == "orthogonal":
            orthonormal, triangular = np.linalg.qr(directions.T)
            directions = (orthonormal * np.sign(np.diag(triangular))).T
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return torch.from_numpy(directions.astype(np.float32))

    @cached_property
    def frequencies(self) -> Floats:
        """The occurrence frequency f of every feature, the share of rows in which it is active: float64 [n_features]."""
        if self.frequency == "uniform":
            units = np.full(self.n_trees, np.mean(self.sparsities) / self.n_trees)
        else:
            units = np.mean([self._zipf_units(number) for number in self.sparsities], axis=0)
            if self.co_occurrence is not None:
                return np.repeat(units * (1 + self._both_share) / 2, 2)
        return self._down_the_trees(units)

    def _down_the_trees(self, roots: Floats) -> Floats:
        """Frequencies of all features from those of the roots."""
        parts, (children, levels) = [roots], self.hierarchy or (1, 1)
        for _ in range(1, levels):
            parts.append(np.repeat(parts[-1] * CHILD_SHARE / children, children))
        return np.concatenate(parts)

    def sample(self, rows: int, seed: int) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows n_features"]]:
        """Draw rows: a pure function of `seed`, the number of rows and this law.

        Args:
            rows: how many.
            seed: draws them; independent of the features.

        Returns:
            x: float32 [rows, dim].
            h: float32 sparse CSR [rows, n_features], unit rows (before noise), columns in order.

        Raises:
            RecipeError: `rows` is below 1 or `seed` below 0.
        """
        _refuse_non_integer("rows", rows, 1)
        _refuse_non_integer("seed", seed, 0)
        x = torch.empty(rows, self.dim)
        parts: list[Entries] = []
        chunk_rows = max(256, _CELLS_PER_CHUNK // max(self.n_features, self.dim))
        for chunk, first in enumerate(range(0, rows, chunk_rows)):
            rng = np.random.default_rng([self.seed, _ROWS, seed, chunk])
            part = self._coefficients(rng, min(chunk_rows, rows - first))
            block = x[first : first + len(part.counts)]
            block.copy_(part.times(self.features))
            if self.noise:
                generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
                block.add_(torch.randn(block.shape, generator=generator), alpha=self._noise_scale)
            parts.append(part)
        return x, Entries(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))).to_csr(self.n_features)

    @cached_property
    def _noise_scale(self) -> float:
        """Standard deviation σ per coordinate: E‖σg‖ = σ √2 Γ((d + 1)/2) / Γ(d/2); E‖hV‖ from rows of its own."""
        part = self._coefficients(np.random.default_rng([self.seed, _CALIBRATION]), _CALIBRATION_ROWS)
        signal: float = part.times(self.features).norm(dim=1).double().mean().item()
        norm = math.sqrt(2) * math.exp(math.lgamma((self.dim + 1) / 2) - math.lgamma(self.dim / 2))
        return self.noise * signal / norm

    def _coefficients(self, rng: np.random.Generator, rows: int) -> Entries:
        """The entries of H."""
        kind = rng.integers(len(self.sparsities), size=rows)
        cells = []
        for index, number in enumerate(self.sparsities):
            of_kind = np.flatnonzero(kind == index)
            if len(of_kind):
                row, feature = self._support(rng, len(of_kind), number)
                cells.append(of_kind[row] * self.n_features + feature)
        entries = np.sort(np.concatenate(cells))
        row, column = np.divmod(entries, self.n_features)
        counts = np.bincount(row, minlength=rows)
        if self.coefficient == "uniform":
            raw = rng.uniform(*COEFFICIENT_RANGE, size=len(entries))
            squares = np.add.reduceat(raw * raw, np.cumsum(counts) - counts)
            values = raw / np.repeat(np.sqrt(squares), counts)
        else:
            values = np.repeat(1 / np.sqrt(counts), counts)
        return Entries(counts, column, values.astype(np.float32))

    def _support(self, rng: np.random.Generator, rows: int, active: int) -> tuple[Ints, Ints]:
        """(row, feature) of every active entry of `rows` rows with `active` features each (zipf: on average)."""
        if self.frequency == "zipf":
            row, unit = _independent(rng, rows, self._zipf_units(active))
            sizes = None
        elif self.co_occurrence is None:
            row, unit = np.repeat(np.arange(rows), active), _distinct(rng, rows, self.n_trees, active).ravel()
        else:
            sizes = _sizes_to(rng, rows, active, self._both_share)
            row, unit = np.repeat(np.arange(rows), active), _distinct(rng, rows, self.n_features // 2, active).ravel()
        if self.co_occurrence is None:
            return self._descend(rng, row, unit)
        size = 1 + (rng.random(len(unit)) < self._both_share) if sizes is None else sizes.ravel()
        side = rng.integers(2, size=len(unit))
        one, two = size >= 1, size == 2
        return np.concatenate([row[one], row[two]]), np.concatenate([(2 * unit + side)[one], (2 * unit + 1 - side)[two]])

    def _descend(self, rng: np.random.Generator, row: Ints, feature: Ints) -> tuple[Ints, Ints]:
        """The roots' entries and, level by level, those of the children that they bring."""
        rows, features, (children, levels) = [row], [feature], self.hierarchy or (1, 1)
        for level in range(1, levels):
            brings = rng.random(len(row)) < CHILD_SHARE
            row, feature = row[brings], feature[brings] * children + rng.integers(children, size=int(brings.sum()))
            rows.append(row)
            features.append(feature + self.n_trees * sum(children**above for above in range(level)))
        return np.concatenate(rows), np.concatenate(features)

    @cached_property
    def _both_share(self) -> float:
        """Probability c that both partners are present, given that a pair is chosen, which makes P(partner | feature) = ρ₂.

        Choosing pairs freely, P(partner | feature) = 2c / (1 + c). With exactly s features in a row a last place may hold one
        partner only, so c is found from the expected number of full pairs.
        """
        target = self.co_occurrence
        if not target:
            return 0.0
        if self.frequency == "zipf":
            return target / (2 - target)

        def reached(share: float) -> float:
            return 2 * sum(_expected_full_pairs(share, s) for s in self.sparsities) / sum(self.sparsities)

        if reached(1.0) < target:
            most = f"co_occurrence of at most {reached(1.0):.3g} with active={self.active}"
            raise RecipeError(most, str(target), "lower it or raise active")
        low, high = 0.0, 1.0
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if reached(middle) < target else (low, middle)
        return high

    def _zipf_units(self, active: int) -> Floats:
        """Probability that each unit (a feature, or a pair of partners) is chosen, for rows of `active` features on average."""
        weights: Floats = np.arange(1, self.n_trees + 1, dtype=np.float64) ** -ZIPF_EXPONENT
        total: float = active
        if self.co_occurrence is not None:
            weights = weights.reshape(-1, 2).mean(axis=1)
            total = active / (1 + self._both_share)  # a chosen pair brings 1 + c features on average
        if total > HIGHEST_FREQUENCY * len(weights):
            found = f"active={active}, n_features={self.n_features}"
            raise RecipeError("active well below n_features with a zipf frequency", found, "lower active or raise n_features")
        if total < 1:
            raise RecipeError(
                f"active of at least {math.ceil(1 + self._both_share)} with zipf and co_occurrence", str(active), "raise active"
            )
        return _cut_to_sum(weights, total, HIGHEST_FREQUENCY)


def _refuse_non_integer(name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
        raise RecipeError(f"{name} as a whole number of at least {lowest}", repr(value), f"correct {name}")


def _distinct(rng: np.random.Generator, rows: int, population: int, number: int) -> Ints:
    """`number` distinct members of range(population), in random order, for every row: int64 [rows, number]."""
    row = np.arange(rows)
    taken = np.zeros((rows, population), dtype=bool)
    chosen = np.empty((rows, number), dtype=np.int64)
    for place in range(number):
        draw = rng.integers(population, size=rows)
        again = np.flatnonzero(taken[row, draw])
        while len(again):
            draw[again] = rng.integers(population, size=len(again))
            again = again[taken[again, draw[again]]]
        taken[row, draw] = True
        chosen[:, place] = draw
    return chosen


def _independent(rng: np.random.Generator, rows: int, probabilities: Floats) -> tuple[Ints, Ints]:
    """(row, unit) of units that occur each on its own with exactly these probabilities, while no row stays empty.

    An empty row gets one unit, drawn in proportion; the free draws are thinned by the factor t that makes up for it:
    t p + P₀(t) p / G = p, with G = Σ p and P₀(t) = Π (1 − t p) the chance of an empty row.
    """
    total = probabilities.sum()
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        too_low = middle + np.exp(np.log1p(-middle * probabilities).sum()) / total <= 1
        low, high = (middle, high) if too_low else (low, middle)
    found = [_occurrences(rng, p, rows) for p in low * probabilities]
    row, unit = np.concatenate(found), np.repeat(np.arange(len(found)), [len(part) for part in found])
    empty = np.flatnonzero(np.bincount(row, minlength=rows) == 0)
    filled = rng.choice(len(probabilities), size=len(empty), p=probabilities / total)
    return np.concatenate([row, empty]), np.concatenate([unit, filled])


def _occurrences(rng: np.random.Generator, probability: float, rows: int) -> Ints:
    """The rows in which something of this probability occurs, found by jumping from one to the next."""
    if probability < 1e-9:  # once in a thousand million rows; and no jump may overflow
        return np.empty(0, dtype=np.int64)
    expected = rows * probability
    number = int(expected + 6 * math.sqrt(expected)) + 8
    at = np.cumsum(rng.geometric(probability, size=number)) - 1
    while at[-1] < rows:
        at = np.concatenate([at, at[-1] + np.cumsum(rng.geometric(probability, size=number))])
    return at[at < rows]


def _sizes_to(rng: np.random.Generator, rows: int, total: int, both_share: float) -> Ints:
    """Sizes 1 or 2 (with probability `both_share`, where two fit) in order until they sum to `total`, then 0: [rows, total]."""
    sizes = np.zeros((rows, total), dtype=np.int64)
    left = np.full(rows, total)
    for place in range(total):
        size = np.minimum(1 + (rng.random(rows) < both_share), left)
        sizes[:, place] = size
        left -= size
    return sizes


def _expected_full_pairs(both_share: float, total: int) -> float:
    """Expected number of 2s among the sizes of `_sizes_to`."""
    before, now = 0.0, 0.0  # for totals 0 and 1
    for _ in range(2, total + 1):
        before, now = now, both_share * (1 + before) + (1 - both_share) * now
    return now


def _cut_to_sum(weights: Floats, total: float, highest: float) -> Floats:
    """Numbers proportional to falling `weights` and cut at `highest`, with the given sum (at most len(weights) · highest)."""
    for n_cut in range(len(weights)):
        rest = weights[n_cut:] * (total - n_cut * highest) / weights[n_cut:].sum()
        if rest[0] <= highest:
            return np.concatenate([np.full(n_cut, highest), np.maximum(rest, 0)])
    return np.full(len(weights), highest)
