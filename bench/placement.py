"""What the last fit of the decoders holds in memory, on one process and on each of several.

    python bench/placement.py --width 8192                                     one process
    torchrun --standalone --nproc-per-node 4 bench/placement.py --width 8192   one of four

Latents and rows are random, 64 latents are active in a row. The figure is the largest resident memory of the fit beyond what
was resident before it, so that latents and rows are left out; seconds are those of one rank's processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

import numpy as np
import torch
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning import least_squares
from kyomei.learning.anchoring import Cone
from kyomei.learning.fit import refit
from kyomei.learning.mesh import Mesh, processes
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import TensorRows

DIM, L0 = 64, 64


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def made(width: int, num_rows: int) -> tuple[SparseAutoencoder, TensorRows, Cone]:
    generator = torch.Generator().manual_seed(0)
    encoder = normalize(torch.randn(width, DIM, generator=generator), dim=1)
    x = torch.randn(num_rows, DIM, generator=generator)
    scores = (x[:512] @ encoder.T).flatten()
    threshold = float(scores.topk(512 * L0).values[-1])
    rows = TensorRows(x)
    cone = Cone.around(encoder[: width // 2], 0.9, Whitening.fit(rows))
    return SparseAutoencoder(encoder, encoder.clone(), torch.full((width,), threshold), torch.zeros(DIM)), rows, cone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--way", choices=("cheaper", "pairs", "codes"), default="cheaper")
    asked = parser.parse_args()
    least_squares.GRAM_ADVANTAGE = {"pairs": 1e9, "codes": 0.0}.get(asked.way, least_squares.GRAM_ADVANTAGE)
    torch.set_num_threads(1)
    mesh = Mesh.join(processes(), 1)
    sae, rows, cone = made(asked.width, asked.rows)
    refit(*made(256, asked.rows), mesh)  # what libraries take when they are first used
    before, most, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    fitted = refit(sae, rows, cone, mesh)
    seconds = time.process_time() - began
    stop.set()
    watcher.join()
    taken = max(mesh.tell(most[0] - before))
    digest = float(np.abs(fitted.decoder.numpy()).sum())
    if mesh.leads:
        found = {
            "ranks": mesh.size,
            "way": asked.way,
            "width": asked.width,
            "bytes": taken,
            "seconds": round(seconds, 1),
            "decoder": digest,
        }
        print(json.dumps(found), flush=True)
    mesh.leave()


if __name__ == "__main__":
    sys.exit(main())
