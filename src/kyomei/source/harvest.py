"""Activations of a language model over packed tokens, as shards that a crash at any moment leaves resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kyomei.config import SourceRecipe
from kyomei.errors import DataError
from kyomei.source.guards import require_finite
from kyomei.source.journals import INDEX, read_journal, remove_journals
from kyomei.source.model import LanguageModel
from kyomei.source.ranks import ALONE, Ranks
from kyomei.source.shard_files import in_memory
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens
from kyomei.stores import Store, StoreLike, store_at

_MEDIAN_BATCHES = 4
TAKEN_BESIDE = 2
"""Batches whose rows wait on a GPU at most."""
_NOT_FINITE = "run the model in float32 or bfloat16, or choose another site"


def harvest(
    model: LanguageModel,
    tokens: Tokens,
    folder: StoreLike,
    recipe: SourceRecipe,
    *,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, ShardFolder]:
    """Capture every site over all tokens and store the rows; what an earlier attempt completed is kept.

    Shard k holds windows k·W to (k+1)·W, W = `recipe.windows_per_shard`, and batches never cross shards, so a resumed
    harvest writes the same bytes as an undisturbed one. Of several ranks each makes every so many-th shard, and only the first
    few windows are run by one for all, so they write the same bytes as one process.

    Args:
        model: where activations come from.
        tokens: windows to run.
        folder: a folder or an address; one folder a site is made below it.
        recipe: sites, side, batch and shard sizes, what to drop, how to store.
        progress: called with (tokens done, tokens in all) after each shard.
        ranks: processes that harvest together, each with the same arguments.

    Returns:
        One `ShardFolder` a site; its meta counts the dropped rows.

    Raises:
        ModelError: a site is unknown or unusable.
        DataError: an activation is not finite; shard and row are named.
        RunError: the disk is full, or `folder` holds another harvest.
        AddressError: the address does not answer.
    """
    sites = tuple(dict.fromkeys(recipe.sites)) or (model.default_site(),)
    model.require_sites(sites)
    plan = _Plan(model, tokens, recipe)
    writers = plan.writers(store_at(folder), sites, ranks)
    with _Behind(beside=model.device.type != "cpu") as behind:
        for number in range(ranks.rank, plan.num_shards, ranks.size):
            todo = [site for site in sites if number not in writers[site].finished]
            if todo:
                shards = plan.run_shard(number, {site: writers[site] for site in todo}, behind.take)
                behind.write(shards)
            if progress is not None:
                # The other ranks are about as far as this one.
                last = min(number + ranks.size, plan.num_shards) - 1
                progress(plan.windows_of(last).stop * tokens.context, tokens.num_tokens)
    return {site: _finish(writers[site], ranks) for site in sites}


def _finish(writer: ShardWriter, ranks: Ranks) -> ShardFolder:
    if not ranks.tell(writer.store.has(INDEX))[0]:
        return writer.close()
    # A process that was killed right after its index has left the journal, too.
    ranks.first(lambda: remove_journals(writer.store))
    return ShardFolder(writer.store, verify=False)


class _Behind:
    """Writes one shard to the disk while the model runs the next; at most two shards are in memory.

    Args:
        beside: rows are taken over in a thread, too, while a GPU runs the next windows.
    """

    def __init__(self, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._pending: Future[None] | None = None
        self._taker = ThreadPoolExecutor(1, thread_name_prefix="rows") if beside else None
        self._taken: deque[Future[None]] = deque()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._thread.shutdown(wait=True)
            if self._taker is not None:
                self._taker.shutdown(wait=True)

    def take(self, job: Callable[[], None]) -> None:
        """Take rows of a batch over into their shard; raises what went wrong with earlier ones."""
        if self._taker is None:
            job()
            return
        self._settle(TAKEN_BESIDE - 1)
        self._taken.append(self._taker.submit(job))

    def _settle(self, left: int) -> None:
        while len(self._taken) > left:
            self._taken.popleft().result()

    def write(self, shards: list[_Shard]) -> None:
        """Write shards once those before are written; raises what went wrong with those."""
        self._settle(0)
        self.finish()
        self._pending = self._thread.submit(_write_all, shards)

    def finish(self) -> None:
        """Wait for what is being written; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write_all(shards: list[_Shard]) -> None:
    for shard in shards:
        shard.write()


