"""Do certified features mean more to a language model? Detection scores of certified latents beside those of others like them.

    KYOMEI_API_KEY=… python bench/detection.py runs/demo --endpoint https://HOST/v1 --model NAME --pairs 200

The run's explorer has been opened once, so that its index is there. Certified latents are paired as in `bench/meaning.py`: with
an uncertified one that is alive, of the same origin, and next to it in frequency; dense ones are left out. The pairs are drawn
from these by a seed before anything is asked. Then the endpoint names each latent from examples and says which held-out texts
the name fits, as `kyomei label` does: balanced accuracy, chance is a half; another latent's name is the null beside it.
(Detection: Paulo et al., arXiv:2410.13928.) Names and scores are kept in the run, so that a stopped one goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.atomic import sha256_of
from kyomei.errors import KyomeiError
from kyomei.evidence.reproduction import DENSE_FREQUENCY
from kyomei.runs import Run
from kyomei.stages.exports import note_export
from kyomei.stages.index import index_states
from kyomei.stages.named import FOLDER
from kyomei.views.autolabel import AutomaticLabels
from kyomei.views.console import estimate_words
from kyomei.views.endpoint import Client, Endpoint
from kyomei.views.labels import FILE, Label, Labels
from kyomei.views.queries import MOST_ROWS, Index
from meaning import paired, report

Pairs = list[tuple[int, int]]


def pairs_of(index: Index, most: int, seed: int = 0) -> Pairs:
    """A certified latent and an uncertified one like it, so many at most, none twice."""
    rows: list[dict[str, Any]] = []
    for number in range(1, 2 + index.features(frequency=(1e-12, DENSE_FREQUENCY))["total"] // MOST_ROWS):
        rows += index.features(frequency=(1e-12, DENSE_FREQUENCY), page=(number, MOST_ROWS))["rows"]
    kinds: list[list[tuple[str, float, float]]] = [[], []]
    for row in rows:
        kinds[row["status"] != "certified"].append((row["origin"], row["frequency"], row["latent"]))
    pairs = [(int(one), int(other)) for one, other in paired(*kinds)]
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:most]
    return [pairs[i] for i in sorted(drawn)]


def compared(pairs: Pairs, labels: Sequence[Label]) -> list[dict[str, Any]]:
    """The paired difference of scores, then that of scores by other latents' names, of the pairs that have them."""
    known = {label.latent: label for label in labels}
    both = [(known[a], known[b]) for a, b in pairs if a in known and b in known]
    named = {"detection": "score", "detection by another latent's name": "null_score"}
    found = []
    for name, key in named.items():
        scores = [(getattr(a, key), getattr(b, key)) for a, b in both]
        found.append(report(name, [(a, b) for a, b in scores if a is not None and b is not None]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--endpoint", required=True, help="base address, such as http://localhost:11434/v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dictionary", help="as the explorer names it; the first one without it")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--requests-per-minute", type=float, default=60.0)
    parser.add_argument("--yes", action="store_true", help="send without asking")
    args = parser.parse_args()
    run = Run.open(args.run)
    states = {one.name: one for one in index_states(run)}
    chosen = states[args.dictionary or next(iter(states))]
    index, where = Index(chosen.folder), Endpoint(args.endpoint, args.model, os.environ.get("KYOMEI_API_KEY") or None)
    pairs = pairs_of(index, args.pairs)
    if not pairs:
        raise SystemExit("Expected certified latents, and others like them. Found no such pair. Certify the run first.")
    digest = sha256_of(Path(run.path(chosen.path)) / "sae.safetensors")
    wanted = [latent for pair in pairs for latent in pair]
    work = AutomaticLabels(index, Labels(run.path(f"{FOLDER}/{FILE}")), chosen.name, digest, wanted, where.source)
    print("\n".join(estimate_words(work.estimate(), where.address, None)))
    if not (args.yes or input("Send this? [y/N] ").lower().startswith("y")):
        return
    note_export(run, "examples, for automatic labels", where.address, text=True)
    try:
        labels = work.run(Client(where, args.requests_per_minute))
    except KyomeiError as error:
        raise SystemExit(str(error)) from error
    print("| score | pairs | certified | the others | difference |\n|---|---|---|---|---|")
    compared(pairs, labels)


if __name__ == "__main__":
    main()
