"""How often a watch raises a false alarm, and how soon it sees a turn of the text: drawn streams, tested after every document.

    python bench/watch.py --run runs/demo --cache runs/watch-pools --out bench/data/watch.json

"known law" draws documents from a planted law, with a fresh reference for each stream. The others are real: documents of five
kinds are read once by the embedded model and the run's dictionary, and streams are drawn from these without replacement; what
each is held to is drawn anew, and disjoint from it. The streams of one pool share documents, so their number says how finely
rates are told, not how many pools were seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from scipy.stats import beta

from kyomei.dictionary.formats import load
from kyomei.evidence.documents import DocumentFigures, DocumentTable
from kyomei.evidence.drift import LEARNT_SHARE, RATE, WINDOW_DOCUMENTS, Monitor, least_share
from kyomei.evidence.learnt import LIVE, Learnt
from kyomei.runs import Run
from kyomei.source.stdlib import stdlib_documents
from kyomei.source.text import Document
from kyomei.stages.harvest import load_model
from kyomei.stages.watched import TextReader

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
LEAST, MOST = 400, 60_000
"""Characters of a document: shorter ones are left out, of longer ones the beginning is taken."""
IN_TIME = 5 * WINDOW_DOCUMENTS
SHARES = (0.1, 0.2)
"""Of the text that turns."""


def interval(count: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share."""
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, of - count + 1))
    high = 1.0 if count == of else float(beta.ppf(1 - tail, count + 1, of - count))
    return low, high


# ── Documents ──


def known_law(rng: np.random.Generator, width: int = 120, topics: int = 12) -> Callable[[], DocumentFigures]:
    """A law of documents: a mixture of topics, each with its own firing rates; reconstruction varies by document and topic."""
    base = rng.dirichlet(np.full(width, 0.1), topics) * 8
    hard = rng.uniform(0.1, 0.3, topics)

    def draw() -> DocumentFigures:
        rows, mixture = int(rng.integers(30, 1024)), rng.dirichlet(np.full(topics, 0.3))
        fired = rng.binomial(rows, np.minimum(mixture @ base, 0.9)).astype(np.int32)
        latents = np.flatnonzero(fired).astype(np.int32)
        squares = rows * rng.gamma(20, 1 / 20)
        error = squares * float(mixture @ hard) * rng.gamma(100, 1 / 100)
        ones = np.ones(len(latents), dtype=np.float32)
        return DocumentFigures(rows, latents, fired[latents], ones, ones * fired[latents], error, squares)

    return draw


def files(wanted: Callable[[Path], bool], count: int) -> list[Document]:
    """Files of the installed packages, in the order of the hash of their paths."""

    def order(path: Path) -> str:
        return hashlib.sha256(str(path.relative_to(SITE_PACKAGES)).encode()).hexdigest()

    found = []
    for path in sorted((p for p in SITE_PACKAGES.rglob("*") if p.is_file() and wanted(p)), key=order):
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= LEAST:
            found.append(Document(str(path.relative_to(SITE_PACKAGES)), text[:MOST]))
        if len(found) == count:
            break
    return found


def is_test(path: Path) -> bool:
    return "test" in str(path.relative_to(SITE_PACKAGES))


POOLS: dict[str, Callable[[], list[Document]]] = {
    "stdlib": lambda: [Document(d.name, d.text[:MOST]) for d in stdlib_documents() if len(d.text) >= LEAST],
    "python": lambda: files(lambda p: p.suffix == ".py" and not is_test(p), 800),
    "cpp": lambda: files(lambda p: p.suffix in (".h", ".hpp", ".cpp", ".cuh"), 80),
    "prose": lambda: files(lambda p: p.name == "METADATA" or p.suffix in (".md", ".rst") or p.name.startswith("LICENSE"), 80),
    "tests": lambda: files(lambda p: p.suffix == ".py" and p.name.startswith("test_"), 80),
}
NAMES = {
    "stdlib": "the embedded corpus (Python's standard library)",
    "python": "Python of installed packages",
    "cpp": "another language: C++",
    "prose": "another domain: English prose",
    "tests": "a near domain: Python tests",
}


