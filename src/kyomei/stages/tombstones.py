"""What is left of forgotten documents: their digests, when, and the digests of every file before and after."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "forgotten.json"


@dataclass(frozen=True)
class Tombstones:
    """The tombstones in a run's folder.

    Attributes:
        entries: one for each act of forgetting, oldest first: "on" (a time), "documents" ("sha256", "parts" and "tokens" of
            each), "files" (by name "old" and "new" SHA-256, none for a file that is gone), "harvest" ("old" and "new" digest
            of the harvest it is about), "weights" that learnt from them, and "exports" that could not be reached.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Tombstones:
        """Those of a run's folder; none where there is no such file, or it cannot be read."""
        try:
            values = json.loads((folder / FILE).read_bytes())
        except (OSError, ValueError):
            return cls()
        entries = values.get("forgotten") if isinstance(values, dict) else None
        return cls([entry for entry in entries if isinstance(entry, dict)]) if isinstance(entries, list) else cls()

    def with_those_of(self, other: Tombstones) -> Tombstones:
        """These, and others."""
        return Tombstones([*self.entries, *(entry for entry in other.entries if entry not in self.entries)])

    def leads(self, old: str, new: str) -> str | None:
        """When a file's digest went from one to the other by forgetting alone; none: it did not."""
        steps = {
            each["old"]: (each["new"], entry["on"])
            for entry in self.entries
            for each in (*entry.get("files", {}).values(), entry.get("harvest") or {})
            if each.get("old") and each.get("new") and each["old"] != each["new"]
        }
        date, seen = None, {old}
        while old in steps and old != new:
            old, date = steps[old]
            if old in seen:
                return None
            seen.add(old)
        return date if old == new else None

    def told(self, called: str) -> list[dict[str, Any]]:
        """What an audit says of them."""
        told = []
        for entry in self.entries:
            documents = [document.get("sha256") for document in entry.get("documents", ())]
            known = {key: entry.get(key) for key in ("on", "weights", "exports")}
            told.append({"run": called, "documents": documents, "files": len(entry.get("files", {})), **known})
        return told
