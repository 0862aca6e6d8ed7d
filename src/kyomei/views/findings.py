"""What certificate, premises and evidence say, line by line, in either language: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kyomei.views.numbers import Figure, finite, format_number
from kyomei.views.speech import ENGLISH, Speech
from kyomei.views.words import ORIGINS, STATUSES, measured_title

Facts = Mapping[str, Any]
"""What a stage returns, or what one of a run's files holds, as plain values."""
STATUS, ORIGIN = "status", "origin of certified"
"""What a certificate shares its latents out by."""
FIDELITY = {"fvu": "row.fvu", "l0_mean": "row.l0", "dead_share": "row.dead"}
"""What is said of how a dictionary reconstructs: its name in evidence.json, and its key in the catalogue."""


@dataclass(frozen=True)
class EvidenceRow:
    """One line of the evidence table.

    Attributes:
        figure: what was measured.
        value: on the data.
        spread: over replicas, the half-width or words such as "0.81–0.86".
        null: the same figure on the null.
        measured: how, in a few words.
    """

    figure: str
    value: Figure
    spread: Figure = None
    null: Figure = None
    measured: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the certificate's table, a cell for each dictionary.

    Attributes:
        name: of the figure.
        cells: what stands large.
        notes: what stands small below each of them.
        meaning: in plain words.
    """

    name: str
    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()
    meaning: str = ""


@dataclass(frozen=True)
class Lines:
    """Lines of the certificate's table that belong together."""

    title: str
    lines: tuple[Line, ...]


# ── Certificate ──


def certificate_lines(certificates: Mapping[str, Facts], speech: Speech = ENGLISH) -> list[Lines]:
    """Status, origin and what both rest on, a column for each dictionary.

    Args:
        certificates: by the dictionary's name, as `Certificate.to_dict` gives them.
        speech: the language.
    """
    each = list(certificates.values())
    if not each:
        return []
    statuses, kinds = (dict.fromkeys(name for c in each for name in c["shares"]["count"][of]) for of in (STATUS, ORIGIN))
    by_status = tuple(_counted(each, STATUS, "status", name, name in STATUSES, speech) for name in statuses)
    by_origin = tuple(_counted(each, ORIGIN, "origin", name, name in ORIGINS, speech) for name in kinds)
    return [
        Lines(speech.t("lines.status"), by_status),
        Lines(speech.t("lines.origin"), by_origin),
        Lines(speech.t("lines.grounds"), tuple(_grounds(each, speech))),
    ]


def certified_by(each: Sequence[Facts]) -> list[Line]:
    """What the certified latents weigh."""
    lines = []
    for by, term in (("explained variance", "explained"), ("activation", "activation")):
        shares = tuple(ENGLISH.percent(c["shares"][by][STATUS]["certified"]) for c in each)
        meaning = ENGLISH.named("term", f"{by}.means")
        lines.append(Line(ENGLISH.t(f"term.certified_{term}"), shares, (), meaning))
    return lines


def _counted(each: Sequence[Facts], of: str, family: str, name: str, known: bool, speech: Speech) -> Line:
    """Count and share, and below them the share of the explained variance that goes with them."""
    cells, notes = [], []
    for certificate in each:
        shares = certificate["shares"]
        among = 1.0 if of == STATUS else shares["count"][STATUS]["certified"]
        share = shares["count"][of].get(name, 0.0)
        tested = certificate.get("sampled") or certificate["width"]
        cells.append(speech.t("lines.counted", count=round(share * among * tested), share=speech.percent(share)))
        explained = speech.percent(shares["explained variance"][of].get(name, 0.0))
        notes.append(speech.t("lines.of_explained", share=explained))
    meaning = speech.named(family, f"{name}.means") if known else ""
    # In English a latent's origin goes by the name that files have for it.
    title = name if speech.is_english else speech.named(family, name)
    return Line(title, tuple(cells), tuple(notes), meaning)


