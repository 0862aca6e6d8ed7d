"""How long each takes to TopK's plateau: the default's whole fit, Kyomei's TopK and SAELens' TopK, same rows, in one run.

    python bench/race.py embedded-2-768        (with SAELens: bench/requirements.txt)

Every contestant is trained anew with more and more steps, as its learning rate falls at the end of a training. What counts is
the processor's time, on one thread, of the first training whose FVU on unseen documents is no larger than the plateau's: that
of Kyomei's TopK with a number of steps whose double changes it by less than 1 %. SAELens scales the rows, starts and revives
latents in its own way, with its own learning rate and with ours, in batches of the same 1,024 rows. Nobody is tried with less
than a quarter of the plateau's steps. Trainings are kept in bench/data/race.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from default import CELLS, DATA, FVU_CHANGE, Cell, harvested, recipe_of
from kyomei.learning.fit import fit
from kyomei.source.rows import Rows
from kyomei.stages.harvested import activations

BATCH_ROWS, UNSEEN = 1024, 16_384
BUDGETS = (250, 500, 1000, 2000, 4000, 8000, 16_000)
RATES = (3e-4, 3e-3)
SCALED = "expected_average_only_in"
Fit = Callable[[Cell, Rows, int], Any]


def kyomei_fit(method: str) -> Fit:
    return lambda cell, rows, steps: fit(rows, recipe_of(cell, method, steps, {}), seed=0)


def saelens_fit(rate: float) -> Fit:
    def run(cell: Cell, rows: Rows, steps: int) -> Any:
        from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(0)
        held = rows.read(np.arange(rows.num_rows))
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=cell.l0, d_in=rows.dim, d_sae=cell.width, normalize_activations=SCALED))
        log = LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1)
        ends: dict[str, Any] = {"lr": rate, "lr_end": rate / 10, "lr_warm_up_steps": 50, "lr_decay_steps": steps // 5}
        size: dict[str, Any] = {"total_training_samples": steps * BATCH_ROWS, "train_batch_size_samples": BATCH_ROWS}
        config = SAETrainerConfig(**size, **ends, logger=log, n_batches_for_norm_estimate=20)
        return SAETrainer(config, sae, batches(held)).fit()

    return run


def batches(rows: Tensor) -> Any:
    generator = torch.Generator().manual_seed(0)
    while True:
        for index in torch.randperm(len(rows), generator=generator).split(BATCH_ROWS)[: len(rows) // BATCH_ROWS]:
            yield rows[index]


CONTESTANTS: dict[str, Fit] = {"TopK": kyomei_fit("topk"), "default": kyomei_fit("default")}
CONTESTANTS |= {f"SAELens TopK, lr {rate:g}": saelens_fit(rate) for rate in RATES}


def fvu(sae: Any, x: Tensor) -> float:
    with torch.no_grad():
        left = sae.decode(sae.encode(x)) - x
    return float(left.square().sum() / (x - x.mean(dim=0)).square().sum())


def trained(name: str, args: argparse.Namespace, rows: Rows, unseen: Tensor, steps: int) -> dict[str, Any]:
    """Figures of one training, read back or measured now."""
    known = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()] if args.data.exists() else []
    for one in known:
        if (one["cell"], one["name"], one["steps"]) == (args.cell, name, steps):
            return dict(one)
    began = time.process_time()
    sae = CONTESTANTS[name](CELLS[args.cell], rows, steps)
    seconds = time.process_time() - began
    code = sae.encode(unseen)
    found = {"cell": args.cell, "name": name, "steps": steps, "seconds": seconds, "fvu": fvu(sae, unseen)}
    found |= {"l0": float((code > 0).sum(dim=1).float().mean()), "rows": rows.num_rows, "unseen": len(unseen)}
    with args.data.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(f"| {name} | {steps:,} | {seconds:.0f} | {found['fvu']:.4f} | {found['l0']:.1f} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", choices=list(CELLS))
    parser.add_argument("--most", type=int, default=8000, help="steps beyond which nothing is tried")
    parser.add_argument("--runs", type=Path, default=Path("runs/default"))
    parser.add_argument("--data", type=Path, default=DATA.parent / "race.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = harvested(args.cell, args.runs)
    rows, evidence = activations(run, "replica-0"), activations(run, "evidence")
    unseen = evidence.read(np.linspace(0, evidence.num_rows - 1, min(UNSEEN, evidence.num_rows)).astype(np.int64))
    budgets = [steps for steps in BUDGETS if steps <= args.most]
    print("| contestant | steps | seconds | FVU | L0 |\n|---|---|---|---|---|")
    plateau = None
    before = None
    for steps in budgets:
        after = trained("TopK", args, rows, unseen, steps)
        if before is not None and plateau is None and abs(after["fvu"] / before["fvu"] - 1) < FVU_CHANGE:
            plateau = before
            break
        before = after
    if plateau is None:
        raise SystemExit(f"TopK has no plateau within {args.most:,} steps")
    print(f"plateau: {plateau['fvu']:.4f} with {plateau['steps']:,} steps, {plateau['seconds']:.0f} s", flush=True)
    for name in list(CONTESTANTS)[1:]:
        for steps in (one for one in budgets if 4 * one >= plateau["steps"]):
            found = trained(name, args, rows, unseen, steps)
            if found["fvu"] <= plateau["fvu"]:
                print(f"{name}: {found['seconds'] / plateau['seconds']:.2f} of TopK's time, {steps:,} steps", flush=True)
                break
        else:
            print(f"{name}: not within {args.most:,} steps", flush=True)


if __name__ == "__main__":
    main()
