"""Whether a run's features tell a goal: the whole search, and its figures on documents that only report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.sparse import csc_matrix, csr_matrix

from kyomei.evidence.goals.baselines import all_features, bag_of_tokens, probe
from kyomei.evidence.goals.detector import Detector
from kyomei.evidence.goals.figures import Draws, auc_of, figure, r2_of, rank_correlation_of, share_of
from kyomei.evidence.goals.pooling import Pooling
from kyomei.evidence.goals.search import (
    MOST_FEATURES,
    FeatureSet,
    Pooled,
    Sides,
    best_sets,
    chosen_set,
    p_values,
    q_values,
    threshold_of,
    weighed,
)
from kyomei.evidence.goals.targets import Target

SHUFFLES = 20
"""Times that the whole search is repeated with labels that mean nothing."""
ALONE = 10
"""Features that are named as telling the goal alone."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class Pools:
    """What documents come to.

    Attributes:
        features: pooled activations of the dictionary's certified features [documents, features].
        replicas: by the replica's folder the same features in it: its latents that the certificate names as theirs.
        rows: pooled activations of the site itself [documents, dim].
        tokens: how often each token stands in each document [documents, vocabulary].
    """

    features: Pooled
    replicas: Mapping[str, Pooled]
    rows: Mapping[Pooling, Float32[np.ndarray, "documents dim"]]
    tokens: csr_matrix

    def of(self, documents: Int64[np.ndarray, " n"]) -> Pools:
        """The same of some documents."""
        return Pools(
            _rows_of(self.features, documents),
            {name: _rows_of(pooled, documents) for name, pooled in self.replicas.items()},
            {pooling: x[documents] for pooling, x in self.rows.items()},
            self.tokens[documents],
        )


def _rows_of(pooled: Pooled, documents: Int64[np.ndarray, " n"]) -> dict[Pooling, csc_matrix]:
    return {pooling: csc_matrix(matrix.tocsr()[documents]) for pooling, matrix in pooled.items()}


@dataclass(frozen=True, eq=False)
class Search:
    """A goal, its documents by part, and their groups."""

    target: Target
    parts: Mapping[str, Int64[np.ndarray, " part"]]
    groups: Int64[np.ndarray, " n"]
    seed: int

    def sides(self, values: Float64[np.ndarray, " n"] | None = None) -> Sides:
        """The documents that fit and choose, with the goal's values or others."""
        own = self.target.values if values is None else values
        return Sides(self.parts["fit"], self.parts["choose"], own, self.target.kind)

    @property
    def draws(self) -> Draws:
        """Of the documents that report."""
        return Draws(self.groups[self.parts["report"]], self.seed)

    def sets(
        self, pooled: Pooled, values: Float64[np.ndarray, " n"] | None = None, most: int = MOST_FEATURES
    ) -> list[FeatureSet]:
        """The best set of each size up to `most`."""
        sides = self.sides(values)
        p = self.p_values(pooled, sides.values[:, None])
        return best_sets(pooled, sides, {pooling: each[:, 0] for pooling, each in p.items()}, most)

    def p_values(
        self, pooled: Pooled, values: Float64[np.ndarray, "n goals"]
    ) -> dict[Pooling, Float64[np.ndarray, "features goals"]]:
        """Of every feature alone, on the documents that fit."""
        fit = self.parts["fit"]
        return p_values(_rows_of(pooled, fit), values[fit], self.groups[fit])

    def told(self, scores: Float64[np.ndarray, " n"], values: Float64[np.ndarray, " n"] | None = None) -> dict[str, Any]:
        """AUC, or R², of scores on the documents that report, with its interval."""
        report = self.parts["report"]
        own = (self.target.values if values is None else values)[report]
        if self.target.kind == "score":
            return figure(r2_of(scores[report], own), self.draws)
        label = own > 0
        return figure(auc_of(scores[report], label), self.draws, (0.0, 1.0, self._fewer(label)))

    def _fewer(self, label: Bool[np.ndarray, " n"]) -> int:
        """Groups with the label, or without it, whichever are fewer."""
        groups = self.groups[self.parts["report"]]
        return min(len(np.unique(groups[label])), len(np.unique(groups[~label])))


