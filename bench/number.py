"""How far off is the number of features that resonance estimates? Planted sets, and the factors by which it is.

python bench/number.py --part sweep --sets 120     (appends to bench/data/number.jsonl, one core, about an hour)
python bench/number.py --part table                (factors, and how many sets the interval holds, as in docs/results.md)
python bench/number.py --part rows                 (plain sets at growing numbers of rows: nothing but features, however many)
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kyomei
from kyomei.learning.occurrence import BY_KIND, Factors, Richness, richness

DATA = Path(__file__).parent / "data" / "number.jsonl"
FAMILIES = ("plain", "zipf", "noisy", "mixed sparsity", "dense")
KINDS = ("mostly mixtures", "uneven", "settled", "1.7 to 6 directions a stable one", "6 to 25", "more")
SEED, SLACK = 7, 0.05


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def draw(index: int) -> tuple[str, dict[str, Any], int]:
    """Family, law and number of rows of a set."""
    rng, family = np.random.default_rng([SEED, index]), FAMILIES[index % len(FAMILIES)]
    features = log_uniform(rng, 64, 512)
    law: dict[str, Any] = {"n_features": features, "dim": int(np.clip(features / rng.uniform(1.5, 4.5), 16, 128))}
    law |= {"active": int(rng.integers(2, 6)), "coefficient": str(rng.choice(["constant", "uniform"]))}
    if family == "zipf":
        law |= {"frequency": "zipf", "active": int(rng.integers(2, 7))}
    elif family == "noisy":
        law |= {"noise": round(float(rng.uniform(0.1, 0.7)), 3)}
    elif family == "mixed sparsity":
        law |= {"active": (int(rng.integers(2, 5)), int(rng.integers(8, 21)))}
    elif family == "dense":
        law |= {"active": int(rng.integers(6, 21))}
    return family, law, log_uniform(rng, 10_000, 60_000)


def run(index: int) -> dict[str, Any] | None:
    """Search one set with the default recipe; none where the law is impossible."""
    torch.set_num_threads(1)
    family, law, rows = draw(index)
    try:
        planted = kyomei.Planted(seed=index, **law)
    except kyomei.KyomeiError:
        return None
    found = kyomei.resonate(planted.sample(rows, seed=index + 1)[0], seed=index)
    seen = richness(len(found), len(found) + found.sums, found.frequency, len(found.candidates))
    return {"index": index, "family": family, "law": law, "rows": rows, "richness": seen._asdict()}


def sweep(path: Path, sets: int) -> None:
    """Run what is missing, one line a set as it is done."""
    done = {json.loads(line)["index"] for line in path.read_text(encoding="utf-8").splitlines()} if path.exists() else set()
    with path.open("a", encoding="utf-8") as file:
        for index in sorted(set(range(sets)) - done):
            line = run(index)
            if line is not None:
                file.write(json.dumps(line) + "\n")
                file.flush()


ROWS = (20_000, 60_000, 200_000)
PLAIN = ((100, 48), (300, 96), (1000, 256))


def rows_table(most: int) -> None:
    """Recovery and number of features of plain sets, one seed each, printed as they are done."""
    print("| n | d | active | coefficients | rows | directions | within 0.9 | FRR 0.9 | n̂ | seconds |\n" + "|---" * 10 + "|")
    for (features, dim), active, coefficient, rows in itertools.product(PLAIN, (2, 4, 8), ("constant", "uniform"), ROWS):
        if features * rows > most:
            continue
        planted = kyomei.Planted(features, dim, active, seed=0, coefficient=coefficient)  # type: ignore[arg-type]
        x, began = planted.sample(rows, seed=1)[0], time.perf_counter()
        found = kyomei.resonate(x, seed=0)
        seconds, figures = time.perf_counter() - began, kyomei.recovery(found.vectors, planted.features)
        cells = [features, dim, active, coefficient, f"{rows:,}", len(found), f"{figures.monosemantic(0.9):.3f}"]
        cells += [f"{figures.frr(0.9):.3f}", f"{found.n_features} ({found.interval[0]}–{found.interval[1]})", f"{seconds:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def table(path: Path) -> None:
    """Factors by kind of search; sets that the interval holds, each tenth of them by factors fitted on the others."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["richness"]["found"]]  # where nothing was found, nothing is said
    seen = [Richness(**line["richness"]) for line in lines]
    ratio = np.array([line["law"]["n_features"] / max(1, found.own) for line, found in zip(lines, seen, strict=True)])
    group = np.array([found.group for found in seen])
    shipped, part = np.zeros(len(ratio), dtype=bool), np.random.default_rng(0).permutation(len(ratio)) % 10
    held = shipped.copy()
    for tenth in range(10):
        fitted = Factors.fit(ratio[part != tenth].tolist(), group[part != tenth].tolist(), BY_KIND.cuts)
        for i in np.flatnonzero(part == tenth):
            low, high = fitted.interval(1.0, group[i])
            held[i] = low * (1 - SLACK) <= ratio[i] <= high * (1 + SLACK)
    for i, (line, found) in enumerate(zip(lines, seen, strict=True)):
        shipped[i] = found.interval[0] <= line["law"]["n_features"] <= found.interval[1]
    whole = Factors.fit(ratio.tolist(), group.tolist(), BY_KIND.cuts)
    print("| search | sets | planted ÷ estimate, with the slack | held | held by factors of others |\n|---|---|---|---|---|")
    for number, name in enumerate(KINDS):
        here, (low, high) = group == number, whole.factors[number]
        if here.any():
            factors = f"{low * (1 - SLACK):.2f}–{high * (1 + SLACK):.2f}"
            print(f"| {name} | {here.sum()} | {factors} | {shipped[here].mean():.3f} | {held[here].mean():.3f} |")
    print(f"| all | {len(ratio)} | | {shipped.mean():.3f} | {held.mean():.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["sweep", "table", "rows"], default="table")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", type=int, default=120)
    parser.add_argument("--most", type=int, default=10**8, help="leave out sets of more features × rows")
    args = parser.parse_args()
    if args.part == "sweep":
        sweep(args.data, args.sets)
    elif args.part == "rows":
        torch.set_num_threads(1)
        rows_table(args.most)
    else:
        table(args.data)


if __name__ == "__main__":
    main()
