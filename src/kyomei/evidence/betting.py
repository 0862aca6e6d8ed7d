"""Bets against "the stream is like the reference", by ranks: a test that holds whenever one looks, however often.

If documents of a stream and of a reference come from one law, in any order, the rank of the next document's figure among all
those before it, reference included, is uniform, and ranks of later documents do not depend on those of earlier ones. So

    p_t = (#{higher} + U_t (#{equal} + 1)) / (n_t + 1),   U_t uniform on [0, 1], n_t figures before it

are independent uniforms: exactly, for any law, however small the reference, whose own error is in the ranks. (Vovk, Gammerman
and Shafer, Algorithmic Learning in a Random World, 2005, chapter 8.) A bet f ≥ 0 with ∫f = 1 multiplies its stake by f(p_t), so

    E_t = Σ_s w_s Σ_k v_k Π_{s ≤ i ≤ t} f_k(p_i) + the stakes w_s not yet laid,   Σ w_s = Σ v_k = 1

is a non-negative martingale that begins at 1, and reaches 1/α with probability α at most, over all times together (Ville 1939;
for tests by betting, Shekhar and Ramdas, arXiv:2112.09162; Waudby-Smith and Ramdas, arXiv:2010.09686; for bets on ranks, Vovk,
Nouretdinov and Gammerman, ICML 2003). The stakes w_s are laid at several moments, so that a turn which comes late is seen too
(a mixture over its time, as Shiryaev and Roberts have it; Shin, Ramdas and Rinaldo, arXiv:2203.03532).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

TAILS = ((0.02, 0.1), (0.05, 0.15), (0.2, 0.35))
"""δ and a of the bets a/δ where p ≤ δ, otherwise (1 − a) / (1 − δ): on more than a share δ of figures among the highest δ.

A turn of a part of the text does that: most ranks stay as they were, and some become the lowest few percent."""
STEP = 50
"""Documents from one stake to the next."""
MOST = 1e150
"""Where wealth stops growing: less than it could be, which keeps the guarantee, and no overflow."""
SCALAR_EDGES = 200
"""Cells of a statistic that is one of few, at most, below the largest figure of the documents that lay them down."""
BEYOND = np.arange(1, 33) / 8
"""Further edges above it, in units of the distance from the median to the largest figure."""


def scalar_edges(values: Float64[np.ndarray, " documents"]) -> Float64[np.ndarray, " edges"]:
    """Edges for a statistic from its figures on documents that will not be counted: quantiles, and edges beyond the largest."""
    inside = np.quantile(values, np.linspace(0, 1, SCALAR_EDGES))
    reach = max(float(inside[-1] - np.median(values)), 1e-9 * max(1.0, abs(float(inside[-1]))))
    return np.concatenate([inside, inside[-1] + reach * BEYOND])


def cells_of(edges: Float64[np.ndarray, "some edges"], values: Float64[np.ndarray, " some"]) -> Int64[np.ndarray, " some"]:
    """The cell of each figure: the number of its edges below it."""
    found: np.ndarray = (edges < values[:, None]).sum(axis=1)
    return found


def ranks(
    counts: Int64[np.ndarray, "statistics cells"],
    cells: Int64[np.ndarray, " statistics"],
    uniforms: Float64[np.ndarray, " statistics"],
) -> Float64[np.ndarray, " statistics"]:
    """p of a document's figures among those that are counted.

    Args:
        counts: figures before it, by cell.
        cells: of its own.
        uniforms: U of each, drawn for this document alone.
    """
    rows, upto = np.arange(len(cells)), np.cumsum(counts, axis=1)
    found: np.ndarray = (upto[:, -1] - upto[rows, cells] + uniforms * (counts[rows, cells] + 1)) / (upto[:, -1] + 1)
    return found


def odds(p: Float64[np.ndarray, " statistics"]) -> Float64[np.ndarray, "statistics tails"]:
    """What each bet on high figures multiplies its stake by; of 1 − p, on low ones."""
    tail, share = np.array(TAILS).T
    found: np.ndarray = np.where(p[:, None] <= tail, share / tail, (1 - share) / (1 - tail))
    return found


@final
class Bets:
    """Bets on the ranks of many statistics, each by itself. Memory does not grow with the stream.

    Args:
        edges: of the cells in which figures are counted, ascending, the last ones infinite where there are fewer
            [statistics, edges]. A figure lies in the cell of that number of edges below it. They must not depend on the
            documents that are counted.
    """

    def __init__(self, edges: Float64[np.ndarray, "statistics edges"]) -> None:
        self.edges = edges
        size = len(edges)
        self.counts: Int64[np.ndarray, "statistics cells"] = np.zeros((size, edges.shape[1] + 1), dtype=np.int64)
        self.wealth: Float64[np.ndarray, "statistics bets"] = np.zeros((size, 2 * len(TAILS)))
        self.highest: Float64[np.ndarray, " statistics"] = np.ones(size)
        self.bets, self.rest = 0, 1.0

    def cells(self, values: Float64[np.ndarray, " some"], which: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " some"]:
        """The cell of each figure, of the statistic whose number stands beside it."""
        return cells_of(self.edges[which], values)

    def count(self, cells: Int64[np.ndarray, " statistics"]) -> None:
        """Count a document of the reference in."""
        self.counts[np.arange(len(cells)), cells] += 1

    def bet(self, cells: Int64[np.ndarray, " statistics"], uniforms: Float64[np.ndarray, " statistics"]) -> None:
        """Bet on a document of the stream, then count it in.

        Args:
            cells: of its figures.
            uniforms: U_t of each statistic, drawn for this document alone.
        """
        if self.bets % STEP == 0:
            self._lay()
        p = ranks(self.counts, cells, uniforms)
        self.wealth *= np.concatenate([odds(p), odds(1 - p)], axis=1)
        np.minimum(self.wealth, MOST, out=self.wealth)
        np.maximum(self.highest, self.values, out=self.highest)
        self.bets += 1
        self.count(cells)

    def _lay(self) -> None:
        """Lay the next stake: half of all at first, then 1/(k (k + 1)) of the other half."""
        step = self.bets // STEP
        stake = 0.5 if step == 0 else 0.5 / (step * (step + 1))
        self.rest = 0.5 / (step + 1)
        self.wealth += stake / self.wealth.shape[1]

    @property
    def values(self) -> Float64[np.ndarray, " statistics"]:
        """E_t of every statistic."""
        found: np.ndarray = self.rest + self.wealth.sum(axis=1)
        return found

    def reached(self, level: float) -> Bool[np.ndarray, " statistics"]:
        """Which statistics have ever reached 1 / level."""
        found: np.ndarray = self.highest >= 1 / level
        return found

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All that it has to remember, by name."""
        numbers = np.array([self.bets, self.rest])
        held = {"counts": self.counts, "wealth": self.wealth, "highest": self.highest, "numbers": numbers}
        return {f"{prefix}.{name}": array for name, array in held.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Go on from what `arrays` gave."""
        self.counts, self.wealth, self.highest = (arrays[f"{prefix}.{name}"].copy() for name in ("counts", "wealth", "highest"))
        bets, rest = arrays[f"{prefix}.numbers"]
        self.bets, self.rest = int(bets), float(rest)