def tell(search: Search, pools: Pools, latents: Sequence[int], dictionary: str) -> tuple[Detector, dict[str, Any]]:
    """Find what tells a goal, and say how well it does beside what else could.

    Args:
        search: the goal and its documents.
        pools: of those documents, in the order of the goal's values.
        latents: the certified features, by their numbers in the dictionary.
        dictionary: SHA-256 of the dictionary's file.

    Returns:
        The detector, and all figures as plain values; they are of documents that neither fitted nor chose.
    """
    sides = search.sides()
    sets = search.sets(pools.features)
    chosen = chosen_set(pools.features, sides, sets)
    detector = _detector(search, chosen, pools, latents, dictionary)
    beside = {
        "probe": probe(pools.rows, sides),
        "all features": all_features(pools.features, sides),
        "bag of tokens": bag_of_tokens(pools.tokens, sides),
    }
    own = chosen.values(pools.features)
    shuffled = _shuffled(search, pools.features)
    figures = _figures(search, detector, own)
    (name, *_) = figures
    by_chance = [value for value in shuffled["values"] if value is not None]
    p = (1 + sum(value >= figures[name]["value"] for value in by_chance)) / (1 + len(by_chance))
    floor = 0.5 if search.target.kind == "label" else 0.0
    return detector, {
        "told": bool(figures[name]["interval"][0] > floor and p <= SIGNIFICANT),
        "figures": figures,
        "sets": [
            {
                "size": len(s.features),
                "pooling": s.pooling,
                "latents": [latents[f] for f in s.features],
                name: search.told(s.values(pools.features)),
            }
            for s in sets
        ],
        "alone": _alone(search, pools.features, latents),
        "beside": {
            key: {name: search.told(scores), "less": _less(search, own, scores), **how} for key, (scores, how) in beside.items()
        },
        "shuffled": {**shuffled, "p": p},
        "replicas": _replicas(search, chosen, pools),
    }


def _detector(search: Search, chosen: FeatureSet, pools: Pools, latents: Sequence[int], dictionary: str) -> Detector:
    target = search.target
    own = tuple(latents[feature] for feature in chosen.features)
    detector = Detector(target.name, target.kind, chosen.pooling, own, chosen.weights, chosen.intercept, None, dictionary)
    if target.kind == "score":
        return detector
    # On all documents that fitted the weights: a threshold is one number more, and few documents place it worse.
    known = np.concatenate([search.parts["fit"], search.parts["choose"]])
    pooled = pools.features[chosen.pooling].tocsr()[known][:, list(chosen.features)].toarray()
    return replace(detector, threshold=threshold_of(detector.scores(pooled), target.values[known]))


