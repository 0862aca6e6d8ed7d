"""Parts by hash: no text in two parts, shares as asked, no more read than needed, and a word where a part comes out short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kyomei.errors import DataError
from kyomei.source import parts as module
from kyomei.source.parts import LEAST_DOCUMENTS, Split, split_tokens, unit_hash
from kyomei.source.text import Document, Packer, Tokens

BODY = "the quick brown fox jumps over the lazy dog and the cat sat on the mat "


def document(number: int, times: int = 2, **options: Any) -> Document:
    return Document(str(number), f"{number} " + BODY * times, **options)


def endless(times: int = 2) -> Iterator[Document]:
    number = 0
    while True:
        yield document(number, times)
        number += 1


def packed(
    documents: Any, tokenizer: PreTrainedTokenizerFast, split: Split, tokens: int = 4000, spread: int = 1, context: int = 16
) -> dict[str, Tokens]:
    asked = {part: round(tokens * split.share(part)) for part in split.names}
    wanted = {part: spread * asked[part] for part in asked}
    return split_tokens(documents, Packer(tokenizer, context), split, asked, wanted)


def test_hashes_are_even_and_change_with_the_seed() -> None:
    values = [unit_hash(3, f"text {n}") for n in range(4000)]
    assert min(values) >= 0 and max(values) < 1
    tenths = Counter(int(10 * value) for value in values)
    assert all(320 < tenths[tenth] < 480 for tenth in range(10))
    assert unit_hash(3, "a") == unit_hash(3, "a") != unit_hash(4, "a")
    assert unit_hash(10**40, "\ud800") < 1


@given(share=st.floats(0.01, 0.99), replicas=st.integers(1, 9), seed=st.integers(0, 2**63), marks=st.booleans())
def test_parts_are_intervals_of_the_hash(share: float, replicas: int, seed: int, marks: bool) -> None:
    split = Split(replicas, share, seed, marks)
    by_hash = sorted((split.hash_of(d), split.part_of(d)) for d in map(document, range(60)))
    numbers = [-1 if part == "evidence" else int(part.removeprefix("replica-")) for _, part in by_hash]
    assert numbers == sorted(numbers) and set(numbers) <= set(range(-1, replicas))
    assert all((number == -1) == (u < share and not marks) for number, (u, _) in zip(numbers, by_hash, strict=True))
    assert split.part_of(document(0, held_out=True)) == "evidence"
    assert sum(map(split.share, split.names)) == pytest.approx(1)
    assert split.part_of(Document("a", "one", group="g")) == split.part_of(Document("b", "two", group="g"))


def test_an_endless_stream_is_read_until_every_part_is_full(tokenizer: PreTrainedTokenizerFast) -> None:
    read = []

    def counted() -> Iterator[Document]:
        for d in endless():
            read.append(d)
            yield d

    split = Split(3, 0.25, 0)
    parts = packed(counted(), tokenizer, split, tokens=8000, spread=2)
    assert list(parts) == split.names
    assert {part: tokens.num_tokens for part, tokens in parts.items()} == dict.fromkeys(split.names, 4000)
    per_document = len(tokenizer(read[0].text)["input_ids"])
    assert len(read) * per_document < 3 * 16_000
    for part, tokens in parts.items():
        assert {split.part_of(d) for d in tokens.documents} == {part}
        hashes = [split.hash_of(d) for d in tokens.documents]
        assert hashes == sorted(hashes)  # not the order of the stream
        assert [int(d.name) for d in tokens.documents] != sorted(int(d.name) for d in tokens.documents)


def test_one_long_document_does_not_fill_a_part(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [Document(str(i), f"{i} " + "the quick brown fox " * (400 if i % 2 else 20)) for i in range(200)]
    parts = packed(documents, tokenizer, Split(2, 0.25, 0), tokens=600, spread=1)
    for tokens in parts.values():
        assert len(tokens.document[tokens.document >= 0].unique()) >= LEAST_DOCUMENTS - 1


def test_a_part_does_not_change_when_the_corpus_grows(tokenizer: PreTrainedTokenizerFast) -> None:
    split = Split(2, 0.3, 5)
    few, many = ({d.name: split.part_of(d) for d in map(document, range(n))} for n in (50, 500))
    assert few.items() <= many.items()


def test_same_bytes_for_the_same_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (packed(endless(), tokenizer, Split(2, 0.5, seed)) for seed in (1, 1, 2))
    assert [t.sha256() for t in first.values()] == [t.sha256() for t in again.values()]
    assert [t.sha256() for t in first.values()] != [t.sha256() for t in other.values()]


_texts = st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=40), st.booleans()), min_size=5, max_size=40)


@settings(max_examples=60, deadline=None)
@given(drawn=_texts, replicas=st.integers(2, 3), share=st.floats(0.05, 0.9), seed=st.integers(0, 99), marks=st.booleans())
def test_parts_share_no_text(
    tokenizer: PreTrainedTokenizerFast, drawn: list[tuple[str, bool]], replicas: int, share: float, seed: int, marks: bool
) -> None:
    documents = [Document(str(n), body, held and marks) for n, (body, held) in enumerate(drawn)]
    try:
        parts = packed(documents, tokenizer, Split(replicas, share, seed, marks), tokens=1000, context=2)
    except DataError:
        return
    owner = Counter(body for tokens in parts.values() for body in {d.text for d in tokens.documents if not d.held_out})
    assert max(owner.values()) == 1
    names = Counter(d.name for tokens in parts.values() for d in tokens.documents)
    assert max(names.values()) == 1
    if marks:
        assert all(d.held_out for d in parts["evidence"].documents)
        assert not any(d.held_out for part, t in parts.items() if part != "evidence" for d in t.documents)


@pytest.mark.parametrize("number", [4, 5, 7, 12])
def test_a_small_corpus_is_shared_out_by_length(tokenizer: PreTrainedTokenizerFast, number: int) -> None:
    """Hashes of a few books leave parts empty; then all text is used, in balance."""
    documents = [document(n, times=20 + n) for n in range(number)]
    parts = packed(documents, tokenizer, Split(3, 0.25, 0), tokens=10**6)
    assert sorted(d.name for t in parts.values() for d in t.documents) == sorted(d.name for d in documents)
    sizes = [t.num_tokens for t in parts.values()]
    assert max(sizes) < 2.2 * min(sizes)


def test_a_tiny_evidence_share_still_gets_a_document(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = packed([document(n) for n in range(4)], tokenizer, Split(3, 0.01, 0), tokens=10**5)
    assert [len(t.documents) for t in parts.values()] == [1, 1, 1, 1]


def test_groups_stay_together_in_a_small_corpus(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [document(n, group=str(n % 5)) for n in range(40)]
    parts = packed(documents, tokenizer, Split(3, 0.25, 0), tokens=10**6)
    owner = Counter(group for t in parts.values() for group in {str(int(d.name) % 5) for d in t.documents})
    assert set(owner.values()) == {1} and len(owner) == 5


def test_too_few_distinct_documents_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    same = [Document(str(n), BODY) for n in range(9)]
    with pytest.raises(DataError, match=r"at least 4 distinct documents. Found 1. .*fewer source.replicas"):
        packed(same, tokenizer, Split(3, 0.25, 0))
    held = [document(1, held_out=True), document(2)]
    with pytest.raises(DataError, match=r"at least 2 distinct documents. Found 1"):
        packed(held, tokenizer, Split(2, 0.25, 0, marks_held_out=True))
    with pytest.raises(DataError, match=r"some text. Found an empty corpus|at least 4 distinct documents. Found 0"):
        packed([], tokenizer, Split(3, 0.25, 0))


def test_a_part_that_comes_out_short_is_an_error_with_the_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [document(0, times=3000), *(document(n, times=1) for n in range(1, 4))]
    counts = r"replica-\d [\d,]+ of 25,000 tokens from 1 document"
    with pytest.raises(DataError, match=rf"in every part of the documents. Found too few in .*: .*{counts}.*fewer"):
        packed(documents, tokenizer, Split(3, 0.25, 0), tokens=100_000)


def test_a_stream_that_never_serves_a_part_is_given_up(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 100)
    one_group = (document(n, group="the same") for n in iter(int, 1))
    with pytest.raises(DataError, match=r"too few in .* 0 of 1,000 tokens from 0 documents"):
        packed(one_group, tokenizer, Split(3, 0.25, 0))


def test_little_is_kept_of_documents_that_no_part_needs(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPARE_CHARACTERS", 10_000)
    one_group = [document(n, group="the same") for n in range(300)]
    with pytest.raises(DataError, match="too few in"):  # no longer all at hand, so nothing is shared out anew
        packed([*one_group, document(300)], tokenizer, Split(2, 0.5, 0))
