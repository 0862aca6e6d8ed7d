"""The report of a run in both languages, joined from whatever its stages have written so far.

Figures of each report stay in `reports.jsonl` in the run's folder, one JSON object a line, the oldest first: "written", when
they were first reported (ISO 8601 in UTC), and "figures", numbers and single words by name. They hold no text of the run's.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from kyomei.atomic import refusals_named, write_atomic
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.goals.detector import standing_goals
from kyomei.provenance import now
from kyomei.runs import MANIFEST, Run
from kyomei.stages.arms import Pair, imported_pairs, main_pair, own_pair
from kyomei.stages.certify import RANDOM, certificates_of, origin_difference, verdict_of
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.deciding import standing_verdict
from kyomei.stages.expiry import REPORT, drawn_from, expired_words
from kyomei.stages.harvested import harvest_of, site_of
from kyomei.stages.measure import measured
from kyomei.stages.named import names_of
from kyomei.stages.watched import FOLDER as WATCHED
from kyomei.views import caveats, costs
from kyomei.views.account import Account
from kyomei.views.changes import changed, figures_of
from kyomei.views.charts import FrontierPoint
from kyomei.views.findings import evidence_rows, missing_evidence
from kyomei.views.printing import print_pdf
from kyomei.views.report import FeatureCard, Provenance, ReportData, render_report
from kyomei.views.speech import ENGLISH, Speech
from kyomei.views.strings import LANGUAGES
from kyomei.views.summary import summary
from kyomei.views.watch import streams
from kyomei.views.words import dictionary_title, difference_words, measured_title, origin_words, sentences, why

CARDS = 10
"""Features with text on the page."""
FIGURES = "reports.jsonl"
PAGES = {"en": "report.html", "ja": "report.ja.html"}
"""The page of each language."""
OTHERS_FILES = {"pilot": "pilot.json", "rollout": "rollout.jsonl"}
"""What later stages leave, which this one cannot import: they write reports themselves."""


def report_run(run: Run) -> Path:
    """Write the pages of both languages from all that the run has; of what is missing they say so.

    In a run that cannot be written to the pages that are there stay.

    Args:
        run: trained.

    Returns:
        Path of the English page.
    """
    path = run.path(PAGES["en"])
    if path.exists() and not run.writable:
        return path
    gathered = _gather(run)
    before, written = _kept(run, figures_of(gathered.account))
    for language in LANGUAGES:
        data = _data(run, gathered, Speech(language), before, written)
        write_atomic(run.path(PAGES[language]), render_report(data).encode())
    run.record(FIGURES, *PAGES.values())
    run.finish(REPORT, drawn_from(run))
    return path


def print_report(run: Run) -> list[Path]:
    """Print the pages of both languages that `report_run` wrote, as PDF files beside them.

    Raises:
        KyomeiError: there is no Chromium to print with, or the folder cannot be written to.
    """
    printed, written = [], _read_kept(run)[-1]["written"]
    for page in PAGES.values():
        path = run.path(page).with_suffix(".pdf")
        with refusals_named(run.folder):
            write_atomic(path, print_pdf(run.path(page), written))
        run.record(path)
        printed.append(path)
    return printed


def report_data(run: Run, speech: Speech = ENGLISH) -> ReportData:
    """What the page shows, as plain values in one language."""
    gathered = _gather(run)
    return _data(run, gathered, speech, _last(run, figures_of(gathered.account)), "")


@dataclass(frozen=True)
class _Gathered:
    """What the run's files hold."""

    certificates: Mapping[str, Certificate]
    account: Account
    examples: list[dict[str, Any]]


def _gather(run: Run) -> _Gathered:
    certificates = certificates_of(run)
    main = main_pair(run)
    own, control = certificates.get(main.name), certificates.get(RANDOM)
    evidence = _read(run, "evidence.json")
    beside = [name for name in (evidence or {"mechanisms": {}})["mechanisms"] if name.startswith("baseline ")]
    rollout = run.path(OTHERS_FILES["rollout"])
    account = Account(
        folder=shlex.quote(str(run.folder)),
        model=run.recipe.source.model,
        site=site_of(run),
        source=_source(run),
        verdict=verdict_of(run, certificates, main).to_dict(),
        own=None if own is None else _summary(own),
        control=None if control is None else _summary(control),
        imported=main.name != own_pair(run).name,
        baselines=[*beside, *(name for name in certificates if name.startswith("baseline ") and name not in beside)],
        premises=_read(run, PREMISES),
        evidence=evidence,
        decision=standing_verdict(run),
        pilot=_read(run, OTHERS_FILES["pilot"]),
        goals=standing_goals(run.folder),
        rollout=[json.loads(line) for line in rollout.read_text("utf-8").splitlines()] if rollout.exists() else [],
        watched=[{"name": each["name"], "status": each["status"]} for each in streams(run.path(WATCHED))],
        cost=_cost(run, certificates),
    )
    return _Gathered(certificates, account, _read(run, "examples.json") or [])


