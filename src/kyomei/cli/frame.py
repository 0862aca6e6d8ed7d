"""What all verbs share: the application, common options, threads, progress and errors."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kyomei import __version__
from kyomei.atomic import refusal_of
from kyomei.errors import Interrupted, KyomeiError, RecipeError
from kyomei.extras import require
from kyomei.provenance import begin_verb, processes
from kyomei.views import tables
from kyomei.views.console import show

if TYPE_CHECKING:
    from kyomei.runs import Run
    from kyomei.stages.compare import Comparison
    from kyomei.stages.progress import Reporter

# Stages import torch and recipes import pydantic, so each verb imports what it needs when it runs: help stays fast.

app = typer.Typer(
    name="kyomei",
    help="Sparse dictionaries of language-model activations, and which of their features can be trusted.",
    epilog="Exit status: 0 done; 2 refused, with one line that says why; 130 stopped by a signal, to be resumed; "
    "1 a member of a family failed, audit or doctor found something broken, or an error of Kyomei's own; "
    "3 and 4 of watch: an alarm, an expired certificate. "
    "KYOMEI_OPERATOR=NAME has NAME recorded in a run's history.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run, such as runs/first.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="all cores")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is there and start anew.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


ON_RANKS = ("harvest", "train", "certify")
"""Verbs that several processes share; every process of torchrun would do the others by itself."""


@app.callback(invoke_without_command=True)
def _any_verb(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    asked = context.invoked_subcommand
    if processes() > 1 and asked is not None and asked not in ON_RANKS:
        with plain_errors():
            do = f"start `kyomei {asked}` by itself, without WORLD_SIZE in its environment"
            raise RecipeError(f"{', '.join(ON_RANKS)} under torchrun", f"{asked}, in {processes()} processes", do)


@contextlib.contextmanager
def verb(threads: int | None, needs: str | None = None) -> Iterator[Reporter]:
    """Threads, progress and errors of one verb; it is refused at once without the extra that it needs."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with plain_errors():
        if needs is not None:
            require(needs)
        import torch

        from kyomei.stages.progress import Reporter

        if threads is not None:
            torch.set_num_threads(threads)
        begin_verb()
        reporter = Reporter.of_process()
        reporter.note(f"kyomei {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        began = time.monotonic()
        yield reporter
        reporter.note(f"{time.monotonic() - began:.1f} seconds")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of a user's making become one line."""
    try:
        yield
    except Interrupted:
        raise
    except KyomeiError as error:
        _refuse(error, error)
    except OSError as error:
        # Whatever was writing or reading: to a user it is the same.
        refusal = refusal_of(error, error.filename or "what was being written")
        if refusal is None:
            raise
        _refuse(refusal, error)


def _refuse(said: KyomeiError, error: Exception) -> NoReturn:
    typer.echo(f"kyomei: {said}", err=True)
    raise typer.Exit(2) from error


@dataclass(frozen=True)
class Shown:
    """What a verb has to show of one run.

    Attributes:
        facts: for a program.
        tables: for people.
        opening, closing: what stands before and after the tables.
    """

    facts: dict[str, Any]
    tables: Sequence[tables.Table]
    opening: str = ""
    closing: Sequence[str] = ()


def present(shown: Shown, as_json: bool) -> None:
    """Print what there is to show."""
    show(shown.facts, as_json, *shown.tables, opening=shown.opening, closing=shown.closing)


def do_with(
    run: Run,
    work: Callable[[Run], Shown],
    reporter: Reporter,
    as_json: bool,
    *,
    begin: bool = False,
    only_reads: Callable[[Run], bool] = lambda run: False,
    side_by_side: Callable[[dict[str, Any], str], tables.Table] | None = None,
    together: Callable[[Comparison], Path] | None = None,
) -> None:
    """Do a verb's work with a run, or with every member of a family, and show what came of it.

    Args:
        run: of one dictionary, or the folder of a family.
        work: done with each run while this process holds it.
        reporter: shows progress.
        as_json: how it is shown.
        begin: begin members of the family that are not there.
        only_reads: whether the work with a run writes nothing, so that other processes may work on it meanwhile.
        side_by_side: the table of all members' facts and a title; none: their dictionaries side by side.
        together: writes a file of all members.

    Raises:
        Exit: with status 1, after all members, if one of them failed.
    """
    from kyomei.stages.compare import compare
    from kyomei.stages.family import each, family_of, members

    if not family_of(run).axes:
        with contextlib.nullcontext() if only_reads(run) else run.lock():
            shown = work(run)
        present(shown, as_json)
        return
    outcome = each(run, work, reporter, begin=begin)
    failed = {name: str(error) for name, error in outcome.failed.items()}
    by_name = {name: shown.facts for name, shown in outcome.done.items()}
    found = compare({part.folder.name: part for part in members(run)})
    if side_by_side is None:
        table, notes = tables.compare_table(found.rows, str(run.folder)), found.notes
    else:
        table, notes = side_by_side(by_name, str(run.folder)), []
    files = [] if together is None else [str(together(found))]
    failures = [f"{name} failed: {words}" for name, words in failed.items()]
    show({"members": by_name, "failed": failed}, as_json, table, closing=[*notes, *failures, *files])
    if failed:
        raise typer.Exit(1)
