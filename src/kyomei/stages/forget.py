"""A document out of a harvest and of all that learnt or shows something of it, with a tombstone in its place."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.errors import KyomeiError, RunError
from kyomei.locks import refuse_if_locked
from kyomei.provenance import now
from kyomei.runs import MANIFEST, Run
from kyomei.sealing import digest_of
from kyomei.source.forgetting import Kept, kept_documents
from kyomei.source.text import Tokens
from kyomei.stages import journal as journals
from kyomei.stages import tombstones
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.exports import exports_of
from kyomei.stages.harvested import NAMED, digest
from kyomei.stages.journal import Change, Journal
from kyomei.stages.named import FOLDER as EXPLORE
from kyomei.stages.progress import Reporter
from kyomei.stages.purge import Purge, parts_of, trace_of
from kyomei.stages.report import PAGES, report_run
from kyomei.stages.tombstones import Tombstones
from kyomei.views.labels import FILE as LABELS
from kyomei.views.labels import Labels
from kyomei.views.traces import Trace

BLANK = "[forgotten]"
"""Stands for a label or note that quoted a forgotten document."""
LEAST_DIGEST = 12
"""Letters of a document's SHA-256 that name it."""
_PASSED = {"activations", "tokens", "replicas", "checkpoints", "baselines", "node_modules"}


@dataclass(frozen=True)
class Asked:
    """What is to be forgotten, before anything is.

    Attributes:
        host: the harvest.
        documents: what is to go, of every part; the same text under another name goes with it.
        runs: all runs that learn from the harvest, itself and those in its folder included.
    """

    host: Run
    documents: list[Kept]
    runs: list[Run]


def documents_of(host: Run) -> list[Kept]:
    """The documents of a harvest, part by part."""
    return [kept for part, tokens in parts_of(host) for kept in kept_documents(tokens, part)]


def forget(
    folder: Path,
    wanted: Sequence[str],
    reporter: Reporter,
    *,
    places: Sequence[Path] = (),
    agree: Callable[[Asked], bool] = lambda asked: True,
) -> dict[str, Any]:
    """Take documents out of a harvest and of the runs on it; what was begun before and not ended is ended first.

    Args:
        folder: of the harvest, or of a run that learns from it.
        wanted: documents: names as the harvest has them, PART/NUMBER, a SHA-256 of the text or its first letters, or the file
            that several records are of. None: what was begun is ended, and runs that have not followed do so.
        reporter: shows progress.
        places: further folders in which runs on the harvest may lie, beside the folder that it lies in.
        agree: is asked once it is known what goes.

    Returns:
        "harvest", "documents", "runs", "files" (by run), "weights" that learnt from them, "certificates" and "goals" that have
        expired, "labels" blanked, "exports" and "source", which were not touched.

    Raises:
        RunError: no such document; a part would have no row left; a run is locked or cannot be written to; no consent.
    """
    host = _host(Run.open(folder))
    if host.manifest.get("sites") is None:
        do = "finish it with --resume, or delete it"
        raise RunError("a harvest that has ended", f"one in {host.folder} that has not", do)
    runs = _runs_on(host, places)
    for run in runs:
        _require_free(run)
    pending = Journal.read(host)
    if pending is not None:
        reporter.note(f"what was begun on {pending.on} is ended first")
        with _held(runs):
            facts = _finished(host, runs, pending, reporter)
        if not wanted:
            return facts
    for run in runs:
        journals.clear(run)  # what was staged and never counted
    documents = _matching(host, wanted) if wanted else []
    if wanted and not documents:
        return _nothing(host)
    if not wanted:
        late = [run for run in runs if _is_late(run)]
        if not late:
            return _nothing(host)
        with _held(late):
            return _followed(host, late, reporter)
    if not agree(Asked(host, documents, runs)):
        raise RunError("a yes", "no", "nothing was changed")
    with _held(runs):
        begun = _begun(host, runs, documents, reporter)
        return _finished(host, runs, begun, reporter)


def _begun(host: Run, runs: Sequence[Run], documents: Sequence[Kept], reporter: Reporter) -> Journal:
    """Stage everything that changes, and write the journal."""
    digests = {document.sha256 for document in documents}
    trace = trace_of(_stores(runs), digests)
    told = {sha: [d for d in documents if d.sha256 == sha] for sha in sorted(digests)}
    begun = Journal(now(), [_stone(sha, of) for sha, of in told.items()])
    renewed: dict[Path, Change] = {}
    with reporter.progress("forget") as progress:
        for number, run in enumerate(sorted(runs, key=lambda run: NAMED in run.manifest), 1):
            change = Change(Path(os.path.relpath(run.folder.resolve(), host.folder.resolve())).as_posix())
            purge = Purge(run, change, begun, trace)
            if _has_own(run):
                purge.harvest()
                new = digest(run, {name: sha for name, sha in change.new.items() if sha})
                change.harvest = {"old": digest(run), "new": new}
                renewed[run.folder.resolve()] = change
            purge.derived()
            if (named := run.manifest.get(NAMED)) is not None:
                host_change = renewed[_named_folder(run)]
                change.harvest = dict(host_change.harvest)
                change.facts |= {NAMED: {**named, "sha256": change.harvest["new"]}, "split": host_change.facts["split"]}
            begun.changes.append(change)
            progress(number, len(runs))
    begun.told = _told(host, runs, begun, trace)
    begun.write(host, runs)
    return begun


