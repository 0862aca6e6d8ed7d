"""Verbs that take dictionaries from other libraries and give them to these."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kyomei.cli.frame import AsJson, app, verb
from kyomei.views.console import show
from kyomei.views.conversions import conversion_table, facts_table


class Written(str, Enum):
    """Formats that `kyomei export` writes."""

    saelens = "saelens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"
    delphi = "delphi"
    neuronpedia = "neuronpedia"


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
    """A dictionary as SAELens, sparsify or dictionary_learning load it, with its provenance and its certificate.

    For delphi: where a run's latents are active on documents that no training saw, with the token ids of these.
    For Neuronpedia: what the explorer's index knows of every latent, with pieces of the text.
    """
    with verb(None):
        from kyomei.stages import delphi, neuronpedia
        from kyomei.stages.convert import export_dictionary

        others = {
            delphi.NAME: ("latents as delphi caches them", delphi.export_latents),
            neuronpedia.NAME: ("latents as Neuronpedia shows them", neuronpedia.export_features),
        }
        if format.value in others:
            title, export = others[format.value]
            found = export(source, folder, dictionary=dictionary, overwrite=overwrite)
            show(found, as_json, facts_table(found, title))
            return
        facts = export_dictionary(source, folder, format.value, dictionary=dictionary, overwrite=overwrite)
        show(facts, as_json, conversion_table(facts))


@app.command("publish")
def publish_command(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of a dictionary.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME; with --local a folder.", show_default=False)],
    local: Annotated[
        bool, typer.Option("--local", help="Write what would be uploaded into a folder, and upload nothing.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is made.")] = False,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the dictionary, such as apache-2.0.", show_default="not said")
    ] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Let pieces of the text go along.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to commit to.", show_default="main")] = None,
    dictionary: Annotated[
        str | None, typer.Option("--dictionary", help="Of a run, such as replicas-1.", show_default="the run's own")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A dictionary onto the hub of Hugging Face: its files, its certificate, and a card filled from the run.

    SparseAutoencoder.from_pretrained reads it. No text goes along unless asked for.
    """
    with verb(None):
        from kyomei.stages.publish import Wanted, publish, write_local

        wanted = Wanted(dictionary, licence, examples, not public, revision)
        facts = write_local(source, Path(name), wanted) if local else publish(source, name, wanted)
        show(facts, as_json, facts_table(facts, "written, and not published" if local else "published"))
