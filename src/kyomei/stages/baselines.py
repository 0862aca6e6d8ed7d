"""What the run's own dictionaries are compared with, on the same rows and at the same sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from kyomei.evidence.fidelity import fidelity
from kyomei.runs import Run
from kyomei.stages.harvest import activations
from kyomei.stages.train import Arm, main_arm, null_arm


@dataclass(frozen=True)
class Pair:
    """An arm and its null, by the name under which evidence.json lists them."""

    name: str
    arm: Arm
    null: Arm


def own_pair(run: Run) -> Pair:
    """The run's own mechanism beside its null."""
    own, name = main_arm(run), run.recipe.mechanism.name
    return Pair(name, own, null_arm(own, name))


def topk_pair(run: Run) -> Pair:
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


def trained_pairs(run: Run) -> list[Pair]:
    """The run's own pair first, then the baselines that were trained beside it."""
    return [own_pair(run), *([topk_pair(run)] if run.path("baselines/topk").exists() else [])]