def _figures(search: Search, detector: Detector, values: Float64[np.ndarray, " n"]) -> dict[str, Any]:
    """The first is what sets are chosen by."""
    report, target, draws = search.parts["report"], search.target, search.draws
    truth = target.values[report]
    if target.kind == "score":
        correlation = figure(rank_correlation_of(values[report], truth), draws, None)
        return {"r2": search.told(values), "rank correlation": correlation}
    label, scores = truth > 0, 0.5 * (1 + np.tanh(values[report] / 2))
    fired = detector.fires(scores)
    groups = draws.groups

    def share(among: Bool[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
        return figure(share_of(among, hits), draws, (0.0, 1.0, len(np.unique(groups[among]))))

    everyone = np.ones(len(label), dtype=bool)
    return {
        "auc": search.told(values),
        "precision": share(fired, label),
        "recall": share(label, fired),
        "prevalence": share(everyone, label),
    }


def _alone(search: Search, pooled: Pooled, latents: Sequence[int]) -> dict[str, Any]:
    """Features that tell the goal by themselves, by Benjamini and Hochberg's procedure over all of them."""
    p = {pooling: each[:, 0] for pooling, each in search.p_values(pooled, search.target.values[:, None]).items()}
    q, name = q_values(p), "auc" if search.target.kind == "label" else "rank correlation"
    poolings = list(p)
    better = np.argmin(np.stack(list(p.values())), axis=0)
    lowest = np.min(list(p.values()), axis=0)
    order = sorted(np.flatnonzero(q <= SIGNIFICANT).tolist(), key=lambda feature: (lowest[feature], feature))
    report = search.parts["report"]
    truth, found = search.target.values[report], []
    for feature in order[:ALONE]:
        pooling = poolings[better[feature]]
        scores = pooled[pooling][:, [feature]].toarray().ravel()[report].astype(np.float64)
        statistic = auc_of(scores, truth > 0) if name == "auc" else rank_correlation_of(scores, truth)
        found.append(
            {"latent": latents[feature], "pooling": pooling, "q": float(q[feature]), name: figure(statistic, search.draws)}
        )
    return {"tested": len(latents), "discoveries": len(order), "q": SIGNIFICANT, "best": found}


def _less(search: Search, own: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]) -> dict[str, Any]:
    """By how much the detector is behind other scores on the same documents, draw by draw."""
    report = search.parts["report"]
    truth = search.target.values[report]

    def statistic(scores: Float64[np.ndarray, " n"]) -> Any:
        return auc_of(scores[report], truth > 0) if search.target.kind == "label" else r2_of(scores[report], truth)

    mine, theirs = statistic(own), statistic(other)
    return figure(lambda weights: theirs(weights) - mine(weights), search.draws)


def _shuffled(search: Search, pooled: Pooled) -> dict[str, Any]:
    """The whole search with labels exchanged between documents, or between groups of one label, of each part."""
    rng = np.random.default_rng([search.seed, SHUFFLES])
    values = np.stack([_exchanged(search, rng) for _ in range(SHUFFLES)], axis=1)
    p = search.p_values(pooled, values)
    found, discoveries, report = [], [], search.parts["report"]
    for number in range(SHUFFLES):
        own = {pooling: each[:, number] for pooling, each in p.items()}
        sides = search.sides(values[:, number])
        scores = chosen_set(pooled, sides, best_sets(pooled, sides, own)).values(pooled)
        one = Sides(sides.fit, report, values[:, number], sides.kind)
        found.append(one.told(scores[report]))
        discoveries.append(int((q_values(own) <= SIGNIFICANT).sum()))
    finite = [value for value in found if np.isfinite(value)]
    low, median, high = np.quantile(finite, [0.0, 0.5, 1.0]).tolist() if finite else (np.nan,) * 3
    return {
        "times": SHUFFLES,
        "median": median,
        "range": [low, high],
        "values": [value if np.isfinite(value) else None for value in found],
        "discoveries": float(np.mean(discoveries)),
    }


def _exchanged(search: Search, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
    values = search.target.values.copy()
    for own in search.parts.values():
        names, number = np.unique(search.groups[own], return_inverse=True)
        sums = np.bincount(number, values[own])
        squares, sizes = np.bincount(number, values[own] ** 2), np.bincount(number)
        of_one = np.allclose(squares * sizes, sums**2)
        # Where a group has one value, its documents are no evidence apart from each other: the group has another's.
        values[own] = (sums / sizes)[rng.permutation(len(names))][number] if of_one else rng.permutation(values[own])
    return values


def _replicas(search: Search, chosen: FeatureSet, pools: Pools) -> list[dict[str, Any]]:
    """The search in every other replica, among its own latents for the certified features.

    Returns:
        Of each "replica"; "same", how many of the set's features are found there too; "jaccard" of both sets; the figure of
        what is found there; and the figure of the dictionary's own set, weighed anew in the replica.
    """
    name, found = "auc" if search.target.kind == "label" else "r2", []
    sides = search.sides()
    for replica, pooled in pools.replicas.items():
        there = chosen_set(pooled, sides, search.sets(pooled))
        same = set(chosen.features) & set(there.features)
        either = set(chosen.features) | set(there.features)
        anew = weighed(chosen.pooling, np.array(chosen.features, dtype=np.int64), pooled, sides)
        found.append(
            {
                "replica": replica,
                "same": len(same),
                "jaccard": len(same) / len(either) if either else 1.0,
                name: search.told(there.values(pooled)),
                f"{name} of the same features": search.told(anew.values(pooled)),
            }
        )
    return found
