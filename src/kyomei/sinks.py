"""Where a run's events go: a JSON-lines file always, TensorBoard and Weights & Biases if asked for. Torch-free until then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from kyomei.atomic import make_folder, refusals_named, write_atomic
from kyomei.errors import RecipeError, RunError
from kyomei.extras import require
from kyomei.runs import plain


class Sink(Protocol):
    """Something that takes events."""

    def event(self, step: int, **values: Any) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Write out what is still held."""


class JsonlSink:
    """Events as one JSON object a line, on disk as soon as `event` returns.

    Args:
        path: the file, appended to. A last line that a crash cut short is removed.
        last_step: on resume, the step that the run goes on from: events of later steps are removed, since they come again.

    Raises:
        RunError: a line of the file is not an event, or the disk is full.
    """

    def __init__(self, path: Path | str, last_step: int | None = None) -> None:
        self.path = Path(path)
        if self.path.exists():
            self._repair(last_step)
        make_folder(self.path.parent)
        with refusals_named(self.path):
            self._file = open(self.path, "ab")  # noqa: SIM115  closed by close()

    def _repair(self, last_step: int | None) -> None:
        old = self.path.read_bytes()
        new = old[: old.rfind(b"\n") + 1]
        if last_step is not None:
            events = read_events(self.path)
            lines = new.splitlines(keepends=True)
            new = b"".join(line for line, event in zip(lines, events, strict=True) if event["step"] <= last_step)
        if new != old:
            write_atomic(self.path, new)

    def event(self, step: int, **values: Any) -> None:
        line = json.dumps(plain({"step": step, **values}), ensure_ascii=False) + "\n"
        with refusals_named(self.path):
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        with refusals_named(self.path):  # what a full disk did not take is tried again here
            self._file.close()


def read_events(path: Path | str) -> list[dict[str, Any]]:
    """The events of a JSON-lines file in order; a last line that is still being written is left out.

    Raises:
        RunError: a line is not an event; the line is named.
    """
    content = Path(path).read_bytes()
    events = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            event = json.loads(line)
            int(event["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                "an event with a step", f"line {number} of {path}: {line[:60]!r}", "delete the damaged lines or the file"
            ) from error
        events.append(event)
    return events


class TensorBoardSink:
    """Numbers as TensorBoard scalars; other values are left out.

    Args:
        folder: where TensorBoard's own files go.
        last_step: on resume, the step that the run goes on from; TensorBoard hides later ones.

    Raises:
        RecipeError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str, last_step: int | None = None) -> None:
        require("tensorboard", RecipeError)
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=None if last_step is None else last_step + 1)

    def event(self, step: int, **values: Any) -> None:
        for name, value in plain(values).items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Events to Weights & Biases.

    Args:
        project: name of the project there.
        run_id: name of the run there; the same name goes on with the same run.
        config: what to show as its configuration.
        folder: where wandb's own files go.

    Raises:
        RecipeError: wandb is not installed.
    """

    def __init__(
        self, project: str, run_id: str, config: dict[str, Any] | None = None, folder: Path | str | None = None
    ) -> None:
        require("wandb", RecipeError)
        import wandb

        place = None if folder is None else str(folder)
        self._run: Any = wandb.init(project=project, id=run_id, resume="allow", config=plain(config or {}), dir=place)

    def event(self, step: int, **values: Any) -> None:
        self._run.log(plain(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Fanout:
    """One sink that passes events on to several."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def event(self, step: int, **values: Any) -> None:
        for sink in self.sinks:
            sink.event(step, **values)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