def pools(run: Run, cache: Path, names: Sequence[str]) -> dict[str, DocumentTable]:
    """The figures of some pools' documents, read once."""
    sae = load(run.path("replicas/0"))
    reader: TextReader | None = None
    found = {}
    for name in names:
        documents = POOLS[name]
        path = cache / f"{name}.safetensors"
        if not path.exists():
            reader = reader or TextReader(load_model(run.recipe), sae, run)
            began = time.monotonic()
            figures = [each for document in documents() if (each := reader.read(document)) is not None]
            cache.mkdir(parents=True, exist_ok=True)
            safetensors.numpy.save_file(DocumentTable.of(figures, sae.width).arrays(), path)
            print(f"{name}: {len(figures)} documents, {time.monotonic() - began:.0f} seconds", flush=True)
        found[name] = DocumentTable.of_arrays(safetensors.numpy.load_file(path), sae.width)
    return found


# ── Streams ──


def watched(
    parts: tuple[Sequence[DocumentFigures], Sequence[DocumentFigures], Iterator[DocumentFigures]],
    width: int,
    seed: int,
    to_the_end: bool = True,
) -> dict[str, int]:
    """The document at which each kind first raised an alarm; of scale, ranked and stream."""
    scale, ranked, stream = parts
    monitor = Monitor(DocumentTable.of(scale, width), DocumentTable.of(ranked, width), seed=seed)
    found: dict[str, int] = {}
    for number, document in enumerate(stream, start=1):
        monitor.add(document)
        for kind in monitor.alarmed:
            found.setdefault(kind, number)
        if found and not to_the_end:
            break
    return found


def false_alarms(found: list[dict[str, int]], documents: int) -> dict[str, Any]:
    count = sum(bool(each) for each in found)
    kinds = {kind: sum(kind in each for each in found) for kind in ("text", "reconstruction", "features", "learnt")}
    low, high = interval(count, len(found))
    return {"streams": len(found), "documents": documents, "alarms": count, "kinds": kinds, "interval": [low, high]}


def simulated(streams: int, documents: int, ranked: int) -> dict[str, Any]:
    found = []
    for seed in range(streams):
        draw = known_law(np.random.default_rng([1, seed]))
        scale, reference = [draw() for _ in range(100)], [draw() for _ in range(ranked)]
        found.append(watched((scale, reference, (draw() for _ in range(documents))), 120, seed))
    return {"ranked": ranked, **false_alarms(found, documents)}


def held_out(pool: DocumentTable, streams: int, scale: int, ranked: int) -> dict[str, Any]:
    found = []
    for seed in range(streams):
        order = np.random.default_rng([2, seed]).permutation(len(pool)).tolist()
        parts = [pool[i] for i in order]
        split = (parts[:scale], parts[scale : scale + ranked], iter(parts[scale + ranked :]))
        found.append(watched(split, pool.width, seed))
    return {"ranked": ranked, **false_alarms(found, len(pool) - scale - ranked)}


Parts = tuple[list[DocumentFigures], list[DocumentFigures], Iterator[DocumentFigures]]


def drawn(pool: DocumentTable, foreign: DocumentTable, seed: int, shape: tuple[int, int, int], share: float) -> Parts:
    """Scale, reference and a stream whose text turns; of a shape: documents of the scale, ranked ones, quiet ones."""
    scale, ranked, quiet = shape
    # What was chosen for the watch was chosen on streams of [3, seed].
    rng = np.random.default_rng([5, seed])
    own = iter([pool[i] for i in rng.permutation(len(pool)).tolist()])
    other = iter([foreign[i] for i in rng.permutation(len(foreign)).tolist()])
    lead, reference = [next(own) for _ in range(scale)], [next(own) for _ in range(ranked)]
    strange = rng.random(quiet + IN_TIME) < np.where(np.arange(quiet + IN_TIME) < quiet, 0.0, share)
    return lead, reference, (next(other) if each else next(own) for each in strange)


