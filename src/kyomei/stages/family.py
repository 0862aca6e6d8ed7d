"""Several runs on one harvest: beginning them, and doing one thing with each of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from kyomei.config import Recipe
from kyomei.config.family import Family
from kyomei.errors import Interrupted, KyomeiError, RunError
from kyomei.runs import Run
from kyomei.stages.harvest import harvested_run
from kyomei.stages.harvested import harvest_of, naming, rename, sites_of
from kyomei.stages.progress import Reporter

VARIED = "family"
"""Where a manifest has the settings that differ between members; sites stand in the recipe."""
MEMBERS = "members"
"""Folder of the members, each a complete run, in that of their family."""

T = TypeVar("T")


def family_of(run: Run) -> Family:
    """What a run's folder is to hold: the one run, or members."""
    return Family(run.recipe, {key: tuple(values) for key, values in run.manifest.get(VARIED, {}).items()})


def begun(
    folder: Path,
    family: Family,
    reporter: Reporter,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    harvest: Run | None = None,
) -> Run:
    """A run, or the folder of a family, with its harvest: made where it is not there yet, in one pass for all members.

    Args:
        folder, resume, overwrite, command: as `Run.create` takes them.
        family: what is asked.
        reporter: shows progress; on a mesh, all its ranks harvest together.
        harvest: that in another folder which it learns from; none: the one that it already names, or its own.

    Raises:
        RunError: as `Run.create` does; the run that is there has other members or another harvest.
    """

    def found() -> Run | None:
        there = Run.find(folder, family.base, resume=resume, overwrite=overwrite)
        if there is not None:
            _refuse_other_members(there, family)
        return there

    there = reporter.mesh.first(found)
    facts = {VARIED: {key: list(values) for key, values in family.varied.items()}} if family.varied else {}
    if harvest is None:
        return harvested_run(folder, family.base, reporter, resume=resume, overwrite=overwrite, command=command, facts=facts)
    if there is not None:
        for run in (there, *(Run.open(path.parent) for path in sorted(folder.glob(f"{MEMBERS}/*/manifest.json")))):
            rename(run, harvest)
        return there
    if harvest.folder.resolve().is_relative_to(folder.resolve()):
        do = "choose another folder for what is trained from it"
        raise RunError(f"a run outside of {folder}", f"the harvest in {harvest.folder}", do)
    named = naming(harvest, folder, family.base.source.sites)
    return Run.create(folder, family.base, resume=resume, overwrite=overwrite, command=command, facts={**facts, **named})


def _refuse_other_members(run: Run, family: Family) -> None:
    old, new = family_of(run).varied, family.varied
    if old != new:
        found = "; ".join(f"{key}: was {old.get(key, ())}, now {new.get(key, ())}" for key in sorted(old.keys() | new.keys()))
        do = "resume with the old values, or train another family from this harvest with --from"
        raise RunError(f"the members that {run.folder} was started with", found, do)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of each member.

    Attributes:
        done: results by name.
        failed: errors by name.
    """

    done: dict[str, T] = field(default_factory=dict)
    failed: dict[str, KyomeiError] = field(default_factory=dict)


def each(run: Run, work: Callable[[Run], T], reporter: Reporter, *, begin: bool = False) -> Outcome[T]:
    """Do one thing with every member of a family, in turn; one that fails is named, and the others go on.

    Args:
        run: the family's folder, harvested.
        work: called with each member's run, which this process holds.
        reporter: shows progress.
        begin: begin members that are not there; without it they fail.

    Raises:
        Interrupted: a signal came; what was done is kept.
        RunError: there is no harvest, or no member where none is begun.
    """
    outcome = Outcome[T]()
    recipes = family_of(run).members()
    harvest_of(run)
    if not begin:
        members(run)
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        reporter.note(f"{name} ({number} of {len(recipes)})")
        try:
            member = _member(run, name, recipe) if begin else Run.open(run.path(f"{MEMBERS}/{name}"))
            with member.lock():
                outcome.done[name] = work(member)
        except Interrupted:
            raise
        except KyomeiError as error:
            reporter.note(f"{name} failed: {error}")
            outcome.failed[name] = error
    return outcome


def _member(run: Run, name: str, recipe: Recipe) -> Run:
    folder = run.path(f"{MEMBERS}/{name}")
    named = naming(harvest_of(run), folder, recipe.source.sites or tuple(sites_of(run)))
    return Run.create(folder, recipe, resume=True, command=run.manifest["command"], facts=named)


def members(run: Run) -> list[Run]:
    """The members of a family that are begun; of a run, itself.

    Raises:
        RunError: one of them is damaged.
    """
    if not family_of(run).axes:
        return [run]
    folders = [run.path(f"{MEMBERS}/{name}") for name in family_of(run).members()]
    found = [Run.open(folder) for folder in folders if folder.exists()]
    if not found:
        do = f"run `kyomei train {shlex.quote(str(run.folder))} --resume` first"
        raise RunError(f"trained members of the family {run.folder}", "none", do)
    return found


def refuse_family(run: Run) -> None:
    """Raise RunError if the folder is that of a family, where one run is wanted."""
    names = list(family_of(run).members())
    if len(names) > 1:
        do = f"name one of its members, such as {run.path(MEMBERS) / names[0]}"
        raise RunError("one run", f"a family of {len(names)} in {run.folder}", do)
