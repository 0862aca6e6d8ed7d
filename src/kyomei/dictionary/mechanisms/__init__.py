"""What makes a code sparse: group bias adaptation and the usual baselines, under one interface.

A training step asks a mechanism for its objective on a batch, and after the optimiser's step lets it `observe` what was active
and, every `adapt_every` steps, `adapt`. Everything here lives in the trainer's normalised space, E‖x‖² = 1; biases are
−threshold.
"""

from __future__ import annotations

from kyomei.config import MechanismRecipe
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, Objective, Reduce
from kyomei.dictionary.mechanisms.bias_adaptation import BA, GBA, BiasAdaptation, geometric_targets
from kyomei.dictionary.mechanisms.penalised import L1, Gated, JumpReLU
from kyomei.dictionary.mechanisms.selection import BatchTopK, MatryoshkaBatchTopK, TopK
from kyomei.dictionary.sae import Activation

__all__ = [
    "BA",
    "GBA",
    "L1",
    "BatchTopK",
    "BiasAdaptation",
    "Finish",
    "Gated",
    "JumpReLU",
    "MatryoshkaBatchTopK",
    "Mechanism",
    "Objective",
    "Reduce",
    "TopK",
    "geometric_targets",
    "mechanism_from",
]


def mechanism_from(recipe: MechanismRecipe, width: int, activation: Activation = "jumprelu") -> Mechanism:
    """The mechanism a recipe asks for, in the paper's form: groups from the highest to the lowest target frequency.

    Args:
        recipe: the recipe's section; "ba" takes its highest frequency for all neurons.
        width: number of latents.
        activation: of the threshold mechanisms gba and ba.

    Raises:
        RecipeError: if the recipe does not suit the width.
    """
    dead = recipe.model_dump(include={"auxk", "dead_after"})
    if recipe.name == "topk":
        return TopK(width, recipe.k, **dead)
    if recipe.name == "batchtopk":
        return BatchTopK(width, recipe.k, **dead)
    if recipe.name == "matryoshka":
        return MatryoshkaBatchTopK(width, recipe.k, prefixes=recipe.prefixes, **dead)
    if recipe.name == "l1":
        return L1(width, recipe.l1)
    if recipe.name == "gated":
        return Gated(width, recipe.l1)
    if recipe.name == "jumprelu":
        return JumpReLU(width, recipe.l0, recipe.bandwidth)
    options = recipe.model_dump(include={"gamma_down", "gamma_up", "epsilon", "adapt_every"})
    if recipe.name == "ba":
        return BA(width, recipe.highest_frequency, activation=activation, **options)
    targets, groups = geometric_targets(width, recipe.groups, recipe.highest_frequency, recipe.lowest_frequency)
    return GBA(targets, groups, activation=activation, **options)
