"""The run that a pilot is a pilot of: its recipe, and what it will take, going by what the pilot took."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kyomei.config import Recipe
from kyomei.errors import KyomeiError
from kyomei.runs import Run
from kyomei.source.corpus import Corpus
from kyomei.source.records import Fields
from kyomei.stages.budget import CONTROL, two_digits
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.harvested import beside, tokens_of
from kyomei.stages.plan import Plan, Probe
from kyomei.views.numbers import duration

FILE = "full-recipe.yaml"
"""The recipe of the full run, in a pilot's folder."""
ROLLOUT = "rollout.jsonl"
"""What a roll-out writes down, in its pilot's folder; the stages' runs lie beside it in a folder of its name."""
FULL = 100
"""Tokens of the full run for each of the pilot's; steps grow by the root of it, so that rows are read less often."""
WIDEST = 8.0
"""Latents for each dimension that a full run has at most, unless it is asked for more."""
TEXT_SHARE = 0.6
"""Share of the text there is that a full run asks for: its parts are drawn by hash, and none may come out short."""
COUNTING_SECONDS = 20.0
"""How long text is counted for; what is longer than that is taken to suffice."""
TRAINING = ("resonance", "placing latents", "training", "streaming")
"""Parts of a plan that are one part of a pilot."""


def pilot_above(folder: Path) -> Path | None:
    """The folder of the pilot of whose roll-out a run is a stage; none: of none."""
    place = folder.resolve().parent
    return place.parent if place.name == Path(ROLLOUT).stem and (place.parent / FILE).is_file() else None


def full_recipe(run: Run, asked: Recipe, tokens: int | None, dim: int) -> Recipe:
    """The recipe of the full run; of a stage of a roll-out, that which the roll-out leads to.

    Args:
        run: the pilot, harvested and checked.
        asked: what it was asked for.
        tokens: asked for in so many words; none: `FULL` times the pilot's, as far as there is text.
        dim: of its rows.
    """
    pilot, above = run.recipe, pilot_above(run.folder)
    if above is not None and tokens is None:
        return Recipe.read(above / FILE)
    wanted = tokens or min(FULL * pilot.source.num_tokens, _tokens_there(run, FULL * pilot.source.num_tokens))
    wanted = max(wanted, pilot.source.num_tokens)
    ratio = wanted / pilot.source.num_tokens
    width = asked.dictionary.width or _width(run, dim)
    steps = max(two_digits(pilot.train.steps * math.sqrt(ratio)), pilot.train.steps)
    values = {"source.num_tokens": wanted, "train.steps": steps, "dictionary.width": width}
    source = pilot.source.model_copy(update={"num_tokens": wanted})
    return beside(asked.model_copy(update={"source": source}).with_values(values), "full")


def _width(run: Run, dim: int) -> int:
    """At least the pilot's, and as many latents as the check counts features, in steps of 64."""
    own = run.recipe.dictionary.width or 0
    premises = run.read_json(PREMISES)["premises"]
    estimate = next(premise["estimate"] for premise in premises if premise["name"] == "number of features")
    features = 64 * math.ceil((estimate or 0) / 64)
    return max(own, min(features, round(WIDEST * dim)))


def _tokens_there(run: Run, enough: int) -> int:
    """Tokens of the text that a full run may ask for, counted until there are enough or it takes too long."""
    tokens = tokens_of(run, "evidence")
    inside = tokens.document >= 0
    letters = float((tokens.end - tokens.start)[inside].double().mean())
    source, needed = run.recipe.source, enough * letters / TEXT_SHARE
    characters, deadline = 0, time.monotonic() + COUNTING_SECONDS
    try:
        for document in Corpus(source.text, Fields(source.text_field, source.group_field), seed=run.recipe.seed):
            characters += len(document.text)
            if characters >= needed or time.monotonic() > deadline:
                return enough
    except KyomeiError:  # such as chat messages, which only the model's own template makes text of
        return enough
    return int(TEXT_SHARE * characters / letters) // 1000 * 1000


def full_plan(probe: Probe, recipe: Recipe, pilot: Recipe, parts: Mapping[str, float], taken: Mapping[str, float]) -> Plan:
    """What the full run takes, with the control that its own verdict asks for.

    Args:
        probe: of the hardware that it is planned for; that of this machine measured the pilot's own width.
        recipe: of the full run.
        pilot: the pilot's.
        parts: seconds that were planned for the pilot's parts.
        taken: seconds that they took. Where it is planned for this machine, its own parts are longer or shorter by as much.
    """
    here = probe.hardware == "here"
    if here and recipe.dictionary.width and pilot.dictionary.width:
        probe = probe.widened(recipe.dictionary.width / pilot.dictionary.width)
    found = probe.plan(recipe)
    seconds = dict(found.seconds)
    if here:
        for name in seconds:
            part = "train" if name in TRAINING else name
            if taken.get(part) and parts.get(part):
                seconds[name] *= taken[part] / parts[part]
    again = sum(value for name, value in seconds.items() if name not in ("check", "measure"))
    seconds[CONTROL] = again
    price = None if probe.price is None else probe.price * probe.gpus * sum(seconds.values()) / 3600
    return replace(found, seconds=seconds, price=price)


def with_plan(recipe: Recipe, plan: Plan, name: str) -> str:
    """The recipe's YAML under a comment on what it takes."""
    where = "this machine" if plan.hardware == "here" else f"{plan.hardware}, reckoned and not measured"
    cost = "" if plan.price is None else f", {plan.price:,.2f} dollars"
    size = f"{plan.memory_bytes / 1e9:.1f} GB of memory, {plan.disk_bytes / 1e9:.1f} GB of disk"
    lines = [
        f"# The full run that {name} is a pilot of: kyomei train NEW --recipe THIS-FILE",
        f"# Planned on {where}: {duration(plan.total_seconds)}, {size}{cost}; the control with random weights is part of it.",
    ]
    return "\n".join(lines) + "\n" + recipe.to_yaml()
