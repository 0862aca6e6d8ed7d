"""The processes that share a harvest or a stream, as far as sources need to know them; `learning.mesh.Mesh` is one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from jaxtyping import Shaped
from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """Processes that do one piece of work together, each knowing its number."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once."""

    def tell(self, value: Any) -> list[Any]:
        """A small plain value of every rank, in order of ranks; all of them call this."""

    def first(self, work: Callable[[], T]) -> T | None:
        """What the leading rank's work gives, none on the others, which wait for it; a refusal there is one on all."""

    def exchange(self, parts: Sequence[Shaped[Tensor, "_ dim"]], lengths: Sequence[int], /) -> list[Shaped[Tensor, "_ dim"]]:
        """What every rank has for this one: part i goes to rank i, and `lengths` says how many rows come from each."""


class _Alone:
    """One process, which talks to nobody."""

    rank, size, leads = 0, 1, True

    def tell(self, value: Any) -> list[Any]:
        return [value]

    def first(self, work: Callable[[], T]) -> T | None:
        return work()

    def exchange(self, parts: Sequence[Tensor], lengths: Sequence[int], /) -> list[Tensor]:
        return list(parts)


ALONE: Ranks = _Alone()
