"""An SAE trained by SAELens itself on a harvest's rows, saved as SAELens does, for `kyomei certify --sae`.

make peers
.peers/bin/python bench/saelens.py runs/harvest sae --kind batchtopk --model HuggingFaceTB/SmolLM2-135M-Instruct \
    --hook blocks.15.hook_mlp_out

BatchTopK and JumpReLU with SAELens' own losses; the JumpReLU has the quadratic one, which aims at a number of active latents.
The rows are those of the first replica. What is printed is measured on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

import kyomei
from kyomei.runs import Run
from kyomei.stages.harvested import activations

BATCH_ROWS = 1024


def batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    """Rows in batches, in another order in each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(rows), generator=generator).split(BATCH_ROWS)[: len(rows) // BATCH_ROWS]:
            yield rows[index]


def untrained(kind: str, dim: int, asked: argparse.Namespace, context: int) -> Any:
    """SAELens' training SAE of a kind."""
    place = SAEMetadata(model_name=asked.model, hook_name=asked.hook, context_size=context, prepend_bos=False)
    shape: dict[str, Any] = {"d_in": dim, "d_sae": asked.width, "normalize_activations": "expected_average_only_in"}
    shape["metadata"] = place
    if kind == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=asked.l0, **shape))
    loss: dict[str, Any] = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(asked.l0)}
    loss |= {"l0_coefficient": asked.l0_coefficient, "l0_warm_up_steps": asked.steps // 4}
    # Thresholds alone move by the learning rate a step: too slow for few steps, so the encoder feels the sparsity too.
    loss |= {"jumprelu_bandwidth": asked.bandwidth, "jumprelu_init_threshold": 0.1, "jumprelu_ste_to_input": True}
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**loss, **shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harvest", help="folder of a harvest or run")
    parser.add_argument("out", help="where the SAE goes")
    parser.add_argument("--kind", choices=("batchtopk", "jumprelu"), default="batchtopk")
    parser.add_argument("--model", required=True, help="as SAELens names it")
    parser.add_argument("--hook", required=True, help="as TransformerLens names it, or a module path")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--l0", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--l0-coefficient", type=float, default=1.0)
    parser.add_argument("--bandwidth", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    run = Run.open(asked.harvest)
    shards = activations(run, "replica-0")
    rows = shards.read(np.arange(shards.num_rows)).float()
    torch.manual_seed(asked.seed)
    config = SAETrainerConfig(
        total_training_samples=asked.steps * BATCH_ROWS,
        train_batch_size_samples=BATCH_ROWS,
        lr=asked.lr,
        lr_end=asked.lr / 10,
        lr_warm_up_steps=asked.steps // 20,
        lr_decay_steps=asked.steps // 5,
        dead_feature_window=100,
        n_batches_for_norm_estimate=20,
        logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
    )
    sae = untrained(asked.kind, rows.shape[1], asked, run.recipe.source.context)
    SAETrainer(config, sae, batches(rows, asked.seed)).fit().save_inference_model(asked.out)
    read = kyomei.load(Path(asked.out))
    code, some = read.encode(rows[:8192]), rows[:8192]
    fvu = float((read.decode(code) - some).square().sum() / (some - some.mean(dim=0)).square().sum())
    alive = float((code > 0).any(dim=0).float().mean())
    print(f"{asked.kind}: L0 {float((code > 0).sum(dim=1).float().mean()):.1f}, FVU {fvu:.3f}, alive {alive:.2f}")


if __name__ == "__main__":
    main()
