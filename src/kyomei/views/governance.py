"""What `kyomei audit` and `kyomei forget` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kyomei.source.forgetting import Kept
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
    notes += _listed("not covered", [f"{name}: {why}" for name, why in facts["uncovered"].items()])
    notes += _listed("does not say what it is of, as an older Kyomei wrote it", facts["unnamed"])
    for entry in facts["forgotten"]:
        what = f"{len(entry['documents'])} document{'s' * (len(entry['documents']) != 1)}, {entry['files']} files"
        notes.append(f"forgotten on {entry['on']}: {what} ({', '.join(map(_short, entry['documents']))})")
    return notes


def documents_table(documents: Sequence[Kept], folder: str) -> Table:
    """The documents of a harvest, with what each can be called by."""
    rows = tuple((kept.id, kept.name, _short(kept.sha256), f"{kept.tokens:,}") for kept in documents)
    return Table(f"{folder}: documents", ("number", "name", "sha256", "tokens"), rows, words=(0, 1, 2))


def asked_words(documents: Sequence[Kept], runs: Sequence[str]) -> list[str]:
    """What is about to be forgotten."""
    lines = [f"{kept.id}: {kept.name}, {kept.tokens:,} tokens, sha256 {_short(kept.sha256)}" for kept in documents]
    return [*_listed("to be forgotten", lines), f"runs that this concerns: {', '.join(runs)}"]


def forget_words(facts: Mapping[str, Any]) -> list[str]:
    """What was forgotten, what has expired, and what could not be reached."""
    if not facts["runs"]:
        before = f": {len(facts['before'])} documents are forgotten, and every run that was found has followed"
        return [f"nothing to do{before if facts['before'] else ''}"]
    notes = [f"forgotten: {_short(d['sha256'])}, {d['tokens']:,} tokens of {', '.join(d['parts'])}" for d in facts["documents"]]
    notes.append(f"files changed or removed: {sum(map(len, facts['files'].values())):,}, in {', '.join(facts['runs'])}")
    if facts["labels"]:
        notes.append(f"labels that quoted it, now blank: {facts['labels']:,}")
    notes += _listed("expired", facts["certificates"])
    again = "find it again with `kyomei goals`, once the document is out of"
    notes += _listed("expired", [f"goal {g['goal']} of {g['run']}: {again} {g['file']}" for g in facts["goals"]])
    notes += _listed("learnt from it, and unchanged: train anew to be rid of that", facts["weights"])
    for entry in facts["exports"]:
        found = {True: ": it holds text of it", False: ": nothing of it was found there", None: ""}[entry["holds"]]
        notes.append(f"not reached: {entry['what']} of {entry['run']}, written on {entry['when']} to {entry['where']}{found}")
    notes.append(f"not reached: the text itself ({facts['source']}), copies and backups of these folders")
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
