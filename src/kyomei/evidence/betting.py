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

POWERS = (0.45, 0.65, 0.85)
"""κ of the bets κ p^(κ−1), for high figures, and κ (1 − p)^(κ−1), for low ones."""
STEP = 50
"""Documents from one stake to the next."""
MOST = 1e150
"""Where wealth stops growing: less than it could be, which keeps the guarantee, and no overflow."""
_LEAST = 1e-12


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
        self.wealth: Float64[np.ndarray, "statistics bets"] = np.zeros((size, 2 * len(POWERS)))
        self.highest: Float64[np.ndarray, " statistics"] = np.ones(size)
        self.counted, self.bets, self.rest = 0, 0, 1.0

    def cells(self, values: Float64[np.ndarray, " some"], which: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " some"]:
        """The cell of each figure, of the statistic whose number stands beside it."""
        found: np.ndarray = (self.edges[which] < values[:, None]).sum(axis=1)
        return found

    def count(self, cells: Int64[np.ndarray, " statistics"]) -> None:
        """Count a document of the reference in."""
        self.counts[np.arange(len(cells)), cells] += 1
        self.counted += 1

    def bet(self, cells: Int64[np.ndarray, " statistics"], uniforms: Float64[np.ndarray, " statistics"]) -> None:
        """Bet on a document of the stream, then count it in.

        Args:
            cells: of its figures.
            uniforms: U_t of each statistic, drawn for this document alone.
        """
        if self.bets % STEP == 0:
            self._lay()
        rows = np.arange(len(cells))
        below = np.cumsum(self.counts, axis=1)[rows, cells]
        higher, equal = self.counted - below, self.counts[rows, cells]
        p = (higher + uniforms * (equal + 1)) / (self.counted + 1)
        for number, power in enumerate(POWERS):
            self.wealth[:, 2 * number] *= power * np.maximum(p, _LEAST) ** (power - 1)
            self.wealth[:, 2 * number + 1] *= power * np.maximum(1 - p, _LEAST) ** (power - 1)
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
        numbers = np.array([self.counted, self.bets, self.rest])
        held = {"counts": self.counts, "wealth": self.wealth, "highest": self.highest, "numbers": numbers}
        return {f"{prefix}.{name}": array for name, array in held.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Go on from what `arrays` gave."""
        self.counts, self.wealth, self.highest = (arrays[f"{prefix}.{name}"].copy() for name in ("counts", "wealth", "highest"))
        counted, bets, rest = arrays[f"{prefix}.numbers"]
        self.counted, self.bets, self.rest = int(counted), int(bets), float(rest)
