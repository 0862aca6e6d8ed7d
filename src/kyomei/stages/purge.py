"""What of one run changes when a document is forgotten: its part of the harvest, and everything drawn from it."""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.errors import RunError
from kyomei.evidence.goals.detector import FILE as GOALS
from kyomei.evidence.goals.detector import file_of, read_goals
from kyomei.runs import MANIFEST, RECIPE, Run, plain
from kyomei.sealing import BESIDE
from kyomei.source.forgetting import kept_documents, rewritten_rows, rows_left, without
from kyomei.source.text import Tokens
from kyomei.stages import exports, tombstones
from kyomei.stages.certify import EXPIRED
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.journal import Change, Journal
from kyomei.stages.named import FOLDER as EXPLORE
from kyomei.stages.pools import FOLDER as POOLS
from kyomei.stages.pools import holding, is_held
from kyomei.views.index.redaction import FILE as REDACTION
from kyomei.views.labels import FILE as LABELS
from kyomei.views.labels import Labels
from kyomei.views.traces import Trace

EXAMPLES, EVIDENCE = "examples.json", "evidence"
"""Text that features fire on, and the part of the documents that it is of."""
REPORTS = ("report*.html", "report*.pdf")
_SHOWN = (EXAMPLES, *REPORTS, "*.pdf", f"{EXPLORE}/*/*", "watch/reference-*")
"""Files that show text or figures of single evidence documents, each made anew by its verb; a PDF cannot be looked into."""
_EARLIER_GOALS = f"earlier/*/{GOALS}"
"""What smaller pilots of the run told, kept as history: nobody detects with it."""
_OWN = (
    MANIFEST, RECIPE, tombstones.FILE, exports.FILE, GOALS, _EARLIER_GOALS, f"{EXPLORE}/{LABELS}", f"{EXPLORE}/{REDACTION}",
    f"*{CERTIFICATE}", f"*{EXPIRED}/*.json", "tokens/*", "activations/*", f"*{BESIDE}",
)  # fmt: skip
"""Files that are dealt with one by one, or say nothing of a text."""


def parts_of(run: Run) -> Iterator[tuple[str, Tokens]]:
    """The tokens of each part of a run's own harvest, and of what its training streams."""
    for name in run.store.names("tokens/*/index.json"):
        part = name.split("/")[1]
        yield part, Tokens.load(run.store / f"tokens/{part}")


def trace_of(parts: Iterable[Tokens], digests: Collection[str]) -> Trace:
    """What tells the documents of some digests from all others."""
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    spans: list[list[str]] = []
    ids: list[np.ndarray] = []
    other_ids: list[np.ndarray] = []
    for tokens in parts:
        gone = {kept.number for kept in kept_documents(tokens, "") if kept.sha256 in digests}
        for number, document in enumerate(tokens.documents):
            (texts if number in gone else others)[document.text] = document.text
        flat, document_of = tokens.ids.flatten().numpy(), tokens.document.flatten().numpy()
        hit = np.isin(document_of, sorted(gone))
        other_ids.append(flat[~hit])
        # A stretch ends where another document or another window begins.
        edges = np.flatnonzero((np.diff(document_of) != 0) | (np.arange(1, len(flat)) % tokens.context == 0)) + 1
        for places in np.split(np.arange(len(flat)), edges):
            if len(places) and hit[places[0]]:
                ids.append(flat[places])
                if tokens.has_text:
                    spans.append([tokens.text_at(int(place)) for place in places])
    return Trace(texts, spans, ids, (list(others), other_ids))


