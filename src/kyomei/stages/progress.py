"""What a stage needs of its surroundings: whether to stop, and where to show progress."""

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
from kyomei.runs import interruptible


class _Rate(TextColumn):
    """Items a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="dim")


@dataclass(frozen=True)
class Reporter:
    """Progress on the terminal and the wish to stop.

    Attributes:
        stop: true once the user asked for a stop.
        console: where progress and notes go; never standard output, which belongs to results.
        mesh: the ranks that do this work together; only the leading one says and writes anything.
    """

    stop: Callable[[], bool]
    console: Console
    mesh: Mesh = field(default_factory=Mesh)

    def on(self, mesh: Mesh) -> Reporter:
        """The reporter of one rank of a mesh."""
        return Reporter(self.stop, self.console if mesh.leads else Console(quiet=True), mesh)

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
        """Raise between two steps of work that has no checkpoints of its own.

        Raises:
            Interrupted: the user asked for a stop.
        """
        # Ranks leave together, or those that stay would wait for the others.
        if any(self.mesh.tell(self.stop())):
            raise Interrupted(f"{what} to finish", "a signal to stop", "run again with --resume: finished stages are kept")


@contextlib.contextmanager
def reporting() -> Iterator[Reporter]:
    """A reporter on standard error that takes SIGINT and SIGTERM as a wish to stop."""
    with interruptible() as stop:
        yield Reporter(stop, Console(stderr=True))
