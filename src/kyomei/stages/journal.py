"""Changes to several runs that happen together or not at all: staged beside the files, then done from a journal.

Until the journal is there nothing has changed; from then on all of it can be done without what it was computed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kyomei.atomic import sync_folder, write_atomic
from kyomei.runs import Run
from kyomei.sealing import FORGETTING, UNFINISHED, digest_of
from kyomei.source.journals import INDEX
from kyomei.stores import Copies

FILE = "forgetting.json"
"""The journal, in the harvest's folder."""


@dataclass
class Change:
    """What changes in one run's folder.

    Attributes:
        folder: of the run, from the harvest's.
        old: SHA-256 by name of every file that changes, as it was.
        new: the same as it will be; none: it goes.
        facts: what the manifest says from then on.
        harvest: "old" and "new" SHA-256 of the harvest that the run holds or names; empty: it stays as it is.
        labels: ids of the entries that are blanked.
        goals: that expire, by name, with the name of the file of labelled text that each was found with.
        report: whether the run had a report, which is drawn anew.
    """

    folder: str
    old: dict[str, str] = field(default_factory=dict)
    new: dict[str, str | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    harvest: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    goals: dict[str, str] = field(default_factory=dict)
    report: bool = False

    def replace(self, run: Run, name: str, content: bytes) -> None:
        """Have a file replaced; the new one is staged beside it."""
        self.old[name] = _digest(run, name)
        write_atomic(run.path(FORGETTING) / name, content)
        self.new[name] = hashlib.sha256(content).hexdigest()

    def remove(self, run: Run, name: str) -> None:
        """Have a file removed."""
        self.old.setdefault(name, digest_of(run.path(name)))
        self.new[name] = None

    def do(self, run: Run) -> None:
        """Replace and remove; what has been done before stays done."""
        for name, digest in self.new.items():
            path, staged = run.path(name), run.path(FORGETTING) / name
            store = run.store_of(name)
            if not store.is_here and digest is not None:
                if staged.exists():
                    store.put(name, [staged.read_bytes()])
                    Copies.of_environment().drop(self.old[name])
            elif digest is None:
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, run.folder)
            elif staged.exists():
                os.replace(staged, path)
                sync_folder(path.parent)
        # Said here and not left to the run's lock, whose process may have been killed in between.
        outputs = {**run.manifest["outputs"], **self.new}
        run.note(**self.facts, outputs={name: digest for name, digest in sorted(outputs.items()) if digest is not None})


@dataclass
class Journal:
    """All changes of one act.

    Attributes:
        on: when it was begun: also its name.
        documents: what is forgotten, as a tombstone says it.
        changes: by run.
        told: what else the tombstone says.
    """

    on: str
    documents: list[dict[str, Any]]
    changes: list[Change] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    def write(self, host: Run, runs: Iterable[Run]) -> None:
        """Let everything staged count; from here on, other verbs refuse these runs until all of it is done."""
        for run in runs:
            write_atomic(run.path(UNFINISHED), self.on.encode())
        write_atomic(host.path(FILE), json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, host: Run) -> Journal | None:
        """What was begun in a harvest's folder and not ended; none: nothing."""
        path = host.path(FILE)
        if not path.exists():
            return None
        values = json.loads(path.read_bytes())
        return cls(**{**values, "changes": [Change(**change) for change in values["changes"]]})


def clear(run: Run) -> None:
    """Remove what was staged in a run."""
    if run.path(FORGETTING).exists():
        shutil.rmtree(run.path(FORGETTING))
        sync_folder(run.folder)


def end(host: Run) -> None:
    """Remove the journal, once all is done."""
    host.path(FILE).unlink(missing_ok=True)
    sync_folder(host.folder)


def _digest(run: Run, name: str) -> str:
    """SHA-256 of a file of a run; at an address what the manifest says, without reading it, where its index is as it was."""
    outputs, index = run.manifest["outputs"], f"{name.rpartition('/')[0]}/{INDEX}"
    if not run.store_of(name).is_here and name in outputs and run.digests([index]) == {index: outputs.get(index)}:
        return str(outputs[name])
    return run.digests([name])[name]


def _remove_empty(folder: Path, above: Path) -> None:
    while folder != above and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
