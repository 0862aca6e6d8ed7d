"""Parts of a corpus by hash: which replica, or the evidence, a document belongs to is known from the document alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from kyomei.errors import DataError
from kyomei.source.text import Document, Encoded, Packer, Tokens

SPARE_CHARACTERS = 1 << 25
"""Text beyond what the parts need that is kept in case the corpus turns out small."""
PATIENCE = 10_000
"""Documents in a row, all of parts that are full, after which a stream is taken to have none for the others."""
LEAST_DOCUMENTS = 8
"""Documents in a part at least, where the corpus has them: one long text is no sample, and some figures compare documents."""
LEAST_SHARE = 0.1
"""A part must get this share, at least, of the tokens that were asked for it, or of its share of the text there is."""


def unit_hash(seed: int, key: str) -> float:
    """A number in [0, 1) that stands for a text: evenly spread, the same on every machine, another for every seed."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53


@dataclass(frozen=True)
class Split:
    """How documents are shared out: by the hash u of their group, or of their text.

    The evidence has u in [0, evidence share), the replicas equal intervals of the rest. Documents of one text, or of one
    group, have one u and stand in one part. Where documents are marked as held out, the evidence is those alone.

    Args:
        replicas: parts that find and train.
        evidence_share: share of the text in the part that no replica sees.
        seed: of the hash.
        marks_held_out: whether the corpus marks what the language model never saw.
    """

    replicas: int
    evidence_share: float
    seed: int
    marks_held_out: bool = False

    @property
    def names(self) -> list[str]:
        """ "replica-0", "replica-1" … and "evidence"."""
        return [f"replica-{number}" for number in range(self.replicas)] + ["evidence"]

    def share(self, part: str) -> float:
        """Share of the tokens that a part gets."""
        return self.evidence_share if part == "evidence" else (1 - self.evidence_share) / self.replicas

    def hash_of(self, document: Document) -> float:
        """u of a document."""
        return unit_hash(self.seed, document.text if document.group is None else document.group)

    def part_of(self, document: Document) -> str:
        """The part that a document belongs to."""
        border = 0.0 if self.marks_held_out else self.evidence_share
        u = self.hash_of(document)
        if document.held_out or u < border:
            return "evidence"
        return f"replica-{min(int((u - border) / (1 - border) * self.replicas), self.replicas - 1)}"


