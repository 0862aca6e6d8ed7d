"""Verbs of goals: what tells them, and whether a text has them."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from kyomei.cli.frame import AsJson, RunFolder, Shown, Threads, app, do_with, verb
from kyomei.errors import DataError
from kyomei.views.console import show

SHOWN = 40
"""Characters of a text in the table."""


@app.command("goals")
def goals_command(
    folder: RunFolder,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="Labelled text: .jsonl, .csv, .tsv or .parquet.", show_default="goals.labels of the recipe"
        ),
    ] = None,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            "--goal",
            help="A column that is a goal, or a name in the column goal; repeatable.",
            show_default="all names in goal, else label and score",
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Column of the text.", show_default="as the recipe: text")
    ] = None,
    group_field: Annotated[
        str | None,
        typer.Option("--group-field", help="Column that keeps documents together.", show_default="as the recipe: group"),
    ] = None,
    dictionary: Annotated[
        str | None, typer.Option("--dictionary", help="Such as imported-NAME-0.", show_default="the run's own")
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Which certified features tell a label or a score of whole documents, and how well, beside what else could.

    The detectors go into the run's goals.json; `kyomei detect` applies them.
    """
    with verb(threads, needs="goals") as reporter:
        from kyomei.runs import Run
        from kyomei.stages.goals import Asked, goals_run
        from kyomei.views.goals import goal_tables

        def find(run: Run) -> Shown:
            asked = Asked.of(run.recipe, labels, goal or (), text_field, group_field)
            found = goals_run(run, asked, reporter, dictionary=dictionary)
            return Shown(found, goal_tables(found, f"{run.folder}: goals of {asked.file.name}"))

        do_with(Run.open(folder), find, reporter, as_json)


@app.command("detect")
def detect_command(
    folder: RunFolder,
    goal: Annotated[str, typer.Argument(help="Name of the goal.", show_default=False)],
    text: Annotated[
        list[str] | None, typer.Argument(help="One or several texts.", show_default="what standard input holds")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Texts of a file: records of .jsonl, .csv or .parquet, else the whole of it."),
    ] = None,
    text_field: Annotated[str, typer.Option("--text-field", help="With --file: the column of the text.")] = "text",
    lines: Annotated[bool, typer.Option("--lines", help="Every line of standard input is a text.")] = False,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Texts read together: more are quicker, fewer are answered sooner.")
    ] = 64,
    threads: Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line on standard output, one a text, as they come.")
    ] = False,
) -> None:
    """Does a goal's detector fire on a text, how high is its score, and which features make it?"""
    with verb(threads):
        from kyomei.stages.detect import TextDetector
        from kyomei.views.goals import detection_table

        named = _texts(text, file, text_field, lines)
        detector = TextDetector(folder, goal)
        for_texts, for_names = itertools.tee(named)
        found: Iterator[dict[str, Any]] = (
            {"text": name, **each.to_dict()}
            for (name, _), each in zip(for_names, detector((words for _, words in for_texts), batch), strict=True)
        )
        if as_json:
            for each in found:
                print(json.dumps({"goal": goal, **each}), flush=True)
            return
        show(None, False, detection_table(list(found), goal, detector.detector.threshold))


def _texts(text: list[str] | None, file: Path | None, text_field: str, lines: bool) -> Iterable[tuple[str, str]]:
    """What each text is called, and the text: one after the other, of a file or of standard input no more than is read."""
    if (text is not None) + (file is not None) + lines > 1:
        raise DataError("texts from one place", "several", "give texts as words, or --file, or pipe them in")
    if text is not None:
        return ((_short(words), words) for words in text)
    if file is not None:
        from kyomei.source.corpus import Corpus
        from kyomei.source.records import Fields

        return ((document.name, document.text) for document in Corpus(str(file), Fields(text_field)))
    if sys.stdin.isatty():
        raise DataError("some text", "none", "name it after the goal, give --file, or pipe it in")
    if lines:
        return ((_short(line), line) for line in map(str.strip, sys.stdin) if line)
    whole = sys.stdin.read()
    if not whole.strip():
        raise DataError("some text", "blank text", "give a few words, or pipe them in")
    return [(_short(whole), whole)]


def _short(text: str) -> str:
    """A text as a table can name it."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else words[: SHOWN - 1] + "…"
