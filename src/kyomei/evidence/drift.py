"""Whether a stream of documents is still like the reference: its text as a whole, reconstruction, features, goals.

The document is the unit: firings within one depend on each other. What is asked of each document is laid down on documents of
their own ("scale"), then ranked among other documents ("ranked") and those of the stream so far; `evidence.betting` says why
no look at it raises the rate of false alarms. One rate holds over all statistics and all times together: half of it is for the
direction that is learnt on the stream (`evidence.learnt`), the other kinds share the rest equally, and each its own among its
statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from kyomei.evidence.betting import TAILS, Bets, scalar_edges
from kyomei.evidence.documents import DocumentFigures, DocumentTable
from kyomei.evidence.learnt import LIVE, Learnt

RATE = 0.05
"""Familywise rate of false alarms, over all statistics and all times."""
TEXT, RECONSTRUCTION, FEATURES, LEARNT, GOALS = "text", "reconstruction", "features", "learnt", "goals"
LEARNT_SHARE = 0.5
"""Of the rate: what the learnt direction has, since it sees small turns first; the other kinds share the rest equally."""
TEXT_STATISTICS = ("distance", "activity", "energy", "axis 1", "axis 2")
"""Of a document as a whole: how far its firing rates lie from the usual ones, active latents a row, mean square of its rows,
and where it lies on the axes along which the reference's own documents differ most."""
WINDOW_DOCUMENTS, WINDOW_TOKENS = 50, 10_000
"""A window ends when it has both."""
FEATURE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Quantiles of a feature's rate, over the scale's documents in which it fires, at which its cells end; first comes 0."""
SEEN = {60: 0.075, 120: 0.25, 240: 0.525, 430: 0.675}
"""By documents that are ranked, the share of streams in which the learnt direction alone saw a turn of a tenth in time, to C++
or to prose, whichever it saw less often (`bench/watch.py`, docs/results.md)."""
SEED = 0


class Detector(Protocol):
    """What fires for a goal."""

    @property
    def goal(self) -> str: ...

    @property
    def pooling(self) -> str: ...

    @property
    def latents(self) -> tuple[int, ...]: ...

    def scores(self, pooled: Float64[np.ndarray, "documents latents"]) -> Float64[np.ndarray, " documents"]: ...


@final
@dataclass(frozen=True, eq=False)
class Distance:
    """How far a document's firing rates lie from the usual ones, over all features at once: Σ_j (√r_j − m_j)² / (s_j² + s²).

    The square root makes the spread of a rate about the same for rare and frequent features. s² is the mean of all s_j², so
    that a feature which hardly ever fires counts, but does not decide alone.

    Attributes:
        mean: m, of √rate over the scale's documents [width].
        weight: 1 / (s_j² + s²) [width].
    """

    mean: Float64[np.ndarray, " width"]
    weight: Float64[np.ndarray, " width"]

    @classmethod
    def of(cls, scale: DocumentTable) -> Distance:
        """Of the documents that lay down the scale."""
        total, squares = np.zeros(scale.width), np.zeros(scale.width)
        for each in scale:
            total[each.latents] += np.sqrt(each.rates)
            squares[each.latents] += each.rates
        mean = total / len(scale)
        variance = np.maximum(squares / len(scale) - mean**2, 0.0)
        return cls(mean, 1 / (variance + variance.mean() + 1e-12))

    def to(self, document: DocumentFigures) -> float:
        """Of one document; the mean over the features, so that widths can be compared."""
        at = document.latents
        own = (np.sqrt(document.rates) - self.mean[at]) ** 2 - self.mean[at] ** 2
        return float((self.mean**2 @ self.weight + own @ self.weight[at]) / len(self.mean))


@final
@dataclass(frozen=True, eq=False)
class Axes:
    """The first principal axes of log(1 + r_j / ε) over the scale's documents, each feature over its spread.

    Attributes:
        directions: of the axes, spreads included [axes, width].
        center: where the mean document lies on them [axes].
    """

    directions: Float64[np.ndarray, "axes width"]
    center: Float64[np.ndarray, " axes"]

    @classmethod
    def of(cls, scale: DocumentTable, count: int = 2) -> Axes:
        """Of the documents that lay down the scale; axes that they do not span are 0."""
        seen = np.zeros((len(scale), scale.width))
        for row, each in zip(seen, scale, strict=True):
            row[each.latents] = each.log_rates
        mean, variance = seen.mean(axis=0), seen.var(axis=0)
        weight = 1 / np.sqrt(variance + variance.mean() + 1e-12)
        _, _, right = np.linalg.svd((seen - mean) * weight, full_matrices=False)
        directions = np.zeros((count, scale.width))
        directions[: len(right[:count])] = right[:count] * weight
        return cls(directions, directions @ mean)

    def to(self, document: DocumentFigures) -> Float64[np.ndarray, " axes"]:
        """Where a document lies on them."""
        found: np.ndarray = self.directions[:, document.latents] @ document.log_rates - self.center
        return found


@dataclass(frozen=True)
class Statistic:
    """One thing that is watched.

    Attributes:
        kind: "text", "reconstruction", "features", "learnt" or "goals".
        name: of a figure of the text or of a goal; the number of a feature; otherwise that of the kind.
        level: its share of the rate.
        evidence: E now.
        highest: the largest E so far; an alarm where it has reached 1 / level.
    """

    kind: str
    name: str
    level: float
    evidence: float
    highest: float

    @property
    def alarmed(self) -> bool:
        """Whether it has ever reached its threshold."""
        return self.highest >= 1 / self.level

    def to_dict(self) -> dict[str, Any]:
        """Plain values; evidence as its logarithm to base 10, which may be plotted."""
        return {
            "kind": self.kind,
            "name": self.name,
            "log10_evidence": math.log10(max(self.evidence, 1e-300)),
            "log10_highest": math.log10(self.highest),
            "log10_threshold": -math.log10(self.level),
            "alarm": self.alarmed,
        }


@final
class Monitor:
    """Watches a stream, document by document, in memory that does not grow with it.

    Args:
        scale: documents on which edges and distances are laid down; any, but none of those that are ranked.
        ranked: documents of the reference, from the law that the stream is held to.
        detectors: of goals.
        seed: of the draws that break ties; the same for the same stream gives the same evidence.
        rate: familywise rate of false alarms.
    """

    def __init__(
        self,
        scale: DocumentTable,
        ranked: DocumentTable,
        detectors: Sequence[Detector] = (),
        *,
        seed: int = SEED,
        rate: float = RATE,
    ) -> None:
        self.width, self.detectors, self._seed, self.rate = scale.width, list(detectors), seed, rate
        self._distance, self._axes = Distance.of(scale), Axes.of(scale)
        self.scalars = Bets(np.stack([scalar_edges(column) for column in np.stack([self.scores(d) for d in scale]).T]))
        self.features = Bets(_feature_edges(scale))
        for document in ranked:
            self.scalars.count(self._scalar_cells(document))
            self.features.count(self._feature_cells(document))
        self.learnt = Learnt(scale, ranked)
        self.num_ranked = len(ranked)

    @property
    def kinds(self) -> list[str]:
        """What is watched; goals only where there are some."""
        return [TEXT, RECONSTRUCTION, FEATURES, LEARNT, *([GOALS] if self.detectors else [])]

    def level(self, kind: str) -> float:
        """The share of the rate of one statistic of a kind."""
        if kind == LEARNT:
            return self.rate * LEARNT_SHARE
        size = {TEXT: len(TEXT_STATISTICS), FEATURES: self.width, GOALS: len(self.detectors)}.get(kind, 1)
        return self.rate * (1 - LEARNT_SHARE) / (len(self.kinds) - 1) / size

    def scores(self, document: DocumentFigures) -> Float64[np.ndarray, " scalars"]:
        """The figures of a document that are few: those of the text, what is left of its squares, each goal's score."""
        rows = document.num_rows
        text = (
            self._distance.to(document),
            float(document.fired.sum()) / rows,
            document.squares / rows,
            *self._axes.to(document),
        )
        return np.array([*text, document.unexplained, *self.goals_of(document)])

    def goals_of(self, document: DocumentFigures) -> list[float]:
        """Each goal's score of a document."""
        return [float(d.scores(document.pooled(np.array(d.latents), d.pooling)[None])[0]) for d in self.detectors]

    def add(self, document: DocumentFigures) -> None:
        """Bet on a document of the stream, then count it in."""
        draws = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, self.scalars.bets]))
        self.scalars.bet(self._scalar_cells(document), draws.random(len(self.scalars.edges)))
        self.features.bet(self._feature_cells(document), draws.random(self.width))
        self.learnt.bet(document, draws.random(LIVE))

    @property
    def documents(self) -> int:
        """Documents of the stream so far."""
        return self.scalars.bets

    def statistics(self) -> list[Statistic]:
        """Everything that is few, and of the features the one with the most evidence so far, by the name of its kind."""
        names = [*TEXT_STATISTICS, RECONSTRUCTION, *(each.goal for each in self.detectors)]
        kinds = [*[TEXT] * len(TEXT_STATISTICS), RECONSTRUCTION, *[GOALS] * len(self.detectors)]
        values = zip(kinds, names, self.scalars.values, self.scalars.highest, strict=True)
        few = [Statistic(kind, name, self.level(kind), float(e), float(top)) for kind, name, e, top in values]
        (first,) = self.leading(1)
        one = Statistic(FEATURES, FEATURES, first.level, first.evidence, first.highest)
        learnt = Statistic(LEARNT, LEARNT, self.level(LEARNT), self.learnt.value, self.learnt.highest)
        at = len(TEXT_STATISTICS) + 1
        return [*few[:at], one, learnt, *few[at:]]

    def leading(self, count: int) -> list[Statistic]:
        """The features with the most evidence so far, those that raised an alarm first."""
        order: list[int] = np.lexsort([-self.features.values, -self.features.highest])[:count].tolist()
        return self._of_features(order)

    def carriers(self, count: int) -> list[Statistic]:
        """The features that carry most of the learnt direction; each may be far from an alarm of its own."""
        return self._of_features(self.learnt.carriers(count))

    def _of_features(self, latents: Sequence[int]) -> list[Statistic]:
        level, values, highest = self.level(FEATURES), self.features.values, self.features.highest
        return [Statistic(FEATURES, str(i), level, float(values[i]), float(highest[i])) for i in latents]

    def changed_features(self) -> Bool[np.ndarray, " width"]:
        """The features that raised an alarm: with the rate's probability at most, any of them wrongly."""
        return self.features.reached(self.level(FEATURES))

    @property
    def alarmed(self) -> list[str]:
        """The kinds that raised an alarm, whenever that was."""
        few, at = self.scalars.highest, len(TEXT_STATISTICS)
        highest = {TEXT: few[:at], RECONSTRUCTION: few[at], FEATURES: self.features.highest, LEARNT: self.learnt.highest}
        highest[GOALS] = few[at + 1 :]
        return [kind for kind in self.kinds if np.max(highest[kind]) >= 1 / self.level(kind)]

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it has to remember of the stream and of the reference, by name."""
        return {**self.scalars.arrays("scalars"), **self.features.arrays("features"), **self.learnt.arrays("learnt")}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `arrays` gave, of a monitor of the same reference."""
        self.scalars.restore(arrays, "scalars")
        self.features.restore(arrays, "features")
        self.learnt.restore(arrays, "learnt")

    def _scalar_cells(self, document: DocumentFigures) -> Int64[np.ndarray, " scalars"]:
        return self.scalars.cells(self.scores(document), np.arange(len(self.scalars.edges)))

    def _feature_cells(self, document: DocumentFigures) -> Int64[np.ndarray, " width"]:
        cells = np.zeros(self.width, dtype=np.int64)
        cells[document.latents] = self.features.cells(document.rates, document.latents.astype(np.int64))
        return cells