def _source(run: Run) -> dict[str, Any]:
    """What was read, as an account has it."""
    source = run.recipe.source
    names = ("num_tokens", "replicas", "evidence_share", "context", "drop_special", "norm_bound", "dtype")
    documents = (harvest_of(run).manifest.get("corpus") or {}).get("documents")
    named = names_of(run)
    return {
        **{name: getattr(source, name) for name in names},
        "training_dtype": run.recipe.dtype,
        "documents": documents,
        "model_licence": named["model"]["licence"],
        "text_licence": named["data"]["licence"],
    }


def _cost(run: Run, certificates: Mapping[str, Certificate]) -> dict[str, Any]:
    """Time of every stage and command, disk, and the machine that began the run."""
    manifest, pages = run.manifest, {name for page in PAGES.values() for name in (page, Path(page).with_suffix(".pdf").name)}
    # What a report itself adds is not counted: it would be another one each time.
    ended = [when for stage, when in manifest.get("stages", {}).items() if stage != REPORT]
    results = [*ended, *(certificate.created for certificate in certificates.values())]
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name not in (*pages, FIGURES, MANIFEST)]
    hardware = manifest.get("hardware") or {}
    return {
        "seconds": manifest.get("seconds", {}),
        "wall_seconds": _wall_seconds(manifest.get("history", ()), results),
        "disk_bytes": sum(path.stat().st_size for path in files),
        "cores": hardware.get("cores"),
        "memory_bytes": hardware.get("memory_bytes"),
    }


def _wall_seconds(history: Sequence[Mapping[str, Any]], results: Sequence[str]) -> float:
    """From the beginning of each command to the last of its results; one that led to none, such as a report, counts nothing."""
    moments, total = sorted(map(datetime.fromisoformat, results)), 0.0
    for act in history:
        began = datetime.fromisoformat(act["began"])
        ended = datetime.fromisoformat(act["ended"]) if act.get("ended") else max([began, *moments])
        total += max([(moment - began).total_seconds() for moment in moments if began <= moment <= ended], default=0.0)
    return total


