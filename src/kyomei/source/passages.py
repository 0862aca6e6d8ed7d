"""Rows of texts, each read by itself: its windows begin with BOS where the harvest's do, and stand one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kyomei.config import SourceRecipe
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Encoded, Packer

TEXTS_PER_BATCH = 256


@dataclass(frozen=True, eq=False)
class Passage:
    """One window of a text, without the BOS before it.

    Args:
        text: which of the batch it is of.
        first: number of its first token in that text.
        ids: of its tokens.
        rows: at the site, float32, on the model's device.
        kept: the rows that a harvest would keep: of no special token, and of no massive norm.
    """

    text: int
    first: int
    ids: Int64[Tensor, " tokens"]
    rows: Float[Tensor, "tokens dim"]
    kept: Bool[Tensor, " tokens"]


@final
class Passages:
    """Reads texts at a site of a model, a few at a time; windows of one length go through the model together.

    Args:
        model: it has the site.
        site: where rows come from.
        source: side, context, BOS, windows in a forward pass, and whether rows of special tokens are dropped.
        bound: norm above which a harvest would drop a row.

    Raises:
        ModelError: the site is unknown.
    """

    def __init__(self, model: LanguageModel, site: str, source: SourceRecipe, bound: float = math.inf) -> None:
        model.require_sites([site])
        self.model, self.site, self.source, self.bound = model, site, source, bound
        context = min(source.context, model.max_context or source.context)
        self.packer = Packer(model.tokenizer, context, source.force_bos)
        self._begin = [] if self.packer.begin is None else [self.packer.begin]
        self._special = torch.tensor(sorted(model.special_ids) if source.drop_special else [], dtype=torch.int64)

    def batches(self, documents: Iterable[Document]) -> Iterator[list[Encoded]]:
        """Texts that are read together: so many at most, or of a few forward passes; blank ones are left out."""
        enough = self.packer.context * self.source.windows_per_batch * 4
        batch: list[Encoded] = []
        for encoded in self.packer.encode(documents):
            batch.append(encoded)
            if len(batch) == TEXTS_PER_BATCH or sum(len(e.ids) for e in batch) >= enough:
                yield batch
                batch = []
        if batch:
            yield batch

    def read(self, batch: Sequence[Encoded]) -> Iterator[Passage]:
        """The windows of a batch of texts; those of one text come in its order, shorter windows of others between them."""
        step = self.packer.context - len(self._begin)
        places = [(number, at) for number, e in enumerate(batch) for at in range(0, len(e.ids), step)]
        # Tokens of one window see each other alone, so it does not matter which windows stand beside it.
        by_length: dict[int, list[tuple[int, int]]] = {}
        for number, at in places:
            by_length.setdefault(min(step, len(batch[number].ids) - at), []).append((number, at))
        for length in sorted(by_length, reverse=True):
            for first in range(0, len(by_length[length]), self.source.windows_per_batch):
                yield from self._pass(batch, by_length[length][first : first + self.source.windows_per_batch], length)

    def _pass(self, batch: Sequence[Encoded], places: Sequence[tuple[int, int]], length: int) -> Iterator[Passage]:
        pieces = [batch[number].ids[at : at + length].tolist() for number, at in places]
        ids = torch.tensor([[*self._begin, *piece] for piece in pieces])
        captured = self.model.capture(ids, [self.site], self.source.side)[self.site].float()
        for (number, at), own, rows in zip(places, ids, captured, strict=True):
            own, rows = own[len(self._begin) :], rows[len(self._begin) :]
            kept = (rows.norm(dim=1) <= self.bound) & ~torch.isin(own, self._special).to(rows.device)
            yield Passage(number, at, own, rows, kept)
