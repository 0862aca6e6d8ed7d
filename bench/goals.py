"""Goals on the embedded model: planted token sets, labels that mean nothing, and kinds of real documents.

    kyomei demo                                       # a certified run
    python bench/goals.py --run runs/demo --out bench/data/goals.json

named     A set of three words is drawn from those that the dictionary has a feature for: the word is the strongest token of a
          certified feature whose origin is the token, and that feature is active on at least 95 % of the word's occurrences, of
          which there are at least twenty, in the evidence text, which no replica saw. Into half of some documents without these
          words eight of them are put, at random places. The label is that they are there.
drawn     The same with three words drawn from the frequent words of the run's text, whether or not any feature stands for them.
random    On the documents of `real`, labels drawn at random, 100 times by document and 100 times by group: how often does the
          interval of the AUC cover 0.5?
real      Kinds of documents, a goal each: modules of the standard library that the model never saw, its tests, Debian's manual
          pages in English and in German, and its copyright files. A group is a file, of which at most four pieces are taken.

curve     On the documents of `real`: sets of 1 to 20 features beside the probe, and the least size that comes within 0.03.

The search, its baselines and its nulls are those of `kyomei goals`, which is called for all but `random` and `curve`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.dictionary.formats import load
from kyomei.evidence.goals.baselines import all_features, probe
from kyomei.evidence.goals.search import chosen_set
from kyomei.evidence.goals.targets import Target, targets, three_parts
from kyomei.evidence.goals.telling import Search
from kyomei.evidence.survey import survey
from kyomei.runs import Run
from kyomei.source.labelled import LabelledFile, Labels
from kyomei.source.parts import unit_hash
from kyomei.source.stdlib import stdlib_documents
from kyomei.stages.goals import Asked, goals_run, searched
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import activations, tokens_of
from kyomei.stages.pools import Subject, pools_of
from kyomei.stages.progress import Reporter

SETS, WORDS, PUT = 4, 3, 8
PLANTED_DOCUMENTS, PLANTED_CHARACTERS = 320, 350
FREQUENT = 100
FIRES, OCCURRENCES = 0.95, 20
KIND_DOCUMENTS, PIECE_CHARACTERS, PIECES = 240, 500, 4
LABELLINGS = 100
LARGEST, NEAR = 20, 0.03
MANUALS = Path("/usr/share/man")
_MARKUP = re.compile(r"\\f\(?..|\\f.|\\\((..)|\\.")
"""What says how a manual page looks, umlauts among it."""
_UMLAUTS = {":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü", "ss": "ß"}


# ── Documents ──


def pieces(text: str, length: int, rng: random.Random, count: int) -> list[str]:
    """Some stretches of a text, each from the beginning of a line, none over another."""
    starts = [at for at in range(0, len(text) - length, length)]
    found = [text[text.find("\n", at) + 1 :][:length] for at in rng.sample(starts, min(count, len(starts)))]
    return [piece for piece in found if len(piece.strip()) > length / 2]


def named_words(run: Run) -> list[str]:
    """Words that have a certified feature, which is active wherever they stand in text that no replica saw."""
    by_token = [feature for feature in Subject.of(run).features if feature["origin"]["kind"] == "token" and feature["tokens"]]
    rows, numbers = activations(run, "evidence"), {text: i for i, text in enumerate(load_model(run.recipe).vocabulary())}
    ids = tokens_of(run, "evidence").ids.flatten().numpy()[rows.row_tokens()]
    (found,) = survey([load(run.path("replicas/0"))], rows, np.arange(len(ids)))
    assert found.code is not None
    words = set()
    for feature in by_token:
        word = feature["tokens"][0][0]
        here = np.flatnonzero(ids == numbers[word])
        if is_word(word) and len(here) >= OCCURRENCES:
            active = (found.code[here][:, [feature["index"]]] > 0).sum() / len(here)
            words |= {word} if active >= FIRES else set()
    return sorted(words)


def frequent_words(run: Run) -> list[str]:
    """Words of the text that the run's first replica learnt from."""
    counts = Counter(tokens_of(run, "replica-0").ids.flatten().tolist())
    texts = load_model(run.recipe).vocabulary()
    return sorted(text for i, text in enumerate(texts) if counts[i] >= FREQUENT and is_word(text))


