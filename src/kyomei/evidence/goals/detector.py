"""A detector: a few features whose pooled activations tell a goal. It is arithmetic on a handful of numbers, and plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Bool, Float

from kyomei.errors import DataError
from kyomei.evidence.goals.pooling import POOLINGS, Pooling

FILE = "goals.json"
"""In a run's folder: every goal with its detector and figures."""
SCHEMA_VERSION = 1
Kind = Literal["label", "score"]


@final
@dataclass(frozen=True)
class Detector:
    """What fires for a goal: pooled activations, weighed and added up.

    With a the pooled activations of its latents in a document, v = intercept + Σ weight·a. The score of a label is
    1 / (1 + e^(−v)), the probability that logistic regression gives it; that of a number is v itself.

    Attributes:
        goal: its name.
        kind: "label": documents have it or not; "score": it is a number.
        pooling: how a document's tokens become one number a latent, over all tokens that a harvest would keep.
        latents: of the dictionary.
        weights: of each latent's pooled activation, in the dictionary's own units.
        intercept: what no activation comes to.
        threshold: least score at which a label is said to be there; none for a number.
        dictionary: SHA-256 of the file of the dictionary that the latents are of.
    """

    goal: str
    kind: Kind
    pooling: Pooling
    latents: tuple[int, ...]
    weights: tuple[float, ...]
    intercept: float
    threshold: float | None
    dictionary: str

    def scores(self, pooled: Float[np.ndarray, "documents latents"]) -> Float[np.ndarray, " documents"]:
        """The score of every document, float64.

        Args:
            pooled: pooled activations of the detector's own latents, in its order.
        """
        values = self.intercept + np.asarray(pooled, dtype=np.float64) @ np.array(self.weights, dtype=np.float64)
        # The same for large values of either sign, without an overflow.
        return 0.5 * (1 + np.tanh(values / 2)) if self.kind == "label" else values

    def fires(self, scores: Float[np.ndarray, " documents"]) -> Bool[np.ndarray, " documents"]:
        """Whether the label is said to be there; never for a goal that is a number."""
        return np.zeros(len(scores), dtype=bool) if self.threshold is None else np.asarray(scores) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `of` reads them."""
        features = [{"latent": i, "weight": w} for i, w in zip(self.latents, self.weights, strict=True)]
        own = {name: getattr(self, name) for name in ("goal", "kind", "pooling", "intercept", "threshold", "dictionary")}
        return {**own, "features": features}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Detector:
        """A detector from plain values; of its features other facts are passed over.

        Raises:
            KeyError, TypeError, ValueError: they are no detector's.
        """
        features = values["features"]
        latents, weights = tuple(int(f["latent"]) for f in features), tuple(float(f["weight"]) for f in features)
        threshold = None if values["threshold"] is None else float(values["threshold"])
        pooling, kind = values["pooling"], values["kind"]
        if pooling not in POOLINGS or kind not in ("label", "score"):
            raise ValueError(f"pooling {pooling!r}, kind {kind!r}")
        return cls(
            str(values["goal"]), kind, pooling, latents, weights, float(values["intercept"]), threshold, values["dictionary"]
        )


def read_goals(folder: Path) -> dict[str, dict[str, Any]]:
    """All that a run knows of its goals, by name; empty where it has none.

    Args:
        folder: of the run.

    Returns:
        Of each goal plain values, of which "detector" is what `Detector.of` reads; where a document that it was found with was
        forgotten, "expired" says "on" (a time) and "why".

    Raises:
        DataError: the file is damaged, or of a newer schema.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
        version, goals = values["schema_version"], dict(values["goals"])
        for goal in goals.values():
            Detector.of(goal["detector"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{path}: {type(error).__name__}: {error}"
        raise DataError("goals as `kyomei goals` writes them", found, "find them again with `kyomei goals`") from error
    if version > SCHEMA_VERSION:
        raise DataError(f"goals of schema {SCHEMA_VERSION}", f"{version} in {path}", "update Kyomei")
    return goals


def standing_goals(folder: Path) -> dict[str, dict[str, Any]]:
    """The goals of a run that have not expired, as `read_goals` gives them: no document that they were found with is forgotten.

    Raises:
        DataError: as `read_goals` does.
    """
    return {name: goal for name, goal in read_goals(folder).items() if goal.get("expired") is None}


def detectors(folder: Path) -> dict[str, Detector]:
    """The detectors of a run's goals, by name.

    Raises:
        DataError: as `read_goals` does.
    """
    return {name: Detector.of(goal["detector"]) for name, goal in read_goals(folder).items()}


def file_of(goals: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the file holds, goals in the order of their names."""
    return {"schema_version": SCHEMA_VERSION, "goals": {name: goals[name] for name in sorted(goals)}}


def explained(detector: Detector, pooled: Sequence[float] | Float[np.ndarray, " latents"]) -> list[dict[str, Any]]:
    """What each latent adds to one document's score, those that add most first; silent ones are left out."""
    found = [
        {"latent": latent, "activation": float(a), "adds": float(a * weight)}
        for latent, a, weight in zip(detector.latents, pooled, detector.weights, strict=True)
        if a
    ]
    return sorted(found, key=lambda one: (-abs(one["adds"]), one["latent"]))
