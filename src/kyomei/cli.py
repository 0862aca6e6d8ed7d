"""The command line: options in, one stage called, one table or JSON object out."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kyomei import __version__
from kyomei.errors import Interrupted, KyomeiError, RecipeError, RunError
from kyomei.options import Asked, recipe_options
from kyomei.provenance import begin_verb, command_line
from kyomei.views import tables
from kyomei.views.console import show, speak_plainly, verdict_words

if TYPE_CHECKING:
    from kyomei.config import Recipe
    from kyomei.runs import Run
    from kyomei.stages.progress import Reporter

# Stages import torch and recipes import pydantic, so each verb imports what it needs when it runs: help stays fast.

app = typer.Typer(
    name="kyomei",
    help="Sparse dictionaries of language-model activations, and which of their features can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run, such as runs/first.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="all cores")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is there and start anew.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default="0")] = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """The whole path on the embedded model: harvest, check, train, TopK beside it, certify, measure, report.

    A second call reuses what is there.
    """
    with _verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.demo import demo, demo_recipe
        from kyomei.stages.harvest import harvested_run

        there = Run.open(folder).recipe if not overwrite and (folder / "manifest.json").exists() else demo_recipe(seed or 0)
        asked = there if seed is None else there.with_values({"seed": seed})
        run = harvested_run(folder, asked, reporter, resume=not overwrite, overwrite=overwrite, command=command_line())
        with run.lock():
            path = demo(run, reporter)
            _show_evidence(run, as_json)
        reporter.note(f"report: {path}")


@app.command("harvest")
@recipe_options()
def harvest_command(
    folder: RunFolder,
    asked: Asked,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Model and text to activation shards, split by document into replicas and evidence."""
    with _verb(threads) as reporter:
        from kyomei.stages.harvest import harvested_run, summary

        recipe = _recipe_of(folder, asked, resume)
        run = harvested_run(folder, recipe, reporter, resume=resume, overwrite=overwrite, command=command_line())
        facts = summary(run)
        show(facts, as_json, tables.harvest_table(facts, str(folder)))


