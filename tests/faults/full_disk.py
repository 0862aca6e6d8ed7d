"""A disk that fills anywhere in a verb; with room made, the same command ends in what an undisturbed one writes.

    python tests/faults/full_disk.py --count 40 --seed 0

The disk of a case has room for so many bytes below the run's folder and takes none after them, not even those that say what
went wrong. Each verb runs in a fork of a process that has imported it.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import warm
from tests.faults.verbs import SMALL, contents, differences

ENDLESS = 1 << 40
DONE, FAILED_MEMBER, REFUSED = 0, 1, 2
RUN, FAMILY, TABLE = "run", "family", "table"
PLACE = "place"
"""Where all of them are while a verb runs: some files name their folder."""
VERBS: dict[str, tuple[str, list[str]]] = {
    "train": (RUN, ["train", RUN]),
    "measure": (RUN, ["measure", RUN]),
    "certify": (RUN, ["certify", RUN]),
    "report": (RUN, ["report", RUN]),
    "index": (RUN, ["index", RUN]),
    "compare": (TABLE, ["compare", RUN, "--out", TABLE]),
    "family": (FAMILY, ["train", FAMILY, "--from", RUN]),
    "family's report": (FAMILY, ["report", FAMILY]),
}
"""What each verb writes into, and its command line; each works on what those before it have left."""
OPTIONS = {
    "train": {**SMALL, "train.steps": 14},
    "family": {"train.steps": 7, "dictionary.width": [32, 48]},
}


@dataclass(frozen=True)
class Ended:
    """How a verb ended: its exit status, what it said, and the bytes that it wrote into the folder."""

    status: int
    said: str
    written: int


class Disk:
    """Room for so many bytes below a folder. What is deleted gives none back, so that the same bytes fill it each time."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room, self.left = folder.resolve(), room, room
        self._open = io.open

    def take(self, size: int) -> int:
        """So many of the bytes as there is room for, at least one."""
        if size and not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(size, self.left)
        self.left -= taken
        return taken

    def mount(self) -> None:
        """Have whatever this process writes below the folder go to this disk."""
        from safetensors import SafetensorError

        from kyomei.learning import checkpoint

        whole = checkpoint.save_file

        def save_file(tensors: dict[str, Any], path: Path) -> None:
            whole(tensors, path)
            size = path.stat().st_size
            if self.take(min(size, max(self.left, 1))) < size:
                os.truncate(path, size // 2)
                # As the library puts what the system says.
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        checkpoint.save_file = save_file  # type: ignore[assignment]
        builtins.open = io.open = self.open  # type: ignore[assignment]

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        """The built-in `open`, but for files of this disk that are written."""
        here = isinstance(file, str | Path) and Path(file).resolve().is_relative_to(self.folder)
        if not here or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, *text, **more)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **more)


