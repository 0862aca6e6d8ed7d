"""The whole path on the embedded model and the interpreter's own standard library."""

from __future__ import annotations

from pathlib import Path

from kyomei.config import Recipe
from kyomei.runs import Run
from kyomei.stages.certify import certify_run
from kyomei.stages.check import check_run, checked
from kyomei.stages.measure import measure_run, measured
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_run
from kyomei.stages.train import train_run

BASELINE = "topk"
DEMO = {
    "dictionary": {"width": 768},
    "resonance": {"neurons": 1024, "rounds": 2, "steps": 10},
    "train": {"steps": 1000, "checkpoint_every": 100},
}


def demo_recipe(seed: int) -> Recipe:
    """The default recipe with a width and a number of steps that two cores finish in minutes."""
    return Recipe.parse({**DEMO, "seed": seed})


def demo(run: Run, reporter: Reporter) -> Path:
    """Check, train, train TopK at the same L0 beside it, certify both, measure; what still holds is kept.

    Args:
        run: harvested, with `demo_recipe`.
        reporter: shows progress.

    Returns:
        Path of the report.
    """
    if not checked(run):
        check_run(run, reporter)
    train_run(run, reporter)
    certify_run(run, reporter, baselines=(BASELINE,))
    if not measured(run):
        measure_run(run, reporter)
    return report_run(run)
