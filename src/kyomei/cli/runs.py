"""Verbs of a run, from text to report."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kyomei.cli.frame import AsJson, Overwrite, Resume, RunFolder, Shown, Threads, app, do_with, present, verb
from kyomei.errors import RecipeError, RunError
from kyomei.options import Asked, recipe_options
from kyomei.provenance import command_line, processes
from kyomei.views import tables
from kyomei.views.console import show, verdict_words
from kyomei.views.findings import missing_evidence

if TYPE_CHECKING:
    from kyomei.config.family import Family
    from kyomei.runs import Run
    from kyomei.stages.progress import Reporter


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
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.demo import demo, demo_recipe
        from kyomei.stages.family import refuse_family
        from kyomei.stages.harvest import harvested_run

        there = Run.open(folder).recipe if not overwrite and (folder / "manifest.json").exists() else demo_recipe(seed or 0)
        asked = there if seed is None else there.with_values({"seed": seed})
        run = harvested_run(folder, asked, reporter, resume=not overwrite, overwrite=overwrite, command=command_line())
        refuse_family(run)
        with run.lock():
            path = demo(run, reporter)
            present(_evidence(run), as_json)
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
    """Model and text to activation shards, split by document into replicas and evidence.

    Under torchrun each process harvests its share of the shards; --resume is implied, so a job that is restarted goes on.
    """
    with verb(threads) as reporter:
        from kyomei.stages.family import begun
        from kyomei.stages.harvest import ranks_of, summary

        resume, overwrite = _again(resume, overwrite)
        family = _asked_of(folder, asked, resume)
        with ranks_of(family.base, reporter) as reporter:
            run = begun(folder, family, reporter, resume=resume, overwrite=overwrite, command=command_line())
            facts = summary(run)
        if reporter.mesh.leads:
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
    with verb(threads) as reporter:
        from kyomei.source.rows import open_rows
        from kyomei.stages.check import Known, check_rows, check_run

        seed, device = asked.options.get("seed"), asked.options.get("device")
        # These two say how to check; anything else is of rows to harvest.
        is_new = resume or not asked.says_at_most("seed", "device")
        if is_new or (source / "manifest.json").exists():
            from kyomei.runs import Run
            from kyomei.stages.family import begun

            known: Known = {}

            def check_it(run: Run) -> Shown:
                facts = check_run(run, reporter, seed=seed, device=device, known=known).to_dict()
                return Shown(facts, [tables.premises_table(facts)])

            if is_new:
                wanted = _asked_of(source, asked, resume)
                run = begun(source, wanted, reporter, resume=resume, overwrite=overwrite, command=command_line())
            else:
                run = Run.open(source)
            do_with(run, check_it, reporter, as_json, begin=True, side_by_side=tables.premises_by_name)
        else:
            facts = check_rows(open_rows(source), reporter, seed=seed or 0, device=device or "auto").to_dict()
            show(facts, as_json, tables.premises_table(facts))


@app.command("train")
@recipe_options()
def train_command(
    folder: RunFolder,
    asked: Asked,
    harvest: Annotated[
        Path | None,
        typer.Option("--from", help="A harvest, or a run, whose rows to learn from; nothing is harvested.", show_default=False),
    ] = None,
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

    Several sites, widths, mechanisms or L0s, or lists by --set, make a family: a run for each combination, on one harvest.

    Under torchrun all processes train each dictionary together; the run has to be harvested, and --resume is implied.
    """
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.family import begun, refuse_family
        from kyomei.stages.harvested import open_harvest
        from kyomei.stages.train import train_on_mesh, train_run, trained

        def train_it(run: Run) -> Shown:
            facts = train_run(run, reporter)
            return Shown(facts, [tables.train_table(facts, str(run.folder))])

        if mesh is not None or processes() > 1:
            if overwrite:
                raise RecipeError("--overwrite in one process only", "a mesh", "harvest anew with --overwrite, then train")
            if not (folder / "manifest.json").exists():
                do = "run `kyomei harvest` first, alone or under torchrun"
                raise RunError("a harvested run on a mesh", f"none in {folder}", do)
            run = Run.create(folder, _asked_of(folder, asked, resume=True).base, resume=True)
            refuse_family(run)
            facts = train_on_mesh(run, *_parts(mesh), reporter)
            if facts is not None:
                show(facts, as_json, tables.train_table(facts, str(folder)))
            return
        host = None if harvest is None else open_harvest(harvest)
        family = _asked_of(folder, asked, resume) if host is None else _on_harvest(folder, asked, resume, host)
        run = begun(folder, family, reporter, resume=resume, overwrite=overwrite, command=command_line(), harvest=host)
        do_with(run, train_it, reporter, as_json, begin=True, only_reads=trained)


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
    with verb(threads) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.measure import measure_run

        def measure_it(run: Run) -> Shown:
            measure_run(run, reporter, null or ())
            return _evidence(run)

        do_with(Run.open(folder), measure_it, reporter, as_json)


