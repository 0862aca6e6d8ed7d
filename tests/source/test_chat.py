"""Chat records: read as the model's template writes them, or refused by record; BOS and EOS stand once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from kyomei.errors import DataError
from kyomei.source.corpus import Corpus
from kyomei.source.records import Fields
from kyomei.source.text import Document, Packer, pack

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
JOINED = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + PLAIN
CALLS = "{% for t in m.tool_calls %}<{{ t.function.name }}>{% endfor %}"
WITH_TOOLS = "{% for m in messages %}{{ m['content'] }}" + CALLS + "|{% endfor %}"
USER, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}

Read = Callable[..., list[str]]


@pytest.fixture
def read(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Read:
    def texts(template: str | None, *conversations: Any, **options: Any) -> list[str]:
        monkeypatch.setattr(tokenizer, "chat_template", template)
        path = tmp_path / "chat.jsonl"
        path.write_text("\n".join(json.dumps({"messages": messages}) for messages in conversations))
        return [d.text for d in Corpus(str(path), Fields("messages"), tokenizer, **options)]

    return texts


@pytest.mark.parametrize("template", [PLAIN, JOINED, NO_SYSTEM])
def test_messages_of_every_usual_form_go_through_the_template(read: Read, template: str) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
    share = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    usual = "[user] hello\n[assistant] hi\n"
    assert read(template, [USER, ANSWER], [parts, ANSWER], share) == [usual, usual.replace("hello", "hel\nlo"), usual]
    for call in (CALL, {**CALL, "content": None}):
        assert read(template, [USER, call, {"role": "tool", "content": "4"}]) == ["[user] hello\n[assistant] \n[tool] 4\n"]
    assert read(WITH_TOOLS, [USER, CALL]) == ["hello|<add>|"]
    assert read(template, [USER], []) == ["[user] hello\n"]  # a conversation without messages is blank


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (NO_SYSTEM, [{"role": "system", "content": "be good"}, USER], "no system turn here"),
        ("{{ foo.bar.baz }}", [USER], "'foo' is undefined"),
        ("{% for m in messages %}", [USER], "TemplateSyntaxError"),
        ("{{ messages[0]['content'] + 1 }}", [USER], "TypeError"),
        (None, [USER], "a tokenizer without a template"),
        (PLAIN, [{"role": "user"}], "a message of role user with no content and no tool call"),
        (PLAIN, [{"role": "user", "content": None}], "no content"),
        (PLAIN, [{"role": "user", "content": 4}], "int as content"),
        (PLAIN, [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a content part of type image"),
        (PLAIN, [{"content": "hello"}], "a message of content without a role"),
        (PLAIN, [{"role": None, "content": "hello"}], "without a role"),
    ],
)
def test_a_record_that_the_template_refuses_is_named_or_counted(
    read: Read, template: str | None, messages: list[Any], said: str
) -> None:
    with pytest.raises(DataError, match=r"template takes. Found .*, in chat.jsonl:[12]. .*--skip-bad-records") as error:
        read(template, [], messages)
    assert said in str(error.value) and "\n" not in str(error.value)
    if template in (PLAIN, NO_SYSTEM):
        assert read(template, [USER], messages, skip_bad_records=True) == ["[user] hello\n"]
    else:
        with pytest.raises(DataError, match=r"some text. Found none .* left out 1 bad record"):
            read(template, messages, skip_bad_records=True)


def test_a_template_that_writes_bos_and_eos_gives_each_once(read: Read, tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }} {% endfor %}{{ eos_token }}"
    packer = Packer(tokenizer, 4)
    assert packer.begins_with_bos
    (body,) = read(template, [USER, ANSWER], strip_bos=packer.begins_with_bos)
    assert body == "hello hi "
    end = tokenizer.eos_token_id
    encoded = list(packer.encode([Document("a", body), Document("b", body)]))
    whole = Packer(tokenizer, 1 + 2 * packer.length(encoded[0])).cut(encoded, 1000)
    inner = encoded[0].ids.tolist()
    assert whole.ids[0].tolist() == [end, *inner, end, *inner, end] and end not in inner


def test_bos_is_forced_only_where_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert Packer(tokenizer, 8).begin == tokenizer.bos_token_id
    assert Packer(bare, 8).begin is None
    assert Packer(bare, 8, force_bos=True).begin == tokenizer.bos_token_id
    begins = [
        pack([Document("a", "hello " * 40)], bare, 8, 32, force_bos=forced).ids[:, 0].unique() for forced in (True, False)
    ]
    assert begins[0].tolist() == [tokenizer.bos_token_id] and tokenizer.bos_token_id not in begins[1]
