"""Recovery against the number of neurons, the number of features and the sparsity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kyomei.evidence.intervals import as_percent
from kyomei.evidence.recovery import recovery
from kyomei.evidence.theory import width_bound
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import crossing, decoupled, rows_of, spread, unit_rows_of, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPARSITIES = (2, 3, 4, 5, 6)
SIZES = (64, 128, 256, 512)
BASE_N, BASE_S = 128, 3
SEARCH = {"p": 0.05, "neurons": 8192, "search_steps": 12, "batch": 4096}
"""p lies within the theory's band, f ≤ p ≤ √f, for every n and s here."""
FOUND = 0.9
"""A number of neurons suffices when it recovers this share of the features at cosine 0.9."""
WHITENED, RAW = "whitened rows", "rows as they are"


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """n at s = 3, and s at n = 128, on whitened rows and on rows as they are; the long version has twice the features."""
    sizes = (*SIZES, 1024) if full else SIZES
    settings = [(n, BASE_S) for n in sizes] + [(BASE_N, s) for s in SPARSITIES if s != BASE_S]
    search = {**SEARCH, "neurons": 32_768} if full else SEARCH
    return [
        {"rows_are": rows_are, "n": n, "d": 64, "s": s, "rows": 30_000, **search, "seed": seed}
        for seed in range(seeds or 3)
        for rows_are in (WHITENED, RAW)
        for n, s in settings
    ]


def widths_of(cell: Cell) -> list[int]:
    """Powers of two up to the cell's number of neurons."""
    return [2**k for k in range(4, int(math.log2(cell["neurons"])) + 1)]


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery by the first M of the neurons, for every M: they do not know of each other."""
    planted, x = rows_of(cell)
    z = unit_rows_of(x, whitened=cell["rows_are"] == WHITENED)
    w = decoupled(z, cell["p"], cell["neurons"], cell["search_steps"], cell["batch"], cell["seed"])
    if cell["rows_are"] == WHITENED:
        # Back to input space: what a feature adds to a row.
        centred = x - x.mean(dim=0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
        w = w @ (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    null = torch.randn(len(w), cell["d"], generator=torch.Generator().manual_seed(cell["seed"]))
    widths = widths_of(cell)
    return {
        "widths": widths,
        "frr_0.9": [recovery(w[:m], planted.features).frr(0.9) for m in widths],
        "null_frr_0.9": [recovery(null[:m], planted.features).frr(0.9) for m in widths],
        "within_0.9": recovery(w, planted.features).monosemantic(0.9),
    }


def enough(record: Record) -> float | None:
    """The smallest number of neurons that suffices, between the powers of two tried; None if none does."""
    powers = crossing([math.log2(m) for m in record["widths"]], record["frr_0.9"], FOUND)
    return None if powers is None else 2.0**powers


def summarise(records: list[Record]) -> Summary:
    """How many neurons suffice, by n and by s, and how fast that grows, beside the theorem."""
    rows, slopes, facts = [], [], {}
    for rows_are in values_of(records, "rows_are"):
        own = where(records, rows_are=rows_are)
        for n, s in dict.fromkeys((record["n"], record["s"]) for record in own):
            part = where(own, n=n, s=s)
            last = [[100 * record[name][-1] for record in part] for name in ("frr_0.9", "null_frr_0.9")]
            within = spread([record["within_0.9"] for record in part])
            bound = f"10^{width_bound(n, part[0]['p'], s):.1f}"
            needed = spread([m for m in map(enough, part) if m is not None], 1, 0)
            rows.append((rows_are, str(n), str(s), needed, bound, *(spread(values, 1) for values in last), within))
        facts[rows_are] = fitted = slopes_of(own)
        p = own[0]["p"]
        slopes.append((rows_are, "log10 M by log10 n", "1 (linear)", _slope(fitted["by_log_n"])))
        slopes.append((rows_are, "log10 M by s", f"{-math.log10(p):.2g} (exponential)", _slope(fitted["by_s"])))
        slopes.append((rows_are, "log10 M by log10 s", "–", _slope(fitted["by_log_s"])))
    most = records[0]["widths"][-1]
    header = (
        "rows",
        "n",
        "s",
        f"smallest M for FRR 0.9 of {as_percent(FOUND)}",
        "paper's bound n·p^(−s)",
        f"FRR 0.9 at M = {most}",
    )
    title = f"Neurons needed at p = {records[0]['p']:g}, d = {records[0]['d']}; mean (smallest–largest) over seeds."
    needed_table = Table(title, (*header, "null", "neurons within 0.9"), tuple(rows))
    fits = Table("Least-squares slopes over all seeds.", ("rows", "slope of", "paper", "ours"), tuple(slopes))
    return Summary((fits, needed_table), lambda figure: _draw(figure, records), facts)


def slopes_of(records: list[Record]) -> dict[str, dict[str, float] | None]:
    """Slopes of log10 M over log10 n at s = 3, and over s and log10 s at n = 128, where M suffices."""
    solved = [(record["n"], record["s"], math.log10(m)) for record in records if (m := enough(record)) is not None]
    by_n = [(math.log10(n), m) for n, s, m in solved if s == BASE_S]
    by_s = [(float(s), m) for n, s, m in solved if n == BASE_N]
    return {"by_log_n": _fit(by_n), "by_s": _fit(by_s), "by_log_s": _fit([(math.log10(s), m) for s, m in by_s])}


def _fit(points: list[tuple[float, float]]) -> dict[str, float] | None:
    if len({x for x, _ in points}) < 3:
        return None
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    error = math.sqrt((left @ left) / (len(x) - 2) / ((x - x.mean()) @ (x - x.mean())))
    return {"slope": float(slope), "standard_error": error, "r2": float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())))}


def _slope(fit: dict[str, float] | None) -> str:
    return "–" if fit is None else f"{fit['slope']:.3f} ± {fit['standard_error']:.3f} (R² {fit['r2']:.2f})"


def _draw(figure: Figure, records: list[Record]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    own = where(records, rows_are=values_of(records, "rows_are")[0])
    for axes, name, fixed in ((left, "n", {"s": BASE_S}), (right, "s", {"n": BASE_N})):
        part = where(own, **fixed)
        for i, value in enumerate(sorted(values_of(part, name))):
            curves = where(part, **{name: value})
            mean = 100 * np.mean([record["frr_0.9"] for record in curves], axis=0)
            axes.plot(curves[0]["widths"], mean, color=f"C{i}", marker=".", label=f"{name} = {value}")
        axes.set(xscale="log", xlabel="neurons M", title=", ".join(f"{key} = {value}" for key, value in fixed.items()))
        axes.axhline(100 * FOUND, color="0.6", linestyle=":")
        if part:
            axes.legend(fontsize=8)
    left.set_ylabel("FRR 0.9 (%)")


EXPERIMENT = Experiment(
    "width",
    "Width: recovery against the number of neurons, of features and the sparsity",
    "M ≳ n·p^(−s/(1−ε)²): linear in n, exponential in s.",
    cells,
    measure,
    summarise,
)
