"""Small files as other libraries write them, and what those libraries compute with them, for tests/dictionary/formats.

    make peers
    .peers/bin/python tools/peer_files.py tests/dictionary/formats/files

Each folder holds what the library itself saved, and `expected.safetensors`: rows x, their code z and reconstruction x_hat there.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, WIDTH, ROWS, K = 6, 16, 24, 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same with parameters of every kind away from zero: biases, thresholds and norms that matter."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(module.named_parameters())):
            values = 0.6 * normal(seed * 100 + number, *parameter.shape)
            parameter.copy_(values.abs() + 0.05 if "threshold" in name and "log" not in name else values)
    return module


def keep(folder: Path, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> None:
    x = 2 * normal(99, ROWS, DIM) + 0.5
    with torch.no_grad():
        z = encode(x)
        save_file({"x": x, "z": z.contiguous(), "x_hat": decode(z).contiguous()}, folder / "expected.safetensors")


def saelens(root: Path) -> None:
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
        Transcoder,
        TranscoderConfig,
    )
    from sae_lens.saes.sae import SAE, SAEMetadata

    def metadata() -> SAEMetadata:
        facts = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post", "context_size": 128, "prepend_bos": True}
        return SAEMetadata(**facts, dataset_path="monology/pile-uncopyrighted")

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "standard-uncentred": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "jumprelu-uncentred": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
        "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
    }
    for number, (name, (model, config, more)) in enumerate(kinds.items()):
        sae = stirred(model(config(d_in=DIM, d_sae=WIDTH, metadata=metadata(), **more)), number)
        sae.save_model(root / f"saelens-{name}")
        keep(root / f"saelens-{name}", sae.encode, sae.decode)
    trained: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [WIDTH // 2, WIDTH]},
        ),
    }
    for number, (name, (model, config, more)) in enumerate(trained.items()):
        sae = stirred(model(config(d_in=DIM, d_sae=WIDTH, k=float(K), metadata=metadata(), **more)), 20 + number)
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
        sae.save_inference_model(root / f"saelens-{name}")
        loaded = SAE.load_from_disk(root / f"saelens-{name}")
        keep(root / f"saelens-{name}", loaded.encode, loaded.decode)
        # The checkpoint of the same training: its threshold is one number, its norms are not folded yet.
        sae.save_model(root / f"saelens-{name}-checkpoint")
        shutil.copy(root / f"saelens-{name}/expected.safetensors", root / f"saelens-{name}-checkpoint")
    config = TranscoderConfig(d_in=DIM, d_sae=WIDTH, d_out=DIM + 1, apply_b_dec_to_input=False, metadata=metadata())
    Transcoder(config).save_model(root / "saelens-transcoder")


def main() -> None:
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    for write in (saelens,):
        write(root)
    # Paths of the machine that wrote them say nothing.
    for path in sorted(root.rglob("*.json")):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