def _stone(sha: str, documents: Sequence[Kept]) -> dict[str, Any]:
    """What a tombstone says of one document."""
    return {"sha256": sha, "parts": sorted({d.part for d in documents}), "tokens": sum(d.tokens for d in documents)}


def _told(host: Run, runs: Sequence[Run], begun: Journal, trace: Trace | None) -> dict[str, Any]:
    """What else is said of it: weights that learnt from the documents, certificates that expire, and what is not reached."""
    parts = {part for document in begun.documents for part in document["parts"]}
    return {
        "weights": [f"{change.folder}/{place}" for run, change in _zipped(host, runs, begun) for place in _learnt(run, parts)],
        "certificates": [f"{c.folder}/{name}" for c in begun.changes for name in c.new if Path(name).name == CERTIFICATE],
        "goals": [{"run": c.folder, "goal": goal, "file": file} for c in begun.changes for goal, file in c.goals.items()],
        "exports": [_reached(entry, run, trace) for run in runs for entry in exports_of(run) if entry.get("text")],
        "source": host.recipe.source.address,
    }


def _followed(host: Run, late: Sequence[Run], reporter: Reporter) -> dict[str, Any]:
    """Let runs that were elsewhere follow what their harvest has forgotten; what quotes it is no longer known."""
    entries = Tombstones.read(host.folder).entries
    stones = [document for entry in entries for document in entry["documents"]]
    begun = Journal(now(), stones)
    for run in late:
        change = Change(Path(os.path.relpath(run.folder.resolve(), host.folder.resolve())).as_posix())
        Purge(run, change, begun, None).derived()
        named, learnt_from = run.manifest[NAMED], Run.open(_named_folder(run))
        change.harvest = {"old": named["sha256"], "new": digest(learnt_from)}
        change.facts = {NAMED: {**named, "sha256": change.harvest["new"]}, "split": learnt_from.manifest["split"]}
        begun.changes.append(change)
    begun.told = _told(host, late, begun, None)
    begun.write(host, late)
    return _finished(host, late, begun, reporter)


def _finished(host: Run, runs: Sequence[Run], begun: Journal, reporter: Reporter) -> dict[str, Any]:
    """Do what a journal says, as far as it is not done, and leave the tombstones."""
    changed = list(_zipped(host, runs, begun))
    for run, change in changed:
        change.do(run)
        Labels(run.path(f"{EXPLORE}/{LABELS}")).blank(change.labels, BLANK)
    for run, _ in changed:
        journals.clear(run)
    for run, change in changed:
        if change.report:
            _redrawn(run, change, reporter)
        _leave(run, change, begun)
    journals.end(host)
    return {
        "harvest": str(host.folder),
        "documents": begun.documents,
        "runs": [str(run.folder) for run, _ in changed],
        "files": {change.folder: sorted(change.new) for _, change in changed},
        "labels": sum(len(change.labels) for _, change in changed),
        "goals": [],
        **begun.told,
    }


def _leave(run: Run, change: Change, begun: Journal) -> None:
    """Write the tombstone of a run: what is forgotten, and every file as it was and as it is."""
    files = {name: {"old": change.old.get(name), "new": new} for name, new in sorted(change.new.items())}
    entry = {"on": begun.on, "documents": begun.documents, "files": files, "harvest": change.harvest, **begun.told}
    entries = [one for one in Tombstones.read(run.folder).entries if one["on"] != begun.on]
    run.record(run.write_json(tombstones.FILE, {"forgotten": [*entries, entry]}))


def _redrawn(run: Run, change: Change, reporter: Reporter) -> None:
    """Draw a run's report anew, from what is left."""
    try:
        report_run(run)
        change.new |= {name: digest_of(run.path(name)) for name in PAGES.values()}
    except KyomeiError as error:
        reporter.note(f"the report of {run.folder} was removed, and is not drawn anew: {error}")


def _nothing(host: Run) -> dict[str, Any]:
    found = Tombstones.read(host.folder)
    documents = [document for entry in found.entries for document in entry["documents"]]
    none: dict[str, Any] = {"runs": [], "files": {}, "labels": 0, "weights": [], "certificates": [], "goals": [], "exports": []}
    return {"harvest": str(host.folder), "documents": [], "before": documents, **none, "source": host.recipe.source.address}


