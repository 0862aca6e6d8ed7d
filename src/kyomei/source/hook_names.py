"""TransformerLens' names of places in a model, and the module and side that give the same values here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn

from kyomei.errors import ModelError
from kyomei.source.sites import ATTENTION_PATHS, MLP_PATHS, in_layers, layer_of, module_paths

_BLOCK = re.compile(r"^blocks\.(?P<number>\d+)\.(?P<name>\S+)$")
_HOOK = re.compile(r"^(blocks\.\d+\.|ln_final\.)?((ln1|ln2|ln1_post|ln2_post|attn|mlp)\.)?hook_\w+$")
_NORMS = re.compile(r"(^|\.)(ln1|ln2|ln1_post|ln2_post|ln_final)\.")


class Place(NamedTuple):
    """A module of a layer, and which of its sides."""

    path: str
    side: Literal["output", "input"]


@dataclass(frozen=True)
class _Layer:
    """Where a family of architectures has the places of a layer, by paths inside it.

    Attributes:
        attn_out, mlp_out: what attention and MLP add to the residual stream.
        mid: whose input is the stream between them; none: they run side by side.
        post: takes the activations of the MLP's neurons; none: each token has them from experts of its own.
        z: takes the outputs of the attention heads, side by side.
    """

    attn_out: Place
    mlp_out: Place
    mid: str | None
    post: str | None
    z: str


def _layer(attention: str, mlp: str, mid: str | None, post: str | None, z: str) -> _Layer:
    return _Layer(Place(attention, "output"), Place(mlp, "output"), mid, post, z)


_LLAMA = _layer("self_attn", "mlp", "post_attention_layernorm", "mlp.down_proj", "self_attn.o_proj")
_GEMMA2 = replace(
    _LLAMA,
    attn_out=Place("post_attention_layernorm", "output"),  # what is added has gone through a norm of its own
    mlp_out=Place("post_feedforward_layernorm", "output"),
    mid="pre_feedforward_layernorm",
)
_GPT2 = _layer("attn", "mlp", "ln_2", "mlp.c_proj", "attn.c_proj")
_LAYERS: Mapping[str, _Layer] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "stablelm", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA2),
    "mixtral": _layer("self_attn", "", "post_attention_layernorm", None, "self_attn.o_proj"),
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, z="attn.attention.out_proj"),
    "gptj": _layer("attn", "mlp", None, "mlp.fc_out", "attn.out_proj"),
    "gpt_neox": _layer("attention", "mlp", "post_attention_layernorm", "mlp.dense_4h_to_h", "attention.dense"),
    "phi": _layer("self_attn", "mlp", None, "mlp.fc2", "self_attn.dense"),
    "opt": _layer("self_attn", "fc2", "final_layer_norm", "fc2", "self_attn.out_proj"),
    # Bloom's modules add the stream to what they give: what is added comes from the matrices inside them.
    "bloom": _layer(
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
        "mlp.dense_4h_to_h",
        "self_attention.dense",
    ),
}
"""Closed forms that each of these obeys, and TransformerLens' own values, are compared in tests."""
_OTHERWISE: Mapping[str, Callable[[Any], bool]] = {
    "opt": lambda config: not config.do_layer_norm_before,
    "bloom": lambda config: bool(config.apply_residual_connection_post_layernorm),
}
"""Configurations whose layers are built otherwise."""
MAPPED = "hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out, hook_mlp_in, hook_mlp_out, mlp.hook_post, attn.hook_z"

_OWNERS = {"gpt2": "openai-community", "pythia-": "EleutherAI", "gemma-": "google", "qwen": "Qwen"}
"""Whose models TransformerLens calls by their bare names, by how these begin."""


def hub_id(name: str) -> str:
    """The Hugging Face id of a model by TransformerLens' name for it; any other name as it is."""
    owners = [owner for begin, owner in _OWNERS.items() if name.lower().startswith(begin) and "/" not in name]
    bare = "gpt2" if name == "gpt2-small" else name
    return f"{owners[0]}/{bare}" if owners else bare


def is_hook_name(name: str) -> bool:
    """Whether a site is named as TransformerLens does: `blocks.3.hook_mlp_out`."""
    return bool(_HOOK.match(name))


