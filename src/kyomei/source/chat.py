"""Chat messages to the text that the model's own template makes of them."""

from __future__ import annotations

from typing import Any

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "bard": "assistant", "chatgpt": "assistant", "observation": "tool"}


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a template for conversations."""
    return getattr(tokenizer, "chat_template", None) is not None


def chat_text(messages: list[Any], tokenizer: Any, strip_bos: bool, prompting: bool = False) -> str:
    """The text of a conversation, without the BOS (if `strip_bos`) and the last EOS that its template writes.

    Windows begin with BOS where the tokenizer adds one, and EOS stands between documents: each is there once.

    Args:
        messages: {role, content} or ShareGPT's {from, value}; content is text, a list of text parts, or nothing beside tool
            calls.
        tokenizer: with a chat template.
        strip_bos: whether the window has a BOS already.
        prompting: let the text end where the model would answer.

    Raises:
        ValueError: what is wrong, in a few words: no template, a message of another kind, or one the template refuses.
    """
    if not all(isinstance(message, dict) for message in messages):
        raise ValueError("a list of something else")
    plain = [_plain(message) for message in messages]
    if not has_template(tokenizer):
        raise ValueError("a tokenizer without a template: use an instruction-tuned model, or records of plain text")
    if not plain:
        return ""
    try:
        text = str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompting))
    except Exception as error:  # a template is a program of the model's author and fails in its own ways
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{type(error).__name__}: {lines[0]}") from error
    if strip_bos and (begin := getattr(tokenizer, "bos_token", None)):
        text = text.removeprefix(str(begin))
    return text.removesuffix(str(tokenizer.eos_token)) if getattr(tokenizer, "eos_token", None) else text


def _plain(message: dict[Any, Any]) -> dict[Any, Any]:
    """A message as templates expect it: with a role, and with one text as its content."""
    if "role" not in message and isinstance(message.get("from"), str) and "value" in message:
        role = message["from"]
        message = {"role": _SHAREGPT_ROLES.get(role, role), "content": message["value"]}
    if not isinstance(message.get("role"), str):
        raise ValueError(f"a message of {', '.join(map(str, message)) or 'nothing'} without a role")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part) for part in content)
    elif content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        without = "no content" if content is None else f"{type(content).__name__} as content"
        raise ValueError(f"a message of role {message['role']} with {without} and no tool call")
    return {**message, "content": content}


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
    raise ValueError(f"a content part of type {kind}, which is no text")
