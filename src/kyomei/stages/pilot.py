"""A small budget, replicas, nulls and a baseline: go, conditional or no-go, and the recipe of the full run with what it takes.

A pilot is a run like any other, with these files beside:

    verdict.json      see `kyomei.stages.deciding`
    pilot.json        schema_version    1
                      budget            "minutes" (none: no limit) and "calibration_seconds"
                      tokens, steps, width   that the pilot came to; they stand in recipe.yaml as well
                      parts             of each, in the order of doing: "name", "planned" and "taken" (seconds; none: not yet),
                                        "state" ("done", "to do" or "left out")
                      calibration       how fast this machine is, as `Probe` has it
                      full              "recipe" (name of the file), "tokens", "steps", "width", "plan" as `Plan.to_dict`
                                        gives it, corrected by what the pilot's own parts took, and "foretold" and "held" as
                                        `kyomei.stages.foretelling` gives them
                      earlier           names of the folders in earlier/ that hold what smaller pilots of this run came to
    full-recipe.yaml  the recipe of the full run; `kyomei train NEW --recipe full-recipe.yaml` takes it unchanged

What began a pilot stands in its manifest, under "pilot", from its birth on, so that a crash loses nothing of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.config import Recipe
from kyomei.errors import RecipeError, RunError
from kyomei.evidence.reproduction import MIN_REPLICAS
from kyomei.runs import MANIFEST, Run, finish_birth, refuse_other_recipe
from kyomei.stages.arms import own_pair
from kyomei.stages.budget import BASELINE, CONTROL, GOALS, MEASURE, REQUIRED, Affordable, afforded, part_seconds, too_small
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.certify import certificates_of, certify_pair, certify_random_weights, standing
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.check import adopt_premises, check_run, checked
from kyomei.stages.deciding import FILE as VERDICT
from kyomei.stages.deciding import decide_run, own_goals, standing_verdict
from kyomei.stages.foretelling import foretold, held_to
from kyomei.stages.full import FILE as FULL_RECIPE
from kyomei.stages.full import ROLLOUT, full_plan, full_recipe, with_plan
from kyomei.stages.goals import nothing_certified, require_goals, tell_goals
from kyomei.stages.harvest import harvest_run, harvested_run
from kyomei.stages.harvested import STAGE as HARVEST
from kyomei.stages.harvested import harvest_of, naming
from kyomei.stages.measure import measure_run, measured
from kyomei.stages.plan import Probe, Rates
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_run
from kyomei.stages.train import train_baseline, train_run, trained
from kyomei.views.numbers import duration

FILE, EARLIER, STAGE = "pilot.json", "earlier", "pilot"
SCHEMA_VERSION = 1
USUAL_MINUTES = 10.0
"""Budget where neither minutes nor a size is given."""
USUAL_WIDTH = 2.0
"""Latents for each dimension, where no width is given."""
KEPT_OF_EARLIER = (VERDICT, FILE, FULL_RECIPE, CERTIFICATE, PREMISES, "recipe.yaml", "evidence.json", "goals.json")
"""Not the manifest: the folder would be a run of its own, most of whose files are gone."""


@dataclass(frozen=True)
class Request:
    """What is asked of a pilot.

    Attributes:
        recipe: what the full run is to be like; of tokens and steps the pilot takes a part.
        given: names of settings that are asked for in so many words.
        minutes: budget; none: no limit, and the recipe is taken as it is.
        full_tokens: of the full run; none: a hundred times the pilot's, as far as there is text.
        baselines: mechanisms to train beside it at the same sparsity.
        without: parts to leave out.
        hardware, gpus, price: of the full run's plan, as `Probe.of` takes them.
    """

    recipe: Recipe
    given: tuple[str, ...] = ()
    minutes: float | None = None
    full_tokens: int | None = None
    baselines: tuple[str, ...] = ("topk",)
    without: tuple[str, ...] = ()
    hardware: str = "here"
    gpus: int = 1
    price: float | None = None

    @property
    def plan_for(self) -> dict[str, Any]:
        """Of what the full run's plan is."""
        return {"hardware": self.hardware, "gpus": self.gpus, "price": self.price}

    @property
    def wanted(self) -> list[str]:
        """Parts beside those that are always done, those first that are given up last."""
        return [part for part in wanted_parts(self.recipe, self.baselines) if part not in self.without]