def split_tokens(
    documents: Iterable[Document],
    packer: Packer,
    split: Split,
    asked: Mapping[str, int],
    wanted: Mapping[str, int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tokens]:
    """Windows of every part, from no more of the documents than it takes.

    Reading stops once every part has the tokens wanted, from `LEAST_DOCUMENTS` documents or more. Inside a part documents
    stand in the order of their hash,
    so that the first are no others than the last. A corpus that ends before gives what it has; where it is so small that
    its hashes leave a part short, its documents are shared out by length instead.

    Args:
        documents: a stream.
        packer: makes tokens and windows.
        split: which document belongs where.
        asked: tokens that each part needs.
        wanted: tokens to read for each part: as many, or more, of which some are taken evenly.
        progress: called with (tokens so far, tokens to read).

    Returns:
        Windows by part, of the tokens wanted; of more where the first `LEAST_DOCUMENTS` have more, and of fewer where the
        corpus ends before.

    Raises:
        DataError: a part comes out short, with the counts of all.
    """
    for part in split.names:
        packer.require_window(wanted[part])
    parts = _Parts(packer, split, wanted, progress)
    ended = parts.read(documents)
    if ended and not parts.lost and any(parts.have[part] < asked[part] for part in split.names):
        parts.share_out()
    parts.require_enough(asked)
    return {part: packer.cut(parts.in_order(part), parts.taken(part)) for part in split.names}


@final
class _Parts:
    """The documents of each part while they are read."""

    def __init__(
        self, packer: Packer, split: Split, wanted: Mapping[str, int], progress: Callable[[int, int], None] | None
    ) -> None:
        self.packer, self.split, self.wanted, self.progress = packer, split, wanted, progress
        self.parts: dict[str, list[Encoded]] = {part: [] for part in split.names}
        self.have = dict.fromkeys(split.names, 0)
        self.spare: list[Document] = []
        self.lost = False
        self._spare_characters = self._in_a_row = 0

    def read(self, documents: Iterable[Document]) -> bool:
        """Fill the parts; whether the documents ended first."""
        ended = True

        def useful() -> Iterator[Document]:
            nonlocal ended
            for document in documents:
                if self.is_full(self.split.part_of(document)):
                    self._pass_over(document)
                    if self._in_a_row > PATIENCE + 100 * sum(map(len, self.parts.values())):
                        ended = False
                        return
                else:
                    self._in_a_row = 0
                    yield document

        for encoded in self.packer.encode(useful()):
            self._add(self.split.part_of(encoded.document), encoded)
            if self.progress is not None:
                whole = sum(self.wanted.values())
                self.progress(min(whole, sum(self.have.values())), whole)
            if all(map(self.is_full, self.parts)):
                return False
        return ended

    def is_full(self, part: str) -> bool:
        enough = self.packer.windows(self.have[part]) >= self.wanted[part] // self.packer.context
        return enough and len(self.parts[part]) >= LEAST_DOCUMENTS

    def _add(self, part: str, encoded: Encoded) -> None:
        self.parts[part].append(encoded)
        self.have[part] += self.packer.length(encoded)

    def _pass_over(self, document: Document) -> None:
        self._in_a_row += 1
        self._spare_characters += len(document.text)
        if self._spare_characters > SPARE_CHARACTERS:
            self.lost, self.spare = True, []
        if not self.lost:
            self.spare.append(document)

    def share_out(self) -> None:
        """Share out all documents by length: the longest group first, each to the part that is most behind its share."""
        encoded = [e for part in self.parts.values() for e in part] + list(self.packer.encode(self.spare))
        self.parts = {part: [] for part in self.split.names}
        self.have = dict.fromkeys(self.split.names, 0)
        held = [e for e in encoded if e.document.held_out]
        seen = [e for e in encoded if not e.document.held_out]
        if self.split.marks_held_out:
            self._balance(held, ["evidence"])
            self._balance(seen, self.split.names[:-1])
        else:
            self._balance(encoded, self.split.names)

    def _balance(self, encoded: list[Encoded], names: list[str]) -> None:
        groups: dict[float, list[Encoded]] = {}
        for e in sorted(encoded, key=lambda e: self.split.hash_of(e.document)):
            groups.setdefault(self.split.hash_of(e.document), []).append(e)
        if len(groups) < len(names):
            do = "give more documents (a .txt file is one, a .jsonl record is one), or fewer source.replicas"
            raise DataError(f"at least {len(names)} distinct documents", f"{len(groups)}", do)
        sizes = {u: sum(map(self.packer.length, group)) for u, group in groups.items()}
        behind = {name: self.split.share(name) / sum(map(self.split.share, names)) * sum(sizes.values()) for name in names}
        chosen: dict[str, list[float]] = {name: [] for name in names}
        for u in sorted(groups, key=lambda u: -sizes[u]):
            part = max(behind, key=lambda name: behind[name])
            chosen[part].append(u)
            behind[part] -= sizes[u]
        for empty in [name for name in names if not chosen[name]]:
            chosen[empty].append(chosen[max(chosen, key=lambda name: len(chosen[name]))].pop())
        for part, members in chosen.items():
            for e in (e for u in members for e in groups[u]):
                self._add(part, e)

    def in_order(self, part: str) -> list[Encoded]:
        """The documents of a part in the order of their hash."""
        return sorted(self.parts[part], key=lambda e: self.split.hash_of(e.document))

    def taken(self, part: str) -> int:
        """Tokens in the windows of a part: those wanted, or those of its first documents if that is more."""
        first = sum(map(self.packer.length, self.in_order(part)[:LEAST_DOCUMENTS]))
        return max(self.wanted[part], self.packer.windows(first) * self.packer.context)

    def require_enough(self, asked: Mapping[str, int]) -> None:
        """Raise DataError if a part has no window, or far less than its share."""
        whole = sum(self.have.values())
        least = {part: LEAST_SHARE * min(asked[part], self.split.share(part) * whole) for part in self.parts}
        short = [part for part, have in self.have.items() if self.packer.windows(have) < 1 or have < least[part]]
        if short:
            counts = ", ".join(
                f"{part} {have:,} of {asked[part]:,} tokens from {(n := len(self.parts[part])):,} document{'s' * (n != 1)}"
                for part, have in self.have.items()
            )
            expected = f"at least a window of {self.packer.context} tokens, and its share, in every part of the documents"
            do = "give more, or shorter, documents (a .jsonl record is one), fewer source.replicas or a smaller source.context"
            raise DataError(expected, f"too few in {', '.join(short)}: {counts}", do)
