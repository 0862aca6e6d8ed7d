"""All figures. A report's: positions are computed here, colours come from the page. An experiment's: files of their own."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kyomei.extras import require
from kyomei.views.numbers import finite, quantile
from kyomei.views.speech import ENGLISH, Speech
from kyomei.views.words import STATUSES, dictionary_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FrontierPoint:
    """One dictionary in the plane of sparsity and loss; points of one label are joined.

    Attributes:
        label: the mechanism.
        l0: mean number of active latents in a row.
        fvu: fraction of variance unexplained.
        name: of the dictionary; empty: the label.
        certified: share of the width that is certified; none: there is no certificate.
    """

    label: str
    l0: float
    fvu: float
    name: str = ""
    certified: float | None = None


WIDTH, HEIGHT = 380.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 20.0, 40.0
SERIES = 6
"""Colours (and marker shapes) there are; further series share them."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A bar of the real data or of the null."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Series:
    """Dots of one label, joined in order."""

    label: str
    colour: int
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart in pixels of a 380 × 240 box."""

    name: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    mark: Tick | None = None
    note: str = ""


@dataclass(frozen=True)
class _Axis:
    """Data to pixels along one axis."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 2)


def _across(low: float, high: float) -> _Axis:
    return _Axis(low, high, LEFT, WIDTH - RIGHT)


def _up(high: float) -> _Axis:
    return _Axis(0.0, high, HEIGHT - BOTTOM, TOP)


def frontier_chart(points: Sequence[FrontierPoint], speech: Speech = ENGLISH) -> Chart | None:
    """L0 (logarithmic) against FVU; none without a point that has both."""
    return _against_l0("chart.frontier", "chart.fvu", [(p, p.fvu) for p in points], speech)


def certified_chart(points: Sequence[FrontierPoint], speech: Speech = ENGLISH) -> Chart | None:
    """L0 (logarithmic) against the certified share of the width; none without a point that has both."""
    certified = [(p, p.certified) for p in points if p.certified is not None]
    return _against_l0("chart.trust", "chart.certified", certified, speech)


def _against_l0(name: str, what: str, points: Sequence[tuple[FrontierPoint, float]], speech: Speech) -> Chart | None:
    points = [(p, y) for p, y in points if finite(p.l0) and finite(y) and p.l0 > 0 and y >= 0]
    if not points:
        return None
    logs = [math.log10(p.l0) for p, _ in points]
    across = _across(min(logs) - 0.12, max(logs) + 0.12)
    ticks = _linear_ticks(1.08 * max(y for _, y in points) or 1.0)
    up = _up(ticks[-1])
    series = []
    for number, label in enumerate(dict.fromkeys(p.label for p, _ in points)):
        own = sorted(((p, y) for p, y in points if p.label == label), key=lambda point: point[0].l0)
        dots = [(across(math.log10(p.l0)), up(y), _point_words(p, what, y, speech)) for p, y in own]
        series.append(Series(label, number % SERIES, dots))
    return Chart(
        speech.t(name),
        "; ".join(title for one in series for *_, title in one.dots),
        speech.t("chart.l0"),
        speech.t(what),
        _log_ticks(across, speech),
        [Tick(up(t), speech.number(t)) for t in ticks],
        series=series,
    )


def _point_words(point: FrontierPoint, what: str, y: float, speech: Speech) -> str:
    name, l0 = point.name or point.label, speech.number(point.l0)
    return speech.t("chart.point", name=name, l0=l0, what=speech.t(what), value=speech.number(y))


def comparison_points(rows: Sequence[Mapping[str, Any]]) -> list[FrontierPoint]:
    """Points of a comparison: a series for each mechanism, and for each site and width where those differ."""
    shown = [row for row in rows if finite(row.get("l0")) and finite(row.get("fvu"))]
    several = [key for key in ("site", "width") if len({row.get(key) for row in shown}) > 1]
    points = []
    for row in shown:
        words = [row["mechanism"], *(f"width {row[key]}" if key == "width" else str(row[key]) for key in several)]
        points.append(FrontierPoint(", ".join(words), row["l0"], row["fvu"], row["run"], row.get("certified")))
    return points


