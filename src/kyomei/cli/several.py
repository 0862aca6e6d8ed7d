"""Verbs of several runs: side by side, and all there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kyomei.cli.frame import AsJson, app, plain_errors, verb
from kyomei.errors import RunError
from kyomei.views import tables
from kyomei.views.console import show


@app.command("compare")
def compare_command(
    folders: Annotated[list[Path], typer.Argument(help="Runs; of a family, all its members.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the page, the table, the figure and the values.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Dictionaries of several runs in one table, and with --out in one figure: FVU against L0."""
    with verb(None, needs=None if out is None else "figures"):
        from kyomei.stages.compare import compare, named_runs, page_links, write_comparison

        runs = named_runs(folders)
        found = compare(runs)
        title = "Dictionaries side by side"
        files = [] if out is None else [f"page: {write_comparison(found, out, title, page_links(runs, out))}"]
        show(found.to_dict(), as_json, tables.compare_table(found.rows, title), closing=[*found.notes, *files])


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Runs below a folder: what each is, how far it has come, and whose harvest it learns from."""
    with plain_errors():
        from kyomei.stages.listing import runs_below

        if not folder.is_dir():
            raise RunError("a folder with runs", f"none at {folder}", "name one, such as `kyomei list runs`")
        found = runs_below(folder)
        title = f"{len(found)} runs below {folder}" if len(found) != 1 else f"one run below {folder}"
        show({"runs": found}, as_json, tables.runs_table(found, title))
