"""What `kyomei audit` and `kyomei forget` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kyomei.views.tables import Table

SHOWN = 12
"""Letters of a SHA-256 that a table shows."""
LISTED = 20
"""Files that are listed one by one."""
_HEADER = ("link", "what", "sha256", "state")
_LEGEND = (
    ("whole", "every byte is as it was written, and what it was made from is what there is now"),
    ("expired", "as it was written, but a document has been forgotten since of what it was made from"),
    ("broken", "changed, gone, or made from others than there are now"),
)


def audit_tables(facts: Mapping[str, Any]) -> list[Table]:
    """The chain of each run, from its report back to the text."""
    tables = []
    for number, (called, links) in enumerate(facts["chains"].items(), 1):
        rows = tuple((link["name"], link["file"], _short(link["sha256"]), link["state"]) for link in links)
        title = facts["run"] if called == "." else f"{called} of {facts['run']}"
        legend = _LEGEND if number == len(facts["chains"]) else ()
        tables.append(Table(f"{title}: back to the text", _HEADER, rows, legend, words=(0, 1, 2, 3)))
    return tables


def audit_words(facts: Mapping[str, Any]) -> str:
    """The answer in one sentence, and what each artefact is of."""
    count = f"{facts['files']:,} files"
    if facts["whole"]:
        return f"Whole: {count} are as they were written." + _names(facts["names"])
    found = len(facts["broken"])
    return f"Broken: {found} finding{'s' * (found != 1)} in {count}." + _names(facts["names"])


def audit_notes(facts: Mapping[str, Any]) -> list[str]:
    """What is broken, what nothing vouches for, what was forgotten."""
    notes = [f"broken: {found['file']}: {found['what']}{_digests(found)}" for found in facts["broken"]]
    expired = [link for links in facts["chains"].values() for link in links if link["state"] == "expired"]
    notes += [f"expired: {link['file']}: {link['said']}" for link in expired]
    notes += _listed("not verified, as nothing says how it was written", facts["unverified"])
    notes += _listed("does not say what it is of, as an older Kyomei wrote it", facts["unnamed"])
    for entry in facts["forgotten"]:
        what = f"{len(entry['documents'])} document{'s' * (len(entry['documents']) != 1)}, {entry['files']} files"
        notes.append(f"forgotten on {entry['on']}: {what} ({', '.join(map(_short, entry['documents']))})")
    return notes


def _names(names: Mapping[str, Any] | None) -> str:
    if not names:
        return ""
    data, model = names["data"], names["model"]
    read = f"{data['documents']} documents read, sha256 {_short(data['sha256'])}"
    made = f"seed {names['seed']}, Kyomei {names['kyomei']}, recipe {_short(names['recipe'])}"
    return (
        f"\n  data    {data['text']}, {read}; licence: {data['licence']}"
        f"\n  model   {model['name']}, weights {_short(model['weights'])}; licence: {model['licence']}"
        f"\n  made    {made}; redaction: {names['redaction']}"
    )


def _digests(found: Mapping[str, Any]) -> str:
    if not (found["expected"] and found["found"]):
        return ""
    return f" (sha256 {_short(found['found'])}, was {_short(found['expected'])})"


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = [f"{what}: {len(names) - LISTED:,} more"] if len(names) > LISTED else []
    return [*(f"{what}: {name}" for name in names[:LISTED]), *more]


def _short(digest: str | None) -> str:
    return (digest or "–")[:SHOWN]
