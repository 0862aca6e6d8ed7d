"""What a run gives the explorer to show, and where the rest of it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kyomei.atomic import sha256_of
from kyomei.dictionary.formats import load
from kyomei.errors import KyomeiError, RunError
from kyomei.evidence.goals.detector import FILE as GOALS
from kyomei.evidence.goals.detector import read_goals
from kyomei.evidence.verdict import verdict
from kyomei.locks import refuse_if_locked
from kyomei.runs import MANIFEST, Run, plain
from kyomei.stages.alone import Alone
from kyomei.stages.arms import trained_pairs
from kyomei.stages.certify import certificate_of_files, certificates_of, verdict_of
from kyomei.stages.exports import note_export
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import activations, site_of
from kyomei.stages.index import Indexed, index_run, index_states, redaction_of, shown_tokens
from kyomei.stages.named import FOLDER
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_data
from kyomei.stages.watched import FOLDER as WATCHES
from kyomei.views.labels import FILE as LABELS
from kyomei.views.server import Explored, Explorer
from kyomei.views.watch import streams

_NOT_SHOWN = ("features", "folder", "verdict", "other_answers")
"""What the report has and the explorer shows otherwise."""


def prepare(run: Run, reporter: Reporter, names: Sequence[str] | None = None) -> None:
    """Make the indices that are not ready, unless the folder cannot be written or another process is at work in it.

    Args:
        run: trained.
        reporter: shows progress, and says why nothing was made.
        names: of dictionaries; none: the ones that ship.
    """
    states = index_states(run)
    wanted = [one for one in states if one.name in names] if names else [one for one in states if one.path.endswith("/0")]
    if wanted and all(one.state.is_ready for one in wanted):
        return
    try:
        with run.lock():
            index_run(run, reporter, names)
    except RunError as error:
        # What is there is shown all the same, and its page says what is not.
        reporter.note(f"no index is made: {error}")


def explorer_of(run: Run) -> Explorer:
    """A run as the explorer shows it; what fails here is said on the pages, where they can say it.

    Args:
        run: trained.

    Raises:
        RunError: there is no dictionary in it.
    """
    states = index_states(run)
    if not states:
        raise RunError("a trained run", f"no dictionary in {run.folder}", "run `kyomei train` first")
    # A dictionary that has an index is shown before one that may get one.
    verdicts = _verdicts(run)
    known = sorted(states, key=lambda one: (one.state.condition == "missing", not one.path.endswith("/0")))
    source = run.recipe.source
    return Explorer(
        name=run.folder.resolve().name,
        dictionaries={one.name: _explored(run, one, verdicts.get(one.path)) for one in known},
        site=site_of(run),
        labels=run.path(f"{FOLDER}/{LABELS}"),
        side=source.side,
        replicas=source.replicas,
        facts=_facts(run),
        load_model=lambda: load_model(run.recipe),
        tokens=lambda: shown_tokens(run),
        rows=lambda: activations(run, "evidence", verify=False),
        is_running=lambda: _is_held(run),
        force_bos=source.force_bos,
        max_norm=_max_norm(run),
        revision=source.revision,
        redaction=None if (masked := redaction_of(run)) is None else masked.sha256,
        watched=lambda: streams(run.path(WATCHES)),
        goals=_goals_of(run.folder),
    )


def _goals_of(folder: Path) -> Callable[[], Mapping[str, Mapping[str, Any]]]:
    """The goals of a run: read again when their file has changed, as an export asks for those of every latent."""

    @functools.lru_cache(maxsize=1)
    def read(stamp: tuple[int, int] | None) -> Mapping[str, Mapping[str, Any]]:
        return {} if stamp is None else read_goals(folder)

    def goals() -> Mapping[str, Mapping[str, Any]]:
        try:
            found = (folder / GOALS).stat()
        except FileNotFoundError:
            return read(None)
        return read((found.st_mtime_ns, found.st_size))

    return goals


def explorer_of_alone(alone: Alone) -> Explorer:
    """A dictionary without a run as the explorer shows it."""
    one, source = alone.state(), alone.recipe.source
    digest, sae = sha256_of(alone.tensors), load(alone.folder)
    found = certificate_of_files(alone.folder, sae.width)
    certificate = found if found is not None and found.is_of_this_rule else None
    answer = None if certificate is None else verdict(certificate.to_dict()).to_dict()
    shown = Explored(one.name, one.title, one.folder, alone.folder, digest, lambda: load(alone.folder), answer)
    return Explorer(
        name=alone.folder.resolve().name,
        dictionaries={one.name: shown},
        site=alone.site,
        labels=alone.out / LABELS,
        side=source.side,
        replicas=1 if certificate is None else len(certificate.replicas),
        load_model=lambda: load_model(alone.recipe),
        tokens=alone.tokens,
        rows=lambda: alone.rows(verify=False),
        force_bos=source.force_bos,
        max_norm=float(source.norm_bound * alone.rows(verify=False).meta["median_norm"]),
        revision=source.revision,
    )


def note_explorer_export(source: Path, folder: Path) -> None:
    """Write down in a run that its pages were written into a folder; what is no run has no list of such."""
    if (source / MANIFEST).exists():
        note_export(Run.open(source), "pages of the explorer", folder, text=True)


def _explored(run: Run, one: Indexed, verdict: dict[str, Any] | None) -> Explored:
    folder = run.path(one.path)
    digest = sha256_of(folder / "sae.safetensors")
    return Explored(one.name, one.title, one.folder, folder, digest, lambda: load(folder), verdict)


def _verdicts(run: Run) -> dict[str, dict[str, Any]]:
    """By the dictionary's place, the answer about each that ships; none where what they rest on cannot be read."""
    try:
        known = certificates_of(run)
        return {pair.places[0]: verdict_of(run, known, pair).to_dict() for pair in trained_pairs(run)}
    except KyomeiError:
        return {}


def _facts(run: Run) -> dict[str, Any]:
    """What the report says of the run, as plain values; without it, why."""
    try:
        data = report_data(run)
    except KyomeiError as error:
        return {"missing": [str(error)]}
    shown = {name: value for name, value in asdict(data).items() if name not in _NOT_SHOWN}
    facts: dict[str, Any] = plain({**shown, "history": run.manifest.get("history", [])})
    return facts


def _max_norm(run: Run) -> float:
    """Norm above which rows were dropped from the harvest."""
    return float(run.recipe.source.norm_bound * activations(run, "evidence", verify=False).meta["median_norm"])


def _is_held(run: Run) -> bool:
    """Whether another process is at work in the run's folder."""
    try:
        refuse_if_locked(run.folder)
    except RunError:
        return True
    return False
