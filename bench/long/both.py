"""Reproduced and well reconstructing at once? Dictionaries that start from resonance beside ones that start at random.

    kyomei harvest runs/embedded-1 --model embedded --site model.layers.1.mlp --tokens 800000 --set source.context=256
    python bench/long/both.py runs/embedded-1 --k 32

Three replicas that differ in documents and seed; the rule is that of `kyomei certify`, its null the same mechanism on Gaussian
rows. Directions are kept in --cache and read back.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kyomei.config import Recipe, ResonanceRecipe
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.certificate import dense_part
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import cross_entropy_recovered, fidelity
from kyomei.evidence.reproduction import certify_latents
from kyomei.evidence.survey import survey
from kyomei.learning.directions import Directions
from kyomei.learning.fit import fit
from kyomei.learning.resonance import resonate
from kyomei.runs import Run
from kyomei.source.rows import Rows
from kyomei.source.text import Tokens
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import activations, site_of


def found_directions(rows: Rows, seed: int, path: Path, recipe: ResonanceRecipe) -> Directions:
    if not path.exists():
        began = time.perf_counter()
        resonate(rows, seed=seed, recipe=recipe).save(path)
        print(f"  {path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return Directions.load(path)


def trained(
    rows: list[Rows], recipe: Recipe, directions: Sequence[Directions | None], folder: Path
) -> tuple[list[SparseAutoencoder], float]:
    """Dictionaries of the replicas, kept in a folder and read back, and the mean time of those that were trained now."""
    began, saes, num_trained = time.perf_counter(), [], 0
    for i, (part, found) in enumerate(zip(rows, directions, strict=True)):
        own = folder / str(i)
        if not own.exists():
            fit(part, recipe, seed=i, directions=found).save(own)
            num_trained += 1
        saes.append(load(own))
    return saes, (time.perf_counter() - began) / num_trained if num_trained else float("nan")


def reconstruction(saes: list[SparseAutoencoder], evidence: Rows) -> dict[str, list[float]]:
    """Of each replica."""
    kept = [fidelity(sae, evidence) for sae in saes]
    return {"fvu": [f.fvu for f in kept], "l0": [f.l0_mean for f in kept], "dead": [f.dead_share for f in kept]}


def figures(saes: list[SparseAutoencoder], null: list[SparseAutoencoder], evidence: Rows, null_rows: Rows) -> dict[str, Any]:
    verdicts = certify_latents(saes, evidence, (null[0], null[1]), null_rows)
    mask = verdicts.mask("certified")
    explained = survey(saes[:1], evidence, num_explained=1)[0].explained.clip(min=0)
    return {
        "certified": float(mask.mean()),
        "certified_explained": float(explained[mask].sum() / explained.sum()),
        "null_false_positives": verdicts.null_false_positives,
        "rule": verdicts.rule.to_dict(),
        "dense": dense_part(verdicts, explained),
        "sparse_explained_certified": float(explained[mask & ~verdicts.dense].sum() / explained[~verdicts.dense].sum()),
    }


def recovered(run: Run, saes: list[SparseAutoencoder]) -> list[float] | None:
    """Cross-entropy that each replica recovers on unseen text; none for a model that predicts no tokens."""
    model = load_model(run.recipe)
    if not model.is_causal:
        return None
    text, site, special = Tokens.load(run.path("tokens/evidence")), site_of(run), model.special_ids
    return [cross_entropy_recovered(model, text, site, sae, max_windows=256, special_ids=special).recovered for sae in saes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--frequencies", type=float, nargs="*", default=[2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--null-neurons", type=int, default=512)
    parser.add_argument("--methods", nargs="*", default=["topk from resonance", "topk", "gba from resonance"])
    parser.add_argument("--frontier", nargs="*", default=[], help="methods whose replicas are trained without a null")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, cache = Run.open(Path(args.run)), args.cache or Path(args.run) / "both"
    cache.mkdir(exist_ok=True)
    search = ResonanceRecipe(
        frequencies=tuple(args.frequencies), steps=8, rounds=args.rounds, min_stability=0.5, enough=args.width
    )
    null_search = search.model_copy(update={"neurons": args.null_neurons, "rounds": 1, "min_stability": -1.0})
    rows, evidence = [activations(run, f"replica-{i}") for i in range(3)], activations(run, "evidence")
    null_rows = [GAUSSIAN.rows(part, 1000 + i) for i, part in enumerate([*rows[:2], evidence])]
    found = [found_directions(part, i, cache / f"directions-{i}.safetensors", search) for i, part in enumerate(rows)]
    null_found = [
        found_directions(part, i, cache / f"null-directions-{i}.safetensors", null_search)
        for i, part in enumerate(null_rows[:2])
    ]
    base = {"dictionary.width": args.width, "train.steps": args.steps, "train.lr": args.lr, "mechanism.k": args.k}
    recipes = {
        "topk from resonance": {"mechanism.name": "topk", "mechanism.start": "resonance"},
        "topk": {"mechanism.name": "topk"},
        "gba from resonance": {"mechanism.name": "gba", "dictionary.l0": args.k},
    }
    for name in [*args.methods, *args.frontier]:
        recipe = Recipe().with_values({**base, **recipes[name]})
        resonant = recipe.mechanism.from_resonance
        into = cache / f"{name.replace(' ', '-')}-{args.k}-{args.steps}"
        saes, seconds = trained(rows, recipe, found if resonant else [None] * 3, into / "real")
        record = {"run": args.run, "method": name, **base, "seconds": seconds, "cross_entropy": recovered(run, saes)}
        record |= reconstruction(saes, evidence)
        if name not in args.frontier:
            null, _ = trained(null_rows[:2], recipe, null_found if resonant else [None] * 2, into / "null")
            record |= figures(saes, null, evidence, null_rows[2])
        print(json.dumps(record), flush=True)
        with open(cache / "figures.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
