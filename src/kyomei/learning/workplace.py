"""Where training is done and for whom: its folder, who hears of it, who may stop it, which ranks share it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from kyomei import signals
from kyomei.learning.mesh import Mesh


class EventSink(Protocol):
    """Takes the values of a step, as every sink in `kyomei.sinks` does."""

    def event(self, step: int, **values: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class Workplace:
    """What surrounds a training and does not change what is learnt.

    Attributes:
        folder: where checkpoints go; none: there are none.
        resume: go on from the newest whole checkpoint in the folder, if there is one.
        sink: takes an event every `log_every` steps with loss, fvu, l0, dead (share of latents silent since the last event),
            lr and rows_per_second; none: nobody does.
        stop: asked before every step; once true, training is saved and `Interrupted` raised. Signals are, if none is given.
        progress: called with (steps done, steps in all).
        mesh: the ranks that train one dictionary together, each calling with the same arguments. The batch of a step is the
            same on any mesh, and so is the result, up to rounding.
        device: where tensors live; `fit` puts its recipe's here.
    """

    folder: Path | None = None
    resume: bool = False
    sink: EventSink | None = None
    stop: Callable[[], bool] = signals.asked
    progress: Callable[[int, int], None] = lambda done, total: None
    mesh: Mesh = field(default_factory=Mesh)
    device: torch.device | str = "cpu"

    def after(self, first: int, total: int) -> Workplace:
        """The same for a part of a training, whose steps follow the first ones."""
        sink = None if self.sink is None else _Later(self.sink, first)
        return replace(self, sink=sink, progress=lambda done, _: self.progress(first + done, total))

    def saving(self) -> AbstractContextManager[None]:
        """Around steps: a signal waits for their checkpoint, unless there is no folder to save it in."""
        return nullcontext() if self.folder is None else signals.saving()

    def within(self, name: str) -> Workplace:
        """The same in a folder of the folder."""
        return replace(self, folder=None if self.folder is None else self.folder / name)


class _Later:
    """A sink whose steps follow those of an earlier training."""

    def __init__(self, sink: EventSink, first: int) -> None:
        self.sink, self.first = sink, first

    def event(self, step: int, **values: Any) -> None:
        self.sink.event(self.first + step, **values)
