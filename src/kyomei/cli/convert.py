"""Verbs that take dictionaries from other libraries and give them to these."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kyomei.cli.frame import AsJson, app, verb
from kyomei.views.console import show
from kyomei.views.conversions import conversion_table


class Written(str, Enum):
    """Formats that `kyomei export` writes."""

    saelens = "saelens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"


Source = Annotated[
    Path,
    typer.Argument(
        help="Folder or file of SAELens, sparsify, dictionary_learning, OpenAI, Gemma Scope or Kyomei.", show_default=False
    ),
]
Folder = Annotated[Path, typer.Argument(help="Where it goes.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over the dictionary that is there.")]


@app.command("import")
def import_command(source: Source, folder: Folder, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """A dictionary of another library in Kyomei's own format: the same function, with what is known of it.

    Every verb that takes a dictionary reads these formats too; docs/formats.md says what is folded and what is refused.
    """
    with verb(None):
        from kyomei.stages.convert import import_dictionary

        facts = import_dictionary(source, folder, overwrite=overwrite)
        show(facts, as_json, conversion_table(facts))


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of a dictionary.", show_default=False)],
    folder: Folder,
    format: Annotated[Written, typer.Option("--format", help="Whose files are written.")],
    dictionary: Annotated[
        str | None, typer.Option("--dictionary", help="Of a run, such as replicas-1.", show_default="the run's own")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A dictionary as SAELens, sparsify or dictionary_learning load it, with its provenance and its certificate."""
    with verb(None):
        from kyomei.stages.convert import export_dictionary

        facts = export_dictionary(source, folder, format.value, dictionary=dictionary, overwrite=overwrite)
        show(facts, as_json, conversion_table(facts))
