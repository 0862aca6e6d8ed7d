"""Kills and signals through the real command line; each verb, resumed, has to end in what an undisturbed one writes.

    python tests/faults/verbs.py --count 100 --seed 0

A fault is a SIGKILL, or one or two of SIGTERM and SIGINT, at any moment of a verb or exactly where it writes a file. After a
signal a process has ten seconds to leave with status 130 and one line. The tables at the end count faults by verb, kind and
mechanism.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.warm import begun, ended

MECHANISMS = ("gba", "ba", "topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated")
VERBS = ("harvest", "check", "train", "certify", "measure", "report")
KINDS = ("kill", "kill at a write", "signal", "signal at a write", "two signals")
SMALL = {
    "source.num_tokens": 6_000,
    "source.context": 64,
    "source.windows_per_batch": 3,
    "source.windows_per_shard": 6,
    "source.replicas": 3,
    "source.spread": 4,
    "resonance.neurons": 64,
    "resonance.rounds": 1,
    "resonance.steps": 3,
    "resonance.frequencies": [0.02],
    "resonance.min_stability": 0.3,
    "dictionary.width": 64,
    "train.steps": 40,
    "train.batch_rows": 64,
    "train.checkpoint_every": 7,
    "train.log_every": 5,
}
STARTING = ("harvest", "train")
"""Verbs that begin a run, and go on with one if they are told to."""
MORE = {"certify": ("--baseline", "topk"), "report": ()}
SECONDS_TO_LEAVE = 10.0
DONE, REFUSED, STOPPED = 0, 2, 130
NEVER = 10**9
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def settings(mechanism: str) -> dict[str, Any]:
    """The recipe of one mechanism's run; one of them ends in the fit of detectors."""
    return {**SMALL, "mechanism.name": mechanism, **({"mechanism.detectors": True} if mechanism == "batchtopk" else {})}


