"""Verbs of the explorer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kyomei.cli.frame import AsJson, RunFolder, Shown, Threads, app, do_with, present, verb
from kyomei.views import tables
from kyomei.views.console import estimate_words, show

if TYPE_CHECKING:
    from kyomei.runs import Run
    from kyomei.stages.alone import Alone
    from kyomei.stages.index import Indexed
    from kyomei.stages.progress import Reporter
    from kyomei.views.autolabel import Estimate
    from kyomei.views.server.explorer import Explorer

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

Model = Annotated[
    str | None, typer.Option("--model", help="Of a dictionary without a run: its model.", show_default="as the dictionary says")
]
Site = Annotated[
    str | None, typer.Option("--site", help="Of a dictionary without a run: its site.", show_default="as the dictionary says")
]
Text = Annotated[
    str | None,
    typer.Option("--text", help="Of a dictionary without a run: the text that it is shown on.", show_default="as before"),
]
NumTokens = Annotated[
    int | None,
    typer.Option("--tokens", help="Of a dictionary without a run: tokens of that text.", show_default="300,000, or as before"),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Of a dictionary without a run: where its rows and index go.", show_default="explore in its folder"
    ),
]


def is_alone(folder: Path) -> bool:
    """Whether a folder or file is a dictionary, in any format, and no run; a damaged one of ours is one too."""
    from kyomei.dictionary.formats import CONFIG_FILE, TENSORS_FILE, tensors_path

    if (folder / "manifest.json").exists():
        return False
    return tensors_path(folder) is not None or any((folder / name).exists() for name in (TENSORS_FILE, CONFIG_FILE))


def settings(model: str | None, site: str | None, text: str | None, tokens: int | None) -> dict[str, object]:
    """What is said of where rows come from, by the recipe's dotted keys."""
    said = {"source.model": model, "source.sites": site and [site], "source.text": text, "source.num_tokens": tokens}
    return {key: value for key, value in said.items() if value is not None}


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
    model: Model = None,
    site: Site = None,
    text: Text = None,
    tokens: NumTokens = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What every latent of a run's dictionaries is and fires on, as files that the explorer shows; what is there is kept.

    The folder may also be that of a dictionary without a run: rows of a text are then taken from its model first.
    """
    with verb(threads, needs="explore") as reporter:
        from kyomei.runs import Run
        from kyomei.stages import index as stage
        from kyomei.stages.named import FOLDER

        if is_alone(folder):
            said = out, settings(model, site, text, tokens)
            _, one = _indexed_alone(folder, said, (redact, redact_patterns), reporter, rebuild=rebuild)
            facts = {one.name: one.to_dict()}
            present(Shown(facts, [tables.index_table(facts, str(folder))]), as_json)
            return

        def index_it(run: Run) -> Shown:
            stage.redact(run.path(FOLDER), redact, redact_patterns)
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
    model: Model = None,
    site: Site = None,
    text: Text = None,
    tokens: NumTokens = None,
    out: Out = None,
    index_only: Annotated[bool, typer.Option("--index-only", help="Make what is missing of the index, and stop.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write pages for any file server here, and stop.", show_default=False)
    ] = None,
    threads: Threads = None,
) -> None:
    """Look at a run's dictionaries in a browser: features, their examples, the model at work, labels.

    The folder may also be that of a dictionary without a run: rows of a text are then taken from its model first.
    """
    # What is asked live is short, with pauses: threads that spin while they wait would take the cores from everything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with verb(threads, needs="explore") as reporter:
        from kyomei.views.server.explorer import Options
        from kyomei.views.server.serving import address_of, exposed, listening, new_token, serve

        said = settings(model, site, text, tokens)
        explorer = _explorer(folder, dictionary, (out, said), (redact, redact_patterns), reporter)
        if index_only:
            return
        if export is not None:
            from kyomei.stages.explore import note_explorer_export
            from kyomei.views.server.export import export_to

            with reporter.progress("export") as progress:
                written = export_to(explorer, export, lang, progress)
            note_explorer_export(folder, export)
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


@app.command("label")
def label_command(
    folder: RunFolder,
    endpoint: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible API: http://localhost:11434/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    latents: Annotated[int, typer.Option(help="How many of the list, certified ones first.", min=1, max=500)] = 50,
    dictionary: Annotated[str | None, typer.Option(help="Such as replicas-0.", show_default="the run's own")] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the key, where one is needed.")
    ] = "KYOMEI_API_KEY",
    requests_per_minute: Annotated[float, typer.Option(help="At most.", min=0.1)] = 60.0,
    price_in: Annotated[float | None, typer.Option(help="Of a million tokens sent.", show_default=False)] = None,
    price_out: Annotated[float | None, typer.Option(help="Of a million tokens answered.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Labels of latents by a language model of yours, scored on examples that it did not see; marked as automatic."""
    with verb(None, needs="explore") as reporter:
        from kyomei.runs import Run
        from kyomei.stages.family import refuse_family
        from kyomei.stages.label import label_run
        from kyomei.views.endpoint import Client, Endpoint

        run = Run.open(folder)
        refuse_family(run)
        where = Endpoint(endpoint, model, os.environ.get(key_variable) or None)
        prices = None if price_in is None and price_out is None else (price_in or 0.0, price_out or 0.0)

        def agree(estimate: Estimate) -> bool:
            for line in estimate_words(estimate, where.address, prices):
                reporter.note(line)
            return yes or typer.confirm("Send this?", err=True)

        found = label_run(run, Client(where, requests_per_minute), reporter, agree, dictionary=dictionary, latents=latents)
        show(found, as_json, tables.labels_table(found["labels"], where.source))


def _indexed_alone(
    folder: Path,
    source: tuple[Path | None, dict[str, object]],
    redaction: tuple[bool | None, Path | None],
    reporter: Reporter,
    *,
    rebuild: bool = False,
) -> tuple[Alone, Indexed]:
    """A dictionary without a run and its index, made where it is missing."""
    from kyomei.stages.alone import Alone, index_alone
    from kyomei.stages.index import redact

    alone = Alone.asked(folder, *source)
    redact(alone.out, *redaction)
    return alone, index_alone(alone, reporter, rebuild=rebuild)


def _explorer(
    folder: Path,
    dictionaries: list[str] | None,
    source: tuple[Path | None, dict[str, object]],
    redaction: tuple[bool | None, Path | None],
    reporter: Reporter,
) -> Explorer:
    """What a folder has to show, a run's or that of a dictionary without one, its index made where it is missing."""
    from kyomei.runs import Run
    from kyomei.stages import index as stage
    from kyomei.stages.explore import explorer_of, explorer_of_alone, prepare
    from kyomei.stages.family import refuse_family
    from kyomei.stages.named import FOLDER

    if is_alone(folder):
        return explorer_of_alone(_indexed_alone(folder, source, redaction, reporter)[0])
    run = Run.open(folder)
    refuse_family(run)
    if redaction != (None, None):
        with run.lock():
            stage.redact(run.path(FOLDER), *redaction)
    prepare(run, reporter, dictionaries)
    return explorer_of(run)
