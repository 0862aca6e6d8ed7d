"""What a smaller store of activations costs: the rows themselves, and a dictionary that is trained on them.

    python bench/storage.py                                      the embedded model, MLP and residual stream of its middle layer
    python bench/storage.py --model package:NAME --sites PATH …  another model

Rows are harvested once in each dtype, from the same windows. Dictionaries are TopK of one seed. Beside them stands one of
another seed on the float32 rows, which is what a difference has to be compared with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import kyomei
from kyomei.config import Recipe
from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.harvest import harvest
from kyomei.source.shard_files import bytes_of_row
from kyomei.source.shards import ShardFolder
from kyomei.stages.harvest import open_source
from kyomei.stages.progress import Reporter

DTYPES = ("float32", "float16", "bfloat16", "int8")
UNSEEN_ROWS = 4096


def trained(rows: ShardFolder, seed: int, steps: int) -> SparseAutoencoder:
    settings = {"mechanism.name": "topk", "mechanism.k": 16, "dictionary.width": 1024, "train.steps": steps}
    return kyomei.fit(rows, Recipe().with_values(settings), seed=seed)


def fvu(sae: SparseAutoencoder, x: torch.Tensor) -> float:
    return float((sae(x) - x).square().sum() / (x - x.mean(dim=0)).square().sum())


def matched(a: SparseAutoencoder, b: SparseAutoencoder) -> float:
    """Share of the first one's latents with a decoder of the other's at a cosine of at least 0.9."""
    own, others = (torch.nn.functional.normalize(sae.decoder, dim=1) for sae in (a, b))
    return float((nearest(own, others).cosine >= 0.9).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--sites", nargs="+", default=["model.layers.2.mlp", "model.layers.2"])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    values = {"source.model": asked.model, "source.sites": asked.sites, "source.num_tokens": asked.tokens, "source.replicas": 2}
    recipe = Recipe().with_values(values)
    source = open_source(recipe, Reporter())
    print("| site | stored as | bytes a row | error | of the worst coordinate | FVU, unseen float32 rows | latents matched |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        stores = {}
        for dtype in DTYPES:
            own = recipe.source.model_copy(update={"dtype": dtype})
            for part in ("replica-0", "evidence"):
                for site, rows in harvest(source.model, source.tokens[part], Path(folder) / dtype / part, own).items():
                    stores[dtype, part, site] = rows
        for site in asked.sites:
            whole = stores["float32", "replica-0", site]
            exact = whole.read(np.arange(whole.num_rows))
            unseen = stores["float32", "evidence", site].read(np.arange(UNSEEN_ROWS))
            first = trained(whole, 0, asked.steps)
            other = trained(whole, 1, asked.steps)
            for dtype in DTYPES:
                rows = stores[dtype, "replica-0", site]
                error = rows.read(np.arange(rows.num_rows)) - exact
                lost = error.square().sum(dim=0) / (exact - exact.mean(dim=0)).square().sum(dim=0)
                share = float(error.square().sum() / (exact - exact.mean(dim=0)).square().sum())
                sae = first if dtype == "float32" else trained(rows, 0, asked.steps)
                size = bytes_of_row(rows.dtype, rows.dim)
                figures = f"{share:.1e} | {float(lost.max()):.1e} | {fvu(sae, unseen):.4f} | {matched(first, sae):.3f}"
                print(f"| {site} | {dtype} | {size:,} | {figures} |", flush=True)
            print(f"| {site} | float32, another seed | | | | {fvu(other, unseen):.4f} | {matched(first, other):.3f} |")


if __name__ == "__main__":
    main()
