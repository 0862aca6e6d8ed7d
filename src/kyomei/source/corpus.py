"""A corpus: the documents of an address, as a stream, and what was read, skipped and left out on the way."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from kyomei.errors import DataError, in_one_line
from kyomei.extras import require
from kyomei.source.files import TextFile, local_file, local_files, naming, remote_files
from kyomei.source.parts import unit_hash
from kyomei.source.readers import Records, read_file
from kyomei.source.records import Fields, RecordError, UnreadableFile, document_of
from kyomei.source.stdlib import stdlib_documents
from kyomei.source.text import Document

NAMED = 5
"""Files or records that are named where many are counted."""
BLANK_IN_A_ROW = 100_000
SHUFFLED_RECORDS = 1000
"""Records of a streamed data set that are shuffled together, beside the order of its files."""


@dataclass
class ReadLog:
    """What became of a corpus so far.

    Attributes:
        documents, characters: read, blank ones apart.
        blank: documents without a letter.
        replaced: documents in which NUL or lone surrogates were replaced.
        files: number of files read, by their endings.
        skipped: names of files left out, by reason.
        bad_records: what was wrong with the records left out.
        shares: characters read of each address of a mixture.
        exhausted: addresses that were read to their end.
        digest: SHA-256 of the documents, in the order in which they were read.
    """

    documents: int = 0
    characters: int = 0
    blank: int = 0
    replaced: int = 0
    files: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    bad_records: list[str] = field(default_factory=list)
    num_bad_records: int = 0
    shares: Counter[str] = field(default_factory=Counter)
    exhausted: list[str] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, document: Document) -> None:
        self.documents += 1
        self.characters += len(document.text)
        content = document.text.encode("utf-8", "surrogatepass")
        # With its length, so that two documents are not one that is as long as both.
        self.digest.update(len(content).to_bytes(8, "little") + content)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def leave_out(self, error: RecordError) -> None:
        self.num_bad_records += 1
        if len(self.bad_records) < NAMED:
            self.bad_records.append(error.found)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; of many skipped files the first are named."""
        skipped = {reason: {"files": len(names), "first": names[:NAMED]} for reason, names in self.skipped.items()}
        counts = {key: getattr(self, key) for key in ("documents", "characters", "blank", "replaced")}
        bad = {"count": self.num_bad_records, "first": self.bad_records}
        mixture = {"characters_by_address": dict(self.shares)} if len(self.shares) > 1 else {}
        read = {**counts, "sha256": self.digest.hexdigest(), "files": dict(self.files), "skipped": skipped}
        return {**read, "bad_records": bad, **mixture, "ended": self.exhausted}

    def __str__(self) -> str:
        """One line for the user."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.files.items()))
        parts = [f"{_count(self.documents, 'document')}" + (f" from {kinds}" if kinds else "")]
        if len(self.shares) > 1:
            whole = max(1, self.shares.total())
            parts[0] += " (" + ", ".join(f"{100 * n / whole:.0f} % {address}" for address, n in self.shares.items()) + ")"
        for reason, names in self.skipped.items():
            shown = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
            parts.append(f"skipped {_count(len(names), 'file')} ({reason}): {shown}")
        if self.num_bad_records:
            parts.append(f"left out {_count(self.num_bad_records, 'bad record')}, first {self.bad_records[0]}")
        if self.replaced:
            parts.append(f"replaced NUL or surrogates in {_count(self.replaced, 'document')}")
        return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@final
class Corpus:
    """The documents of one or several addresses; iterate once. Nothing is read before that, nor more than is asked for.

    Args:
        text: an address, or addresses with weights: text is then taken so that characters stand in this proportion. An
            address is a folder (every file below it), a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet: one document a
            record; else one document; also compressed: .gz, .bz2, .xz, .zst), one of these behind an fsspec address such as
            s3:// or hf://, "stdlib" (the interpreter's own library), or "datasets:NAME:CONFIG:SPLIT@REVISION" (a streamed
            data set, the last three optional).
        fields: where records keep their text.
        tokenizer: its chat template turns messages into text.
        seed: of the order in which files are read.
        skip_bad_records: count records that cannot be read, instead of stopping at the first.
        strip_bos: whether windows begin with BOS anyway, so that a chat template's own is one too many.

    Raises:
        AddressError: one elsewhere does not answer.
        DataError: nothing is at an address. While it is read: a record or a file is unusable, or there is no text at all.
    """

    def __init__(
        self,
        text: str | Mapping[str, float],
        fields: Fields | None = None,
        tokenizer: Any = None,
        seed: int = 0,
        skip_bad_records: bool = False,
        strip_bos: bool = False,
    ) -> None:
        self.weights = {text: 1.0} if isinstance(text, str) else dict(text)
        self.fields, self.tokenizer, self.seed = fields or Fields(), tokenizer, seed
        self.skip_bad_records, self.strip_bos = skip_bad_records, strip_bos
        self.log = ReadLog()
        self._advice = ""
        self._sources = {address: self._open(address) for address in self.weights}

    @property
    def marks_held_out(self) -> bool:
        """Whether some of its documents are marked as unseen by the language model."""
        return "stdlib" in self.weights

    def __iter__(self) -> Iterator[Document]:
        """Every document that is not blank."""
        blank_in_a_row = 0
        for document in self._mixed():
            if document.text.strip():
                blank_in_a_row = 0
                self.log.add(document)
                yield document
                continue
            self.log.blank += 1
            blank_in_a_row += 1
            if blank_in_a_row == BLANK_IN_A_ROW:
                found = f"{BLANK_IN_A_ROW:,} blank ones in a row, up to {document.name}"
                raise DataError("documents with text", found, "check source.text_field")
        if not self.log.documents:
            found = f"none in {', '.join(self.weights)}: {self.log}"
            do = self._advice or "check source.text: every document is missing or blank"
            raise DataError("some text", found, do)

    def _mixed(self) -> Iterator[Document]:
        """From all addresses in turn, each time from the one that is most behind its weight."""
        left = dict(self._sources)
        while left:
            address = min(left, key=lambda a: (self.log.shares[a] + 1) / self.weights[a])
            document = next(left[address], None)
            if document is None:
                del left[address]
                self.log.exhausted.append(address)
            else:
                self.log.shares[address] += max(1, len(document.text))
                yield document

    def _open(self, address: str) -> Iterator[Document]:
        if address == "stdlib":
            return self._standard_library()
        if address.startswith("datasets:"):
            return self._documents(_dataset(address.removeprefix("datasets:"), self.seed))
        if "://" in address:
            files, is_folder = remote_files(address)
            return self._folder(files) if is_folder else self._file(files[0])
        path = Path(os.path.expanduser(address))
        if address.strip() and os.path.isdir(path):
            return self._folder(local_files(path, self.log.skip))
        if os.path.isfile(path):
            return self._file(local_file(path, path.name))
        do = 'check the path, or name "stdlib", "datasets:NAME" or an address such as "s3://bucket/folder"'
        raise DataError("a folder or a file of text", f"nothing at {address or 'an empty address'}", do)

    def _standard_library(self) -> Iterator[Document]:
        documents = stdlib_documents()
        self.log.files[".py"] += len(documents)
        yield from sorted(documents, key=lambda document: unit_hash(self.seed, document.name))

    def _folder(self, files: list[TextFile]) -> Iterator[Document]:
        # In an order of the seed: where reading stops early, what was read stands for the folder.
        for file in sorted(files, key=lambda file: unit_hash(self.seed, file.name)):
            try:
                yield from self._file(file)
            except UnreadableFile as error:
                self.log.skip(file.name, error.reason)
                self._advice = self._advice or error.do

    def _file(self, file: TextFile) -> Iterator[Document]:
        gives_any = False
        for document in self._documents(read_file(file, self.fields)):
            self.log.files[file.kind] += not gives_any
            gives_any = True
            yield document
        if not gives_any:
            self.log.skip(file.name, "empty")

    def _documents(self, records: Records) -> Iterator[Document]:
        for name, record in records:
            try:
                document, replaced = document_of(name, record, self.fields, self.tokenizer, self.strip_bos)
            except RecordError as error:
                if not self.skip_bad_records:
                    raise
                self.log.leave_out(error)
                self._advice = self._advice or error.do
                continue
            self.log.replaced += replaced
            yield document


def _dataset(address: str, seed: int) -> Records:
    """Records of NAME:CONFIG:SPLIT@REVISION, streamed; its files in an order of the seed."""
    require("datasets", DataError)
    datasets = importlib.import_module("datasets")
    place, _, revision = address.partition("@")
    name, config, split = (*place.split(":", 2), "", "")[:3]
    options = {"split": split or "train", "streaming": True, "trust_remote_code": False}
    options |= {"revision": revision} if revision else {}
    try:
        records = datasets.load_dataset(name, *([config] if config else []), **options)
    except Exception as error:  # the package raises many kinds: missing, gated, offline, of several configurations
        do = "check its name, CONFIG and SPLIT (datasets:NAME:CONFIG:SPLIT) and the network"
        raise DataError(f"the dataset {address}", in_one_line(error), do) from error
    if hasattr(records, "shuffle"):
        records = records.shuffle(seed=seed, buffer_size=SHUFFLED_RECORDS)
    with naming(f"datasets:{address}"):
        for number, record in enumerate(records):
            yield f"{name}:{number}", record
