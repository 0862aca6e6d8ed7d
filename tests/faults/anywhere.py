"""Random faults through real verbs on 1 and 2 processes, rows at an address; gone on with, all ends in the undisturbed bytes.

    python tests/faults/anywhere.py --count 60 --seed 0

A fault is a kill -9, a SIGTERM, a full disk or an address that no longer answers. It happens where a process writes a file or
asks the address for the so-many-th time, so that a machine's speed does not matter: while it harvests, searches for directions,
trains on rows streamed from the model, places latents, fits decoders for the last time, or certifies. Verbs run in forks.
"""

from __future__ import annotations

import argparse
import collections
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import warm
from tests.faults.dropping import DroppingFileSystem
from tests.faults.verbs import contents, differences

KINDS = ("drop", "kill", "term", "full")
DONE, REFUSED, STOPPED = 0, 2, 130
SMALL = {
    "source.num_tokens": 3_000,
    "source.streamed_tokens": 3_000,
    "source.context": 32,
    "source.windows_per_batch": 4,
    "source.windows_per_shard": 8,
    "source.spread": 2,
    "resonance.neurons": 32,
    "resonance.rounds": 1,
    "resonance.steps": 2,
    "resonance.frequencies": [0.05],
    "resonance.min_stability": 0.0,
    "dictionary.width": 32,
    "train.steps": 12,
    "train.batch_rows": 32,
    "train.checkpoint_every": 4,
    "train.log_every": 4,
}
WORDS = ("the", "a", "river", "stone", "walks", "sleeps", "under", "green", "old", "and", "never", "tree", "house", "light")
STAGES = ("harvest", "train", "certify")
"""Verbs, each on what the one before left."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one process of a verb: at its `at`-th moment of writing or asking."""

    kind: str
    at: int
    victim: int = 0

    def mount(self, moments: Path) -> None:
        """Have it happen in this process; how many moments there were is written down in the end."""
        seen, replace, away = [0], os.replace, [False]

        def moment(far: bool) -> None:
            seen[0] += 1
            moments.write_text(str(seen[0]))
            if seen[0] == self.at:
                if self.kind in ("kill", "term"):
                    os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)
                if self.kind == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                away[0] = self.kind == "drop"
            if far and away[0]:
                raise ConnectionError("network is unreachable")

        def struck(*paths: Any) -> None:
            moment(far=False)
            replace(*paths)

        os.replace = struck  # type: ignore[assignment]
        os.fsync = lambda handle: None  # type: ignore[assignment]  # a kill leaves what the system has taken
        DroppingFileSystem.asked = staticmethod(lambda operation: moment(far=True))


