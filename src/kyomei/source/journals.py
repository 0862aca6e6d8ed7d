"""What a harvest leaves about itself beside its shards: an index once it has ended, until then a journal of each rank."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kyomei.errors import DataError

SCHEMA_VERSION = 1
INDEX, JOURNAL = "index.json", "progress.json"
_JOURNALS = re.compile(r"progress(-\d+)?\.json")
"""Of several ranks that harvest together each has a journal; the leading one's has no number."""


def read_journal(folder: str | Path) -> dict[str, Any] | None:
    """What a finished or killed harvest left about itself in `folder`; none if nothing.

    Of several ranks that were killed it is what one of them left; the next writer makes one journal of theirs.
    """
    folder = Path(folder)
    paths = [path for path in (folder / INDEX, *journals(folder)) if path.exists()]
    return read_one(paths[0]) if paths else None


def read_one(path: Path) -> dict[str, Any]:
    """An index or a journal.

    Raises:
        DataError: it is damaged, or of a newer schema.
    """
    try:
        journal: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if journal["schema_version"] <= SCHEMA_VERSION and journal["shards"] is not None:
            return journal
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        do = "delete its folder and harvest again"
        raise DataError(f"a readable {path.name}", f"{path} is damaged", do) from error
    version = journal["schema_version"]
    raise DataError(f"schema {SCHEMA_VERSION} or older", f"schema {version} in {path}", "update Kyomei to read it")


def journals(folder: Path) -> list[Path]:
    """Journals of all ranks of harvests that did not end here."""
    return sorted(path for path in folder.glob("progress*.json") if _JOURNALS.fullmatch(path.name))


def remove_journals(folder: Path) -> None:
    """Remove what only a harvest that did not end needs."""
    for path in journals(folder):
        path.unlink(missing_ok=True)
