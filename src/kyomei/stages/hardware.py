"""GPUs that a run can be planned for, by what their makers state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """A GPU of the table.

    Attributes:
        tflops: dense bfloat16 matrix products, 10¹² a second, as its maker states them.
        memory_gb: its memory.
        price: US dollars an hour, about what clouds ask in 2026; `--price` replaces it.
        machine_gbs: what it sends to others in its machine, 10⁹ bytes a second, as its maker states it.
        network_gbs: the same to another machine, by the network card that such machines have for each GPU.
    """

    tflops: float
    memory_gb: float
    price: float
    machine_gbs: float
    network_gbs: float


GPUS = {
    "a100": Hardware(312, 80, 1.8, 300, 25),
    "h100": Hardware(989, 80, 3.0, 450, 50),
    "h200": Hardware(989, 141, 3.5, 450, 50),
    "b200": Hardware(2250, 180, 6.0, 900, 50),
    "l40s": Hardware(362, 48, 1.2, 32, 12.5),
    "rtx4090": Hardware(165, 24, 0.5, 32, 1.25),
}
UTILISATION = 0.4
"""Share of a GPU's stated rate that a large language model's products reach; not measured by us."""
ENCODE_SHARE, GPU_ENCODES = 0.75, 3.7
"""Share of it that an encode product reached on an H100, and such products that a step took there for all that grows with the
latents, at 8,192 rows of 1,536 dimensions and 128 active latents a row (bench/gpu.py)."""
STEP_SECONDS = 0.0047
"""What that step took beside it."""
LIBRARY_BYTES = 2e9
"""What CUDA and torch take on a GPU; assumed."""

PROCESSOR_TFLOPS = 1.8
"""What the processors have that come with one GPU, 14 of the 112 cores of a machine with eight, as their maker states it:
certificates and figures are made there."""
