"""A training step beside its peers': time in encode matmuls, rows a second and peak memory, each in a process of its own.

    make bench        (or, with the peers of bench/requirements.txt: python bench/step.py)

An encode matmul is x Wᵀ of the same shapes, threads and dtype, measured after each contestant's steps in its process. Peers
that are not installed are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

NUM_ROWS = 16_384
Step = Callable[[Tensor], Any]


DEVICE, DTYPE = torch.device("cpu"), torch.float32
"""Where and in which precision of products all contestants run; `bench/gpu.py` sets them."""


def kyomei_step(dim: int, width: int, density: float, rows: Tensor, mechanism: str, sparse: bool = True) -> Step:
    """Kyomei's own step at a given density: thresholds at that quantile of the scores, targets there."""
    from kyomei.config import TrainRecipe
    from kyomei.dictionary.mechanisms import GBA, BatchTopK, Mechanism, TopK
    from kyomei.learning import step as learning
    from kyomei.learning.latents import Latents, random_start
    from kyomei.learning.mesh import Mesh
    from kyomei.learning.spaces import Normalisation
    from kyomei.learning.step import Training
    from kyomei.source.rows import TensorRows

    start = random_start(width, dim, 0, tied=False) if DEVICE.type == "cpu" else None
    if start is None:  # a million latents take the processor a minute
        drawn = normalize(torch.randn(width, dim, device=DEVICE), dim=1)
        start = Latents.of(drawn, drawn.clone())
    made: Mechanism
    if mechanism == "gba":
        scores = (rows[:512] @ start.encoder[:2048].T / float(rows.norm(dim=1).mean())).cpu()
        threshold = float(scores.flatten().kthvalue(round((1 - density) * scores.numel())).values)
        made = GBA(torch.full((width,), density), torch.zeros(width, dtype=torch.int64), bias=torch.full((width,), -threshold))
    else:
        made = {"topk": TopK, "batchtopk": BatchTopK}[mechanism](width, round(density * width))
    # A rate that hardly moves the weights keeps the density where it is.
    recipe = TrainRecipe(lr=1e-6)
    training = Training(start, made, Normalisation.measure(TensorRows(rows.cpu())), recipe, DEVICE, DTYPE, Mesh())
    number = iter(range(10**9))
    index = np.arange(len(rows))

    def taken(x: Tensor) -> None:
        kept = learning.is_dense
        learning.is_dense = kept if sparse else lambda density, device: True
        training.step(x, next(number), index)
        learning.is_dense = kept

    return taken


def saelens_step(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    options = {"k": round(density * width)} if "TopK" in name else {}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=dim, d_sae=width, device=str(DEVICE), **options)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    log = LoggingConfig(log_to_wandb=False)
    rates: dict[str, Any] = {"lr": 1e-6, "lr_end": 1e-6, "device": str(DEVICE), "autocast": is_low()}
    settings = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=len(rows), logger=log, **rates)
    return SAETrainer(settings, sae, iter(())).step