def seen_by_direction(pool: DocumentTable, foreign: DocumentTable, streams: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """In how many streams the learnt direction alone sees a turn of a tenth in time, at its own share of the rate."""
    seen = 0
    for seed in range(streams):
        scale, ranked, stream = drawn(pool, foreign, seed, shape, SHARES[0])
        learnt = Learnt(DocumentTable.of(scale, pool.width), DocumentTable.of(ranked, pool.width))
        draws = np.random.default_rng([6, seed])
        for document in stream:
            learnt.bet(document, draws.random(LIVE))
        seen += learnt.highest >= 1 / (RATE * LEARNT_SHARE)
    return {"streams": streams, "seen": seen, "share_seen": seen / streams, "interval": list(interval(seen, streams))}


def turned(
    pool: DocumentTable, foreign: DocumentTable, streams: int, scale: int, ranked: int, quiet: int, share: float
) -> dict[str, Any]:
    """Streams whose text turns after `quiet` documents: from then on, each document is foreign with this probability."""
    delays: list[int | None] = []
    first: dict[str, int] = {}
    before = 0
    for seed in range(streams):
        parts = drawn(pool, foreign, seed, (scale, ranked, quiet), share)
        found = watched(parts, pool.width, seed, to_the_end=False)
        at = min(found.values(), default=None)
        if at is not None and at <= quiet:
            before += 1
            continue
        delays.append(None if at is None else at - quiet)
        for kind, number in found.items():
            first[kind] = first.get(kind, 0) + (number == at)
    seen = [delay for delay in delays if delay is not None]
    low, high = interval(len(seen), len(delays))
    quantiles = {f"{q:g}": float(np.quantile([d or np.inf for d in delays], q, method="higher")) for q in (0.1, 0.5, 0.9)}
    quantiles = {q: value if np.isfinite(value) else None for q, value in quantiles.items()}
    figures = {"streams": len(delays), "seen": len(seen), "share_seen": len(seen) / len(delays), "interval": [low, high]}
    return {"share": share, "quiet": quiet, "ranked": ranked, **figures, "delay": quantiles, "first": first, "before": before}


PARTS = ("known", "held-out", "turns", "references")
REFERENCES = (60, 120, 240, 430)
"""Documents that are ranked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--cache", type=Path, default=Path("runs/watch-pools"))
    parser.add_argument("--out", type=Path, default=Path("bench/data/watch.json"))
    parser.add_argument("--streams", type=int, default=200, help="for false alarms")
    parser.add_argument("--turns", type=int, default=60, help="streams of each kind of turn")
    parser.add_argument("--part", choices=PARTS, action="append", help="all, if none is named")
    parser.add_argument("--share", type=float, action="append", help="of the text that turns; 0.1 and 0.2, if none is named")
    parser.add_argument("--base", choices=("stdlib", "python"), action="append", help="both, if none is named")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    def keep(name: str, value: Any) -> None:
        print(name, json.dumps(value), flush=True)
        known = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        asked.out.write_text(json.dumps({**known, name: value}, indent=1) + "\n")

    parts = asked.part or PARTS
    if "known" in parts:
        keep("known law", simulated(asked.streams, 400, 300))
        keep("least share", {str(n): least_share(n) for n in (60, 100, 250, 300, 500)})
    if set(parts) <= {"known"}:
        return
    table = pools(Run.open(asked.run), asked.cache, [*(asked.base or ("stdlib", "python")), "cpp", "prose", "tests"])
    keep(
        "pools", {name: {"what": NAMES[name], "documents": len(t), "rows": int(t.num_rows.sum())} for name, t in table.items()}
    )
    shape = {"stdlib": (60, 240, 0), "python": (60, 430, 30)}
    for base, (scale, ranked, quiet) in shape.items():
        if base not in (asked.base or shape):
            continue
        if "held-out" in parts:
            keep(f"held out, {base}", held_out(table[base], asked.streams, scale, ranked))
        for name in ("cpp", "prose") if "references" in parts and base == "python" else ():
            for count in REFERENCES:
                found = seen_by_direction(table[base], table[name], asked.turns, (scale, count, quiet))
                keep(f"direction alone, {base} to {name}, {count} ranked", found)
        for name in ("cpp", "prose", "tests") if "turns" in parts else ():
            for share in asked.share or SHARES:
                found = turned(table[base], table[name], asked.turns, scale, ranked, quiet, share)
                keep(f"turn of {share:g}, {base} to {name}", found)


if __name__ == "__main__":
    main()
