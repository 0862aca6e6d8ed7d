"""Tiny models of many architectures, with random weights, and a tokenizer trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY, CONTEXT = 300, 32
END = "<|end|>"

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = {**_LLAMA, "head_dim": 8}
_BERT = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 3, "n_head": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

# Model type → what its configuration takes beyond its defaults.
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _HEADS,
    "gemma": _HEADS,
    "gemma2": _HEADS,
    "gemma3_text": _HEADS,
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "glm": _HEADS,
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 2,
        "attention_types": [[["global"], 3]],
    },
    "gpt_neox": _BERT,
    "gpt_bigcode": _GPT,
    "codegen": {**_GPT, "n_head": 4, "n_embd": 32, "rotary_dim": 4},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 3, "n_head": 2},
    "falcon": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 3, "n_heads": 2, "max_seq_len": CONTEXT},
    "mixtral": {**_LLAMA, "num_local_experts": 3},
    "qwen2_moe": {
        **_LLAMA,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "olmoe": {**_LLAMA, "num_experts": 3, "num_experts_per_tok": 2},
    "gpt_oss": {**_HEADS, "num_local_experts": 3, "num_experts_per_tok": 2},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "context_length": CONTEXT},
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "max_position_embeddings": CONTEXT + 1},
    "xlm-roberta": {**_BERT, "max_position_embeddings": CONTEXT + 1},
    "mpnet": {**_BERT, "max_position_embeddings": CONTEXT + 2},
    "electra": {**_BERT, "embedding_size": 8},
    "albert": {**_BERT, "embedding_size": 8},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 3,
        "n_heads": 2,
        "max_position_embeddings": CONTEXT,
    },
    "deberta-v2": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": _BERT,
    "funnel": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
        "block_sizes": [2, 2],
        "block_repeats": [1, 1],
        "architectures": ["FunnelModel"],
    },
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    "mbart": _BART,
    "marian": _BART,
    "pegasus": _BART,
    "led": {
        **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
        "max_encoder_position_embeddings": CONTEXT,
        "max_decoder_position_embeddings": CONTEXT,
        "attention_window": 8,
    },
}
VISION_LANGUAGE: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"model_type": "clip_vision_model", **_CLIP}, "text_config": {"model_type": "llama", **_LLAMA}},
    "paligemma": {
        "vision_config": {"model_type": "siglip_vision_model", **_CLIP},
        "text_config": {"model_type": "gemma", **_HEADS},
        "projection_dim": 16,
    },
    "gemma3": {
        "vision_config": {"model_type": "siglip_vision_model", **_CLIP},
        "text_config": {"model_type": "gemma3_text", **_HEADS},
        "mm_tokens_per_image": 4,
    },
    "qwen2_vl": {
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
        "text_config": {**_LLAMA, "rope_parameters": _MROPE},
    },
    "qwen2_5_vl": {
        "vision_config": {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16},
        "text_config": {**_LLAMA, "rope_parameters": _MROPE},
    },
    "idefics3": {
        "vision_config": _CLIP,
        "text_config": {"model_type": "llama", **_LLAMA},
        "scale_factor": 1,
    },
    "mllama": {
        "vision_config": {
            **_CLIP,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 32,
            "num_hidden_layers": 2,
        },
        "text_config": {**_LLAMA, "cross_attention_layers": [2]},
    },
    "blip-2": {
        "vision_config": _CLIP,
        "qformer_config": {**_CLIP, "vocab_size": VOCABULARY, "encoder_hidden_size": 16},
        "text_config": {"model_type": "opt", **CAUSAL["opt"]},
    },
}
GROUPS = {
    "Language models": CAUSAL,
    "Encoders": ENCODERS,
    "Encoder-decoders": ENCODER_DECODERS,
    "Vision-language models, on text alone": VISION_LANGUAGE,
}
# Models that do not read text alone, and are no part of the table.
OTHERS: dict[str, dict[str, Any]] = {
    "whisper": {
        **_BART,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": CONTEXT,
        "architectures": ["WhisperForConditionalGeneration"],
    },
    "clip": {"text_config": {**_BERT}, "vision_config": _CLIP, "projection_dim": 16},
}
KINDS = {**CAUSAL, **ENCODERS, **ENCODER_DECODERS, **VISION_LANGUAGE}
FAMILY = {
    **dict.fromkeys(CAUSAL, "AutoModelForCausalLM"),
    **dict.fromkeys(ENCODERS, "AutoModel"),
    **dict.fromkeys(ENCODER_DECODERS, "AutoModelForSeq2SeqLM"),
    **dict.fromkeys(VISION_LANGUAGE, "AutoModelForImageTextToText"),
    "whisper": "WhisperForConditionalGeneration",
    "clip": "CLIPModel",
}


def build(kind: str) -> Any:
    """A model of the kind, with weights large enough for every part to matter."""
    family = getattr(transformers, FAMILY[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **{**KINDS, **OTHERS}[kind])
        model = (family.from_config(config) if FAMILY[kind].startswith("Auto") else family(config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and 0 < weight.std() < 0.1:
                weight.mul_(0.2 / weight.std())
    return model


def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the quick brown fox jumps over the lazy dog and the cat sat on the mat"], trainer)
    inner.post_processor = processors.TemplateProcessing(f"{END} $A", f"{END} $A {END} $B", [(END, inner.token_to_id(END))])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=END, eos_token=END)


def saved(kind: str, folder: Path) -> Path:
    """A folder that holds a model of the kind and the tokenizer."""
    build(kind).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder
