"""Do certified features mean more? Held-out occurrences foretold from words and short phrases, beside matched uncertified ones.

    python bench/default.py run smollm2-15 default           (the dictionaries, their null and the harvest)
    python bench/meaning.py smollm2-15 --method default
    python bench/meaning.py smollm2-15 --method default --control    (trains the frozen-decoder control besides)

The rule, fixed before it was run. Documents that no replica saw are halved, every second one. On the first half a latent's
rate of activity is counted after every phrase of one, two and three tokens that ends at the row. A row of the other half
scores the rate of the longest phrase that the first half has at least twice, shrunk towards the rate of the phrase one token
shorter with the weight of two rows. A latent's figure is the area under the ROC curve (AUC) of these scores, its active rows
against all others: how well someone who read the first half could say where it fires in the second. Latents with fewer than
10 active rows in either half are left out, and dense ones (active on more than a tenth of the rows).

Every certified latent is paired with an uncertified one that is alive, of the same origin (token, position, context), and
next to it in frequency, within a factor of 1.25; none is used twice. Reported is the mean paired difference of the AUC with a
bootstrap interval over pairs. A difference of frequency or origin cannot be its reason. The control's latents (a dictionary
whose decoder rows are random and never move) are paired with the certified ones in the same way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from default import CELLS, DATA, REPLICAS, harvested, recipe_of
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.controls import GAUSSIAN, control_named
from kyomei.evidence.origin import origin
from kyomei.evidence.reproduction import DENSE_FREQUENCY, certify_latents
from kyomei.learning.directions import Directions
from kyomei.learning.fit import fit
from kyomei.learning.least_squares import to_scipy
from kyomei.stages.harvested import activations, tokens_of

LONGEST, SHRINK_ROWS, SEEN = 3, 2.0, 2
FEWEST_ROWS, NEAR, DRAWS = 10, 1.25, 10_000


class Text:
    """Phrases that end at every row: for each length a number by row, the same for the same phrase."""

    def __init__(self, ids: NDArray[np.int64], context: int, place: NDArray[np.int64], document: NDArray[Any]) -> None:
        self.token, self.position, self.document = ids[place], place % context, document
        self.phrases = []
        for length in range(1, LONGEST + 1):
            # What lies before the window's first token is no part of a phrase.
            parts = [np.where(self.position >= back, ids[np.maximum(place - back, 0)], -1) for back in range(length)]
            self.phrases.append(np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)[1].ravel())
        names = np.unique(document)
        self.first = np.isin(document, names[::2])


def foretold(text: Text, active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The score of every row of the second half, from the first half alone."""
    learn, test = text.first, ~text.first
    rate = np.full(int(test.sum()), active[learn].mean())
    for phrase in text.phrases:
        count = np.bincount(phrase[learn], minlength=phrase.max() + 1)
        fired = np.bincount(phrase[learn], weights=active[learn], minlength=phrase.max() + 1)
        here = phrase[test]
        shrunk = (fired[here] + SHRINK_ROWS * rate) / (count[here] + SHRINK_ROWS)
        rate = np.where(count[here] >= SEEN, shrunk, rate)
    return rate


def auc(scores: NDArray[np.float64], active: NDArray[np.bool_]) -> float:
    """Chance that an active row scores higher than another one; ties count half."""
    ranks, count = rankdata(scores), int(active.sum())
    return float((ranks[active].sum() - count * (count + 1) / 2) / (count * (len(active) - count)))


def figures(code: sparse.csr_array, text: Text) -> NDArray[np.float64]:
    """The AUC of every latent; NaN for one that is active too seldom or too often."""
    columns, found = code.tocsc(), np.full(code.shape[1], np.nan)
    for latent in range(code.shape[1]):
        active = np.zeros(code.shape[0], dtype=bool)
        active[columns.indices[columns.indptr[latent] : columns.indptr[latent + 1]]] = True
        enough = min(active[text.first].sum(), active[~text.first].sum()) >= FEWEST_ROWS
        if enough and active.mean() <= DENSE_FREQUENCY:
            found[latent] = auc(foretold(text, active), active[~text.first])
    return found


Latents = list[tuple[str, float, float]]
"""Origin, frequency and AUC of each."""