def place_of(model: nn.Module, name: str) -> Place:
    """The module and side that give what TransformerLens calls by a name.

    Args:
        model: a transformers model, or a part of one that has its layers and its configuration.
        name: such as "blocks.3.hook_resid_pre".

    Raises:
        ModelError: the architecture is not mapped, or nothing in the model has these values; the message says why.
    """
    if _NORMS.search(name):
        found = f"'{name}', which TransformerLens takes before the norm's own weights, or with them folded into the next matrix"
        raise ModelError("a place that the model itself has", found, f"name one of {MAPPED}, or the path of the norm's module")
    paths = module_paths(model)
    layers = {number: layer_of(path) for number, path in in_layers(paths, MLP_PATHS).items()}
    match = _BLOCK.match(name)
    if match is None or int(match["number"]) not in layers:
        expected = f"blocks.N.NAME with N from 0 to {max(layers)}" if layers else "a model with layers"
        raise ModelError(expected, f"'{name}'", "correct the name, or give the path of a module")
    number = int(match["number"])
    family = _family(model, name, layers)
    place = _in_layer(family, match["name"], name, _config(model))
    if match["name"] == "attn.hook_z":
        _refuse_folded_biases(model, layers[number], place.path, name)
    inner = place.path or in_layers(paths, MLP_PATHS)[number].removeprefix(f"{layers[number]}.")
    return Place(layers[number] if inner == "." else f"{layers[number]}.{inner}", place.side)


def said_of(model: nn.Module, name: str) -> str:
    """What a hook name is taken for, in a sentence, and where TransformerLens may have other values."""
    place = place_of(model, name)
    words = f"{name} is the {place.side} of {place.path}"
    if name.endswith(("hook_post", "hook_z")) or not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return words
    centred = "TransformerLens has it less its mean over the dimensions unless center_writing_weights is false"
    return f"{words}; {centred}, as SAELens sets it"


def _in_layer(family: _Layer, inner: str, name: str, config: Any) -> Place:
    """A place by its name in a layer; "." stands for the layer itself, "" for its MLP, whatever it is called."""
    parallel = family.mid is None or bool(getattr(config, "use_parallel_residual", False))
    places: dict[str, Place | None] = {
        "hook_resid_pre": Place(".", "input"),
        "hook_resid_post": Place(".", "output"),
        "hook_resid_mid": None if parallel else Place(str(family.mid), "input"),
        "hook_mlp_in": None if parallel else Place(str(family.mid), "input"),
        "hook_attn_out": family.attn_out,
        "hook_mlp_out": family.mlp_out,
        "mlp.hook_post": None if family.post is None else Place(family.post, "input"),
        "attn.hook_z": Place(family.z, "input"),
    }
    if inner not in places:
        found = f"'{name}': no module has it as one vector a token"
        raise ModelError(f"one of {MAPPED}", found, "choose one of these, or give the path of a module")
    place = places[inner]
    if place is None:
        experts = inner == "mlp.hook_post"
        why = "each token has neurons of experts of its own" if experts else "attention and MLP run side by side in a layer"
        raise ModelError("a place that the model has", f"'{name}', but {why}", "take blocks.N.hook_resid_post or hook_mlp_out")
    return place


def _family(model: nn.Module, name: str, layers: Mapping[int, str]) -> _Layer:
    config = _config(model)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if kind in _LAYERS and not _OTHERWISE.get(kind, lambda _: False)(config):
        return _LAYERS[kind]
    expected = f"a module path, or a model whose TransformerLens names are known: {', '.join(sorted(_LAYERS))}"
    raise ModelError(expected, f"'{name}' in a {kind} model", f"use a near one: {_near(name, module_paths(model), layers)}")


def _near(name: str, paths: list[str], layers: Mapping[int, str]) -> str:
    """The path that stands where a name of an unmapped architecture would."""
    number = int(name.split(".")[1])
    if "resid" in name:
        return layers.get(number - ("resid_pre" in name), layers[number])  # what enters a layer left the one before
    return in_layers(paths, ATTENTION_PATHS if "attn" in name else MLP_PATHS).get(number, layers[number])


def _refuse_folded_biases(model: nn.Module, layer: str, z: str, name: str) -> None:
    """TransformerLens moves the bias of the values behind the attention's output, so its z lacks it."""
    attention = model.get_submodule(f"{layer}.{z}".rpartition(".")[0])
    biased = [
        path for path, _ in attention.named_parameters() if path.endswith("bias") and not z.endswith(path[: -len(".bias")])
    ]
    # Norms of queries and keys have no part in the values.
    if any("norm" not in path for path in biased):
        found = f"'{name}', where values have a bias that TransformerLens folds into the attention's output"
        raise ModelError("a place that the model itself has", found, "take hook_attn_out of the same layer")


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return text() if callable(text) else config