def frontier_figure(points: Sequence[FrontierPoint]) -> bytes:
    """The same chart as an SVG file of its own; without a point it says so."""

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        axes = figure.subplots()
        axes.set_xlabel("L0, active latents in a row")
        axes.set_ylabel("FVU")
        if not points:
            axes.text(0.5, 0.5, "nothing measured yet", ha="center", transform=axes.transAxes)
            return
        for number, label in enumerate(dict.fromkeys(p.label for p in points)):
            own = sorted((p.l0, p.fvu) for p in points if p.label == label)
            axes.plot(*zip(*own, strict=True), marker="os^Dv<>"[number % 7], label=label, clip_on=False)
        axes.set_xscale("log")
        axes.set_xlim(min(p.l0 for p in points) / 1.4, max(p.l0 for p in points) * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylim(0, 1.08 * max(p.fvu for p in points))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return drawn(draw)


def spectrum_chart(frequencies: Sequence[float], speech: Speech = ENGLISH) -> Chart | None:
    """How many features occur how often (logarithmic); none if no frequency is above zero."""
    alive = [f for f in frequencies if finite(f) and f > 0]
    if not alive:
        return None
    per_decade = 5
    counts = Counter(math.floor(per_decade * math.log10(min(f, 1.0)) + 1e-9) for f in alive)
    low, high = min(counts), max(counts) + 1
    if high - low < per_decade:
        low, high = low - 2, high + 2
    across, ticks = _across(low / per_decade, high / per_decade), _linear_ticks(max(counts.values()), whole=True)
    up, number, t = _up(ticks[-1]), speech.number, speech.t
    bars = []
    for place in sorted(counts):
        left, right, top = across(place / per_decade), across((place + 1) / per_decade), up(counts[place])
        interval = t("chart.between", low=number(10 ** (place / per_decade)), high=number(10 ** ((place + 1) / per_decade)))
        title = t("chart.occurrence.bar", count=counts[place], interval=interval)
        bars.append(Bar(left + 0.75, top, right - left - 1.5, round(up(0) - top, 2), "real", title))
    dead = sum(1 for f in frequencies if finite(f) and f <= 0)
    return Chart(
        t("chart.occurrence"),
        t("chart.occurrence.summary", count=number(len(alive)), median=number(quantile(alive, 0.5))),
        t("chart.occurrence.x"),
        t("chart.occurrence.y"),
        _log_ticks(across, speech),
        [Tick(up(tick), number(tick)) for tick in ticks],
        bars,
        note=t("chart.occurrence.silent", dead=number(dead), all=number(len(frequencies))) if dead else "",
    )


def consistency_chart(mcs: Sequence[float], null_mcs: Sequence[float], speech: Speech = ENGLISH) -> Chart | None:
    """Largest cosines of real directions over the null's; none if either is missing, since one says nothing alone."""
    samples = {"null": [c for c in null_mcs if finite(c)], "real": [c for c in mcs if finite(c)]}
    if not all(samples.values()):
        return None
    bins_per_unit = 20
    shares: dict[str, dict[int, float]] = {}
    for kind, cosines in samples.items():
        counts = Counter(min(bins_per_unit - 1, math.floor(bins_per_unit * c + 1e-9)) for c in cosines)
        shares[kind] = {place: count / len(cosines) for place, count in counts.items()}
    low = min(0, *(min(share) for share in shares.values())) / bins_per_unit
    across, ticks = _across(low, 1.0), _linear_ticks(max(max(share.values()) for share in shares.values()))
    up, number, t = _up(ticks[-1]), speech.number, speech.t
    bars = []
    for kind, share in shares.items():
        for place in sorted(share):
            left, right, top = across(place / bins_per_unit), across((place + 1) / bins_per_unit), up(share[place])
            ends = {"low": f"{place / bins_per_unit:.2f}", "high": f"{(place + 1) / bins_per_unit:.2f}"}
            title = t("chart.consistency.bar", kind=t(f"chart.kind.{kind}"), share=number(share[place]), **ends)
            bars.append(Bar(left + 0.5, top, round(right - left - 1, 2), round(up(0) - top, 2), kind, title))
    percentile, median = quantile(samples["null"], 0.99), quantile(samples["real"], 0.5)
    assert percentile is not None
    first = math.ceil(low * 5 - 1e-9)
    return Chart(
        t("chart.consistency"),
        t("chart.consistency.summary", median=number(median), percentile=number(percentile)),
        t("chart.consistency.x"),
        t("chart.consistency.y"),
        [Tick(across(fifth / 5), f"{fifth / 5:g}") for fifth in range(first, 6)],
        [Tick(up(tick), number(tick)) for tick in ticks],
        bars,
        mark=Tick(across(percentile), t("chart.consistency.mark", value=f"{percentile:.2f}")),
    )


def _linear_ticks(high: float, whole: bool = False) -> list[float]:
    """About four round numbers from 0 to at least `high`."""
    rough = high / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    return [round(step * i, 12) for i in range(math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(axis: _Axis, speech: Speech) -> list[Tick]:
    """Powers of ten on an axis of logarithms, and 2s and 5s between them where there is room."""
    decades = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    span = axis.high - axis.low
    factors = (
        (1,)
        if span > 2.2
        else (1, 3)
        if span > 1.2
        else (1, 2, 3, 5)
        if span > 0.65
        else (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    )
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [Tick(axis(math.log10(v)), speech.number(v)) for v in values if axis.low <= math.log10(v) <= axis.high]


@dataclass(frozen=True)
class StatusBar:
    """All of one dictionary in one bar, shared out by status.

    Attributes:
        label: the dictionary, and what is shared out.
        parts: (status, share, title); shares add up to one at most.
        summary: for whoever does not see it.
    """

    label: str
    parts: list[tuple[str, float, str]]
    summary: str


def status_bars(certificates: Mapping[str, Mapping[str, Any]], speech: Speech = ENGLISH) -> list[StatusBar]:
    """Two bars for each dictionary, its latents and its explained variance by status, and under them the null of the first.

    Args:
        certificates: by the dictionary's name, as `Certificate.to_dict` gives them.
        speech: the language.
    """
    bars = []
    for name, certificate in certificates.items():
        for by, what in (("count", "bar.latents"), ("explained variance", "bar.explained")):
            label = speech.t(what, name=dictionary_title(name, speech))
            bars.append(_status_bar(label, certificate["shares"][by]["status"], speech))
    for certificate in list(certificates.values())[:1]:
        null = certificate["null"]
        label = speech.t("bar.null", name=speech.said(null["name"]))
        bars.append(_status_bar(label, {"certified": null["false_positive_rate"]}, speech))
    return bars


def _status_bar(label: str, shares: Mapping[str, float], speech: Speech) -> StatusBar:
    known = {status: share for status in STATUSES if finite(share := shares.get(status, 0.0)) and share > 0}
    parts = [
        (
            status,
            round(min(1.0, share), 5),
            speech.t("bar.part", status=speech.named("status", status), share=speech.percent(share)),
        )
        for status, share in known.items()
    ]
    return StatusBar(label, parts, "; ".join(title for *_, title in parts) or speech.t("bar.nothing"))


_DRAWING: Any = {"svg.hashsalt": "kyomei", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def drawn(draw: Callable[[Figure], None]) -> bytes:
    """An SVG file of what matplotlib draws; the same drawing gives the same bytes."""
    require("figures")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_DRAWING):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
