"""Robustness: noise, and other initialisation seeds on the same rows."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kyomei.config import ResonanceRecipe
from kyomei.evidence.consistency import Null, consistency
from kyomei.learning.fit import fit
from kyomei.learning.resonance import resonate
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import Rows, open_rows
from kyomei.source.surrogate import GaussianSurrogate
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import column, recipe_of, resonance, rows_of, search, training, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET = {"n": 128, "d": 64, "s": 4, "rows": 30_000}
SEARCH = {"neurons": 1024, "search_steps": 10, "batch": 8192}
TRAIN = {"width": 256, "steps": 2000, "lr": 3e-3, "train_batch": 512}
NOISE = (0.0, 0.1, 0.2, 0.3, 0.5)
RESONANCE, STARTED, PAPER, TOPK = "resonance", "GBA from resonance", "trained BA at p = f", "TopK, k = s"
MECHANISMS: dict[str, dict[str, Any]] = {
    STARTED: {"name": "gba", "start": "resonance"},
    PAPER: {"name": "ba", "start": "random", "frequency": SET["s"] / SET["n"]},
    TOPK: {"name": "topk", "k": SET["s"]},
}


def cell_of(part: str, method: str, noise: float, seed: int) -> Cell:
    """A cell of one part, "noise" or "start"."""
    cell = {"part": part, "method": method, **SET, "planted": {"coefficient": "uniform", "noise": noise}, "seed": seed}
    if method == RESONANCE:
        return {**cell, **SEARCH}
    searched = SEARCH if method == STARTED else {}
    return {**cell, "mechanism": MECHANISMS[method], **TRAIN, **searched}


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Noise by resonance and TopK, starts by every method; the long version trains all of them, four times as long."""
    methods = (RESONANCE, *MECHANISMS)
    noisy = methods if full else (RESONANCE, TOPK)
    found = [cell_of("noise", method, noise, seed) for method in noisy for noise in NOISE for seed in range(seeds or 3)]
    found += [cell_of("start", method, 0.0, seed) for method in methods for seed in range(seeds or 3)]
    return [{**cell, "steps": 4 * cell["steps"]} if full and "steps" in cell else cell for cell in found]


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery on noisy rows, or the agreement of two starts on the same rows."""
    if cell["part"] == "noise":
        return resonance(cell) if cell["method"] == RESONANCE else training(cell)
    _, x = rows_of(cell)
    rows = open_rows(x)
    white = Whitening.fit(rows)
    surrogate = GaussianSurrogate(white.backward @ white.backward, white.mean, num_rows=len(x), seed=cell["seed"])
    first, second = ((100 * cell["seed"] + start) for start in (1, 2))
    null = Null(learnt(cell, surrogate, first, True), learnt(cell, surrogate, second, True), "Gaussian surrogate")
    return consistency(learnt(cell, rows, first), learnt(cell, rows, second), null=null).to_dict()


def learnt(cell: Cell, rows: Rows, start: int, null: bool = False) -> Tensor:
    """Directions or decoder rows from one initialisation; on a null, resonance keeps unstable directions too."""
    if cell["method"] != RESONANCE:
        return fit(rows, recipe_of(cell), seed=start).decoder
    keep_all = {"min_stability": -1.0} if null else {}
    return resonate(rows, seed=start, recipe=ResonanceRecipe(**{**search(cell).model_dump(), **keep_all})).vectors


def summarise(records: list[Record]) -> Summary:
    """Recovery by noise, and shares of directions in common by method, both beside their nulls."""
    return Summary((_noise_table(records), _start_table(records)), lambda figure: _draw(figure, records))


def _noise_table(records: list[Record]) -> Table:
    noisy, rows = where(records, part="noise"), []
    for method in values_of(noisy, "method"):
        for planted in values_of(where(noisy, method=method), "planted"):
            own = where(noisy, method=method, planted=planted)
            shares = [column(own, name) for name in ("frr_0.8", "frr_0.9", "within_0.9", "null_frr_0.9")]
            rows.append((method, f"{planted['noise']:g}", str(len(own)), column(own, "vectors", 1, 0), *shares))
    title = "Noise (its mean norm over the signal's); percent, mean (smallest–largest) over seeds."
    header = ("method", "noise", "seeds", "vectors", "FRR 0.8", "FRR 0.9", "within 0.9", "null 0.9")
    return Table(title, header, tuple(rows))


def _start_table(records: list[Record]) -> Table:
    starts, rows = where(records, part="start"), []
    for method in values_of(starts, "method"):
        own, figures = where(starts, method=method), []
        for name in ("mcs_above_0.7", "mcs_above_0.9", "mean_mcs", "pw_mcc"):
            for side in ("value", "null"):
                figures.append(column([{name: record[name][side]} for record in own], name))
        counts = " / ".join(f"{fmean(record['rows']['value'][i] for record in own):.0f}" for i in (0, 1))
        rows.append((method, str(len(own)), counts, *figures))
    names = ("MCS > 0.7", "MCS > 0.9", "mean MCS", "PW-MCC")
    header = ("method", "data", "vectors", *(column for name in names for column in (name, "null")))
    title = "Two starts on the same rows (noise 0); percent, mean (smallest–largest) over data seeds; null: Gaussian surrogate."
    return Table(title, header, tuple(rows))


def _draw(figure: Figure, records: list[Record]) -> None:
    left, right = figure.subplots(1, 2)
    noisy, starts = where(records, part="noise"), where(records, part="start")
    for i, method in enumerate(values_of(noisy, "method")):
        own = where(noisy, method=method)
        levels = sorted({record["planted"]["noise"] for record in own})
        for name, style in (("frr_0.9", "-"), ("null_frr_0.9", ":")):
            mean = [100 * fmean(r[name] for r in own if r["planted"]["noise"] == level) for level in levels]
            left.plot(levels, mean, style, color=f"C{i}", label=method if style == "-" else None)
    left.set(xlabel="noise", ylabel="FRR 0.9 (%), null dotted", ylim=(-2, 102))
    left.legend(fontsize=8)
    methods = values_of(starts, "method")
    for side, colour in (("value", "C0"), ("null", "0.6")):
        mean = [100 * fmean(r["mcs_above_0.9"][side] for r in where(starts, method=method)) for method in methods]
        right.barh(np.arange(len(methods)) + (0.2 if side == "null" else -0.2), mean, 0.4, color=colour, label=side)
    right.set_yticks(range(len(methods)), methods, fontsize=8)
    right.set(xlabel="MCS > 0.9 between two starts (%)", xlim=(0, 102))
    right.legend(fontsize=8)


EXPERIMENT = Experiment(
    "robustness",
    "Robustness: noise and initialisation",
    "recovery holds under noise and from other initialisations; on language models GBA agrees between seeds more than TopK "
    "under every selection. Its figures on planted data are curves without numbers.",
    cells,
    measure,
    summarise,
)
