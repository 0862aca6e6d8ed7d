"""The law of rows: how the certified share grows with the rows that a replica learns from.

    python bench/law.py run embedded-2-768 topk default --rows 12000 18000 25000 35000 50000 75000
    python bench/law.py table

Every replica takes the first documents of its part, as many rows as are asked for; evidence, rule and null are those of
bench/default.py, and so is the number of steps, so that only the rows differ. Two laws of the package foretell the share
(src/kyomei/evidence/rows_law.py), each with an interval at 90 %:

- the line of rows, through all points but the two largest, foretells those two;
- the law of firings, of each replica as the dictionary, from its latents at the fewest rows alone, foretells all others. Its
  column has the means over the replicas, and how many of their intervals held. Below the table: how far that law was off, from
  every point to every larger one, in log odds of the share for each doubling of the rows (`rows_law.PREMISE`).

A record of a number of rows is a JSON file in bench/data/law, one key a line. Beside the figures of bench/default.py it has
"evidence_rows" and, for each replica as the dictionary, "firings": of every latent on these rows, and "certified_latents": the
numbers of those that are certified.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logit

from default import CELLS, DATA, METHODS, Trial, harvested, recipe_of
from kyomei.errors import EvidenceError
from kyomei.evidence.rows_law import FiringsLaw, Foretold, RowsLaw

LAW = DATA.parent / "law"
HELD_OUT = 2


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
        "evidence_rows": trial.verdicts[0].num_rows,
        "firings": [np.rint(one.frequency * one.num_rows).astype(int).tolist() for one in trial.verdicts],
        "certified_latents": [np.flatnonzero(one.mask("certified")).tolist() for one in trial.verdicts],
    }
    args.data.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return record


def told_by(law: RowsLaw | FiringsLaw, rows: int) -> Foretold | None:
    """None, where the law does not reach so far."""
    try:
        return law.share(rows)
    except EvidenceError:
        return None


def by_rows(known: list[dict[str, Any]]) -> dict[int, Foretold | None]:
    """What the line through all but the largest points says of those."""
    fitted, held_out = known[:-HELD_OUT], known[-HELD_OUT:]
    try:
        law = RowsLaw.fit([one["rows"] for one in fitted], [float(np.mean(one["certified"])) for one in fitted])
    except EvidenceError:  # too few points so far
        return {}
    return {one["rows"]: told_by(law, one["rows"]) for one in held_out}


def by_firings(known: list[dict[str, Any]]) -> dict[int, list[Foretold]]:
    """What the latents of the smallest point say of the others, for each replica as the dictionary."""
    least, laws = known[0], []
    for firings, certified in zip(least["firings"], least["certified_latents"], strict=True):
        mask = np.isin(np.arange(len(firings)), certified)
        try:
            laws.append(FiringsLaw.fit(np.array(firings) / least["evidence_rows"], mask, least["rows"]))
        except EvidenceError:  # nearly none of its latents is certified, or nearly all
            return {}
    every = {one["rows"]: [told_by(law, one["rows"]) for law in laws] for one in known[1:]}
    return {rows: [one for one in told if one is not None] for rows, told in every.items()}


def premise_errors(known: list[dict[str, Any]]) -> list[float]:
    """Log odds foretold less those found, for each doubling of the rows, from every point to every larger one."""
    errors = []
    for place, least in enumerate(known):
        for one in known[place + 1 :]:
            if each := by_firings([least, one]).get(one["rows"]):
                told, found = np.mean([told.estimate for told in each]), np.mean(one["certified"])
                errors.append(float((logit(told) - logit(found)) / np.log2(one["rows"] / least["rows"])))
    return errors


def table(args: argparse.Namespace) -> None:
    records = [json.loads(file.read_text(encoding="utf-8")) for file in args.data.glob("*.json")]
    records.sort(key=lambda one: one["rows"])
    head = ["cell", "method", "rows", "certified", "the line foretells", "held", "firings foretell", "held", "null"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    lines, curves = Tally("the line of rows"), Tally("the law of firings")
    kinds = sorted({(one["cell"], one["method"]) for one in records})
    for cell, method in kinds:
        known = [one for one in records if (one["cell"], one["method"]) == (cell, method)]
        line, firings = by_rows(known), by_firings(known)
        for one in known:
            rows, certified = one["rows"], one["certified"]
            told, each = line.get(rows), firings.get(rows, [])
            mean = float(np.mean(certified))
            cells = [cell, method, f"{rows:,}", f"{mean:.3f} ({min(certified):.3f}–{max(certified):.3f})"]
            cells += ["–", "–"] if told is None else [said([told]), lines.add([told], [mean])]
            cells += [said(each), curves.add(each, certified)] if each else ["–", "–"]
            print("| " + " | ".join([*cells, f"{max(one['null']):.4f}"]) + " |")
    print(f"\n{lines}\n{curves}")
    for cell, method in kinds:
        if errors := premise_errors([one for one in records if (one["cell"], one["method"]) == (cell, method)]):
            size = float(np.sqrt(np.mean(np.square(errors))))
            print(f"{cell} {method}: {len(errors)} projections of firings, root mean square {size:.2f} log odds a doubling")


@dataclass
class Tally:
    """How often a law's intervals held, and how far off it was where it was most."""

    name: str
    held: int = 0
    total: int = 0
    furthest: float = 0.0

    def add(self, told: list[Foretold], found: list[float]) -> str:
        held = sum(one.holds(share) for one, share in zip(told, found, strict=True))
        self.held, self.total = self.held + held, self.total + len(told)
        self.furthest = max(self.furthest, abs(float(np.mean([one.estimate for one in told]) - np.mean(found))))
        return f"{held} of {len(told)}"

    def __str__(self) -> str:
        return f"{self.name}: {self.held} of {self.total} intervals held; furthest off by {self.furthest:.3f}"


def said(told: list[Foretold]) -> str:
    estimate, low, high = np.mean([(one.estimate, one.low, one.high) for one in told], axis=0)
    return f"{estimate:.3f} ({low:.3f}–{high:.3f})"


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
