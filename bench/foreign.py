"""Certificates for dictionaries from elsewhere, where the truth is known: planted data, SAEs of usual kinds in SAELens' files.

python bench/foreign.py [--seeds 3] [--sets imbalanced uniform] [--mechanisms topk batchtopk]

Each SAE is trained from a random start on rows of its own, written as SAELens does and read back. Three replicas of the default
recipe, at its width and L0, on rows of their own, test it by the rule of `kyomei certify --sae`. "True" is within cosine 0.9 of
a planted feature. The last column is the same for an SAE that was trained on Gaussian rows: all that is certified of it is an
error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

import kyomei
from kyomei.config import Recipe
from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.formats import write
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.reproduction import Verdicts, certify_latents
from kyomei.learning.fit import fit
from kyomei.source.rows import Rows, TensorRows

SETS: dict[str, dict[str, Any]] = {
    "imbalanced": {"n_features": 128, "dim": 42, "active": (3, 20)},
    "uniform": {"n_features": 200, "dim": 64, "active": 4, "coefficient": "uniform"},
}
ROWS, REPLICAS, TRUE = 30_000, 3, 0.9
TRAINING = {"train.steps": 3000, "train.batch_rows": 512}
SEARCH = {"resonance.neurons": 1024, "resonance.steps": 12, "resonance.batch_rows": 8192}


def from_elsewhere(rows: Rows, mechanism: str, width: int, k: int, seed: int) -> SparseAutoencoder:
    """An SAE of a usual kind, through SAELens' files."""
    settings = {"mechanism": {"name": mechanism, "start": "random"}, "dictionary.width": width, "dictionary.l0": k, **TRAINING}
    with tempfile.TemporaryDirectory() as folder:
        write(fit(rows, Recipe().with_values(settings), seed=seed), Path(folder), "saelens")
        return kyomei.load(folder)


def measure(name: str, mechanism: str, seed: int, *, training: dict[str, Any] | None = None) -> dict[str, float]:
    """Figures of one SAE."""
    planted = kyomei.Planted(seed=seed, **SETS[name])
    parts = [TensorRows(planted.sample(ROWS, seed=100 * seed + i + 1)[0]) for i in range(REPLICAS + 2)]
    unseen, own_rows = parts[REPLICAS], parts[REPLICAS + 1]
    width, k = 2 * planted.n_features, 3 if name == "imbalanced" else 4
    foreign = from_elsewhere(own_rows, mechanism, width, k, 10 * seed + 7)
    empty = from_elsewhere(GAUSSIAN.rows(own_rows, 1000 + seed), mechanism, width, k, 10 * seed + 8)
    kept = fidelity(foreign, unseen)
    recipe = Recipe().with_values(
        {"dictionary.width": width, "dictionary.l0": kept.l0_mean, **TRAINING, **SEARCH, **(training or {})}
    )
    replicas = [fit(parts[i], recipe, seed=10 * seed + i) for i in range(REPLICAS)]
    null_rows = [GAUSSIAN.rows(part, 1000 + 10 * seed + i) for i, part in enumerate((*parts[:2], unseen))]
    for_null = GAUSSIAN.recipe(recipe)
    null = fit(null_rows[0], for_null, seed=10 * seed + 5), fit(null_rows[1], for_null, seed=10 * seed + 6)

    def verdicts(sae: SparseAutoencoder) -> Verdicts:
        return certify_latents([sae, *replicas], unseen, null, null_rows[2])

    found = verdicts(foreign)
    certified = torch.from_numpy(found.mask("certified"))
    true = nearest(normalize(foreign.decoder, dim=1), planted.features).cosine >= TRUE
    return {
        "l0": kept.l0_mean,
        "fvu": kept.fvu,
        "certified": float(certified.double().mean()),
        "certified that are true": float(true[certified].double().mean()),
        "true that are certified": float(certified[true].double().mean()),
        "null passes": found.null_false_positives,
        "certified of Gaussian rows": verdicts(empty).certified_share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--mechanisms", nargs="*", default=["topk", "batchtopk", "jumprelu"])
    asked = parser.parse_args()
    for name in asked.sets:
        for mechanism in asked.mechanisms:
            for seed in range(asked.seeds):
                figures = measure(name, mechanism, seed)
                print(
                    f"| {name} | {mechanism} | {seed} | " + " | ".join(f"{v:.3f}" for v in figures.values()) + " |", flush=True
                )


if __name__ == "__main__":
    main()
