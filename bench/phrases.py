"""Search by text: does a phrase bring features that fire on what stands in it?

python bench/phrases.py RUN

bench/phrases.json has the phrases, and the tokens that each should bring; it was written before a dictionary was looked at. A
feature fits if at least half of its strongest examples have one of these tokens in focus (white space and case do not count).
A phrase is answered if one fits among the first ten.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kyomei.runs import Run
from kyomei.stages.explore import explorer_of
from kyomei.views.queries import Index
from kyomei.views.server.shelf import LiveModels, Shelf

FIRST = 10


def is_fitting(examples: list[dict[str, Any]], wanted: set[str]) -> bool:
    focus = [example["tokens"][example["focus"]].strip().lower() for example in examples]
    return bool(focus) and sum(token in wanted for token in focus) * 2 >= len(focus)


def found(index: Index, latents: list[int], wanted: set[str]) -> list[int]:
    """The fitting ones of some latents."""
    return [latent for latent in latents if is_fitting(index.examples(latent, "top"), wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    explorer = explorer_of(Run.open(parser.parse_args().run))
    shelf, models = Shelf(explorer), LiveModels(explorer, off=False)
    models.load()
    first = shelf.dictionary(None)
    live, index = models.live(first), shelf.index(None)
    print("| phrase | fitting features among the first ten | their strongest tokens |\n|---|---|---|")
    answered, asked = 0, json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    for one in asked:
        best = live.search(live.window(one["phrase"]), shelf.ordinary(None), FIRST)
        fitting = found(index, [row["latent"] for row in best], {token.lower() for token in one["tokens"]})
        answered += bool(fitting)
        tokens = [", ".join(token.strip() for token in (index.feature(i) or {})["top_tokens"][:3]) for i in fitting[:3]]
        print(f"| `{one['phrase']}` | {', '.join(map(str, fitting)) or 'none'} | {'; '.join(tokens)} |")
    print(f"\n{answered} of {len(asked)} phrases are answered.")


if __name__ == "__main__":
    main()