@app.command("certify")
@recipe_options()
def certify_command(
    asked: Asked,
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the run.", show_default="with --sae: runs/certify-NAME, made anew")
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            "--sae",
            help="A dictionary from elsewhere, a file, a folder or OWNER/NAME on the hub; replicas on its site test it.",
            show_default=False,
        ),
    ] = None,
    latents: Annotated[
        int | None, typer.Option("--latents", min=1, help="With --sae: test so many, drawn at random.", show_default="all")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --sae: do not ask once it is said what it takes.")] = False,
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
    """Which features of a trained run's dictionary other replicas confirm, and where they come from.

    With --sae the same for a dictionary from elsewhere; other options are then settings of the run that is made for it.

    Under torchrun each process holds its share of the latents of every dictionary.
    """
    with verb(threads) as reporter:
        if sae is not None:
            if baseline or random_weights:
                raise RecipeError("--sae alone", "--baseline or --random-weights with it", "certify the run again with those")
            if processes() > 1:
                raise RecipeError("one process for --sae, which harvests and trains", "several", "start it without torchrun")
            _certify_foreign(folder, sae, asked, latents, reporter, yes, as_json)
            return
        if folder is None:
            raise RunError("the folder of a run, or --sae", "neither", "name one: `kyomei certify runs/first`")
        if latents is not None or yes or not asked.says_at_most():
            raise RecipeError("settings with --sae only", "some without it", "leave them out, or add --sae")
        from kyomei.runs import Run
        from kyomei.stages.certify import certified, certify_on_mesh, certify_run
        from kyomei.stages.family import refuse_family

        def show_it(run: Run, facts: dict[str, Any]) -> Shown:
            shown = tables.certify_tables(facts, str(run.folder))
            return Shown(facts, shown, verdict_words(facts["verdict"]), tables.certify_notes(facts))

        def certify_it(run: Run) -> Shown:
            return show_it(run, certify_run(run, reporter, baselines=baseline or (), random_weights=random_weights))

        def only_reads(run: Run) -> bool:
            return certified(run, baseline or (), random_weights)

        if processes() > 1:
            run = Run.open(folder)
            refuse_family(run)
            facts = certify_on_mesh(run, reporter, baselines=baseline or (), random_weights=random_weights)
            if facts is not None:
                present(show_it(run, facts), as_json)
            return
        do_with(Run.open(folder), certify_it, reporter, as_json, only_reads=only_reads)


def _certify_foreign(
    folder: Path | None, sae: str, asked: Asked, latents: int | None, reporter: Reporter, yes: bool, as_json: bool
) -> None:
    from kyomei.stages.foreign import Foreign, certify_foreign

    foreign = Foreign.read(sae)
    folder = folder or Path("runs") / f"certify-{foreign.name}"

    def agree() -> bool:
        return yes or not sys.stdin.isatty() or typer.confirm("Go on?", err=True)

    facts = certify_foreign(folder, foreign, asked.dotted(), reporter, agree, latents=latents, command=command_line())
    shown = tables.certify_tables(facts, str(folder))
    present(Shown(facts, shown, verdict_words(facts["verdict"]), tables.certify_notes(facts)), as_json)


@app.command("report")
def report_command(
    folder: RunFolder,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print both pages, as report.pdf and report.ja.pdf.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html and report.ja.html from all that a run has: a page to read out first, then every figure."""
    with verb(None) as reporter:
        from kyomei.runs import Run
        from kyomei.stages.certify import verdict_of
        from kyomei.stages.compare import write_index
        from kyomei.stages.report import PAGES, print_report, report_run
        from kyomei.views.printing import browser

        if pdf:
            browser()  # before any time is spent

        def report_it(run: Run) -> Shown:
            path = report_run(run)
            pages = [path.with_name(page) for page in PAGES.values()]
            files = [*(page for page in pages if page.exists()), *(print_report(run) if pdf else ())]
            answer = verdict_of(run).to_dict()
            facts = {"verdict": answer, "report": str(path), "files": [str(file) for file in files]}
            return Shown(facts, [], verdict_words(answer), [str(file) for file in files])

        run = Run.open(folder)
        do_with(run, report_it, reporter, as_json, together=lambda found: write_index(run, found))


def _asked_of(folder: Path, asked: Asked, resume: bool) -> Family:
    """What is asked for: options build on a run that is resumed, so nothing needs to be said again."""
    from kyomei.config import Recipe
    from kyomei.config.family import Family
    from kyomei.runs import MANIFEST, RECIPE, Run, finish_birth
    from kyomei.stages.family import family_of

    if resume and folder.is_dir():
        finish_birth(folder)
        if (folder / MANIFEST).exists():
            return asked.family(family_of(Run.open(folder)))
        if (folder / RECIPE).exists():
            return asked.family(Family(Recipe.read(folder / RECIPE)))
    return asked.family()


def _again(resume: bool, overwrite: bool) -> tuple[bool, bool]:
    """Whether to resume and to overwrite, where torchrun may start the command again after it lost a process."""
    if processes() == 1:
        return resume, overwrite
    anew = overwrite and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    return not anew, anew


def _on_harvest(folder: Path, asked: Asked, resume: bool, harvest: Run) -> Family:
    """The same for what learns from a harvest in another folder, whose source it has."""
    from kyomei.stages.harvested import source_from

    family = _asked_of(folder, asked, resume)
    if resume and (folder / "manifest.json").exists():
        return family
    return replace(family, base=source_from(harvest, family.base, asked.source()))


def _parts(mesh: str | None) -> tuple[int, int]:
    """Parts of the rows and of the latents; without a wish, every process has a part of the rows."""
    try:
        data, features = (int(part) for part in (mesh or f"{processes()}x1").split("x"))
    except ValueError as error:
        raise RecipeError("--mesh as 2x4", f"'{mesh}'", "give parts of the rows and of the latents") from error
    return data, features


def _evidence(run: Run) -> Shown:
    from kyomei.stages.certify import verdict_of

    evidence = run.read_json("evidence.json")
    answer = verdict_of(run).to_dict()
    table, missing = tables.evidence_table(evidence, str(run.folder)), missing_evidence(evidence)
    return Shown({"verdict": answer, **evidence}, [table], verdict_words(answer), missing)