def line_of(verb: str, place: Path, address: bool) -> list[str]:
    """The command line of a verb on the run of a folder; one that begins a run says how only where none is yet."""
    line = [verb, str(place / "run"), "--threads", "1"]
    if verb == "certify":
        return line
    if verb == "harvest":
        values = {**SMALL, "source.text": str(place.parent / "text.jsonl")}
        values |= {"source.store": f"drop://{place}/far"} if address else {}
        line += [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [*line, "--resume"]


def run(verb: str, place: Path, ranks: int = 1, fault: Fault | None = None, address: bool = True) -> tuple[list[int], str]:
    """One verb on so many processes; their exit statuses, and what they said."""
    said, children = place / "said", []
    said.unlink(missing_ok=True)
    for rank, known in enumerate(warm.ranks(ranks)):
        own = fault if fault is not None and fault.victim == rank else Fault("", 0)
        work = (with_a_fault, own, place / f"moments-{rank}", *line_of(verb, place, address))
        children.append(warm.begun(*work, err=said, env={**known, "KYOMEI_CACHE": str(place / "copies")}))
    codes = [warm.ended(child) for child in children]
    return codes, said.read_text(errors="replace")


def with_a_fault(fault: Fault, moments: Path, *line: str) -> None:
    """A verb, in this process."""
    fault.mount(moments)
    warm.command_line(*line)


@dataclass(frozen=True)
class Reference:
    """A verb undisturbed: the place before and after it, and the moments that each process had."""

    before: Path
    after: Path
    moments: list[int]


class References:
    """Undisturbed verbs, each run when it is first asked for.

    Args:
        into: folder of the copies. All verbs run in one place, because recipes name their address.
    """

    def __init__(self, into: Path) -> None:
        self.into, self.place = into, into / "place"
        self._made: dict[tuple[str, int], Reference] = {}
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(400)]
        (into / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def of(self, verb: str, ranks: int) -> Reference:
        if (verb, ranks) not in self._made:
            number = STAGES.index(verb)
            before = self.of(STAGES[number - 1], 1).after if number else self.into / "nothing"
            before.mkdir(exist_ok=True)
            self.put(before)
            codes, said = run(verb, self.place, ranks)
            if any(codes):
                raise RuntimeError(f"undisturbed {verb} on {ranks} ended in {codes}: {said[-1500:]}")
            print(f"undisturbed {verb} on {ranks}", file=sys.stderr, flush=True)
            moments = [int((self.place / f"moments-{rank}").read_text()) for rank in range(ranks)]
            after = shutil.copytree(self.place, self.into / f"{verb}-{ranks}")
            self._made[verb, ranks] = Reference(before, after, moments)
        return self._made[verb, ranks]

    def put(self, folder: Path) -> None:
        """Have the place hold what a folder holds, without copies of rows."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(folder, self.place)
        shutil.rmtree(self.place / "copies", ignore_errors=True)

    def as_in_a_folder(self) -> str:
        """Products that differ where rows lie in the run's folder; empty: none. What says where they lie may."""
        far = contents(self.of("certify", 1).after / "run")
        self.put(self.into / "nothing")
        for verb in STAGES:
            codes, said = run(verb, self.place, address=False)
            if any(codes):
                raise RuntimeError(f"{verb} in a folder ended in {codes}: {said[-1500:]}")
        near = contents(self.place / "run")
        found = {**contents(self.of("certify", 1).after / "far"), **far}
        told = {"manifest.json", "recipe.yaml", "run.json"}
        return differences(*({name: held[name] for name in held if name not in told} for held in (found, near)))


def everything(place: Path) -> dict[str, str]:
    """Digests of all that a place holds, but what tells the name that a run has at its address."""
    found = {f"{part}/{name}": digest for part in ("run", "far") for name, digest in contents(place / part).items()}
    return {name: digest for name, digest in found.items() if name != "far/run.json"}


def inject(fault: Fault, verb: str, ranks: int, references: References) -> list[str]:
    """A verb with a fault, then once more; returns what went wrong."""
    reference, place = references.of(verb, ranks), references.place
    references.put(reference.before)
    codes, said = run(verb, place, ranks, fault)
    code, wrong = codes[fault.victim], []
    # How often ranks ask differs a little from run to run; one process does the same each time.
    if ranks == 1 and int((place / f"moments-{fault.victim}").read_text()) < fault.at:
        wrong.append("the fault never struck")
    allowed = {"kill": {-signal.SIGKILL}, "term": {STOPPED}}.get(fault.kind, {REFUSED}) | {DONE}
    # One rank may be told of another's refusal before it meets its own.
    if code not in allowed and not (ranks > 1 and code == REFUSED):
        wrong.append(f"ended in {codes}: {said[-1200:]}")
    lines = [line for line in said.splitlines() if line.startswith("kyomei: ")]
    own = {"drop": "to answer. Found ConnectionError", "full": "space on the disk"}.get(fault.kind, "")
    refused = code == REFUSED or (fault.kind == "term" and code == STOPPED)
    if "Traceback" in said or (refused and not any(own in line for line in lines)):
        wrong.append(f"not said in a line that names it: {said[-1200:]}")
    again, said = run(verb, place, ranks)
    if any(again):
        return [*wrong, f"gone on with, it ended in {again}: {said[-1200:]}"]
    other = differences(everything(place), everything(reference.after))
    return [*wrong, *([f"not the bytes of an undisturbed one: {other}"] if other else [])]


def campaign(count: int, seed: int, stages: list[str], into: Path) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """So many faults, verbs and kinds in turn; returns how many of each there were, and what went wrong."""
    chance, counts, wrong = random.Random(seed), collections.Counter[tuple[str, str]](), []
    references = References(into)
    cases = [(verb, ranks) for verb in stages for ranks in (1, 2)]
    for number in range(count):
        turn, case = divmod(number, len(cases))
        (verb, ranks), kind = cases[case], KINDS[(case + turn) % len(KINDS)]
        victim = chance.randrange(ranks)
        fault = Fault(kind, chance.randint(1, references.of(verb, ranks).moments[victim]), victim)
        found = inject(fault, verb, ranks, references)
        name = f"{verb}, {ranks} process{'es' if ranks > 1 else ''}"
        counts[name, kind] += 1
        wrong += [f"{number} {name}, {fault}: {text}" for text in found]
        print(f"{number} {name}, {fault}: {'; '.join(found) or 'as undisturbed'}", file=sys.stderr, flush=True)
    if stages == list(STAGES):
        other = references.as_in_a_folder()
        wrong += [f"rows in a folder give other products: {other}"] if other else []
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = campaign(args.count, args.seed, args.stages, Path(folder))
    print("| verb | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"| {name} | " + " | ".join(str(counts[name, kind]) for kind in KINDS) + " |")
    print(f"{sum(counts.values())} faults, {len(wrong)} things went wrong")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
