"""What a watch remembers of its stream, in a folder: one file that appears whole, and the events that it vouches for."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors
import safetensors.numpy

from kyomei.atomic import refusals_named
from kyomei.errors import RunError
from kyomei.evidence.documents import DocumentFigures
from kyomei.runs import plain
from kyomei.sealing import beside, vouched, write_vouched

SCHEMA_VERSION = 2
STATE, EVENTS, STATUS = "state.safetensors", "events.jsonl", "status.json"
MOST_SOURCES = 200
"""Sources of a stream whose places are remembered."""
_FACTS = "facts"


@dataclass
class Place:
    """How far one source of a stream has been read.

    Attributes:
        documents: taken from it.
        chain: digest of those documents, in their order: what is read again is skipped only if it is the same.
        ended: whether it was read to its end.
    """

    documents: int = 0
    chain: str = ""
    ended: bool = False


@dataclass
class Sums:
    """Figures of some documents together.

    Attributes:
        documents, rows: how many.
        error, squares: as of a document.
        goals: sum of the documents' scores, by goal.
    """

    documents: int = 0
    rows: int = 0
    error: float = 0.0
    squares: float = 0.0
    goals: dict[str, float] = field(default_factory=dict)

    def add(self, document: DocumentFigures, goals: dict[str, float]) -> None:
        self.documents += 1
        self.rows += document.num_rows
        self.error += document.error
        self.squares += document.squares
        for name, score in goals.items():
            self.goals[name] = self.goals.get(name, 0.0) + score

    @property
    def unexplained(self) -> float | None:
        """Share of the squares that reconstructions leave; none where there are none."""
        return self.error / self.squares if self.squares else None


@dataclass
class Facts:
    """What is remembered beside arrays.

    Attributes:
        held: what the state is of: digests of dictionary, model, reference and detectors.
        began, last: when the watch began, and when its last document was counted; ISO 8601 in UTC.
        all, window: sums over the stream, and over the window that is open.
        windows: that are closed.
        skipped: documents without a token, and records that could not be read.
        alarms: by kind, the document, the window and the time of the first, and the latents that it is about.
        expired: reasons for which the certificate was said to have expired.
        sources: places by source.
        events: bytes of the file of events that belong to this state.
    """

    held: dict[str, str] = field(default_factory=dict)
    began: str = ""
    last: str = ""
    all: Sums = field(default_factory=Sums)
    window: Sums = field(default_factory=Sums)
    windows: int = 0
    skipped: int = 0
    alarms: dict[str, dict[str, Any]] = field(default_factory=dict)
    expired: list[str] = field(default_factory=list)
    sources: dict[str, Place] = field(default_factory=dict)
    events: int = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> Facts:
        """From what `asdict` gave."""
        sums: dict[str, Any] = {name: Sums(**values.pop(name)) for name in ("all", "window")}
        sources = {name: Place(**place) for name, place in values.pop("sources").items()}
        return cls(**values, **sums, sources=sources)


@final
class StateFolder:
    """A folder in which a watch is remembered.

    Events that were written after the last state are of documents that will be counted again: they are taken back on opening,
    so that none stands there twice.

    Args:
        folder: made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[str] = []

    def read(self, held: dict[str, str]) -> tuple[Facts, dict[str, np.ndarray]] | None:
        """What is remembered; none: nothing yet.

        Args:
            held: digests of what is watched now, and with what.

        Raises:
            RunError: the state is of something else, or damaged.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        do = "begin anew with --overwrite, or watch into another folder with --state"
        try:
            with safetensors.safe_open(path, "numpy") as file:
                values = json.loads(file.metadata()[_FACTS])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = values.pop("schema_version")
            facts = Facts.of(values) if version == SCHEMA_VERSION else Facts()
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise RunError("the state of a watch", f"{path}: {type(error).__name__}", do) from error
        if version != SCHEMA_VERSION:
            raise RunError(f"a state of schema {SCHEMA_VERSION}", f"{version} in {path}", do)
        other = [name for name in sorted(held.keys() | facts.held.keys()) if held.get(name) != facts.held.get(name)]
        if other:
            raise RunError(f"a watch of the same {' and '.join(other)}", f"another in {self.folder}", do)
        self._take_back(facts.events)
        return facts, arrays

    def clear(self) -> None:
        """Forget everything."""
        for path in (self.folder / name for name in (STATE, EVENTS, STATUS)):
            path.unlink(missing_ok=True)
            beside(path).unlink(missing_ok=True)

    def tell(self, event: dict[str, Any]) -> None:
        """Keep an event for the next `write`."""
        self._waiting.append(json.dumps(plain(event), ensure_ascii=False))

    def write(self, facts: Facts, arrays: dict[str, np.ndarray]) -> None:
        """Write events that wait, then the state that vouches for them."""
        if self._waiting:
            data = "".join(f"{line}\n" for line in self._waiting).encode()
            path = self.folder / EVENTS
            with refusals_named(path), vouched(path), open(path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            facts.events += len(data)
            self._waiting = []
        values = json.dumps({"schema_version": SCHEMA_VERSION, **plain(asdict(facts))}, ensure_ascii=False)
        write_vouched(self.folder / STATE, safetensors.numpy.save(arrays, {_FACTS: values}))

    def write_status(self, status: dict[str, Any]) -> None:
        """Write what others may read of the watch."""
        write_vouched(self.folder / STATUS, (json.dumps(plain(status), ensure_ascii=False, indent=1) + "\n").encode())

    def _take_back(self, size: int) -> None:
        path = self.folder / EVENTS
        if path.exists() and path.stat().st_size > size:
            with refusals_named(path), vouched(path), open(path, "r+b") as file:
                file.truncate(size)
