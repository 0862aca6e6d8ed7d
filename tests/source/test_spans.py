"""Characters of tokens: every tokenizer's tokens, joined, are the document, each character once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from kyomei.source.spans import tiling_starts
from kyomei.source.text import Document, Tokens, pack

ENGLISH = ["the quick brown fox jumps over the lazy dog and one cat sat on some mat, then went home"] * 4
WIDE = [
    "  žluťoučký kůň 🦊👩‍👩‍👧 sees 犬と猫 at ½ ﬁre,\r\n\té (e\u0301) İstanbul™\u00a0ends ",
    "\u3000全角　スペース。 \ufeff zero\u200bwidth 🇯🇵 flags",
    "ﷺ ﬃ Å Ω ǅ \u0301leading accent",
    "👩‍👩‍👧",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def _wrapped(inner: Tokenizer, **special: str) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def byte_level(trim: bool, prefix: bool = False) -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(ENGLISH, trainer)
    return _wrapped(inner, eos_token="</s>")


def word_piece(lowercase: bool) -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(ENGLISH, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    return _wrapped(inner, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")


def llama_like() -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    prepare = [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    inner.normalizer = normalizers.Sequence(prepare)
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + fallback, show_progress=False)
    inner.train_from_iterator(ENGLISH, trainer)
    return _wrapped(inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(normalizer: Any, prepend: str) -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(ENGLISH, trainer)
    return _wrapped(inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], transformers.PreTrainedTokenizerFast]] = {
    "byte-level": lambda: byte_level(trim=False),
    "byte-level, trimmed": lambda: byte_level(trim=True),
    "byte-level, trimmed, space before": lambda: byte_level(trim=True, prefix=True),
    "WordPiece": lambda: word_piece(lowercase=False),
    "WordPiece, lower case": lambda: word_piece(lowercase=True),
    "byte fallback": llama_like,
    "Unigram, NFKC": lambda: unigram(normalizers.NFKC(), "always"),
    "Unigram, NFD without accents": lambda: unigram(
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "first"
    ),
}


def shown(tokens: Tokens) -> list[str]:
    """What the tokens of each document show, joined."""
    texts = [""] * len(tokens.documents)
    for at in range(tokens.num_tokens):
        if (document := int(tokens.document.flatten()[at])) >= 0:
            texts[document] += tokens.text_at(at)
    return texts


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_character_is_shown_once(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for text in (*WIDE, " ".join(WIDE), ENGLISH[0]):
        tokens = pack([Document("a", text)], tokenizer, 2, 10_000)
        assert text.startswith(shown(tokens)[0])
        assert len(shown(tokens)[0]) > 0.8 * len(text) or tokens.num_tokens < 6  # the last window is cut


_KINDS = {kind: make() for kind, make in TOKENIZERS.items()}


@settings(max_examples=150, deadline=None)
@given(text=st.text(min_size=1, max_size=60), kind=st.sampled_from(sorted(_KINDS)))
def test_spans_tile_any_text(text: str, kind: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    encoded = _KINDS[kind](text, add_special_tokens=False, return_offsets_mapping=True)
    start, end = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    starts = tiling_starts(text, start, end)
    assert len(starts) == len(start)
    if len(starts):
        assert starts[0] == 0 and (np.diff(starts) >= 0).all() and starts[-1] <= len(text)


_edges = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12)


@given(text=st.text("ab \u3000é", max_size=10), spans=_edges)
def test_spans_tile_whatever_a_tokenizer_reports(text: str, spans: list[tuple[int, int]]) -> None:
    start, end = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    starts = tiling_starts(text, start, end)
    assert len(starts) == len(spans) and (np.diff(starts) >= 0).all()
    assert not len(starts) or (starts[0] == 0 and starts[-1] <= len(text))


def test_gaps_and_shared_characters_go_to_one_token() -> None:
    def pieces(text: str, *spans: tuple[int, int]) -> list[str]:
        start, end = np.array(spans, dtype=np.int64).T
        edges = [*tiling_starts(text, start, end), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges)]

    assert pieces("the fox", (0, 3), (4, 7)) == ["the", " fox"]  # a trimmed space stands before its word
    assert pieces("e\u0301t \u0301a", (0, 1), (2, 3), (5, 6)) == ["e\u0301", "t", " \u0301a"]  # a dropped accent stays
    assert pieces("a🦊b", (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)) == ["a", "🦊", "", "", "b"]
    assert pieces("a🦊b", (0, 1), (1, 2), (1, 3)) == ["a", "🦊", "b"]
    assert pieces("  a ", (2, 3)) == ["  a "]
    assert pieces("x", (0, 0), (0, 1)) == ["", "x"]


def test_neighbours_never_cross_a_document_or_a_window() -> None:
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(trim=True).backend_tokenizer)
    tokens = pack([Document(str(n), text) for n, text in enumerate(WIDE * 2)], bare, 8, 10_000)
    assert not (tokens.document < 0).any()  # nothing stands between the documents of such a tokenizer
    for at in range(tokens.num_tokens):
        near = tokens.around(at, 5, 3)
        assert at in near and at - near.start <= 5 and near.stop - at <= 4
        assert near.start // 8 == at // 8 == (near.stop - 1) // 8
        document = tokens.documents[int(tokens.document.flatten()[at])]
        assert "".join(tokens.text_at(i) for i in near) in document.text
    begins = [at for at in range(8, 8 * len(tokens.ids)) if tokens.document.flatten()[at] != tokens.document.flatten()[at - 1]]
    assert any(at % 8 for at in begins)
