"""One rank of a training on a mesh: `torchrun … mesh_rank.py OUT DATA FEATURES MECHANISM DTYPE STEPS [FOLDER]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from kyomei.config import TrainRecipe
from kyomei.dictionary.mechanisms import (
    GBA,
    L1,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Mechanism,
    TopK,
    geometric_targets,
)
from kyomei.learning.mesh import Mesh
from kyomei.learning.start import Start, random_start
from kyomei.learning.trainer import train
from kyomei.runs import write_atomic
from kyomei.source.shards import TensorRows

WIDTH, DIM, ROWS = 64, 16, 4000


def gba() -> Mechanism:
    targets, groups = geometric_targets(WIDTH, 4, 0.3, 0.02)
    # One group shares its bias, which every rank has to know; it is spread over the ranks.
    order = torch.arange(WIDTH).view(4, 16).T.flatten()
    targets, groups = targets[order], groups[order]
    return GBA(targets, groups, gamma_down=0.05, adapt_every=3, shared=groups == 1)


MAKERS: dict[str, Callable[[], Mechanism]] = {
    "gba": gba,
    "topk": lambda: TopK(WIDTH, 4, auxk=0.1, dead_after=500),
    "batchtopk": lambda: BatchTopK(WIDTH, 4, auxk=0.1, dead_after=500),
    "matryoshka": lambda: MatryoshkaBatchTopK(WIDTH, 4, prefixes=(0.25, 0.6, 1.0)),
    "l1": lambda: L1(WIDTH, 0.02),
    "jumprelu": lambda: JumpReLU(WIDTH, 1e-3, bandwidth=0.05, threshold=0.05),
    "gated": lambda: Gated(WIDTH, 0.02),
}


def main() -> None:
    out, data, features, name, dtype, steps, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    mesh = Mesh.join(int(data), int(features))
    generator = torch.Generator().manual_seed(0)
    planted = torch.nn.functional.normalize(torch.randn(40, DIM, generator=generator, dtype=torch.float64), dim=1)
    active = torch.rand(ROWS, 40, generator=generator).argsort(dim=1) < 3
    x = (active.double() @ planted + 0.3).to(getattr(torch, dtype))
    start = random_start(WIDTH, DIM, 0, tied=False)
    held = torch.arange(WIDTH) % 5 == 0
    start = Start(start.encoder, start.decoder, held, torch.where(held, 0.9, -1.0))
    # Few rows make doubtful ties; a batch of 240 is a multiple of 1, 2 and 4 ranks.
    recipe = TrainRecipe(steps=int(steps), batch_rows=240, warmup_steps=5, checkpoint_every=20, optimizer="adamw")
    folder = Path(rest[0]) if rest else None

    def say(done: int, total: int) -> None:
        if folder is not None:
            write_atomic(folder / f"rank-{mesh.rank}", f"{os.getpid()} {done}".encode())

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    sae = train(
        start,
        MAKERS[name](),
        TensorRows(x),
        recipe,
        seed=0,
        dtype=getattr(torch, dtype),
        folder=folder,
        progress=say,
        resume=True,
        mesh=mesh,
    )
    if mesh.leads:
        tensors = {n: getattr(sae, n) for n in ("encoder", "decoder", "threshold", "center", "offset")}
        save_file({n: t.contiguous() for n, t in tensors.items() if t is not None}, out)
    mesh.leave()


if __name__ == "__main__":
    main()
