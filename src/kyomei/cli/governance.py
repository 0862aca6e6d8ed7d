"""Verbs that show where everything comes from, and take a document out of it."""

from __future__ import annotations

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
