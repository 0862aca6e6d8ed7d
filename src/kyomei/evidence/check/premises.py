"""Are the premises of recovery met on these rows, and what share of their features would be found? (`kyomei check`)

The premises are those of arXiv:2506.14002: a sparse non-negative mixture of features, decomposable data (H1 row sparsity,
H2 balance, H3 low co-occurrence, V1 incoherence), and enough rows. They are measured by a quick search; the bounds below are
where recovery falls off on planted data, and the expected recovery is calibrated on such data (docs/results.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from kyomei.evidence.check.calibration import (
    COVERAGE,
    Calibrator,
    least_explained,
    number_active,
    number_of_features,
    recaptured,
    shipped,
    statistics,
)
from kyomei.evidence.check.structure import Progress, Structure, search
from kyomei.evidence.intervals import as_percent, wilson
from kyomei.learning.refinement import PARTS
from kyomei.learning.undisturbed import undisturbed
from kyomei.source.rows import RowsLike

Status = Literal["met", "not met", "unknown"]
Verdict = Literal["met", "partly", "not met"]
IntervalOf = Literal["truth", "features"]
SHORT: dict[IntervalOf, str] = {"truth": "95 %", "features": "8 in 10"}

MIN_REPRODUCED = 5
"""Reproduced directions, of both halves together, below which nothing else is said."""
GOOD, POOR = 0.9, 0.5
"""Expected recovery from which the verdict is "met", and below which it is "not met"."""
EVEN_OCCURRENCE = 5.0
"""Frequent over rare occurrence, nine deciles apart."""
LOST_STARTS, FALLEN_STARTS = 0.2, 0.5
"""Share of random starts that end in a stable direction: below the first rows are too dense, from the second sparse."""
DIVIDED = 1.5
"""Variance along one axis of a feature's rows, over noise, from which the feature counts as several."""
TWICE_CHANCE = 2.0
UNBALANCED = 0.8
COHERENT = 1.25
"""Median cosine of nearest features over that of random directions."""
CHILDREN = 0.15
SIBLINGS = 1.0
"""Cosine of nearest features that all but a tenth exceed, over the median of random directions."""
RELATED = 1.15
"""Median cosine of nearest directions of the second opinion, over that of random directions."""
FAITHFUL = 0.9
"""Cosine with the true feature for which rows are counted."""


