"""Nulls: the same pipeline with one thing taken away, so that what it still reaches needs no learnt features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from kyomei.config import Recipe
from kyomei.errors import EvidenceError
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import Rows
from kyomei.source.surrogate import GaussianSurrogate


@final
@dataclass(frozen=True)
class Control:
    """One null as an object: what it changes in a recipe, and in the rows.

    Attributes:
        name: by which it is asked for, and the name of its folder in a run.
        title: as figures show it.
        survives: what structure is left, so that a reader knows what the null cannot exclude.
        settings: recipe keys that it sets.
        gaussian: whether rows become Gaussian ones of the same mean and covariance.
    """

    name: str
    title: str
    survives: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    gaussian: bool = False

    @property
    def own_activations(self) -> bool:
        """Whether activations have to be harvested anew, from another model."""
        return any(key.startswith("source.") for key in self.settings)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with this control's settings."""
        return recipe.with_values(dict(self.settings))

    def rows(self, rows: Rows, seed: int) -> Rows:
        """The rows that this control learns from in place of `rows`."""
        if not self.gaussian:
            return rows
        white = Whitening.fit(rows)
        covariance = white.backward @ white.backward
        return GaussianSurrogate(covariance, white.mean, num_rows=rows.num_rows, seed=seed)


GAUSSIAN = Control(
    "gaussian",
    "Gaussian surrogate",
    "mean and covariance",
    # A filter that empties the null would make its consistency look better than it is, so it keeps every direction.
    {"resonance.min_stability": -1, "resonance.joint": False},
    gaussian=True,
)
RANDOM_WEIGHTS = Control(
    "random-weights",
    "the same model with random weights",
    "the text: token and position identity",
    {"source.random_weights_seed": 1},
)
CONTROLS = {
    control.name: control
    for control in (
        GAUSSIAN,
        RANDOM_WEIGHTS,
        Control("frozen-decoder", "frozen random decoder", "everything but learnt decoder rows", {"train.freeze": "decoder"}),
        Control(
            "soft-frozen-decoder",
            "soft-frozen random decoder",
            "everything but decoder rows farther than cosine 0.8 from a random start",
            {"train.freeze": "soft_decoder"},
        ),
        Control("frozen-encoder", "frozen random encoder", "everything but learnt encoder rows", {"train.freeze": "encoder"}),
    )
}
"""Every null by its name. Frozen ones after arXiv:2602.14111; random weights after findings on token identity."""


def control_named(name: str) -> Control:
    """The control of a name.

    Raises:
        EvidenceError: there is none; the message lists all.
    """
    if name not in CONTROLS:
        raise EvidenceError(f"a null among {', '.join(CONTROLS)}", f"'{name}'", "choose one of them")
    return CONTROLS[name]