def is_word(token: str) -> bool:
    """Whether a token is a blank and a word."""
    return token[:1] == " " and token[1:].isalpha() and len(token) > 3


def planted_file(path: Path, known: list[str], seed: int) -> list[str]:
    """Write documents of one planted set; returns its words."""
    rng = random.Random(f"planted {seed}")
    words = rng.sample(known, WORDS)
    there = re.compile("|".join(rf"\b{word.strip()}\b" for word in words))
    records: list[dict[str, Any]] = []
    documents = [d for d in stdlib_documents() if d.held_out]
    rng.shuffle(documents)
    for document in documents:
        for piece in pieces(document.text, PLANTED_CHARACTERS, rng, 6):
            if len(records) < PLANTED_DOCUMENTS and not there.search(piece):
                label = len(records) % 2
                records.append({"text": put(piece, words, rng) if label else piece, "label": label, "group": document.name})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return words


def put(piece: str, words: list[str], rng: random.Random) -> str:
    """A text with some words put in before blanks."""
    for _ in range(PUT):
        blanks = [at for at, char in enumerate(piece) if char == " " and at and piece[at - 1] not in " \n"]
        at = rng.choice(blanks or [len(piece)])
        piece = piece[:at] + rng.choice(words) + piece[at:]
    return piece


def kinds() -> dict[str, Iterator[tuple[str, str]]]:
    """(name, text) of the files of each kind."""
    root = Path(sysconfig.get_paths()["stdlib"])

    def manual(folder: Path) -> Iterator[tuple[str, str]]:
        for path in sorted(folder.glob("man[158]/*.gz")):
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                lines = [line for line in file if not line.startswith((".", "'"))]
            yield str(path), _MARKUP.sub(lambda found: _UMLAUTS.get(found[1] or "", ""), "".join(lines))

    def read(paths: list[Path]) -> Iterator[tuple[str, str]]:
        for path in paths:
            yield str(path), path.read_text(encoding="utf-8", errors="replace")

    return {
        "module": ((d.name, d.text) for d in stdlib_documents() if d.held_out),
        "test": read(sorted((root / "test").glob("test_*.py"))),
        "manual": manual(MANUALS),
        "german manual": manual(MANUALS / "de"),
        "copyright": read(sorted(Path("/usr/share/doc").glob("*/copyright"))),
    }


def kinds_file(path: Path) -> Counter[str]:
    """Write documents of all kinds that this machine has; returns how many of each."""
    records, counts = [], Counter[str]()
    for kind, files in kinds().items():
        rng = random.Random(f"kind {kind}")
        listed, seen = list(files), set[str]()
        rng.shuffle(listed)
        for name, text in listed:
            for piece in pieces(text, PIECE_CHARACTERS, rng, PIECES):
                if counts[kind] < KIND_DOCUMENTS and piece not in seen:
                    seen.add(piece)
                    records.append({"text": piece, "label": kind, "group": name})
                    counts[kind] += 1
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return counts


# ── Measurements ──


