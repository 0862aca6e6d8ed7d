"""Documents packed into windows whose tokens know where they come from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from kyomei.errors import DataError
from kyomei.source.spans import tiling_starts
from kyomei.stores import StoreLike, store_at

SCHEMA_VERSION = 1
EMBEDDED = Path(__file__).parent / "embedded"
_TOKENS, _DOCUMENTS, _INDEX = "tokens.safetensors", "documents.parquet", "index.json"
_PIECE_CHARACTERS = 1 << 20
_DOCUMENTS_PER_CALL = 32


@dataclass(frozen=True)
class Document:
    """One text and what it is called.

    Args:
        name: path, or file and record number.
        text: the whole text.
        held_out: whether the embedded language model never saw it in training.
        group: what it shares with documents that must stand in the same part; none: it stands alone. Not saved.
    """

    name: str
    text: str
    held_out: bool = False
    group: str | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Packed windows of one part, each token with its document and character span.

    Args:
        ids: token ids.
        document: index into `documents`; −1 for tokens put in between (BOS, EOS).
        start: first character of the token in its document's text; the tokens of a document show each character once.
        end: one past its last character; `start` for a token that shows nothing, such as the second half of an emoji.
        documents: the documents that the windows come from.
        has_text: whether their text is there; without it a token is shown by its id.
    """

    ids: Int64[Tensor, "windows context"]
    document: Int32[Tensor, "windows context"]
    start: Int32[Tensor, "windows context"]
    end: Int32[Tensor, "windows context"]
    documents: list[Document]
    has_text: bool = True

    @property
    def context(self) -> int:
        return int(self.ids.shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows; fewer than asked for where the text was shorter."""
        return self.ids.numel()

    def thinned(self, windows: int) -> Tokens:
        """The same tokens in at most so many windows, taken evenly from beginning to end, with the documents they are of."""
        taken = torch.linspace(0, len(self.ids) - 1, min(windows, len(self.ids)), dtype=torch.float64).round().long()
        used, document = torch.unique(self.document[taken], return_inverse=True)
        document = document.int() - int((used < 0).sum())
        documents = [self.documents[i] for i in used.tolist() if i >= 0]
        return Tokens(self.ids[taken], document, self.start[taken], self.end[taken], documents, self.has_text)

    def is_special(self, windows: slice, special_ids: Int64[Tensor, " special"]) -> Bool[Tensor, "windows context"]:
        """Tokens of some windows that stand for no text: a model's special ones, and those put in between documents."""
        return torch.isin(self.ids[windows], special_ids) | (self.document[windows] < 0)

    def text_at(self, at: int) -> str:
        """The characters of the token at window × context + position; empty for one that stands between documents.

        Without text, its id in angle brackets.
        """
        document = int(self.document.flatten()[at])
        if document < 0:
            return ""
        if not self.has_text:
            return f"<{int(self.ids.flatten()[at])}>"
        return self.documents[document].text[int(self.start.flatten()[at]) : int(self.end.flatten()[at])]

    def around(self, at: int, before: int, after: int) -> range:
        """Places of the token at `at` and of its neighbours in the same window and document, so many at most on each side.

        The texts of these tokens, joined, are a stretch of that document.
        """
        window = at // self.context
        documents = self.document[window]
        place = at % self.context
        other = [int(i) for i in torch.nonzero(documents != documents[place]).flatten()]
        first = max([place - before, 0, *(i + 1 for i in other if i < place)])
        last = min([place + after + 1, self.context, *(i for i in other if i > place)])
        return range(window * self.context + first, window * self.context + last)

    def sha256(self) -> str:
        """Digest of the ids and their shape."""
        return hashlib.sha256(str(list(self.ids.shape)).encode() + self.ids.contiguous().numpy().tobytes()).hexdigest()

    def save(self, folder: StoreLike, *, keep_text: bool = True) -> None:
        """Write tokens.safetensors, documents.parquet (if asked, without the text) and index.json into a folder or address."""
        store = store_at(folder)
        store.prepare()
        arrays = {"ids": self.ids, "document": self.document, "start": self.start, "end": self.end}
        files = {_TOKENS: safetensors.torch.save({name: array.contiguous() for name, array in arrays.items()})}
        buffer = io.BytesIO()
        types = {"name": pa.string(), "held_out": pa.bool_(), **({"text": pa.large_string()} if keep_text else {})}
        columns = {key: pa.array([getattr(d, key) for d in self.documents], kind) for key, kind in types.items()}
        pq.write_table(pa.table(columns), buffer)
        files[_DOCUMENTS] = buffer.getvalue()
        for name, content in files.items():
            store.put(name, [content])
        index = {
            "schema_version": SCHEMA_VERSION,
            "windows": len(self.ids),
            "context": self.context,
            "documents": len(self.documents),
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        store.write(_INDEX, json.dumps(index, indent=1).encode())

    @classmethod
    def load(cls, folder: StoreLike) -> Tokens:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing, of a newer schema, or not as it was written.
            AddressError: the address does not answer.
        """
        store = store_at(folder)
        try:
            index = json.loads(store.read(_INDEX).decode("utf-8"))
            if index["schema_version"] > SCHEMA_VERSION:
                found = f"schema {index['schema_version']} in {store}"
                raise DataError(f"tokens of schema {SCHEMA_VERSION}", found, "update Kyomei to read them")
            digests = {name: str(index["sha256"][name]) for name in (_TOKENS, _DOCUMENTS)}
            damaged = store.differing(digests)
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise DataError(f"saved tokens in {store}", f"{type(error).__name__}: {error}", "harvest again") from error
        if damaged:
            found = f"other bytes (sha256 differs), or nothing, in {store}"
            raise DataError(f"{damaged[0]} as it was written", found, "harvest again")
        table = store.file(_DOCUMENTS, digests[_DOCUMENTS]).opened(pq.read_table)
        documents = [Document(**{"text": "", **record}) for record in table.to_pylist()]
        arrays = store.file(_TOKENS, digests[_TOKENS]).opened(safetensors.torch.load_file)
        return cls(**arrays, documents=documents, has_text="text" in table.column_names)


@dataclass(frozen=True)
class Encoded:
    """A document and its tokens.

    Args:
        document: the text.
        ids: token ids.
        starts: first character of each; together the tokens show every character once.
    """

    document: Document
    ids: Int32[np.ndarray, " tokens"]
    starts: Int32[np.ndarray, " tokens"]


@final
class Packer:
    """Makes tokens of documents, and full windows of tokens, so that no token is padding.

    A window begins with BOS or CLS where the model's own tokenizer puts it before a text; EOS, else SEP, stands between
    documents.

    Args:
        tokenizer: a fast tokenizer.
        context: tokens in a window.
        force_bos: begin windows with BOS, else CLS, where the tokenizer does not do so itself.

    Raises:
        DataError: the tokenizer cannot tell character spans.
    """

    def __init__(self, tokenizer: Any, context: int, force_bos: bool = False) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError("a fast tokenizer, which tells character spans", f"{type(tokenizer).__name__}", "use another model")
        self.tokenizer, self.context = tokenizer, context
        begin = _first_id(tokenizer, "bos_token_id", "cls_token_id")
        self.begin = begin if force_bos or tokenizer("a")["input_ids"][:1] == [begin] else None
        self.between = _first_id(tokenizer, "eos_token_id", "sep_token_id")

    @property
    def begins_with_bos(self) -> bool:
        """Whether windows begin with BOS, so that a chat template's own is one too many."""
        return self.begin is not None and self.begin == getattr(self.tokenizer, "bos_token_id", None)

    def length(self, encoded: Encoded) -> int:
        """Tokens that a document takes in the windows."""
        return len(encoded.ids) + (self.between is not None)

    def windows(self, num_tokens: int) -> int:
        """Full windows that so many tokens of documents make."""
        return num_tokens // (self.context - (self.begin is not None))

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """Each document with its tokens, a few at a time; blank ones are skipped."""
        waiting: list[Document] = []
        for document in documents:
            if document.text.strip():
                waiting.append(document)
            if len(waiting) == _DOCUMENTS_PER_CALL or sum(len(d.text) for d in waiting) > _PIECE_CHARACTERS:
                yield from self._encode_together(waiting)
                waiting = []
        yield from self._encode_together(waiting)

    def _encode_together(self, documents: list[Document]) -> Iterator[Encoded]:
        if not documents:
            return
        pieces = [(number, offset, piece) for number, d in enumerate(documents) for offset, piece in _pieces(d.text)]
        texts = [piece for _, _, piece in pieces]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        parts: list[list[Int32[np.ndarray, "2 tokens"]]] = [[] for _ in documents]
        for (number, offset, piece), ids, spans in zip(pieces, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            start, end = np.array(spans, dtype=np.int64).reshape(-1, 2).T
            parts[number].append(np.stack([np.array(ids, dtype=np.int32), offset + tiling_starts(piece, start, end)]))
        for document, part in zip(documents, parts, strict=True):
            ids, starts = np.concatenate(part, axis=1).astype(np.int32)
            starts[:1] = 0  # a first piece of whitespace may have no token
            yield Encoded(document, ids, starts)

    def cut(self, encoded: Sequence[Encoded], num_tokens: int) -> Tokens:
        """Full windows of documents one after the other.

        Args:
            encoded: in this order, as far as needed.
            num_tokens: tokens wanted, all windows together; there may be fewer (see `Tokens.num_tokens`).

        Raises:
            DataError: there is no text, or less than one window of it or asked for.
        """
        self.require_window(num_tokens)
        if not encoded:
            raise DataError("some text", "an empty corpus", "check source.text: every document is missing or blank")
        inner = self.context - (self.begin is not None)
        have = sum(self.length(e) for e in encoded)
        windows = min(num_tokens // self.context, have // inner)
        if windows < 1:
            do = f"give more text, or set source.context to at most {have + (self.begin is not None)}"
            raise DataError(f"at least one window of {self.context} tokens", f"a corpus of {have} tokens", do)
        chunks: list[Int32[np.ndarray, "4 chunk"]] = []
        after = np.array([[self.between], [-1], [0], [0]], dtype=np.int32) if self.between is not None else None
        for number, e in enumerate(encoded):
            ends = np.append(e.starts[1:], np.int32(len(e.document.text)))[: len(e.ids)]
            chunks.append(np.stack([e.ids, np.full_like(e.ids, number), e.starts, ends]))
            if after is not None:
                chunks.append(after)
        stream = np.concatenate(chunks, axis=1)[:, : windows * inner].reshape(4, windows, inner)
        if self.begin is not None:
            lead = np.array([self.begin, -1, 0, 0], dtype=np.int32).reshape(4, 1, 1)
            stream = np.concatenate([np.broadcast_to(lead, (4, windows, 1)), stream], axis=2)
        ids, document_of, start, end = torch.from_numpy(stream)
        documents = [e.document for e in encoded[: int(document_of.max()) + 1]]
        return Tokens(ids.long(), document_of.clone(), start.clone(), end.clone(), documents)

    def require_window(self, num_tokens: int) -> None:
        """Raise DataError unless so many tokens make a window."""
        if num_tokens < self.context:
            expected = f"source.num_tokens of at least one window of {self.context}"
            raise DataError(expected, f"{num_tokens}", "raise source.num_tokens")


def pack(documents: Iterable[Document], tokenizer: Any, context: int, num_tokens: int, *, force_bos: bool = False) -> Tokens:
    """Full windows of documents, read in order and as far as needed (see `Packer`).

    Args:
        documents: what to pack.
        tokenizer: a fast tokenizer.
        context: tokens in a window.
        num_tokens: tokens wanted, all windows together; the text may hold fewer (see `Tokens.num_tokens`).
        force_bos: as `Packer` takes it.

    Raises:
        DataError: there is no text, less than one window of it, or the tokenizer cannot tell character spans.
    """
    packer = Packer(tokenizer, context, force_bos)
    packer.require_window(num_tokens)
    encoded: list[Encoded] = []
    have = 0
    for e in packer.encode(documents):
        encoded.append(e)
        have += packer.length(e)
        if packer.windows(have) >= num_tokens // context:
            break
    return packer.cut(encoded, num_tokens)


def _first_id(tokenizer: Any, *names: str) -> int | None:
    return next((int(value) for name in names if (value := getattr(tokenizer, name, None)) is not None), None)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(offset, piece) of a text cut after line ends, since tokenizers' memory grows with the length of one text."""
    first = 0
    while len(text) - first > _PIECE_CHARACTERS:
        cut = text.rfind("\n", first, first + _PIECE_CHARACTERS) + 1 or first + _PIECE_CHARACTERS
        yield first, text[first:cut]
        first = cut
    yield first, text[first:]
