"""Documents: read from anywhere, split without a shared text, packed so that every token knows where it comes from."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from kyomei.errors import DataError
from kyomei.source import text
from kyomei.source.text import Document, Tokens, is_held_out, pack, read_documents, split_documents, stdlib_files

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def test_a_folder_gives_every_text_file_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("second é", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden").write_text("no")
    read = [(d.name, d.text) for d in read_documents(str(tmp_path))]
    assert read == [("a.txt", "first"), ("b/two.md", "second é"), ("c.jsonl:1", "third"), ("c.jsonl:3", "fourth")]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("all of it")
    assert list(read_documents(str(path))) == [Document("book.txt", "all of it")]


def test_parquet_is_read_by_field(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"body": ["one", None, "three"], "n": [1, 2, 3]}), path)
    assert [(d.name, d.text) for d in read_documents(str(path), "body")] == [
        ("part.parquet:0", "one"),
        ("part.parquet:2", "three"),
    ]
    with pytest.raises(DataError, match=r"a field 'bodi' .* part.parquet with body, n. Did you mean .*'body'"):
        list(read_documents(str(path), "bodi"))
    with pytest.raises(DataError, match=r"text or chat messages in 'n'. Found int in part.parquet:0"):
        list(read_documents(str(path), "n"))
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"a parquet file. Found .*part.parquet"):
        list(read_documents(str(path), "body"))


def test_chat_messages_go_through_the_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}))
    pq.write_table(pa.table({"messages": [CHAT]}), tmp_path / "chat.parquet")
    tokenizer.chat_template = template
    try:
        read = list(read_documents(str(tmp_path), "messages", tokenizer))
    finally:
        tokenizer.chat_template = None
    assert [d.text for d in read] == ["[user] hello\n[assistant] hi\n"] * 2
    with pytest.raises(DataError, match=r"a chat template for the messages of chat.jsonl:1. Found a tokenizer without one"):
        list(read_documents(str(tmp_path), "messages", tokenizer))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "one JSON object a line. Found records.jsonl:2"),
        ('{"txt": "x"}', r"a field 'text' .* Found records.jsonl:2 with txt. Did you mean .*'txt'"),
        ('{"body": "x"}', r"with body. Set source.text_field"),
        ("{}", "with no field"),
        ('{"text": 3}', "Found int in records.jsonl:2"),
        ('{"text": [3]}', r"chat messages {role, content}. Found others in records.jsonl:2"),
        ("7", "Found int in records.jsonl:2"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=message):
        list(read_documents(str(path)))


def test_missing_text_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a folder or a file of text. Found nothing at .*nowhere. .*"stdlib"'):
        read_documents(str(tmp_path / "nowhere"))


def test_without_the_datasets_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"the package `datasets` .* not installed. .*pip install kyomei\[datasets\]"):
        list(read_documents("datasets:some/corpus"))


def test_datasets_are_streamed_by_field_and_never_run_code_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **options: Any) -> list[dict[str, str]]:
        if name != "some/corpus":
            raise RuntimeError("no such dataset")
        assert options == {"split": "train", "streaming": True, "trust_remote_code": False}
        return [{"body": "one"}, {"body": "two"}]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    read = [(d.name, d.text) for d in read_documents("datasets:some/corpus", "body")]
    assert read == [("some/corpus:0", "one"), ("some/corpus:1", "two")]
    with pytest.raises(DataError, match=r"the dataset other. Found RuntimeError: no such dataset"):
        list(read_documents("datasets:other"))


def test_a_network_that_fails_on_the_way_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def records() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("lost")

    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name, **options: records()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError, match=r"the dataset some/corpus. Found ConnectionError: lost. Check its name"):
        list(read_documents("datasets:some/corpus"))
    with pytest.raises(DataError, match="a field 'body' in every record"):
        list(read_documents("datasets:some/corpus", "body"))


def test_the_standard_library_knows_what_the_model_never_saw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text, "EMBEDDED", tmp_path)
    monkeypatch.setattr(text, "stdlib_files", lambda: stdlib_files()[:40])
    by_hash = {d.name: d.held_out for d in read_documents("stdlib")}
    assert by_hash == {name: is_held_out(name) for name in by_hash}
    assert 0 < sum(by_hash.values()) < len(by_hash)
    listed = min(by_hash)
    (tmp_path / "held_out.json").write_text(json.dumps([listed]))
    assert [d.name for d in read_documents("stdlib") if d.held_out] == [listed]


def test_the_standard_library_leaves_out_tests_and_packages() -> None:
    names = [name for name, _ in stdlib_files()]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not any("site-packages" in name or name.startswith("test/") for name in names)


_texts = st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=40), st.booleans()), min_size=5, max_size=40)


@settings(max_examples=80, deadline=None)
@given(drawn=_texts, replicas=st.integers(1, 3), share=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_parts_share_no_text(drawn: list[tuple[str, bool]], replicas: int, share: float, seed: int) -> None:
    given_documents = [Document(str(n), body, held) for n, (body, held) in enumerate(drawn)]
    try:
        parts = split_documents(given_documents, replicas, share, seed)
    except DataError:
        return
    assert list(parts) == [f"replica-{n}" for n in range(replicas)] + ["evidence"]
    assert all(parts.values())
    owner = Counter(body for part in parts.values() for body in {d.text for d in part})
    assert max(owner.values()) == 1
    names = Counter(d.name for part in parts.values() for d in part)
    assert max(names.values()) == 1
    held_out = any(d.held_out for d in given_documents)
    seen = {d.text for d in given_documents if not d.held_out}
    kept = [d for d in given_documents if not (d.held_out and d.text in seen)]
    assert set(names) == {d.name for d in kept}
    if any(d.held_out for d in kept):
        assert held_out
        assert all(d.held_out for d in parts["evidence"])
        assert not any(d.held_out for name, part in parts.items() if name != "evidence" for d in part)


def test_the_split_is_balanced_seeded_and_in_random_order() -> None:
    documents = [Document(str(n), f"{n} " * (5 + 7 * (n % 13))) for n in range(300)]
    parts = split_documents(documents, 3, 0.4, seed=1)
    length = {name: sum(len(d.text) for d in part) for name, part in parts.items()}
    whole = sum(length.values())
    assert length["evidence"] / whole == pytest.approx(0.4, abs=0.01)
    assert all(length[f"replica-{n}"] / whole == pytest.approx(0.2, abs=0.01) for n in range(3))
    assert split_documents(documents, 3, 0.4, seed=1) == parts
    assert split_documents(documents, 3, 0.4, seed=2)["replica-0"] != parts["replica-0"]
    sizes = [len(d.text) for d in parts["evidence"]]
    assert sizes not in (sorted(sizes), sorted(sizes, reverse=True))


def test_a_tiny_evidence_share_still_gets_a_document() -> None:
    parts = split_documents([Document(str(n), f"text {n}") for n in range(4)], 3, 0.01, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1, 1, 1]


def test_too_few_distinct_documents_are_refused() -> None:
    same = [Document(str(n), "the same") for n in range(9)]
    with pytest.raises(DataError, match=r"at least 4 distinct documents. Found 1. .*fewer replicas"):
        split_documents(same, 3, 0.25, seed=0)
    held = [Document("a", "x", held_out=True), Document("b", "y")]
    with pytest.raises(DataError, match=r"at least 2 distinct documents. Found 1"):
        split_documents(held, 2, 0.25, seed=0)


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
    bert = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
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