def least_share(num_ranked: int, rate: float = RATE, *, documents: int = 5 * WINDOW_DOCUMENTS) -> float | None:
    """The smallest share of foreign documents, such as no document of the reference is, that can raise an alarm in time.

    That s·t foreign documents all fall among the t of the stream, and none among the n of the reference, has probability
    (t / (n + t))^(s t) if both are of one law. No test that keeps its rate can tell what is likelier than its level; ours pays
    for its choice of bets and stakes besides.

    Args:
        num_ranked: n, documents of the reference.
        rate: familywise; beside the learnt direction four kinds have an eighth each, and of that a figure of the text a fifth.
        documents: t, of the stream.

    Returns:
        s, between 0 and 1; none: no share at all.
    """
    if not num_ranked:
        return None
    nats = math.log(4 * len(TEXT_STATISTICS) / (rate * (1 - LEARNT_SHARE))) + math.log(2 * 2 * len(TAILS))
    share = nats / (documents * math.log1p(num_ranked / documents))
    return share if share <= 1 else None


def seen_in_time(num_ranked: int) -> float | None:
    """In which share of measured streams the learnt direction saw a turn of a tenth of the text within five windows.

    Args:
        num_ranked: documents of the reference; between two measured numbers the lower one counts.

    Returns:
        The share; none for fewer documents than were tried.
    """
    return max((share for count, share in SEEN.items() if count <= num_ranked), default=None)


def _feature_edges(scale: DocumentTable) -> Float64[np.ndarray, "width edges"]:
    """Edges for every feature: 0, then quantiles of its rate where it fires; infinite for one that never does."""
    edges = np.full((scale.width, 1 + len(FEATURE_EDGES)), np.inf)
    edges[:, 0] = 0.0
    rates = scale.fired / np.repeat(scale.num_rows, np.diff(scale.starts))
    order = np.lexsort([rates, scale.latents])
    latents, first = np.unique(scale.latents[order], return_index=True)
    for latent, own in zip(latents, np.split(rates[order], first[1:]), strict=True):
        # Quantiles that are figures themselves: cells end where documents do.
        edges[latent, 1:] = own[np.round(np.array(FEATURE_EDGES) * (len(own) - 1)).astype(int)]
    return edges