def brief(goal: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a goal."""
    kept = ("told", "figures", "sets", "beside", "shuffled", "replicas", "data")
    return {"features": goal["detector"]["features"], "pooling": goal["detector"]["pooling"], **{k: goal[k] for k in kept}}


def random_labels(run: Run, path: Path) -> dict[str, Any]:
    """How often the interval covers chance."""
    subject, model = Subject.of(run), load_model(run.recipe)
    file = LabelledFile(path)
    labels = Labels.read(file)
    pools, _ = pools_of(subject, file, labels, model, Reporter())
    names = [str(group) for group in labels.groups]
    numbers = np.unique(names, return_inverse=True)[1]
    found = {}
    for kind in ("document", "group"):
        covered, values, widths = 0, [], []
        for seed in range(LABELLINGS):
            rng = np.random.default_rng([seed, kind == "group"])
            drawn = rng.random(len(names)) < 0.5
            label = (drawn if kind == "document" else drawn[numbers]).astype(np.float64)
            target = Target("random", "label", np.arange(len(names)), label)
            parts = three_parts(target, names, lambda group, seed=seed: unit_hash(seed, group))
            search = Search(target, parts, numbers, seed)
            chosen = chosen_set(pools.features, search.sides(), search.sets(pools.features))
            auc = search.told(chosen.values(pools.features))
            low, high = auc["interval"]
            covered += low <= 0.5 <= high
            values.append(auc["value"])
            widths.append(high - low)
        quantiles = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
        found[kind] = {
            "labellings": LABELLINGS,
            "covered": int(covered),
            "auc 5/50/95 %": quantiles,
            "mean width": float(np.mean(widths)),
        }
    return found


def curves(run: Run, path: Path) -> dict[str, Any]:
    """By goal the AUC of the set of each size, the probe's, and the least size that comes within 0.03 of it."""
    subject, model = Subject.of(run), load_model(run.recipe)
    file = LabelledFile(path)
    labels = Labels.read(file)
    pools, _ = pools_of(subject, file, labels, model, Reporter())
    found = {}
    for target in (target for name, said in labels.goals.items() for target in targets(name, said)):
        search = searched(target, [str(group) for group in labels.groups], run.recipe.seed)
        (scores, _) = probe(pools.rows, search.sides())
        sets = search.sets(pools.features, most=LARGEST)
        reached = {len(each.features): search.told(each.values(pools.features))["value"] for each in sets}
        (whole, _), beside = all_features(pools.features, search.sides()), search.told(scores)["value"]
        least = next((size for size, auc in reached.items() if auc >= beside - NEAR), None)
        others = {"probe": beside, "all": search.told(whole)["value"]}
        found[target.name] = {**others, "auc by size": reached, "within 0.03 from": least}
    return found


def line(name: str, goal: dict[str, Any]) -> str:
    """One row of the table."""
    figures, beside = goal["figures"], goal["beside"]

    def shown(figure: dict[str, Any]) -> str:
        return f"{figure['value']:.3f} ({figure['interval'][0]:.3f}–{figure['interval'][1]:.3f})"

    same = sum(r["same"] for r in goal["replicas"]) / len(goal["replicas"])
    cells = [
        name, str(len(goal["features"])), goal["pooling"], *(shown(figures[key]) for key in ("auc", "precision", "recall")),
        f"{beside['all features']['auc']['value']:.3f}", shown(beside["probe"]["auc"]), shown(beside["probe"]["less"]),
        f"{beside['bag of tokens']['auc']['value']:.3f}",
        f"{goal['shuffled']['median']:.2f} ({goal['shuffled']['range'][0]:.2f}–{goal['shuffled']['range'][1]:.2f})",
        f"{same:.1f} of {len(goal['features'])}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=["named", "drawn", "real", "random", "curve"])
    asked = parser.parse_args()
    run, work = Run.open(asked.run), asked.run / "goals"
    work.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for part in asked.parts:
        began = time.monotonic()
        if part in ("named", "drawn"):
            known = named_words(run) if part == "named" else frequent_words(run)
            results[part] = {}
            for seed in range(SETS):
                path = work / f"{part}-{seed}.jsonl"
                words = planted_file(path, known, seed)
                (goal,) = find(run, path).values()
                results[part][" ".join(words)] = {"words": words, "known": len(known), **brief(goal)}
        elif part == "real":
            print(kinds_file(work / "kind.jsonl"))
            results[part] = {name: brief(goal) for name, goal in find(run, work / "kind.jsonl").items()}
        else:
            results[part] = (random_labels if part == "random" else curves)(run, work / "kind.jsonl")
            print(json.dumps(results[part], indent=1))
        print(part, round(time.monotonic() - began), "seconds")
        for name, goal in results[part].items() if part not in ("random", "curve") else ():
            print(line(name, goal))
        asked.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def find(run: Run, path: Path) -> dict[str, Any]:
    """What `kyomei goals` finds."""
    with run.lock():
        return goals_run(run, Asked(path, (), "text", "group"), Reporter())


if __name__ == "__main__":
    main()