@dataclass(frozen=True)
class Premise:
    """One premise.

    Attributes:
        name: what is asked.
        status: "met", "not met", or "unknown" where the search says too little.
        estimate: the number that it rests on.
        interval: a lower and an upper value; none: nothing of the kind is known.
        interval_of: what the interval is. "truth": it held the true value in 95 % of the planted data of kinds that it was not
            fitted on; "features": eight features in ten lie within it.
        meaning: what the numbers say, for someone new to the subject.
        advice: what to do about it.
    """

    name: str
    status: Status
    estimate: float
    interval: tuple[float, float] | None
    interval_of: IntervalOf | None
    meaning: str
    advice: str

    @property
    def figures(self) -> str:
        """Estimate and interval in short."""
        if math.isnan(self.estimate):
            return "–"
        if self.interval is None or self.interval_of is None:
            return f"{self.estimate:.3g}"
        return "{:.3g} ({}: {:.3g}–{:.3g})".format(self.estimate, SHORT[self.interval_of], *self.interval)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; null where there was nothing to measure."""
        interval = None if self.interval is None else list(self.interval)
        return {**vars(self), "estimate": None if math.isnan(self.estimate) else self.estimate, "interval": interval}


@dataclass(frozen=True, repr=False)
class Premises:
    """What `check` found.

    Attributes:
        verdict: "met", "partly" or "not met", for all premises together.
        expected_frr: share of the true features expected within cosine 0.9 of a direction that this check's search found; none:
            unknown, because the data lie outside what the calibration was fitted on or have no sparse structure.
        interval: of the expected share, from planted data of kinds that the calibration had not seen.
        table: the premises.
        statistics: the numbers that all of it rests on.
    """

    verdict: Verdict
    expected_frr: float | None
    interval: tuple[float, float] | None
    table: tuple[Premise, ...]
    statistics: dict[str, Any]

    def __getitem__(self, name: str) -> Premise:
        """The premise of that name."""
        return {premise.name: premise for premise in self.table}[name]

    @property
    def expected(self) -> str:
        """The expected recovery in words."""
        if self.expected_frr is None or self.interval is None:
            return f"unknown ({self.statistics['why_unknown']})"
        low, high = self.interval
        return f"{self.expected_frr:.2f} ({as_percent(COVERAGE)}: {low:.2f}–{high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verdict": self.verdict,
            "expected_frr": self.expected_frr,
            "interval": None if self.interval is None else list(self.interval),
            "premises": [premise.to_dict() for premise in self.table],
            "statistics": self.statistics,
        }

    def __str__(self) -> str:
        lines = [f"Premises: {self.verdict}. Expected share of features recovered (cosine 0.9): {self.expected}."]
        width = max(len(premise.name) for premise in self.table)
        for p in self.table:
            lines.append(f"  {p.name:<{width}}  {p.status:<7}  {p.figures:<30} {p.meaning}")
            if p.status != "met":
                lines.append(f"  {'':<{width}}  → {p.advice}")
        return "\n".join(lines)

    __repr__ = __str__


@undisturbed
def check(
    x: RowsLike,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Premises:
    """Say whether recovery theory applies to activations, and what share of their features a search would find.

    Two disjoint halves of the rows are searched quickly, and so are two Gaussian surrogates of the same covariance.

    Args:
        x: activations [rows, dim], in whatever `open_rows` takes; at least 2,000 rows and 5 a dimension.
        seed: of every random draw.
        device: where the search runs.
        progress: called with (steps done, steps in all).

    Raises:
        DataError: too few rows, non-finite values.

    Source: arXiv:2506.14002, §3 and §6 (premises); the calibration is ours.
    """
    return judge(search(x, seed=seed, device=device, progress=progress).structure, shipped())


def judge(structure: Structure, calibrator: Calibrator) -> Premises:
    """The premises and the verdict from what a search measured."""
    structured = _sparse_structure(structure)
    values = statistics(structure)
    figures: dict[str, Any] = {**structure.to_dict(), "calibrated_on": values}
    expected = calibrator.expected(structure) if structured.status == "met" else None
    number = active = None
    if expected is not None:
        number = _whole(calibrator.number.interval(number_of_features(structure), expected.value))
        active = _whole(calibrator.active.interval(number_active(structure), least_explained(structure)))
    rest = (_occurrence, _co_occurrence, _balance, _incoherence, _hierarchy, _rows_needed)
    occurrence, *others = (premise(structure) for premise in rest)
    table = (structured, _number_of_features(structure, number), occurrence, _sparsity(structure, active), *others)
    if structured.status != "met":
        table = (structured, *(_without_structure(premise.name) for premise in table[1:]))
        figures["why_unknown"] = "no sparse structure was found"
    elif expected is None:
        figures["why_unknown"] = f"beyond the calibration in {', '.join(calibrator.outside(values))}"
    interval = None if expected is None else (expected.low, expected.high)
    value = None if expected is None else expected.value
    return Premises(_verdict(table, value), value, interval, table, figures)


def _verdict(table: tuple[Premise, ...], expected: float | None) -> Verdict:
    """From the calibrated recovery where it is known: a premise of the theory may fail and recovery succeed."""
    failed = [premise for premise in table if premise.status == "not met"]
    if table[0].status != "met" or (expected is not None and expected < POOR):
        return "not met"
    if (expected is not None and expected >= GOOD) or (expected is None and not failed):
        return "met"
    return "partly"


def _without_structure(name: str) -> Premise:
    meaning = "Nothing to measure it on: no sparse structure was found."
    return Premise(name, "unknown", math.nan, None, None, meaning, "see sparse structure")


def _premise(
    name: str,
    estimate: float,
    interval: tuple[float, float] | None,
    meaning: str,
    advice: str,
    *,
    of: IntervalOf = "features",
    met: bool,
    not_met: bool,
) -> Premise:
    """Advice is for a premise that is not met or unknown."""
    status: Status = "not met" if not_met else "met" if met else "unknown"
    kind = None if interval is None else of
    return Premise(name, status, estimate, interval, kind, meaning, "nothing to do" if status == "met" else advice)


def has_structure(s: Structure) -> bool:
    """Whether more directions are found again than on Gaussian surrogates run through the same search, and enough to go on."""
    low, _ = wilson(s.reproduced, sum(s.found))
    _, null_high = wilson(s.null_reproduced, max(1, round(s.null_reproduced * sum(s.candidates)) + 100))
    return s.num_reproduced >= MIN_REPRODUCED and s.features >= 2 and low > null_high


def _sparse_structure(s: Structure) -> Premise:
    met = has_structure(s)
    meaning = (
        f"{as_percent(s.reproduced)} of the {sum(s.found)} stable directions of two disjoint halves were found again by the "
        f"other half (cosine above {s.null_level:.2f}); on Gaussian rows of the same covariance "
        f"{as_percent(s.null_reproduced, 1)}."
    )
    advice = "do not read features off these rows: harvest more tokens, or try another layer or site"
    return _premise("sparse structure", s.reproduced, None, meaning, advice, met=met, not_met=not met)


def _number_of_features(s: Structure, bounds: tuple[float, float] | None) -> Premise:
    estimate = number_of_features(s)
    meaning = (
        f"About {estimate:.0f} features in {s.dim} dimensions, {estimate / s.dim:.1f} for each ({s.features} found by "
        f"both halves; {s.distinct - s.features} mixtures of features left out)" + _between(bounds)
    )
    # d > √n: light superposition, where the theory's band of frequencies is wide.
    low, high = bounds or (estimate, estimate)
    advice = "superposition is heavy: use a site with more dimensions"
    met, not_met = s.dim**2 > high, s.dim**2 < low
    return _premise("number of features", estimate, bounds, meaning, advice, of="truth", met=met, not_met=not_met)


def _whole(bounds: tuple[float, float]) -> tuple[float, float]:
    """Numbers of features are whole."""
    return float(math.floor(bounds[0])), float(math.ceil(bounds[1]))


def _between(bounds: tuple[float, float] | None) -> str:
    """The end of a sentence that says what the interval is."""
    if bounds is None:
        return "; how far off that may be is not known for rows like these."
    return f"; on planted rows like these there were {bounds[0]:.0f} to {bounds[1]:.0f} in 95 cases of 100."


def _occurrence(s: Structure) -> Premise:
    low, median, high = s.occurrence
    ratio = high / max(low, 1e-9)
    usual, rarest, commonest = (as_percent(share, 2) for share in (median, low, high))
    meaning = (
        f"Half of the features stand out in more than {usual} of the rows, eight in ten in {rarest} to {commonest}; weak "
        "occurrences are not counted."
    )
    advice = "expect rare features to be missed: harvest more tokens, and read the recovery as one of the frequent features"
    even = ratio <= EVEN_OCCURRENCE
    return _premise("occurrence spectrum", median, (low, high), meaning, advice, met=even, not_met=not even)


def _sparsity(s: Structure, bounds: tuple[float, float] | None) -> Premise:
    """A code stops at eight features, and weak ones are lost in it: what is not explained says how many more there may be."""
    estimate = number_active(s)
    counted = f"{estimate:.0f}" if estimate < PARTS else f"{PARTS} or more"
    explained, least = (as_percent(max(0.0, share)) for share in (s.explained.median, least_explained(s)))
    meaning = (
        f"{counted} features are seen in the usual row, in {s.dim} dimensions; sums of at most {PARTS} explain "
        f"{explained} of it, and no more than {least} in a tenth of the rows; "
        f"{as_percent(s.basin_share)} of random starts were drawn to a feature" + _between(bounds)
    )
    advice = (
        "rows are dense or noisy: try another layer, or a site before features are summed, such as an MLP's or a head's output"
    )
    met = s.basin_share >= FALLEN_STARTS and estimate < PARTS
    not_met = s.basin_share < LOST_STARTS
    return _premise("sparsity per row", estimate, bounds, meaning, advice, of="truth", met=met, not_met=not_met)


def _co_occurrence(s: Structure) -> Premise:
    """ρ₂ of H3, and what it does: one direction stands for several features that come together.

    Children come with their parent, so a hierarchy is co-occurrence.
    """
    low, median, high = s.partner
    together = median > TWICE_CHANCE * max(s.chance_partner, max(1, s.features) ** -0.5)
    divided = s.split.median > DIVIDED or _hierarchical(s)
    usual, least, most, chance = map(as_percent, (median, low, high, s.chance_partner))
    meaning = (
        f"Given a feature, its most frequent companion is there in {usual} of the rows ({least}–{most} for eight features in "
        f"ten; by chance {chance}); rows of one feature vary {s.split.median:.1f} times as much along one axis as noise would"
        + ("; children come with their parent, see hierarchy." if _hierarchical(s) else ".")
    )
    advice = "features that come together are found as one: read such directions as groups, and harvest more varied text"
    return _premise("co-occurrence", median, (low, high), meaning, advice, met=True, not_met=together or divided)


def _balance(s: Structure) -> Premise:
    low, median, high = s.balance
    usual, least, most = map(as_percent, (median, low, high))
    meaning = f"A feature's active scores vary by {usual} of their mean ({least}–{most} in eight features of ten)."
    advice = "weak occurrences will be missed: lower thresholds after training, and do not read absence from a zero"
    balanced = median <= UNBALANCED
    return _premise("balance", median, (low, high), meaning, advice, met=balanced, not_met=not balanced)


def _incoherence(s: Structure) -> Premise:
    low, median, high = s.coherence
    coherent = median > COHERENT * s.chance_coherence
    meaning = (
        f"A feature's nearest other one is at cosine {median:.2f} ({low:.2f}–{high:.2f} for eight features in ten); among as "
        f"many random directions at {s.chance_coherence:.2f}."
    )
    advice = "near features will be confused with one another: read them together, or use a site with more dimensions"
    return _premise("incoherence", median, (low, high), meaning, advice, met=not coherent, not_met=coherent)


def _hierarchical(s: Structure) -> bool:
    return s.child_share > CHILDREN or _siblings(s)


def _siblings(s: Structure) -> bool:
    """Whether features point partly the same way, by the search itself or by the second opinion."""
    second = s.second.geometry
    return s.coherence.low > SIBLINGS * s.chance_coherence or second.coherence.median > RELATED * second.chance_coherence > 0


def _hierarchy(s: Structure) -> Premise:
    siblings = _siblings(s)
    meaning = (
        f"{as_percent(s.child_share)} of the features nearly always come with another, more frequent one that often comes "
        "without them"
        + ("; most features point partly the same way as another, as children of one parent do." if siblings else ".")
    )
    advice = "a child is found together with its parent: read such directions as 'parent and child', not as one concept"
    return _premise("hierarchy", s.child_share, None, meaning, advice, met=True, not_met=_hierarchical(s))


def _rows_needed(s: Structure) -> Premise:
    """Two halves with independent errors of tan² = e agree at a cosine of 1/(1 + e), and e falls as 1/rows."""
    allowed = 1 / FAITHFUL**2 - 1
    most, usual = (s.sampled_rows * (1 / max(a, 1e-3) - 1) / allowed for a in (s.agreement.low, s.agreement.median))
    enough = most <= s.num_rows and recaptured(s) >= POOR
    meaning = (
        f"For nine in ten of the features that were found, about {most:,.0f} rows give a direction within cosine {FAITHFUL:g} "
        f"({usual:,.0f} for half of them); there are {s.num_rows:,}. Features that were not found need more."
    )
    advice = "harvest more tokens"
    return _premise("rows needed", most, None, meaning, advice, met=enough, not_met=not enough)
