"""What a verb prints on standard output: one JSON object, or tables with their legends."""

from __future__ import annotations

import codecs
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kyomei.views.tables import Table

if TYPE_CHECKING:
    from kyomei.views.autolabel import Estimate

_PLAIN = {
    **dict.fromkeys("\u2013\u2014\u2212", "-"), **dict.fromkeys("\u202f\xa0", " "), **dict.fromkeys("\u2018\u2019", "'"),
    "→": "->", "…": "...", "×": "x", "≥": ">=", "≤": "<=", "±": "+/-", "ℓ": "l", "·": "*",
}  # fmt: skip
"""What stands for a character on a terminal that has none of it; a question mark for all others."""
_HANDLER = "kyomei.plain"
WORD_LETTERS = 10
"""Letters of a word that stand on a line at least, before it is folded."""
MOST_LETTERS = 400
"""Width of a table where there is no terminal."""


def show(facts: Any, as_json: bool, *tables: Table, opening: str = "", closing: Sequence[str] = ()) -> None:
    """Print facts as one JSON object, or tables with their legends.

    Args:
        facts: what JSON can hold.
        as_json: which of the two.
        tables: one below the other.
        opening: stands before them: the verdict.
        closing: lines under them.
    """
    if as_json:
        print(json.dumps(facts, ensure_ascii=not _is_unicode(sys.stdout)))
        return
    if opening:
        print(f"{opening}\n")
    for table in tables:
        _print(table)
    for line in closing:
        print(line)


def speak_plainly() -> None:
    """Let standard output and error write to any terminal: characters that it lacks are replaced instead of raising."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)
    warnings.formatwarning = _warned


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """One line for what Kyomei itself warns of; where others' warnings come from may matter."""
    own = category.__module__.partition(".")[0] == __name__.partition(".")[0]
    return f"kyomei: {message}\n" if own else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def verdict_words(verdict: Mapping[str, Any]) -> str:
    """The verdict's headline, and a line for each of its reasons."""
    reasons = verdict["reasons"]
    width = max((len(reason["side"]) for reason in reasons), default=0)
    lines = [f"  {r['side']:<{width}}  {r['name']}: {r['figure']}; {r['meaning']}" for r in reasons]
    whose = f"{verdict['dictionary']}: " if verdict.get("dictionary") else ""
    return "\n".join([whose + verdict["headline"], *lines])


def estimate_words(estimate: Estimate, address: str, prices: tuple[float, float] | None) -> list[str]:
    """What labels will take, and what is sent where, before it is sent.

    Args:
        estimate: of the work.
        address: of the endpoint.
        prices: of a million tokens sent and answered; none: nobody said.
    """
    lines = [f"{address} will be sent excerpts of this run's text, such as:"]
    lines += [f"  | {line}" for line in estimate.sample[:2000].splitlines()[:24]]
    cost = "" if prices is None else f", {estimate.cost(*prices):.2f} at the prices given"
    tokens = f"about {estimate.tokens_in:,} tokens sent and {estimate.tokens_out:,} answered"
    return [*lines, f"{estimate.latents:,} latents: {estimate.requests:,} requests, {tokens}{cost}"]


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.table import Table as Grid

    console = Console(file=sys.stdout, highlight=False)
    grid = Grid(title=escape(table.title), title_justify="left")
    for i, name in enumerate(table.header):
        is_word, cells = i in table.words, [row[i] for row in table.rows]
        # Figures stay whole, and of words enough to know them by, however narrow the terminal is.
        least = max(len(part) for text in (name, *cells) for part in (text.split() or [""]))
        least = min(least, WORD_LETTERS) if is_word else max([least, *map(len, cells)])
        grid.add_column(escape(name), justify="left" if is_word else "right", overflow="fold", min_width=least)
    for row in table.rows:
        grid.add_row(*map(escape, row))
    # A file or a pipe has no width: nothing needs to be folded there.
    width = console.width
    if not console.is_terminal:
        options = console.options.update(max_width=MOST_LETTERS)
        console.width = max(width, Measurement.get(console, options, grid).maximum)
    console.print(grid)
    console.width = width
    for name, meaning in table.legend:
        console.print(Padding(f"[bold]{escape(name)}[/bold]: {escape(meaning)}", (0, 0, 0, 1)))
    if table.legend:
        console.print()


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "ascii").lower().replace("-", "").startswith("utf")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Error handler of an encoding: a plain spelling of what it cannot write."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char, "?") for char in text), error.end