def _kept(run: Run, figures: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The report before, and when these figures were first reported; they are kept for the next one if they are new."""
    kept, path = _read_kept(run), run.path(FIGURES)
    if not kept or changed(kept[-1]["figures"], figures, ENGLISH):
        kept.append({"written": now(), "figures": figures})
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomic(path, "".join(lines).encode())
    return (kept[-2] if len(kept) > 1 else None), kept[-1]["written"]


def _last(run: Run, figures: dict[str, Any]) -> dict[str, Any] | None:
    """The report before these figures; none: there was none."""
    kept = _read_kept(run)
    if kept and not changed(kept[-1]["figures"], figures, ENGLISH):
        kept.pop()
    return kept[-1] if kept else None


def _read_kept(run: Run) -> list[dict[str, Any]]:
    path = run.path(FIGURES)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _data(run: Run, gathered: _Gathered, speech: Speech, before: dict[str, Any] | None, written: str) -> ReportData:
    account, certificates = gathered.account, gathered.certificates
    evidence, main = account.evidence, main_pair(run)
    directions = (evidence or {}).get("directions") or {}
    changes = changed(before["figures"], figures_of(account), speech) if before else []
    since = before["written"] if before else ""
    stale = [] if evidence is None or measured(run) else [speech.t("missing.stale")]
    cards = _cards(gathered.examples, certificates.get(main.name), speech)
    return ReportData(
        title=f"{account.model}: {account.site}",
        folder=account.folder,
        verdict=account.verdict,
        other_answers=_other_answers(run, certificates, main, speech),
        sentences=sentences(evidence, speech) if evidence else (),
        certificates={name: _summary(certificate) for name, certificate in certificates.items()},
        certificate_notes=[*_notes(run, certificates, speech), *expired_words(run, speech)],
        premises=account.premises,
        evidence=evidence_rows(evidence, speech) if evidence else (),
        missing=[*stale, *missing_evidence(evidence, speech)] if evidence else (),
        frontier=_frontier(evidence or {"mechanisms": {}}, speech),
        frequencies=directions.get("frequency", []),
        mcs=directions.get("mcs", []),
        null_mcs=directions.get("null_mcs", []),
        features=cards,
        provenance=_provenance(run, speech),
        language=speech.language,
        date=written,
        summary=summary(account, changes, since, speech),
        decision=account.decision,
        changes=changes,
        before=since,
        goals=account.goals,
        costs=costs.measured_costs(account, speech),
        planned=costs.planned_costs(account, speech),
        rollout=account.rollout,
        watched=account.watched,
        sampling=caveats.sampling(account, speech),
        risks=[*caveats.risks(account, speech), *([speech.t("risk.text")] if cards else [])],
        untested=caveats.untested(account, speech),
    )


def _provenance(run: Run, speech: Speech) -> Provenance:
    source, manifest, harvest = run.recipe.source, run.manifest, harvest_of(run).manifest
    names = names_of(run)
    text = source.address if source.keep_text else speech.t("provenance.not_kept", address=source.address)
    return Provenance(
        seed=run.recipe.seed,
        versions={k: v for k, v in manifest["versions"].items() if v},
        command=manifest.get("command", ""),
        model=source.model,
        site=speech.t(f"provenance.side.{source.side}", site=site_of(run)),
        text=text,
        weights=(harvest.get("model") or {}).get("weights") or "",
        corpus=(harvest.get("corpus") or {}).get("sha256") or "",
        model_licence=speech.said(names["model"]["licence"]),
        text_licence=speech.said(names["data"]["licence"]),
    )


def _read(run: Run, name: str) -> Any:
    """What a stage wrote; none where it has not run."""
    return run.read_json(name) if run.path(name).exists() else None


def _summary(certificate: Certificate) -> dict[str, Any]:
    """A certificate without its features: the page's cards show some of them."""
    return {name: value for name, value in certificate.to_dict().items() if name not in ("features", "data")}


def _notes(run: Run, certificates: Mapping[str, Certificate], speech: Speech) -> list[str]:
    """What the same model with random weights says of the origins, and dictionaries from elsewhere without a certificate."""
    own, control = certificates.get(own_pair(run).name), certificates.get(RANDOM)
    notes = []
    if own is not None and control is not None:
        found = origin_difference(own, control, run.recipe.seed)
        notes = [difference_words(among, difference, speech) for among, difference in found.items()]
    lacking = [pair for pair in imported_pairs(run) if pair.name not in certificates]
    return [*notes, *(speech.t("report.not_certified", name=dictionary_title(pair.name, speech)) for pair in lacking)]


def _other_answers(run: Run, certificates: Mapping[str, Certificate], main: Pair, speech: Speech) -> list[str]:
    """Where a run has dictionaries from elsewhere, the verdict of each but the one that the page is about."""
    imported = imported_pairs(run)
    others = [pair for pair in (own_pair(run), *imported) if imported and pair.name != main.name]
    answers = [verdict_of(run, certificates, pair) for pair in others]
    return [
        speech.t("report.answer_of", name=dictionary_title(pair.name, speech), answer=speech.said(answer.headline))
        for pair, answer in zip(others, answers, strict=True)
    ]


def _frontier(evidence: Mapping[str, Any], speech: Speech) -> list[FrontierPoint]:
    return [
        FrontierPoint(measured_title(name, figures, speech), values["l0_mean"], values["fvu"])
        for name, figures in evidence["mechanisms"].items()
        for values in figures["fidelity"]
    ]


def _cards(examples: list[dict[str, Any]], certificate: Certificate | None, speech: Speech) -> list[FeatureCard]:
    """Examples with what the certificate says of each; with a certificate, those of certified features only."""
    known = {field.name for field in fields(FeatureCard)}
    cards = []
    for example in examples:
        figures = {name: value for name, value in example.items() if name in known}
        cards.append(FeatureCard(**{**figures, **(_certified(certificate, example["index"], speech) if certificate else {})}))
    return [card for card in cards if certificate is None or card.status == "certified"][:CARDS]


def _certified(certificate: Certificate, latent: int, speech: Speech) -> dict[str, Any]:
    feature = certificate.feature(latent)
    return (
        {}
        if feature is None
        else {
            "status": feature["status"],
            "why": why(feature, certificate.rule, speech=speech),
            "origin": feature["origin"]["kind"],
            "origin_words": origin_words(feature, speech),
            "token_shares": feature.get("tokens", ()),
        }
    )
