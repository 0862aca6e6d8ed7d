"""The law of rows: which share of a dictionary's latents more rows would certify, and how many rows a wished share takes.

Two sources. `RowsLaw` is measured: the certified shares of dictionaries that differ only in how many rows each of their
replicas learnt from. `FiringsLaw` needs one certificate: a latent that fires more often is certified more often, and with m
times the rows every latent fires m times as often. That is a projection. It holds the latents fixed, while another training, on
more rows, learns others. How far that premise was off where it was measured (`PREMISE`) is part of its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats  # type: ignore[import-untyped, unused-ignore]
from scipy.optimize import brentq  # type: ignore[import-untyped, unused-ignore]
from scipy.special import expit, logit  # type: ignore[import-untyped, unused-ignore]

from kyomei.errors import EvidenceError
from kyomei.evidence.intervals import as_percent
from kyomei.evidence.reproduction import DENSE_FREQUENCY

COVERAGE = 0.9
"""Of every interval of this module."""
REACH = 10.0
"""How many times the most rows measured, and what part of the fewest, a law still speaks of: one step of a roll-out."""
SLACK = 1.01
"""By which rows may lie beyond: a stage's tokens are rounded, and part of its rows are left out."""
MIN_POINTS = 4
"""A line has two parameters; of three points one residual would be left to tell how far off it is."""
MIN_LATENTS = 10
"""Certified latents, and others, below which one certificate says too little of what firings do."""
EDGE = 1e-4
"""Keeps the log odds of a measured share finite."""
DRAWS = 200
"""Bootstrap samples of a certificate's latents."""
PREMISE = 0.35
"""Log odds of the share, one standard deviation for each doubling of the rows, by which other trainings came out otherwise:
root mean squares over fifteen projections each were 0.26, 0.35 and 0.50 at three series, and with this one 93 % of their
intervals hold (docs/results.md, "The law of rows")."""
RIDGE = 0.01
"""On the standardised slope: keeps it finite where a number of firings parts the certified latents from all others."""
STEPS = 33
"""Numbers of rows, evenly in their logarithm, between which an end of an interval is looked for."""
NEWTON_STEPS, LONGEST = 50, 2.0
"""Of the logistic regression, and how far one of them may go."""


@dataclass(frozen=True)
class Foretold:
    """A figure before it is measured, with its interval at 90 %; an end that is none lies beyond what the law speaks of."""

    estimate: float
    low: float | None
    high: float | None

    def holds(self, found: float) -> bool:
        """Whether what was found lies in the interval."""
        return (self.low is None or self.low <= found) and (self.high is None or found <= self.high)

    def times(self, factor: float) -> Foretold:
        """The same in another unit."""
        low, high = (end if end is None else factor * end for end in (self.low, self.high))
        return Foretold(factor * self.estimate, low, high)


