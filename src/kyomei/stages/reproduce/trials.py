"""What the experiments share: planted rows, ways to look for their features, and every recovery beside its null."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import Recipe, ResonanceRecipe
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.recovery import recovery
from kyomei.learning.fit import fit
from kyomei.learning.resonance import frequency_threshold, resonate
from kyomei.learning.spaces import Whitening
from kyomei.source.planted import Planted
from kyomei.source.rows import open_rows
from kyomei.stages.reproduce.experiment import Cell, Record

TEST_ROWS = 8192
"""Rows drawn anew on which a trained dictionary is measured."""


def planted_of(cell: Cell) -> Planted:
    """The law of a cell: `n`, `d`, `s`, `seed` and what else `planted` names."""
    active = tuple(cell["s"]) if isinstance(cell["s"], list) else cell["s"]
    return Planted(n_features=cell["n"], dim=cell["d"], active=active, seed=cell["seed"], **cell.get("planted", {}))


def rows_of(cell: Cell) -> tuple[Planted, Float[Tensor, "rows d"]]:
    """A cell's law and its `rows` rows."""
    planted = planted_of(cell)
    return planted, planted.sample(cell["rows"], seed=cell["seed"] + 1)[0]


def beside_null(vectors: Float[Tensor, "k d"], planted: Planted, seed: int) -> dict[str, float]:
    """Recovery by vectors, and by as many random directions."""
    found = recovery(vectors, planted.features)
    chance = torch.randn(len(vectors), planted.dim, generator=torch.Generator().manual_seed(seed))
    null = recovery(chance, planted.features)
    return {
        "vectors": len(vectors),
        "frr_0.8": found.frr(0.8),
        "frr_0.9": found.frr(0.9),
        "within_0.9": found.monosemantic(0.9),
        "null_frr_0.8": null.frr(0.8),
        "null_frr_0.9": null.frr(0.9),
    }


def search(cell: Cell, frequencies: Sequence[float] = ()) -> ResonanceRecipe:
    """A recipe with the cell's number of starts, steps and rows in a batch; one round, as starts are what is varied."""
    return ResonanceRecipe(
        frequencies=tuple(frequencies),
        neurons=cell["neurons"],
        rounds=1,
        steps=cell["search_steps"],
        batch_rows=cell["batch"],
    )


def resonance(cell: Cell, frequencies: Sequence[float] = ()) -> dict[str, float]:
    """Recovery by resonance with the cell's search."""
    planted, x = rows_of(cell)
    began = time.perf_counter()
    directions = resonate(x, seed=cell["seed"], recipe=search(cell, frequencies))
    seconds = time.perf_counter() - began
    figures = beside_null(directions.vectors, planted, cell["seed"])
    return {**figures, "n_features": directions.n_features, "seconds": seconds}


def recipe_of(cell: Cell) -> Recipe:
    """A recipe from a cell's `mechanism`, `width`, `steps`, `lr`, more of `dictionary`, and its search, if it has one."""
    values: dict[str, Any] = {
        "dictionary": {"width": cell["width"], **cell.get("dictionary", {})},
        "mechanism": cell["mechanism"],
        "train": {"steps": cell["steps"], "lr": cell["lr"], "batch_rows": cell["train_batch"]},
    }
    if "neurons" in cell:
        values["resonance"] = search(cell).model_dump()
    return Recipe.parse(values)


def train_figures(cell: Cell) -> tuple[SparseAutoencoder, Planted, dict[str, float]]:
    """A dictionary trained as a cell asks, its recovery beside its null, and its FVU and L0 on rows drawn anew."""
    planted, x = rows_of(cell)
    began = time.perf_counter()
    sae = fit(x, recipe_of(cell), seed=cell["seed"])
    seconds = time.perf_counter() - began
    kept = fidelity(sae, planted.sample(TEST_ROWS, seed=cell["seed"] + 2)[0])
    figures = beside_null(sae.decoder, planted, cell["seed"])
    kept_figures = {"fvu": kept.fvu, "l0": kept.l0_mean, "dead": kept.dead_share, "seconds": seconds}
    return sae, planted, {**figures, **kept_figures}


def training(cell: Cell) -> dict[str, float]:
    """The figures of a dictionary trained as a cell asks."""
    return train_figures(cell)[2]


def unit_rows_of(x: Float[Tensor, "rows d"], whitened: bool) -> Float[Tensor, "rows d"]:
    """Centred rows of norm 1, whitened or as they are."""
    return normalize(Whitening.fit(open_rows(x)).whiten(x) if whitened else x - x.mean(dim=0), dim=1)


def decoupled(
    z: Float[Tensor, "rows d"], p: float, neurons: int, steps: int, batch_rows: int, seed: int
) -> Float[Tensor, "neurons d"]:
    """Neurons that each follow E[φ(w·z − θ) z] on the sphere at a fixed frequency p: the theory's simplified algorithm.

    Nothing merges, pushes or refines them, so the first M of them are what M neurons would have been.

    Source: arXiv:2506.14002, §6 (output scale a → 0).
    """
    generator = torch.Generator().manual_seed(seed)
    w = normalize(torch.randn(neurons, z.shape[1], generator=generator), dim=1)
    for _ in range(steps):
        batch = z[torch.randint(len(z), (min(batch_rows, len(z)),), generator=generator)]
        for part in torch.split(w, 512):
            scores = batch @ part.T
            excess = torch.relu_(scores - frequency_threshold(scores, p))
            fired = excess.sum(dim=0) > 0
            part[fired] = normalize(excess.T @ batch, dim=1)[fired]
    return w


def where(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records that have these values."""
    return [record for record in records if all(record.get(name) == value for name, value in values.items())]


def values_of(records: Iterable[Record], name: str) -> list[Any]:
    """The different values of a setting, in order of appearance."""
    found: list[Any] = []
    for record in records:
        if record[name] not in found:
            found.append(record[name])
    return found


def spread(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean (smallest–largest), in percent unless scaled otherwise; a dash without values."""
    if not values:
        return "–"
    low, high = min(values) * scale, max(values) * scale
    if len(values) == 1:
        return f"{low:.{digits}f}"
    return f"{fmean(values) * scale:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def column(records: Iterable[Record], name: str, scale: float = 100, digits: int = 1) -> str:
    """The spread of one figure over records that have it."""
    return spread([record[name] for record in records if record.get(name) is not None], scale, digits)


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """Where a piecewise linear curve first meets a level; None where it never does."""
    if y and y[0] == level:
        return x[0]
    for i in range(1, len(x)):
        if (y[i - 1] - level) * (y[i] - level) <= 0 and y[i] != y[i - 1]:
            return x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1])
    return None