def arguments(verb: str, mechanism: str, folder: Path) -> list[str]:
    """The command line of a verb; one that begins a run says how only where none is yet."""
    line = [verb, str(folder), *([] if verb == "report" else ["--threads", "1"]), *MORE.get(verb, ())]
    if verb in STARTING:
        line.append("--resume")
        if not (folder / "manifest.json").exists():
            line += [part for key, value in settings(mechanism).items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return line


def start(line: Iterable[str]) -> subprocess.Popen[str]:
    """Begin a verb in an interpreter of its own."""
    command = [sys.executable, "-m", "kyomei", *line]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


@dataclass(frozen=True)
class Ended:
    """How a verb ended: its exit status, and what it said."""

    status: int
    said: str


def struck(line: list[str], number: int, at: int) -> Ended:
    """A verb that gets signal `number` where it writes for the at-th time, in a fork of a process that has imported it."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        status = ended(begun(strike, number, at, line, err=said, out=Path(os.devnull)))
        return Ended(status, said.read_text(encoding="utf-8"))


def whole(line: list[str]) -> Ended:
    """A verb to its end, in a fork as well."""
    return struck(line, 0, NEVER)


def strike(number: int, at: int, line: list[str]) -> None:
    """Run the command line, with a signal where it writes for the at-th time: before and after a rename, and before a flush."""
    moments = itertools.count(1)
    replace, fsync = os.replace, os.fsync

    def moment() -> None:
        if next(moments) == at:
            os.kill(os.getpid(), number)

    def replace_between(*paths: Any) -> None:
        moment()
        replace(*paths)
        moment()

    def fsync_after(handle: int) -> None:
        moment()
        fsync(handle)

    os.replace, os.fsync = replace_between, fsync_after  # type: ignore[assignment]
    sys.argv = ["kyomei", *line]
    try:
        from kyomei.__main__ import main

        main()
    finally:
        print(f"moments of writing: {next(moments) - 1}", file=sys.stderr)


@dataclass
class Reference:
    """What an undisturbed run of one mechanism looks like after each verb.

    Attributes:
        into: folder of the copies.
        mechanism: of the run.
        first: copy of a harvested run, whose rows serve every mechanism; none: this one harvests.
        order: of the verbs that a run goes through.
        seconds: that each verb took.
        writes: moments of writing that each had.
    """

    into: Path
    mechanism: str
    first: Callable[[], Path] | None
    order: tuple[str, ...] = VERBS
    seconds: dict[str, float] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    def before(self, verb: str) -> Path | None:
        """A run as it is before a verb; none for the first one."""
        place = self.order.index(verb)
        return self.after(self.order[place - 1]) if place else None

    def after(self, verb: str) -> Path:
        """A run as it is after a verb, made if it was not yet asked for."""
        folder = self.into / f"{self.mechanism}-{verb}"
        if folder.exists():
            return folder
        if verb == "harvest" and self.first is not None:
            return self._with_this_mechanism(shutil.copytree(self.first(), folder))
        new, before = self.into / "new", self.before(verb)
        shutil.rmtree(new, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, new)
        began = time.monotonic()
        # In an interpreter, whose start the moments of a signal may lie in.
        entry = [sys.executable, str(Path(__file__)), "strike", *arguments(verb, self.mechanism, new)]
        done = subprocess.run(entry, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if done.returncode != DONE:
            raise RuntimeError(
                f"undisturbed {verb} of {self.mechanism} ended in status {done.returncode}: {done.stderr[-600:]}"
            )
        self.seconds[verb] = time.monotonic() - began
        self.writes[verb] = int(re.findall(r"moments of writing: (\d+)", done.stderr)[-1])
        return new.rename(folder)

    def _with_this_mechanism(self, folder: Path) -> Path:
        from kyomei.config import Recipe

        Recipe().with_values(settings(self.mechanism)).write(folder / "recipe.yaml")
        return folder


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files of a run, without times and rates; of checkpoints the last: a stop leaves one where it happened."""
    last = {max(path.glob("step-*"), default=path) for path in folder.rglob("checkpoints")}
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if "checkpoints" not in path.parts or path.parent in last:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(_timeless(path)).hexdigest()[:16]
    return found


def _timeless(path: Path) -> bytes:
    if path.name == "events.jsonl":
        events = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([{k: v for k, v in event.items() if k != "rows_per_second"} for event in events]).encode()
    if path.name == "reports.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return json.dumps([{k: v for k, v in line["figures"].items() if k != "seconds"} for line in lines]).encode()
    if path.name == "state.json":
        # The process's generators draw nothing, and begin anywhere.
        return json.dumps({**json.loads(path.read_bytes()), "generators": ""}).encode()
    if path.name == "manifest.json":
        manifest = json.loads(path.read_bytes())
        outputs = {name: "" if _tells_time(name) else digest for name, digest in manifest["outputs"].items()}
        timeless = {name: sorted(manifest.get(name, ())) for name in ("stages", "seconds")}
        changed = {"created": "", "command": "", "history": "", "store": "", "outputs": outputs, **timeless}
        return json.dumps({**manifest, **changed, "sha256": ""}).encode()
    if path.name == "config.json":
        # The name of the run, which is another in each case.
        config = json.loads(path.read_bytes())
        return json.dumps({**config, "provenance": {**config["provenance"], "run": ""}}).encode()
    if path.name == "index.json":
        return json.dumps({**json.loads(path.read_bytes()), "finished": ""}).encode()
    if path.name == "certificate.json":
        return json.dumps({**json.loads(path.read_bytes()), "created": ""}).encode()
    return path.read_bytes()


def _tells_time(name: str) -> bool:
    """Whether a file has a time in it, the name of its run, or the state of its process."""
    return name.endswith(("events.jsonl", "reports.jsonl", "certificate.json", "config.json", "state.json"))


def differences(found: dict[str, str], expected: dict[str, str]) -> str:
    """Files that differ, lack or are too many; empty: none."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    kinds = {name: "lacks" if name not in found else "extra" if name not in expected else "differs" for name in names}
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def hears(process: subprocess.Popen[str]) -> bool:
    """Wait until a process takes signals into its own hands; false if it ended before."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
            if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                return True
        time.sleep(0.002)
    return False


def disturb(kind: str, reference: Reference, verb: str, folder: Path, chance: random.Random) -> list[str]:
    """One verb with one fault; returns what went wrong with the way it left."""
    polite = "signal" in kind
    number = chance.choice([signal.SIGTERM, signal.SIGINT]) if polite else signal.SIGKILL
    line = arguments(verb, reference.mechanism, folder)
    if kind.endswith("at a write"):
        # How long a process takes from its own signal to its end is not seen from here; how it ends is.
        hit = struck(line, number, chance.randint(1, reference.writes[verb]))
        return left_well(hit) if polite else []
    process, began = start(line), time.monotonic()
    if polite and not hears(process):
        return [f"never took signals: {process.communicate()[1][-600:]}"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, chance.uniform(0, reference.seconds[verb]) - (time.monotonic() - began)))
    process.send_signal(number)
    asked = time.monotonic()
    if kind == "two signals":
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT]))
    try:
        said = process.communicate(timeout=SECONDS_TO_LEAVE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"still there {SECONDS_TO_LEAVE:.0f} s after the signal: {process.communicate()[1][-600:]}"]
    reference.seconds["leaving"] = max(reference.seconds.get("leaving", 0.0), time.monotonic() - asked)
    return left_well(Ended(process.returncode, said)) if polite else []


