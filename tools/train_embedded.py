"""Train the small language model that ships inside the wheel.

A four-layer Llama of width 256 over a byte-level BPE of 4,096 tokens, trained on part of the Python standard library's
own sources. Files are held out by a hash of their name, so the split is the same for every interpreter version.

    python tools/train_embedded.py --steps 1400 --out src/kyomei/source/embedded
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kyomei.source.stdlib import is_held_out, stdlib_files

CONTEXT = 256
VOCAB = 4096
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Windows begin with BOS in training, so the tokenizer puts it before every text.
    begin = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(f"{END} $A", f"{END} $A {END}:1 $B:1", [begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one token stream with the end token between documents."""
    stream: list[int] = []
    for text in texts:
        stream.extend(tokenizer(text, add_special_tokens=False)["input_ids"])
        stream.append(tokenizer.eos_token_id)
    return torch.tensor(stream, dtype=torch.long)


def windows_at(stream: torch.Tensor, starts: np.ndarray, bos: int) -> torch.Tensor:
    """Windows of BOS followed by CONTEXT − 1 tokens of the stream: int64 [len(starts), CONTEXT]."""
    rows = torch.stack([stream[s : s + CONTEXT - 1] for s in starts.tolist()])
    return torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


@torch.no_grad()
def nats_per_token(model: LlamaForCausalLM, stream: torch.Tensor, bos: int) -> float:
    starts = np.arange(0, len(stream) - CONTEXT, CONTEXT - 1)
    total, count = 0.0, 0
    for i in range(0, len(starts), 32):
        batch = windows_at(stream, starts[i : i + 32], bos)
        logits = model(input_ids=batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), batch[:, 1:].reshape(-1), reduction="sum")
        total, count = total + loss.item(), count + batch[:, 1:].numel()
    return total / count


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al., 2024) in float32: torch's own runs in bfloat16, 30 times slower here."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(average, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalise(gradient: torch.Tensor) -> torch.Tensor:
    """Five quintic Newton–Schulz iterations towards the nearest semi-orthogonal matrix."""
    wide = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, bos: int, steps: int, batch: int, seed: int, keep: Path | None
) -> None:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, lr=0.02)
    adam = torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    base = [(group, group["lr"]) for opt in (muon, adam) for group in opt.param_groups]

    @torch.compile
    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))

    rng = np.random.default_rng(seed)
    began = time.time()
    for step in range(steps):
        scale = min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.6 * steps))
        for group, rate in base:
            group["lr"] = rate * scale
        tokens = windows_at(stream, rng.integers(0, len(stream) - CONTEXT, size=batch), bos)
        loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in (muon, adam):
            opt.step()
            opt.zero_grad(set_to_none=True)
        if keep is not None and step % 200 == 199:
            model.save_pretrained(keep)
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.3f} seconds {time.time() - began:.0f}", flush=True)


@torch.no_grad()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, seed: int) -> str:
    torch.manual_seed(seed)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=60,
        do_sample=True,
        temperature=0.7,
        top_k=50,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(out[0, 1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the model as it stands after every 200 steps")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    files = stdlib_files()
    read = lambda path: path.read_text(encoding="utf-8", errors="replace")  # noqa: E731
    seen = [(name, read(path)) for name, path in files if not is_held_out(name)]
    held = [(name, read(path)) for name, path in files if is_held_out(name)]
    tokenizer = train_tokenizer([text for _, text in seen])
    bos = tokenizer.bos_token_id
    if args.keep is not None:
        tokenizer.save_pretrained(args.keep)
    stream, held_stream = (encode(tokenizer, [text for _, text in part]) for part in (seen, held))
    bytes_per_token = sum(len(t.encode()) for _, t in held) / len(held_stream)
    print(
        f"{len(seen)} files, {len(stream):,} tokens; held out {len(held)} files, {len(held_stream):,} tokens, "
        f"{bytes_per_token:.3f} bytes per token",
        flush=True,
    )

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=bos,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    to_bits = lambda nats: nats / math.log(2) / bytes_per_token  # noqa: E731
    untrained = to_bits(nats_per_token(model, held_stream, bos))
    began = time.time()
    train(model, stream, bos, args.steps, args.batch, args.seed, args.keep)
    seconds = time.time() - began
    model.to(torch.bfloat16).to(torch.float32)  # what ships is bf16, so that is what is measured
    trained = to_bits(nats_per_token(model.eval(), held_stream, bos))

    folder = args.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    samples = [sample(model, tokenizer, p, args.seed) for p in ("def read(self, ", "import os\n", "class TestCase")]
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (args.out / "held_out.json").write_text(json.dumps(sorted(n for n, _ in held), indent=0) + "\n")
    facts = {
        "steps": args.steps,
        "batch": args.batch,
        "context": CONTEXT,
        "tokens_seen": args.steps * args.batch * CONTEXT,
        "corpus_tokens": len(stream),
        "corpus_files": len(seen),
        "held_out_files": len(held),
        "held_out_tokens": len(held_stream),
        "bytes_per_token": bytes_per_token,
        "bits_per_byte": trained,
        "bits_per_byte_untrained": untrained,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds),
        "seed": args.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "samples": samples,
    }
    (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
