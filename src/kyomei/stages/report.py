"""The page of a run, from what its stages measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kyomei.runs import Run, write_atomic
from kyomei.views.charts import FrontierPoint
from kyomei.views.report import EvidenceRow, FeatureCard, Provenance, ReportData, render_report


def report_run(run: Run) -> Path:
    """Write report.html from evidence.json and examples.json.

    Args:
        run: measured.

    Returns:
        Path of the page.
    """
    evidence, examples = run.read_json("evidence.json"), run.read_json("examples.json")
    path = run.path("report.html")
    write_atomic(path, render_report(report_data(run, evidence, examples)).encode())
    run.record("report.html")
    return path


def report_data(run: Run, evidence: dict[str, Any], examples: list[dict[str, Any]]) -> ReportData:
    """What the page shows, as plain values."""
    directions, source = evidence["directions"], run.recipe.source
    manifest = run.manifest
    return ReportData(
        title=f"{source.model}: {evidence['site']}",
        sentences=sentences(run, evidence),
        evidence=evidence_rows(evidence),
        frontier=[
            FrontierPoint(figures["title"], values["l0_mean"], values["fvu"])
            for figures in evidence["mechanisms"].values()
            for values in figures["fidelity"]
        ],
        frequencies=directions.get("frequency", []),
        mcs=directions.get("mcs", []),
        null_mcs=directions.get("null_mcs", []),
        features=[FeatureCard(**card) for card in examples],
        provenance=Provenance(
            seed=run.recipe.seed,
            versions={k: v for k, v in manifest["versions"].items() if v},
            command=manifest.get("command", ""),
            model=source.model,
            site=f"{evidence['site']} ({source.side})",
            text=source.text,
        ),
    )


def sentences(run: Run, evidence: dict[str, Any]) -> list[str]:
    """The result in three sentences."""
    directions = evidence["directions"]
    own, *others = evidence["mechanisms"]
    lines = []
    if directions.get("consistency"):
        pairs = [c["mcs_above_0.7"] for c in directions["consistency"]]
        real, null = fmean(p["value"] for p in pairs), pairs[0]["null"]
        lines.append(
            f"Resonance found {directions['count'][0]} directions, and {_percent(real)} of them reappear (cosine above 0.7 in "
            f"whitened space) in replicas that differ in documents and seed; on Gaussian data with the same covariance "
            f"{_percent(null)} do."
        )
    first = evidence["mechanisms"][own]
    text = (
        f"With {_mean(first, 'l0_mean'):.1f} active latents in a row, the {first['title']} dictionary leaves "
        f"{_percent(_mean(first, 'fvu'))} of the variance unexplained on documents that it never saw"
    )
    for name in others:
        other = evidence["mechanisms"][name]
        text += f"; {other['title']} leaves {_percent(_mean(other, 'fvu'))} at {_mean(other, 'l0_mean'):.1f}"
    lines.append(text + ".")
    shares = [
        f"{figures['title']} {_percent(fmean(c['whitened']['mcs_above_0.7']['value'] for c in figures['consistency']))} "
        f"(null {_percent(figures['consistency'][0]['whitened']['mcs_above_0.7']['null'])})"
        for figures in evidence["mechanisms"].values()
        if figures["consistency"]
    ]
    if shares:
        lines.append(f"Of all trained latents, these shares reproduce across replicas: {', '.join(shares)}.")
    return lines


def evidence_rows(evidence: dict[str, Any]) -> list[EvidenceRow]:
    """The table: figure, value, spread over replicas, null."""
    rows = _direction_rows(evidence["directions"])
    for figures in evidence["mechanisms"].values():
        rows += _mechanism_rows(figures)
    for name, values in evidence["cross_entropy"].items():
        recovered, error, rows_seen = values["recovered"], values.get("recovered_error"), values["num_tokens"]
        rows.append(
            EvidenceRow(
                f"{evidence['mechanisms'][name]['title']}: cross-entropy recovered",
                "not defined" if recovered is None else recovered,
                spread=None if error is None else f"± {error:.3f} over windows",
                null="0 = site silenced",
                measured=f"spliced into the model over {rows_seen:,} unseen tokens",
            )
        )
    return rows


def _direction_rows(directions: dict[str, Any]) -> list[EvidenceRow]:
    if not directions.get("consistency"):
        return []
    low, high = directions["interval"]
    count, null_count = directions["count"], directions["stable_null_count"]
    rows = [
        EvidenceRow(
            "Resonant directions", count[0], _range(count), _range(null_count), "stable between two halves of the rows"
        ),
        EvidenceRow(
            "Features there are, unseen included", directions["n_features"], f"{low}–{high}", None, "Chao's estimator, 95 %"
        ),
    ]
    for tau in ("0.7", "0.9"):
        shares = [c[f"mcs_above_{tau}"] for c in directions["consistency"]]
        values = [s["value"] for s in shares]
        rows.append(
            EvidenceRow(
                f"Directions with MCS > {tau}",
                fmean(values),
                _range(values),
                shares[0]["null"],
                "whitened space, other replicas",
            )
        )
    return rows


def _mechanism_rows(figures: dict[str, Any]) -> list[EvidenceRow]:
    rows, name = [], figures["title"]
    for key, label in (
        ("fvu", "variance unexplained (FVU)"),
        ("l0_mean", "active latents in a row (L0)"),
        ("dead_share", "dead latents"),
    ):
        values = [f[key] for f in figures["fidelity"]]
        measured = f"{figures['width']} latents, documents no replica saw"
        rows.append(EvidenceRow(f"{name}: {label}", fmean(values), _range(values), None, measured))
    for metric in ("whitened", "raw"):
        shares = [c[metric]["mcs_above_0.7"] for c in figures["consistency"]]
        if shares:
            values = [s["value"] for s in shares]
            rows.append(
                EvidenceRow(
                    f"{name}: latents with MCS > 0.7 ({metric})",
                    fmean(values),
                    _range(values),
                    shares[0]["null"],
                    f"decoders, {metric} space",
                )
            )
    return rows


def _mean(figures: dict[str, Any], key: str) -> float:
    return fmean(values[key] for values in figures["fidelity"])


def _range(values: Sequence[float]) -> str | None:
    """Smallest to largest over replicas, in words."""
    low, high = min(values), max(values)
    if len(values) < 2:
        return None
    return f"{low}–{high}" if isinstance(low, int) else f"{low:.3g}–{high:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
