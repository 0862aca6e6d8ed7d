"""A harvest without some of its documents: their tokens blanked, and every row gone that a model made while it saw them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool

from kyomei.source.journals import INDEX
from kyomei.source.shard_files import MappedShard
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Document, Tokens
from kyomei.stores import Store

DROPPED = "dropped_forgotten"
"""Where an index counts the rows that were taken out."""


@dataclass(frozen=True)
class Kept:
    """A document as a harvest keeps it.

    Attributes:
        part: of the documents, such as "evidence".
        number: in the part.
        name: as the corpus called it.
        sha256: of its text in UTF-8; of its token ids (int64) where no text was kept.
        tokens: how many of it are in the part's windows.
    """

    part: str
    number: int
    name: str
    sha256: str
    tokens: int

    @property
    def id(self) -> str:
        """Part and number."""
        return f"{self.part}/{self.number}"


def kept_documents(tokens: Tokens, part: str) -> Iterator[Kept]:
    """The documents of a part that have not been forgotten."""
    flat = tokens.document.flatten().numpy()
    counts = np.bincount(flat[flat >= 0], minlength=len(tokens.documents))
    for number, document in enumerate(tokens.documents):
        if counts[number]:
            yield Kept(part, number, document.name, _digest(tokens, number), int(counts[number]))


def _digest(tokens: Tokens, number: int) -> str:
    if tokens.has_text:
        return hashlib.sha256(tokens.documents[number].text.encode()).hexdigest()
    return hashlib.sha256(tokens.ids[tokens.document == number].numpy().tobytes()).hexdigest()


def without(tokens: Tokens, gone: Collection[Kept]) -> tuple[Tokens, Bool[np.ndarray, " windows"]]:
    """The same windows with nothing of some documents, and which windows had something of them.

    Their tokens become what stands between documents. The numbers of the others stay.
    """
    numbers = torch.tensor(sorted(document.number for document in gone), dtype=tokens.document.dtype)
    hit = torch.isin(tokens.document, numbers)
    zero = torch.zeros_like(tokens.start)
    documents = list(tokens.documents)
    for document in gone:
        documents[document.number] = Document(f"forgotten {document.sha256[:12]}", "")
    between = tokens.ids[tokens.document < 0]
    filler = int(torch.mode(between).values) if len(between) else 0
    blanked = replace(
        tokens,
        ids=torch.where(hit, filler, tokens.ids),
        document=torch.where(hit, -1, tokens.document),
        start=torch.where(hit, zero, tokens.start),
        end=torch.where(hit, zero, tokens.end),
        documents=documents,
    )
    return blanked, hit.any(dim=1).numpy()


def rewritten_rows(store: Store, tokens: Tokens, hit: Bool[np.ndarray, " windows"]) -> Iterator[tuple[str, bytes]]:
    """The files of one site's shards that change, by name, without the rows of some windows.

    All rows of a window go: a model that read the document has it in what it made of the tokens around, too.

    Args:
        store: of the shards.
        tokens: of the part, as they are from now on.
        hit: the windows whose rows go.
    """
    index = json.loads(store.read(INDEX))
    entries, dropped = [], 0
    for entry in index["shards"]:
        places = MappedShard(store, entry, index["dtype"], index["dim"]).row_tokens()
        stays = torch.from_numpy(~hit[places // tokens.context])
        lost = int((~stays).sum())
        if lost:
            held = store.file(entry["file"], entry["sha256"]).opened(safetensors.torch.load_file)
            content = safetensors.torch.save({name: values[stays].contiguous() for name, values in held.items()})
            counts = {**entry["counts"], DROPPED: entry["counts"].get(DROPPED, 0) + lost}
            digest = hashlib.sha256(content).hexdigest()
            entry = {**entry, "num_rows": entry["num_rows"] - lost, "sha256": digest, "counts": counts}
            dropped += lost
            yield entry["file"], content
        entries.append(entry)
    meta: dict[str, Any] = {**index["meta"], "tokens": tokens.sha256()}
    meta[DROPPED] = meta.get(DROPPED, 0) + dropped
    changed = {**index, "num_rows": index["num_rows"] - dropped, "meta": meta, "shards": entries}
    yield INDEX, json.dumps(changed, indent=1).encode()


def rows_left(store: Store, context: int, hit: Bool[np.ndarray, " windows"]) -> int:
    """Rows of one site's shards outside of some windows."""
    return int((~hit[ShardFolder(store, verify=False).row_tokens() // context]).sum())
