"""What a verb prints: one JSON object, or one table, on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kyomei.evidence.check.premises import Premises


def show(facts: Any, as_json: bool, title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print facts as one JSON object, or rows of text as a table.

    Args:
        facts: what JSON can hold.
        as_json: which of the two.
        title: above the table.
        header: of the columns; the first stands to the left, the others to the right.
        rows: one text for each column.
    """
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout).print(table)


def show_premises(premises: Premises, as_json: bool) -> None:
    """Print the verdict on the premises, and under a table what each of them means and what to do."""
    rows = [(premise.name, premise.status, premise.figures) for premise in premises.table]
    title = f"premises: {premises.verdict}; expected share of features recovered (cosine 0.9): {premises.expected}"
    show(premises.to_dict(), as_json, title, ("premise", "status", "estimate"), rows)
    if not as_json:
        for premise in premises.table:
            advice = "" if premise.status == "met" else f" → {premise.advice}"
            print(f"{premise.name}: {premise.meaning}{advice}")
