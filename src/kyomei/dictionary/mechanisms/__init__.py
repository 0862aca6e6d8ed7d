"""What makes a code sparse: group bias adaptation and the usual baselines, under one interface.

A training step asks a mechanism for its objective on a batch, and after the optimiser's step lets it `observe` what was active
and, every `adapt_every` steps, `adapt`. Everything here lives in the trainer's normalised space, E‖x‖² = 1; biases are
−threshold.
"""

from __future__ import annotations

from kyomei.config import Recipe
from kyomei.dictionary.mechanisms.base import CLASSES, Finish, Mechanism, Objective, Reduce, aimed_l0
from kyomei.dictionary.mechanisms.bias_adaptation import BA, GBA, Adaptation, BiasAdaptation, geometric_targets
from kyomei.dictionary.mechanisms.penalised import L1, Gated, JumpReLU
from kyomei.dictionary.mechanisms.selection import BatchTopK, MatryoshkaBatchTopK, TopK

__all__ = [
    "BA",
    "CLASSES",
    "GBA",
    "L1",
    "Adaptation",
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
    "aimed_l0",
    "geometric_targets",
    "mechanism_from",
]


def mechanism_from(recipe: Recipe, width: int) -> Mechanism:
    """The mechanism that a recipe asks for, in the form that starts at random.

    Args:
        recipe: its mechanism, the L0 to aim at, and the activation of threshold latents.
        width: number of latents.

    Raises:
        RecipeError: if the recipe does not suit the width.
    """
    wish = recipe.dictionary
    return CLASSES[type(recipe.mechanism)].from_settings(recipe.mechanism, width, wish.l0, wish.activation)
