"""Dictionaries of several runs side by side, from what their stages have left; nothing is computed anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kyomei.atomic import write_atomic
from kyomei.errors import KyomeiError
from kyomei.runs import Run, plain
from kyomei.stages.arms import Pair, trained_pairs
from kyomei.stages.certify import certificate_path, certificates_of
from kyomei.stages.family import family_of, members
from kyomei.stages.harvested import digest, harvest_of, site_of
from kyomei.stages.measure import measured
from kyomei.views.charts import comparison_points, frontier_figure
from kyomei.views.report import render_comparison
from kyomei.views.tables import compare_table

PAGE, TABLE, FIGURE, VALUES = "compare.html", "compare.md", "compare.svg", "compare.json"


@dataclass(frozen=True)
class Comparison:
    """Dictionaries side by side.

    Attributes:
        rows: one a dictionary: "run", "folder", "site", "harvest", "mechanism" and figures, none where there is no such.
        notes: what keeps the rows from being compared.
    """

    rows: list[dict[str, Any]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"dictionaries": plain(self.rows), "notes": self.notes}


def named_runs(folders: Iterable[Path]) -> dict[str, Run]:
    """Runs by a short name, a family's members in its place.

    Raises:
        RunError: a folder holds no run, or a family that has no member yet.
    """
    found: list[tuple[str, Run]] = []
    for folder in dict.fromkeys(folders):
        run = Run.open(folder)
        many = bool(family_of(run).axes)
        found += [(f"{folder.name}/{part.folder.name}" if many else folder.name, part) for part in members(run)]
    names = [name for name, _ in found]
    return {name if names.count(name) == 1 and name else str(run.folder): run for name, run in found}


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Every trained dictionary of some runs, baselines included, by the runs' names."""
    rows: list[dict[str, Any]] = []
    said: dict[str, list[str]] = {}
    for name, run in runs.items():
        try:
            rows += _rows(name, run, said)
        except KyomeiError as error:
            rows.append({"run": name, "folder": str(run.folder), "mechanism": run.recipe.mechanism.full_title})
            said.setdefault(str(error), []).append(name)
    return Comparison(rows, [*_other_rows(rows), *(f"{words} ({', '.join(names)})" for words, names in said.items())])


def page_links(runs: Mapping[str, Run], folder: Path) -> dict[str, str]:
    """Addresses, from a folder, of the pages that some runs have, by the runs' names."""
    pages = {name: run.path("report.html") for name, run in runs.items() if run.path("report.html").exists()}
    return {name: quote(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()) for name, page in pages.items()}


def _rows(name: str, run: Run, said: dict[str, list[str]]) -> list[dict[str, Any]]:
    pairs = trained_pairs(run)
    certificates = certificates_of(run)
    evidence = None
    if run.path("evidence.json").exists():
        evidence = run.read_json("evidence.json") if measured(run) else None
        if evidence is None:
            said.setdefault("Trained since it was measured: run `kyomei measure` again", []).append(name)
    where = {"run": name, "folder": str(run.folder), "site": site_of(run), "harvest": digest(harvest_of(run))}
    each = []
    for pair in pairs:
        certificate = certificates.get(pair.name)
        if certificate is None and certificate_path(run, pair).exists():
            said.setdefault("A certificate has expired: run `kyomei certify` again", []).append(name)
        certified = None if certificate is None else certificate.to_dict()
        figures = {**_trained(run, pair), **_certified(certified), **_measured(pair, evidence)}
        each.append({**where, "mechanism": pair.title, **figures})
    return each


def _trained(run: Run, pair: Pair) -> dict[str, Any]:
    config = pair.arm.path(run, 0) / "config.json"
    width = json.loads(config.read_bytes())["width"] if config.exists() else pair.arm.recipe.dictionary.width
    return {"width": width, "seconds": run.manifest.get("seconds", {}).get(pair.arm.stage(0))}


def _certified(certificate: dict[str, Any] | None) -> dict[str, Any]:
    if certificate is None:
        return {}
    shares, fidelity = certificate["shares"], certificate["fidelity"]
    return {
        "l0": fidelity["l0"],
        "fvu": fidelity["fvu"],
        "alive": 1 - fidelity["dead"],
        "certified": shares["count"]["status"]["certified"],
        "certified_explained": shares["explained variance"]["status"]["certified"],
        "null": certificate["null"]["false_positive_rate"],
    }


def _measured(pair: Pair, evidence: dict[str, Any] | None) -> dict[str, Any]:
    figures = (evidence or {"mechanisms": {}})["mechanisms"].get(pair.name)
    if evidence is None or figures is None:
        return {}
    first = figures["fidelity"][0]
    recovered = (evidence.get("cross_entropy") or {}).get(pair.name, {}).get("recovered")
    return {"l0": first["l0_mean"], "fvu": first["fvu"], "alive": 1 - first["dead_share"], "cross_entropy": recovered}


def _other_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said where runs do not stand on the same evidence rows."""
    harvests: dict[str, list[str]] = {}
    for row in rows:
        if "harvest" in row:
            harvests.setdefault(row["harvest"], []).append(row["run"])
    notes = []
    if len(harvests) > 1:
        named = "; ".join(f"{', '.join(dict.fromkeys(names))} ({key[:12]})" for key, names in harvests.items())
        notes.append(f"Different evidence rows, so figures do not compare exactly; by the sha256 of the harvest: {named}.")
    if len({row["site"] for row in rows if "site" in row}) > 1:
        notes.append("Different sites: FVU and L0 of one site say nothing about another.")
    return notes


def write_index(run: Run, found: Comparison) -> Path:
    """Write the page of a family, which leads to those of its members."""
    path = run.path("report.html")
    parts = {part.folder.name: part for part in members(run)}
    page = render_comparison(run.folder.name, found.rows, found.notes, page_links(parts, run.folder))
    with run.lock():
        write_atomic(path, page.encode())
        run.record(path)
    return path


def write_comparison(found: Comparison, folder: Path, title: str, links: Mapping[str, str]) -> Path:
    """Write page, table, figure and values of a comparison.

    Args:
        found: what is shown.
        folder: where they go.
        title: of the page and the table.
        links: addresses of pages by the run's name.

    Returns:
        Path of the page.
    """
    write_atomic(folder / TABLE, compare_table(found.rows, title).markdown().encode())
    write_atomic(folder / VALUES, (json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / FIGURE, frontier_figure(comparison_points(found.rows)))
    write_atomic(folder / PAGE, render_comparison(title, found.rows, found.notes, links).encode())
    return folder / PAGE
