"""How far the figures of a dictionary move on other documents of its site, and on other sites: what `check_site` tells apart.

python bench/site.py
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import kyomei
from kyomei.dictionary.figures import SampleFigures
from kyomei.stages.harvest import harvested_run
from kyomei.stages.progress import Reporter

SITES = tuple(f"model.layers.{layer}{part}" for part in (".mlp", "", ".self_attn") for layer in range(4))
MECHANISMS = ("topk", "l1")


def ratios(figures: SampleFigures, stored: SampleFigures) -> tuple[float, float, float]:
    return figures.median_norm / stored.median_norm, figures.l0 / stored.l0, figures.fvu / stored.fvu


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = kyomei.Recipe().with_values({"source.sites": list(SITES), "source.num_tokens": 120_000})
    found: dict[str, list[tuple[float, float, float]]] = {"other documents": [], "twice as large": [], "another site": []}
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        run = harvested_run(Path(folder) / "run", recipe, Reporter())
        for name in MECHANISMS:
            for site in SITES:
                settings = {"mechanism": {"name": name, "start": "random"}, "dictionary.width": 512, "train.steps": 400}
                sae = kyomei.fit(run.path(f"activations/replica-0/{site}"), settings)
                for part in ("replica-1", "replica-2", "evidence"):
                    seen = kyomei.check_site(sae, run.path(f"activations/{part}/{site}"))
                    assert seen.stored is not None and seen.verdict == "same", (name, site, part, seen)
                    found["other documents"].append(ratios(seen.here, seen.stored))
                rows = kyomei.open_rows(run.path(f"activations/evidence/{site}")).read(np.arange(8000))
                twice = kyomei.check_site(sae, 2 * rows)
                assert twice.stored is not None and twice.verdict == "elsewhere", (name, site)
                found["twice as large"].append(ratios(twice.here, twice.stored))
                for other in set(SITES) - {site}:
                    rows = kyomei.open_rows(run.path(f"activations/evidence/{other}")).read(np.arange(8000))
                    seen = kyomei.check_site(sae, rows)
                    found["another site"].append(ratios(seen.here, seen.stored or seen.here))
                    if seen.verdict != "elsewhere":
                        unnoticed.append(f"{name}: {site} on {other}")
                print(name, site, file=sys.stderr, flush=True)
    for what, figures in found.items():
        low, high = np.min(figures, axis=0), np.max(figures, axis=0)
        spans = ", ".join(f"{n} x{a:.2f} to x{b:.2f}" for n, a, b in zip(("norm", "L0", "FVU"), low, high, strict=True))
        print(f"{what} ({len(figures)}): {spans}")
    print(f"not told apart by figures alone, {len(unnoticed)}: " + "; ".join(sorted(unnoticed)))


if __name__ == "__main__":
    main()
