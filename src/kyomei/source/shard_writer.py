"""Shards of a harvest, written so that a crash at any moment loses at most the one in hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from kyomei.errors import DataError, RunError
from kyomei.source.guards import require_finite
from kyomei.source.journals import INDEX, JOURNAL, SCHEMA_VERSION, journals, read_journal, read_one, remove_journals
from kyomei.source.ranks import ALONE, Ranks
from kyomei.source.shard_files import ROW_TOKENS, Dtype, packed, stored
from kyomei.source.shards import ShardFolder
from kyomei.stores import StoreLike, store_at


@final
class ShardWriter:
    """Writes one site's shards so that a crash at any moment loses at most the shard in hand.

    Args:
        folder: a folder, created if missing, or an address; shards of an earlier attempt are kept where they are whole. At an
            address they are looked for and not read back: there each is checked when it is read.
        dim: width of a row.
        dtype: how activations are stored.
        site: module path that the rows come from.
        meta: what else the rows depend on; an earlier attempt with other values is refused.
        ranks: processes that write into the folder together, all calling this and `close`; each keeps a journal of its own
            shards, which are those whose number leaves its rank when divided by how many ranks there are.

    Attributes:
        finished: numbers of this rank's shards that are complete.
        discarded: files of the earlier attempt that were damaged and must be written again.

    Raises:
        RunError: the folder holds a harvest of something else, or the disk is full.
        AddressError: the address does not answer.
    """

    def __init__(
        self, folder: StoreLike, dim: int, dtype: Dtype, site: str, meta: dict[str, Any], ranks: Ranks = ALONE
    ) -> None:
        self.store, self.dim, self.dtype, self.site, self.meta = store_at(folder), dim, dtype, site, meta
        self._head = {"schema_version": SCHEMA_VERSION, "site": site, "dtype": dtype, "dim": dim}
        self._shards: dict[int, dict[str, Any]] = {}
        self._ranks, self._has_index = ranks, False
        self.discarded: list[str] = []
        # Read once for all: a rank that is slow to read would find what another already writes.
        earlier = ranks.tell(ranks.first(self._prepare))[0]
        if earlier is not None:
            self._require_same(earlier)
            self._has_index = "num_rows" in earlier
            self._adopt(earlier["shards"], whole=self._has_index)

    def _prepare(self) -> dict[str, Any] | None:
        """What an earlier attempt left, put in order: no files of killed processes, and one journal of all its ranks."""
        self.store.prepare()
        left = journals(self.store)
        if left and not self.store.has(INDEX) and left != [JOURNAL]:
            read = [read_one(self.store, name) for name in left]
            entries = {entry["file"]: entry for journal in read for entry in journal["shards"]}
            self._write(JOURNAL, {**read[0], "shards": [entries[file] for file in sorted(entries)]})
            self.store.clear(*(name for name in left if name != JOURNAL))
        return read_journal(self.store)

    @property
    def finished(self) -> frozenset[int]:
        return frozenset(self._shards)

    @property
    def complete(self) -> int:
        """Number of complete shards."""
        return len(self._shards)

    def _require_same(self, earlier: dict[str, Any]) -> None:
        wanted, held = {**self._head, **self.meta}, {**earlier, **earlier["meta"]}
        for key, value in wanted.items():
            if held.get(key) != value:
                do = "harvest into another folder, or start over with --overwrite"
                raise RunError(f"{key} = {held.get(key)!r}, as harvested before in {self.store}", f"{key} = {value!r}", do)

    def _adopt(self, entries: list[dict[str, Any]], whole: bool) -> None:
        """Take over this rank's shards of an earlier attempt, which ended or not."""
        own = {entry["file"]: entry for entry in entries if _number_of(entry["file"]) % self._ranks.size == self._ranks.rank}
        self.discarded = self.store.differing({file: entry["sha256"] for file, entry in own.items()})
        self._shards = {_number_of(file): entry for file, entry in own.items() if file not in set(self.discarded)}
        damaged = any(self._ranks.tell(bool(self.discarded)))
        if damaged or not whole:
            # The leading rank's journal, or the index, holds the shards of all until the others have theirs.
            if not self._ranks.leads:
                self._journal()
            self._ranks.tell(None)
            self._ranks.first(self._journal)

    def _journal(self) -> None:
        entries = [self._shards[number] for number in sorted(self._shards)]
        name = JOURNAL if self._ranks.leads else f"progress-{self._ranks.rank}.json"
        self._write(name, {**self._head, "meta": self.meta, "shards": entries})
        if self._ranks.leads and self._has_index:
            self.store.clear(INDEX)  # it would claim that the harvest is finished
            self._has_index = False

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self.store.write(name, json.dumps(content, indent=1).encode())

    def write(
        self,
        shard_number: int,
        activations: Shaped[Tensor, "rows dim"],
        row_tokens: Int64[np.ndarray, " rows"],
        counts: dict[str, int] | None = None,
    ) -> None:
        """Write one shard and journal it.

        Args:
            shard_number: its place, from 0; shards may come in any order.
            activations: rows to store.
            row_tokens: where each row comes from, as in `ShardFolder.row_tokens`.
            counts: figures of this shard, summed into the index's meta by `close`.

        Raises:
            DataError: shapes disagree, or a value is not finite as stored.
            RunError: the disk is full; nothing half-written stays.
            AddressError: the address does not answer.
        """
        if list(activations.shape) != [len(row_tokens), self.dim]:
            raise DataError(f"activations [{len(row_tokens)}, {self.dim}]", f"{list(activations.shape)}", "harvest sites apart")
        tensors = stored(activations, self.dtype)
        do = "look at the model, or store float32 or bfloat16: float16 overflows at 65,504"
        for values in (activations,) if self.dtype == "int8" else tensors.values():
            require_finite(values, f"shard {shard_number} as {self.dtype}", do=do)
        file = f"shard-{shard_number:05d}.safetensors"
        pieces = packed({**tensors, ROW_TOKENS: torch.from_numpy(row_tokens)})
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self.store.put(file, pieces)
        entry = {"file": file, "num_rows": len(row_tokens), "sha256": digest.hexdigest()}
        self._shards[shard_number] = {**entry, "counts": counts or {}}
        self._journal()

    def close(self) -> ShardFolder:
        """Write index.json, once all ranks have written their shards, and open what was written.

        Raises:
            DataError: a shard is missing, or there is no row.
        """
        parts = self._ranks.tell(self._shards)
        self._ranks.first(lambda: self._close({number: entry for part in parts for number, entry in part.items()}))
        return ShardFolder(self.store, verify=False)

    def _close(self, shards: dict[int, dict[str, Any]]) -> None:
        missing = sorted(set(range(max(shards, default=0) + 1)) - set(shards))
        num_rows = sum(entry["num_rows"] for entry in shards.values())
        if missing or not num_rows:
            found = f"shard {missing[0]} not written" if missing else "no row"
            raise DataError("every shard, and rows in them", f"{found} in {self.store}", "harvest more tokens, or resume")
        entries = [shards[number] for number in sorted(shards)]
        totals = {key: sum(entry["counts"].get(key, 0) for entry in entries) for key in entries[0]["counts"]}
        self._write(INDEX, {**self._head, "num_rows": num_rows, "meta": {**self.meta, **totals}, "shards": entries})
        self._has_index = True
        remove_journals(self.store)


def _number_of(file: str) -> int:
    """A shard's place, from its file's name."""
    return int(file.split("-")[1].split(".")[0])
