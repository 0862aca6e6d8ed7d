"""Verbs of the explorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kyomei.cli.frame import AsJson, RunFolder, Shown, Threads, app, do_with, verb
from kyomei.views import tables

if TYPE_CHECKING:
    from kyomei.runs import Run


@app.command("index")
def index_command(
    folder: RunFolder,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionary",
            help="Such as replicas-1; repeatable.",
            show_default="the run's own and its baselines'",
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make anew what is there.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What every latent of a run's dictionaries is and fires on, as files that the explorer shows; what is there is kept."""
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.index import index_run, indexed

        def index_it(run: Run) -> Shown:
            found = index_run(run, reporter, dictionary, rebuild=rebuild)
            facts = {one.name: one.to_dict() for one in found}
            return Shown(facts, [tables.index_table(facts, str(run.folder))])

        do_with(Run.open(folder), index_it, reporter, as_json, only_reads=lambda run: not rebuild and indexed(run, dictionary))