def usual_minutes(given: Sequence[str]) -> float | None:
    """The budget of a pilot of which nothing is said, as its size is where that is."""
    return None if {"source.num_tokens", "train.steps"} & set(given) else USUAL_MINUTES


def wanted_parts(recipe: Recipe, baselines: Sequence[str]) -> list[str]:
    """Parts that a pilot has beside those that are always done, those first that are given up last."""
    goals = [] if recipe.goals.labels is None else [GOALS]
    return [CONTROL, *goals, MEASURE, *(f"{BASELINE}{name}" for name in baselines)]


@dataclass(frozen=True)
class _Begun:
    """What a pilot's manifest says under "pilot": all that was decided before its first part was done."""

    asked: dict[str, Any]
    given: list[str]
    minutes: float | None
    calibration_seconds: float
    probe: dict[str, Any]
    parts: dict[str, float]
    left_out: dict[str, float]
    full_tokens: int | None
    plan_for: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> _Begun:
        """What began a pilot.

        Raises:
            RunError: the run is no pilot.
        """
        facts = run.manifest.get(STAGE)
        if facts is None:
            raise RunError("the folder of a pilot", f"another run in {run.folder}", "choose a new folder for the pilot")
        return cls(**facts)

    def planning(self, request: Request) -> _Begun:
        """The same with the full run planned as a later request has it, where it says anything of that."""
        same = (request.hardware, request.gpus, request.price) == ("here", 1, None)
        return replace(
            self,
            plan_for=self.plan_for if same else request.plan_for,
            full_tokens=request.full_tokens or self.full_tokens,
        )

    @property
    def here(self) -> Probe:
        rates = self.probe["rates"]
        # Pilots begun before searches had a rate of their own know one for both.
        return Probe(**{**self.probe, "rates": Rates(**{"latent_rows": rates["neuron_rows"], **rates})})

    @property
    def recipe(self) -> Recipe:
        return Recipe.parse(self.asked)

    @property
    def wanted(self) -> list[str]:
        """Parts beside those that are always done."""
        return [part for part in (*self.parts, *self.left_out) if part not in REQUIRED]


def asked_before(folder: Path) -> Recipe | None:
    """The recipe that the pilot in a folder was asked for, on which options build; none: there is no pilot."""
    if folder.is_dir():
        finish_birth(folder)
    return _Begun.of(Run.open(folder)).recipe if (folder / MANIFEST).exists() else None