@app.command("check")
@recipe_options("dtype")
def check_command(
    source: Annotated[Path, typer.Argument(help="File or folder of activations, or run.", show_default=False)],
    asked: Asked,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Are the premises of feature recovery met on these activations, and what share of the features would be found?

    With --model, --text, --site, --tokens, --recipe or --set, SOURCE is a new run to harvest into.
    """
    with _verb(threads) as reporter:
        from kyomei.source.rows import open_rows
        from kyomei.stages.check import check_rows, check_run

        seed, device = asked.options.get("seed"), asked.options.get("device")
        # These two say how to check; anything else is of rows to harvest.
        is_new = resume or not asked.says_at_most("seed", "device")
        if is_new or (source / "manifest.json").exists():
            from kyomei.runs import Run
            from kyomei.stages.harvest import harvested_run

            if is_new:
                wanted = _recipe_of(source, asked, resume)
                run = harvested_run(source, wanted, reporter, resume=resume, overwrite=overwrite, command=command_line())
            else:
                run = Run.open(source)
            with run.lock():
                premises = check_run(run, reporter, seed=seed, device=device)
        else:
            premises = check_rows(open_rows(source), reporter, seed=seed or 0, device=device or "auto")
        facts = premises.to_dict()
        show(facts, as_json, tables.premises_table(facts))


@app.command("train")
@recipe_options()
def train_command(
    folder: RunFolder,
    asked: Asked,
    mesh: Annotated[
        str | None,
        typer.Option(
            "--mesh", help="Under torchrun: parts of the rows x parts of the latents, such as 2x4.", show_default="all rows"
        ),
    ] = None,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Dictionaries of every replica and of the Gaussian null; harvests first where that is not done.

    Under torchrun all processes train each dictionary together; the run has to be harvested, and --resume is implied.
    """
    with _verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.harvest import harvested_run
        from kyomei.stages.train import train_on_mesh, train_run

        if mesh is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if overwrite:
                raise RecipeError("--overwrite in one process only", "a mesh", "harvest anew with --overwrite, then train")
            if not (folder / "manifest.json").exists():
                do = "run `kyomei harvest` first, in one process"
                raise RunError("a harvested run on a mesh", f"none in {folder}", do)
            run = Run.create(folder, _recipe_of(folder, asked, resume=True), resume=True)
            facts = train_on_mesh(run, *_parts(mesh), reporter)
            if facts is None:
                return
        else:
            recipe = _recipe_of(folder, asked, resume)
            run = harvested_run(folder, recipe, reporter, resume=resume, overwrite=overwrite, command=command_line())
            with run.lock():
                facts = train_run(run, reporter)
        show(facts, as_json, tables.train_table(facts, str(folder)))


@app.command("recipe")
def recipe_command(
    mechanism: Annotated[
        str | None, typer.Option("--mechanism", help="Write a recipe with this mechanism, to edit.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every setting with its default and its help; with --mechanism, a file for --recipe."""
    with _plain_errors():
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
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time, memory, disk and money of a run before it is begun, and what is out of proportion."""
    with _verb(threads):
        from kyomei.stages.plan import plan

        recipe = asked.recipe()
        found = plan(recipe, hardware, price=price, gpus=gpus)
        title = (
            "measured on this machine" if hardware == "here" else f"{hardware}: reckoned from its maker's figures, not measured"
        )
        facts = found.to_dict()
        show(facts, as_json, tables.plan_table(facts, title, recipe.source.replicas), closing=found.advice)


@app.command("measure")
def measure_command(
    folder: RunFolder,
    null: Annotated[
        list[str] | None,
        typer.Option(
            "--null",
            help="A further null beside every consistency figure; repeatable: "
            "random-weights, frozen-decoder, soft-frozen-decoder, frozen-encoder.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Every number of a trained run beside its null, on documents that no replica saw."""
    with _verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.measure import measure_run

        run = Run.open(folder)
        with run.lock():
            measure_run(run, reporter, null or ())
            _show_evidence(run, as_json)


@app.command("certify")
def certify_command(
    folder: RunFolder,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="Mechanism to train and certify beside it; repeatable.", show_default=False),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Also repeat the run with random model weights and compare origins."),
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Which features of a trained run's dictionary other replicas confirm, and where they come from."""
    with _verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.certify import certify_run

        run = Run.open(folder)
        with run.lock():
            facts = certify_run(run, reporter, baselines=baseline or (), random_weights=random_weights)
        shown = tables.certify_tables(facts, str(folder))
        show(facts, as_json, *shown, opening=verdict_words(facts["verdict"]), closing=tables.certify_notes(facts))


@app.command("report")
def report_command(folder: RunFolder, as_json: AsJson = False) -> None:
    """Write report.html from a run's evidence."""
    with _verb(None):
        from kyomei.runs import Run
        from kyomei.stages.certify import verdict_of
        from kyomei.stages.report import report_run

        run = Run.open(folder)
        with run.lock():
            path = report_run(run)
            answer = verdict_of(run).to_dict()
        show({"verdict": answer, "report": str(path)}, as_json, opening=verdict_words(answer), closing=[str(path)])


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
    with _verb(threads) as reporter:
        from kyomei.stages.planted import recover_planted

        chosen = asked.recipe()
        options = {"noise": noise, "frequency": frequency, "coefficient": coefficient}
        facts = recover_planted(features, dim, _active(active), rows, options, chosen, reporter)
        show(facts, as_json, tables.planted_table(facts, features, dim))


@app.command("reproduce")
def reproduce_command(
    name: Annotated[str | None, typer.Argument(help="Experiment; without one they are listed.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/reproduce/NAME")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the experiment's own")] = None,
    full: Annotated[bool, typer.Option("--full", help="The long version.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one cell each at a time.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure finished cells anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """One of the paper's experiments, measured again: table.md, result.json and figure.svg.

    A stopped one goes on where it was: finished cells are kept.
    """
    with _verb(threads) as reporter:
        from kyomei.stages.reproduce import EXPERIMENTS, experiment_named
        from kyomei.stages.reproduce.experiment import reproduce

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
            workers=workers,
            threads=threads,
            overwrite=overwrite,
        )
        reporter.note(f"paper: {experiment.paper}")
        show(result, as_json, *summary.tables)
        for line in (*summary.notes, f"files: {folder}"):
            reporter.note(line)


def main() -> None:
    """Run a verb: user errors become one message and exit code 2. Signals are its caller's, `kyomei.__main__`."""
    speak_plainly()
    app()


@contextlib.contextmanager
def _verb(threads: int | None) -> Iterator[Reporter]:
    """Threads, progress and errors of one verb."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with _plain_errors():
        import torch

        from kyomei.stages.progress import Reporter

        if threads is not None:
            torch.set_num_threads(threads)
        begin_verb()
        reporter = Reporter()
        reporter.note(f"kyomei {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        began = time.monotonic()
        yield reporter
        reporter.note(f"{time.monotonic() - began:.1f} seconds")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of a user's making become one line."""
    try:
        yield
    except Interrupted:
        raise
    except KyomeiError as error:
        typer.echo(f"kyomei: {error}", err=True)
        raise typer.Exit(2) from error


def _recipe_of(folder: Path, asked: Asked, resume: bool) -> Recipe:
    """The recipe that is asked for: options build on that of a run that is resumed, so nothing needs to be said again."""
    from kyomei.config import Recipe
    from kyomei.runs import MANIFEST, RECIPE, Run

    if resume and (folder / MANIFEST).exists():
        return asked.recipe(Run.open(folder).recipe)
    # A crash may have come between the two files of a new run.
    return asked.recipe(Recipe.read(folder / RECIPE) if resume and (folder / RECIPE).exists() else None)


def _parts(mesh: str | None) -> tuple[int, int]:
    """Parts of the rows and of the latents; without a wish, every process has a part of the rows."""
    try:
        data, features = (int(part) for part in (mesh or f"{os.environ.get('WORLD_SIZE', '1')}x1").split("x"))
    except ValueError as error:
        raise RecipeError("--mesh as 2x4", f"'{mesh}'", "give parts of the rows and of the latents") from error
    return data, features


def _active(text: str) -> int | tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError("--active as 5 or 3,20", f"'{text}'", "give whole numbers") from error
    return counts[0] if len(counts) == 1 else counts


def _show_evidence(run: Run, as_json: bool) -> None:
    from kyomei.stages.certify import verdict_of

    evidence = run.read_json("evidence.json")
    answer = verdict_of(run).to_dict()
    table, missing = tables.evidence_table(evidence, str(run.folder)), tables.missing_evidence(evidence)
    show({"verdict": answer, **evidence}, as_json, table, opening=verdict_words(answer), closing=missing)
