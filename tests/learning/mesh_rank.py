"""One rank of a mesh: `torchrun … mesh_rank.py OUT DATA FEATURES MECHANISM DTYPE STEPS [FOLDER]`, or `main` with as much.

A mechanism with "-stream" after its name trains on rows that a language model makes meanwhile, and counts its windows.
The mechanism "resonance" searches for directions instead of training, and shows what neighbours merge to; "default" is a
whole fit: directions, places, training and the last fit of decoders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.atomic import write_atomic
from kyomei.config import Recipe, ResonanceRecipe, SourceRecipe, TrainRecipe
from kyomei.dictionary import products
from kyomei.dictionary.mechanisms import (
    GBA,
    L1,
    Adaptation,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Mechanism,
    TopK,
    geometric_targets,
)
from kyomei.learning import halves
from kyomei.learning.fit import fit
from kyomei.learning.latents import random_start
from kyomei.learning.merging import merge
from kyomei.learning.mesh import Mesh
from kyomei.learning.resonance import resonate
from kyomei.learning.spaces import Normalisation
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.model import LanguageModel
from kyomei.source.rows import Rows, TensorRows
from kyomei.source.stream import StreamedRows
from kyomei.source.text import Document, Tokens

WIDTH, DIM, ROWS = 64, 16, 4000


def gba() -> Mechanism:
    targets, groups = geometric_targets(WIDTH, 4, 0.3, 0.02)
    # One group shares its bias, which every rank has to know; it is spread over the ranks.
    order = torch.arange(WIDTH).view(4, 16).T.flatten()
    targets, groups = targets[order], groups[order]
    return GBA(targets, groups, adaptation=Adaptation(gamma_down=0.05, adapt_every=3), shared=groups == 1)


MAKERS: dict[str, Callable[[], Mechanism]] = {
    "gba": gba,
    "topk": lambda: TopK(WIDTH, 4, auxk=0.1, dead_after=500),
    "batchtopk": lambda: BatchTopK(WIDTH, 4, auxk=0.1, dead_after=500),
    "matryoshka": lambda: MatryoshkaBatchTopK(WIDTH, 4, prefixes=(0.25, 0.6, 1.0)),
    "l1": lambda: L1(WIDTH, 0.02),
    "jumprelu": lambda: JumpReLU(WIDTH, 1e-3, bandwidth=0.05, threshold=0.05),
    "jumprelu-steered": lambda: JumpReLU(WIDTH, 1e-3, 4, bandwidth=0.05),
    "l1-steered": lambda: L1(WIDTH, 0.1, 4),
    "gated": lambda: Gated(WIDTH, 0.02),
}


def rows_of(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    planted = normalize(torch.randn(40, DIM, generator=generator, dtype=torch.float64), dim=1)
    active = torch.rand(ROWS, 40, generator=generator).argsort(dim=1) < 3
    return (active.double() @ planted + 0.3).to(dtype)


def streamed(mesh: Mesh) -> tuple[StreamedRows, list[int]]:
    """Rows of a tiny model as it makes them, and the windows that this rank ran."""
    torch.manual_seed(0)
    sizes = {"hidden_size": DIM, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    network = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, **sizes))
    model = LanguageModel(network, SimpleNamespace(all_special_ids=[0]), "tiny")
    ids = torch.randint(1, 64, (140, 16))
    spans = torch.zeros_like(ids, dtype=torch.int32)
    windows, capture = [0], model.capture

    def counted(ids: Tensor, *rest: Any) -> dict[str, Tensor]:
        windows[0] += len(ids)
        return capture(ids, *rest)

    model.capture = counted  # type: ignore[method-assign,assignment]
    recipe = SourceRecipe(sites=("layers.1.mlp",), context=16, windows_per_batch=4)
    tokens = Tokens(ids, spans, spans, spans, [Document("a", "a")])
    return StreamedRows(model, tokens, "layers.1.mlp", recipe, windows_per_buffer=20, ranks=mesh), windows


def search(x: Tensor, mesh: Mesh) -> dict[str, Tensor]:
    """Resonant directions, and clusters of more rows than one block of a merge has."""
    recipe = ResonanceRecipe(frequencies=(0.02, 0.05), neurons=256, rounds=2, steps=6, min_stability=0.0)
    found = resonate(x, recipe=recipe, mesh=mesh)
    rows = normalize(x.double() + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), dim=1).repeat(2, 1)
    merged, support = merge(rows, torch.arange(len(rows)), 0.9, torch.ones(len(rows), dtype=torch.long), mesh)
    return {"whitened": found.whitened, "support": found.support, "merged": merged, "merged_support": support}


def whole_fit(mesh: Mesh) -> dict[str, Tensor]:
    """What `fit` makes by default, quickly."""
    settings = {"resonance.neurons": 128, "resonance.rounds": 1, "resonance.steps": 5, "dictionary.width": 48}
    recipe = Recipe().with_values({**settings, "train.steps": 40, "train.batch_rows": 240})
    sae = fit(rows_of(torch.float32), recipe, workplace=Workplace(mesh=mesh))
    return {name: getattr(sae, name) for name in ("encoder", "decoder", "threshold", "center")}


def main(out: str, data: str, features: str, name: str, dtype: str, steps: str, *rest: str) -> None:
    torch.set_num_threads(1)
    mesh = Mesh.join(int(data), int(features))
    rows: Rows = TensorRows(rows_of(getattr(torch, dtype)))
    windows = [0]
    if name.endswith("-stream"):
        rows, windows = streamed(mesh)
    if name == "default":
        # Chosen by few digits, scores that are alike in them are another choice in blocks of another size.
        products.bfloat16_is_fast = halves.bfloat16_is_fast = lambda device: False
    if name in ("resonance", "default"):
        found = search(rows_of(getattr(torch, dtype)), mesh) if name == "resonance" else whole_fit(mesh)
        if mesh.leads:
            save_file({key: tensor.contiguous() for key, tensor in found.items()}, out)
        mesh.leave()
        return
    start = random_start(WIDTH, DIM, 0, tied=False)
    held = torch.arange(WIDTH) % 5 == 0
    start = replace(start, hold=held, anchor=torch.where(held, 0.9, -1.0))
    # Few rows make doubtful ties; a batch of 240 is a multiple of 1, 2 and 4 ranks.
    recipe = TrainRecipe(steps=int(steps), batch_rows=240, warmup_steps=5, checkpoint_every=20, optimizer="adamw")
    folder = Path(rest[0]) if rest else None

    def say(done: int, total: int) -> None:
        if folder is not None:
            write_atomic(folder / f"rank-{mesh.rank}", str(done).encode())

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    sae = train(
        start.part(mesh.share(WIDTH)),
        MAKERS[name.removesuffix("-stream")](),
        rows,
        recipe,
        seed=0,
        dtype=getattr(torch, dtype),
        normalisation=Normalisation.measure(rows.sample() if isinstance(rows, StreamedRows) else rows),
        workplace=Workplace(folder=folder, progress=say, resume=True, mesh=mesh),
    ).whole()
    run = sum(mesh.tell(windows[0]))
    if mesh.leads:
        tensors = {n: getattr(sae, n) for n in ("encoder", "decoder", "threshold", "center", "bias")}
        kept = {n: t.contiguous() for n, t in tensors.items() if t is not None}
        save_file({**kept, "windows": torch.tensor(run)}, out)
    mesh.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
