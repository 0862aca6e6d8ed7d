"""Directions that resonance found, with what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
from jaxtyping import Float, Int
from torch import Tensor

from kyomei.atomic import write_atomic
from kyomei.errors import DataError
from kyomei.learning.spaces import Whitening

FORMAT = "kyomei-directions-1"
_SAVED = ("vectors", "encoders", "whitened", "found_at", "frequency", "support", "stability", "candidates")
_SAVED_WHITENING = ("mean", "forward", "backward")


@dataclass(frozen=True)
class Directions:
    """What resonance found.

    Attributes:
        vectors: float32 [k, dim], unit rows in input space: what a feature adds to a row (decoder rows).
        encoders: float32 [k, dim], unit rows in input space whose product with a centred row scores the feature.
        whitened: float32 [k, dim], the same directions as unit rows in whitened space.
        found_at: float32 [k], the target activation frequency p at which a direction was found.
        frequency: float32 [k], estimated share of rows in which the feature occurs, on held-out rows.
        support: int64 [k], random starts that ended in this direction.
        stability: float32 [k], cosine between the two directions that disjoint halves of the rows pull back to after a push.
        candidates: float32 [c, dim], whitened unit rows: these directions and, after them, every distinct one that was found
            but is less stable; the union in which another replica's directions are looked up.
        n_features: estimated number of features: the directions that are no mixtures of others.
        interval: how many there may be, those that were not found included; on planted data it held the truth in 96 % of
            the sets. 0 to 0 where nothing was found: then nothing is known.
        whitening: the map between the two spaces.
        converged: whether the search ended by itself: little was left to find, or what it found was stable no more, or it was
            enough. False: its rounds ran out. None: a file of an older Kyomei, which does not say.
        sums: stable directions that were left out, because they are positive sums of a few of these.
    """

    vectors: Float[Tensor, "k dim"]
    encoders: Float[Tensor, "k dim"]
    whitened: Float[Tensor, "k dim"]
    found_at: Float[Tensor, "k"]
    frequency: Float[Tensor, "k"]
    support: Int[Tensor, "k"]
    stability: Float[Tensor, "k"]
    candidates: Float[Tensor, "c dim"]
    n_features: int
    interval: tuple[int, int]
    whitening: Whitening
    converged: bool | None = None
    sums: int = 0

    def __len__(self) -> int:
        return len(self.vectors)

    def no_more_than(self, others: Directions) -> Directions:
        """The clearest of these, as many as there are others; the number of features no larger than theirs."""
        count = min(len(self), len(others))
        fewer = {name: getattr(self, name)[:count] for name in _SAVED if name != "candidates"}
        n_features = max(count, min(self.n_features, others.n_features))
        return replace(self, **fewer, n_features=n_features)

    def save(self, path: Path | str) -> None:
        """Write every tensor, and the estimate of their number, to one safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in _SAVED}
        tensors |= {f"whitening.{name}": getattr(self.whitening, name).contiguous() for name in _SAVED_WHITENING}
        numbers = [self.n_features, *self.interval, self.whitening.num_outliers]
        numbers += [] if self.converged is None else [int(self.converged), self.sums]
        # One key only: safetensors writes several in a random order, and the same run must give the same bytes.
        metadata = {FORMAT: " ".join(map(str, numbers))}
        write_atomic(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path | str) -> Directions:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, or is no file of directions.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError("a file of directions", f"{path}: {error}", "find them again") from error
        if FORMAT not in metadata:
            raise DataError(f"directions of format {FORMAT}", f"{list(metadata) or 'no format'} in {path}", "find them again")
        try:
            return cls._of(tensors, metadata[FORMAT])
        except (KeyError, ValueError) as error:
            raise DataError(f"directions of format {FORMAT}", f"{path}, which lacks {error}", "find them again") from error

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], numbers: str) -> Directions:
        n_features, low, high, outliers, *ending = map(int, numbers.split())
        whitening = Whitening(**{n: tensors[f"whitening.{n}"] for n in _SAVED_WHITENING}, num_outliers=outliers)
        return cls(
            **{name: tensors[name] for name in _SAVED},
            n_features=n_features,
            interval=(low, high),
            whitening=whitening,
            converged=bool(ending[0]) if ending else None,
            sums=ending[1] if len(ending) > 1 else 0,
        )
