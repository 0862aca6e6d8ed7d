"""From minutes to tokens and steps: what of a pilot a machine can afford, reckoned from a short measurement of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.config import Recipe, TrainRecipe
from kyomei.errors import RecipeError
from kyomei.stages.plan import Plan, Probe

REQUIRED = ("harvest", "check", "train", "certify")
CONTROL, GOALS, MEASURE, BASELINE = "random weights", "goals", "measure", "baseline "
"""Parts of a pilot that a small budget does without, and what the name of one that trains a baseline begins with."""
BYTES_PER_TOKEN = 4
"""Of labelled text, about: how long a model takes to read it is reckoned from the file's size."""
SPARE = 0.9
"""Share of a budget that is planned: the rest is for what a plan does not see."""
LEAST_ROWS_PER_DIM = 120
"""Rows of a replica, for each dimension, below which no budget makes a pilot: a much smaller one says no-go of anything.

So it was with 60 rows a dimension and 300 steps of 512 rows, on a layer in which 500 steps of 1,024 rows find much
(docs/results.md).
"""
LEAST_ROWS, LEAST_STEPS = 6000, 500
LADDER = 1.1
"""Sizes between which a budget chooses differ by this factor."""
SEARCHES: tuple[dict[str, Any], ...] = (
    {"resonance.neurons": 1024, "resonance.rounds": 2, "resonance.steps": 10},
    {"resonance.neurons": 512, "resonance.rounds": 1, "resonance.steps": 8},
)
"""Searches for directions, where the recipe asks for none of its own: a pilot's usual one, and that of a small budget."""


@dataclass(frozen=True)
class Affordable:
    """What a budget buys.

    Attributes:
        recipe: of the pilot, with its tokens and steps.
        parts: seconds planned for every part that is done, in the order of doing.
        left_out: seconds planned for every part that the budget is too small for.
    """

    recipe: Recipe
    parts: dict[str, float]
    left_out: dict[str, float]


def part_seconds(plan: Plan, recipe: Recipe, wanted: Sequence[str], *, harvested: bool = False) -> dict[str, float]:
    """Seconds of each part of a pilot, in the order of doing.

    Args:
        plan: of its recipe.
        recipe: that recipe.
        wanted: parts beside those that are always done.
        harvested: whether its rows are there already.
    """
    own = plan.seconds
    train = sum(seconds for name, seconds in own.items() if name not in ("harvest", "check", "certify", "measure"))
    steps = own.get("training", 0.0)
    baselines = [name for name in wanted if name.startswith(BASELINE)]
    known = {
        "harvest": 0.0 if harvested else own["harvest"],
        "check": own["check"],
        "train": train,
        "certify": own["certify"],
        CONTROL: own["harvest"] + train + own["certify"],
        GOALS: own["harvest"] * labelled_tokens(recipe) / recipe.source.num_tokens,
        # Baselines start at random: their steps are those of the dictionary, and nothing is searched for.
        **dict.fromkeys(baselines, steps + own["certify"]),
        MEASURE: own["measure"] * (1 + len(baselines)),
    }
    return {name: known[name] for name in known if name in REQUIRED or name in wanted}


def labelled_tokens(recipe: Recipe) -> float:
    """About how many tokens the labelled text of a recipe's goals has; 0 where it names none."""
    labels = recipe.goals.labels
    return 0.0 if labels is None or not Path(labels).exists() else Path(labels).stat().st_size / BYTES_PER_TOKEN


def too_small(recipe: Recipe, dim: int) -> bool:
    """Whether a pilot whose size was asked for in so many words is smaller than any that a budget makes."""
    source, train = recipe.source, recipe.train
    rows = source.num_tokens * (1 - source.evidence_share) / source.replicas
    return rows < LEAST_ROWS_PER_DIM * dim or train.steps * train.batch_rows < LEAST_STEPS * TrainRecipe().batch_rows


def afforded(
    recipe: Recipe, probe: Probe, seconds: float, wanted: Sequence[str], given: Sequence[str], *, harvested: bool = False
) -> Affordable:
    """The largest pilot that fits, with as many of its parts as fit.

    Tokens and steps grow together, as the recipe has them; of those that are given in so many words neither moves. Parts that
    the smallest pilot leaves no time for are left out, from the last one on; the control with random weights goes last, as no
    pilot without it ends in go.

    Args:
        recipe: what is asked.
        probe: of this machine.
        seconds: to spend.
        wanted: parts beside those that are always done, in the order of their weight.
        given: settings that are asked for in so many words.
        harvested: whether rows are there already: then tokens do not move either.

    Raises:
        RecipeError: not even the smallest pilot fits.
    """
    search = {} if any(key.startswith("resonance.") for key in given) else SEARCHES[0]
    fixed = {"source.num_tokens", "train.steps"} & {*given, *(["source.num_tokens"] if harvested else [])}
    parts = list(wanted)
    while True:
        for economy in (search, {**search, **SEARCHES[1]} if search else search):
            base = recipe.with_values(dict(economy))
            found = _largest(base, probe, SPARE * seconds, parts, fixed, harvested)
            if found is not None:
                every = _seconds(found, probe, wanted, harvested)
                left = {name: every[name] for name in wanted if name not in parts}
                return Affordable(found, _seconds(found, probe, parts, harvested), left)
        if not parts:
            smallest = _scaled(base, probe, 0.0, fixed)
            need = sum(_seconds(smallest, probe, (), harvested).values()) / SPARE / 60
            expected = f"at least {math.ceil(need)} minutes for the smallest pilot on this machine"
            raise RecipeError(expected, f"{seconds / 60:.1f}", "give more minutes, a smaller --width, or fewer source.replicas")
        parts.remove(next((name for name in reversed(parts) if name != CONTROL), CONTROL))


def _largest(
    recipe: Recipe, probe: Probe, seconds: float, parts: Sequence[str], fixed: set[str], harvested: bool
) -> Recipe | None:
    """The largest size whose parts fit; none if not even the smallest does."""

    def fits(rung: int) -> bool:
        sized = _scaled(recipe, probe, LADDER**rung, fixed)
        return sum(_seconds(sized, probe, parts, harvested).values()) <= seconds

    smallest = _scaled(recipe, probe, 0.0, fixed)
    if sum(_seconds(smallest, probe, parts, harvested).values()) > seconds:
        return None
    if len(fixed) == 2:
        return smallest
    rungs = range(-60, 80)
    best = [rung for rung in rungs if fits(rung)]
    return _scaled(recipe, probe, LADDER ** max(best), fixed) if best else smallest


def _scaled(recipe: Recipe, probe: Probe, factor: float, fixed: set[str]) -> Recipe:
    """The recipe with so many times its tokens and steps, and no fewer than a pilot needs."""
    source = recipe.source
    rows = max(LEAST_ROWS, LEAST_ROWS_PER_DIM * probe.dim)
    least = rows * source.replicas / (1 - source.evidence_share)
    values = {
        "source.num_tokens": max(two_digits(source.num_tokens * factor), math.ceil(least / 1000) * 1000),
        "train.steps": max(two_digits(recipe.train.steps * factor), min(LEAST_STEPS, recipe.train.steps)),
    }
    return recipe.with_values({key: value for key, value in values.items() if key not in fixed})


def two_digits(value: float) -> int:
    """A number with the digits after its first two left out."""
    size = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(value // size * size)


def _seconds(recipe: Recipe, probe: Probe, parts: Sequence[str], harvested: bool) -> dict[str, float]:
    return part_seconds(probe.plan(recipe), recipe, parts, harvested=harvested)