def _host(run: Run) -> Run:
    """The run that holds the rows that a run learns from."""
    return run if run.manifest.get(NAMED) is None else _host(Run.open(_named_folder(run)))


def _named_folder(run: Run) -> Path:
    return Path(os.path.normpath(run.folder.resolve() / run.manifest[NAMED]["path"]))


def _runs_on(host: Run, places: Sequence[Path]) -> list[Run]:
    """The harvest, the runs in its folder, and those in other folders that learn from it, with the runs in theirs."""
    found = {host.folder.resolve(): host}
    around = [host.folder, *places, host.folder.resolve().parent]
    folders = [folder.resolve() for place in around for folder in _folders(place)]
    for _ in range(2):  # a run in a run may name a harvest in a harvest
        for folder in folders:
            if folder in found:
                continue
            inside = any(folder.is_relative_to(known) for known in found)
            if inside or _names_one(folder, found):
                found[folder] = Run.open(folder)
    return list(found.values())


def _folders(place: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(place):
        if MANIFEST in files:
            yield Path(folder)
        inside[:] = sorted(name for name in inside if name not in _PASSED and not name.startswith("."))


def _names_one(folder: Path, found: dict[Path, Run]) -> bool:
    try:
        named = Run.open(folder).manifest.get(NAMED)
        return named is not None and Path(os.path.normpath(folder / named["path"])) in found
    except (KyomeiError, OSError, KeyError, TypeError):
        return False  # of another layout, or no run at all: nothing says that it is of this harvest


def _require_free(run: Run) -> None:
    refuse_if_locked(run.folder)
    if not run.writable:
        do = "have it forgotten by whoever may write there, or copy it away"
        raise RunError("a run that can be written to", f"{run.folder}, which cannot", do)


@contextlib.contextmanager
def _held(runs: Sequence[Run]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.lock())
        yield


def _has_own(run: Run) -> bool:
    """Whether a run has a harvest of its own."""
    return NAMED not in run.manifest and run.store.has("tokens")


def _stores(runs: Sequence[Run]) -> list[Tokens]:
    return [tokens for run in runs if _has_own(run) for _, tokens in parts_of(run)]


def _matching(host: Run, wanted: Sequence[str]) -> list[Kept]:
    """The documents that are asked for, with those of the same text; those that are forgotten already are left out."""
    kept = documents_of(host)
    gone = [d["sha256"] for entry in Tombstones.read(host.folder).entries for d in entry["documents"]]
    digests: set[str] = set()
    for asked in wanted:
        found = [d.sha256 for d in kept if asked in (d.name, d.id)]
        if not found and len(asked) >= LEAST_DIGEST:
            found = [d.sha256 for d in kept if d.sha256.startswith(asked.lower())]
            if not found and any(digest.startswith(asked.lower()) for digest in gone):
                continue
        found = found or [d.sha256 for d in kept if d.name.rpartition(":")[0] == asked and d.name.rpartition(":")[2].isdigit()]
        if not found:
            near = difflib.get_close_matches(asked, {d.name for d in kept}, n=3)
            do = f"did you mean {' or '.join(map(repr, near))}" if near else "see what there is with --list"
            raise RunError(f"a document of {host.folder}", f"none called {asked!r}", do)
        digests |= set(found)
    # Without text a digest is of the tokens that a part has of a document: its name tells it in other parts.
    names = set() if host.recipe.source.keep_text else {d.name for d in kept if d.sha256 in digests}
    return [d for d in kept if d.sha256 in digests or d.name in names]


def _is_late(run: Run) -> bool:
    named = run.manifest.get(NAMED)
    if named is None:
        return False
    host = Run.open(_named_folder(run))
    return Tombstones.read(host.folder).leads(named["sha256"], digest(host)) is not None


def _zipped(host: Run, runs: Sequence[Run], begun: Journal) -> Iterator[tuple[Run, Change]]:
    """Each change with its run; one whose run has gone since is left out."""
    known = {run.folder.resolve(): run for run in runs}
    for change in begun.changes:
        run = known.get(Path(os.path.normpath(host.folder.resolve() / change.folder)))
        if run is not None:
            yield run, change


def _learnt(run: Run, parts: set[str]) -> list[str]:
    """Dictionaries, and directions, that were learnt from some parts of the documents; nulls learn their statistics."""
    numbers = {part.rpartition("-")[2] for part in parts if part.startswith(("replica-", "stream-"))}
    stages = [stage.partition(" ")[2] for stage in run.manifest["stages"] if stage.startswith("train ")]
    return [place for place in stages if place.rpartition("/")[2] in numbers]


def _reached(entry: dict[str, Any], run: Run, trace: Trace | None) -> dict[str, Any]:
    """An export with whether its folder, where that is here, has something of the documents."""
    folder = Path(str(entry["where"]))
    holds = None
    if trace is not None and folder.is_absolute() and folder.is_dir():
        holds = any(trace.in_file(path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {**entry, "run": str(run.folder), "holds": holds}
