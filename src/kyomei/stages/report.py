"""The page of a run, joined from whatever its stages have written so far."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.evidence.certificate import Certificate
from kyomei.runs import Run
from kyomei.stages.arms import Pair, imported_pairs, main_pair, own_pair
from kyomei.stages.certify import RANDOM, certificates_of, origin_difference, verdict_of
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.expiry import REPORT, drawn_from, expired_words
from kyomei.stages.harvested import site_of
from kyomei.stages.measure import measured
from kyomei.views.charts import FrontierPoint
from kyomei.views.findings import evidence_rows, missing_evidence
from kyomei.views.report import FeatureCard, Provenance, ReportData, render_report
from kyomei.views.speech import ENGLISH
from kyomei.views.words import difference_words, measured_title, origin_words, sentences, why

CARDS = 30
"""Features with text on the page."""


def report_run(run: Run) -> Path:
    """Write report.html from the run's evidence, examples, certificates and premises; of what is missing the page says so.

    In a run that cannot be written to the page that is there stays.

    Args:
        run: trained.

    Returns:
        Path of the page.
    """
    path = run.path("report.html")
    if path.exists() and not run.writable:
        return path
    write_atomic(path, render_report(report_data(run)).encode())
    run.record("report.html")
    run.finish(REPORT, drawn_from(run))
    return path


def report_data(run: Run) -> ReportData:
    """What the page shows, as plain values."""
    evidence, premises = (_read(run, name) for name in ("evidence.json", PREMISES))
    certificates = certificates_of(run)
    main, own = main_pair(run), certificates.get(own_pair(run).name)
    source, site = run.recipe.source, site_of(run)
    directions = (evidence or {}).get("directions") or {}
    return ReportData(
        title=f"{source.model}: {site}",
        folder=shlex.quote(str(run.folder)),
        verdict=verdict_of(run, certificates, main).to_dict(),
        other_answers=_other_answers(run, certificates, main),
        sentences=sentences(evidence) if evidence else (),
        certificates={name: _summary(certificate) for name, certificate in certificates.items()},
        certificate_notes=[
            *_notes(own, certificates.get(RANDOM), run.recipe.seed),
            *_not_certified(run, certificates),
            *expired_words(run, ENGLISH),
        ],
        premises=premises,
        evidence=evidence_rows(evidence) if evidence else (),
        missing=[*(() if measured(run) else (ENGLISH.t("missing.stale"),)), *missing_evidence(evidence)] if evidence else (),
        frontier=_frontier(evidence or {"mechanisms": {}}),
        frequencies=directions.get("frequency", []),
        mcs=directions.get("mcs", []),
        null_mcs=directions.get("null_mcs", []),
        features=_cards(_read(run, "examples.json") or [], certificates.get(main.name)),
        provenance=Provenance(
            seed=run.recipe.seed,
            versions={k: v for k, v in run.manifest["versions"].items() if v},
            command=run.manifest.get("command", ""),
            model=source.model,
            site=f"{site} ({source.side})",
            text=source.address if source.keep_text else f"{source.address}; not kept: tokens are shown by their ids",
        ),
    )


def _read(run: Run, name: str) -> Any:
    """What a stage wrote; none where it has not run."""
    return run.read_json(name) if run.path(name).exists() else None


def _summary(certificate: Certificate) -> dict[str, Any]:
    """A certificate without its features: the page's cards show some of them."""
    return {name: value for name, value in certificate.to_dict().items() if name not in ("features", "data")}


def _notes(own: Certificate | None, control: Certificate | None, seed: int) -> list[str]:
    """What the same model with random weights says of the origins, where it was tried."""
    if own is None or control is None:
        return []
    return [difference_words(name, found) for name, found in origin_difference(own, control, seed).items()]


def _other_answers(run: Run, certificates: Mapping[str, Certificate], main: Pair) -> list[str]:
    """Where a run has dictionaries from elsewhere, the verdict of each but the one that the page is about."""
    imported = imported_pairs(run)
    others = [pair for pair in (own_pair(run), *imported) if imported and pair.name != main.name]
    answers = [verdict_of(run, certificates, pair) for pair in others]
    return [f"{answer.dictionary}: {answer.headline}" for answer in answers]


def _not_certified(run: Run, certificates: Mapping[str, Certificate]) -> list[str]:
    """Dictionaries from elsewhere that have no certificate."""
    return [f"{pair.title}: not certified." for pair in imported_pairs(run) if pair.name not in certificates]


def _frontier(evidence: dict[str, Any]) -> list[FrontierPoint]:
    return [
        FrontierPoint(measured_title(name, figures), values["l0_mean"], values["fvu"])
        for name, figures in evidence["mechanisms"].items()
        for values in figures["fidelity"]
    ]


def _cards(examples: list[dict[str, Any]], certificate: Certificate | None) -> list[FeatureCard]:
    """Examples with what the certificate says of each; certified ones come first."""
    known = {field.name for field in fields(FeatureCard)}
    cards = []
    for example in examples:
        figures = {name: value for name, value in example.items() if name in known}
        cards.append(FeatureCard(**{**figures, **(_certified(certificate, example["index"]) if certificate else {})}))
    cards.sort(key=lambda card: card.status != "certified")
    return cards[:CARDS]


def _certified(certificate: Certificate, latent: int) -> dict[str, Any]:
    feature = certificate.feature(latent)
    return (
        {}
        if feature is None
        else {
            "status": feature["status"],
            "why": why(feature, certificate.rule),
            "origin": feature["origin"]["kind"],
            "origin_words": origin_words(feature),
            "token_shares": feature.get("tokens", ()),
        }
    )
