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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.errors import EvidenceError, KyomeiError
from kyomei.evidence.reproduction import DENSE_FREQUENCY
from kyomei.runs import Run
from kyomei.stages.label import label_run
from kyomei.stages.progress import Reporter
from kyomei.views.autolabel import Estimate
from kyomei.views.console import estimate_words
from kyomei.views.endpoint import Client, Endpoint
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


def compared(pairs: Pairs, labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paired difference of scores, then that of scores by other latents' names, of the pairs that have them."""
    known = {label["latent"]: label for label in labels}
    both = [(known[a], known[b]) for a, b in pairs if a in known and b in known]
    named = {"detection": "score", "detection by another latent's name": "null_score"}
    found = []
    for name, key in named.items():
        scores = [(a[key], b[key]) for a, b in both]
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
    where, pairs = Endpoint(args.endpoint, args.model, os.environ.get("KYOMEI_API_KEY") or None), Pairs()

    def choose(index: Index) -> list[int]:
        pairs.extend(pairs_of(index, args.pairs))
        if not pairs:
            raise EvidenceError("certified latents, and others like them", "no such pair", "certify the run first")
        return [latent for pair in pairs for latent in pair]

    def agree(estimate: Estimate) -> bool:
        print("\n".join(estimate_words(estimate, where.address, None)))
        return args.yes or input("Send this? [y/N] ").lower().startswith("y")

    client = Client(where, args.requests_per_minute)
    try:
        found = label_run(Run.open(args.run), client, Reporter(), agree, dictionary=args.dictionary, latents=choose)
    except KyomeiError as error:
        raise SystemExit(str(error)) from error
    print("| score | pairs | certified | the others | difference |\n|---|---|---|---|---|")
    compared(pairs, found["labels"])


if __name__ == "__main__":
    main()
