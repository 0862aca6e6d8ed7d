"""Documents: read from anywhere, split without a shared text, packed so that every token knows where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from kyomei.errors import DataError
from kyomei.source import text
from kyomei.source.text import Document, Tokens, pack


def spans(tokens: Tokens) -> list[tuple[int, int, int, int]]:
    columns = (tokens.ids, tokens.document, tokens.start, tokens.end)
    return list(zip(*(column.flatten().tolist() for column in columns), strict=True))


def test_every_token_traces_to_its_characters(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> None:
    tokens = pack(documents, tokenizer, context=32, num_tokens=32 * 20)
    assert (tokens.ids.shape, tokens.num_tokens, tokens.context) == ((20, 32), 640, 32)
    assert tokens.ids.dtype == torch.int64
    assert {tokens.document.dtype, tokens.start.dtype, tokens.end.dtype} == {torch.int32}
    assert (tokens.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (tokens.document[:, 0] == -1).all()
    rebuilt = [""] * len(tokens.documents)
    for token, document, start, end in spans(tokens):
        if document >= 0:
            assert tokenizer.decode([token]) == tokens.documents[document].text[start:end]
            assert start == len(rebuilt[document])
            rebuilt[document] += tokens.documents[document].text[start:end]
    assert tokens.documents == documents[: len(rebuilt)]
    assert rebuilt[:-1] == [d.text for d in documents[: len(rebuilt) - 1]]
    assert documents[len(rebuilt) - 1].text.startswith(rebuilt[-1])


def test_documents_are_parted_by_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = pack([Document("a", "the"), Document("b", "dog"), Document("c", "cat " * 9)], tokenizer, 8, 8)
    between = [i for i, (_, document, _, _) in enumerate(spans(tokens)) if document == -1]
    where = tokens.document.flatten().tolist()
    assert between[0] == 0
    assert where[between[1] - 1 : between[1] + 2] == [0, -1, 1]
    assert int(tokens.ids.flatten()[between[1]]) == tokenizer.eos_token_id


def test_long_texts_are_cut_without_losing_a_character(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_PIECE_CHARACTERS", 50)
    body = "\n".join("the quick brown fox"[: 3 + n % 15] for n in range(40)) + "x" * 120
    tokens = pack([Document("long", body)], tokenizer, 2, 10_000)
    assert "".join(body[start:end] for _, document, start, end in spans(tokens) if document == 0) == body[: len(body)]


def test_a_bert_tokenizer_leads_with_cls_and_parts_with_sep(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = BertTokenizerFast.from_pretrained(tmp_path)  # its argument for the file has another name in transformers 4
    tokens = pack([Document("a", "the dog"), Document("b", "the cat the cat")], bert, 4, 8)
    shown = [bert.convert_ids_to_tokens(window) for window in tokens.ids.tolist()]
    assert shown == [["[CLS]", "the", "dog", "[SEP]"], ["[CLS]", "the", "cat", "the"]]


def test_a_tokenizer_without_special_tokens_packs_text_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    tokens = pack([Document("a", "the dog"), Document("b", "the cat")], bare, 2, 4)
    assert (tokens.document >= 0).all()


def test_less_text_than_asked_for_is_told_by_the_count(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = pack([Document("a", "the cat sat " * 20)], tokenizer, 16, 1_000_000)
    assert 0 < tokens.num_tokens < 1_000_000
    assert tokens.num_tokens % 16 == 0


def test_no_more_text_is_read_than_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    def endless() -> Any:
        for n in range(10_000):
            assert n < 200, "read far past what fills the windows"
            yield Document(str(n), "the cat sat " * 20)

    assert pack(endless(), tokenizer, 16, 160).num_tokens == 160


def test_an_empty_corpus_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for nothing in ([], [Document("blank", "\n ")]):
        with pytest.raises(DataError, match=r"Expected some text. Found an empty corpus"):
            pack(nothing, tokenizer, 16, 160)


def test_a_corpus_shorter_than_one_window_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"at least one window of 64 tokens. Found a corpus of (\d+) tokens. .*source.context"):
        pack([Document("a", "the dog")], tokenizer, 64, 640)
    with pytest.raises(DataError, match=r"source.num_tokens of at least one window of 64. Found 63"):
        pack([Document("a", "the dog " * 99)], tokenizer, 64, 63)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"a fast tokenizer, which tells character spans. Found object"):
        pack([Document("a", "the dog")], object(), 4, 4)


def test_tokens_survive_saving(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> None:
    tokens = pack([*documents[:3], Document("é", "ünï cøde ✓" * 30, held_out=True)], tokenizer, 16, 10_000)
    tokens.save(tmp_path)
    loaded = Tokens.load(tmp_path)
    assert spans(loaded) == spans(tokens)
    assert loaded.documents == tokens.documents
    assert loaded.sha256() == tokens.sha256()
    assert loaded.ids.dtype == torch.int64
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    loaded.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first


def test_tokens_saved_without_text_show_ids(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> None:
    tokens = pack(documents[:3], tokenizer, 16, 320)
    tokens.save(tmp_path, keep_text=False)
    loaded = Tokens.load(tmp_path)
    assert loaded.sha256() == tokens.sha256() and torch.equal(loaded.start, tokens.start)
    assert [(d.name, d.text) for d in loaded.documents] == [(d.name, "") for d in tokens.documents]
    assert loaded.text_at(5) == f"<{int(tokens.ids.flatten()[5])}>" and tokens.text_at(5) in documents[0].text
    assert pq.read_table(tmp_path / "documents.parquet").column_names == ["name", "held_out"]


@pytest.mark.parametrize("name", ["tokens.safetensors", "documents.parquet"])
def test_damaged_tokens_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    pack([Document("a", "the dog " * 30)], tokenizer, 8, 80).save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} as it was written. Found other bytes"):
        Tokens.load(tmp_path)


def test_missing_or_newer_tokens_are_explained(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"saved tokens in .* Found FileNotFoundError"):
        Tokens.load(tmp_path)
    pack([Document("a", "the dog " * 30)], tokenizer, 8, 80).save(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "schema_version": 2}))
    with pytest.raises(DataError, match=r"tokens of schema 1. Found schema 2 in"):
        Tokens.load(tmp_path)
