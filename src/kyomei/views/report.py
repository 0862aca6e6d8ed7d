"""The report: one HTML file that needs nothing else. A verdict opens it, and every figure stands beside its null."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kyomei.views.changes import Change
from kyomei.views.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    FrontierPoint,
    certified_chart,
    comparison_points,
    consistency_chart,
    frontier_chart,
    spectrum_chart,
    status_bars,
)
from kyomei.views.decisions import headline, stances
from kyomei.views.findings import EvidenceRow, certificate_lines, expected_recovery, premise_interval
from kyomei.views.goals import goal_lines
from kyomei.views.numbers import finite, quantile
from kyomei.views.speech import Speech
from kyomei.views.steps import rollout_steps
from kyomei.views.summary import Summary, Tile
from kyomei.views.tables import compare_table
from kyomei.views.watch import watched_streams
from kyomei.views.words import STATUSES, dictionary_title


@dataclass(frozen=True)
class FeatureCard:
    """One feature with what may be said of it and the text that it fires on.

    Attributes:
        index: the latent's number.
        mcs: largest cosine with a direction of another replica.
        frequency: share of rows where it is active.
        max_activation: largest activation, in the input's units.
        z_score: (max − mean) / std.
        top_tokens: the tokens it fires on most.
        contexts: stretches of text, each a sequence of (token, activation).
        status: by the certificate; "not certified" without one.
        why: it has that status, in a sentence.
        origin: the kind; empty without a certificate.
        origin_words: what that means, with its figures.
        token_shares: tokens, each with its share of the feature's whole activation.
    """

    index: int
    mcs: float | None = None
    frequency: float | None = None
    max_activation: float | None = None
    z_score: float | None = None
    top_tokens: Sequence[str] = ()
    contexts: Sequence[Sequence[tuple[str, float]]] = ()
    status: str = "not certified"
    why: str = ""
    origin: str = ""
    origin_words: str = ""
    token_shares: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from.

    Attributes:
        seed: of the run.
        versions: package → version.
        command: that made the run.
        model: language model.
        site: module path.
        text: the corpus.
        weights: SHA-256 of the model's weights.
        corpus: SHA-256 of the text.
        model_licence, text_licence: as they were stated.
    """

    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    model: str = ""
    site: str = ""
    text: str = ""
    weights: str = ""
    corpus: str = ""
    model_licence: str = ""
    text_licence: str = ""


