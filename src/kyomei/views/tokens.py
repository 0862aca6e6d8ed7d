"""A text's tokens and what is active at each, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kyomei.views.numbers import format_number
from kyomei.views.tables import Table


def token_table(tokens: Sequence[dict[str, Any]], title: str) -> Table:
    """Tokens of one text in a row each, with their strongest features."""
    judged = any("status" in feature for token in tokens for feature in token["features"])
    rows = []
    for position, token in enumerate(tokens):
        marks = [
            f"{f['latent']}{'*' * (f.get('status') == 'certified')} {format_number(f['activation'])}" for f in token["features"]
        ]
        more = [f"and {token['left_out']} more"] if token["left_out"] else []
        rows.append((str(position), repr(token["token"])[1:-1], ", ".join([*marks, *more])))
    legend = [("features", "numbers of active latents with their activation, strongest first")]
    if judged:
        legend.append(("*", "a certified latent"))
    return Table(title, ("position", "token", "features"), tuple(rows), tuple(legend), words=(1, 2))
