"""How many bytes a run takes on the disk, and at its address where its rows are at one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kyomei.config import SourceRecipe
from kyomei.source.shard_files import bytes_of_row
from kyomei.stores import Copies

TOKEN_BYTES = 20
"""Of a token's id, document and span."""


@dataclass(frozen=True)
class Room:
    """Bytes that a run takes.

    Attributes:
        disk_bytes: on this machine; with an address, dictionaries, checkpoints and copies of rows.
        address_bytes: rows and tokens at its address; 0 without one.
    """

    disk_bytes: float
    address_bytes: float

    @classmethod
    def of(
        cls, source: SourceRecipe, rows: tuple[int, int], weights_bytes: float, widths: Sequence[int], num_dictionaries: int
    ) -> Room:
        """What a recipe's run takes.

        Args:
            source: its rows.
            rows: how many tokens are harvested, and the width of their rows.
            weights_bytes: of the widest dictionary, with gradients and moments.
            widths: that training begins with, one part after the other, and in the end that of the dictionary.
            num_dictionaries: replicas and nulls.
        """
        tokens, dim = rows
        stored = float(tokens * (bytes_of_row(source.dtype, dim) * max(1, len(source.sites)) + TOKEN_BYTES))
        # Two checkpoints and the dictionary itself; what parts of a training left that began wide; the widest's checkpoints.
        first, width = widths[:-1], widths[-1]
        parts = sum([*first[1:], width]) / width if len(first) > 1 else 0.0
        own = weights_bytes * width / first[0]
        kept = num_dictionaries * own * ((1 + parts) / 4 + 2 * 2 * 0.75) + 2 * 2 * 0.75 * (weights_bytes - own)
        if source.store is None:
            return cls(kept + stored, 0.0)
        return cls(kept + min(stored, Copies.of_environment().most_bytes), stored)
