"""The explorer's index: how long it takes to make, its memory, and how long a query takes.

python bench/explorer.py index                     (16,384 latents × 1,048,576 tokens, d = 256, L0 about 32, stored rows)
python bench/explorer.py index --tokens 104857     (a tenth of it)
python bench/explorer.py queries                   (65,536 latents in the list)
python bench/explorer.py pages                     (the same behind the server and in Chromium; needs playwright)
OMP_WAIT_POLICY=passive python bench/explorer.py live    (as `kyomei explore` runs the embedded model)

Rows are Gaussian, so that latents share rows by chance only, which makes the table of common rows as full as it gets.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.model import LanguageModel
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Document, Tokens
from kyomei.views.index import Subject, build
from kyomei.views.index.build import _write_features
from kyomei.views.index.schema import FEATURE_COLUMNS, FEATURES, INDEX
from kyomei.views.index.state import as_json, file_facts
from kyomei.views.labels import Labels
from kyomei.views.live import Live, Window
from kyomei.views.queries import Index
from kyomei.views.server import Explored, Explorer, Options, app_for

DIM, CONTEXT, TOKENS_PER_DOCUMENT = 256, 256, 2048
ROWS_PER_SHARD = 65_536
SITE, WORDS = "model.layers.2.mlp", "def read(self, name):\n    return self.values.get(name)  # or none\n"


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


@contextmanager
def many_latents(width: int) -> Iterator[Path]:
    """The folder of an index with so many latents in its list, and the examples of 64."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        small = dictionary(64, 4)
        write_rows(here / "rows", 4 * CONTEXT)
        build(Subject("made", small, ShardFolder(here / "rows"), text(4 * CONTEXT), {}, {}), here / "index")
        _write_features(made_columns(width), here / "index" / FEATURES)
        facts = json.loads((here / "index" / INDEX).read_bytes())
        facts["files"][FEATURES] = file_facts(here / "index" / FEATURES)
        (here / "index" / INDEX).write_bytes(as_json({**facts, "width": width}))
        yield here / "index"


def timed(asked: dict[str, Callable[[], Any]], times: int = 30) -> None:
    """Print how long each takes: the first time, when nothing is held yet, and afterwards."""
    print("| what | first ms | median ms | slowest ms |\n|---|---|---|---|")
    for name, ask in asked.items():
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            ask()
            taken.append(1e3 * (time.perf_counter() - began))
        print(f"| {name} | {taken[0]:.0f} | {statistics.median(taken[1:]):.0f} | {max(taken[1:]):.0f} |")


def queries(args: argparse.Namespace) -> None:
    with many_latents(args.width) as folder:
        began = time.perf_counter()
        held = Index(folder)
        print(f"opened in {1e3 * (time.perf_counter() - began):.0f} ms")
        some = {"status": ["certified"], "origin": ["token"], "frequency": (0.1, 0.5)}
        timed(
            {
                "first page": held.features,
                "last page, by agreement": lambda: held.features(order=("agreement", True), page=(args.width // 50, 50)),
                "search by text": lambda: held.features(q="word4"),
                "filters": lambda: held.features(**some, order=("explained", True)),
                "search by text and label": lambda: held.features(q="word77", named=list(range(0, args.width, 7))),
                "one feature": lambda: held.feature(args.width // 2),
                "examples of one": lambda: held.examples(7),
                "overview": held.overview,
                "map": lambda: held.map_json,
            }
        )


def pages(args: argparse.Namespace) -> None:
    """Answers over HTTP, and what a browser shows, of a list with labels on one latent in seven."""
    with many_latents(args.width) as folder:
        labels = Labels(folder.parent / "labels.sqlite")
        said = {"dictionary": "made", "digest": "0", "time": "2026-01-01T00:00:00+00:00", "author": "a"}
        labels.merge(json.dumps({**said, "latent": i, "label": f"label {i}"}) for i in range(0, args.width, 7))
        explored = Explored("made", "made", folder, folder, "0", lambda: dictionary(64, 4))
        with serving(Explorer("made", {"made": explored}, "made", labels.path)) as address:
            asked = {
                "state": "api/state",
                "overview": "api/overview",
                "map": "api/map",
                "list": "api/features",
                "list, last page": f"api/features?sort=-agreement&page={args.width // 50}",
                "list, text and labels": "api/features?q=word77",
                "one feature": "api/features/7",
            }
            timed({name: functools.partial(read, address + path) for name, path in asked.items()})
            in_browser(address)


@contextmanager
def serving(explorer: Explorer) -> Iterator[str]:
    """The address of a server of an explorer without a model."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app_for(explorer, Options(port=port)), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join()


def read(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        found: bytes = answer.read()
    return found


def in_browser(address: str) -> None:
    from playwright.sync_api import sync_playwright

    painted, shown = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(10):
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("main h1")
            painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            began = time.perf_counter()
            page.click("header nav a >> nth=1")
            page.wait_for_selector(".latents [data-item]")
            shown.append(1e3 * (time.perf_counter() - began))
            page.close()
        browser.close()
    print("| in the browser | median ms | slowest ms |\n|---|---|---|")
    for name, taken in (("first paint of the first page", painted), ("from a click to the list", shown)):
        print(f"| {name} | {statistics.median(taken):.0f} | {max(taken):.0f} |")


def live(args: argparse.Namespace) -> None:
    """The embedded model with a dictionary of 1,024 latents at its third layer."""
    model = LanguageModel.load("embedded")
    ids = torch.tensor([model.tokenizer(WORDS * 9)["input_ids"][:256]])
    rows = model.capture(ids, [SITE])[SITE][0]
    encoder = normalize(torch.randn(1024, rows.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    threshold = ((rows - rows.mean(dim=0)) @ encoder.T).quantile(0.97, dim=0)
    at = Live(model, SparseAutoencoder(encoder, None, threshold, rows.mean(dim=0)), SITE)
    window = at.window(WORDS * 9)
    hundred = Window(window.ids[:, :100], window.texts[:100], window.special[:100])
    timed(
        {"activations of 100 tokens": lambda: at.activations(hundred), "what it needs, 64": lambda: at.needs(hundred, 0, 64)},
        10,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("index")
    made.add_argument("--width", type=int, default=16_384)
    made.add_argument("--tokens", type=int, default=2**20)
    made.add_argument("--l0", type=float, default=32.0)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    for name in ("queries", "pages", "live"):
        verbs.add_parser(name).add_argument("--width", type=int, default=65_536)
    args = parser.parse_args()
    if args.verb != "index":
        {"queries": queries, "pages": pages, "live": live}[args.verb](args)
    elif args.rows:
        index_here(args.rows, args.width, args.l0, args.tokens, args.threads)
    else:
        index(args)


if __name__ == "__main__":
    main()
