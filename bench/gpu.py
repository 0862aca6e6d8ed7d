"""Kyomei on one GPU: kernels checked, the step beside its peers', widths up to a million, harvest, and a whole fit.

    python bench/gpu.py checks tiles steps densities widths profile harvest fit

It needs torch with CUDA, and for peers what bench/requirements.txt lists. Products are in bfloat16, for peers under autocast; a
batch has 8,192 rows of d = 1,536. An encode is x Wᵀ in the same shapes and dtype. Figures go into bench-gpu.jsonl, one a line.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import gc
import json
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import step

DIM, WIDTH, BATCH, STEPS = 1536, 65_536, 8192, 12
WIDTHS = (16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)
FITS = [(2048, 2000), (2048, 2000), (16_384, 2000)]
"""Widths and steps of whole fits; the first is done twice, as the same recipe has to give the same bytes."""
ACTIVE = 128
"""Active latents of a row where widths are compared."""
HEAD = "| width | density | step | ms | encodes | rows/s | peak MB |\n|---|---|---|---|---|---|---|"


def write(**figures: Any) -> None:
    with Path("bench-gpu.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")


def milliseconds(run: Callable[[], Any], repeats: int = 10) -> float:
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times[2:])[repeats // 2]


def row(name: str, width: int, density: float, batch: int = BATCH, dim: int = DIM) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        found = step.measure(name, dim, width, batch, density, STEPS, torch.get_num_threads())
    except Exception as error:
        print(f"| {width} | {density:.2%} | {name} | did not run: {type(error).__name__}: {str(error)[:100]} |", flush=True)
        return
    write(part="step", batch=batch, **found)
    print(
        f"| {width} | {density:.2%} | {name} | {found['step_ms']:.2f} | {found['encodes']:.2f} |"
        f" {found['rows_per_second']:.0f} | {found['peak_mb']:.0f} |",
        flush=True,
    )


def steps() -> None:
    print(HEAD)
    for density in (0.005, 0.01, ACTIVE / WIDTH):
        for name in step.ON_GPUS:
            row(name, WIDTH, density)


def densities() -> None:
    print(HEAD)
    for density in (0.001, 0.02, 0.04):
        for name in ("kyomei GBA", "kyomei GBA, dense"):
            row(name, WIDTH, density)


def widths() -> None:
    print(HEAD)
    for width in WIDTHS:
        row("kyomei GBA", width, ACTIVE / width)
    for name in ("kyomei GBA", "kyomei TopK", "SAELens TopK", "SAELens BatchTopK"):
        row(name, 4096, 32 / 4096, batch=2048, dim=576)


def pattern(rows: int, width: int, density: float) -> Any:
    from kyomei.dictionary.kernels import Active

    return Active.of(torch.rand(rows, width, device="cuda") < density)


def checks() -> None:
    """Every kernel against double precision, and the same bytes when it is run again."""
    from kyomei.dictionary import kernels_triton as kernels

    for dim in (5, 576, 1536, 4096):
        for dtype in (torch.float32, torch.bfloat16):
            check(dim, dtype)
    scores, bound, least = torch.randn(700, 9000, device="cuda").bfloat16(), *torch.randn(2, 9000, device="cuda")
    for name, found, there in (
        ("above", kernels.entries_above(scores, bound[:700]), scores.float() > bound[:700, None]),
        ("reaching", kernels.entries_reaching(scores, least.bfloat16()), scores >= least.bfloat16()),
    ):
        counts, at, score = found
        same = torch.equal(counts, there.sum(1)) and torch.equal(at.long(), there.nonzero()[:, 1])
        print(f"entries {name}: {same and torch.equal(score.float(), scores.float()[there])}")


def check(dim: int, dtype: torch.dtype) -> None:
    from kyomei.dictionary import kernels_triton as kernels

    a = pattern(1000, 3000, 0.01)
    x, w = (torch.randn(n, dim, device="cuda").to(dtype) for n in (1000, 3000))
    values, at = torch.randn(len(a), device="cuda"), (a.latent_starts, a.row32)
    sums = a.dense(values.double()).T @ x.double()
    products = (w.double() @ x.double().T)[a.latent, a.row]

    def run() -> list[Tensor]:
        first, second = torch.zeros(2, 3000, dim, device="cuda")
        kernels.csr_matmul(*at, values, x, first)
        return [first, second, kernels.sampled_products(*at, w, x, values, second), kernels.sampled_products(*at, w, x)]

    found, again = run(), run()
    errors = [float((f - e).norm() / e.norm()) for f, e in zip(found, [sums, sums, products, products], strict=True)]
    same = all(torch.equal(f, g) for f, g in zip(found, again, strict=True))
    print(f"d = {dim}, {dtype}: errors {max(errors):.1e}, same bytes {same}", flush=True)
    write(part="checks", dim=dim, dtype=str(dtype), error=max(errors), same_bytes=same)


TILES = [(b, e, w) for b in (512, 1024, 2048) for e in (2, 4, 8, 16) for w in (1, 2, 4) if 8 <= b // (32 * w) <= 32]


def tiles() -> None:
    """Milliseconds of a product over rows, one over latents and the fused one, for sizes of their tiles; and of the search."""
    from kyomei.dictionary import kernels_triton as kernels

    for dim, width, batch in ((DIM, WIDTH, BATCH), (576, 16_384, BATCH)):
        a = pattern(batch, width, 0.005)
        x, w = (torch.randn(n, dim, device="cuda").bfloat16() for n in (batch, width))
        given = Tiled(a, x, w, torch.randn(len(a), device="cuda"))
        print(f"d = {dim}, width {width}: block, entries, warps, ms", flush=True)
        for block, entries, warps in TILES:
            times = [milliseconds(run, 4) for run in given.runs({"BLOCK": block, "ENTRIES": entries, "num_warps": warps})]
            write(part="tiles", dim=dim, block=block, entries=entries, warps=warps, ms=times)
            print(block, entries, warps, *(f"{t:.3f}" for t in times), flush=True)
    scores, bound = torch.randn(WIDTH, BATCH, device="cuda").bfloat16(), torch.full((WIDTH,), 2.576, device="cuda")
    for scanned in (512, 1024, 2048, 4096, 8192):
        kernels.SCANNED = scanned
        print("scanned", scanned, f"{milliseconds(functools.partial(kernels.entries_above, scores, bound), 4):.3f}")


class Tiled:
    """The products of a step in tiles of a given size."""

    def __init__(self, active: Any, x: Tensor, w: Tensor, values: Tensor) -> None:
        self.a, self.x, self.w, self.values, self.by_row = active, x, w, values, values[active.by_row]
        self.decoded = torch.zeros(len(x), x.shape[1], device="cuda")
        self.gradient, self.found = torch.zeros(len(w), x.shape[1], device="cuda"), torch.empty(len(active), device="cuda")

    def runs(self, tile: dict[str, int]) -> list[Callable[[], Any]]:
        from kyomei.dictionary import kernels_triton as kernels

        raw: Any = kernels._csr_matmul
        both: Any = kernels._products
        a, dim = self.a, self.x.shape[1]
        blocks = -(-dim // tile["BLOCK"])
        rows = (a.row_starts, a.latent32_by_row, self.by_row, self.w, self.decoded, dim)
        latents = (a.latent_starts, a.row32, self.values, self.x, self.gradient, dim)
        fused = (a.latent_starts, a.row32, self.values, self.w, self.x, self.found, self.gradient, dim)
        return [
            functools.partial(raw[(len(self.x), blocks)], *rows, **tile),
            functools.partial(raw[(len(self.w), blocks)], *latents, **tile),
            functools.partial(both[(len(self.w),)], *fused, ADD=True, **tile),
        ]


def profile() -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for name, width, density, dim, batch in (
        ("kyomei GBA", WIDTH, 0.005, DIM, BATCH),
        ("kyomei TopK", WIDTH, ACTIVE / WIDTH, DIM, BATCH),
        ("kyomei GBA", 4096, 32 / 4096, 576, 2048),
    ):
        rows = torch.randn(2 * batch, dim, device="cuda")
        build, mechanism = step.CONTESTANTS[name]
        run = build(dim, width, density, rows, mechanism)
        for _ in range(3):
            run(rows[:batch])
        with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            for _ in range(3):
                run(rows[:batch])
            torch.cuda.synchronize()
        events = found.key_averages()
        print(f"\n{name}, width {width}, d {dim}, batch {batch}, density {density:.2%}; milliseconds a step on the GPU")
        on_gpu = [(e.self_device_time_total / 3e3, e.count // 3, e.key) for e in events if e.device_type.name == "CUDA"]
        print(f"  {sum(t for t, *_ in on_gpu):.2f} in all, {sum(n for _, n, _ in on_gpu)} kernels")
        for took, count, key in sorted(on_gpu, reverse=True)[:16]:
            print(f"  {took:8.3f} {count:4d} {key[:110]}", flush=True)


def harvest() -> None:
    """Beside SAELens' store: a model of SmolLM2-135M's shape with random weights, bfloat16, its layer 15's MLP."""
    import transformers

    import harvest as bench
    from kyomei.source.text import EMBEDDED

    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=3, vocab_size=49_152, max_position_embeddings=2048)
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        for file in (EMBEDDED / "model").glob("tokenizer*"):
            shutil.copy(file, folder)
        made = bench.Bench(folder, "model.layers.15.mlp", 576, "cuda", torch.bfloat16)
        for name in ("kyomei", "SAELens", "kyomei", "SAELens"):
            ids = bench.windows(2_000_000 // 256, 256)
            try:
                rate = ids.numel() / bench.MEASURED[name](ids, 64, made)
            except Exception as error:
                print(f"{name} did not run: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            write(part="harvest", name=name, tokens_per_second=rate)
            print(f"{name}: {rate:,.0f} tokens/s", flush=True)


def fit() -> None:
    """The default on the embedded model's layer 2, harvested here; time by part."""
    from kyomei.config import Recipe
    from kyomei.learning import fit as learning
    from kyomei.stages.harvest import harvested_run
    from kyomei.stages.harvested import activations
    from kyomei.stages.progress import Reporter
    from whole import timed

    source = {"source.model": "embedded", "source.sites": ("model.layers.2.mlp",), "source.num_tokens": 800_000}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = harvested_run(Path(folder), Recipe.of({**source, "source.replicas": 3}), Reporter(), resume=True)
        rows = activations(run, "replica-0")
        print(f"harvest {time.perf_counter() - began:.1f} s, {rows.num_rows:,} rows a replica", flush=True)
        for width, steps_done in FITS:
            recipe = Recipe.of({"dictionary.width": width, "train.steps": steps_done, "device": "cuda"})
            began = settled()
            with timed(settled) as parts:
                sae = learning.fit(rows, recipe)
            whole = settled() - began
            digest = float(sae.encoder.double().sum())
            shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
            known = sae.provenance["sample"]
            print(f"width {width}, {steps_done} steps: {whole:.1f} s; {shown}; {known}; sum {digest!r}", flush=True)
            write(part="fit", width=width, steps=steps_done, seconds=whole, parts=parts, sample=known, sum=digest)


def settled() -> float:
    """The time, once the GPU has nothing left to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


PARTS = {f.__name__: f for f in (checks, tiles, steps, densities, widths, profile, harvest, fit)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--fits", nargs="*", type=int, help="widths of whole fits")
    parser.add_argument("--where", action="store_true", help="where the processor's time goes in each part")
    args = parser.parse_args()
    FITS[:] = [(width, 2000) for width in args.fits] if args.fits else FITS
    if not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device. Found none. Run bench/step.py for the CPU's table.")
    step.DEVICE, step.DTYPE = torch.device("cuda"), torch.bfloat16
    print(torch.cuda.get_device_name(), torch.__version__)
    for name in args.parts or PARTS:
        print(f"\n{name}", flush=True)
        watched = cProfile.Profile()
        if args.where:
            watched.enable()
        PARTS[name]()
        watched.disable()
        if args.where:
            pstats.Stats(watched).sort_stats("tottime").print_stats(22)


if __name__ == "__main__":
    main()