def paired(certified: Latents, others: Latents) -> list[tuple[float, float]]:
    """AUC of each certified latent and of the one that is like it, the rarest certified first."""
    left, pairs = set(range(len(others))), []
    for kind, frequency, value in sorted(certified, key=lambda one: one[1]):
        distance: Callable[[int], float] = lambda i, at=frequency: abs(np.log(others[i][1] / at))  # type: ignore[misc]  # noqa: E731
        alike = [i for i in left if others[i][0] == kind and distance(i) <= np.log(NEAR)]
        if alike:
            nearest = min(alike, key=distance)
            left.discard(nearest)
            pairs.append((value, others[nearest][2]))
    return pairs


def report(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Means, difference and interval of pairs."""
    values = np.array(pairs).reshape(-1, 2)
    difference = values[:, 0] - values[:, 1]
    drawn = np.random.default_rng(0).choice(difference, (DRAWS, len(difference))).mean(axis=1) if len(difference) else [np.nan]
    low, high = np.quantile(drawn, [0.025, 0.975])
    mean = values.mean(axis=0) if len(values) else [np.nan, np.nan]
    print(
        f"| {name} | {len(values)} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[0] - mean[1]:+.3f} ({low:+.3f} to {high:+.3f}) |",
        flush=True,
    )
    return {"against": name, "pairs": len(values), "certified": mean[0], "other": mean[1], "interval": [low, high]}


def described(sae: SparseAutoencoder, rows: Any, text: Text) -> tuple[sparse.csr_array, list[str], NDArray[np.float64]]:
    """Code on the evidence rows, and of every latent the origin and the AUC."""
    parts = [
        to_scipy(sae.encode(rows.read(part).float(), sparse=True)) for part in np.array_split(np.arange(rows.num_rows), 32)
    ]
    code = sparse.csr_array(sparse.vstack(parts))
    source = origin(code, text.token, text.position, text.document)
    return code, [source.kind(latent) for latent in range(sae.width)], figures(code, text)


def listed(mask: NDArray[np.bool_], code: sparse.csr_array, kinds: list[str], value: NDArray[np.float64]) -> Latents:
    frequency = np.bincount(code.indices, minlength=code.shape[1]) / code.shape[0]
    return [(kinds[i], float(frequency[i]), float(value[i])) for i in np.flatnonzero(mask & ~np.isnan(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", choices=list(CELLS))
    parser.add_argument("--method", default="default")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--control", action="store_true", help="pair with latents of a frozen random decoder as well")
    parser.add_argument("--runs", type=Path, default=Path("runs/default"))
    parser.add_argument("--data", type=Path, default=DATA.parent / "meaning")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cell, steps = CELLS[args.cell], args.steps or CELLS[args.cell].steps
    run, folder = harvested(args.cell, args.runs), args.runs / args.cell / f"{args.method}-{steps}"
    rows, tokens = activations(run, "evidence"), tokens_of(run, "evidence")
    place = rows.row_tokens()
    text = Text(tokens.ids.flatten().numpy().astype(np.int64), tokens.context, place, tokens.document.flatten().numpy()[place])
    saes = [load(folder / "real" / str(i)) for i in range(REPLICAS)]
    null_rows = [GAUSSIAN.rows(part, 1000 + i) for i, part in enumerate((activations(run, "replica-0"), rows))]
    verdicts = certify_latents(saes, rows, (load(folder / "null/0"), load(folder / "null/1")), null_rows[1])
    code, kinds, value = described(saes[0], rows, text)
    certified = listed(verdicts.mask("certified"), code, kinds, value)
    print("| paired with | pairs | AUC, certified | AUC, the others | difference |\n|---|---|---|---|---|")
    uncertified = listed(~verdicts.mask("certified") & ~verdicts.mask("dead"), code, kinds, value)
    found = [report("uncertified latents of the same dictionary", paired(certified, uncertified))]
    if args.control:
        recipe = control_named("frozen-decoder").recipe(recipe_of(cell, args.method, steps, {}))
        directions = folder / "real/0/directions.safetensors"
        known = Directions.load(directions) if directions.exists() else None
        frozen = described(fit(activations(run, "replica-0"), recipe, seed=0, directions=known), rows, text)
        found.append(
            report("latents of a frozen random decoder", paired(certified, listed(np.ones(cell.width, dtype=bool), *frozen)))
        )
    args.data.mkdir(parents=True, exist_ok=True)
    file = args.data / f"{args.cell}.{args.method}.{steps}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
