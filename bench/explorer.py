"""The explorer's index: how long it takes to make, its memory, and how long a query takes.

python bench/explorer.py index                     (16,384 latents × 1,048,576 tokens, d = 256, L0 about 32, stored rows)
python bench/explorer.py index --tokens 104857     (a tenth of it)
python bench/explorer.py queries                   (65,536 latents in the list)

Rows are Gaussian, so that latents share rows by chance only, which makes the table of common rows as full as it gets.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.shards import ShardFolder, ShardWriter
from kyomei.source.text import Document, Tokens
from kyomei.views.index import Subject, build
from kyomei.views.index.build import _write_features
from kyomei.views.index.schema import FEATURE_COLUMNS, FEATURES, INDEX
from kyomei.views.index.state import as_json, file_facts
from kyomei.views.queries import Index

DIM, CONTEXT, TOKENS_PER_DOCUMENT = 256, 256, 2048
ROWS_PER_SHARD = 65_536


def dictionary(width: int, l0: float) -> SparseAutoencoder:
    """Random unit rows whose thresholds let so many be active on Gaussian rows."""
    encoder = normalize(torch.randn(width, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    threshold = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - l0 / width, dtype=torch.float64))
    return SparseAutoencoder(encoder, None, torch.full((width,), float(threshold)), torch.zeros(DIM))


def text(num_tokens: int) -> Tokens:
    """Words drawn at random, each a token with the space before it."""
    rng = np.random.default_rng(0)
    words = [" " + "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(20_000)]
    ids = rng.integers(0, len(words), num_tokens)
    lengths = np.array([len(words[i]) for i in ids])
    document = np.arange(num_tokens) // TOKENS_PER_DOCUMENT
    ends = np.cumsum(lengths)
    before = np.concatenate([[0], ends])[document * TOKENS_PER_DOCUMENT]
    texts = [
        "".join(words[i] for i in ids[first : first + TOKENS_PER_DOCUMENT])
        for first in range(0, num_tokens, TOKENS_PER_DOCUMENT)
    ]
    shape = (num_tokens // CONTEXT, CONTEXT)
    start, end = (torch.from_numpy(values.astype(np.int32)).view(shape) for values in (ends - lengths - before, ends - before))
    documents = [Document(f"document {i}", words) for i, words in enumerate(texts)]
    return Tokens(
        torch.from_numpy(ids).view(shape), torch.from_numpy(document.astype(np.int32)).view(shape), start, end, documents
    )


def write_rows(folder: Path, num_tokens: int) -> None:
    writer = ShardWriter(folder, DIM, "float32", "made", {})
    for number, first in enumerate(range(0, num_tokens, ROWS_PER_SHARD)):
        place = np.arange(first, min(first + ROWS_PER_SHARD, num_tokens))
        writer.write(number, torch.randn(len(place), DIM, generator=torch.Generator().manual_seed(number)), place, {})
    writer.close()


@contextmanager
def watched(step: str) -> Iterator[Callable[[int, int], None]]:
    began, cpu = time.perf_counter(), time.process_time()
    yield lambda done, total: None
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    print(f"  {step}: {seconds:.1f} s, {used:.1f} s of processor time", file=sys.stderr, flush=True)


def index_here(rows: Path, width: int, l0: float, num_tokens: int, threads: int) -> None:
    """Make an index in this process and print what it took: nothing else is in its memory."""
    torch.set_num_threads(threads)
    sae, tokens = dictionary(width, l0), text(num_tokens)
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        build(Subject("made", sae, ShardFolder(rows, verify=False), tokens, {}, {"seed": "0"}), Path(folder), watched)
        seconds, used = time.perf_counter() - began, time.process_time() - cpu
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        examples = len(Index(folder).examples(0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {"seconds": seconds, "processor": used, "peak_gib": peak, "index_mib": size / 2**20, "examples_of_0": examples}
    print(json.dumps(facts))


def index(args: argparse.Namespace) -> None:
    num_tokens = args.tokens // CONTEXT * CONTEXT
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows", num_tokens)
        own = [sys.executable, __file__, "index", "--rows", str(Path(folder) / "rows"), f"--tokens={num_tokens}"]
        own += [f"--width={args.width}", f"--l0={args.l0}", f"--threads={args.threads}"]
        done = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    print("| latents | tokens | seconds | processor seconds | peak GiB | index MiB |\n|---|---|---|---|---|---|")
    figures = (facts[name] for name in ("seconds", "processor", "peak_gib", "index_mib"))
    print(f"| {args.width:,} | {num_tokens:,} | " + " | ".join(f"{value:.1f}" for value in figures) + " |")


def made_columns(width: int) -> dict[str, Any]:
    """A list of made-up latents."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    tokens = words[rng.integers(0, len(words), (width, 8))].tolist()
    near = [[{"latent": int(i), "cosine": 0.5, "value": 0.5} for i in row] for row in rng.integers(0, width, (width, 10))]
    columns: dict[str, Any] = {name: [None] * width for name in FEATURE_COLUMNS.names}
    columns |= {
        name: rng.random(width).astype(np.float32) for name in ("frequency", "max_activation", "mean_activation", "x", "y")
    }
    columns |= {name: rng.random(width).astype(np.float32) for name in ("explained", "agreement")}
    columns |= {"status": rng.choice(["certified", "split", "merged", "unstable", "dead"], width).tolist()}
    columns |= {"origin": rng.choice(["token", "position", "context-or-unexplained"], width).tolist()}
    columns |= {"certificate": [json.dumps({"numbers": [0.5] * 30})] * width}
    columns |= {"top_tokens": tokens, "token_text": ["\n".join(row) for row in tokens]}
    columns |= {"neighbours_decoder": near, "neighbours_coactivation": near, "histogram": [[1] * 30] * width}
    return columns


