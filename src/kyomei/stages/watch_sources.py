"""Where a watch takes its documents from: text, standard input, or rows that a harvest has stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.documents import DocumentFigures, DocumentSums
from kyomei.runs import Run
from kyomei.source.corpus import Corpus
from kyomei.source.records import Fields, RecordError, document_of
from kyomei.source.text import Document
from kyomei.stages.harvested import part_names, site_of
from kyomei.stages.watched import TextReader, stored_figures

STDIN = "-"
MOST_CHARACTERS = 1_000_000
"""Of a document; what stands beyond is not looked at."""
MOST_LINE_BYTES = 1 << 24
"""Longest line of standard input."""


@dataclass(frozen=True)
class Item:
    """One document of a source.

    Attributes:
        digest: of what it holds, in hexadecimal.
        figures: what the dictionary does on it; none for one without a token.
    """

    digest: str
    figures: Callable[[], DocumentFigures | None]


class Source(Protocol):
    """Documents, always in the same order.

    Attributes:
        name: under which its place is remembered.
        replayed: whether each call of `items` begins with its first document.
        num_bad: records that could not be read and were left out.
    """

    name: str
    replayed: bool

    @property
    def num_bad(self) -> int: ...

    def items(self) -> Iterator[Item]: ...


class TextSource:
    """The documents at an address, as a harvest reads them: a folder, a file of text or records, "stdlib", "datasets:NAME".

    Args:
        address: of the text.
        reader: makes figures of it.
        fields: where records keep their text.
        skip_bad: leave out records that cannot be read, instead of stopping at the first.
    """

    def __init__(self, address: str, reader: TextReader, fields: Fields, skip_bad: bool = False) -> None:
        self.name, self.replayed, self._reader = address, True, reader
        begins = reader.packer.begins_with_bos
        self._corpus = Corpus(address, fields, reader.model.tokenizer, skip_bad_records=skip_bad, strip_bos=begins)

    @property
    def num_bad(self) -> int:
        return self._corpus.log.num_bad_records

    def items(self) -> Iterator[Item]:
        for document in self._corpus:
            yield _item(document, self._reader)


class StreamSource:
    """Documents of standard input, a line each: a JSON object with the text, or with "activations" [rows, dim]; or plain text.

    Args:
        stream: bytes.
        reader: makes figures of it.
        fields: where records keep their text.
        lines: every line is a text.
        replayed: whether the stream begins anew with its first document, so that those counted before are skipped.
        skip_bad: leave out lines that cannot be read, instead of stopping at the first.
    """

    name = STDIN

    def __init__(
        self,
        stream: BinaryIO,
        reader: TextReader,
        fields: Fields,
        *,
        lines: bool = False,
        replayed: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self.replayed, self.num_bad = replayed, 0
        self._stream, self._reader, self._fields, self._lines, self._skip_bad = stream, reader, fields, lines, skip_bad

    def items(self) -> Iterator[Item]:
        for number, (line, whole) in enumerate(self._read(), start=1):
            if not line.strip():
                continue
            try:
                yield self._item(f"line {number}", line, whole)
            except RecordError:
                if not self._skip_bad:
                    raise
                self.num_bad += 1

    def _read(self) -> Iterator[tuple[bytes, bool]]:
        """Every line as far as it may be long, and whether that is all of it."""
        while line := self._stream.readline(MOST_LINE_BYTES):
            rest = line
            while len(rest) == MOST_LINE_BYTES and not rest.endswith(b"\n"):
                rest = self._stream.readline(MOST_LINE_BYTES)
            yield line, rest is line

    def _item(self, name: str, line: bytes, whole: bool) -> Item:
        if not (whole or self._lines):
            raise RecordError(f"records of at most {MOST_LINE_BYTES:,} bytes", f"a longer one at {name} of standard input")
        text = line.decode(errors="replace").rstrip("\r\n")
        record: Any = text
        if not self._lines:
            try:
                record = json.loads(text)
            except ValueError as error:
                found = f"{name} of standard input: {str(error)[:80]}"
                raise RecordError("a JSON object a line", found, "say --lines if every line is a text") from error
        if isinstance(record, dict) and "activations" in record:
            rows = self._rows(name, record["activations"])
            return Item(hashlib.sha256(line).hexdigest(), lambda: _figures(self._reader, rows))
        packer = self._reader.packer
        document, _ = document_of(name, record, self._fields, self._reader.model.tokenizer, packer.begins_with_bos)
        return _item(document, self._reader)

    def _rows(self, name: str, values: Any) -> torch.Tensor:
        try:
            rows = torch.tensor(values, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError) as error:
            raise RecordError("activations [rows, dim]", f"{name}: {str(error)[:80]}") from error
        if rows.ndim != 2 or rows.shape[1] != self._reader.sae.dim or not bool(torch.isfinite(rows).all()):
            raise RecordError(f"finite activations [rows, {self._reader.sae.dim}]", f"{list(rows.shape)} in {name}")
        return rows


class StoredSource:
    """The documents of a harvest, from its stored rows: of all its parts.

    Args:
        harvest: a run with rows, or on a harvest that has them.
        run: whose dictionary reads them.
        sae: that dictionary.

    Raises:
        DataError: the harvest has no rows of the run's site.
    """

    replayed, num_bad = True, 0

    def __init__(self, harvest: Run, run: Run, sae: SparseAutoencoder) -> None:
        self.name, self._harvest, self._sae, self._site = f"activations {harvest.folder.resolve()}", harvest, sae, site_of(run)
        sites = harvest.manifest.get("sites") or []
        if self._site not in sites:
            found = f"{', '.join(sites) or 'none'} in {harvest.folder}"
            raise DataError(f"rows of {self._site}", found, "harvest that site")

    def items(self) -> Iterator[Item]:
        for part in part_names(self._harvest.recipe):
            for name, figures in stored_figures(self._harvest, part, self._sae, self._site):
                digest = hashlib.sha256(f"{name} {figures.num_rows}".encode()).hexdigest()
                yield Item(digest, lambda figures=figures: figures)  # type: ignore[misc]


def _item(document: Document, reader: TextReader) -> Item:
    cut = Document(document.name, document.text[:MOST_CHARACTERS], document.held_out, document.group)
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
    return Item(digest, lambda: reader.read(cut))


def _figures(reader: TextReader, rows: torch.Tensor) -> DocumentFigures | None:
    sums = DocumentSums(reader.sae)
    sums.add(reader.ordinary(rows))
    return sums.figures()
