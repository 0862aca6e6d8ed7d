"""Documents from wherever text lives, split by document and packed into windows whose tokens know where they come from."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import json
import math
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from kyomei.errors import DataError
from kyomei.runs import sha256_of, write_atomic
from kyomei.source.spans import tiling_starts

SCHEMA_VERSION = 1
EMBEDDED = Path(__file__).parent / "embedded"
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
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
    """

    name: str
    text: str
    held_out: bool = False


def stdlib_files() -> list[tuple[str, Path]]:
    """(name relative to the library's folder, path) of every standard-library source used, in name order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not parts[-1].startswith("_sysconfigdata"):
            found.append(("/".join(parts), path))
    return sorted(found)


def is_held_out(name: str) -> bool:
    """Whether the embedded model is trained without this standard-library file: one in five, by the hash of its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 == 0


def read_documents(text: str, field: str = "text", tokenizer: Any = None) -> Iterator[Document]:
    """Every document that is not blank, in an order that does not change.

    Args:
        text: a folder (every text file below it), a .jsonl or .parquet file (one document a record), any other text file
            (one document), "stdlib" (the interpreter's own library) or "datasets:NAME" (its train split, streamed).
        field: where a record keeps its text, or its chat messages: a list of {role, content}.
        tokenizer: its chat template turns messages into text.

    Raises:
        DataError: nothing is there, it cannot be read, or a record lacks `field`.
    """
    if text == "stdlib":
        documents = _read_stdlib()
    elif text.startswith("datasets:"):
        documents = _read_dataset(text.removeprefix("datasets:"), field, tokenizer)
    elif Path(text).is_dir():
        documents = _read_folder(Path(text), field, tokenizer)
    elif Path(text).is_file():
        documents = _read_file(Path(text), Path(text).name, field, tokenizer)
    else:
        do = 'check the path, or name "stdlib" or "datasets:NAME"'
        raise DataError("a folder or a file of text", f"nothing at {text}", do)
    return (document for document in documents if document.text.strip())


def _read_stdlib() -> Iterator[Document]:
    listed = EMBEDDED / "held_out.json"
    held_out = set(json.loads(listed.read_text(encoding="utf-8"))) if listed.exists() else None
    for name, path in stdlib_files():
        held = is_held_out(name) if held_out is None else name in held_out
        yield Document(name, path.read_text(encoding="utf-8", errors="replace"), held)


def _read_dataset(name: str, field: str, tokenizer: Any) -> Iterator[Document]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        do = "install it with `pip install kyomei[datasets]`, or save the text as .jsonl"
        raise DataError(f"the package `datasets` to read datasets:{name}", "it is not installed", do) from error
    try:
        records = datasets.load_dataset(name, split="train", streaming=True, trust_remote_code=False)
        for number, record in enumerate(records):
            yield _document(f"{name}:{number}", record, field, tokenizer)
    except DataError:
        raise
    except Exception as error:  # the package raises many kinds: missing, gated, offline, of several configurations
        raise DataError(f"the dataset {name}", f"{type(error).__name__}: {error}", "check its name and the network") from error


def _read_folder(folder: Path, field: str, tokenizer: Any) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and (path.suffix in {".jsonl", ".parquet"} or _is_text(path)):
            yield from _read_file(path, name, field, tokenizer)


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


def _read_file(path: Path, name: str, field: str, tokenizer: Any) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _document(f"{name}:{number}", _record(line, f"{name}:{number}"), field, tokenizer)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, name, field, tokenizer)
    else:
        yield Document(name, path.read_text(encoding="utf-8", errors="replace"))


