"""Verbs of the explorer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kyomei.cli.frame import AsJson, RunFolder, Shown, Threads, app, do_with, verb
from kyomei.views import tables

if TYPE_CHECKING:
    from kyomei.runs import Run

Redact = Annotated[
    bool | None,
    typer.Option(
        "--redact/--no-redact",
        help="Mask e-mail addresses, phone and card numbers and keys in every text that is shown.",
        show_default="as said before for this run",
    ),
]
RedactPatterns = Annotated[
    Path | None,
    typer.Option(
        "--redact-patterns", help="Mask these as well: a file of regular expressions, one a line.", show_default=False
    ),
]


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
    redact: Redact = None,
    redact_patterns: RedactPatterns = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What every latent of a run's dictionaries is and fires on, as files that the explorer shows; what is there is kept."""
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages import index as stage

        def index_it(run: Run) -> Shown:
            stage.redact(run, redact, redact_patterns)
            found = stage.index_run(run, reporter, dictionary, rebuild=rebuild)
            facts = {one.name: one.to_dict() for one in found}
            return Shown(facts, [tables.index_table(facts, str(run.folder))])

        def only_reads(run: Run) -> bool:
            said = rebuild or redact is not None or redact_patterns is not None
            return not said and stage.indexed(run, dictionary)

        do_with(Run.open(folder), index_it, reporter, as_json, only_reads=only_reads)


@app.command("explore")
def explore_command(
    folder: RunFolder,
    dictionary: Annotated[
        list[str] | None,
        typer.Option("--dictionary", help="Such as replicas-1; repeatable.", show_default="the run's own and its baselines'"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="0: any free one.", min=0, max=65535, show_default="8321 or the next")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name for this server; repeatable.", show_default=False)
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="No labels are written, and the model is not run.")] = False,
    lang: Annotated[Literal["en", "ja"], typer.Option(help="Language that pages begin with.")] = "en",
    redact: Redact = None,
    redact_patterns: RedactPatterns = None,
    index_only: Annotated[bool, typer.Option("--index-only", help="Make what is missing of the index, and stop.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write pages for any file server here, and stop.", show_default=False)
    ] = None,
    threads: Threads = None,
) -> None:
    """Look at a run's dictionaries in a browser: features, their examples, the model at work, labels."""
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages import index as stage
        from kyomei.stages.explore import explorer_of, prepare
        from kyomei.stages.family import refuse_family
        from kyomei.views.server.explorer import Options
        from kyomei.views.server.serving import address_of, exposed, listening, new_token, serve

        run = Run.open(folder)
        refuse_family(run)
        if redact is not None or redact_patterns is not None:
            with run.lock():
                stage.redact(run, redact, redact_patterns)
        prepare(run, reporter, dictionary)
        if index_only:
            return
        explorer = explorer_of(run)
        if export is not None:
            from kyomei.views.server.export import export_to

            with reporter.progress("export") as progress:
                written = export_to(explorer, export, lang, progress)
            reporter.note(f"{written:,} files: put {export} on any file server")
            return
        bound = listening(host, port)
        options = Options(host, bound.getsockname()[1], None, read_only, lang, tuple(allow_host or ()))
        if not options.is_loopback:
            options = replace(options, token=new_token())
            reporter.note(exposed(options))
            reporter.note(f"token, shown this once: {options.token}")
        reporter.note(f"{explorer.name}: {address_of(options)} (Ctrl-C ends it)")
        serve(explorer, options, bound, browser=not no_browser)
