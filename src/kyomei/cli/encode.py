"""The verb that turns text into features."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kyomei.cli.explore import Model, Site, is_alone, settings
from kyomei.cli.frame import AsJson, Threads, app, verb
from kyomei.errors import DataError
from kyomei.views.console import show
from kyomei.views.tokens import token_table

TOP = 5


@app.command("encode")
def encode_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, or of a dictionary.", show_default=False)],
    text: Annotated[
        list[str] | None, typer.Argument(help="One or several texts.", show_default="what standard input holds")
    ] = None,
    dictionary: Annotated[
        str | None, typer.Option("--dictionary", help="Such as replicas-1.", show_default="the run's own")
    ] = None,
    model: Model = None,
    site: Site = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line of standard input is a text.")] = False,
    top: Annotated[
        int | None,
        typer.Option(help="Features of a token at most, strongest first.", min=1, show_default=f"{TOP} in the table, else all"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A .parquet file: a row for each active feature of each token.", show_default=False),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Features that are active at every token of a text, with what the certificate says of each."""
    with verb(threads) as reporter:
        from kyomei.stages.encode import encode, of_folder, of_run, write_parquet

        if out is not None and out.suffix != ".parquet":
            raise DataError("a .parquet file after --out", str(out), "name it so")
        encoding = of_folder(folder, settings(model, site, None, None)) if is_alone(folder) else of_run(folder, dictionary)
        texts = text or _read(lines)
        found = encode(encoding, texts, top if top or as_json or out is not None else TOP)
        if out is not None:
            reporter.note(f"{write_parquet(found, out):,} rows: {out}")
        if as_json or out is None:
            title = f"{found['dictionary']} at {found['site']} of {found['model']}"
            show(found, as_json, *(token_table(tokens, title) for tokens in found["texts"]))


def _read(lines: bool) -> list[str]:
    """Texts of standard input."""
    if sys.stdin.isatty():
        raise DataError("some text", "none", "name it after the folder, or pipe it in")
    everything = sys.stdin.read()
    return [line for line in everything.splitlines() if line.strip()] if lines else [everything]
