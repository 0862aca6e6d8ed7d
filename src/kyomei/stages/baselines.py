"""What the run's own dictionaries are compared with, on the same rows and at the same sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kyomei.config import Recipe
from kyomei.errors import RecipeError
from kyomei.evidence.fidelity import fidelity
from kyomei.learning.fit import fit
from kyomei.runs import Run
from kyomei.stages.harvest import activations
from kyomei.stages.train import Arm, main_arm, null_arm, train_arm
from kyomei.stages.watcher import Watcher

BASELINES = ("topk", "batchtopk", "l1", "ba")
PENALTY_STEPS = 300
"""Steps of each short training in the search for the ℓ1 penalty that gives the run's L0."""
PENALTY_TRIALS = 7


@dataclass(frozen=True)
class Pair:
    """An arm and its null, by the name under which evidence.json lists them."""

    name: str
    arm: Arm
    null: Arm


def own_pair(run: Run) -> Pair:
    """The run's own mechanism beside its null."""
    own, name = main_arm(run), run.recipe.mechanism.label
    return Pair(name, own, null_arm(own, name))


def baseline_pair(run: Run, name: str) -> Pair:
    """A usual mechanism of the run's width and steps, with as many active latents as the run's first dictionary has.

    Args:
        run: its own dictionaries are trained.
        name: topk, batchtopk, l1 (its penalty is searched for) or ba (one group, random start).

    Raises:
        RecipeError: no such baseline.
    """
    if name not in BASELINES:
        raise RecipeError(f"a baseline among {', '.join(BASELINES)}", f"'{name}'", "choose one of them")
    arm = Arm(f"baselines/{name}", run.recipe.with_values(_settings(run, name)), run.recipe.source.replicas)
    return Pair(name, arm, null_arm(arm, name))


def train_baseline(run: Run, name: str, watcher: Watcher) -> Pair:
    """The baseline and its null, trained where they are not yet."""
    pair = baseline_pair(run, name)
    for arm in (pair.arm, pair.null):
        train_arm(run, arm, watcher)
    return pair


def trained_pairs(run: Run) -> list[Pair]:
    """The run's own pair first, then the baselines that were trained beside it."""
    return [own_pair(run), *(baseline_pair(run, name) for name in BASELINES if _is_trained(run, name))]


def _is_trained(run: Run, name: str) -> bool:
    folders = (f"baselines/{name}/0", f"controls/gaussian/{name}/1")
    return all(run.done(f"train {folder}") for folder in folders)


def _settings(run: Run, name: str) -> dict[str, Any]:
    matched = _matched(run)
    settings: dict[str, Any] = {
        "mechanism.name": name,
        "mechanism.start": "random",
        "dictionary.width": matched["width"],
    }
    if name in ("topk", "batchtopk"):
        return settings | {"mechanism.k": matched["k"]}
    if name == "ba":
        frequency = min(0.5, matched["l0"] / matched["width"])
        return settings | {"mechanism.highest_frequency": frequency}
    return settings | {"mechanism.l1": _penalty(run, matched)}


def _matched(run: Run) -> dict[str, Any]:
    """Width and L0 of the run's first dictionary on unseen documents, measured once."""
    file = "baselines/matched.json"
    if not run.path(file).exists():
        shipped = main_arm(run).dictionary(run, 0)
        l0 = fidelity(shipped, activations(run, "evidence")).l0_mean
        run.path("baselines").mkdir(exist_ok=True)
        run.write_json(file, {"k": max(1, round(l0)), "l0": l0, "width": shipped.width})
    values: dict[str, Any] = run.read_json(file)
    return values


def _penalty(run: Run, matched: dict[str, Any]) -> float:
    """The ℓ1 penalty whose L0 on unseen documents comes nearest to the run's, by bisection of its logarithm."""
    file = "baselines/l1-penalty.json"
    if not run.path(file).exists():
        settings = {"mechanism.name": "l1", "mechanism.start": "random", "dictionary.width": matched["width"]}
        steps = min(PENALTY_STEPS, run.recipe.train.steps)
        recipe = run.recipe.with_values({**settings, "train.steps": steps})
        run.write_json(file, _bisect_penalty(run, recipe, matched["l0"]))
    return float(run.read_json(file)["penalty"])


def _bisect_penalty(run: Run, recipe: Recipe, l0: float) -> dict[str, Any]:
    rows, unseen = activations(run, "replica-0"), activations(run, "evidence")
    low, high = 1e-4, 1.0
    trials = []
    for _ in range(PENALTY_TRIALS):
        penalty = float((low * high) ** 0.5)
        trial = recipe.with_values({"mechanism.l1": penalty})
        found = fidelity(fit(rows, trial, seed=recipe.seed), unseen).l0_mean
        trials.append({"penalty": penalty, "l0": found})
        low, high = (penalty, high) if found > l0 else (low, penalty)
    best = min(trials, key=lambda trial: abs(trial["l0"] - l0))
    return {**best, "trials": trials}