def dictionary_learning_step(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(10**6, dim, width, round(density * width), layer=0, lm_name="none", lr=1e-6, device=str(DEVICE))
    number = iter(range(10**9))
    return lambda x: trainer.update(next(number), x)


def sparsify_step(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(dim, SparseCoderConfig(num_latents=width, k=round(density * width)), device=DEVICE)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-6)

    def step(x: Tensor) -> None:
        out = coder(x)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


def overcomplete_step(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    import matplotlib
    import matplotlib.cm

    if not hasattr(matplotlib.cm, "get_cmap"):  # which it imports, and newer ones lack
        matplotlib.cm.get_cmap = lambda name: matplotlib.colormaps[name]
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.losses import mse_l1

    sae = TopKSAE(dim, width, top_k=round(density * width), device=str(DEVICE))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-6)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        pre, z, x_hat = sae(x)
        mse_l1(x, x_hat, pre, z, sae.get_dictionary(), 0.0).backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def openai_step(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    """A TopK step on OpenAI's kernels: OPENAI_KERNELS names the file `kernels.py` of github.com/openai/sparse_autoencoder."""
    spec: Any = importlib.util.spec_from_file_location("openai_kernels", os.environ["OPENAI_KERNELS"])
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    encoder = normalize(torch.randn(width, dim, device=DEVICE), dim=1)
    decoder = encoder.clone().T.requires_grad_()  # contiguous when transposed, as its own autoencoder has it
    encoder.requires_grad_()
    centre = torch.zeros(dim, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.Adam([encoder, decoder, centre], lr=1e-6, fused=True)
    k = round(density * width)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        values, index = torch.topk((x - centre) @ encoder.T, k=k, dim=-1)
        decoded = kernels.TritonDecoderAutograd.apply(index, values.relu().float(), decoder) + centre
        (decoded - x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_([encoder, decoder, centre], 1.0)
        optimizer.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=0, keepdim=True))

    return step


def dense_gba(dim: int, width: int, density: float, rows: Tensor, name: str) -> Step:
    return kyomei_step(dim, width, density, rows, name, sparse=False)


CONTESTANTS: dict[str, tuple[Callable[..., Step], str]] = {
    "kyomei GBA": (kyomei_step, "gba"),
    "kyomei GBA, dense": (dense_gba, "gba"),
    "kyomei TopK": (kyomei_step, "topk"),
    "kyomei BatchTopK": (kyomei_step, "batchtopk"),
    "SAELens Standard": (saelens_step, "Standard"),
    "SAELens TopK": (saelens_step, "TopK"),
    "SAELens JumpReLU": (saelens_step, "JumpReLU"),
    "SAELens BatchTopK": (saelens_step, "BatchTopK"),
    "dictionary_learning TopK": (dictionary_learning_step, "TopK"),
    "sparsify TopK": (sparsify_step, "TopK"),
    "overcomplete TopK": (overcomplete_step, "TopK"),
}
ON_GPUS = {**CONTESTANTS, "OpenAI's kernels, TopK": (openai_step, "TopK")}


def is_low() -> bool:
    return DTYPE.itemsize == 2


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def encode_seconds(x: Tensor, width: int, repeats: int = 3) -> list[float]:
    x = x.to(DTYPE)
    w = normalize(torch.randn(width, x.shape[1]), dim=1).to(x)
    out = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        torch.mm(x, w.T, out=out)
        wait()
        times.append(time.perf_counter() - began)
    return times[1:]


def measure(name: str, dim: int, width: int, batch: int, density: float, steps: int, threads: int) -> dict[str, Any]:
    """Median step of one contestant, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = torch.randn(max(NUM_ROWS, batch), dim, device=DEVICE)
    build, mechanism = ON_GPUS[name]
    build(8, 64, 0.1, rows[:, :8].contiguous(), mechanism)  # its imports are part of what memory is counted from
    before = peak_bytes()
    step = build(dim, width, density, rows, mechanism)
    times = []
    for number in range(steps + 2):
        first = number * batch % (len(rows) - batch + 1)
        x = rows[first : first + batch]
        began = time.perf_counter()
        # Kyomei multiplies in bfloat16 by itself.
        with torch.autocast(DEVICE.type, DTYPE, enabled=is_low() and "kyomei" not in name):
            step(x)
        wait()
        times.append(time.perf_counter() - began)
    peak = peak_bytes()
    matmul = encode_seconds(rows[:batch], width, 5)
    seconds, encode = sorted(times[2:])[len(times[2:]) // 2], sorted(matmul)[len(matmul) // 2]
    return {
        "name": name,
        "dim": dim,
        "width": width,
        "density": density,
        "step_ms": 1e3 * seconds,
        "encode_ms": 1e3 * encode,
        "encodes": seconds / encode,
        "rows_per_second": batch / seconds,
        "peak_mb": peak / 2**20,
        "steps_mb": (peak - before) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["384x8192", "768x32768"])
    parser.add_argument("--densities", nargs="*", type=float, default=[0.005, 0.01])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, default=Path("bench-step.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    if args.one:
        (dim, width), density = shapes[0], args.densities[0]
        print(json.dumps(measure(args.one, dim, width, args.batch, density, args.steps, args.threads)))
        return
    records = []
    print("| d × width | density | step | ms | encodes | rows/s | peak MB | of the steps |\n|---|---|---|---|---|---|---|---|")
    for dim, width in shapes:
        for density in args.densities:
            for name in args.only:
                own = [sys.executable, __file__, "--one", name, "--shapes", f"{dim}x{width}", "--densities", str(density)]
                own += ["--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads)]
                done = subprocess.run(own, capture_output=True, text=True)
                if done.returncode:
                    reason = done.stderr.strip().splitlines()[-1][:90] if done.stderr else "no message"
                    print(f"| {dim} × {width} | {density:.1%} | {name} | did not run: {reason} |", flush=True)
                    continue
                r = json.loads(done.stdout.strip().splitlines()[-1])
                records.append(r)
                print(
                    f"| {dim} × {width} | {density:.1%} | {name} | {r['step_ms']:.0f} | {r['encodes']:.2f} |"
                    f" {r['rows_per_second']:.0f} | {r['peak_mb']:.0f} | {r['steps_mb']:.0f} |",
                    flush=True,
                )
    for name in args.only:
        own = [(r["width"], r["step_ms"]) for r in records if r["name"] == name and r["density"] == args.densities[0]]
        if len({dim for dim, _ in shapes}) == 1 and len(own) > 2:
            widths, times = zip(*own, strict=True)
            print(f"{name}: step time grows as width to the power {np.polyfit(np.log(widths), np.log(times), 1)[0]:.2f}")
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads, "batch": args.batch}
    args.json.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
