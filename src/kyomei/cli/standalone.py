"""Verbs that need no run: recipes, plans, planted data, the paper's experiments, the state of this machine."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kyomei.cli.frame import AsJson, Threads, app, plain_errors, verb
from kyomei.errors import RecipeError
from kyomei.options import Asked, recipe_options
from kyomei.views import tables
from kyomei.views.console import show
from kyomei.views.foretold import planned_lines

if TYPE_CHECKING:
    from kyomei.config import Recipe


@app.command("recipe")
def recipe_command(
    mechanism: Annotated[
        str | None, typer.Option("--mechanism", help="Write a recipe with this mechanism, to edit.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every setting with its default and its help; with --mechanism, a file for --recipe."""
    with plain_errors():
        from kyomei.config import Recipe
        from kyomei.config.listing import commented, settings_table

        if mechanism is not None:
            recipe = Recipe().with_values({"mechanism.name": mechanism})
            typer.echo(json.dumps(recipe.model_dump(mode="json"), indent=2) if as_json else commented(recipe), nl=False)
            return
        rows = settings_table(Recipe)
        facts = {key: {"default": default, "help": words} for key, default, words in rows}
        show(facts, as_json, tables.settings_table(rows))


@app.command("plan")
@recipe_options()
def plan_command(
    asked: Asked,
    hardware: Annotated[str, typer.Option(help="'here' (probed), or a100, h100, h200, b200, l40s, rtx4090.")] = "here",
    gpus: Annotated[int, typer.Option(help="GPUs there are.")] = 1,
    price: Annotated[float | None, typer.Option(help="Dollars an hour of one.", show_default="of the table")] = None,
    dim: Annotated[
        int | None, typer.Option(help="With --parameters: width of a site; no model is loaded.", show_default="of the model")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Parameters of the language model, such as 7e9.", show_default="of the model")
    ] = None,
    certified_share: Annotated[
        float | None,
        typer.Option("--certified-share", help="With --run: plan the tokens that it takes, such as 0.7.", show_default=False),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            help="A certified run to plan a larger one of; four or more of other sizes make it a measured law.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time, memory, disk and money of a run before it is begun, and what is out of proportion.

    With --run also which share of the latents will be certified, or how many tokens a wished share takes.
    """
    with verb(threads):
        from kyomei.stages.plan import plan

        recipe, law = _larger(asked, runs or [], certified_share)
        if (dim is None) != (parameters is None):
            raise RecipeError("--dim and --parameters together", "one of them", "give both, or neither")
        model_size = None if dim is None or parameters is None else (dim, parameters)
        found = plan(recipe, hardware, price=price, gpus=gpus, model_size=model_size)
        reckoned = f"{hardware}: reckoned from its maker's figures, steps by one H100's"
        title = "measured on this machine" if hardware == "here" else reckoned
        facts = {**found.to_dict(), **({} if law is None else {"certified": law})}
        told = [] if law is None else planned_lines(law)
        show(facts, as_json, tables.plan_table(facts, title, recipe.source.replicas), closing=[*told, *found.advice])


def _larger(asked: Asked, folders: Sequence[Path], wished: float | None) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe that is planned, and what runs foretell of it; none: there are no runs."""
    if not folders:
        if wished is not None:
            raise RecipeError("--run with --certified-share", "--certified-share alone", "name a certified run with --run")
        return asked.recipe(), None
    from kyomei.runs import Run
    from kyomei.stages.foretelling import planned_for

    if wished is not None and "source.num_tokens" in asked.given():
        do = "leave one of them out: the share says how many tokens are planned"
        raise RecipeError("--tokens or --certified-share", "both", do)
    runs = [Run.open(folder) for folder in folders]
    largest = max(runs, key=lambda run: run.recipe.source.num_tokens)
    return planned_for(runs, asked.recipe(largest.recipe), wished)


@app.command("planted")
@recipe_options("model", "text", "skip_bad_records", "site", "tokens")
def planted_command(
    asked: Asked,
    features: Annotated[int, typer.Option(help="True features n.")] = 128,
    dim: Annotated[int, typer.Option(help="Dimensions d.")] = 42,
    active: Annotated[str, typer.Option(help="Active features in a row; '3,20' mixes both equally.")] = "3,20",
    rows: Annotated[int, typer.Option(help="Rows to draw.")] = 50_000,
    noise: Annotated[float, typer.Option(help="Mean noise norm over mean row norm.")] = 0.0,
    frequency: Annotated[str, typer.Option(help="uniform or zipf.")] = "uniform",
    coefficient: Annotated[str, typer.Option(help="constant or uniform.")] = "constant",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plant features, then try to find them: recovery beside that of random directions."""
    with verb(threads) as reporter:
        from kyomei.stages.planted import recover_planted

        chosen = asked.recipe()
        options = {"noise": noise, "frequency": frequency, "coefficient": coefficient}
        facts = recover_planted(features, dim, _active(active), rows, options, chosen, reporter)
        show(facts, as_json, tables.planted_table(facts, features, dim))


@app.command("doctor")
def doctor_command(
    folder: Annotated[Path, typer.Argument(help="Where runs are to go.")] = Path("."),
    seconds: Annotated[float, typer.Option("--hub-seconds", help="To wait for the hub's answer.", min=0.1)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Versions, devices, disk, hub and extras: what would fail here, and what to do. Exit status 1 if every verb would."""
    with plain_errors():
        from kyomei.stages.doctor import doctor, facts

        checks = doctor(folder, seconds)
        rows = tuple((check.name, check.state, check.found, check.do) for check in checks)
        table = tables.Table("this machine", ("what", "state", "found", "what to do"), rows, words=(0, 1, 2, 3))
        show(facts(checks), as_json, table)
        if facts(checks)["fails"]:
            raise typer.Exit(1)


@app.command("reproduce")
def reproduce_command(
    name: Annotated[str | None, typer.Argument(help="Experiment; without one they are listed.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/reproduce/NAME")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the experiment's own")] = None,
    full: Annotated[bool, typer.Option("--full", help="The long version.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one cell each at a time.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure finished cells anew.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Begin no cell after so long; 0 sums up what is finished.", show_default="until all are done"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One of the paper's experiments, measured again: table.md, result.json and figure.svg.

    A stopped one goes on where it was: finished cells are kept.
    """
    with verb(threads, needs=None if name is None else "figures") as reporter:
        from kyomei.stages.reproduce import EXPERIMENTS, experiment_named
        from kyomei.stages.reproduce.experiment import Effort, reproduce

        if name is None:
            listed = {experiment.name: experiment.title for experiment in EXPERIMENTS.values()}
            header = ("name", "what is measured")
            show(listed, as_json, tables.Table("experiments", header, tuple(listed.items()), words=(0, 1)))
            return
        experiment, folder = experiment_named(name), out or Path("runs/reproduce") / name
        options = [*(["--seeds", str(seeds)] if seeds else []), *(["--full"] if full else [])]
        command = shlex.join(["kyomei", "reproduce", name, *options])
        summary, result = reproduce(
            experiment,
            folder,
            experiment.cells(seeds, full),
            reporter,
            command=command,
            effort=Effort(workers, threads, math.inf if minutes is None else minutes),
            overwrite=overwrite,
        )
        reporter.note(f"paper: {experiment.paper}")
        show(result, as_json, *summary.tables)
        for line in (*summary.notes, f"files: {folder}"):
            reporter.note(line)


def _active(text: str) -> int | tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError("--active as 5 or 3,20", f"'{text}'", "give whole numbers") from error
    return counts[0] if len(counts) == 1 else counts
