"""Nulls trained beside an arm: in the run itself, or, where they need another model's activations, in a run inside it."""

from __future__ import annotations

from kyomei.evidence.controls import RANDOM_WEIGHTS, Control
from kyomei.runs import Run
from kyomei.stages.harvest import harvest_run
from kyomei.stages.train import Arm, control_arm, train_arm
from kyomei.stages.watcher import Watcher


def random_weights_run(run: Run) -> Run:
    """The run inside a run that repeats it with the model's weights drawn at random: same text, same site, same recipe."""
    recipe = RANDOM_WEIGHTS.recipe(run.recipe.with_values({"source.sites": run.manifest["sites"][:1]}))
    return Run.create(run.path(f"controls/{RANDOM_WEIGHTS.name}"), recipe, resume=True)


def train_control(run: Run, arm: Arm, name: str, control: Control, watcher: Watcher) -> tuple[Run, Arm]:
    """Train what is missing of a control.

    Args:
        run: the run that holds the arm.
        arm: what it is the control of.
        name: of the arm's mechanism.
        control: the null.
        watcher: shows progress.

    Returns:
        The run in which the control's replicas lie, and their arm.
    """
    null = control_arm(arm, name, control)
    if not control.own_activations:
        train_arm(run, null, watcher)
        return run, null
    nested = random_weights_run(run)
    with nested.lock():
        harvest_run(nested, watcher)
        train_arm(nested, null, watcher)
    return nested, null