@final
class _Plan:
    """Which windows make which shard, and which rows of them are kept."""

    def __init__(self, model: LanguageModel, tokens: Tokens, recipe: SourceRecipe) -> None:
        self.model, self.tokens, self.recipe = model, tokens, recipe
        self.num_shards = -(-len(tokens.ids) // recipe.windows_per_shard)
        self._special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
        self._kept: dict[int, dict[str, Tensor]] = {}

    def windows_of(self, number: int) -> range:
        first = number * self.recipe.windows_per_shard
        return range(first, min(first + self.recipe.windows_per_shard, len(self.tokens.ids)))

    def writers(self, folder: Store, sites: tuple[str, ...], ranks: Ranks) -> dict[str, ShardWriter]:
        """A writer for each site; width and median norm come from an earlier attempt, or else from the first windows."""
        common = {
            "model": self.model.name,
            "weights": self.model.fingerprint(),
            "tokens": self.tokens.sha256(),
            "context": self.tokens.context,
            "windows": len(self.tokens.ids),
            **self.recipe.model_dump(include={"side", "windows_per_batch", "windows_per_shard", "drop_special", "norm_bound"}),
        }
        known = ranks.tell(ranks.first(lambda: self._known(folder, sites)))[0]
        writers = {}
        for site in sites:
            dim, median_norm = known[site]
            meta = {**common, "median_norm": median_norm}
            writers[site] = ShardWriter(folder / site, dim, self.recipe.dtype, site, meta, ranks)
        return writers

    def _known(self, folder: Store, sites: tuple[str, ...]) -> dict[str, tuple[int, float]]:
        """Width and median norm of each site."""
        earlier = {site: read_journal(folder / site) for site in sites}
        known = {site: (journal["dim"], journal["meta"].get("median_norm")) for site, journal in earlier.items() if journal}
        return known | self._probe([site for site in sites if site not in known])

    def _probe(self, sites: list[str]) -> dict[str, tuple[int, float]]:
        """Width and median norm of each site's ordinary rows in the first windows."""
        if not sites:
            return {}
        norms: dict[str, list[Float[Tensor, " rows"]]] = {site: [] for site in sites}
        dims: dict[str, int] = {}
        first_shard = self.windows_of(0)
        size = self.recipe.windows_per_batch
        for first in range(0, min(len(first_shard), _MEDIAN_BATCHES * size), size):
            windows = slice(first, min(first + size, first_shard.stop))
            ordinary = ~self.tokens.is_special(windows, self._special)
            rows_before = sum(map(len, norms[sites[0]]))
            for site, x in self._capture(windows, sites, keep=True).items():
                usual = x[ordinary.to(x.device)]
                require_finite(usual, f"shard 0 of '{site}'", rows_before, _NOT_FINITE)
                norms[site].append(usual.norm(dim=-1).cpu())
                dims[site] = int(x.shape[-1])
        medians = {site: float(torch.cat(norms[site]).median()) for site in sites}
        for site, median in medians.items():
            if not median > 0:
                raise DataError(f"activations at '{site}'", f"a median norm of {median}", "choose another site or more text")
        return {site: (dims[site], medians[site]) for site in sites}

    def _capture(self, windows: slice, sites: list[str], keep: bool = False) -> dict[str, Float[Tensor, "batch context dim"]]:
        """Activations of some windows; what the first look at them has kept is not computed again."""
        kept = self._kept.pop(windows.start, {})
        if all(site in kept for site in sites):
            return {site: kept[site] for site in sites}
        captured = self.model.capture(self.tokens.ids[windows], sites, self.recipe.side)
        found = {site: x.float() for site, x in captured.items()}
        if keep:
            self._kept[windows.start] = found
        return found

    def run_shard(
        self, number: int, writers: dict[str, ShardWriter], take: Callable[[Callable[[], None]], None]
    ) -> list[_Shard]:
        """The rows of one shard's windows at every site of `writers`; `take` runs what moves them into it."""
        windows = self.windows_of(number)
        shards = {site: _Shard(number, writer, len(windows) * self.tokens.context) for site, writer in writers.items()}
        for first in range(windows.start, windows.stop, self.recipe.windows_per_batch):
            batch = slice(first, min(first + self.recipe.windows_per_batch, windows.stop))
            special = self.tokens.is_special(batch, self._special).flatten()
            wanted = ~special if self.recipe.drop_special else torch.ones_like(special)
            row_tokens = torch.arange(batch.start * self.tokens.context, batch.stop * self.tokens.context)
            for site, x in self._capture(batch, list(writers)).items():
                take(partial(shards[site].add, x.flatten(0, 1), row_tokens, wanted, self.recipe.norm_bound))
        return list(shards.values())


@final
class _Shard:
    """The rows of one shard while it is in hand."""

    def __init__(self, number: int, writer: ShardWriter, most_rows: int) -> None:
        self._number, self._writer = number, writer
        self._rows = torch.empty(most_rows, writer.dim, dtype=in_memory(writer.dtype))
        self._row_tokens = np.empty(most_rows, dtype=np.int64)
        self._num_rows = 0
        self._counts = {"dropped_special": 0, "dropped_norm": 0}

    def add(
        self,
        every: Float[Tensor, "tokens dim"],
        row_tokens: Int64[Tensor, " tokens"],
        wanted: Bool[Tensor, " tokens"],
        norm_bound: float,
    ) -> None:
        """Keep the rows of one batch that are wanted and whose norm is ordinary."""
        x, row_tokens = every[wanted.to(every.device)], row_tokens[wanted]
        require_finite(x, f"shard {self._number} of '{self._writer.site}'", self._num_rows, _NOT_FINITE)
        # On a GPU all of this is done there: what comes here are the rows that stay, as they are stored.
        usual = x.norm(dim=-1) <= norm_bound * self._writer.meta["median_norm"]
        kept = usual.cpu()
        after = self._num_rows + int(kept.sum())
        self._rows[self._num_rows : after] = x[usual].to(self._rows.dtype)
        self._row_tokens[self._num_rows : after] = row_tokens[kept].numpy()
        self._counts["dropped_special"] += int((~wanted).sum())
        self._counts["dropped_norm"] += int((~kept).sum())
        self._num_rows = after

    def write(self) -> None:
        rows, row_tokens = self._rows[: self._num_rows], self._row_tokens[: self._num_rows]
        self._writer.write(self._number, rows, row_tokens, self._counts)