def _grounds(each: Sequence[Facts], speech: Speech) -> list[Line]:
    """The null's pass rate, dense latents, fidelity, and what was asked."""
    dense = [c.get("dense") or {} for c in each]
    t, number, percent = speech.t, speech.number, speech.percent

    def line(term: str, cells: Sequence[str], notes: Sequence[str] = (), meaning: str = "") -> Line:
        return Line(t(f"term.{term}"), tuple(cells), tuple(notes), t(f"term.{meaning or term}.means"))

    tested = [t("lines.of_latents", count=c["null"]["latents"]) for c in each]
    explained = [t("lines.of_explained", share=percent(d.get("explained"))) for d in dense]
    return [
        line("pass_on_the_null", [percent(c["null"]["false_positive_rate"]) for c in each], tested),
        line("dense", [percent(d.get("latents")) for d in dense], explained),
        line("dense_and_certified", [percent(d.get("certified")) for d in dense]),
        line("dense_active", [number(d.get("l0")) for d in dense]),
        line("asked", [_asked(c["rule"]) for c in each]),
        line("fvu", [number(c["fidelity"]["fvu"]) for c in each]),
        line("l0", [number(c["fidelity"]["l0"]) for c in each]),
        line("rows", [number(c["num_rows"]) for c in each], meaning="rows_compared"),
    ]


def _asked(rule: Facts) -> str:
    return f"{rule['encoder']:.2f}, {rule['decoder']:.2f}, {rule['correlation']:.2f}"


# ── Premises ──


def premise_figures(premise: Facts) -> str:
    """Estimate in short, and where there is an interval what it is of."""
    interval, estimate = premise_interval(premise), format_number(premise.get("estimate"))
    return f"{estimate} ({interval})" if interval else estimate


def premise_interval(premise: Facts, speech: Speech = ENGLISH) -> str:
    """What the interval of an estimate is of, and its ends; empty where there is none."""
    interval, of = premise.get("interval"), premise.get("interval_of")
    if not interval or of not in ("truth", "features") or not all(map(finite, interval)):
        return ""
    bounds = speech.written("–".join(map(format_number, interval)))
    return speech.t("interval.short", of=speech.t(f"interval.{of}"), interval=bounds)


def expected_recovery(premises: Facts, speech: Speech = ENGLISH) -> str:
    """The expected recovery in words."""
    expected, interval = premises.get("expected_frr"), premises.get("interval")
    if not finite(expected):
        why = (premises.get("statistics") or {}).get("why_unknown")
        return speech.t("expected.unknown_because", why=speech.said(why)) if why else speech.t("expected.unknown")
    if not interval:
        return f"{expected:.2f}"
    from kyomei.evidence.check.calibration import COVERAGE  # it imports torch, which help does without

    bounds = speech.written(f"{interval[0]:.2f}–{interval[1]:.2f}")
    return speech.t("interval.of", estimate=f"{expected:.2f}", of=speech.percent(COVERAGE), interval=bounds)


# ── Evidence ──


def evidence_rows(evidence: Facts, speech: Speech = ENGLISH) -> list[EvidenceRow]:
    """Figure, value, spread over replicas, null."""
    rows = _direction_rows(evidence.get("directions") or {}, speech)
    for name, figures in evidence["mechanisms"].items():
        rows += _mechanism_rows(measured_title(name, figures, speech), figures, speech)
    for name, values in (evidence.get("cross_entropy") or {}).items():
        title = measured_title(name, evidence["mechanisms"].get(name, {}), speech)
        rows.append(_cross_entropy_row(title, values, speech))
    return rows


def missing_evidence(evidence: Facts, speech: Speech = ENGLISH) -> list[str]:
    """What was not measured, and why: an empty result is said."""
    missing = []
    if not (evidence.get("directions") or {}).get("consistency"):
        note = (evidence.get("directions") or {}).get("note")
        missing.append(speech.said(note) if note else speech.t("missing.directions"))
    if not evidence.get("cross_entropy"):
        note = evidence.get("cross_entropy_note")
        reason = speech.said(note) if note else speech.t("missing.cross_entropy.reason")
        missing.append(speech.t("missing.cross_entropy", reason=reason))
    if not any(figures["consistency"] for figures in evidence["mechanisms"].values()):
        missing.append(speech.t("missing.replicas"))
    return missing