@dataclass(frozen=True)
class ReportData:
    """All that a report shows, as plain values; of whatever is empty the page says that it is, and what to run.

    Attributes:
        title: of the page.
        folder: of the run, for the commands that are named.
        verdict: level, headline, reasons and whose they are, as `Verdict.to_dict` gives them.
        sentences: what was measured, in three sentences.
        certificates: by the dictionary's name, what the page is about first, as `Certificate.to_dict` gives them, with or
            without features.
        certificate_notes: sentences under the certificates.
        premises: as `Premises.to_dict` gives them.
        evidence: rows of the evidence table.
        missing: sentences on what was not measured.
        frontier: dictionaries by L0 and FVU.
        frequencies: estimated occurrence of each feature, 0 for dead ones.
        mcs: each direction's largest cosine with another replica.
        null_mcs: the same on the null; without it `mcs` is not drawn.
        null_name: what the null is.
        features: cards, best first.
        provenance: of the run.
        other_answers: sentences on the run's other dictionaries.
        language: that all of it is said in; what the run's files say is translated as it is shown.
        date: when the figures were first reported, as ISO 8601 writes it; empty: not said.
        summary: the first page.
        decision: what verdict.json holds.
        changes: since the report before; empty: this is the first.
        before: when that was.
        goals: by name, as goals.json has them.
        costs, planned: what, and how much of it.
        rollout: lines of rollout.jsonl.
        watched: "name" and "status" of every stream that is watched.
        sampling, risks, untested: sentences.
    """

    title: str
    folder: str = "RUN"
    verdict: Mapping[str, Any] | None = None
    sentences: Sequence[str] = ()
    certificates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    certificate_notes: Sequence[str] = ()
    premises: Mapping[str, Any] | None = None
    evidence: Sequence[EvidenceRow] = ()
    missing: Sequence[str] = ()
    frontier: Sequence[FrontierPoint] = ()
    frequencies: Sequence[float] = ()
    mcs: Sequence[float] = ()
    null_mcs: Sequence[float] = ()
    null_name: str = "Gaussian surrogate"
    features: Sequence[FeatureCard] = ()
    provenance: Provenance = Provenance()
    other_answers: Sequence[str] = ()
    language: str = "en"
    date: str = ""
    summary: Summary | None = None
    decision: Mapping[str, Any] | None = None
    changes: Sequence[Change] = ()
    before: str = ""
    goals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    costs: Sequence[tuple[str, str]] = ()
    planned: Sequence[tuple[str, str]] = ()
    rollout: Sequence[Mapping[str, Any]] = ()
    watched: Sequence[Mapping[str, Any]] = ()
    sampling: Sequence[str] = ()
    risks: Sequence[str] = ()
    untested: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReportData:
        """The report that `to_dict` wrote down, for instance read back from JSON."""
        return cls(
            **{
                **values,
                "evidence": [EvidenceRow(**row) for row in values.get("evidence", ())],
                "frontier": [FrontierPoint(**point) for point in values.get("frontier", ())],
                "features": [FeatureCard(**card) for card in values.get("features", ())],
                "provenance": Provenance(**values.get("provenance", {})),
                "summary": _summary_from(values.get("summary")),
                "changes": [Change(**change) for change in values.get("changes", ())],
            }
        )


def render_report(data: ReportData) -> str:
    """The report as one self-contained HTML page.

    Text from the data is escaped; of whatever is empty, missing or not finite the page says so instead of failing.

    Args:
        data: what to show.

    Returns:
        HTML that can be written as UTF-8; it loads nothing, and runs no script.
    """
    speech = Speech(data.language)
    decision = data.decision
    decided = decision and {"headline": headline(decision, speech.language), "reasons": stances(decision, speech)}
    page = (
        _environment(data.language)
        .get_template("report.html.j2")
        .render(
            data=data,
            decision=decided,
            goals=goal_lines(data.goals, speech),
            rollout=rollout_steps(data.rollout, speech),
            watched=watched_streams(data.watched, speech),
            groups=certificate_lines(data.certificates, speech),
            bars=status_bars(data.certificates, speech),
            frontier=frontier_chart(data.frontier, speech),
            spectrum=spectrum_chart(data.frequencies, speech),
            histogram=consistency_chart(data.mcs, data.null_mcs, speech),
            null_99th=quantile(data.null_mcs, 0.99),
        )
    )
    # Text read with surrogateescape holds code points that UTF-8 cannot.
    return _unbroken(page).encode("utf-8", "replace").decode("utf-8")


_EXCERPTS = re.compile(r'(<ol class="contexts">.*?</ol>|<ul class="tokens">.*?</ul>)', re.DOTALL)


def _unbroken(page: str) -> str:
    """A page in which no line ends between a number and its percent sign; excerpts of text stay as they are."""
    parts = _EXCERPTS.split(page)
    return "".join(part if number % 2 else re.sub(r"(?<=\d) %", "\u00a0%", part) for number, part in enumerate(parts))


def _summary_from(values: Mapping[str, Any] | None) -> Summary | None:
    return None if values is None else Summary(**{**values, "tiles": [Tile(**tile) for tile in values["tiles"]]})


