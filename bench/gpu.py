"""The step's table on one GPU, in one call: bfloat16 products, batch 8,192, d = 1,536.

    python bench/gpu.py        (torch with CUDA; peers as in bench/requirements.txt)

All in one process, contestants one after the other; then Kyomei alone over widths.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path

import torch

import step

DIM, WIDTH, BATCH, STEPS = 1536, 65_536, 8192, 20
WIDTHS = (16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)


def row(name: str, width: int, density: float) -> dict[str, float] | None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        found = step.measure(name, DIM, width, BATCH, density, STEPS, torch.get_num_threads())
    except Exception as error:
        print(f"| {width} | {density:.1%} | {name} | did not run: {type(error).__name__}: {str(error)[:80]} |", flush=True)
        return None
    finally:
        gc.collect()
    print(
        f"| {width} | {density:.1%} | {name} | {found['step_ms']:.2f} | {found['encodes']:.2f} |"
        f" {found['rows_per_second']:.0f} | {found['peak_mb']:.0f} |",
        flush=True,
    )
    return found


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device. Found none. Run bench/step.py for the CPU's table.")
    step.DEVICE, step.DTYPE = torch.device("cuda"), torch.bfloat16
    print(torch.cuda.get_device_name(), torch.__version__)
    print("| width | density | step | ms | encodes | rows/s | peak MB |\n|---|---|---|---|---|---|---|")
    records = [row(name, WIDTH, density) for density in (0.005, 0.01) for name in step.CONTESTANTS]
    records += [row("kyomei GBA", width, 0.005) for width in WIDTHS]
    Path("bench-gpu.json").write_text(json.dumps([r for r in records if r], indent=1) + "\n")


if __name__ == "__main__":
    main()
