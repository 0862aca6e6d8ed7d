"""What a stage needs of its surroundings: where to show progress, and the ranks that work together."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text

from kyomei.errors import Interrupted
from kyomei.learning.mesh import Mesh
from kyomei.provenance import processes
from kyomei.runs import Run
from kyomei.signals import asked
from kyomei.views.numbers import duration

FIRST_LINE_SECONDS, LINE_SECONDS = 30.0, 60.0
"""When a log file is first told how far some work is, and how often after that."""


class _Rate(TextColumn):
    """Items a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="dim")


class _Lines:
    """How far some work is, in one line a minute: for a log file, which wants no redrawn bar."""

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        self._label, self._say, self._stop = label, say, threading.Event()
        self._last: tuple[int, int] | None = None
        self._said = time.monotonic(), 0
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)

    def tick(self, done: int, total: int) -> None:
        if self._last is None:  # what was there before is no work of this process
            self._said = time.monotonic(), done
        self._last = done, total

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[int, int], None]]:
        self._thread.start()
        try:
            yield self.tick
        finally:
            self._stop.set()
            self._thread.join()

    def _report(self) -> None:
        left = FIRST_LINE_SECONDS
        while not self._stop.wait(left):
            self._say(self._line())
            left = LINE_SECONDS

    def _line(self) -> str:
        if self._last is None:
            return f"{self._label}: at work"
        (before, done_before), now, (done, total) = self._said, time.monotonic(), self._last
        self._said = now, done
        rate = (done - done_before) / max(now - before, 1e-9)
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        left = f", {duration((total - done) / rate)} left" if rate > 0 else ""
        return f"{self._label}: {done:,} of {total:,}, {speed}{left}"


def _console() -> Console:
    # Where nobody looks at a terminal no variable of the environment makes it one.
    return Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)


@dataclass(frozen=True)
class Reporter:
    """Progress on the terminal.

    Attributes:
        console: where progress and notes go; never standard output, which belongs to results.
        mesh: the ranks that do this work together; only the leading one says and writes anything.
    """

    console: Console = field(default_factory=_console)
    mesh: Mesh = field(default_factory=Mesh)

    @classmethod
    def of_process(cls) -> Reporter:
        """That of this process; of several that were started together all but the first are silent."""
        leads = processes() == 1 or os.environ.get("RANK", "0") == "0"
        return cls() if leads else cls(Console(quiet=True))

    def on(self, mesh: Mesh) -> Reporter:
        """The reporter of one rank of a mesh."""
        return Reporter(self.console if mesh.leads else Console(quiet=True), mesh)

    @property
    def by_itself(self) -> Reporter:
        """The reporter of what one rank does while the others wait for it."""
        return Reporter(self.console)

    def note(self, message: str) -> None:
        """Say what is going on."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def note_threads(self, run: Run) -> None:
        """Say that a run is gone on with on another number of threads than before, which may change its last digits."""
        threads = torch.get_num_threads()
        before = sorted({act["threads"] for act in run.manifest.get("history", []) if act.get("threads")} - {threads})
        if before:
            words = f"worked on with {' and '.join(map(str, before))} before and {threads} now"
            self.note(f"CPU threads: {words}: sums are added up in another order, so results may differ in their last digits")

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with rate and remaining time, or lines where there is no terminal; yields what to call with (done, in all)."""
        label_and_bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        columns = (*label_and_bar, _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            began = time.monotonic()
            with _Lines(label, self.note).running() as tick:
                yield tick
            self.note(f"{label}: {time.monotonic() - began:.1f} seconds")
            return
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def leave_if_asked(self, what: str) -> None:
        """Let the ranks of a mesh leave together between two steps of work, or those that stay would wait for the others.

        Raises:
            Interrupted: a signal to stop came to one of them.
        """
        if any(self.mesh.tell(asked())):
            raise Interrupted(f"{what} to finish", "a signal to stop", "run again with --resume: finished stages are kept")
