"""What became of a dictionary on its way to another format, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kyomei.views.tables import Table

KEPT = {"relu": "ReLU", "jumprelu": "scores above thresholds"}
"""What is active in a row, by activation."""


def facts_table(facts: Mapping[str, Any], title: str) -> Table:
    """One line for each of some facts, lists as one text."""
    lines = tuple((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for key, value in facts.items())
    return Table(title, ("", "what"), lines, words=(0, 1))


def conversion_table(facts: Mapping[str, Any]) -> Table:
    """One line for each thing that is known of a converted dictionary, and for each that was folded."""
    certificate = facts["certificate"]
    counts = "none" if not certificate else f"{certificate.get('certified')} of {certificate.get('latents')} latents certified"
    kept = f"the {facts['k']} highest scores of a row" if facts["k"] else KEPT[facts["activation"]]
    lines = [
        ("mechanism", f"{facts['mechanism']} ({kept})"),
        ("latents × dimensions", f"{facts['width']:,} × {facts['dim']:,}, {facts['dtype']}"),
        *((name, str(facts[name])) for name in ("model", "site", "context", "dataset") if facts[name] is not None),
        *(("folded", words) for words in facts["folded"] or ["nothing: the tensors are the same, bit by bit"]),
        ("certificate", counts),
        ("files", ", ".join(facts["files"])),
    ]
    return Table(
        f"{facts['from']} → {facts['to']}: {facts['folder']}", ("dictionary", "what it is"), tuple(lines), words=(0, 1)
    )
