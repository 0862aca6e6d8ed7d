"""The whole path on the embedded model and the interpreter's own standard library."""

from __future__ import annotations

from typing import Any

from kyomei.config import Recipe
from kyomei.runs import Run
from kyomei.stages.measure import STAGE as MEASURED
from kyomei.stages.measure import measure_run
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_run
from kyomei.stages.train import train_baseline, train_run

DEMO = {
    "dictionary": {"width": 768},
    "resonance": {"neurons": 1536, "steps": 12},
    "train": {"steps": 1000, "checkpoint_every": 100},
}


def demo_recipe(seed: int) -> Recipe:
    """The default recipe with a width and a number of steps that two cores finish in minutes."""
    return Recipe.parse({**DEMO, "seed": seed})


def demo(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train, compare with TopK at the same L0, measure, and write the report; what is there already is kept.

    Returns:
        Facts for the summary.
    """
    train_run(run, reporter)
    train_baseline(run, "topk", reporter)
    if not run.done(MEASURED):
        measure_run(run, reporter)
    return {"report": str(report_run(run))}
