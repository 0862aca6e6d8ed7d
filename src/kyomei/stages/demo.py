"""The whole path on the embedded model and the interpreter's own standard library."""

from __future__ import annotations

from typing import Any

from kyomei.config import Recipe
from kyomei.evidence.fidelity import fidelity
from kyomei.runs import Run
from kyomei.stages.harvest import activations, harvest_run
from kyomei.stages.measure import STAGE as MEASURED
from kyomei.stages.measure import Pair, measure_run, own_pair
from kyomei.stages.report import report_run
from kyomei.stages.train import Arm, main_arm, null_arm, train_arm
from kyomei.stages.watcher import Watcher

DEMO = {
    "dictionary": {"width": 768},
    "resonance": {"neurons": 1536, "steps": 12},
    "train": {"steps": 500, "checkpoint_every": 100},
}


def demo_recipe(seed: int) -> Recipe:
    """The default recipe with a width and a number of steps that two cores finish in minutes."""
    return Recipe.parse({**DEMO, "seed": seed})


def train_run(run: Run, watcher: Watcher) -> dict[str, Any]:
    """Harvest what is missing, then train the run's dictionaries and their null."""
    harvested = harvest_run(run, watcher)
    own = main_arm(run)
    arms = [train_arm(run, arm, watcher) for arm in (own, null_arm(own, own.recipe.mechanism.name))]
    return {"harvest": harvested, "arms": arms}


def measure_own(run: Run, watcher: Watcher) -> dict[str, Any]:
    """Measure the run's dictionaries, and the baselines that were trained beside them."""
    own = main_arm(run)
    pairs = [own_pair(run, null_arm(own, own.recipe.mechanism.name))]
    if run.path("baselines/topk").exists():
        pairs.append(_topk_pair(run))
    return measure_run(run, pairs, watcher)


def demo(run: Run, watcher: Watcher, command: str) -> dict[str, Any]:
    """Train, compare with TopK at the same L0, measure, and write the report; what is there already is kept.

    Returns:
        Facts for the summary.
    """
    train_run(run, watcher)
    pair = _topk_pair(run)
    for arm in (pair.arm, pair.null):
        train_arm(run, arm, watcher)
    if not run.done(MEASURED):
        measure_own(run, watcher)
    return {"report": str(report_run(run, command))}


def _topk_pair(run: Run) -> Pair:
    """TopK of the same width and steps, with as many active latents as the run's first dictionary has on unseen documents."""
    if not run.path("baselines/matched.json").exists():
        shipped = main_arm(run).dictionary(run, 0)
        l0 = fidelity(shipped, activations(run, "evidence")).l0_mean
        run.path("baselines").mkdir(exist_ok=True)
        run.write_json("baselines/matched.json", {"k": max(1, round(l0)), "l0": l0, "width": shipped.width})
    matched = run.read_json("baselines/matched.json")
    recipe = run.recipe.with_values(
        {"mechanism.name": "topk", "mechanism.k": matched["k"], "dictionary.width": matched["width"]}
    )
    arm = Arm("baselines/topk", recipe, run.recipe.source.replicas)
    return Pair("topk", arm, null_arm(arm, "topk"))
