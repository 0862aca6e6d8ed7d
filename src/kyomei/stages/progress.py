"""What a stage needs of its surroundings: where to show progress, and the ranks that work together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text

from kyomei.errors import Interrupted
from kyomei.learning.mesh import Mesh
from kyomei.signals import asked


class _Rate(TextColumn):
    """Items a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="dim")


@dataclass(frozen=True)
class Reporter:
    """Progress on the terminal.

    Attributes:
        console: where progress and notes go; never standard output, which belongs to results.
        mesh: the ranks that do this work together; only the leading one says and writes anything.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    mesh: Mesh = field(default_factory=Mesh)

    def on(self, mesh: Mesh) -> Reporter:
        """The reporter of one rank of a mesh."""
        return Reporter(self.console if mesh.leads else Console(quiet=True), mesh)

    def note(self, message: str) -> None:
        """Say what is going on."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with rate and remaining time; yields what to call with (done, in all)."""
        label_and_bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        columns = (*label_and_bar, _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
        if not self.console.is_terminal:
            # A log file wants one line a step of work, not a redrawn bar.
            began = time.monotonic()
            yield lambda done, total: None
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
