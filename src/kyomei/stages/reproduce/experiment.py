"""An experiment: independent cells measured one by one, kept as they finish, then summed up as tables and a figure."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kyomei import __version__
from kyomei.atomic import make_folder, refusals_named, write_atomic
from kyomei.errors import RecipeError
from kyomei.runs import plain
from kyomei.stages.progress import Reporter
from kyomei.views.charts import drawn
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = dict[str, Any]
"""Everything a measurement depends on, in plain values, its seed included."""
Record = dict[str, Any]
"""A cell and, beside its settings, what was measured there."""

CELLS, TABLE, RESULT, FIGURE = "cells.jsonl", "table.md", "result.json", "figure.svg"


@dataclass(frozen=True)
class Summary:
    """What all cells together say.

    Attributes:
        tables: the figures, the paper's beside ours.
        draw: draws them.
        facts: tests, slopes and edges in plain numbers.
        notes: sentences below the tables.
    """

    tables: tuple[Table, ...]
    draw: Callable[[Figure], None]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One claim of the paper, measured again.

    Attributes:
        name: what `kyomei reproduce` calls it.
        title: what is varied and what is measured.
        paper: what the paper says.
        cells: all cells, from a number of seeds (none: the experiment's own) and whether to take the long version.
        measure: one cell's figures; a function of the cell alone.
        summarise: tables and figure from all records.
    """

    name: str
    title: str
    paper: str
    cells: Callable[[int | None, bool], list[Cell]]
    measure: Callable[[Cell], dict[str, Any]]
    summarise: Callable[[list[Record]], Summary]


@dataclass(frozen=True)
class Effort:
    """What an experiment is measured with.

    Attributes:
        workers: processes, one cell each at a time.
        threads: CPU threads of each.
        minutes: after so many no cell is begun.
    """

    workers: int = 1
    threads: int = 1
    minutes: float = math.inf


def reproduce(
    experiment: Experiment,
    folder: Path,
    cells: list[Cell],
    reporter: Reporter,
    *,
    command: str = "",
    effort: Effort = Effort(),
    overwrite: bool = False,
) -> tuple[Summary, dict[str, Any]]:
    """Measure what is missing, then write table.md, result.json and figure.svg.

    Args:
        experiment: what to measure.
        folder: where its files go; cells that are finished there are not measured again.
        cells: the cells asked for.
        reporter: shows progress.
        command: the command line, for table.md.
        effort: processes, and for how long cells are begun; what is finished then is summed up, and what is missing said.
        overwrite: measure every cell anew.

    Returns:
        The summary, and what result.json holds.

    Raises:
        RecipeError: there are no workers or no threads, or no cell was finished in time.
    """
    if effort.workers < 1 or effort.threads < 1:
        raise RecipeError("at least one worker and one thread", f"{effort.workers} and {effort.threads}", "correct them")
    if overwrite and folder.exists():
        for name in (CELLS, TABLE, RESULT, FIGURE):
            (folder / name).unlink(missing_ok=True)
    make_folder(folder)
    finished = _finished(folder / CELLS)
    missing = [cell for cell in cells if _key(cell) not in finished]
    if finished and len(missing) < len(cells):
        reporter.note(f"{len(cells) - len(missing)} of {len(cells)} cells are there")
    with reporter.progress(experiment.name) as progress:
        progress(len(cells) - len(missing), len(cells))
        in_time, workers = _within(missing, 60 * effort.minutes), min(effort.workers, len(missing))
        for done, (cell, figures) in enumerate(_measured(experiment, in_time, workers, effort.threads), 1):
            finished[_key(cell)] = {**cell, **figures}
            _append(folder / CELLS, {"cell": cell, "figures": figures})
            progress(len(cells) - len(missing) + done, len(cells))
    records = [finished[key] for key in map(_key, cells) if key in finished]
    if not records:
        raise RecipeError("at least one finished cell", f"none in {folder}", "allow more minutes")
    summary = experiment.summarise(records)
    if left := len(cells) - len(records):
        summary = replace(summary, notes=(*summary.notes, f"{left} of {len(cells)} cells are not measured."))
    result = _result(experiment, summary, records, command)
    _write(folder, experiment, summary, result)
    return summary, result


def _within(cells: list[Cell], seconds: float) -> Iterator[Cell]:
    """Cells, one after the other, until the time is over."""
    began = time.monotonic()
    for cell in cells:
        if time.monotonic() - began >= seconds:
            return
        yield cell


def _measured(
    experiment: Experiment, cells: Iterator[Cell], workers: int, threads: int
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell and its figures as they finish."""
    if workers < 2:
        torch.set_num_threads(threads)
        for cell in cells:
            yield cell, plain(experiment.measure(cell))
        return
    # Spawned, not forked: a fork of a process whose torch has started threads may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (threads,))
    try:
        running = {pool.submit(experiment.measure, cell): cell for cell in islice(cells, workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                yield cell, plain(future.result())
                following = next(cells, None)
                if following is not None:
                    running[pool.submit(experiment.measure, following)] = following
    finally:
        # Cells may take an hour: who leaves early does not wait for those in hand.
        pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker(threads: int) -> None:
    # Ctrl-C reaches the whole process group, but a worker's end is that of its parent, however that comes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _key(cell: Cell) -> str:
    return json.dumps(plain(cell), sort_keys=True)


def _finished(path: Path) -> dict[str, Record]:
    """The records of an earlier call; a line that a crash cut short is left out and its cell measured again."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[_key(entry["cell"])] = {**entry["cell"], **entry["figures"]}
    return records


def _append(path: Path, entry: dict[str, Any]) -> None:
    with refusals_named(path), open(path, "a+b") as file:
        # After a cut line, begin a new one.
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(plain(entry), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _result(experiment: Experiment, summary: Summary, records: list[Record], command: str) -> dict[str, Any]:
    packages = ("torch", "numpy", "scipy", "matplotlib")
    return {
        "name": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "command": command,
        "versions": {"kyomei": __version__, **{name: metadata.version(name) for name in packages}},
        "facts": plain(summary.facts),
        "notes": list(summary.notes),
        "tables": [{"title": t.title, "header": t.header, "rows": t.rows} for t in summary.tables],
        "runs": plain(records),
    }


def _write(folder: Path, experiment: Experiment, summary: Summary, result: dict[str, Any]) -> None:
    head = f"# {experiment.title}\n\nPaper: {experiment.paper}\n"
    command = f"\n    {result['command']}\n" if result["command"] else ""
    tables = "".join(f"\n{table.markdown()}" for table in summary.tables)
    notes = "".join(f"\n{note}\n" for note in summary.notes)
    write_atomic(folder / TABLE, f"{head}{command}{tables}{notes}".encode())
    write_atomic(folder / RESULT, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    write_atomic(folder / FIGURE, drawn(summary.draw))