def _cross_entropy_row(title: str, values: Facts, speech: Speech) -> EvidenceRow:
    recovered, error = values["recovered"], values.get("recovered_error")
    measured = speech.t("row.cross_entropy.how", tokens=f"{values['num_tokens']:,}")
    if "positions" in values:  # where the site kept its own activation, since no dictionary learns such rows
        special, massive, positions = (f"{values[key]:,}" for key in ("left_special", "left_norm", "positions"))
        measured += speech.t("row.cross_entropy.left", positions=positions, special=special, massive=massive)
    return EvidenceRow(
        speech.t("row.named", name=title, what=speech.t("row.cross_entropy")),
        speech.t("row.cross_entropy.undefined") if recovered is None else recovered,
        spread=None if error is None else speech.t("row.cross_entropy.spread", error=f"{error:.3f}"),
        null=0,
        measured=measured,
    )


def _direction_rows(directions: Facts, speech: Speech) -> list[EvidenceRow]:
    if not directions.get("consistency"):
        return []
    count, null_count = directions["count"], directions["stable_null_count"]
    interval = directions.get("interval")
    between = speech.t("row.interval", interval=speech.written("{}–{}".format(*interval))) if interval else None
    t, span = speech.t, speech.span
    rows = [
        EvidenceRow(t("row.directions"), count[0], span(count), span(null_count), t("row.directions.how")),
        EvidenceRow(t("row.features"), directions["n_features"], between, None, t("row.features.how")),
    ]
    for tau in ("0.7", "0.9"):
        shares = [c[f"mcs_above_{tau}"] for c in directions["consistency"]]
        rows.append(_share_row(t("row.directions_mcs", tau=tau), shares, t("row.directions_mcs.how"), speech))
    return rows


def _mechanism_rows(name: str, figures: Facts, speech: Speech) -> list[EvidenceRow]:
    t, rows = speech.t, []
    for key, label in FIDELITY.items():
        values = [f[key] for f in figures["fidelity"]]
        measured = t("row.fidelity.how", width=figures["width"])
        rows.append(EvidenceRow(t("row.named", name=name, what=t(label)), fmean(values), speech.span(values), None, measured))
    for metric in ("whitened", "raw") if figures["consistency"] else ():
        shares = [c[metric]["mcs_above_0.7"] for c in figures["consistency"]]
        space = t(f"term.{metric}")
        label = t("row.named", name=name, what=t("row.latents_mcs", space=space))
        rows.append(_share_row(label, shares, t("row.latents_mcs.how", space=space), speech))
    for chosen, by_share in (figures.get("selections") or {}).items():
        shares = [thresholds["mcs_above_0.7"] for thresholds in by_share.values()]
        value, null = (" · ".join(speech.number(share[side]) for share in shares) for side in ("value", "null"))
        label = t("row.named", name=name, what=t("row.chosen", chosen=speech.named("chosen", chosen)))
        among = " · ".join(speech.percent(float(share)) for share in by_share)
        rows.append(EvidenceRow(label, value, None, null, t("row.chosen.how", shares=among)))
    for null, against in (figures.get("against") or {}).items():
        label = t("row.named", name=name, what=t("row.against", null=speech.said(null)))
        measured = t("row.against.how", survives=speech.said(against["survives"]))
        rows.append(_share_row(label, [against["whitened"]["mcs_above_0.7"]], measured, speech))
    return rows


def _share_row(label: str, shares: Sequence[Facts], measured: str, speech: Speech) -> EvidenceRow:
    """A share over the other replicas beside its null."""
    values = [share["value"] for share in shares]
    return EvidenceRow(label, fmean(values), speech.span(values), shares[0]["null"], measured)
