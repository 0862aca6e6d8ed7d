"""Feature splitting: how many learnt rows a true feature has as the dictionary grows."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from kyomei.evidence.theory import identifiability
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import column, train_figures, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET: dict[str, Any] = {"n": 128, "d": 64, "s": 4, "rows": 30_000, "planted": {"coefficient": "uniform"}}
SEARCH = {"neurons": 512, "search_steps": 10, "batch": 4096}
FACTORS = (0.5, 1, 2, 4)
STEPS, LONG_STEPS = 3000, 30_000
MECHANISMS: dict[str, dict[str, Any]] = {
    "GBA from resonance": {"name": "gba", "start": "resonance"},
    "GBA, paper's form": {"name": "gba", "start": "random", "highest_frequency": 0.1, "lowest_frequency": 1e-3},
    "TopK, k = s": {"name": "topk", "k": SET["s"]},
}


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Widths from n/2 to 4n (the long version: 8n, and ten times the steps)."""
    factors = (*FACTORS, 8) if full else FACTORS
    steps = LONG_STEPS if full else STEPS
    return [cell_of(method, factor, seed, steps) for seed in range(seeds or 3) for method in MECHANISMS for factor in factors]


def cell_of(method: str, factor: float, seed: int, steps: int) -> Cell:
    """A dictionary of `factor`·n latents."""
    train = {"width": round(factor * SET["n"]), "steps": steps, "lr": 3e-3, "train_batch": 512}
    searched = SEARCH if MECHANISMS[method].get("start") == "resonance" else {}
    return {"method": method, **SET, "mechanism": MECHANISMS[method], **train, **searched, "seed": seed}


def measure(cell: Cell) -> dict[str, Any]:
    """Recovery, and how the learnt rows divide among the true features."""
    sae, planted, figures = train_figures(cell)
    found = identifiability(sae.decoder, planted.features).to_dict()
    return {**figures, **{name: found[name] for name in ("split_share", "rows_per_found", "most_rows", "alien_share")}}


def summarise(records: list[Record]) -> Summary:
    """Splits by method and width."""
    rows = []
    for method in values_of(records, "method"):
        for width in values_of(where(records, method=method), "width"):
            own = where(records, method=method, width=width)
            shares = [column(own, name) for name in ("frr_0.9", "null_frr_0.9", "split_share")]
            rows_of = (column(own, "rows_per_found", 1, 2), column(own, "most_rows", 1, 0), column(own, "alien_share"))
            kept = (column(own, "fvu", 1, 3), column(own, "l0", 1, 1), column(own, "dead"))
            rows.append((method, str(width), f"{width / own[0]['n']:g}", str(len(own)), *shares, *rows_of, *kept))
    header = ("method", "width", "width/n", "seeds", "FRR 0.9", "null 0.9", "split", "rows a found feature", "most")
    title = (
        "A learnt row belongs to its nearest true feature from cosine 0.9; split: features with two or more. "
        "Percent, mean (smallest–largest) over seeds."
    )
    table = Table(title, (*header, "rows of none", "FVU", "L0", "dead"), tuple(rows))
    return Summary((table,), lambda figure: _draw(figure, records))


def _draw(figure: Figure, records: list[Record]) -> None:
    panels = (("frr_0.9", "FRR 0.9 (%)"), ("split_share", "features split (%)"), ("alien_share", "rows of no feature (%)"))
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for i, method in enumerate(values_of(records, "method")):
            own = where(records, method=method)
            widths = values_of(own, "width")
            mean = [100 * fmean(record[name] for record in where(own, width=width)) for width in widths]
            axes.plot(widths, mean, color=f"C{i}", label=method)
            axes.scatter([record["width"] for record in own], [100 * record[name] for record in own], color=f"C{i}", s=12)
        axes.set(xscale="log", xlabel="width", ylabel=label, ylim=(-2, 102))
        axes.minorticks_off()
        axes.set_xticks(values_of(records, "width"), map(str, values_of(records, "width")))
        axes.axvline(records[0]["n"], color="0.6", linestyle=":")
    figure.axes[0].legend(fontsize=8)


EXPERIMENT = Experiment(
    "splitting",
    "Feature splitting against the width of the dictionary",
    "features are identified up to permutation, scaling and splitting; how many are split is not counted there.",
    cells,
    measure,
    summarise,
)
