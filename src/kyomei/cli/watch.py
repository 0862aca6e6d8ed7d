"""The verb that watches a deployed dictionary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kyomei.cli.frame import AsJson, RunFolder, Threads, app, verb
from kyomei.errors import DataError
from kyomei.extras import require
from kyomei.views.console import show

if TYPE_CHECKING:
    from kyomei.dictionary.sae import SparseAutoencoder
    from kyomei.runs import Run
    from kyomei.stages.progress import Reporter
    from kyomei.stages.watch_sources import Source
    from kyomei.stages.watched import Reference, TextReader

ALARM, EXPIRED = 3, 4
"""Exit statuses, beside 0."""


@app.command("watch")
def watch_command(
    folder: RunFolder,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Where the text is, as for a harvest; repeatable.", show_default="standard input"),
    ] = None,
    activations: Annotated[
        list[Path] | None,
        typer.Option("--activations", help="A harvest whose stored rows are watched; repeatable.", show_default=False),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line of standard input is a text, and no JSON object.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Standard input begins with its first document again: skip those counted.")
    ] = False,
    skip_bad_records: Annotated[bool, typer.Option("--skip-bad-records", help="Leave out what cannot be read.")] = False,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Folder in which the stream is remembered.", show_default="watch/stream in the run"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget what is remembered there, and begin anew.")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Make the reference, and stop.")] = False,
    stop_at_alarm: Annotated[bool, typer.Option("--stop-at-alarm", help="End at the first alarm.")] = False,
    max_age: Annotated[float, typer.Option("--max-age", help="Days after which the certificate expires.", min=0.0)] = 180.0,
    prometheus: Annotated[
        int | None, typer.Option("--prometheus", help="Serve figures for Prometheus on this port; 0: any.", min=0, max=65535)
    ] = None,
    prometheus_host: Annotated[str, typer.Option("--prometheus-host", help="Address to serve them on.")] = "127.0.0.1",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Is new text still like the evidence? Firing rates, reconstruction and goals of a deployed dictionary, tested at any time.

    Exit status: 0 quiet, 3 an alarm, 4 no alarm but the certificate has expired, 2 refused, 130 stopped by a signal; what was
    counted stays counted, and the same command goes on. With --json, standard output has a JSON object for each event.
    """
    with verb(threads) as reporter:
        if prometheus is not None:
            require("watch")
        from kyomei.runs import Run
        from kyomei.stages.family import refuse_family
        from kyomei.stages.watch import Asked, Watch, opened_dictionary, stream_folder
        from kyomei.stages.watch_state import StateFolder
        from kyomei.views.watch import certificate_words, event_words, status_tables

        _refuse_both(text, activations, lines or replay)
        if not (text or activations or prepare) and sys.stdin.isatty():
            raise DataError("some text", "none", "name it with --text, or pipe it in")
        run = Run.open(folder)
        refuse_family(run)
        sae = opened_dictionary(run)
        reference, reader = _reference(run, sae, "packed" if activations else "whole", reporter)
        if prepare:
            reporter.note(f"reference: {len(reference.ranked)} documents, in {run.path('watch')}")
            return
        place = stream_folder(run, state)
        sources = _sources(run, sae, reader, (text, activations), (lines, replay, skip_bad_records))

        def tell(event: dict[str, Any]) -> None:
            print(json.dumps(event), flush=True) if as_json else reporter.note(event_words(event))

        with _held(place, overwrite), _metrics(prometheus, prometheus_host, reporter) as update:
            weights = None if reader is None else reader.model.fingerprint()
            how = Asked(stop_at_alarm=stop_at_alarm, max_age_days=max_age, on_event=tell, on_status=update)
            watch = Watch(run, reference, StateFolder(place), weights, how)
            watch.begin()
            for source in sources:
                if not watch.follow(source):
                    break
            status = watch.end()
        if as_json:
            print(json.dumps({"event": "status", **status}), flush=True)
        else:
            show(status, False, *status_tables(status), closing=[certificate_words(status["certificate"])])
        expired = status["certificate"]["state"] == "expired"
        if status["alarms"] or expired:
            raise typer.Exit(ALARM if status["alarms"] else EXPIRED)


def _refuse_both(text: list[str] | None, activations: list[Path] | None, of_stdin: bool) -> None:
    if text and activations:
        raise DataError("text or activations", "both", "watch each into a --state of its own: they are read in other ways")
    if of_stdin and (text or activations):
        named = "--text" if text else "--activations"
        raise DataError("--lines and --replay for standard input", f"{named} beside them", "leave one of them out")


def _reference(run: Run, sae: SparseAutoencoder, way: Any, reporter: Reporter) -> tuple[Reference, TextReader | None]:
    """What the stream is held to, made where it is missing, and the reader of its text."""
    from kyomei.stages.harvest import load_model
    from kyomei.stages.watched import TextReader, reference_of

    reader = TextReader(load_model(run.recipe), sae, run) if way == "whole" else None
    return reference_of(run, way, sae, reporter, reader), reader


def _sources(
    run: Run,
    sae: SparseAutoencoder,
    reader: TextReader | None,
    named: tuple[list[str] | None, list[Path] | None],
    of_stdin: tuple[bool, bool, bool],
) -> list[Source]:
    from kyomei.source.records import Fields
    from kyomei.stages.harvested import open_harvest
    from kyomei.stages.watch_sources import StoredSource, StreamSource, TextSource

    text, activations = named
    lines, replay, skip_bad = of_stdin
    if activations:
        return [StoredSource(open_harvest(each), run, sae) for each in activations]
    assert reader is not None
    fields = Fields(run.recipe.source.text_field)
    if text:
        return [TextSource(each, reader, fields, skip_bad) for each in text]
    return [StreamSource(sys.stdin.buffer, reader, fields, lines=lines, replayed=replay, skip_bad=skip_bad)]


@contextmanager
def _held(place: Path, overwrite: bool) -> Iterator[None]:
    """Hold the folder of a stream for this process."""
    from kyomei.atomic import make_folder, remove_temporaries
    from kyomei.locks import locked
    from kyomei.stages.watch_state import StateFolder

    make_folder(place)
    with locked(place):
        remove_temporaries(place)
        if overwrite:
            StateFolder(place).clear()
        yield


@contextmanager
def _metrics(port: int | None, host: str, reporter: Reporter) -> Iterator[Any]:
    """Serve figures for Prometheus while the block runs, where that is asked for; yields what a new status is given to."""
    from kyomei.views.watch import Metrics

    if port is None:
        yield lambda status: None
        return
    metrics = Metrics(host, port)
    reporter.note(f"figures for Prometheus: http://{host}:{metrics.port}/metrics")
    try:
        yield metrics.update
    finally:
        metrics.close()
