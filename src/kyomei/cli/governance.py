"""Verbs that show where everything comes from, and take a document out of it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kyomei.cli.frame import AsJson, RunFolder, app, verb
from kyomei.views.console import show


@app.command("audit")
def audit_command(folder: RunFolder, as_json: AsJson = False) -> None:
    """Is every file of a run as it was written, and does each lead to the one before, from the report back to the text?

    Verifies the runs in the folder and the harvest that they name, too. Exit status 1 where anything is broken.
    """
    with verb(None) as reporter:
        from kyomei.stages.audit import audit
        from kyomei.views.governance import audit_notes, audit_tables, audit_words

        facts = audit(folder, reporter)
        show(facts, as_json, *audit_tables(facts), opening=audit_words(facts), closing=audit_notes(facts))
        if not facts["whole"]:
            raise typer.Exit(1)


@app.command("forget")
def forget_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a harvest, or of a run.", show_default=False)],
    document: Annotated[
        list[str] | None,
        typer.Option(
            "--document",
            help="Its name, PART/NUMBER, the SHA-256 of its text, or the file that records are of; repeatable.",
            show_default="none: end what was begun, and let runs follow",
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--runs", help="A further folder with runs on this harvest; repeatable.", show_default="where the harvest lies"
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the documents that there are, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a document out of a harvest and its runs: tokens, activations, text, and what shows them.

    A tombstone stays, with which `kyomei audit` can still follow the chain. Certificates expire. Weights that learnt from the
    document, and exports, are named: they are not changed. Stopped anywhere, the same command ends what it began.
    """
    with verb(None) as reporter:
        from kyomei.provenance import hide
        from kyomei.stages.forget import Asked, documents_of, forget
        from kyomei.stages.harvested import open_harvest
        from kyomei.views.governance import asked_words, documents_table, forget_words

        hide("--document")
        if listed:
            documents = documents_of(open_harvest(folder))
            show([asdict(kept) for kept in documents], as_json, documents_table(documents, str(folder)))
            return

        def agree(asked: Asked) -> bool:
            for line in asked_words(asked.documents, [str(run.folder) for run in asked.runs]):
                reporter.note(line)
            return yes or not sys.stdin.isatty() or typer.confirm("Forget this?", err=True)

        facts = forget(folder, document or (), reporter, places=runs or (), agree=agree)
        show(facts, as_json, closing=forget_words(facts))