class Purge:
    """Collects what changes in one run.

    Args:
        run: held by this process.
        change: where it is collected.
        begun: the act: which documents go, of which parts, and since when.
        trace: of the documents; none: they are gone already, and files cannot be searched for them.
    """

    def __init__(self, run: Run, change: Change, begun: Journal, trace: Trace | None) -> None:
        self.run, self.change, self.on, self.trace = run, change, begun.on, trace
        self.digests = {document["sha256"] for document in begun.documents}
        self.parts = {part for document in begun.documents for part in document["parts"]}

    def harvest(self) -> None:
        """The run's own tokens and rows without the documents.

        Raises:
            RunError: a part would have no row left.
        """
        names: dict[str, list[str]] = {}
        for part, tokens in parts_of(self.run):
            gone = [kept for kept in kept_documents(tokens, part) if kept.sha256 in self.digests]
            if gone:
                tokens, hit = without(tokens, gone)
                self._rewrite(part, tokens, hit)
            names[part] = [document.name for document in tokens.documents]
        split = self.run.manifest.get("split", {})
        self.change.facts["split"] = {part: names.get(part, known) for part, known in split.items()}

    def _rewrite(self, part: str, tokens: Tokens, hit: np.ndarray) -> None:
        run, store = self.run, self.run.store
        sites = [name.removesuffix("/index.json") for name in store.names(f"activations/{part}/*/index.json")]
        for site in sites:
            if not rows_left(store / site, tokens.context, hit):
                do = "delete the harvest and its runs instead, or harvest other text"
                raise RunError(f"rows of other documents in the part {part} of {run.folder}", "none", do)
        for site in sites:
            for name, content in rewritten_rows(store / site, tokens, hit):
                self.change.replace(run, f"{site}/{name}", content)
        with tempfile.TemporaryDirectory(dir=run.folder, prefix=".", suffix=".1.tmp") as folder:
            tokens.save(folder, keep_text=tokens.has_text)
            for path in sorted(Path(folder).iterdir()):
                self.change.replace(run, f"tokens/{part}/{path.name}", path.read_bytes())

    def derived(self) -> None:
        """Everything that rests on the harvest: what shows text goes, certificates expire, unfinished training starts anew."""
        run = self.run
        names = sorted(run.files())
        self.change.report = run.path("report.html").exists() and run.manifest.get("family") is None
        for name in names:
            if Path(name).name == CERTIFICATE or Path(name).parent.name == EXPIRED:
                self._certificate(name)
            elif Path(name).name == "config.json":
                self._dictionary(name)
            elif self._shows_text(name) or self._is_unfinished(name) or self._has_trace(name):
                self.change.remove(run, name)
        self._goals()
        labels = run.path(f"{EXPLORE}/{LABELS}")
        if self.trace is not None and labels.exists():
            self.change.labels = Labels(labels).quoting(self.trace.in_text)

    def _has_trace(self, name: str) -> bool:
        return self.trace is not None and not _matches(name, _OWN) and self.trace.in_file(self.run.path(name))

    def _shows_text(self, name: str) -> bool:
        shown = _SHOWN if EVIDENCE in self.parts else REPORTS if self.change.report else ()
        return _matches(name, shown)

    def _is_unfinished(self, name: str) -> bool:
        """Whether a file is of a training that has not ended and has read the documents: its rows are others from now on."""
        for folder in Path(name).parents:
            read = {f"replica-{folder.name}", f"stream-{folder.name}"} & self.parts
            if not read or {"checkpoints", "warm"} & {*folder.parts}:
                continue
            traces = ("checkpoints", "warm", "directions.safetensors")
            is_training = any(self.run.path(f"{folder.as_posix()}/{trace}").exists() for trace in traces)
            if is_training and f"train {folder.as_posix()}" not in self.run.manifest["stages"]:
                return True
        return False

    def _certificate(self, name: str) -> None:
        """A certificate that says that it has expired; without tokens, where they may be the document's."""
        values = self.run.read_json(name)
        if EVIDENCE in self.parts:
            values["features"] = _untold(values["features"])
        if Path(name).name == CERTIFICATE:
            why = f"documents were forgotten on {self.on}"
            values["expired"] = {"on": self.on, "why": why}
        self.change.replace(self.run, name, _as_json(values))

    def _goals(self) -> None:
        """Encoded text goes where a document is in it; goals found with it expire, or with nobody knows what."""
        run = self.run
        # Where no text was kept, a document's digest is of its tokens, and tells nothing of a labelled text.
        held = holding(run, self.digests if run.recipe.source.keep_text else None)
        for name in sorted(run.files()):
            if Path(name).parts[0] == POOLS and Path(name).parts[1] in held:
                self.change.remove(run, name)
        goals, why = read_goals(run.folder), f"documents that it was found with were forgotten on {self.on}"
        for name, goal in goals.items():
            encoded = goal["data"].get("encoded")
            if goal.get("expired") is None and (encoded in held or not is_held(run, encoded)):
                self.change.goals[name] = str(goal["data"]["file"])
                goal["expired"] = {"on": self.on, "why": why}
        if goals and (self.change.goals or EVIDENCE in self.parts):
            self.change.replace(run, GOALS, _as_json(file_of(self._without_tokens(goals))))
        for name in sorted(run.files()) if EVIDENCE in self.parts else ():
            if _matches(name, (_EARLIER_GOALS,)):
                earlier = read_goals(run.path(name).parent)
                self.change.replace(run, name, _as_json(file_of(self._without_tokens(earlier))))

    def _without_tokens(self, goals: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same goals; where tokens may be the document's, without any."""
        if EVIDENCE not in self.parts:
            return goals
        return {
            name: {**goal, "detector": {**goal["detector"], "features": _untold(goal["detector"]["features"])}}
            for name, goal in goals.items()
        }

    def _dictionary(self, name: str) -> None:
        """Settings of a dictionary that no longer say that it is certified."""
        values = self.run.read_json(name)
        provenance = values.get("provenance") or {}
        if "certificate" in provenance:
            kept = {key: value for key, value in provenance.items() if key != "certificate"}
            self.change.replace(self.run, name, _as_json({**values, "provenance": kept}))


def _untold(features: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Features that name no token."""
    return [{**feature, "tokens": []} for feature in features]


def _as_json(values: Any) -> bytes:
    return (json.dumps(plain(values), indent=1, ensure_ascii=False) + "\n").encode()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
