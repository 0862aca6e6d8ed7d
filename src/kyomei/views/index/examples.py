"""Examples of a latent: the strongest rows, some of every decile of its activations, and the text around each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from scipy import sparse

from kyomei.evidence.examples import CONTEXT_TOKENS, TOP_TOKENS
from kyomei.source.text import Tokens
from kyomei.views.index.schema import EXAMPLE_COLUMNS

TOP, PER_DECILE, DECILES = 16, 4, 10
STRONGEST_READ = 32
"""Strongest rows of a latent whose tokens name it."""
BINS = 30
# What is the same for every latent, of which there are many.
_EDGES, _DRAWS = np.arange(DECILES + 1), np.arange(PER_DECILE)
_DECILE = np.repeat(np.arange(DECILES - 1, -1, -1)[:, None], PER_DECILE, axis=1)
_BIN_EDGES = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of one latent that are shown.

    Attributes:
        place: of each among the latent's active rows, strongest first [n].
        decile: of each decile sample 0 (weakest tenth of the active rows) to 9; −1 for the strongest ones [n].
        rank: within the strongest ones, or within the decile, from 0 [n].
    """

    place: Int64[np.ndarray, " n"]
    decile: Int64[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]

    @classmethod
    def of(cls, count: int, rng: np.random.Generator) -> Chosen:
        """Of a latent that is active in so many rows: one draw from each of equal parts of every decile."""
        top = np.arange(min(TOP, count))
        edges = -(-_EDGES * count // DECILES)
        begin, size = edges[:-1, None], (edges[1:] - edges[:-1])[:, None]
        share = (_DRAWS + rng.random((DECILES, PER_DECILE))) / PER_DECILE
        drawn = np.minimum((begin + share * size).astype(np.int64), max(0, count - 1))
        # A decile of fewer rows than draws has each of its rows once.
        fresh = np.repeat(size > 0, PER_DECILE, axis=1)
        fresh[:, 1:] &= drawn[:, 1:] > drawn[:, :-1]
        rank = np.cumsum(fresh, axis=1) - 1
        return cls(
            np.concatenate([top, drawn[fresh]]),
            np.concatenate([np.full(len(top), -1), _DECILE[fresh]]),
            np.concatenate([top, rank[fresh]]),
        )


@final
class Places:
    """Where rows lie in the text.

    Args:
        tokens: the text.
        row_token: window × context + position of each row, ascending [rows].

    Attributes:
        row_of: number of the row at each place; −1 where it was dropped [windows × context].
        names: what each document is called, and after them "" for no document.
    """

    def __init__(self, tokens: Tokens, row_token: Int64[np.ndarray, " rows"]) -> None:
        self.tokens, self.row_token = tokens, row_token
        self.context = tokens.context
        self.ids = tokens.ids.flatten().numpy()
        self.document = tokens.document.flatten().numpy()
        self.start, self.end = tokens.start.flatten().numpy(), tokens.end.flatten().numpy()
        changes = np.ones(len(self.document) + 1, dtype=bool)
        changes[1:-1] = np.diff(self.document) != 0
        changes[:: self.context] = True
        self._edges = np.flatnonzero(changes)
        self.names = pa.array([*(document.name for document in tokens.documents), ""], pa.string())
        self.row_of = np.full(len(self.document), -1, dtype=np.int64)
        self.row_of[row_token] = np.arange(len(row_token))

    def around(self, place: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """First place of the stretch of text shown around each, and one past its last: of the same window and document."""
        before, after = CONTEXT_TOKENS
        run = np.searchsorted(self._edges, place, side="right") - 1
        return np.maximum(place - before, self._edges[run]), np.minimum(place + after + 1, self._edges[run + 1])

    def texts(self, places: Int64[np.ndarray, " n"]) -> list[str]:
        """The characters of tokens, as `Tokens.text_at` gives them."""
        documents, whole = self.tokens.documents, self.tokens.has_text
        if not whole:
            return [f"<{token}>" if d >= 0 else "" for token, d in zip(self.ids[places], self.document[places], strict=True)]
        spans = zip(self.document[places].tolist(), self.start[places].tolist(), self.end[places].tolist(), strict=True)
        return [documents[d].text[a:b] if d >= 0 else "" for d, a, b in spans]


@dataclass(frozen=True, eq=False)
class LatentFigures:
    """What a latent's active rows say of it.

    Attributes:
        maximum, mean: of its activation in the rows in which it is active.
        histogram: active rows by activation, in equal bins from 0 to the maximum [bins].
        edges: of the bins [bins + 1].
        top_tokens: the distinct tokens of its strongest rows, strongest first.
    """

    maximum: float
    mean: float
    histogram: list[int]
    edges: list[float]
    top_tokens: list[str]

    @classmethod
    def of(cls, values: Float32[np.ndarray, " active"], strongest: list[str]) -> LatentFigures:
        """Of activations in any order, and the texts of the strongest rows."""
        if not len(values):
            return cls(0.0, 0.0, [], [], [])
        # A relu dictionary's activations can be as small as rounding allows: bins end at the largest one.
        largest = float(values.max())
        edges = (largest * _BIN_EDGES).astype(np.float32)
        counts = np.bincount(np.searchsorted(edges[1:-1], values, side="left"), minlength=BINS)
        tokens = list(dict.fromkeys(token for token in strongest if token))[:TOP_TOKENS]
        return cls(largest, float(values.mean(dtype=np.float64)), counts.tolist(), edges.tolist(), tokens)


def read_group(first: int, code: sparse.csc_array, places: Places, seed: int) -> tuple[list[LatentFigures], pa.Table]:
    """Figures of each latent of a group, and its rows of examples.parquet.

    Args:
        first: number of the group's first latent.
        code: of the group [rows, latents], rows ascending within each latent.
        places: where rows lie in the text.
        seed: of the draws; those of a latent do not depend on its group.
    """
    columns, strongest, actives = [], [], []
    for number in range(code.shape[1]):
        span = slice(code.indptr[number], code.indptr[number + 1])
        row, value = code.indices[span].astype(np.int64), code.data[span]
        order = np.argsort(-value, kind="stable")
        chosen = Chosen.of(len(row), np.random.default_rng([seed, first + number]))
        at = order[chosen.place]
        columns.append((np.full(len(at), number), chosen.decile, chosen.rank, value[at], row[at]))
        strongest.append(places.row_token[row[order[:STRONGEST_READ]]])
        actives.append(value)
    words = iter(places.texts(np.concatenate(strongest)))
    named = [[next(words) for _ in tokens] for tokens in strongest]
    figures = [LatentFigures.of(value, texts) for value, texts in zip(actives, named, strict=True)]
    shown = _Shown(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))
    return figures, _table(first, shown, code, places)


class _Shown(NamedTuple):
    """Examples of a group: the latent's number in the group, decile, rank, activation and row of each."""

    latent: np.ndarray
    decile: np.ndarray
    rank: np.ndarray
    value: np.ndarray
    row: np.ndarray


def _table(first: int, shown: _Shown, code: sparse.csc_array, places: Places) -> pa.Table:
    place = places.row_token[shown.row]
    begin, end = places.around(place)
    length = end - begin
    offsets = np.concatenate([[0], np.cumsum(length)])
    flat = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - begin, length)
    # What np.unique gives, without sorting.
    seen = np.zeros(len(places.document), dtype=bool)
    seen[flat] = True
    distinct, back = np.flatnonzero(seen), (np.cumsum(seen) - 1)[flat]
    texts = pa.array(places.texts(distinct), pa.string()).dictionary_encode()
    words = pa.DictionaryArray.from_arrays(texts.indices.take(pa.array(back)), texts.dictionary).cast(pa.string())
    lists = pa.array(offsets, pa.int32())
    document = places.document[place]
    # Document −1 is the last of the names: the empty one.
    named = pa.DictionaryArray.from_arrays(pa.array(np.where(document < 0, len(places.names) - 1, document)), places.names)
    kinds = pa.DictionaryArray.from_arrays(pa.array((shown.decile >= 0).astype(np.int8)), pa.array(["top", "decile"]))
    columns = {
        "latent": shown.latent + first,
        "kind": kinds,
        "decile": shown.decile,
        "rank": shown.rank,
        "example": shown.row,
        "activation": shown.value,
        "document": document,
        "document_name": named,
        "window": place // places.context,
        "position": place % places.context,
        "start": places.start[begin],
        "focus": place - begin,
        "tokens": pa.ListArray.from_arrays(lists, words),
        "activations": pa.ListArray.from_arrays(
            lists, pa.array(_activations(code, np.repeat(shown.latent, length), flat, places))
        ),
    }
    arrays = [_array(columns[field.name]).cast(field.type) for field in EXAMPLE_COLUMNS]
    return pa.Table.from_arrays(arrays, schema=EXAMPLE_COLUMNS)


def _array(values: np.ndarray | pa.Array) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values)


def _activations(
    code: sparse.csc_array, latent: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"], places: Places
) -> Float32[np.ndarray, " n"]:
    """Activations of latents of a group at places; 0 where a latent is silent, or the row was dropped."""
    row = places.row_of[place]
    rows = code.shape[0]
    keys = np.repeat(np.arange(code.shape[1]), np.diff(code.indptr)) * rows + code.indices.astype(np.int64)
    wanted = latent * rows + row
    at = np.searchsorted(keys, wanted).clip(max=max(0, len(keys) - 1))
    found = np.zeros(len(place), dtype=np.float32)
    if len(keys):
        hit = (row >= 0) & (keys[at] == wanted)
        found[hit] = code.data[at[hit]]
    return found
