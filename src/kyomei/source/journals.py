"""What a harvest leaves about itself beside its shards: an index once it has ended, until then a journal of each rank."""

from __future__ import annotations

import json
import re
from typing import Any

from kyomei.errors import DataError
from kyomei.stores import Store, StoreLike, store_at

SCHEMA_VERSION = 1
INDEX, JOURNAL = "index.json", "progress.json"
_JOURNALS = re.compile(r"progress(-\d+)?\.json")
"""Of several ranks that harvest together each has a journal; the leading one's has no number."""


def read_journal(place: StoreLike) -> dict[str, Any] | None:
    """What a finished or killed harvest left about itself in a folder or at an address; none if nothing.

    Of several ranks that were killed it is what one of them left; the next writer makes one journal of theirs.
    """
    store = store_at(place)
    names = [INDEX] if store.has(INDEX) else journals(store)
    return read_one(store, names[0]) if names else None


def read_one(store: Store, name: str) -> dict[str, Any]:
    """An index or a journal.

    Raises:
        DataError: it is damaged, or of a newer schema.
    """
    try:
        journal: dict[str, Any] = json.loads(store.read(name).decode("utf-8"))
        if journal["schema_version"] <= SCHEMA_VERSION and journal["shards"] is not None:
            return journal
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        do = "delete its folder and harvest again"
        raise DataError(f"a readable {name}", f"{store}/{name} is damaged", do) from error
    version = journal["schema_version"]
    raise DataError(f"schema {SCHEMA_VERSION} or older", f"schema {version} in {store}/{name}", "update Kyomei to read it")


def journals(store: Store) -> list[str]:
    """Names of the journals of all ranks of harvests that did not end here."""
    return [name for name in store.names("progress*.json") if _JOURNALS.fullmatch(name)]


def remove_journals(store: Store) -> None:
    """Remove what only a harvest that did not end needs."""
    store.clear(*journals(store))
