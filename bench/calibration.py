"""The sweep behind `kyomei check`: planted regimes, what the check's own search measures on each, and what it recovers.

    python bench/calibration.py --part sweep --workers 2     (appends to bench/data/calibration.jsonl; stop and go on at will)
    python bench/calibration.py --part fit                   (writes src/kyomei/evidence/check/calibrator.json)
    python bench/calibration.py --part table                 (whole families left out, as in docs/results.md)

The generator below was frozen before the sweep: changing it changes the data that the calibrator was fitted on.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kyomei
from kyomei.evidence.check import calibration
from kyomei.evidence.check.premises import has_structure
from kyomei.evidence.check.structure import Structure, search
from kyomei.learning.occurrence import Factors

DATA = Path(__file__).parent / "data" / "calibration.jsonl"
SEED = 40_417
ACTIVE_ROWS = 2000
REGIMES_PER_FAMILY = 33
FAMILIES = (
    "plain",
    "zipf",
    "co-occurring",
    "hierarchical",
    "noisy",
    "few rows",
    "mixed sparsity",
    "dense",
    "combined",
    "combined zipf",
)
TREES = ((2, 2), (3, 2), (4, 2), (8, 2), (2, 3))


@dataclasses.dataclass(frozen=True)
class Regime:
    """One kind of planted data: `Planted(seed=index, **law).sample(rows, seed=index + 1)`."""

    index: int
    family: str
    law: dict[str, Any]
    rows: int


def regimes(seed: int = SEED, per_family: int = REGIMES_PER_FAMILY) -> list[Regime]:
    """The generator: families take turns, and each regime draws from a stream of its own."""
    drawn = []
    for index in range(per_family * len(FAMILIES)):
        family, rng = FAMILIES[index % len(FAMILIES)], np.random.default_rng([seed, index])
        while True:
            law, rows = draw(family, rng)
            try:
                kyomei.Planted(seed=index, **law)
                break
            except kyomei.KyomeiError:  # an impossible combination: draw again
                continue
        drawn.append(Regime(index, family, law, rows))
    return drawn


def draw(family: str, rng: np.random.Generator) -> tuple[dict[str, Any], int]:
    """The law and the number of rows of one regime."""
    dim = log_uniform(rng, 16, 96)
    features = 2 * (min(400, max(48, round(dim * 1.2 * 4 ** rng.uniform()))) // 2)
    law: dict[str, Any] = {"n_features": features, "dim": dim, "active": int(rng.integers(2, 6))}
    law["coefficient"] = str(rng.choice(["constant", "uniform"]))
    rows = log_uniform(rng, 8000, 40_000)
    combined = family.startswith("combined")
    kind = str(rng.choice(["plain", "co-occurring", "hierarchical", "mixed sparsity", "dense"])) if combined else family
    if kind == "co-occurring":
        law |= {"active": int(rng.integers(3, 7)), "co_occurrence": round(float(rng.uniform(0, 0.5)), 3)}
    elif kind == "hierarchical":
        children, levels = TREES[rng.integers(len(TREES))]
        size = sum(children**level for level in range(levels))
        trees = max(4, round(features / size))
        law |= {"n_features": trees * size, "hierarchy": (children, levels), "active": int(rng.integers(1, 4))}
    elif kind == "mixed sparsity":
        law |= {"active": (int(rng.integers(2, 5)), int(rng.integers(8, 25)))}
    elif kind == "dense":
        law |= {"active": log_uniform(rng, 3, 16)}
    elif kind == "zipf":
        law |= {"frequency": "zipf", "active": int(rng.integers(2, 9))}
    elif kind == "noisy":
        law |= {"noise": round(float(rng.uniform(0.1, 1.0)), 3)}
    elif kind == "few rows":
        rows = log_uniform(rng, 2500, 9000)
    if family == "combined zipf":
        law |= {"frequency": "zipf"}
    if combined:
        if rng.random() < 0.4:
            law |= {"noise": round(float(rng.uniform(0.05, 0.8)), 3)}
        if rng.random() < 0.3:
            rows = log_uniform(rng, 2500, 9000)
    return law, rows


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def run(regime: Regime) -> dict[str, Any]:
    """Search one regime as the check does, without the nulls, and compare with its truth."""
    torch.set_num_threads(1)
    law = kyomei.Planted(seed=regime.index, **regime.law)
    x, _ = law.sample(regime.rows, seed=regime.index + 1)
    began = time.perf_counter()
    structure, halves = search(x, seed=regime.index, null=False)
    seconds = time.perf_counter() - began
    truth = kyomei.recovery(torch.cat([half.vectors for half in halves]), law.features)
    figures = {"frr_0.9": truth.frr(0.9), "frr_0.8": truth.frr(0.8), "within_0.9": truth.monosemantic(0.9)}
    return {**dataclasses.asdict(regime), **rounded({**figures, "seconds": seconds, "structure": structure.to_dict()})}


def rounded(value: Any) -> Any:
    """Floats at five significant digits, so that the data stay small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read(path: Path) -> list[dict[str, Any]]:
    """The finished regimes, in the generator's order."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sorted((json.loads(line) for line in lines), key=lambda line: line["index"])


def sweep(path: Path, seed: int, per_family: int, workers: int) -> None:
    """Run what is missing, one line a regime as it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {line["index"] for line in read(path)}
    missing = [regime for regime in regimes(seed, per_family) if regime.index not in done]
    began = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool, path.open("a", encoding="utf-8") as file:
        jobs = [pool.submit(run, regime) for regime in missing]
        try:
            for count, job in enumerate(as_completed(jobs), 1):
                file.write(json.dumps(job.result()) + "\n")
                file.flush()
                left = (time.perf_counter() - began) / count * (len(missing) - count)
                print(f"{count}/{len(missing)}, {left / 60:.1f} minutes left", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def planted(line: dict[str, Any]) -> kyomei.Planted:
    """The law of a finished regime."""
    return kyomei.Planted(seed=line["index"], **line["law"])


def usual_active(line: dict[str, Any]) -> float:
    """Planted features in the usual row."""
    _, h = planted(line).sample(ACTIVE_ROWS, seed=line["index"] + 2)
    return float(h.crow_indices().diff().double().median())


def left_out(table: np.ndarray, truth: np.ndarray, family: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Predictions for each family by a model that was fitted on the others."""
    predicted = np.empty(len(truth))
    for name in FAMILIES:
        here = family == name
        predicted[here] = calibration.fit(table[~here], truth[~here], names).predict(table[here])
    return predicted


def random_tenths(table: np.ndarray, truth: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Predictions for each tenth of the regimes by a model that was fitted on the others, all families among them."""
    predicted, part = np.empty(len(truth)), np.random.default_rng(0).permutation(len(truth)) % 10
    for number in range(10):
        here = part == number
        predicted[here] = calibration.fit(table[~here], truth[~here], names).predict(table[here])
    return predicted


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counted half; NaN if there is only one kind."""
    high, low = score[positive], score[~positive]
    if not len(high) or not len(low):
        return math.nan
    return float(np.mean((high[:, None] > low).astype(float) + 0.5 * (high[:, None] == low)))


@dataclasses.dataclass(frozen=True)
class Data:
    """The sweep as arrays."""

    table: np.ndarray
    truth: np.ndarray
    family: np.ndarray
    names: tuple[str, ...]
    number: np.ndarray
    """Planted features ÷ their estimated number."""
    active: np.ndarray
    """Planted features in the usual row ÷ their estimated number."""
    least_explained: np.ndarray
    structured: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Data:
        lines = read(path)
        found = [Structure.from_dict(line["structure"]) for line in lines]
        values = [calibration.statistics(structure) for structure in found]
        names = tuple(values[0])
        return cls(
            np.array([[row[name] for name in names] for row in values]),
            np.array([line["frr_0.9"] for line in lines]),
            np.array([line["family"] for line in lines]),
            names,
            np.array([planted(line).n_features for line in lines]) / [max(1, calibration.number_of_features(s)) for s in found],
            np.array([usual_active(line) for line in lines]) / [calibration.number_active(s) for s in found],
            np.array([calibration.least_explained(s) for s in found]),
            np.array([has_structure(s) for s in found]),
        )

    def factors(self, predicted: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> tuple[Factors, Factors]:
        """By which factors the estimates are off, over chosen regimes in which `check` sees structure."""
        kept = np.flatnonzero(self.structured)
        kept = kept[np.isin(kept, np.arange(len(self.truth))[chosen])]
        return (
            Factors.fit(self.number[kept].tolist(), predicted[kept].tolist(), calibration.NUMBER_CUTS),
            Factors.fit(self.active[kept].tolist(), self.least_explained[kept].tolist(), calibration.ACTIVE_CUTS),
        )

    def singles(self) -> dict[str, np.ndarray]:
        """Left-out predictions of every statistic alone, through the same kind of fit."""
        columns = enumerate(self.names)
        return {name: left_out(self.table[:, [i]], self.truth, self.family, (name,)) for i, name in columns}


def fit(path: Path, out: Path) -> None:
    """Fit on everything, with residuals from left-out families, and write the calibrator."""
    data = Data.load(path)
    residuals = calibration.residual_quantiles(left_out(data.table, data.truth, data.family, data.names), data.truth)
    fitted = calibration.fit(data.table, data.truth, data.names)
    number, active = data.factors(left_out(data.table, data.truth, data.family, data.names))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    promises = {"residuals": residuals, "number": number, "active": active}
    fitted = dataclasses.replace(fitted, **promises, data_sha256=sha256, num_regimes=len(data.truth))
    out.write_text(fitted.to_json(), encoding="utf-8")
    print(f"{len(data.truth)} regimes, {np.mean(data.truth >= 0.9):.0%} with FRR(0.9) >= 0.9: {out}")


def table(path: Path) -> None:
    """AUC and mean absolute error on left-out families, beside the best single statistic."""
    data = Data.load(path)
    good = data.truth >= 0.9
    model, singles = left_out(data.table, data.truth, data.family, data.names), data.singles()
    print("| statistics | AUC | mean absolute error |\n|---|---|---|")
    for name, predicted in {"all": model, **singles}.items():
        print(f"| {name} | {auc(predicted, good):.3f} | {np.abs(predicted - data.truth).mean():.3f} |")
    known = random_tenths(data.table, data.truth, data.names)
    print(f"| all, random tenths left out | {auc(known, good):.3f} | {np.abs(known - data.truth).mean():.3f} |")
    best = min(singles, key=lambda name: float(np.abs(singles[name] - data.truth).mean()))
    print(f"\n| left out | regimes | FRR(0.9) >= 0.9 | mean FRR | expected | AUC | error | error of {best} | in the interval |")
    print("|---|---|---|---|---|---|---|---|---|")
    quantiles = np.array(calibration.residual_quantiles(model, data.truth))[np.searchsorted(calibration.GROUPS, model)]
    inside = (data.truth >= model + quantiles[:, 0] - 1e-9) & (data.truth <= model + quantiles[:, 1] + 1e-9)
    for name in (*FAMILIES, "all"):
        here = (data.family == name) | (name == "all")
        errors = [np.abs(predicted - data.truth)[here].mean() for predicted in (model, singles[best])]
        figures = (data.truth[here].mean(), model[here].mean(), auc(model[here], good[here]), *errors, inside[here].mean())
        shown = " | ".join("–" if math.isnan(figure) else f"{figure:.3f}" for figure in figures)
        print(f"| {name} | {here.sum()} | {good[here].sum()} | {shown} |")
    print("\n| left out | regimes with structure | number of features: in its interval | active in the usual row: in its |")
    print("|---|---|---|---|")
    held = {name: held_by_others(data, model, name) for name in FAMILIES}
    for name, (count, number, active) in {**held, "all": np.sum(list(held.values()), axis=0)}.items():
        print(f"| {name} | {count:.0f} | {number / count:.3f} | {active / count:.3f} |")


def held_by_others(data: Data, predicted: np.ndarray, family: str) -> tuple[int, int, int]:
    """Regimes of a family with structure, and how many of them the intervals hold that were fitted on the other families."""
    here = data.structured & (data.family == family)
    number, active = data.factors(predicted, data.family != family)
    inside = []
    for factors, ratio, at in ((number, data.number, predicted), (active, data.active, data.least_explained)):
        bounds = [factors.interval(1.0, value) for value in at[here]]
        inside.append(sum(low <= value <= high for (low, high), value in zip(bounds, ratio[here], strict=True)))
    return int(here.sum()), inside[0], inside[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["sweep", "fit", "table"], default="table")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--per-family", type=int, default=REGIMES_PER_FAMILY)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.part == "sweep":
        sweep(args.data, args.seed, args.per_family, args.workers)
    elif args.part == "fit":
        fit(args.data, Path(calibration.__file__).with_name(calibration.FILE))
    else:
        table(args.data)


if __name__ == "__main__":
    main()