def _record(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError("one JSON object a line", f"{where}: {error}", "correct that line") from error


def _read_parquet(path: Path, name: str, field: str, tokenizer: Any) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise _without_field(name, field, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield _document(f"{name}:{number}", {field: value}, field, tokenizer)
                number += 1
    except pa.ArrowException as error:
        raise DataError("a parquet file", f"{path}: {error}", "write it again") from error


def _without_field(name: str, field: str, fields: list[str]) -> DataError:
    near = difflib.get_close_matches(field, fields, n=1)
    do = f"did you mean source.text_field '{near[0]}'" if near else "set source.text_field to the one that holds the text"
    return DataError(f"a field '{field}' in every record", f"{name} with {', '.join(fields) or 'no field'}", do)


def _document(name: str, record: Any, field: str, tokenizer: Any) -> Document:
    """The document of one record; a bare string is its own text."""
    if isinstance(record, dict) and field not in record:
        raise _without_field(name, field, list(record))
    value = record[field] if isinstance(record, dict) else record
    if isinstance(value, list):
        return Document(name, _chat_text(name, value, tokenizer))
    if value is not None and not isinstance(value, str):
        found = f"{type(value).__name__} in {name}"
        raise DataError(f"text or chat messages in '{field}'", found, "set source.text_field to the one that holds the text")
    return Document(name, value or "")


def _chat_text(name: str, messages: list[Any], tokenizer: Any) -> str:
    if not all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in messages):
        raise DataError("chat messages {role, content}", f"others in {name}", "correct that record")
    if getattr(tokenizer, "chat_template", None) is None:
        do = "use an instruction-tuned model, or records of plain text"
        raise DataError(f"a chat template for the messages of {name}", "a tokenizer without one", do)
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def split_documents(
    documents: Iterable[Document], replicas: int, evidence_share: float, seed: int
) -> dict[str, list[Document]]:
    """Share out whole documents, balanced by length, so that no text stands in two parts.

    Held-out documents, if there are any, make the evidence alone (without those whose text a seen document repeats) and
    the others make the replicas.

    Args:
        documents: what to share out.
        replicas: number of parts that find and train.
        evidence_share: share of all characters that goes to evidence, where nothing is held out.
        seed: seed of the order; every part is in random order, so that its first tokens stand for the whole.

    Returns:
        "replica-0", "replica-1" … and "evidence", each with at least one document.

    Raises:
        DataError: there are fewer distinct texts than parts.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.text, []).append(document)
    seen = [[d for d in group if not d.held_out] for group in groups.values()]
    held = [group for group in groups.values() if all(d.held_out for d in group)]
    seen = [group for group in seen if group]
    names = [f"replica-{number}" for number in range(replicas)]
    if held:
        return {**_share_out(seen, dict.fromkeys(names, 1 / replicas), seed), **_share_out(held, {"evidence": 1.0}, seed)}
    return _share_out(seen, {**dict.fromkeys(names, (1 - evidence_share) / replicas), "evidence": evidence_share}, seed)


def _share_out(groups: list[list[Document]], shares: dict[str, float], seed: int) -> dict[str, list[Document]]:
    if len(groups) < len(shares):
        do = "give more documents (a .txt file is one, a .jsonl record is one), or fewer replicas"
        raise DataError(f"at least {len(shares)} distinct documents", f"{len(groups)}", do)
    sizes = [sum(len(d.text) for d in group) for group in groups]
    order = np.random.default_rng([seed, 0]).permutation(len(groups)).tolist()
    # Long documents first keep the parts balanced; equal octaves stay in random order.
    by_length = sorted(order, key=lambda i: -int(math.log2(1 + sizes[i])))
    wanted = {name: share * sum(sizes) for name, share in shares.items()}
    chosen: dict[str, list[int]] = {name: [] for name in shares}
    for i in by_length:
        name = max(wanted, key=lambda part: wanted[part])
        chosen[name].append(i)
        wanted[name] -= sizes[i]
    for name in chosen:
        if not chosen[name]:
            fullest = max(chosen, key=lambda part: len(chosen[part]))
            chosen[name].append(chosen[fullest].pop())
    place = {i: k for k, i in enumerate(order)}
    return {name: [d for i in sorted(members, key=lambda i: place[i]) for d in groups[i]] for name, members in chosen.items()}


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
        """The same tokens in at most so many windows, taken evenly from beginning to end."""
        taken = torch.linspace(0, len(self.ids) - 1, min(windows, len(self.ids)), dtype=torch.float64).round().long()
        return Tokens(self.ids[taken], self.document[taken], self.start[taken], self.end[taken], self.documents)

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

    def save(self, folder: str | Path, *, keep_text: bool = True) -> None:
        """Write tokens.safetensors, documents.parquet (if asked, without the text) and index.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"ids": self.ids, "document": self.document, "start": self.start, "end": self.end}
        write_atomic(folder / _TOKENS, safetensors.torch.save({name: array.contiguous() for name, array in arrays.items()}))
        buffer = io.BytesIO()
        types = {"name": pa.string(), "held_out": pa.bool_(), **({"text": pa.large_string()} if keep_text else {})}
        columns = {key: pa.array([getattr(d, key) for d in self.documents], kind) for key, kind in types.items()}
        pq.write_table(pa.table(columns), buffer)
        write_atomic(folder / _DOCUMENTS, buffer.getvalue())
        index = {
            "schema_version": SCHEMA_VERSION,
            "windows": len(self.ids),
            "context": self.context,
            "documents": len(self.documents),
            "sha256": {name: sha256_of(folder / name) for name in (_TOKENS, _DOCUMENTS)},
        }
        write_atomic(folder / _INDEX, json.dumps(index, indent=1).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Tokens:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing, of a newer schema, or not as it was written.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            if index["schema_version"] > SCHEMA_VERSION:
                found = f"schema {index['schema_version']} in {folder}"
                raise DataError(f"tokens of schema {SCHEMA_VERSION}", found, "update Kyomei to read them")
            damaged = [name for name, digest in index["sha256"].items() if sha256_of(folder / name) != digest]
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise DataError(f"saved tokens in {folder}", f"{type(error).__name__}: {error}", "harvest again") from error
        if damaged:
            raise DataError(f"{damaged[0]} as it was written", f"other bytes (sha256 differs) in {folder}", "harvest again")
        table = pq.read_table(folder / _DOCUMENTS)
        documents = [Document(**{"text": "", **record}) for record in table.to_pylist()]
        return cls(**safetensors.torch.load_file(folder / _TOKENS), documents=documents, has_text="text" in table.column_names)


def pack(documents: Iterable[Document], tokenizer: Any, context: int, num_tokens: int) -> Tokens:
    """Concatenate documents and cut them into full windows, so that no token is padding.

    A window begins with BOS, else with CLS, where the tokenizer has one; EOS, else SEP, stands between documents.

    Args:
        documents: read in order, as far as needed.
        tokenizer: a fast tokenizer.
        context: tokens in a window.
        num_tokens: tokens wanted, all windows together; the text may hold fewer (see `Tokens.num_tokens`).

    Raises:
        DataError: there is no text, less than one window of it, or the tokenizer cannot tell character spans.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("a fast tokenizer, which tells character spans", f"{type(tokenizer).__name__}", "use another model")
    begin = _first_id(tokenizer, "bos_token_id", "cls_token_id")
    between = _first_id(tokenizer, "eos_token_id", "sep_token_id")
    inner = context - (begin is not None)
    windows = num_tokens // context
    if windows < 1:
        raise DataError(f"source.num_tokens of at least one window of {context}", f"{num_tokens}", "raise source.num_tokens")
    used: list[Document] = []
    chunks: list[Int64[np.ndarray, "4 chunk"]] = []
    have = 0
    for document, encoded in _encode(documents, tokenizer):
        number = np.full((1, encoded.shape[1]), len(used))
        chunks.append(np.concatenate([encoded[:1], number, encoded[1:]]))
        if between is not None:
            chunks.append(np.array([[between], [-1], [0], [0]]))
        used.append(document)
        have += encoded.shape[1] + (between is not None)
        if have >= windows * inner:
            break
    if not used:
        raise DataError("some text", "an empty corpus", "check source.text: every document is missing or blank")
    windows = min(windows, have // inner)
    if windows < 1:
        do = f"give more text, or set source.context to at most {have + (begin is not None)}"
        raise DataError(f"at least one window of {context} tokens", f"a corpus of {have} tokens", do)
    stream = np.concatenate(chunks, axis=1)[:, : windows * inner].reshape(4, windows, inner)
    if begin is not None:
        lead = np.broadcast_to(np.array([begin, -1, 0, 0]).reshape(4, 1, 1), (4, windows, 1))
        stream = np.concatenate([lead, stream], axis=2)
    ids, document_of, start, end = torch.from_numpy(stream)
    last = int(document_of.max())
    return Tokens(ids.clone(), document_of.int(), start.int(), end.int(), used[: last + 1])


def _first_id(tokenizer: Any, *names: str) -> int | None:
    return next((int(value) for name in names if (value := getattr(tokenizer, name, None)) is not None), None)


def _encode(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[Document, Int64[np.ndarray, "3 tokens"]]]:
    """Each document with (id, start, end) of its tokens; blank ones are skipped."""
    waiting: list[Document] = []
    for document in documents:
        if document.text.strip():
            waiting.append(document)
        if len(waiting) == _DOCUMENTS_PER_CALL or sum(len(d.text) for d in waiting) > _PIECE_CHARACTERS:
            yield from _encode_together(waiting, tokenizer)
            waiting = []
    if waiting:
        yield from _encode_together(waiting, tokenizer)


def _encode_together(documents: list[Document], tokenizer: Any) -> Iterator[tuple[Document, Int64[np.ndarray, "3 tokens"]]]:
    pieces = [(number, offset, piece) for number, d in enumerate(documents) for offset, piece in _pieces(d.text)]
    encoded = tokenizer([piece for _, _, piece in pieces], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    parts: list[list[Int64[np.ndarray, "2 tokens"]]] = [[] for _ in documents]
    for (number, offset, piece), ids, spans in zip(pieces, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        start, end = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        parts[number].append(np.stack([np.array(ids, dtype=np.int64), offset + tiling_starts(piece, start, end)]))
    for document, part in zip(documents, parts, strict=True):
        ids, starts = np.concatenate(part, axis=1)
        starts[:1] = 0  # a first piece of whitespace may have no token
        yield document, np.stack([ids, starts, np.append(starts[1:], len(document.text))[: len(ids)]])


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(offset, piece) of a text cut after line ends, since tokenizers' memory grows with the length of one text."""
    first = 0
    while len(text) - first > _PIECE_CHARACTERS:
        cut = text.rfind("\n", first, first + _PIECE_CHARACTERS) + 1 or first + _PIECE_CHARACTERS
        yield first, text[first:cut]
        first = cut
    yield first, text[first:]
