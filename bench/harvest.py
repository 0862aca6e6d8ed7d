"""Harvest beside SAELens' ActivationsStore: same model, site, windows and batch, tokens a second.

    make bench        (or, with SAELens installed: python bench/harvest.py)

Both start from the same token windows, so that tokenising is nobody's cost. Kyomei's rows end as verified shards on the disk;
SAELens' store mixes them in memory and hands out training batches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bench:
    """What is harvested: a model's name or folder, its site, how wide that is, and where and in which precision it runs."""

    model: str
    site: str
    dim: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def precision(self) -> Any:
        return str(self.dtype).removeprefix("torch.")


EMBEDDED = Bench("embedded", "model.layers.1.mlp", 256)


def windows(count: int, context: int) -> Tensor:
    return torch.randint(10, 4000, (count, context), generator=torch.Generator().manual_seed(0))


def kyomei_seconds(ids: Tensor, batch: int, of: Bench = EMBEDDED) -> float:
    from kyomei.config import SourceRecipe
    from kyomei.source.harvest import harvest
    from kyomei.source.model import LanguageModel
    from kyomei.source.text import Document, Tokens

    model = LanguageModel.load(of.model, device=of.device, dtype=of.dtype)
    recipe = SourceRecipe(sites=(of.site,), context=ids.shape[1], windows_per_batch=batch, dtype=of.precision)
    nothing = torch.zeros(ids.shape, dtype=torch.int32)
    tokens = Tokens(ids, nothing, nothing, nothing, [Document("made", "x")])
    with tempfile.TemporaryDirectory() as folder:
        harvest(model, tokens.thinned(4 * batch), Path(folder) / "warm", recipe)
        began = time.perf_counter()
        harvest(model, tokens, Path(folder) / "all", recipe)
        return time.perf_counter() - began


def saelens_seconds(ids: Tensor, batch: int, of: Bench = EMBEDDED) -> float:
    from datasets import Dataset
    from sae_lens import ActivationsStore
    from sae_lens.load_model import load_model

    from kyomei.source.text import EMBEDDED as FILES

    folder = str(FILES / "model") if of.model == "embedded" else of.model
    model = load_model("AutoModelForCausalLM", folder, of.device, {"dtype": of.dtype}, hook_names=[of.site])
    context = ids.shape[1]
    store = ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"tokens": ids.tolist()}),
        streaming=False,
        hook_name=of.site,
        hook_head_index=None,
        context_size=context,
        d_in=of.dim,
        n_batches_in_buffer=64,
        total_training_tokens=10**9,
        store_batch_size_prompts=batch,
        train_batch_size_tokens=4096,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(of.device),
        dtype=of.precision,
        disable_concat_sequences=True,
    )
    data: Any = store.get_data_loader()
    next(data)  # the first call fills half of the mixing buffer
    began, rows = time.perf_counter(), 0
    while rows < ids.numel():
        rows += len(next(data))
    if of.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * ids.numel() / rows


MEASURED = {"kyomei": kyomei_seconds, "SAELens": saelens_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=MEASURED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    ids = windows(args.tokens // args.context, args.context)
    if args.one:
        torch.set_num_threads(args.threads)
        print(json.dumps({"tokens_per_second": ids.numel() / MEASURED[args.one](ids, args.batch)}))
        return
    rates: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(args.repeats):
        for name in MEASURED:
            own = [sys.executable, __file__, "--one", name, "--tokens", str(args.tokens), "--context", str(args.context)]
            own += ["--batch", str(args.batch), "--threads", str(args.threads)]
            done = subprocess.run(own, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} did not run: {done.stderr[-800:]}")
            rates[name].append(json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_second"])
    middle = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    for name, found in rates.items():
        print(f"| {name} | {middle[name]:,.0f} tokens/s | {min(found):,.0f}–{max(found):,.0f} |")
    print(f"ratio {middle['kyomei'] / middle['SAELens']:.2f}")


if __name__ == "__main__":
    main()
