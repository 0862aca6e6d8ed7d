"""What placement, the comparison of two trainings and the last fit hold at once, on one process and on each of several.

    python bench/placement.py --work fit --width 8192                                     one process
    torchrun --standalone --nproc-per-node 4 bench/placement.py --work fit --width 8192   one of four

Latents and rows are random, 64 latents are active in a row. Dictionaries, directions and rows lie in files. The figure is the
largest number of bytes of tensors and arrays that are alive at once, the rank's share of the dictionaries included, of the rank
that has most; seconds are those of one rank's processor, and the counting is part of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from kyomei.config import Recipe
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.codes import encode_rows
from kyomei.evidence.kinship import Kinship
from kyomei.evidence.reproduction import match
from kyomei.learning import least_squares
from kyomei.learning.anchoring import Cone
from kyomei.learning.directions import Directions
from kyomei.learning.fit import refit
from kyomei.learning.mesh import Mesh, processes
from kyomei.learning.placement import resonant_plan
from kyomei.learning.spaces import Normalisation, Whitening
from kyomei.learning.spread import Spread
from kyomei.source.rows import Rows, open_rows
from live_bytes import LiveBytes

DIM, L0 = 64, 64


def make(folder: Path, width: int, num_rows: int) -> None:
    """Two dictionaries, directions and rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, DIM, generator=generator)
    np.save(folder / "rows.npy", x.numpy())
    units = normalize(torch.randn(width, DIM, generator=generator), dim=1)
    for name in ("first", "second"):
        rows = normalize(units + 0.03 * torch.randn(width, DIM, generator=generator), dim=1)
        threshold = float((x[:512] @ rows.T).flatten().topk(512 * L0).values[-1])
        SparseAutoencoder(rows, rows.clone(), torch.full((width,), threshold), torch.zeros(DIM)).save(folder / name)
    found = units[: width // 4]
    each = [torch.full((len(found),), 1e-3) for _ in range(3)]
    whitening = Whitening.fit(open_rows(x))
    known = (len(found), (len(found), len(found)), whitening)
    vectors, encoders, whitened, candidates = (found.clone() for _ in range(4))
    support = torch.ones(len(found), dtype=torch.int64)
    directions = Directions(vectors, encoders, whitened, each[0], each[1], support, each[2], candidates, *known)
    directions.save(folder / "directions.safetensors")


def place(folder: Path, rows: Rows, mesh: Mesh, width: int) -> float:
    directions = Directions.load(folder / "directions.safetensors")
    recipe = Recipe().with_values({"dictionary.width": width, "dictionary.l0": L0})
    warm = Spread.load(folder / "first", mesh)
    plan = resonant_plan(rows, recipe, directions, 0, Normalisation.measure(rows), warm, mesh)
    return float(plan.latents.decoder.abs().sum())


def compare(folder: Path, rows: Rows, mesh: Mesh, width: int) -> float:
    first, second = (Spread.load(folder / name, mesh) for name in ("first", "second"))
    codes = [encode_rows(sae, rows, np.arange(rows.num_rows)) for sae in (first, second)]
    kinship = Kinship.of(*codes, mesh)
    found = match(first, second, Whitening.fit(rows), *codes)
    return float(found.joint.sum() + found.correlation.sum() + kinship.split.sum() + kinship.merged.sum()) / mesh.size


def fit(folder: Path, rows: Rows, mesh: Mesh, width: int) -> float:
    sae = Spread.load(folder / "first", mesh)
    return float(refit(sae, rows, cone_of(folder, sae.here)).decoder.abs().sum())


def cone_of(folder: Path, here: range) -> Cone:
    """That of a rank's latents; the search's directions, of which there are as many for any width, live no longer than this."""
    directions = Directions.load(folder / "directions.safetensors")
    return Cone.around(directions.whitened[here.start : here.stop].clone(), 0.9, directions.whitening)


WORK: dict[str, Callable[[Path, Rows, Mesh, int], float]] = {"placement": place, "comparison": compare, "fit": fit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORK, nargs="+", default=list(WORK))
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--way", choices=("cheaper", "pairs", "codes"), default="cheaper", help="of fitting decoders")
    asked = parser.parse_args()
    least_squares.GRAM_ADVANTAGE = {"pairs": 1e9, "codes": 0.0}.get(asked.way, least_squares.GRAM_ADVANTAGE)
    torch.set_num_threads(1)
    mesh = Mesh.join(1, processes())
    list(measured(512, 256, asked.work, mesh))  # what libraries take when they are first used
    for found in measured(asked.width, asked.rows, asked.work, mesh):
        if mesh.leads:
            print(json.dumps({**found, "way": asked.way}), flush=True)
    mesh.leave()


def measured(width: int, num_rows: int, asked: Sequence[str], mesh: Mesh) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as own:
        folder = Path(mesh.tell(own)[0])
        mesh.first(lambda: make(folder, width, num_rows))
        rows = open_rows(folder / "rows.npy")
        for name in asked:
            mesh.wait()
            began = time.process_time()
            with LiveBytes() as live:
                digest = WORK[name](folder, rows, mesh, width)
            seconds, most, total = time.process_time() - began, max(mesh.tell(live.most)), sum(mesh.tell(digest))
            found = {"work": name, "ranks": mesh.size, "width": width, "rows": num_rows, "bytes": most}
            yield {**found, "seconds": round(seconds, 1), "digest": total}
        mesh.wait()


if __name__ == "__main__":
    sys.exit(main())
