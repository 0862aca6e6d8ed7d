"""Tiny language models with random weights, and a tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.source.architectures import CONTEXT, VOCABULARY, small_tokenizer

from kyomei.source.model import LanguageModel
from kyomei.source.text import Document

torch.set_num_threads(1)

_SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "num_hidden_layers": 3}
_HEADS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def _config(kind: str) -> Any:
    if kind == "llama":
        return transformers.LlamaConfig(**_SMALL, **_HEADS)
    if kind == "qwen2":
        return transformers.Qwen2Config(**_SMALL, **_HEADS, num_key_value_heads=1)
    if kind == "gemma":
        return transformers.GemmaConfig(**_SMALL, **_HEADS, num_key_value_heads=1, head_dim=8)
    if kind == "gpt_neox":
        return transformers.GPTNeoXConfig(**_SMALL, **_HEADS)
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=3, n_head=2)
    return transformers.BertConfig(**_SMALL, **_HEADS)


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: transformers.PreTrainedTokenizerFast) -> Callable[[str], LanguageModel]:
    def make(kind: str) -> LanguageModel:
        family = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LanguageModel(family.from_config(_config(kind)), tokenizer, f"tiny {kind}")

    return make


@pytest.fixture
def llama(make_model: Callable[[str], LanguageModel]) -> LanguageModel:
    return make_model("llama")


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "one", "cat", "sat"]
    return [Document(f"{n}.txt", " ".join(words[(n * k) % len(words)] for k in range(1, 40 + n))) for n in range(40)]
