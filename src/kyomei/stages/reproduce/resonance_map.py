"""The resonance map: recovery over target frequency p and dimension d, with the theory's band, and a test of its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu, spearmanr  # type: ignore[import-untyped, unused-ignore]

from kyomei.evidence.intervals import as_percent
from kyomei.evidence.theory import resonance_band
from kyomei.learning.merging import merge
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import (
    beside_null,
    crossing,
    decoupled,
    resonance,
    rows_of,
    spread,
    training,
    unit_rows_of,
    values_of,
    where,
)
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET = {"n": 128, "s": 3, "rows": 40_000}
DIMENSIONS = (6, 8, 11, 16, 23, 32, 45, 64)
SEARCH = {"neurons": 512, "search_steps": 10, "batch": 4096}
FREQUENCIES = tuple(float(f"{p:.3g}") for p in np.geomspace(7.5e-4, 0.5, 11))
PRESENT = 0.2
"""A dimension has a band where recovery above chance reaches this."""
WHITENED, RAW, TRAINED = "resonance, whitened rows", "theory's algorithm, rows as they are", "trained BA at p"


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Every (method, d, p, seed); the long version adds the paper's trained form on a coarser grid."""
    found: list[Cell] = []
    for seed in range(seeds or 3):
        for d in DIMENSIONS:
            for method in (WHITENED, RAW):
                found += [{"method": method, **SET, "d": d, "p": p, **SEARCH, "seed": seed} for p in FREQUENCIES]
    for seed in range(seeds or 3) if full else ():
        found += [trained_cell(d, p, seed) for d in DIMENSIONS[::2] for p in FREQUENCIES[1::2]]
    return found


def trained_cell(d: int, p: float, seed: int) -> Cell:
    """A cell in which one group of neurons is trained at frequency p from a random start."""
    mechanism = {"name": "ba", "start": "random", "frequency": p}
    train = {"width": 2 * SET["n"], "steps": 8000, "lr": 3e-3, "train_batch": 512}
    return {"method": TRAINED, **SET, "d": d, "p": p, "mechanism": mechanism, **train, "seed": seed}


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery at one frequency and dimension."""
    if cell["method"] == TRAINED:
        return training(cell)
    if cell["method"] == WHITENED:
        return resonance(cell, (cell["p"],))
    planted, x = rows_of(cell)
    z = unit_rows_of(x, whitened=False)
    w = decoupled(z, cell["p"], cell["neurons"], cell["search_steps"], cell["batch"], cell["seed"])
    merged, _ = merge(w, torch.zeros(len(w)), 0.85, torch.ones(len(w), dtype=torch.long))
    return beside_null(merged, planted, cell["seed"])


@dataclass(frozen=True)
class MeasuredBand:
    """Where recovery above chance is at least half of its peak, at one dimension and seed.

    Attributes:
        peak: the largest recovery above chance.
        low: log10 of the lower edge; None without a band.
        high: log10 of the upper edge; None without a band.
    """

    peak: float
    low: float | None
    high: float | None

    @property
    def decades(self) -> float:
        """Width in log10 p; 0 without a band."""
        return 0.0 if self.low is None or self.high is None else self.high - self.low


def measured_band(p: Sequence[float], recovered: Sequence[float]) -> MeasuredBand:
    """The band of a curve over rising frequencies; an edge that is not reached lies at the end of the grid."""
    top = int(np.argmax(recovered))
    peak = recovered[top]
    if peak < PRESENT:
        return MeasuredBand(peak, None, None)
    at = [math.log10(value) for value in p]
    low = crossing(at[top::-1], recovered[top::-1], peak / 2)
    high = crossing(at[top:], recovered[top:], peak / 2)
    return MeasuredBand(peak, at[0] if low is None else low, at[-1] if high is None else high)


def above_chance(record: Record) -> float:
    """Recovery beyond that of as many random directions, as a share of what they leave."""
    null = record["null_frr_0.9"]
    return max(0.0, (record["frr_0.9"] - null) / (1 - null)) if null < 1 else 0.0


def bands_of(records: list[Record]) -> dict[tuple[int, int], MeasuredBand]:
    """The band at each (d, seed) of one method's records."""
    found = {}
    for d in values_of(records, "d"):
        for seed in values_of(where(records, d=d), "seed"):
            curve = sorted(where(records, d=d, seed=seed), key=lambda record: float(record["p"]))
            found[d, seed] = measured_band([r["p"] for r in curve], [above_chance(r) for r in curve])
    return found


def width_test(bands: dict[tuple[int, int], MeasuredBand], n: int) -> dict[str, Any]:
    """Is the band narrow below √n and wide above? Rank correlation with d, and the two sides compared."""
    d = [dimension for dimension, _ in bands]
    widths = [band.decades for band in bands.values()]
    narrow = [width for dimension, width in zip(d, widths, strict=True) if dimension < math.sqrt(n)]
    wide = [width for dimension, width in zip(d, widths, strict=True) if dimension >= math.sqrt(n)]
    facts: dict[str, Any] = {"decades_below_root_n": narrow, "decades_above_root_n": wide}
    if len(set(widths)) > 1 and len(set(d)) > 2:
        rank = spearmanr(d, widths)
        facts |= {"spearman": float(rank.statistic), "spearman_p": float(rank.pvalue)}
    if narrow and wide:
        facts["mann_whitney_p"] = float(mannwhitneyu(narrow, wide, alternative="less").pvalue)
    return facts


