"""What of a run went elsewhere: one line for each, so that whoever has to forget a document knows where else it may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kyomei.provenance import now
from kyomei.runs import Run
from kyomei.sealing import append_vouched

FILE = "exports.jsonl"


def note_export(run: Run, what: str, where: Path | str, *, text: bool) -> None:
    """Write down that something of a run went elsewhere; a run that cannot be written to stays as it is.

    Args:
        run: what it is of.
        what: went there, in a few words.
        where: a folder, or the name or address of a service.
        text: whether pieces of text, tokens or activations went along.
    """
    if not run.writable:
        return
    place = str(where.resolve()) if isinstance(where, Path) else where
    append_vouched(run.path(FILE), json.dumps({"when": now(), "what": what, "where": place, "text": text}, ensure_ascii=False))


def exports_of(run: Run) -> list[dict[str, Any]]:
    """What `note_export` wrote, oldest first; a line that is none is left out."""
    path = run.path(FILE)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "where" in entry:
            found.append(entry)
    return found
