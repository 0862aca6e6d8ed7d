"""From the statistics of a quick search to the share of features that it recovered, calibrated on planted data.

The model is an additive logit in which every statistic acts in one direction only, by a piecewise linear function with a few
knots, fitted as a fractional logit (Papke and Wooldridge, 1996) with a ridge penalty. It knows planted data only, and only the
range that it was fitted on; beyond it says nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize  # type: ignore[import-untyped, unused-ignore]
from scipy.special import expit  # type: ignore[import-untyped, unused-ignore]

from kyomei.errors import EvidenceError
from kyomei.evidence.check.structure import Structure
from kyomei.learning.occurrence import Factors

ALGORITHM, VERSION = "monotone additive fractional logit", 3
FILE = "calibrator.json"
RIDGE = 0.01
KNOTS = (0.0, 0.25, 0.5, 0.75)
"""Quantiles of a statistic, over the data of the fit, between which it has one slope."""
MARGIN = 0.05
"""A statistic is within the trained range if it exceeds its ends by no more than this share of the range."""
GROUPS = (0.1, 0.5, 0.9)
"""Predictions are grouped at these values; each group has residual quantiles of its own."""
COVERAGE = 0.9
NEAR, KIN = 0.05, 0.25
"""Log of the median cosine of nearest directions over that of random ones: up to the first they are unrelated, from the second
all are children of one parent or another."""
COMPETING = 0.8
"""Meetings of independent neighbours over chance, for they compete for a row."""
NUMBER_CUTS = (0.25, 0.5, 0.75, 0.9, 0.97)
"""Expected recoveries between which the estimated number of features has one interval."""
ACTIVE_CUTS = (0.4, 0.6, 0.8, 0.95)
"""Explained shares of the rows that are explained least, between which the number of active features has one interval."""
LEAST_SHARE = 0.02
"""Keeps log odds finite."""

NO_FACTORS = Factors((), ((0.0, math.inf),))

Array = Float[np.ndarray, "..."]


def recaptured(structure: Structure) -> float:
    """Share of the features that at least one half found, if the halves are two independent captures (Lincoln, Petersen)."""
    first, second, both = structure.captures
    if not both:
        return 0.0
    in_second, in_first = both / first, both / second
    return in_first + in_second - in_first * in_second


def number_of_features(structure: Structure) -> float:
    """Estimated number of features, by capture and recapture (Chapman, 1951); at least as many as were found.

    The captures are all stable directions of a half, less the share that mixtures have among the reproduced ones; a stable
    direction that only one half found is a feature too, for Gaussian rows have none.
    """
    true_share = structure.features / max(1, structure.distinct)
    first, second = (true_share * count for count in structure.found)
    both = structure.reproduced * (first + second) / 2
    return max(structure.features, (first + 1) * (second + 1) / (both + 1) - 1)


def number_active(structure: Structure) -> float:
    """Features in the code of the usual row, of the search's directions or of the second opinion's, whichever has more."""
    return max(structure.active.median, structure.second.coded.active.median, 1.0)


def least_explained(structure: Structure) -> float:
    """Share of their energy that sums of at most eight directions explain of the tenth of the rows that they explain least.

    Rows of more features are among them: their codes stop at eight.
    """
    return max(structure.explained.low, structure.second.coded.explained.low)


def statistics(structure: Structure) -> dict[str, float]:
    """What the calibrator reads, each oriented so that more of it means more recovery.

    trusted: log odds of the share of features that a half found, that the second opinion keeps, and that lie apart.
    agreed: log odds of the share of a half's joint dictionary that the other half's confirms; noise and few rows lower it.
    explained: log odds of the share of the usual row that sums of directions explain; what was not found is missing.
    explained_low: the same share for the tenth of the rows where it is least.
    undivided: −log of the variance along the leading axis among a feature's rows; partners and parents raise that variance.
    companions: −log of how often a feature comes with its most frequent companion, over chance.
    meetings: how far nearest neighbours are from meeting as often as independent ones do; siblings exclude each other.
    """
    s, second = structure, structure.second
    chance = max(second.geometry.chance_coherence, 0.05)
    nearness = max(0.0, math.log(max(second.geometry.coherence.median, chance) / chance) - NEAR)
    apart = 1 - min(1.0, nearness / (KIN - NEAR))
    return {
        "trusted": _log_odds(second.found_apart_share * recaptured(s) * apart),
        "agreed": _log_odds(second.agreed_share),
        "explained": _log_odds(second.coded.explained.median),
        "explained_low": second.coded.explained.low,
        "undivided": -math.log(max(s.split.median, 1.0)),
        "companions": -math.log(max(s.partner.median / max(s.chance_partner, 0.01), 0.5)),
        "meetings": -max(abs(math.log(max(ratio, 0.05) / COMPETING)) for ratio in second.meetings),
    }


def _log_odds(share: float) -> float:
    share = min(max(share, 0.0), 1.0)
    return math.log((share + LEAST_SHARE) / (1 - share + LEAST_SHARE))


class ExpectedRecovery(NamedTuple):
    """Expected FRR(0.9) and the interval that holds it in nine left-out regimes of ten."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibrator:
    """A fitted model, as it is kept in calibrator.json.

    Attributes:
        names: the statistics, in the order of everything below.
        knots: for each statistic, where its slope may change, in rising order.
        slopes: for each statistic, its slope from each knot to the next one; none is negative.
        intercept: of the logit.
        ranges: smallest and largest value of each statistic in the data of the fit.
        residuals: for each group of predictions, the quantiles of truth − prediction on left-out families.
        number: truth ÷ estimate of the number of features, by the expected recovery.
        active: truth ÷ estimate of the number of features in the usual row, by `least_explained`.
        data_sha256: of the file that it was fitted on.
        num_regimes: lines of that file.
    """

    names: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    slopes: tuple[tuple[float, ...], ...]
    intercept: float
    ranges: tuple[tuple[float, float], ...]
    residuals: tuple[tuple[float, float], ...] = ()
    number: Factors = NO_FACTORS
    active: Factors = NO_FACTORS
    data_sha256: str = ""
    num_regimes: int = 0

    def predict(self, table: Float[np.ndarray, "regimes names"]) -> Float[np.ndarray, " regimes"]:
        """Expected FRR(0.9) of every row of statistics."""
        slopes = np.concatenate([np.asarray(part) for part in self.slopes])
        predicted: Array = expit(self.intercept + _basis(np.asarray(table, dtype=float), self.knots) @ slopes)
        return predicted

    def outside(self, values: dict[str, float]) -> list[str]:
        """Names of the statistics that lie beyond the trained range."""
        found = []
        for name, (low, high) in zip(self.names, self.ranges, strict=True):
            margin = MARGIN * (high - low)
            if not low - margin <= values[name] <= high + margin:
                found.append(name)
        return found

    def expected(self, structure: Structure) -> ExpectedRecovery | None:
        """Expected FRR(0.9) of the search that measured `structure`; none outside the trained range."""
        values = statistics(structure)
        if self.outside(values):
            return None
        value = float(self.predict(np.array([[values[name] for name in self.names]]))[0])
        low, high = self.residuals[int(np.searchsorted(GROUPS, value))]
        return ExpectedRecovery(value, min(value, max(0.0, value + low)), max(value, min(1.0, value + high)))

    def to_json(self) -> str:
        """The content of calibrator.json."""
        return json.dumps({"algorithm": ALGORITHM, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibrator:
        """Read what `to_json` wrote.

        Raises:
            EvidenceError: it is of another algorithm or version.
        """
        values: dict[str, Any] = json.loads(text)
        kind = (values.pop("algorithm", None), values.pop("version", None))
        if kind != (ALGORITHM, VERSION):
            found = " ".join(map(str, kind))
            raise EvidenceError(f"a calibrator of {ALGORITHM} {VERSION}", found, "fit it again with bench/calibration.py")
        values = {name: _tuples(value) for name, value in values.items()}
        return cls(**{**values, **{name: Factors(**values[name]) for name in ("number", "active")}})


@cache
def shipped() -> Calibrator:
    """The calibrator in the package."""
    return Calibrator.from_json(resources.files("kyomei.evidence.check").joinpath(FILE).read_text(encoding="utf-8"))


def fit(table: Float[np.ndarray, "regimes names"], truth: Float[np.ndarray, " regimes"], names: tuple[str, ...]) -> Calibrator:
    """Fit slopes by penalised fractional logit; no slope may be negative.

    Args:
        table: one row of statistics for each regime.
        truth: FRR(0.9), in [0, 1].
        names: of the columns.

    Returns:
        A calibrator without residuals; `with_residuals` adds them.
    """
    table = np.asarray(table, dtype=float)
    knots = tuple(tuple(np.unique(np.quantile(column, KNOTS)).tolist()) for column in table.T)
    basis = _basis(table, knots)
    scale = np.maximum(basis.std(axis=0), 1e-9)
    design = np.column_stack([np.ones(len(basis)), basis / scale])

    def loss(weights: Array) -> tuple[float, Array]:
        linear = design @ weights
        value = float(np.mean(np.logaddexp(0, linear) - truth * linear) + RIDGE * np.sum(weights[1:] ** 2) / 2)
        gradient = design.T @ (expit(linear) - truth) / len(truth)
        gradient[1:] += RIDGE * weights[1:]
        return value, gradient

    bounds = [(None, None)] + [(0, None)] * basis.shape[1]
    weights = minimize(loss, np.zeros(design.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x
    slopes, parts = (weights[1:] / scale).tolist(), []
    for places in knots:
        parts.append(tuple(slopes[: len(places)]))
        slopes = slopes[len(places) :]
    ranges = tuple((float(column.min()), float(column.max())) for column in table.T)
    return Calibrator(names, knots, tuple(parts), float(weights[0]), ranges)


def residual_quantiles(
    predicted: Float[np.ndarray, " regimes"], truth: Float[np.ndarray, " regimes"]
) -> tuple[tuple[float, float], ...]:
    """Lower and upper quantile of truth − predicted for each group of predictions, from regimes that the model did not see.

    Split conformal, on each side: of m residuals the ⌈(m + 1) q⌉-th is taken (Vovk et al., 2005), the outermost where there is
    none.
    """
    group, quantiles = np.searchsorted(GROUPS, predicted), []
    for number in range(len(GROUPS) + 1):
        residuals = np.sort((truth - predicted)[group == number])
        place = math.ceil((len(residuals) + 1) * (1 + COVERAGE) / 2) - 1
        upper = min(place, len(residuals) - 1)
        lower = len(residuals) - 1 - upper
        quantiles.append((float(residuals[lower]), float(residuals[upper])) if len(residuals) else (-1.0, 1.0))
    return tuple(quantiles)


def _basis(
    table: Float[np.ndarray, "regimes names"], knots: tuple[tuple[float, ...], ...]
) -> Float[np.ndarray, "regimes terms"]:
    """How far each value has come from each knot towards the next one; the last one has none after it."""
    parts = []
    for column, places in zip(table.T, knots, strict=True):
        lengths = np.append(np.diff(places), np.inf)
        parts.append(np.clip(column[:, None] - np.asarray(places), 0, lengths))
    return np.concatenate(parts, axis=1)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
