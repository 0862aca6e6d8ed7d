"""The paper's imbalanced set: resonance, paper GBA at right and wrong frequencies, and TopK."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kyomei.learning.resonance import resonate
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import beside_null, column, rows_of, training, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESONANCE = "resonance, default recipe"
SET = {"n": 128, "d": 42, "s": [3, 20], "rows": 50_000}
_WIDTH = {"width": 256, "train_batch": 512}
TRAINED: dict[str, dict[str, Any]] = {
    "GBA, right single frequency (0.09)": {"name": "ba", "frequency": 0.09, "lr": 3e-3, "steps": 40_000},
    "GBA, full range (0.5 → 1e-3, K = 10)": {
        "name": "gba",
        "highest_frequency": 0.5,
        "lowest_frequency": 1e-3,
        "lr": 1e-2,
        "steps": 40_000,
    },
    "GBA, wrong: 0.5 only": {"name": "ba", "frequency": 0.5, "lr": 3e-3, "steps": 16_000},
    "GBA, wrong: 1e-3 only": {"name": "ba", "frequency": 1e-3, "lr": 3e-3, "steps": 24_000},
    "TopK, K = 3": {"name": "topk", "k": 3, "lr": 3e-3, "steps": 12_000},
    "TopK, K = 12": {"name": "topk", "k": 12, "lr": 3e-3, "steps": 16_000},
    "TopK, K = 20": {"name": "topk", "k": 20, "lr": 3e-3, "steps": 12_000},
    "TopK, K = 30": {"name": "topk", "k": 30, "lr": 3e-3, "steps": 12_000},
    "TopK, K = 50": {"name": "topk", "k": 50, "lr": 3e-3, "steps": 12_000},
}
PAPER = {
    RESONANCE: "100 / 100 (GBA, full range)",
    "GBA, full range (0.5 → 1e-3, K = 10)": "100 / 100",
    "GBA, wrong: 0.5 only": "38.3 / 3.9",
    "GBA, wrong: 1e-3 only": "38.3 / 3.9",
    "TopK, K = 20": "100 / 98.4",
    "TopK, K = 30": "98.4 / 24.2",
    "TopK, K = 50": "94.5 / 23.4",
}


def trained_cell(setting: str, seed: int, steps: int) -> Cell:
    """A cell of one trained setting."""
    mechanism = {key: value for key, value in TRAINED[setting].items() if key not in ("lr", "steps")}
    chosen = {"mechanism": {**mechanism, "start": "random"}, "lr": TRAINED[setting]["lr"], "steps": steps}
    return {"setting": setting, **SET, **_WIDTH, **chosen, "seed": seed}


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Resonance on ten seeds; in the long version every trained setting on three, after half of its steps and all of them."""
    searches: list[Cell] = [{"setting": RESONANCE, **SET, "seed": seed} for seed in range(seeds or 10)]
    # Half the steps beside the whole: where the two agree, training has reached its plateau.
    lengths = [(name, steps) for name, v in TRAINED.items() for steps in (v["steps"] // 2, v["steps"])]
    trained = [trained_cell(name, seed, steps) for name, steps in lengths for seed in range(seeds or 3)]
    return searches + (trained if full else [])


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery of one setting on one seed."""
    if cell["setting"] != RESONANCE:
        return training(cell)
    planted, x = rows_of(cell)
    began = time.perf_counter()
    directions = resonate(x, seed=cell["seed"])
    seconds = time.perf_counter() - began
    return {
        **beside_null(directions.vectors, planted, cell["seed"]),
        "n_features": directions.n_features,
        "interval": directions.interval,
        "seconds": seconds,
    }


def summarise(records: list[Record]) -> Summary:
    """One row for each setting and length, the paper's figures beside it."""
    rows = []
    for setting in values_of(records, "setting"):
        own = where(records, setting=setting)
        for steps in values_of([{"steps": None, **record} for record in own], "steps"):
            part = [record for record in own if record.get("steps") == steps]
            shares = [column(part, name) for name in ("frr_0.8", "frr_0.9", "within_0.9", "null_frr_0.8", "null_frr_0.9")]
            size = (column(part, "vectors", 1, 0), column(part, "l0", 1, 1))
            head = (setting, "–" if steps is None else f"{steps:,}", str(len(part)), *size)
            rows.append((*head, *shares, PAPER.get(setting, "–"), column(part, "seconds", 1, 0)))
    header = ("setting", "steps", "seeds", "vectors", "L0", "FRR 0.8", "FRR 0.9", "within 0.9", "null 0.8", "null 0.9")
    title = "Shares in percent, mean (smallest–largest) over seeds; the null is as many random directions."
    table = Table(title, (*header, "paper FRR 0.8 / 0.9", "s"), tuple(rows))
    singles = tuple(_single(record) for record in where(records, setting=RESONANCE))
    each = Table("Resonance, seed by seed.", ("seed", "directions", "n̂", "FRR 0.8", "FRR 0.9", "within 0.9", "s"), singles)
    return Summary((table, each), lambda figure: _draw(figure, records))


def _single(record: Record) -> tuple[str, ...]:
    shares = (f"{100 * record[name]:.1f}" for name in ("frr_0.8", "frr_0.9", "within_0.9"))
    return (str(record["seed"]), str(record["vectors"]), str(record["n_features"]), *shares, f"{record['seconds']:.1f}")


def _draw(figure: Figure, records: list[Record]) -> None:
    axes = figure.subplots()
    settings = values_of(records, "setting")
    for name, colour, label in (("frr_0.9", "C0", "FRR 0.9"), ("null_frr_0.9", "0.6", "null")):
        places = [settings.index(record["setting"]) for record in records]
        axes.scatter([100 * record[name] for record in records], places, color=colour, label=label, alpha=0.7)
    axes.set_yticks(range(len(settings)), settings)
    axes.invert_yaxis()
    axes.set_xlabel("true features recovered (%), one point a run")
    axes.legend()


EXPERIMENT = Experiment(
    "imbalanced",
    "Imbalanced set: half the rows with 3 active features, half with 20",
    "GBA recovers all features (FRR 0.8 / 0.9: 100 / 100) over the full range of frequencies and 38.3 / 3.9 over a wrong one; "
    "TopK 100 / 98.4 at K = 20, 98.4 / 24.2 at K = 30, 94.5 / 23.4 at K = 50.",
    cells,
    measure,
    summarise,
)