def render_comparison(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str], links: Mapping[str, str]) -> str:
    """Dictionaries side by side as one self-contained HTML page: a table that links their pages, and the frontier.

    Args:
        title: of the page.
        rows: as a comparison has them.
        notes: sentences under the table.
        links: addresses of pages by the run's name.
    """
    table, points = compare_table(rows, title), comparison_points(rows)
    drawn = [
        (frontier_chart(points), "Fraction of variance unexplained (FVU). Lower and further left is better."),
        (certified_chart(points), "Share of the latents that every other replica has too. Higher and further left is better."),
    ]
    figures = [(figure, meaning) for figure, meaning in drawn if figure is not None]
    template = _environment("en").get_template("comparison.html.j2")
    page = template.render(title=table.title, table=table, rows=rows, notes=notes, links=links, figures=figures)
    return page.encode("utf-8", "replace").decode("utf-8")


# ── Text ──

# Invisible in print, or able to reorder what is around them: controls, bidirectional marks, zero-width and lone surrogates.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> Markup:
    """Text as escaped HTML in which line breaks, tabs and other invisible characters can be seen."""

    def sign(match: re.Match[str]) -> str:
        char = match.group()
        shown = _SIGNS.get(char) or (chr(0x2400 + ord(char)) if char < "\x20" else "␡" if char == "\x7f" else "�")
        return f'<span class="ws">{shown}</span>'

    return Markup(_INVISIBLE.sub(sign, str(escape(text))))


def breakable(text: str) -> Markup:
    """The same where a long name may break after its dots and underscores."""
    return Markup(re.sub("([._/])(?=[^._/])", r"\1<wbr>", str(visible(text)))) if re.search("[A-Za-z]", text) else visible(text)


def prose(text: str) -> Markup:
    """A sentence as escaped HTML; what stands between backticks is a command, between pairs of asterisks what matters."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", str(visible(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", marked))


def highlighted(context: Iterable[tuple[str, float]], strongest: float) -> list[tuple[str, float | None, float, bool]]:
    """Runs of text of one context: (text, activation or none, shade from 0 to 1, whether it is the context's peak)."""
    tokens = [(str(text), float(a) if finite(a) and a > 0 else None) for text, a in context]
    peak = max((a for _, a in tokens if a is not None), default=None)
    runs: list[tuple[str, float | None, float, bool]] = []
    for text, activation in tokens:
        if activation is None:
            if runs and runs[-1][1] is None:
                text = runs.pop()[0] + text
            runs.append((text, None, 0.0, False))
        else:
            # Never fainter than can be seen: a weak activation is still one.
            shade = 0.15 + 0.85 * min(1.0, activation / max(strongest, activation))
            runs.append((text, activation, round(shade, 2), activation == peak))
    return runs


def strongest_activation(card: FeatureCard) -> float:
    """The activation that full colour stands for on a card."""
    largest = card.max_activation
    shown = [float(a) for context in card.contexts for _, a in context if finite(a)]
    return max([0.0, *shown, *([float(largest)] if largest is not None and finite(largest) else [])])


def css_name(words: str) -> str:
    """A status or level as a class of the style sheet: letters and hyphens only."""
    return re.sub("[^a-z]+", "-", str(words).lower()).strip("-") or "unknown"


@cache
def _environment(language: str) -> Environment:
    speech = Speech(language)
    environment = Environment(
        loader=PackageLoader("kyomei.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=speech.number, percent=speech.percent, said=speech.said, visible=visible, prose=prose)
    environment.filters.update(highlighted=highlighted, strongest=strongest_activation, css=css_name, breakable=breakable)
    environment.filters["named"] = lambda name, family: speech.named(family, str(name))
    environment.filters["dictionary"] = lambda name: dictionary_title(name, speech)
    environment.filters["interval"] = lambda premise: premise_interval(premise, speech)
    environment.filters["expected"] = lambda premises: expected_recovery(premises, speech)
    environment.globals.update(box=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM), statuses=STATUSES, speech=speech)
    environment.globals["t"] = lambda key, **values: prose(speech.t(key, **values))
    return environment
