"""Recovery against co-occurrence ρ₂: where does premise H3 begin to matter?"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from kyomei.evidence.theory import decomposability
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import column, crossing, planted_of, resonance, spread, training, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (64, 256)
LEVELS = (None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
SEARCH = {"neurons": 1024, "search_steps": 10, "batch": 8192}
MEASURED_ROWS = 50_000
AT_F, RESONANCE, TRAINED = "resonance at p = f", "resonance at all frequencies", "trained BA at p = f"


def cell_of(method: str, n: int, level: float | None, seed: int) -> Cell:
    """A cell: n features in n/2 dimensions, four in a row, partners that share a share `level` of their rows."""
    planted = {"co_occurrence": level, "coefficient": "uniform"}
    cell = {"method": method, "n": n, "d": n // 2, "s": 4, "rows": 30_000, "planted": planted, "seed": seed}
    if method != TRAINED:
        return {**cell, **SEARCH}
    mechanism = {"name": "ba", "start": "random", "frequency": 4 / n}
    return {**cell, "mechanism": mechanism, "width": 2 * n, "steps": 12_000, "lr": 3e-3, "train_batch": 512}


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Resonance at every size and level; the long version adds the paper's trained form."""
    methods = (AT_F, RESONANCE, TRAINED) if full else (AT_F, RESONANCE)
    return [
        cell_of(method, n, level, seed) for method in methods for n in SIZES for level in LEVELS for seed in range(seeds or 3)
    ]


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery, and the ρ₂ that the rows have."""
    planted = planted_of(cell)
    rho = decomposability(planted.sample(MEASURED_ROWS, seed=cell["seed"] + 1)[1], planted.features).co_occurrence
    if cell["method"] == TRAINED:
        return {"rho_2": rho, **training(cell)}
    return {"rho_2": rho, **resonance(cell, (cell["s"] / cell["n"],) if cell["method"] == AT_F else ())}


def half_points(records: list[Record]) -> list[float | None]:
    """For each seed, the ρ₂ at which recovery first falls to half of what it is at the lowest."""
    found = []
    for seed in values_of(records, "seed"):
        curve = sorted(where(records, seed=seed), key=lambda record: float(record["rho_2"]))
        recovered = [record["frr_0.9"] for record in curve]
        found.append(crossing([record["rho_2"] for record in curve], recovered, recovered[0] / 2))
    return found


def summarise(records: list[Record]) -> Summary:
    """Recovery by level and, for each size, where it falls to half beside n^(−1/2)."""
    rows: list[tuple[str, ...]] = []
    falls: list[tuple[str, ...]] = []
    facts: dict[str, Any] = {}
    for method in values_of(records, "method"):
        for n in values_of(where(records, method=method), "n"):
            own = where(records, method=method, n=n)
            for level in values_of(own, "planted"):
                part = where(own, planted=level)
                shares = [column(part, name) for name in ("frr_0.8", "frr_0.9", "within_0.9", "null_frr_0.9")]
                planted = "none" if level["co_occurrence"] is None else f"{level['co_occurrence']:g}"
                rows.append((method, str(n), planted, column(part, "rho_2", 1, 3), column(part, "vectors", 1, 0), *shares))
            halves = half_points(own)
            facts[f"{method}, n = {n}"] = {"half_points": halves, "n^(−1/2)": n**-0.5}
            reached = [half for half in halves if half is not None]
            never = f"{len(halves) - len(reached)} of {len(halves)}"
            falls.append((method, str(n), f"{n**-0.5:.3f}", spread(reached, 1, 3), never))
    header: tuple[str, ...] = (
        "method",
        "n",
        "planted ρ₂",
        "measured ρ₂",
        "vectors",
        "FRR 0.8",
        "FRR 0.9",
        "within 0.9",
        "null 0.9",
    )
    levels = Table("Recovery in percent, mean (smallest–largest) over seeds.", header, tuple(rows))
    header = ("method", "n", "paper: falls near n^(−1/2)", "ours: half of its value at ρ₂", "seeds that never fall so far")
    return Summary((Table("Where recovery falls.", header, tuple(falls)), levels), lambda figure: _draw(figure, records), facts)


def _draw(figure: Figure, records: list[Record]) -> None:
    axes = figure.subplots()
    for i, (method, n) in enumerate(dict.fromkeys((record["method"], record["n"]) for record in records)):
        own = where(records, method=method, n=n)
        levels = [where(own, planted=level) for level in values_of(own, "planted")]
        axes.scatter([r["rho_2"] for r in own], [100 * r["frr_0.9"] for r in own], color=f"C{i}", s=12)
        mean = [(fmean(r["rho_2"] for r in part), 100 * fmean(r["frr_0.9"] for r in part)) for part in levels]
        axes.plot(*zip(*sorted(mean), strict=True), color=f"C{i}", label=f"{method}, n = {n}")
        axes.axvline(n**-0.5, color=f"C{i}", linestyle="--", label=f"n^(−1/2) = {n**-0.5:.3f}")
    axes.set(xlabel="co-occurrence ρ₂, measured", ylabel="FRR 0.9 (%)", ylim=(-2, 102))
    axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    "co-occurrence",
    "Co-occurrence: recovery against ρ₂",
    "recovery falls off near ρ₂ = n^(−1/2).",
    cells,
    measure,
    summarise,
)
