"""Planted features, and how many of them each step of the default path finds."""

from __future__ import annotations

from typing import Any

import torch

from kyomei.config import Recipe
from kyomei.evidence.recovery import recovery
from kyomei.learning.fit import choose_device, fit, starts_from_resonance
from kyomei.learning.resonance import resonate
from kyomei.learning.workplace import Workplace
from kyomei.source.planted import Planted
from kyomei.source.rows import as_seen, open_rows
from kyomei.stages.progress import Reporter


def recover_planted(
    num_features: int,
    dim: int,
    active: int | tuple[int, ...],
    num_rows: int,
    options: dict[str, Any],
    recipe: Recipe,
    reporter: Reporter,
) -> dict[str, Any]:
    """Recovery by resonance and by the trained dictionary, beside as many random directions.

    Args:
        num_features: true features n.
        dim: dimensions d.
        active: active features in a row.
        num_rows: rows to draw.
        options: further arguments of `Planted`.
        recipe: what is trained.
        reporter: shows progress.

    Returns:
        Recovery figures by name, and the estimated number of features.
    """
    planted = Planted(n_features=num_features, dim=dim, active=active, seed=recipe.seed, **options)
    x, _ = planted.sample(num_rows, seed=recipe.seed + 1)
    found: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {"n_features": None, "interval": None}
    directions = None
    if starts_from_resonance(recipe):
        with reporter.progress("resonance") as progress:
            device = choose_device(recipe.device)
            seen = as_seen(open_rows(x), recipe.dictionary.unit_rows)
            directions = resonate(seen, seed=recipe.seed, recipe=recipe.search, device=device, progress=progress)
        found["resonance"] = directions.vectors
        facts = {"n_features": directions.n_features, "interval": list(directions.interval)}
    with reporter.progress("train") as progress:
        sae = fit(x, recipe, directions=directions, workplace=Workplace(progress=progress))
    found[f"{recipe.mechanism.name} decoder"] = sae.decoder.cpu()
    generator = torch.Generator().manual_seed(recipe.seed)
    found["random directions (null)"] = torch.randn(sae.width, dim, generator=generator)
    return {**facts, "recovery": {name: recovery(v, planted.features).to_dict() for name, v in found.items()}}