def left_well(left: Ended) -> list[str]:
    """What is wrong with the end of a process that was asked to stop; it may have finished first."""
    lines = [line for line in left.said.splitlines() if line.startswith("kyomei: ")]
    if left.status == DONE or (left.status == STOPPED and len(lines) == 1 and "Traceback" not in left.said):
        return []
    return [f"a signal ended in status {left.status} and {len(lines)} lines: {left.said[-600:]}"]


def usable(folder: Path, verb: str, mechanism: str, chance: random.Random) -> list[str]:
    """Whether a later verb works on a copy of a disturbed run, or says in one line what it lacks."""
    copy = shutil.copytree(folder, folder.with_name("copy"))
    later = chance.choice(VERBS[VERBS.index(verb) :])
    left = whole(arguments(later, mechanism, copy))
    shutil.rmtree(copy)
    if left.status in (DONE, REFUSED) and "Traceback" not in left.said:
        return []
    return [f"afterwards {later} ended in status {left.status}: {left.said[-600:]}"]


def inject(kind: str, verb: str, reference: Reference, into: Path, chance: random.Random) -> tuple[int, list[str]]:
    """One to three faults in a row, then the verb once more; returns their number and what went wrong."""
    folder, before, expected = into / "run", reference.before(verb), reference.after(verb)
    if before is not None:
        shutil.copytree(before, folder)
    times, wrong = chance.choice([1, 1, 2, 3]), []
    for _ in range(times):
        wrong += disturb(kind, reference, verb, folder, chance)
    if folder.exists() and chance.random() < 0.3:
        wrong += usable(folder, verb, reference.mechanism, chance)
    again = whole(arguments(verb, reference.mechanism, folder))
    if again.status != DONE:
        return times, [*wrong, f"resumed, it ended in status {again.status}: {again.said[-600:]}"]
    other = differences(contents(folder), contents(expected))
    return times, [*wrong, *([f"not what an undisturbed one writes: {other}"] if other else [])]


Counts = collections.Counter[tuple[str, ...]]


def campaign(count: int, seed: int, mechanisms: list[str], verbs: list[str], into: Path) -> tuple[Counts, list[str], float]:
    """So many cases, verbs and mechanisms in turn; returns faults of each kind, what went wrong, and the slowest leave."""
    chance = random.Random(seed)
    # No later verb needs a check.
    order = tuple(verb for verb in VERBS if verb != "check" or verb in verbs)
    first = Reference(into, mechanisms[0], None, order)
    references = {name: Reference(into, name, lambda: first.after("harvest"), order) for name in mechanisms[1:]}
    references[first.mechanism] = first
    counts, wrong = Counts(), []
    # Verbs, kinds and mechanisms go round at their own pace, so that all pairs meet.
    for number in range(count):
        verb, kind = verbs[number % len(verbs)], KINDS[(number + number // len(verbs)) % len(KINDS)]
        name = mechanisms[0] if verb == "harvest" else chance.choice(mechanisms)
        place = into / f"case-{number}"
        place.mkdir(parents=True)
        try:
            times, found = inject(kind, verb, references[name], place, chance)
        except RuntimeError as error:
            times, found = 0, [str(error)]
        counts[verb, kind] += times
        counts["", name] += times
        wrong += [f"{number} {kind}, {verb} of {name}: {text}" for text in found]
        result = "; ".join(found) or "as undisturbed"
        print(f"{number} {kind} × {times}, {verb} of {name}: {result}", file=sys.stderr, flush=True)
        shutil.rmtree(place)
    return counts, wrong, max(r.seconds.get("leaving", 0.0) for r in references.values())


def main() -> None:
    if sys.argv[1:2] == ["strike"]:
        strike(0, NEVER, sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mechanisms", nargs="+", default=list(MECHANISMS), choices=MECHANISMS)
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=VERBS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong, slowest = campaign(args.count, args.seed, args.mechanisms, args.verbs, Path(folder))
    print("| verb | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for verb in args.verbs:
        print(f"| {verb} | " + " | ".join(str(counts[verb, kind]) for kind in KINDS) + " |")
    print("\n| mechanism | " + " | ".join(args.mechanisms) + " |\n|---|" + "---|" * len(args.mechanisms))
    print("| faults | " + " | ".join(str(counts["", name]) for name in args.mechanisms) + " |")
    print(f"{args.count} cases, {len(wrong)} things went wrong; the slowest leave took {slowest:.1f} s")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