def summarise(records: list[Record]) -> Summary:
    """One table for each method: peak, width and edges by dimension, the theory's beside them; and the test."""
    n, s = records[0]["n"], records[0]["s"]
    tables, facts, notes = [], {}, []
    for method in values_of(records, "method"):
        bands = bands_of(where(records, method=method))
        facts[method] = {**width_test(bands, n), **_edge_errors(bands, n, s)}
        tables.append(_table(method, bands, n, s))
        notes.append(_note(method, facts[method]))
    return Summary(tuple(tables), lambda figure: _draw(figure, records), facts, tuple(notes))


def _edge_errors(bands: dict[tuple[int, int], MeasuredBand], n: int, s: int) -> dict[str, Any]:
    lows, highs = [], []
    for (d, _), band in bands.items():
        if band.low is not None and band.high is not None:
            theory = resonance_band(n, d, s)
            lows.append(band.low - math.log10(theory.lower))
            highs.append(band.high - math.log10(theory.upper))
    if not lows:
        return {"low_edge_over_f_log10": None, "high_edge_over_theory_log10": None}
    return {"low_edge_over_f_log10": median(lows), "high_edge_over_theory_log10": median(highs)}


def _table(method: str, bands: dict[tuple[int, int], MeasuredBand], n: int, s: int) -> Table:
    rows = []
    for d in dict.fromkeys(dimension for dimension, _ in bands):
        own = [band for (dimension, _), band in bands.items() if dimension == d]
        theory = resonance_band(n, d, s)
        edges = [
            spread([10**edge for edge in (getattr(band, name) for band in own) if edge is not None], 1, 4)
            for name in ("low", "high")
        ]
        width, peak = spread([band.decades for band in own], 1, 2), spread([band.peak for band in own])
        bound = f"{theory.lower:.4f} – {theory.upper:.4f} ({theory.binding})"
        rows.append((str(d), f"{d / math.sqrt(n):.2f}", peak, width, *edges, f"{theory.decades:.2f}", bound))
    header = (
        "d",
        "d/√n",
        "peak above chance (%)",
        "width (decades)",
        "low edge",
        "high edge",
        "theory's width",
        "theory's band",
    )
    return Table(
        f"{method}; n = {n}, s = {s}, f = {s / n:.4f}; width is 0 where the peak is below {as_percent(PRESENT)}.",
        header,
        tuple(rows),
    )


def _note(method: str, facts: dict[str, Any]) -> str:
    sides = ", ".join(
        f"{fmean(facts[name]):.2f} decades {words}"
        for name, words in (("decades_below_root_n", "below √n"), ("decades_above_root_n", "above"))
        if facts[name]
    )
    tests = [
        f"{words} {facts[name]:.3g}"
        for name, words in (
            ("spearman", "Spearman of width and d"),
            ("spearman_p", "p"),
            ("mann_whitney_p", "Mann–Whitney (narrower below √n) p"),
            ("low_edge_over_f_log10", "median low edge over f, log10"),
            ("high_edge_over_theory_log10", "median high edge over the theory's, log10"),
        )
        if facts.get(name) is not None
    ]
    return f"{method}: mean width {sides}; {'; '.join(tests)}."


def _draw(figure: Figure, records: list[Record]) -> None:
    methods = values_of(records, "method")
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        own = where(records, method=method)
        d, p = sorted(values_of(own, "d")), sorted(values_of(own, "p"))
        # What is not measured yet stays blank.
        grid = [[_mean([above_chance(r) for r in where(own, d=dim, p=freq)]) for freq in p] for dim in d]
        image = axes.pcolormesh(p, d, grid, vmin=0, vmax=1, cmap="viridis", shading="nearest")
        theory = [resonance_band(own[0]["n"], dim, own[0]["s"]) for dim in d]
        for edge in ([band.lower for band in theory], [band.upper for band in theory]):
            axes.plot(edge, d, color="white", linestyle="--")
        axes.axhline(math.sqrt(own[0]["n"]), color="white", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="target frequency p", ylabel="dimension d", title=method)
        axes.minorticks_off()
        axes.set_yticks(d, map(str, d))
        axes.title.set_fontsize(9)
    figure.colorbar(image, ax=figure.axes, label="features recovered above chance")


def _mean(values: list[float]) -> float:
    return fmean(values) if values else math.nan


EXPERIMENT = Experiment(
    "resonance-map",
    "Resonance map: recovery over target frequency and dimension",
    "a bright band around p ≈ f, within f ≲ p ≲ min{√f, f·d}: narrow for d < √n, wide for d > √n.",
    cells,
    measure,
    summarise,
)