@dataclass(frozen=True)
class RowsLaw:
    """logit(share) = middle + slope · (place − centre), by least squares; intervals by the residuals and Student's t.

    A number of rows has its place at −least/rows: as many more rows help the less the more there are, and some latents no rows
    would certify. A line in the logarithm of the rows knows no such ceiling, and foretells too much (docs/results.md, "The law
    of rows").

    Attributes:
        middle: log odds at the centre.
        slope: of the log odds, from the fewest rows measured to any number of them; positive.
        centre: mean of the places.
        spread: sum of the squares of the places about it.
        residual: standard deviation about the line, with two degrees of freedom less than there are points.
        points: how many were measured.
        least, most: the fewest rows measured, and the most.
    """

    middle: float
    slope: float
    centre: float
    spread: float
    residual: float
    points: int
    least: float
    most: float

    @classmethod
    def fit(cls, rows: Sequence[float], share: Sequence[float]) -> RowsLaw:
        """The line through measured shares.

        Args:
            rows: of one replica, for every measurement.
            share: of all latents those that are certified, in [0, 1].

        Raises:
            EvidenceError: fewer than four numbers of rows, or the share does not grow with them.
        """
        if len(set(rows)) < MIN_POINTS:
            expected = f"certified shares at {MIN_POINTS} or more numbers of rows"
            raise EvidenceError(expected, str(len(set(rows))), "measure at more, fewer rows among them")
        x, y = -min(rows) / np.asarray(rows, dtype=float), logit(np.clip(share, EDGE, 1 - EDGE))
        line = stats.linregress(x, y)
        if line.slope <= 0:
            fewest, most = (as_percent(share[int(place)], 1) for place in (x.argmin(), x.argmax()))
            found = f"one that does not: {fewest} with the fewest rows, {most} with the most"
            do = "measure over a wider range of rows; rows alone may not help here"
            raise EvidenceError("a certified share that grows with the rows", found, do)
        centre = float(x.mean())
        residual = math.sqrt(float(np.sum((y - y.mean() - line.slope * (x - centre)) ** 2)) / (len(x) - 2))
        ends = float(min(rows)), float(max(rows))
        return cls(float(y.mean()), float(line.slope), centre, float(np.sum((x - centre) ** 2)), residual, len(x), *ends)

    def share(self, rows: float) -> Foretold:
        """The certified share of one more dictionary, of so many rows a replica.

        Raises:
            EvidenceError: they are further from the rows measured than the law reaches.
        """
        _within(rows, self.least, self.most)
        away = -self.least / rows - self.centre
        middle = self.middle + self.slope * away
        reach = self._reach * math.sqrt(1 + 1 / self.points + away**2 / self.spread)
        return Foretold(*(float(expit(value)) for value in (middle, middle - reach, middle + reach)))

    def rows_for(self, share: float) -> Foretold:
        """The rows a replica that a wished share takes: where the line, and either end of its interval, comes to it.

        Args:
            share: in (0, 1).

        Raises:
            EvidenceError: the line comes to it further from the rows measured than the law reaches.
        """
        _is_share(share)
        least, most = self.least / REACH, self.most * REACH
        wished = float(logit(share)) - self.middle
        rows = self._rows_at(self.centre + wished / self.slope)
        if not least <= rows <= most:
            raise _out_of_reach(share, self.share(least).estimate, self.share(most).estimate, least, most)
        # (slope·u − wished)² = reach²·(1 + 1/points + u²/spread): the interval's ends pass the wish at both roots.
        square, squared_reach = self.slope**2 - self._reach**2 / self.spread, self._reach**2 * (1 + 1 / self.points)
        if square <= 0:
            return Foretold(rows, None, None)
        root = math.sqrt(self._reach**2 / self.spread * wished**2 + squared_reach * square)
        low, high = (self._rows_at(self.centre + (self.slope * wished + sign * root) / square) for sign in (-1, 1))
        return Foretold(rows, low if low >= least else None, high if high <= most else None)

    def _rows_at(self, place: float) -> float:
        """Without end, where no number of rows has this place."""
        return -self.least / place if place < 0 else math.inf

    @property
    def _reach(self) -> float:
        """Half the width of the interval in log odds, if the line itself were known."""
        return float(stats.t.ppf((1 + COVERAGE) / 2, self.points - 2)) * self.residual


