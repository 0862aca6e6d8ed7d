"""People's labels and notes on latents, and automatic ones, in SQLite beside a run.

Nothing is ever changed in place: a label is an entry, and the newest entry of an author says what holds. So the labels of two
people are merged by putting their entries together, in any order and as often as one likes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, final

from kyomei.errors import DataError, RunError
from kyomei.sealing import vouched

FILE = "labels.sqlite"
MANUAL, AUTOMATIC = "manual", "automatic"
LONGEST = {"dictionary": 200, "digest": 64, "label": 200, "note": 5000, "author": 100, "source": 300}
"""Characters of each text."""
_BUSY_SECONDS = 10.0
_CHANGES = slice(24, 28)
"""Bytes of an SQLite file that hold how often it was changed."""
# They turn what stands behind them around, on this page and on the next.
_TURNING = {chr(c) for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_TABLE = """CREATE TABLE IF NOT EXISTS labels (
    id TEXT PRIMARY KEY, dictionary TEXT NOT NULL, digest TEXT NOT NULL, latent INTEGER NOT NULL, label TEXT NOT NULL,
    note TEXT NOT NULL, author TEXT NOT NULL, time TEXT NOT NULL, kind TEXT NOT NULL, score REAL, null_score REAL,
    source TEXT NOT NULL)"""


@dataclass(frozen=True)
class Label:
    """What somebody says of a latent. Empty label and note take back what the same author said before.

    Attributes:
        dictionary: its name, such as "replicas-0".
        digest: SHA-256 of the dictionary's file: of another one nothing is said.
        latent: number of the latent.
        label: a few words.
        note: as much as there is to say.
        author: who says so.
        time: when, in UTC, as ISO 8601 writes it.
        kind: "manual", or "automatic" for what a language model wrote.
        score: of an automatic label: share of held-out examples that it tells from others, the two kinds weighing the same.
        null_score: the same with the labels of other latents.
        source: of an automatic label: model and endpoint.
    """

    dictionary: str
    digest: str
    latent: int
    label: str
    note: str = ""
    author: str = ""
    time: str = ""
    kind: Literal["manual", "automatic"] = "manual"
    score: float | None = None
    null_score: float | None = None
    source: str = ""

    @classmethod
    def new(cls, **values: Any) -> Label:
        """A label of this moment, or one that was exported; texts are cleaned of control characters.

        Raises:
            DataError: a value is missing, of another type, or too long.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        texts = {name: _text(name, values.get(name, "")) for name in (*LONGEST, "time")}
        latent, kind = values.get("latent"), values.get("kind", MANUAL)
        scores = {name: values.get(name) for name in ("score", "null_score")}
        wrong = [f"{name!r} unknown" for name in unknown]
        wrong += [f"no {name}" for name in ("dictionary", "digest") if not texts[name]]
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < 2**31:
            wrong.append("no number of a latent")
        if kind not in (MANUAL, AUTOMATIC):
            wrong.append(f"kind {kind!r}")
        wrong += [f"{name} {value!r}" for name, value in scores.items() if not _is_share(value)]
        if wrong:
            raise DataError("a label with dictionary, digest and latent", "; ".join(wrong), "correct it")
        texts["time"] = _moment(texts["time"])
        return cls(latent=latent, kind=kind, **texts, **scores)  # type: ignore[arg-type]

    @property
    def id(self) -> str:
        """Digest of everything that it says: the same entry is there once, wherever it comes from."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@final
class Labels:
    """The labels beside a run, for any number of threads and processes.

    Args:
        path: of the SQLite file; it is made with the first label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: dict[tuple[str, str], tuple[tuple[Any, ...], list[Label]]] = {}

    def add(self, label: Label) -> Label:
        """Write a label down.

        Raises:
            RunError: nothing can be written there.
        """
        self._insert([label])
        return label

    def of(self, dictionary: str, digest: str, latent: int | None = None) -> list[Label]:
        """What holds: of each latent, the newest entry of each author and kind, newest first; what was taken back is left out.

        Args:
            dictionary, digest: which dictionary.
            latent: only of this latent; none: of all.
        """
        holding = self._holding(dictionary, digest)
        return [entry for entry in holding if latent in (None, entry.latent)]

    def _holding(self, dictionary: str, digest: str) -> list[Label]:
        """What holds of a dictionary; read again only when the file has changed, whoever changed it."""
        version = self._version()
        held = self._held.get((dictionary, digest))
        if held is None or held[0] != version:
            query = (
                "SELECT * FROM (SELECT *, "
                "row_number() OVER (PARTITION BY latent, author, kind ORDER BY time DESC, id DESC) AS newest "
                "FROM labels WHERE dictionary = ? AND digest = ?) "
                "WHERE newest = 1 AND (label <> '' OR note <> '') ORDER BY latent, kind DESC, time DESC, id"
            )
            # The version is that of before: what is written meanwhile is read the next time.
            held = self._held[dictionary, digest] = (version, self._read(query, (dictionary, digest)))
        return held[1]

    def _version(self) -> tuple[Any, ...]:
        """Another one after every change: SQLite counts changes in the file's header, or adds them to the log beside it."""
        found: list[Any] = []
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with contextlib.suppress(OSError), path.open("rb") as file:
                facts = os.fstat(file.fileno())
                found += [facts.st_ino, facts.st_size, facts.st_mtime_ns, file.read(100)[_CHANGES]]
        return tuple(found)

    def found(self, dictionary: str, digest: str, text: str) -> list[int]:
        """Latents whose label or note has a text in it, whatever its case."""
        wanted = text.strip().casefold()
        named = (e for e in self.of(dictionary, digest) if wanted in f"{e.label}\n{e.note}".casefold())
        return sorted({entry.latent for entry in named}) if wanted else []

    def quoting(self, is_quote: Callable[[str], bool]) -> list[str]:
        """Ids of the entries whose label or note is a quote, of any dictionary and time."""
        with self._reading() as connection:
            rows = [] if connection is None else connection.execute("SELECT id, label, note FROM labels").fetchall()
        return [row["id"] for row in rows if is_quote(row["label"]) or is_quote(row["note"])]

    def blank(self, ids: Iterable[str], text: str) -> int:
        """Put a text in place of label and note of some entries, and leave nothing of these in the file.

        Returns:
            How many there were.
        """
        if not self.path.exists():
            return 0
        wanted, query = set(ids), "DELETE FROM labels WHERE id = ?"
        found = [(row, replace(row, label=text, note="")) for row in self._read("SELECT * FROM labels", ()) if row.id in wanted]
        self._insert([new for _, new in found])
        try:
            with vouched(self.path), self._writing() as connection:
                connection.execute("PRAGMA secure_delete = ON")
                with connection:
                    connection.executemany(query, [(old.id,) for old, new in found if old.id != new.id])
                connection.execute("VACUUM")
        except (sqlite3.Error, OSError) as error:
            raise RunError(f"labels that can be written at {self.path}", str(error), "check who may write there") from error
        return len(found)

    def stale(self, dictionary: str, digest: str) -> int:
        """How many entries are of another dictionary that had this name."""
        with self._reading() as connection:
            query = "SELECT count(*) FROM labels WHERE dictionary = ? AND digest <> ?"
            return 0 if connection is None else int(connection.execute(query, (dictionary, digest)).fetchone()[0])

    def exported(self) -> Iterator[str]:
        """Every entry that was ever made, as a line of JSON each, oldest first."""
        for entry in self._read("SELECT * FROM labels ORDER BY time, id", ()):
            yield json.dumps(entry.to_dict())

    def merge(self, lines: Iterable[str]) -> dict[str, int]:
        """Put in what somebody else exported; entries that are there already stay as they are.

        Args:
            lines: of JSON; blank ones are skipped.

        Returns:
            "added" and "known" entries.

        Raises:
            DataError: a line is no label; its number is named, and nothing is put in.
        """
        entries = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                if not isinstance(values, dict) or not values.get("time"):
                    raise DataError("a label with its time", "something else", "export it with Kyomei")
                entries.append(Label.new(**values))
            except (ValueError, DataError) as error:
                found = error.found if isinstance(error, DataError) else str(error)
                raise DataError("a label in each line", f"line {number}: {found}", "correct the file") from error
        added = self._insert(entries)
        return {"added": added, "known": len(entries) - added}

    def _insert(self, entries: list[Label]) -> int:
        columns = ["id", *(field.name for field in fields(Label))]
        query = f"INSERT OR IGNORE INTO labels ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        rows = [(entry.id, *asdict(entry).values()) for entry in entries]
        try:
            with vouched(self.path), self._writing() as connection, connection:
                connection.execute(_TABLE)
                return connection.executemany(query, rows).rowcount if rows else 0
        except (sqlite3.Error, OSError) as error:
            raise RunError(f"labels that can be written at {self.path}", str(error), "check who may write there") from error

    def _writing(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that cannot write; none where there are no labels yet."""
        if not self.path.exists():
            yield None
            return
        try:
            address = f"{self.path.resolve().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS)) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
        except sqlite3.Error as error:
            raise RunError(f"labels in {self.path}", str(error), "restore the file, or move it away") from error

    def _read(self, query: str, parameters: tuple[Any, ...]) -> list[Label]:
        names = [field.name for field in fields(Label)]
        with self._reading() as connection:
            rows = [] if connection is None else connection.execute(query, parameters).fetchall()
        return [Label(**{name: row[name] for name in names}) for row in rows]


def _text(name: str, value: Any) -> str:
    """A text without characters that no page shows."""
    if not isinstance(value, str):
        raise DataError(f"text as {name}", type(value).__name__, "correct it")
    kept = (c for c in value if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _TURNING))
    text = "".join(kept).strip()
    if name != "note":
        text = " ".join(text.split())
    if len(text) > LONGEST.get(name, 40):
        raise DataError(f"{name} of at most {LONGEST.get(name, 40)} characters", f"{len(text)}", "shorten it")
    return text


def _is_share(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _moment(time: str) -> str:
    """A time in UTC, of one form so that times compare as texts do; an empty one is now."""
    try:
        moment = datetime.fromisoformat(time) if time else datetime.now(timezone.utc)
        return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as error:
        raise DataError("a time as ISO 8601 writes it", repr(time), "correct it") from error
