"""The paper's experiments, measured again: `kyomei reproduce NAME`."""

from __future__ import annotations

from kyomei.errors import RecipeError
from kyomei.stages.reproduce import (
    ablation,
    certificates,
    co_occurrence,
    imbalanced,
    language_models,
    paper_form,
    resonance_map,
    robustness,
    splitting,
    tuning,
    width,
)
from kyomei.stages.reproduce.experiment import Experiment, reproduce

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        imbalanced,
        resonance_map,
        co_occurrence,
        width,
        robustness,
        tuning,
        splitting,
        certificates,
        language_models,
        paper_form,
        ablation,
    )
}

__all__ = ["EXPERIMENTS", "Experiment", "experiment_named", "reproduce"]


def experiment_named(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in EXPERIMENTS:
        raise RecipeError(f"one of {', '.join(EXPERIMENTS)}", f"'{name}'", "choose an experiment")
    return EXPERIMENTS[name]