def begin(
    folder: Path,
    request: Request,
    reporter: Reporter,
    *,
    harvest: Run | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Run:
    """A pilot's run with its rows: begun, gone on with, or, where it has ended and there are minutes, begun anew and larger.

    Args:
        folder: of the run.
        request: what is asked. Of a pilot that is there it may say more minutes, and how the full run is planned.
        reporter: shows progress.
        harvest: whose rows it learns from; none: its own.
        overwrite: delete what is there.
        command: for the manifest.

    Raises:
        RecipeError: not even the smallest pilot fits the minutes; the recipe has fewer than three replicas.
        RunError: the folder holds something else, or a pilot of another recipe.
    """
    if not overwrite and asked_before(folder) is not None:
        return _gone_on(Run.open(folder), request, reporter, command)
    if request.recipe.source.replicas < MIN_REPLICAS:
        found = f"source.replicas = {request.recipe.source.replicas}"
        raise RecipeError(f"at least {MIN_REPLICAS} replicas, which a certificate asks for", found, "raise source.replicas")
    if GOALS in request.wanted:
        require_goals(request.recipe)
    recipe, begun = _planned(request, reporter, harvested=harvest is not None)
    facts = {STAGE: asdict(begun)}
    if harvest is None:
        began = time.monotonic()
        run = harvested_run(folder, recipe, reporter, resume=not overwrite, overwrite=overwrite, command=command, facts=facts)
        with run.lock():
            _write(run, begun, {"harvest": round(time.monotonic() - began, 2)})
        return run
    named = naming(harvest, folder, recipe.source.sites)
    return Run.create(folder, recipe, resume=not overwrite, overwrite=overwrite, command=command, facts={**facts, **named})


def _planned(request: Request, reporter: Reporter, *, harvested: bool) -> tuple[Recipe, _Begun]:
    """The pilot's own recipe, and what its manifest says."""
    began = time.monotonic()
    asked = request.recipe
    with reporter.progress("calibrate"):
        probe = Probe.of(_with_width(asked, None))
        recipe = _with_width(asked, probe.dim)
        # What was measured is a step of a dictionary four times as wide as the rows, where no width is given.
        if asked.dictionary.width is None:
            probe = probe.widened(USUAL_WIDTH / 4)
    spent = time.monotonic() - began
    if request.minutes is None:
        seconds = part_seconds(probe.plan(recipe), recipe, request.wanted, harvested=harvested)
        bought = Affordable(recipe, seconds, {})
        if too_small(recipe, probe.dim):
            reporter.note("so small a pilot that its no-go would say little: give --minutes, or more tokens and steps")
    else:
        left = 60 * request.minutes - spent
        bought = afforded(recipe, probe, left, request.wanted, request.given, harvested=harvested)
    begun = _Begun(
        asked.model_dump(mode="json"),
        list(request.given),
        request.minutes,
        spent,
        asdict(probe),
        bought.parts,
        bought.left_out,
        request.full_tokens,
        request.plan_for,
    )
    source, train = bought.recipe.source, bought.recipe.train
    words = f"pilot: {source.num_tokens:,} tokens, {train.steps:,} steps, width {bought.recipe.dictionary.width:,}"
    reporter.note(f"{words}; planned {duration(sum(bought.parts.values()))}")
    for name, more in bought.left_out.items():
        reporter.note(f"not afforded: {name}, {duration(more)}")
    return bought.recipe, begun


def _with_width(recipe: Recipe, dim: int | None) -> Recipe:
    """A recipe whose width is known, so that time can be planned: that asked for, or the usual one."""
    if recipe.dictionary.width is not None or dim is None:
        return recipe
    return recipe.with_values({"dictionary.width": round(USUAL_WIDTH * dim)})


# ── More of it ──


def _gone_on(run: Run, request: Request, reporter: Reporter, command: str) -> Run:
    if run.path(_GROWING).exists():
        with run.lock():
            run = _grown(run)
    begun = _Begun.of(run)
    refuse_other_recipe(Run(run.folder, begun.recipe), request.recipe)
    begun = begun.planning(request)
    with run.lock():
        run.note(**{STAGE: asdict(begun)})
    if request.minutes is None or not finished(run):
        return run
    with run.lock():
        return _more(run, begun, request, reporter, command)


def _more(run: Run, begun: _Begun, request: Request, reporter: Reporter, command: str) -> Run:
    """What more minutes buy: first the parts that were left out, then a larger pilot."""
    left = 60 * float(request.minutes or 0)
    if begun.left_out:
        bought: dict[str, float] = {}
        for name, seconds in begun.left_out.items():
            if sum(bought.values()) + seconds <= left:
                bought[name] = seconds
        if not bought:
            name, seconds = min(begun.left_out.items(), key=lambda part: part[1])
            do = f"give {math.ceil(seconds / 60)} minutes for it"
            raise RecipeError(f"minutes for {name}, which was left out", f"{request.minutes:g}", do)
        still = {name: seconds for name, seconds in begun.left_out.items() if name not in bought}
        more = replace(begun, parts={**begun.parts, **bought}, left_out=still, minutes=_sum(begun.minutes, request.minutes))
        run.note(**{STAGE: asdict(more)})
        return run
    named = harvest_of(run) is not run
    wanted = Request(begun.recipe, tuple(begun.given), request.minutes, begun.full_tokens, without=(), **begun.plan_for)
    wanted = replace(wanted, baselines=tuple(name.removeprefix(BASELINE) for name in begun.wanted if name.startswith(BASELINE)))
    wanted = replace(wanted, without=tuple(part for part in wanted.wanted if part not in begun.wanted))
    recipe, new = _planned(wanted, reporter, harvested=named)
    size, before = _size(recipe), _size(run.recipe)
    if not all(a >= b for a, b in zip(size, before, strict=True)) or size == before:
        taken = sum(part["taken"] or 0 for part in run.read_json(FILE)["parts"])
        found = f"{request.minutes:g}, which buy {size[0]:,} tokens and {size[1]:,} steps"
        expected = f"minutes for more than the {before[0]:,} tokens and {before[1]:,} steps of this pilot"
        raise RecipeError(expected, found, f"give more than the {math.ceil(taken / 60)} that it took")
    _keep_earlier(run)
    facts = {STAGE: asdict(new), **(naming(harvest_of(run), run.folder, recipe.source.sites) if named else {})}
    run.write_json(_GROWING, {"recipe": recipe.model_dump(mode="json"), "facts": facts, "command": command})
    return _grown(run)


_GROWING = "growing.json"
"""What a larger pilot begins with, until the smaller one has made room."""


def _grown(run: Run) -> Run:
    """The larger pilot in the place of the smaller one; a crash on the way is gone on from."""
    new = run.read_json(_GROWING)
    kept = (EARLIER, ROLLOUT, Path(ROLLOUT).stem, _GROWING)
    run = run.anew(Recipe.parse(new["recipe"]), kept, command=new["command"], facts=new["facts"])
    run.record(EARLIER)
    run.path(_GROWING).unlink()
    return run


def _keep_earlier(run: Run) -> None:
    """Copy what a pilot came to, without rows and dictionaries, into earlier/."""
    name = run.read_json(VERDICT)["created"].replace(":", "")
    folder = run.path(f"{EARLIER}/{name}")
    if folder.exists():
        return
    temporary = folder.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    for file in KEPT_OF_EARLIER:
        if run.path(file).exists():
            shutil.copy2(run.path(file), temporary / file)
    os.replace(temporary, folder)


def _size(recipe: Recipe) -> tuple[int, int]:
    return recipe.source.num_tokens, recipe.train.steps


def _sum(before: float | None, more: float | None) -> float | None:
    return None if before is None or more is None else before + more


# ── The parts ──


def _check(run: Run, reporter: Reporter) -> None:
    if not adopt_premises(run):
        check_run(run, reporter)


def _train_and_certify_baseline(run: Run, name: str, reporter: Reporter) -> None:
    certify_pair(run, train_baseline(run, name, reporter), reporter)


def _work(name: str) -> Callable[[Run, Reporter], Any]:
    """What a part does."""
    if name.startswith(BASELINE):
        return lambda run, reporter: _train_and_certify_baseline(run, name.removeprefix(BASELINE), reporter)
    parts: dict[str, Callable[[Run, Reporter], Any]] = {
        "harvest": harvest_run,
        "check": _check,
        "train": train_run,
        "certify": lambda run, reporter: certify_pair(run, own_pair(run), reporter),
        CONTROL: certify_random_weights,
        GOALS: tell_goals,
        MEASURE: measure_run,
    }
    return parts[name]


def _is_done(run: Run, name: str) -> bool:
    """Whether a part is done, of the files that there are now."""
    if not run.done(HARVEST):
        return False
    if name in ("harvest", "check"):
        return name == "harvest" or checked(run)
    if not trained(run) or name == "train":
        return trained(run)
    if name == "certify":
        return standing(run, own_pair(run)) is not None and run.recorded(CERTIFICATE)
    if name == GOALS:
        return bool(own_goals(run)) or nothing_certified(run)
    return measured(run) if name == MEASURE else name in certificates_of(run)


def finished(run: Run) -> bool:
    """Whether every part of a pilot is done and its verdict holds."""
    return run.done(STAGE) and standing_verdict(run) is not None and all(_is_done(run, name) for name in _Begun.of(run).parts)


def pilot(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Do what is missing of a pilot's parts, then decide, report, and plan the full run.

    Args:
        run: from `begin`, which this process holds.
        reporter: shows progress.

    Returns:
        "verdict", what verdict.json holds; "pilot", what pilot.json holds; "report" and "full recipe", where they are.
    """
    begun, taken = _Begun.of(run), _taken(run)
    for name in list(begun.parts):
        if _is_done(run, name):
            continue
        late = None if name in REQUIRED or begun.minutes is None else _too_late(begun, taken, name)
        if late is not None:
            reporter.note(f"left out for want of time: {name}, {duration(late)}")
            begun = replace(
                begun,
                parts={key: s for key, s in begun.parts.items() if key != name},
                left_out={name: late, **begun.left_out},
            )
            run.note(**{STAGE: asdict(begun)})
            continue
        reporter.note(f"pilot: {name}")
        with _timed(taken, name):
            try:
                _work(name)(run, reporter)
            finally:
                _write(run, begun, taken)
    return _ended(run, begun, taken)


def _too_late(begun: _Begun, taken: Mapping[str, float], name: str) -> float | None:
    """Seconds that a part would take, going by those done so far, if there is no time left for it; none: there is."""
    assert begun.minutes is not None
    done = {key: begun.parts[key] for key in taken if begun.parts.get(key)}
    pace = max(1.0, sum(taken[key] for key in done) / sum(done.values())) if done else 1.0
    seconds = pace * begun.parts[name]
    left = 60 * begun.minutes - begun.calibration_seconds - sum(taken.values())
    return seconds if seconds > left else None


@contextlib.contextmanager
def _timed(taken: dict[str, float], name: str) -> Iterator[None]:
    before, began = taken.get(name, 0.0), time.monotonic()
    try:
        yield
    finally:
        taken[name] = round(before + time.monotonic() - began, 2)


def _taken(run: Run) -> dict[str, float]:
    """Seconds of each part so far, those before an interruption included."""
    if not run.path(FILE).exists():
        return {}
    return {part["name"]: part["taken"] for part in run.read_json(FILE)["parts"] if part["taken"] is not None}


def _write(run: Run, begun: _Begun, taken: Mapping[str, float], full: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write pilot.json."""
    parts = [
        {"name": name, "planned": seconds, "taken": taken.get(name), "state": "done" if _is_done(run, name) else "to do"}
        for name, seconds in begun.parts.items()
    ]
    parts += [
        {"name": name, "planned": seconds, "taken": None, "state": "left out"} for name, seconds in begun.left_out.items()
    ]
    recipe = run.recipe
    facts = {
        "schema_version": SCHEMA_VERSION,
        "budget": {"minutes": begun.minutes, "calibration_seconds": begun.calibration_seconds},
        "tokens": recipe.source.num_tokens,
        "steps": recipe.train.steps,
        "width": recipe.dictionary.width,
        "parts": parts,
        "calibration": begun.probe,
        "full": full,
        "earlier": sorted(path.name for path in run.path(EARLIER).glob("[!.]*")),
    }
    run.write_json(FILE, facts)
    run.record(FILE)
    return facts


def _ended(run: Run, begun: _Begun, taken: Mapping[str, float]) -> dict[str, Any]:
    verdict = decide_run(run)
    facts = _write(run, begun, taken, _full(run, begun, taken))
    path = report_run(run)
    run.record(FULL_RECIPE)
    run.finish(STAGE)
    return {"verdict": verdict, "pilot": facts, "report": str(path), "full recipe": str(run.path(FULL_RECIPE))}


def _full(run: Run, begun: _Begun, taken: Mapping[str, float]) -> dict[str, Any]:
    """Write the recipe of the full run; what pilot.json says of it."""
    here = begun.here
    recipe = full_recipe(run, begun.recipe, begun.full_tokens, here.dim)
    own = begun.plan_for["hardware"] == "here"
    probe = replace(here, price=begun.plan_for["price"]) if own else Probe.of(recipe, **begun.plan_for)
    plan = full_plan(probe, recipe, run.recipe, begun.parts, taken)
    write_atomic(run.path(FULL_RECIPE), with_plan(recipe, plan, run.folder.name).encode())
    size = {"tokens": recipe.source.num_tokens, "steps": recipe.train.steps, "width": recipe.dictionary.width}
    told = {"foretold": foretold(run, recipe.source.num_tokens), "held": held_to(run)}
    return {"recipe": FULL_RECIPE, **size, "plan": plan.to_dict(), **told}
