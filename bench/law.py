"""The law of rows: how the certified share grows with the rows that a replica learns from.

    python bench/law.py run embedded-2-768 topk default --rows 12000 18000 25000 35000 50000 75000
    python bench/law.py table

Every replica takes the first documents of its part, as many rows as are asked for; evidence, rule and null are those of
bench/default.py, and so is the number of steps, so that only the rows differ. The law is logit(share) = a + b·log(rows), by
least squares on all but the two largest numbers of rows, which are foretold: with an interval at 90 % from the residuals,
Student's t and the distance, as a regression's prediction has it. A law that bends is seen in points that fall outside.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.special import expit, logit

from default import CELLS, DATA, METHODS, Trial, harvested, recipe_of

LAW = DATA.parent / "law"
HELD_OUT, COVERAGE = 2, 0.9


def measured(args: argparse.Namespace, method: str, rows: int) -> dict[str, Any]:
    cell, file = CELLS[args.cell], args.data / f"{args.cell}.{method}.{rows}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    recipe = recipe_of(cell, method, args.steps or cell.steps, {})
    trial = Trial(harvested(args.cell, args.runs), cell, recipe, args.runs / args.cell / f"law-{method}-{rows}", rows)
    seconds = trial.train()
    record = {
        "cell": args.cell,
        "method": method,
        "rows": rows,
        "steps": recipe.train.steps,
        "seconds": seconds,
        **trial.figures(),
    }
    args.data.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def foretold(rows: list[int], share: list[float], at: int) -> tuple[float, float, float]:
    """The share at a number of rows, and its interval, from those of others."""
    x, y = np.log(rows), logit(np.clip(share, 1e-4, 1 - 1e-4))
    fitted = stats.linregress(x, y)
    freedom, new = len(x) - 2, np.log(at)
    residual = np.sqrt(np.sum((y - fitted.intercept - fitted.slope * x) ** 2) / freedom)
    error = residual * np.sqrt(1 + 1 / len(x) + (new - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    middle, reach = fitted.intercept + fitted.slope * new, stats.t.ppf((1 + COVERAGE) / 2, freedom) * error
    return tuple(float(expit(value)) for value in (middle, middle - reach, middle + reach))  # type: ignore[return-value]


def table(args: argparse.Namespace) -> None:
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(args.data.glob("*.json"))]
    print("| cell | method | rows | certified | foretold | held | null |\n|---|---|---|---|---|---|---|")
    for cell, method in sorted({(one["cell"], one["method"]) for one in records}):
        known = sorted((one for one in records if (one["cell"], one["method"]) == (cell, method)), key=lambda one: one["rows"])
        fitted = known[:-HELD_OUT]
        rows, share = [one["rows"] for one in fitted], [float(np.mean(one["certified"])) for one in fitted]
        for one in known:
            certified, said, held = one["certified"], "–", "–"
            if one not in fitted and len(fitted) > HELD_OUT:
                middle, low, high = foretold(rows, share, one["rows"])
                said = f"{middle:.3f} ({low:.3f}–{high:.3f})"
                held = "yes" if low <= np.mean(certified) <= high else "no"
            figure = f"{np.mean(certified):.3f} ({min(certified):.3f}–{max(certified):.3f})"
            print(f"| {cell} | {method} | {one['rows']:,} | {figure} | {said} | {held} | {max(one['null']):.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "table"])
    parser.add_argument("cell", nargs="?", choices=list(CELLS))
    parser.add_argument("methods", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--rows", type=int, nargs="+", default=[12_000, 25_000, 50_000, 75_000])
    parser.add_argument("--steps", type=int, help="the cell's usual number without it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/default"))
    parser.add_argument("--data", type=Path, default=LAW)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part == "table":
        table(args)
        return
    for method in args.methods:
        for rows in args.rows:
            print(f"{args.cell} {method} {rows:,}: {np.mean(measured(args, method, rows)['certified']):.3f}", flush=True)


if __name__ == "__main__":
    main()
