"""Ranks that are threads of one process: what they exchange is what processes would, in a hundredth of the time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Rank:
    """One of several threads that work together; see `kyomei.source.ranks.Ranks`."""

    def __init__(self, rank: int, said: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.leads = rank, len(said), rank == 0
        self._said, self._barrier = said, barrier

    def tell(self, value: Any) -> list[Any]:
        self._said[self.rank] = value
        self._barrier.wait()
        told = list(self._said)
        self._barrier.wait()
        return told

    def first(self, work: Callable[[], T]) -> T | None:
        found, refusal = None, None
        if self.leads:
            try:
                found = work()
            except Exception as error:
                refusal = error
        told = self.tell(refusal)[0]
        if told is not None:
            raise told
        return found

    def exchange(self, parts: Sequence[Tensor], lengths: Sequence[int], /) -> list[Tensor]:
        came = [told[self.rank] for told in self.tell(list(parts))]
        assert [len(part) for part in came] == list(lengths), "a rank waits for as many rows as are sent to it"
        return came

    # What the learning asks of a mesh besides, see `kyomei.learning.mesh.Mesh`.

    def share(self, total: int) -> slice:
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat(self.tell(x))

    def sum_over_all(self, x: Tensor) -> Tensor:
        return torch.stack(self.tell(x)).sum(dim=0)

    def from_rank(self, source: int, x: Tensor) -> Tensor:
        told = self.tell(x)
        assert len({(part.shape, part.dtype) for part in told}) == 1, "ranks wait for what is sent"
        return told[source].clone()


def together(size: int, work: Callable[[Rank], T]) -> list[T]:
    """What some ranks make of a piece of work; the first error of one of them, once all have ended."""
    said, barrier = [None] * size, threading.Barrier(size, timeout=60)

    def guarded(rank: Rank) -> T:
        try:
            return work(rank)
        except BaseException:
            barrier.abort()  # a rank that ends is noticed by the others
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, Rank(rank, said, barrier)) for rank in range(size)]
    errors = [future.exception() for future in futures]
    first = next((error for error in errors if error is not None and not isinstance(error, threading.BrokenBarrierError)), None)
    if first is not None:
        raise first
    return [future.result() for future in futures]