class _File(io.FileIO):
    def __init__(self, disk: Disk, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._disk = disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        return super().write(view[: self._disk.take(view.nbytes)]) or 0


def line_of(verb: str, place: Path) -> list[str]:
    """The command line of a verb on the runs of a folder."""
    line = [str(place / part) if part in (RUN, FAMILY, TABLE) else part for part in VERBS[verb][1]]
    if verb in OPTIONS:
        line += [part for key, value in OPTIONS[verb].items() for part in ("--set", f"{key}={json.dumps(value)}")]
        line.append("--resume")
    return line if verb in ("report", "compare", "family's report") else [*line, "--threads", "1"]


def run(verb: str, place: Path, room: int = ENDLESS) -> Ended:
    """One verb in a fork of this process, on a disk with so much room."""
    said, left = place / "said", place / "left"
    said.unlink(missing_ok=True)
    status = warm.ended(warm.begun(_on_a_disk, line_of(verb, place), place / VERBS[verb][0], room, left, err=said))
    return Ended(status, said.read_text(errors="replace"), room - int(left.read_text()))


def _on_a_disk(line: list[str], folder: Path, room: int, left: Path) -> None:
    import kyomei.cli

    disk = Disk(folder, room)
    disk.mount()
    sys.argv = ["kyomei", *line]
    try:
        kyomei.cli.main()
    finally:
        left.write_text(str(disk.left))


def recorded(folder: Path) -> dict[Path, int]:
    """When the files that the manifests of a folder speak for were written; one that is not what they say counts as missing."""
    found = {}
    for manifest in folder.rglob("manifest.json"):
        for name, digest in json.loads(manifest.read_bytes())["outputs"].items():
            path = manifest.parent / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                found[path] = path.stat().st_mtime_ns
    return found


def wrong_with(verb: str, ended: Ended, folder: Path) -> list[str]:
    """What is wrong with the way a verb left a full disk."""
    wrong = []
    lines = [line for line in ended.said.splitlines() if line.startswith("kyomei: Expected")]
    about = [line for line in ended.said.splitlines() if "space on the disk" in line or "a full disk" in line]
    if ended.status == FAILED_MEMBER and verb.startswith("family"):
        lines = about[:1]
    elif ended.status != REFUSED:
        wrong.append(f"status {ended.status}")
    if len(lines) != 1 or lines[0] not in about or str(folder) not in lines[0] or "Traceback" in ended.said:
        wrong.append(f"not said in one line with the file: {ended.said[-1200:]}")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")] if folder.exists() else []
    return [*wrong, *([f"temporary files left: {left}"] if left else [])]


def fill(verb: str, before: Path, expected: Path, room: int, place: Path) -> list[str]:
    """One verb on a disk that is too small, and once more with room; returns what went wrong."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place)
    folder = place / VERBS[verb][0]
    ended = run(verb, place, room)
    if ended.status == DONE:
        return [] if "WARN" in ended.said else ["done on a disk that is too small, without a word"]
    wrong = wrong_with(verb, ended, folder)
    complete = recorded(folder)
    again = run(verb, place)
    if again.status != DONE:
        return [*wrong, f"with room, status {again.status}: {again.said[-1200:]}"]
    # What a verb replaces each time it runs is no loss.
    redone = [path for path, time in complete.items() if path.suffix == ".safetensors" and path.stat().st_mtime_ns != time]
    wrong += [f"made anew: {path.relative_to(folder)}" for path in redone]
    other = differences(contents(folder), contents(expected / VERBS[verb][0]))
    return [*wrong, *([f"not what an undisturbed one writes: {other}"] if other else [])]


def references(into: Path, verbs: Sequence[str]) -> dict[str, tuple[Path, Path, int]]:
    """Folders as they are before and after each verb, and the bytes that it writes."""
    found, place = {}, into / PLACE
    place.mkdir()
    before = shutil.copytree(place, into / "nothing")
    for number, verb in enumerate(verbs):
        ended = run(verb, place)
        if ended.status != DONE:
            raise RuntimeError(f"undisturbed {verb} ended in status {ended.status}: {ended.said[-1200:]}")
        after = shutil.copytree(place, into / f"after-{number}")
        found[verb], before = (before, after, ended.written), after
    return found


def campaign(count: int, seed: int, into: Path, choose: Callable[[str], bool]) -> tuple[dict[str, int], list[str]]:
    """So many full disks, verbs in turn; returns how many of each verb, and what went wrong."""
    chance = random.Random(seed)
    chosen = [verb for verb in VERBS if choose(verb)]
    whole = references(into, list(VERBS)[: list(VERBS).index(chosen[-1]) + 1])
    counts, wrong = dict.fromkeys(chosen, 0), []
    for number in range(count):
        verb = chosen[number % len(chosen)]
        before, after, written = whole[verb]
        # Anywhere, the first bytes, the last ones, and again anywhere.
        room = {1: 0, 2: written - 1}.get(counts[verb], chance.randrange(written))
        found = fill(verb, before, after, room, into / PLACE)
        counts[verb] += 1
        wrong += [f"{number} {verb}, room for {room} of {written} bytes: {text}" for text in found]
        said = "; ".join(found) or "as undisturbed"
        print(f"{number} {verb}, {room} of {written} bytes: {said}", file=sys.stderr, flush=True)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=VERBS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = campaign(args.count, args.seed, Path(folder), lambda verb: verb in args.verbs)
    print("| verb | full disks |\n|---|---|")
    print("\n".join(f"| {verb} | {count} |" for verb, count in counts.items()))
    print(f"{sum(counts.values())} full disks, {len(wrong)} things went wrong")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
