"""Are the premises met? On shards, on a file of activations, or on a run's first replica."""

from __future__ import annotations

from typing import Any

from kyomei.evidence.check.premises import Premises, check
from kyomei.learning.fit import choose_device
from kyomei.runs import Run
from kyomei.source.rows import Rows
from kyomei.stages.beforehand import NEVER_VARY
from kyomei.stages.harvest import harvest_run
from kyomei.stages.harvested import activations, digests_of_rows, harvest_of, sites_of
from kyomei.stages.named import NAMES, names_of
from kyomei.stages.progress import Reporter

STAGE = "check"
PART = "replica-0"
FILE = "premises.json"


Known = dict[tuple[Any, ...], Premises]
"""Premises by the rows and the seed that they are of."""


def check_run(
    run: Run, reporter: Reporter, *, seed: int | None = None, device: str | None = None, known: Known | None = None
) -> Premises:
    """Check the activations of a run's first replica, harvesting what is missing; premises.json is written where it can be.

    Args:
        run: where the activations are or go.
        reporter: shows progress.
        seed: none: the recipe's.
        device: none: the recipe's.
        known: what is known already, of runs on the same rows; what is measured here is added.
    """
    harvest_run(run, reporter)
    seed, known = run.recipe.seed if seed is None else seed, {} if known is None else known
    rows = (*sorted(_made_from(run).items()), seed)
    if rows not in known:
        known[rows] = check_rows(activations(run, PART), reporter, seed=seed, device=device or run.recipe.device)
    premises = known[rows]
    if not run.writable:
        return premises
    run.write_json(FILE, {**premises.to_dict(), NAMES: names_of(run)})
    run.record(FILE)
    run.finish(STAGE, _made_from(run))
    return premises


def checked(run: Run) -> bool:
    """Whether premises.json is there, of the activations that there are now."""
    return run.done(STAGE, _made_from(run))


def adopt_premises(run: Run) -> bool:
    """Take over the premises of the harvest that a run learns from, where they are known and of the same rows; whether so."""
    host = harvest_of(run)
    if host is run or len(sites_of(host)) > 1 or not checked(host):
        return False
    run.write_json(FILE, host.read_json(FILE))
    run.record(FILE)
    run.finish(STAGE, _made_from(run))
    return True


def _made_from(run: Run) -> dict[str, str]:
    return dict(digests_of_rows(run, [PART]))


def check_rows(rows: Rows, reporter: Reporter, *, seed: int, device: str) -> Premises:
    """Check rows, showing progress.

    Raises:
        DataError: too few rows.
    """
    with reporter.progress("check") as progress:
        found = check(rows, seed=seed, device=choose_device(device), progress=progress)
    if found.statistics["constant"]:
        reporter.note(NEVER_VARY.format(count=found.statistics["constant"], dim=rows.dim, where="these rows"))
    return found
