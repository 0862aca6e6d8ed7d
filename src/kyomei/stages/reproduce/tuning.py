"""Tuning-freeness: how far recovery and reconstruction move when one setting of each mechanism is moved at a time."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import column, spread, training, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET: dict[str, Any] = {"n": 128, "d": 64, "s": 4, "rows": 30_000, "planted": {"coefficient": "uniform"}}
SEARCH = {"neurons": 512, "search_steps": 10, "batch": 4096}
TRAIN = {"width": 256, "train_batch": 512}
STEPS, LONG_STEPS = 3000, 30_000
GAMMAS = (0.003, 0.01, 0.03)
RATES = (1e-3, 3e-3, 1e-2)
STARTED, PAPER, TOPK, L1 = "GBA from resonance", "GBA, paper's form", "TopK", "ℓ1"
BASE: dict[str, dict[str, Any]] = {
    STARTED: {"name": "gba", "start": "resonance", "groups": 10, "gamma": 0.01, "lr": 3e-3},
    PAPER: {
        "name": "gba",
        "start": "random",
        "groups": 10,
        "highest_frequency": 0.1,
        "lowest_frequency": 1e-3,
        "gamma": 0.01,
        "lr": 3e-3,
    },
    TOPK: {"name": "topk", "k": 4, "lr": 3e-3},
    L1: {"name": "l1", "penalty": 0.01, "lr": 3e-3},
}
VARIED: dict[str, dict[str, tuple[float, ...]]] = {
    STARTED: {"groups": (3, 5, 10, 20), "gamma": GAMMAS, "lr": RATES},
    PAPER: {
        "groups": (3, 5, 10, 20),
        "highest_frequency": (0.05, 0.1, 0.2, 0.5),
        "lowest_frequency": (1e-4, 1e-3, 1e-2),
        "gamma": GAMMAS,
        "lr": RATES,
    },
    TOPK: {"k": (2, 4, 8, 16, 32), "lr": RATES},
    L1: {"penalty": (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "lr": RATES},
}
NAMES = {"groups": "K groups", "highest_frequency": "HTF", "lowest_frequency": "LTF", "gamma": "γ", "k": "K", "penalty": "λ"}


def cell_of(method: str, factor: str, value: float, seed: int, steps: int) -> Cell:
    """A cell in which one factor differs from the method's base; the base itself is the same cell under every factor."""
    chosen = {**BASE[method], factor: value}
    base = chosen == BASE[method]
    mechanism = {key: setting for key, setting in chosen.items() if key not in ("gamma", "lr")}
    if "gamma" in chosen:
        mechanism |= {"gamma_down": chosen["gamma"], "gamma_up": chosen["gamma"]}
    varied = {"method": method, "factor": "base" if base else factor, "value": None if base else value}
    searched = SEARCH if method == STARTED else {}
    return {**varied, **SET, "mechanism": mechanism, "lr": chosen["lr"], "steps": steps, **TRAIN, **searched, "seed": seed}


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Every value of every factor, one at a time; the long version trains ten times as long."""
    steps = LONG_STEPS if full else STEPS
    found: list[Cell] = []
    for seed in range(seeds or (3 if full else 2)):
        for method, factors in VARIED.items():
            asked = [cell_of(method, factor, value, seed, steps) for factor, values in factors.items() for value in values]
            found += [cell for i, cell in enumerate(asked) if cell not in asked[:i]]
    return found


def of_factor(records: list[Record], method: str, factor: str) -> list[Record]:
    """The records along one factor, the base among them, each with its value of the factor."""
    own = [record for record in where(records, method=method) if record["factor"] in (factor, "base")]
    return sorted(({**r, "value": BASE[method][factor] if r["value"] is None else r["value"]} for r in own), key=_value)


def _value(record: Record) -> float:
    return float(record["value"])


def summarise(records: list[Record]) -> Summary:
    """Spread of FRR and FVU along each factor, and every single setting."""
    spreads: list[tuple[str, ...]] = []
    singles: list[tuple[str, ...]] = []
    facts: dict[str, Any] = {}
    for method in values_of(records, "method"):
        for factor in VARIED[method]:
            own = of_factor(records, method, factor)
            if len(values_of(own, "value")) < 2:
                continue
            means = {name: _means(own, name) for name in ("frr_0.9", "fvu")}
            facts[f"{method}, {factor}"] = {name: max(m) - min(m) for name, m in means.items()}
            tried = ", ".join(f"{value:g}" for value in values_of(own, "value"))
            ranges = (
                spread(means["frr_0.9"]),
                f"{100 * facts[f'{method}, {factor}']['frr_0.9']:.1f}",
                spread(means["fvu"], 1, 3),
            )
            spreads.append((method, NAMES.get(factor, factor), tried, *ranges, f"{facts[f'{method}, {factor}']['fvu']:.3f}"))
            for value in values_of(own, "value"):
                part = where(own, value=value)
                shares = [column(part, name) for name in ("frr_0.8", "frr_0.9", "null_frr_0.9")]
                kept = (column(part, "fvu", 1, 3), column(part, "l0", 1, 1), column(part, "dead"))
                singles.append((method, NAMES.get(factor, factor), f"{value:g}", str(len(part)), *shares, *kept))
    header: tuple[str, ...] = ("method", "factor", "values", "FRR 0.9 over them", "range", "FVU over them", "range")
    first = Table("One factor at a time; means over seeds, then mean (smallest–largest) over values.", header, tuple(spreads))
    header = ("method", "factor", "value", "seeds", "FRR 0.8", "FRR 0.9", "null 0.9", "FVU", "L0", "dead (%)")
    steps, width = records[0]["steps"], records[0]["width"]
    every = Table(f"Every setting: {steps:,} steps, width {width}; mean (smallest–largest) over seeds.", header, tuple(singles))
    return Summary((first, every), lambda figure: _draw(figure, records), facts)


def _means(records: list[Record], name: str) -> list[float]:
    return [fmean(record[name] for record in where(records, value=value)) for value in values_of(records, "value")]


def _draw(figure: Figure, records: list[Record]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    lines = [(method, factor) for method in values_of(records, "method") for factor in VARIED[method]]
    colours = {method: f"C{i}" for i, method in enumerate(BASE)}
    for place, (method, factor) in enumerate(lines):
        own = of_factor(records, method, factor)
        for axes, name, scale in ((left, "frr_0.9", 100), (right, "fvu", 1)):
            means = [scale * mean for mean in _means(own, name)]
            axes.plot(means, [place] * len(means), color=colours[method], marker="o", alpha=0.8)
    left.set_yticks(range(len(lines)), [f"{method}: {NAMES.get(factor, factor)}" for method, factor in lines], fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="FRR 0.9 (%), one point a value", xlim=(-2, 102))
    right.set_xlabel("FVU")


EXPERIMENT = Experiment(
    "tuning",
    "Tuning: spread of recovery and reconstruction over each mechanism's settings",
    "GBA is nearly tuning-free: on a language model stable for K ≥ 10 with HTF 0.5; K = 3 denser, HTF 0.05 worse in loss.",
    cells,
    training,
    summarise,
)
