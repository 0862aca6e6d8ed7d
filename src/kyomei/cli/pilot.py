"""Verbs of a team's path: a small run that says go or no-go, and the steps from there to all traffic."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from kyomei.cli.frame import AsJson, Overwrite, Resume, RunFolder, Threads, app, verb
from kyomei.errors import RecipeError, RunError
from kyomei.options import Asked, recipe_options
from kyomei.provenance import command_line
from kyomei.views import decisions, tables
from kyomei.views.console import show

Language = Annotated[str, typer.Option("--lang", help="Language of the verdict: en or ja.")]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.1,
        help="Budget, turned into tokens and steps; again on a pilot that has ended: more of it.",
        show_default="10, where neither a recipe, --tokens nor --steps is given",
    ),
]
Harvest = Annotated[
    Path | None,
    typer.Option("--from", help="A harvest, or a run, whose rows to learn from; nothing is harvested.", show_default=False),
]
FullTokens = Annotated[
    int | None,
    typer.Option("--full-tokens", min=1, help="Of the full run.", show_default="100 times the pilot's, if there is text"),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option("--baseline", help="Mechanism beside it at the same sparsity; repeatable.", show_default="topk"),
]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", help="Leave out: 'random weights', goals, measure, 'baseline topk'.", show_default=False),
]
Hardware = Annotated[str, typer.Option(help="Of the full run's plan: 'here', or a GPU as `kyomei plan` has it.")]
Gpus = Annotated[int, typer.Option(help="GPUs of the full run's plan.")]
Price = Annotated[float | None, typer.Option(help="Dollars an hour of one.", show_default="of the table")]


@app.command("pilot")
@recipe_options()
def pilot_command(
    folder: RunFolder,
    asked: Asked,
    minutes: Minutes = None,
    harvest: Harvest = None,
    full_tokens: FullTokens = None,
    baseline: Baselines = None,
    without: Without = None,
    hardware: Hardware = "here",
    gpus: Gpus = 1,
    price: Price = None,
    lang: Language = "en",
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A small run with replicas, nulls and a baseline: go, conditional or no-go, and what the full run will take.

    A pilot that is there is gone on with, so --resume need not be said. Exit status 0 whatever the verdict is.
    """
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.harvested import open_harvest, rename, source_from
        from kyomei.stages.pilot import Request, asked_before, begin, pilot, usual_minutes, wanted_parts

        if resume and overwrite:
            raise RunError("either --resume or --overwrite", "both", "choose one of them")
        before = None if overwrite else asked_before(folder)
        if before is not None and (baseline or without):
            do = f"leave them out, or begin a new pilot; `kyomei certify {shlex.quote(str(folder))} --baseline NAME` adds one"
            raise RecipeError("--baseline and --without where a pilot begins", f"a pilot in {folder}", do)
        host, recipe = None if harvest is None else open_harvest(harvest), asked.recipe(before)
        if host is not None and before is None:
            recipe = source_from(host, recipe, asked.source())
        elif host is not None:
            rename(Run.open(folder), host)
        given, baselines = asked.given(), tuple(baseline or ("topk",))
        if before is None and minutes is None and asked.file is None:
            minutes = usual_minutes(given)
        parts = wanted_parts(recipe, baselines)
        if unknown := set(without or ()) - set(parts):
            raise RecipeError(f"--without one of {', '.join(parts)}", min(unknown), "choose among these")
        wanted = (full_tokens, baselines, tuple(without or ()), hardware, gpus, price)
        request = Request(recipe, tuple(given), minutes, *wanted)
        run = begin(folder, request, reporter, harvest=host, overwrite=overwrite, command=command_line())
        with run.lock():
            facts = pilot(run, reporter)
        _show(facts, folder, lang, recipe.source.replicas, as_json)


def _show(facts: dict[str, Any], folder: Path, lang: str, replicas: int, as_json: bool) -> None:
    """The verdict, the pilot's parts, the full run's plan, and what to do next."""
    made = facts["pilot"]
    parts, full = decisions.pilot_table(made, f"The pilot in {folder}"), made["full"]["plan"]
    place = "this machine, going by what the pilot took" if full["hardware"] == "here" else full["hardware"]
    planned = tables.plan_table(full, f"The full run on {place}", replicas)
    from kyomei.stages.rollout import stage_of

    place, of = shlex.quote(str(folder)), stage_of(folder)
    if of is None:
        notes = decisions.pilot_notes(made, place, made["full"]["recipe"])
    else:
        pilot, stage, following = of
        notes = decisions.stage_notes(made, place, shlex.quote(os.path.relpath(pilot)), stage, following)
    closing = [*notes, f"report: {facts['report']}"]
    ahead = () if of is not None and of[2] is None else (planned,)  # the last stage is the full run
    show(facts, as_json, parts, *ahead, opening=decisions.decision_words(facts["verdict"], lang), closing=closing)


@app.command("rollout")
def rollout_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a pilot that has ended.", show_default=False)],
    to: Annotated[
        str | None, typer.Option("--to", help="Take the step: tenth, all, or a stage before.", show_default="show where it is")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Why the step is taken though its gate is not met; written down.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """From a pilot to a tenth to all: each step behind the verdict of the stage before, in one file that only grows.

    Without options it shows where the roll-out is.
    """
    with verb(None):
        from kyomei.runs import Run
        from kyomei.stages.rollout import status, step

        run = Run.open(folder)
        if reason is not None and to is None:
            raise RecipeError("--to with --reason", "--reason alone", "name the stage")
        if to is not None:
            with run.lock():
                step(run, to, reason)
        facts = status(run)
        lines = decisions.rollout_lines(facts["log"]) or ["no step has been taken yet"]
        table = decisions.rollout_table(facts, f"Roll-out of {folder}: at '{facts['stage']}'")
        show(facts, as_json, table, closing=[*lines, f"next: `{facts['do']}`"])