def queries(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        small = dictionary(64, 4)
        write_rows(here / "rows", 4 * CONTEXT)
        build(Subject("made", small, ShardFolder(here / "rows"), text(4 * CONTEXT), {}, {}), here / "index")
        _write_features(made_columns(args.width), here / "index" / FEATURES)
        facts = json.loads((here / "index" / INDEX).read_bytes())
        facts["files"][FEATURES] = file_facts(here / "index" / FEATURES)
        (here / "index" / INDEX).write_bytes(as_json({**facts, "width": args.width}))
        began = time.perf_counter()
        held = Index(here / "index")
        print(f"opened in {1e3 * (time.perf_counter() - began):.0f} ms")
        asked: dict[str, Callable[[], Any]] = {
            "first page": held.features,
            "last page, by agreement": lambda: held.features(order=("agreement", True), page=(args.width // 50, 50)),
            "search by text": lambda: held.features(q="word4"),
            "filters": lambda: held.features(
                status=["certified"], origin=["token"], frequency=(0.1, 0.5), order=("explained", True)
            ),
            "search by text and label": lambda: held.features(q="word77", named=list(range(0, args.width, 7))),
            "one feature": lambda: held.feature(args.width // 2),
            "examples of one": lambda: held.examples(7),
            "overview": held.overview,
            "map": held.map,
        }
        print("| query | median ms | slowest ms |\n|---|---|---|")
        for name, ask in asked.items():
            taken = []
            for _ in range(30):
                began = time.perf_counter()
                ask()
                taken.append(1e3 * (time.perf_counter() - began))
            print(f"| {name} | {statistics.median(taken):.0f} | {max(taken):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("index")
    made.add_argument("--width", type=int, default=16_384)
    made.add_argument("--tokens", type=int, default=2**20)
    made.add_argument("--l0", type=float, default=32.0)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    listed = verbs.add_parser("queries")
    listed.add_argument("--width", type=int, default=65_536)
    args = parser.parse_args()
    if args.verb == "queries":
        queries(args)
    elif args.rows:
        index_here(args.rows, args.width, args.l0, args.tokens, args.threads)
    else:
        index(args)


if __name__ == "__main__":
    main()