@dataclass(frozen=True, eq=False)
class FiringsLaw:
    """p(certified) = expit(at_one + slope · log(firings)) of the latents of one certificate, and its bootstrap samples.

    Latents that are active on more than a tenth of the rows are asked something else by the certificate, and dead ones nothing:
    both stay what they are.

    Attributes:
        at_one: log odds of a latent with one firing in a replica's rows.
        slope: of the log odds, for a factor of e in firings; positive.
        rows: of one replica.
        width: latents that the certificate is about, all of them.
        found: certified share of them.
        firings: that latents have, each number once [numbers].
        latents: how many have it [1 + draws, numbers]; the first row is what was found.
        settled: dense latents that are certified [1 + draws].
        lines: at_one and slope [1 + draws, 2].
        luck: standard normal, of each sample [1 + draws]; 0 for the first: by how much another training comes out otherwise.
        premise: the same, for what a training on other rows learns.
    """

    at_one: float
    slope: float
    rows: float
    width: int
    found: float
    firings: Float64[np.ndarray, " numbers"]
    latents: Float64[np.ndarray, "draws numbers"]
    settled: Float64[np.ndarray, " draws"]
    lines: Float64[np.ndarray, "draws 2"]
    luck: Float64[np.ndarray, " draws"]
    premise: Float64[np.ndarray, " draws"]

    @classmethod
    def fit(
        cls, frequency: Float64[np.ndarray, " width"], certified: Bool[np.ndarray, " width"], rows: float, seed: int = 0
    ) -> FiringsLaw:
        """The law of one certificate.

        Args:
            frequency: share of the evidence rows in which each latent is active [width].
            certified: whether it is [width].
            rows: that one replica learnt from.
            seed: of the bootstrap.

        Raises:
            EvidenceError: fewer than ten certified latents, or others; or those that fire more are not certified more often.
        """
        dense, dead = frequency > DENSE_FREQUENCY, frequency <= 0
        usual = ~dense & ~dead
        has, has_not = int((usual & certified).sum()), int((usual & ~certified).sum())
        if min(has, has_not) < MIN_LATENTS:
            expected = f"at least {MIN_LATENTS} certified latents and as many others, dense and dead ones apart"
            raise EvidenceError(expected, f"{has} certified and {has_not} not", "take a run whose certificate has both")
        firings, number = np.unique(frequency[usual] * rows, return_inverse=True)
        cells = [np.bincount(number[certified[usual] == kind], minlength=len(firings)) for kind in (True, False)]
        settled = int((dense & certified).sum())
        rest = len(frequency) - settled - int(usual.sum())
        found = np.array([*np.concatenate(cells), settled, rest])
        generator = np.random.default_rng(seed)
        drawn = np.vstack([found, generator.multinomial(len(frequency), found / len(frequency), DRAWS)]).astype(np.float64)
        passed, failed = drawn[:, : len(firings)], drawn[:, len(firings) : -2]
        lines = _logistic(np.log(firings), passed + failed, passed)
        at_one, slope = map(float, lines[0])
        if slope <= 0:
            expected, none = "latents that are certified more often the more they fire", "some that are certified no more often"
            raise EvidenceError(expected, none, "rows alone may not help here: see what the premises say")
        luck, premise = (np.concatenate([[0.0], generator.standard_normal(DRAWS)]) for _ in range(2))
        share = float(certified.mean())
        return cls(at_one, slope, rows, len(frequency), share, firings, passed + failed, drawn[:, -2], lines, luck, premise)

    @classmethod
    def of(cls, certificate: Mapping[str, Any], rows: float, seed: int = 0) -> FiringsLaw:
        """The law of what certificate.json holds; arguments and errors as of `fit`."""
        features = certificate["features"]
        frequency = np.array([feature["frequency"] for feature in features], dtype=np.float64)
        certified = np.array([feature["status"] == "certified" for feature in features], dtype=bool)
        return cls.fit(frequency, certified, rows, seed)

    @property
    def even(self) -> float:
        """Firings in a replica's rows at which as many latents are certified as not."""
        return math.exp(-self.at_one / self.slope)

    def share(self, rows: float) -> Foretold:
        """The certified share of a dictionary with these latents, of so many rows a replica.

        Raises:
            EvidenceError: they are further from this certificate's than the law reaches.
        """
        _within(rows, self.rows, self.rows)
        shares = self._shares(rows)
        low, high = np.quantile(shares[1:], [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return Foretold(float(shares[0]), float(low), float(high))

    def rows_for(self, share: float) -> Foretold:
        """The rows a replica that a wished share takes: where the projection, and either end of its interval, comes to it.

        Args:
            share: in (0, 1).

        Raises:
            EvidenceError: the projection comes to it further from this certificate's rows than the law reaches.
        """
        _is_share(share)
        least, most = self.rows / REACH, self.rows * REACH

        def first(end: Callable[[Foretold], float | None], start: float, to: float) -> float | None:
            """Where an end of the projection first comes to the share, on the way between two numbers of rows."""

            def short(log_rows: float) -> float:
                return float(end(self.share(math.exp(log_rows))) or 0.0) - share

            # An interval widens both ways from this certificate's rows, so its ends may come to a share twice.
            places = np.linspace(math.log(start), math.log(to), STEPS)
            known = map(short, places)
            for (near, before), (far, after) in pairwise(zip(places, known, strict=True)):
                if before * after <= 0:
                    return math.exp(brentq(short, near, far, xtol=1e-6))
            return None

        middle = first(lambda told: told.estimate, least, most)
        if middle is None:
            raise _out_of_reach(share, self.share(least).estimate, self.share(most).estimate, least, most)
        ends = first(lambda told: told.high, middle, least), first(lambda told: told.low, middle, most)
        return Foretold(middle, *ends)

    def _shares(self, rows: float) -> Float64[np.ndarray, " draws"]:
        """The projected share of what was found, then of each sample as another training would find it."""
        odds = self.lines[:, :1] + self.lines[:, 1:] * np.log(self.firings * (rows / self.rows))
        p = expit(odds)
        expected = self.settled + (self.latents * p).sum(1)
        deviation = np.sqrt((self.latents * p * (1 - p)).sum(1))
        projected = np.clip((expected + self.luck * deviation) / self.width, 0, 1)
        # Log odds of a share of 0 or 1 have no end, and stay.
        shares: np.ndarray = expit(logit(projected) + PREMISE * abs(math.log2(rows / self.rows)) * self.premise)
        return shares


def _logistic(
    x: Float64[np.ndarray, " numbers"],
    latents: Float64[np.ndarray, "draws numbers"],
    passed: Float64[np.ndarray, "draws numbers"],
) -> Float64[np.ndarray, "draws 2"]:
    """Intercept and slope by maximum likelihood, by Newton's steps for every draw at once."""
    weight = latents[0] / latents[0].sum()
    centre = float(weight @ x)
    scale = math.sqrt(float(weight @ (x - centre) ** 2)) or 1.0
    z = (x - centre) / scale
    share = (passed.sum(1) + 0.5) / (latents.sum(1) + 1)
    line = np.stack([logit(share), np.zeros(len(share))], axis=1)
    for _ in range(NEWTON_STEPS):
        p = expit(line[:, :1] + line[:, 1:] * z)
        off, bend = passed - latents * p, latents * p * (1 - p)
        gradient = np.stack([off.sum(1), off @ z - RIDGE * line[:, 1]], axis=1)
        a, b, c = bend.sum(1) + 1e-12, bend @ z, bend @ z**2 + RIDGE
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step = np.clip(step / (a * c - b * b)[:, None], -LONGEST, LONGEST)
        line = line + step
        if np.abs(step).max() < 1e-9:
            break
    slope = line[:, 1] / scale
    return np.stack([line[:, 0] - slope * centre, slope], axis=1)


def _within(rows: float, least: float, most: float) -> None:
    """Raise EvidenceError for rows that a law of rows in some range does not reach."""
    low, high = least / REACH, most * REACH
    if not low / SLACK <= rows <= high * SLACK:
        do = "measure nearer to them: a law this far from its measurements is a guess"
        raise EvidenceError(f"from {low:,.0f} to {high:,.0f} rows a replica, which the law reaches", f"{rows:,.0f}", do)


def _is_share(share: float) -> None:
    if not 0 < share < 1:
        raise EvidenceError("a certified share between 0 and 1", f"{share:g}", "give it as a fraction, such as 0.7")


def _out_of_reach(share: float, low: float, high: float, least: float, most: float) -> EvidenceError:
    reached = f"a certified share from {as_percent(low, 1)} to {as_percent(high, 1)}, which the law reaches"
    where = f"with {least:,.0f} to {most:,.0f} rows a replica"
    do = "wish for a share in between, or measure nearer to it: a law this far from its measurements is a guess"
    return EvidenceError(f"{reached} {where}", as_percent(share, 1), do)
