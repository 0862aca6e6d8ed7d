"""Whether an index is there, whole, and made from what there is now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from pyarrow import ArrowException

from kyomei.atomic import sha256_of
from kyomei.runs import plain
from kyomei.views.index.schema import INDEX, SCHEMA_VERSION, TABLES

Condition = Literal["ready", "missing", "unfinished", "damaged", "other version", "stale"]


@dataclass(frozen=True)
class IndexState:
    """What is found in the folder of an index.

    Attributes:
        condition: "ready", or why it has to be made (anew).
        reason: in words, with the file or the input that it is about; empty where it is ready.
        facts: what index.json says; empty where it cannot be read.
    """

    condition: Condition
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.condition == "ready"


def state_of(folder: Path, made_from: Mapping[str, str] | None = None, *, thorough: bool = False) -> IndexState:
    """What is in the folder of an index.

    Args:
        folder: of the index.
        made_from: digests of what it would be made from now; none: that is not asked.
        thorough: compare every file's SHA-256, which reads all of them, instead of its size.
    """
    path = folder / INDEX
    if not path.exists():
        return IndexState("missing", f"no {INDEX} in {folder}")
    try:
        facts = json.loads(path.read_bytes())
        version, complete = facts["schema_version"], facts["complete"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return IndexState("damaged", f"{path}: {type(error).__name__}")
    if version != SCHEMA_VERSION:
        return IndexState("other version", f"schema {version} in {path}, not {SCHEMA_VERSION}", facts)
    if not complete:
        return IndexState("unfinished", f"{path} of a build that has not ended", facts)
    for name in TABLES:
        wrong = _wrong(folder / name, facts.get("files", {}).get(name), thorough)
        if wrong:
            return IndexState("damaged", wrong, facts)
    if made_from is not None and dict(made_from) != facts.get("made_from"):
        return IndexState("stale", _changed(facts.get("made_from") or {}, made_from), facts)
    return IndexState("ready", "", facts)


def file_facts(path: Path) -> dict[str, Any]:
    """What index.json holds of a file, to tell later whether it is whole."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def as_json(facts: Mapping[str, Any]) -> bytes:
    """The bytes of index.json."""
    return (json.dumps(plain(dict(facts)), indent=1, ensure_ascii=False) + "\n").encode()


def _wrong(path: Path, known: Mapping[str, Any] | None, thorough: bool) -> str:
    """What is wrong with a file of an index; empty if nothing."""
    if known is None:
        return f"{path.name} is not named in {INDEX}"
    if not path.exists():
        return f"no {path.name} in {path.parent}"
    size = path.stat().st_size
    if size != known.get("bytes"):
        return f"{path} has {size} bytes instead of {known.get('bytes')}"
    if thorough and sha256_of(path) != known.get("sha256"):
        return f"{path} has other bytes than were written (sha256 differs)"
    try:
        pq.read_metadata(path)
    except (ArrowException, OSError) as error:
        return f"{path} is no Parquet file: {type(error).__name__}"
    return ""


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return f"{', '.join(names)} changed since it was made"
