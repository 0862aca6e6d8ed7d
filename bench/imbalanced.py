"""The paper's imbalanced set: resonance, paper GBA at right and wrong frequencies, and TopK, each with its spread over seeds.

python bench/imbalanced.py --part resonance --seeds 10
python bench/imbalanced.py --part trained --seeds 3 --workers 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import kyomei

ROWS = 50_000
COMMON = {"dictionary": {"width": 256}, "train": {"batch_rows": 512, "decay_share": 0.2}}
TRAINED: dict[str, dict[str, Any]] = {
    "GBA, right single frequency (0.09)": {"name": "ba", "highest_frequency": 0.09, "lr": 3e-3, "steps": 40_000},
    "GBA, full range (0.5 → 1e-3, K = 10)": {
        "name": "gba",
        "highest_frequency": 0.5,
        "lowest_frequency": 1e-3,
        "lr": 1e-2,
        "steps": 40_000,
    },
    "GBA, wrong: 0.5 only": {"name": "ba", "highest_frequency": 0.5, "lr": 3e-3, "steps": 16_000},
    "GBA, wrong: 1e-3 only": {
        "name": "ba",
        "highest_frequency": 1e-3,
        "lowest_frequency": 1e-3,
        "lr": 3e-3,
        "steps": 24_000,
    },
    "TopK, K = 3": {"name": "topk", "k": 3, "lr": 3e-3, "steps": 12_000},
    "TopK, K = 12": {"name": "topk", "k": 12, "lr": 3e-3, "steps": 16_000},
    "TopK, K = 20": {"name": "topk", "k": 20, "lr": 3e-3, "steps": 12_000},
    "TopK, K = 30": {"name": "topk", "k": 30, "lr": 3e-3, "steps": 12_000},
}


def planted_rows(seed: int) -> tuple[kyomei.Planted, torch.Tensor]:
    planted = kyomei.Planted(n_features=128, dim=42, active=(3, 20), seed=seed)
    return planted, planted.sample(ROWS, seed=seed + 1)[0]


def run_resonance(seed: int) -> dict[str, float]:
    planted, x = planted_rows(seed)
    began = time.perf_counter()
    directions = kyomei.resonate(x, seed=seed)
    seconds = time.perf_counter() - began
    found = kyomei.recovery(directions.vectors, planted.features)
    null = kyomei.recovery(torch.randn(len(directions), 42, generator=torch.Generator().manual_seed(seed)), planted.features)
    return {**found.to_dict(), "n_features_estimated": directions.n_features, "seconds": seconds, "null_frr_0.8": null.frr(0.8)}


def run_trained(job: tuple[str, int, int]) -> dict[str, Any]:
    name, seed, steps = job
    torch.set_num_threads(1)
    planted, x = planted_rows(seed)
    mechanism = {key: value for key, value in TRAINED[name].items() if key != "steps"}
    train = {**COMMON["train"], "steps": steps, "lr": mechanism.pop("lr")}
    recipe = kyomei.Recipe.parse({**COMMON, "train": train, "mechanism": {**mechanism, "start": "random"}})
    began = time.perf_counter()
    sae = kyomei.fit(x, recipe, seed=seed)
    figures = kyomei.recovery(sae.decoder, planted.features).to_dict()
    z = sae.encode(x[:4096])
    l0 = float((z > 0).sum(dim=1).double().mean())
    return {"name": name, "seed": seed, "steps": steps, "seconds": time.perf_counter() - began, "l0": l0, **figures}


def halves(steps: int) -> tuple[int, int]:
    return steps // 2, steps


def spread(values: list[float], scale: float = 100) -> str:
    low, high = min(values) * scale, max(values) * scale
    return f"{fmean(values) * scale:.1f} ({low:.1f}–{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["resonance", "trained"], default="resonance")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="instead of each setting's own number")
    parser.add_argument("--only", default="", help="words that a setting's name must contain")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for every single run")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    if args.part == "resonance":
        torch.set_num_threads(2)
        print(
            "| seed | directions | n̂ | FRR 0.8 | FRR 0.9 | within 0.9 | null FRR 0.8 | s |\n|---|---|---|---|---|---|---|---|"
        )
        for seed in range(args.seeds):
            r = run_resonance(seed)
            results.append({"seed": seed, **r})
            shares = " | ".join(f"{100 * r[k]:.1f}" for k in ("frr_0.8", "frr_0.9", "monosemantic_0.9", "null_frr_0.8"))
            print(f"| {seed} | {r['n_vectors']} | {r['n_features_estimated']} | {shares} | {r['seconds']:.1f} |", flush=True)
        mean = " | ".join(f"{100 * fmean(r[k] for r in results):.1f}" for k in ("frr_0.8", "frr_0.9", "monosemantic_0.9"))
        print(
            f"| mean | {fmean(r['n_vectors'] for r in results):.1f} | | {mean} | | {fmean(r['seconds'] for r in results):.1f} |"
        )
    else:
        settings = [name for name in TRAINED if args.only in name]
        # Half the steps beside the whole: where the two agree, training has reached its plateau.
        lengths = {name: args.steps or TRAINED[name]["steps"] for name in settings}
        jobs = [(name, seed, steps) for name in settings for seed in range(args.seeds) for steps in halves(lengths[name])]
        with ProcessPoolExecutor(args.workers) as pool:
            for result in pool.map(run_trained, jobs):
                results.append(result)
                print(
                    json.dumps(
                        {
                            k: result[k]
                            for k in ("name", "seed", "steps", "l0", "frr_0.8", "frr_0.9", "monosemantic_0.9", "seconds")
                        }
                    ),
                    file=sys.stderr,
                )
        print("| setting | steps | L0 | FRR 0.8 | FRR 0.9 | within 0.9 | s |\n|---|---|---|---|---|---|---|")
        for name in settings:
            for steps in halves(lengths[name]):
                rows = [r for r in results if r["name"] == name and r["steps"] == steps]
                shares = " | ".join(spread([r[k] for r in rows]) for k in ("frr_0.8", "frr_0.9", "monosemantic_0.9"))
                l0, seconds = fmean(r["l0"] for r in rows), fmean(r["seconds"] for r in rows)
                print(f"| {name} | {steps:,} | {l0:.1f} | {shares} | {seconds:.0f} |")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
