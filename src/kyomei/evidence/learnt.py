"""A direction that is learnt on the way: what tells the stream's last windows from the reference, ranked from then on.

A turn of a part of the text moves each figure of a document a little, and a direction among a thousand firing rates a lot; but
which one, only the stream tells. So after every window a linear discriminant is fitted: the stream's last windows against a
quarter of the reference. Then it is fixed, and documents that come later are ranked along it among the other three quarters
and each other. Given what it was fitted on, those are of one law in any order if the stream is like the reference. So their
ranks are independent uniforms, exactly, however bad the discriminant is, and a bet on high ranks is a fair game (for test
martingales Shafer, Shen, Vereshchagin and Vovk, Statistical Science 26, 2011, and `evidence.betting`; for bets on what a
classifier says of the next document Podkopaev and Ramdas, arXiv:2305.00143).

Each direction k = 1, 2, … has its own game M_k, begun when it was fitted. All of them are ranked among the same documents, so
no filtration makes their sum a martingale; but the rate can be shared out among them,

    E = max_k w_k M_k,   w_k = 2 / ((k + 1) (k + 2)),   Σ w_k = 1,

and E reaches 1/α with probability Σ_k w_k α = α at most, over all times and directions together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
from jaxtyping import Float64
from scipy.sparse import csr_matrix

from kyomei.evidence.betting import BEYOND, MOST, SCALAR_EDGES, STEP, TAILS, cells_of, odds, ranks, scalar_edges
from kyomei.evidence.documents import DocumentFigures, DocumentTable

FITTED = 4
"""One in so many documents of the reference is fitted on; the others are ranked among."""
LIVE = 6
"""Directions that are bet on at a time: the last ones."""
LAG = 5
"""Windows of the stream, of `STEP` documents, that a direction is fitted on: the last ones."""
RIDGE = 0.01
"""λ of the discriminant, beside a covariance whose trace is 1 at most."""
_STRETCH = 4096
_HELD = ("sums", "filled", "directions", "edges", "counts", "wealth", "share")


@final
class Discriminant:
    """Fisher's linear discriminant with a ridge, (C + λI)⁻¹ (m − m₀), in memory and time linear in the width.

    Each feature is taken over its spread. C is of fewer documents than there are features, so the inverse is that of a
    matrix of documents (Woodbury's identity).

    Args:
        documents: log rates of those that C is of [documents, width].
        usual: m₀ [width].
    """

    def __init__(self, documents: csr_matrix, usual: Float64[np.ndarray, " width"]) -> None:
        count, width = documents.shape
        mean = np.asarray(documents.mean(axis=0)).ravel()
        variance = np.maximum(np.asarray(documents.multiply(documents).mean(axis=0)).ravel() - mean**2, 0.0)
        self._usual, self._weight = usual, 1 / np.sqrt((variance + variance.mean() + 1e-12) * width)
        self._rows, self._mean = csr_matrix(documents.multiply(self._weight)), mean * self._weight
        # Dense a stretch of features at a time: rates are not so sparse that products of sparse matrices would pay.
        stretches = (self._rows[:, first : first + _STRETCH].toarray() for first in range(0, width, _STRETCH))
        gram = sum((each @ each.T for each in stretches), np.zeros((count, count)))
        across = gram.mean(axis=0)
        centered = gram - across - across[:, None] + across.mean()
        self._inverse = np.linalg.inv(centered / count + RIDGE * np.eye(count))

    def against(self, mean: Float64[np.ndarray, " width"]) -> Float64[np.ndarray, " width"]:
        """What a document's log rates are multiplied by; mean: m, of the documents that are to lie high."""
        way = (mean - self._usual) * self._weight
        pull = self._inverse @ (self._rows @ way - self._mean @ way) / len(self._inverse)
        found: np.ndarray = (way - (self._rows.T @ pull - self._mean * pull.sum())) * self._weight
        return found


@final
class Learnt:
    """Directions learnt on a stream, and bets on the ranks of what comes after. Memory does not grow with the stream.

    Args:
        scale: documents that are never ranked.
        ranked: of the reference; every fourth is fitted on, the others are ranked among.
    """

    def __init__(self, scale: DocumentTable, ranked: DocumentTable) -> None:
        width = scale.width
        documents = list(ranked)
        lead = DocumentTable.of(documents[::FITTED], width)
        own = DocumentTable.of([each for number, each in enumerate(documents) if number % FITTED], width)
        self._fitted = DocumentTable.of([*scale, *lead], width).log_rates
        self._ranked = own.log_rates
        self._usual = np.asarray(lead.log_rates.sum(axis=0)).ravel() / max(1, len(lead))
        self._discriminant = Discriminant(self._fitted, self._usual)
        self.sums, self.filled = np.zeros((LAG, width)), np.zeros(LAG)
        self.directions = np.zeros((LIVE, width))
        self.edges = np.full((LIVE, SCALAR_EDGES + len(BEYOND)), np.inf)
        self.counts = np.zeros((LIVE, self.edges.shape[1] + 1), dtype=np.int64)
        self.wealth, self.share = np.zeros((LIVE, len(TAILS))), np.zeros(LIVE)
        self.bets, self.highest = 0, 1.0

    def bet(self, document: DocumentFigures, uniforms: Float64[np.ndarray, " live"]) -> None:
        """Bet on a document of the stream along every direction, then learn from it.

        Args:
            document: with the latents of the reference's dictionary.
            uniforms: one for each direction, drawn for this document alone.
        """
        seen = document.log_rates
        cells = cells_of(self.edges, self.directions[:, document.latents] @ seen)
        self.wealth *= odds(ranks(self.counts, cells, uniforms))
        np.minimum(self.wealth, MOST, out=self.wealth)
        self.counts[np.arange(LIVE), cells] += 1
        self.highest = max(self.highest, self.value)
        self.sums[-1, document.latents] += seen
        self.filled[-1] += 1
        self.bets += 1
        if self.bets % STEP == 0:
            self._learn()

    def _learn(self) -> None:
        """Fit the next direction, in the place of the oldest; count the reference in along it."""
        number = self.bets // STEP
        at = (number - 1) % LIVE
        direction = self._discriminant.against(self._recent())
        self.directions[at], self.edges[at] = direction, scalar_edges(self._fitted @ direction)
        scores = self._ranked @ direction
        cells = cells_of(np.broadcast_to(self.edges[at], (len(scores), self.edges.shape[1])), scores)
        self.counts[at] = np.bincount(cells, minlength=self.counts.shape[1])
        self.wealth[at], self.share[at] = 1.0, 2 / ((number + 1) * (number + 2))
        self.sums, self.filled = np.roll(self.sums, -1, axis=0), np.roll(self.filled, -1)
        self.sums[-1], self.filled[-1] = 0.0, 0.0

    def _recent(self) -> Float64[np.ndarray, " width"]:
        """Mean log rates of the stream's last windows."""
        found: np.ndarray = self.sums.sum(axis=0) / max(1.0, self.filled.sum())
        return found

    @property
    def value(self) -> float:
        """E now; 1 before there is a direction."""
        return float((self.share * self.wealth.mean(axis=1)).max()) if self.share.any() else 1.0

    def carriers(self, count: int) -> list[int]:
        """The latents that carry most of what the stream's last windows differ by, along the direction with most evidence."""
        best = int((self.share * self.wealth.mean(axis=1)).argmax())
        parts = self.directions[best] * (self._recent() - self._usual)
        order: list[int] = np.argsort(-parts, kind="stable")[:count].tolist()
        return [latent for latent in order if parts[latent] > 0]

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All that it has to remember, by name."""
        held = {name: getattr(self, name) for name in _HELD}
        return {f"{prefix}.{name}": array for name, array in {**held, "numbers": np.array([self.bets, self.highest])}.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Go on from what `arrays` gave."""
        for name in _HELD:
            setattr(self, name, arrays[f"{prefix}.{name}"].copy())
        bets, highest = arrays[f"{prefix}.numbers"]
        self.bets, self.highest = int(bets), float(highest)
