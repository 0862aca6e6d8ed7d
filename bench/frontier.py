"""The table that decides: what reproduces and what reconstructs, one line a site, L0 and method.

    python bench/frontier.py run --hours 3        (what is missing, core first; a stopped run goes on)
    python bench/frontier.py table                (cells that nobody measured say so)
    python bench/frontier.py figure docs/frontier.svg

Cells, rule and null are those of bench/default.py, and its data is read as well: what one of both measured, the other has. A
method stands here with its plateau, the first number of steps whose double changes FVU by less than 1 % and the certified share
by less than 0.01, and where that is not shown, with the largest number of steps that was measured.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from default import CELLS, DATA, REPLICAS, measured, recovered_of, settled

MAIN = ("default", "topk", "batchtopk")
CORE = [(cell, method) for cell in ("embedded-2", "minilm-3", "smollm2-15") for method in (*MAIN, "jumprelu")]
FURTHER = [
    *(("embedded-2-768", method) for method in (*MAIN, "jumprelu")),
    *((cell, method) for cell in ("minilm-5", "smollm2-15-residual", "embedded-1", "gemma-9") for method in MAIN),
    *((f"embedded-2-l{l0}", method) for l0 in (16, 64) for method in MAIN),
    *(("embedded-2", method) for method in ("matryoshka", "l1", "paper")),
    *((cell, method) for cell in ("embedded-2-768-random", "embedded-2-random") for method in MAIN[:2]),
]
COLUMNS = ("site and L0", "method", "steps", "plateau", "L0", "alive", "FVU", "cross-entropy recovered", "certified")
COLUMNS += ("of explained variance", "from context", "null", "seconds")


def records(data: Path, cell: str, method: str) -> dict[int, dict[str, Any]]:
    """What is on record of a method in a cell, by steps."""
    files = data.glob(f"{cell}.{method}.*.json")
    found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return {one["steps"]: one for one in found}


def shown(data: Path, cell: str, method: str) -> tuple[dict[str, Any] | None, bool]:
    """The record that stands in the table, and whether it is shown to be a plateau; none: nobody measured it."""
    known = records(data, cell, method)
    for steps in sorted(known):
        if 2 * steps in known and settled(known[steps], known[2 * steps]):
            return known[steps], True
    return (known[max(known)] if known else None), False


def spread(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def lines(data: Path) -> Iterator[list[str]]:
    for cell, method in [*CORE, *FURTHER]:
        record, is_plateau = shown(data, cell, method)
        if record is None:
            yield [cell, method, "not measured", *[""] * (len(COLUMNS) - 3)]
            continue
        context = record.get("origin", {}).get("context-or-unexplained")
        yield [
            cell,
            method,
            f"{record['steps']:,}",
            "yes" if is_plateau else "not shown",
            spread(record["l0"], 1),
            f"{np.mean(record['alive']):.3f}",
            spread(record["fvu"]),
            recovered_of(record),
            spread(record["certified"]),
            spread(record["certified_explained"]),
            "–" if context is None else f"{context:.3f}",
            f"{max(record['null']):.4f}",
            f"{np.mean(np.array(record['seconds'])[:REPLICAS, 0]):.0f}",
        ]


def table(data: Path) -> None:
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for line in lines(data):
        print("| " + " | ".join(line) + " |")


def run(args: Namespace) -> None:
    """Measure what is missing at each cell's usual number of steps, in order, until the hours are over."""
    ends = time.monotonic() + 3600 * args.hours
    for cell, method in [*CORE, *FURTHER]:
        if records(args.data, cell, method):
            continue
        if time.monotonic() > ends:
            return
        print(f"{cell} {method}", flush=True)
        measured(Namespace(**vars(args), cell=cell, label="", set=[]), method, CELLS[cell].steps)


MARKERS = {"default": "o", "topk": "s", "batchtopk": "^", "jumprelu": "D", "matryoshka": "v", "l1": "x", "paper": "P"}
COLOURS = {method: f"C{place}" for place, method in enumerate(MARKERS)}
HALF_RANGE, MARGIN, MOST_ACROSS = 0.15, 0.65, 3
"""Of a panel's FVU about its middle; of its points' range where that is wider; panels side by side."""
CALLED = {"default": "Kyomei", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "paper": "GBA as in the paper"}


def panel(axes: Axes, data: Path, cell: str) -> None:
    """Certified share against FVU: one point a method, bars over the replicas."""
    for method in measured_of(data, cell):
        record, _ = shown(data, cell, method)
        assert record is not None
        fvu, certified = np.array(record["fvu"]), 100 * np.array(record["certified"])
        reach = [[[v.mean() - v.min()], [v.max() - v.mean()]] for v in (fvu, certified)]
        style: dict[str, Any] = {"fmt": MARKERS[method], "color": COLOURS[method], "label": CALLED.get(method, method)}
        axes.errorbar(fvu.mean(), certified.mean(), reach[1], reach[0], capsize=2, **style)
    of = CELLS[cell]
    axes.set_title(f"{of.model.split(':')[-1]}\n{of.site}\nwidth {of.width:,}, L0 {of.l0}", fontsize=9)
    low, high = axes.get_xlim()
    # As wide in every panel, in shares of the FVU, if the points allow: a difference of 1 % is to look like one.
    middle = (low + high) / 2
    half = max(HALF_RANGE * middle, MARGIN * (high - low))
    axes.set(xlabel="fraction of variance unexplained", xlim=(middle - half, middle + half), ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(4))


def measured_of(data: Path, cell: str) -> list[str]:
    return [method for method in MARKERS if shown(data, cell, method)[0]]


def figure(args: Namespace) -> None:
    """One panel a cell in which more than one method was measured."""
    cells = [cell for cell in CELLS if len(measured_of(args.data, cell)) > 1]
    across = min(len(cells), MOST_ACROSS)
    down = -(-len(cells) // across)
    drawing = Figure(figsize=(3.3 * across, 3.2 * down), layout="constrained")
    panels = drawing.subplots(down, across, squeeze=False, sharey=True)
    for axes in panels.flat[len(cells) :]:
        axes.remove()
    for axes, cell in zip(panels.flat, cells, strict=False):
        panel(axes, args.data, cell)
    for axes in panels[:, 0]:
        axes.set_ylabel("certified, % of the width")
    named = {label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawing.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8, frameon=False)
    with rc_context({"svg.hashsalt": "frontier"}):  # the same points, the same bytes
        drawing.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.suffix == ".svg" else None)
    print(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "table", "figure"])
    parser.add_argument("out", nargs="?", type=Path, default=Path("frontier.svg"), help="file of the figure")
    parser.add_argument("--hours", type=float, default=3.0, help="no cell is begun after so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/default"))
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"run": run, "table": lambda one: table(one.data), "figure": figure}[args.part](args)


if __name__ == "__main__":
    main()
