"""What a report rests on, and what it says of certificates and goals from which a document was taken away."""

from __future__ import annotations

from pathlib import Path

from kyomei.evidence.certificate import Certificate
from kyomei.evidence.goals.detector import read_goals
from kyomei.runs import Run
from kyomei.stages.arms import trained_pairs
from kyomei.stages.certify import certificate_path
from kyomei.stages.check import FILE as PREMISES
from kyomei.views.speech import Speech
from kyomei.views.words import dictionary_title

REPORT = "report"
"""Name of the stage that draws the pages."""


def drawn_from(run: Run) -> dict[str, str]:
    """Digests of the files that a report is drawn from, for `Run.finish`: so an audit sees one that is out of date."""
    certificates = [path.relative_to(run.folder).as_posix() for path in _certificates(run).values()]
    return run.digests(["evidence.json", "examples.json", PREMISES, *certificates])


def expired_words(run: Run, speech: Speech) -> list[str]:
    """A sentence for each certificate and goal that has expired because documents were forgotten."""
    words = []
    for name, path in _certificates(run).items():
        expired = Certificate.read(path).expired if path.exists() else None
        if expired is not None:
            date = speech.date(str(expired["on"]))
            named = dictionary_title(name, speech)
            words.append(speech.t("state.forgotten_certificate", name=named, date=date, folder=run.folder))
    for name, goal in read_goals(run.folder).items():
        if (gone := goal.get("expired")) is not None:
            date = speech.date(str(gone["on"]))
            words.append(speech.t("state.forgotten_goal", name=name, date=date, folder=run.folder))
    return words


def _certificates(run: Run) -> dict[str, Path]:
    return {pair.name: certificate_path(run, pair) for pair in trained_pairs(run)}
