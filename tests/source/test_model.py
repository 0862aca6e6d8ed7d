"""The language model: what is captured is what a full pass computes, and nothing after the deepest site runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.model import LanguageModel

Make = Callable[[str], LanguageModel]

IDS = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
DEFAULT = {
    "llama": "model.layers.1.mlp",
    "qwen2": "model.layers.1.mlp",
    "gemma": "model.layers.1.mlp",
    "gpt_neox": "gpt_neox.layers.1.mlp",
    "gpt2": "transformer.h.1.mlp",
    "bert": "encoder.layer.1.output.dense",
}


class Calls:
    """Every module's calls during one pass, in the order in which they end, with what goes in and comes out."""

    def __init__(self, model: LanguageModel) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._model = model

    def __enter__(self) -> Calls:
        self._handles = []
        for path, part in self._model.model.named_modules():
            self._handles.append(part.register_forward_pre_hook(self._before(path), with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._after(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.began.append(path)
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if tensors:
                self.inputs[path] = tensors[0].clone()

        return hook

    def _after(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self.ended.append(path)
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                self.outputs[path] = first.clone()

        return hook


def full_pass(model: LanguageModel) -> Calls:
    with torch.no_grad(), Calls(model) as calls:
        model.model(input_ids=IDS)
    return calls


@pytest.mark.parametrize("kind", DEFAULT)
def test_the_default_site_is_the_middle_mlp(make_model: Make, kind: str) -> None:
    assert make_model(kind).default_site() == DEFAULT[kind]


@pytest.mark.parametrize("kind", DEFAULT)
@pytest.mark.parametrize("side", ["output", "input"])
def test_captured_activations_are_those_of_a_full_pass(make_model: Make, kind: str, side: Any) -> None:
    model = make_model(kind)
    full = full_pass(model)
    layer = DEFAULT[kind].rsplit(".mlp", 1)[0].rsplit(".output", 1)[0]
    sites = [DEFAULT[kind], layer, layer.replace("1", "0")]
    captured = model.capture(IDS, sites, side)
    assert list(captured) == sites
    for site in sites:
        assert torch.equal(captured[site], (full.outputs if side == "output" else full.inputs)[site])
        assert captured[site].shape[:2] == IDS.shape


@pytest.mark.parametrize("kind", DEFAULT)
def test_nothing_after_the_deepest_site_is_called(make_model: Make, kind: str) -> None:
    model = make_model(kind)
    site = DEFAULT[kind]
    full = full_pass(model)
    with Calls(model) as stopped:
        model.capture(IDS, [site])
    before = full.began[: max(i for i, path in enumerate(full.began) if path.startswith(site)) + 1]
    assert stopped.began == before
    later = set(full.began) - set(before)
    assert any(".2" in path for path in later)
    assert not later & set(stopped.began)


def test_of_several_sites_the_deepest_stops_the_pass(llama: LanguageModel) -> None:
    with Calls(llama) as stopped:
        llama.capture(IDS, ["model.layers.1.mlp", "model.embed_tokens", "model.layers.0.self_attn", "model.layers.1.mlp"])
    assert stopped.ended[-1] == "model.layers.1.mlp"
    assert "model.layers.2" not in stopped.began
    assert "lm_head" not in stopped.began


def test_capturing_an_input_does_not_run_the_module(llama: LanguageModel) -> None:
    with Calls(llama) as stopped:
        llama.capture(IDS, ["model.layers.1.mlp"], "input")
    assert "model.layers.1.mlp.gate_proj" not in stopped.began


def test_hooks_are_gone_afterwards(llama: LanguageModel) -> None:
    untouched = llama.logits(IDS)
    llama.capture(IDS, ["model.layers.1"])
    with pytest.raises(ModelError):
        llama.capture(IDS, ["model.layers.1", "nothing"])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llama.model.modules())
    assert torch.equal(llama.logits(IDS), untouched)


@pytest.mark.parametrize(
    ("kind", "site", "near"),
    [
        ("llama", "model.layer.2.mlp", "model.layers.2.mlp, "),
        ("llama", "layers.2.mpl", "model.layers.2.mlp, "),
        ("gpt2", "transformer.h.2.mpl", "transformer.h.2.mlp, "),
        ("llama", "zzz", "model, "),
    ],
)
def test_an_unknown_site_lists_near_matches(make_model: Make, kind: str, site: str, near: str) -> None:
    """The layer that was asked for comes first."""
    model = make_model(kind)
    with pytest.raises(ModelError, match=rf"Found '{site}', which tiny {kind} does not have. Use a near one: {near}"):
        model.capture(IDS, [site])
    with pytest.raises(ModelError, match=rf"Found '{site}'"):
        model.logits(IDS, (site, Zero()))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("model.rotary_emb", r"one vector a token, \[2, 9, dim\], at 'model.rotary_emb'. Found shape \[1, 9, 8\]"),
        ("unused", "a site that runs in a forward pass. Found 'unused', which does not"),
    ],
)
def test_a_site_that_gives_no_vector_a_token_is_refused(llama: LanguageModel, site: str, message: str) -> None:
    llama.model.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(ModelError, match=message):
        llama.capture(IDS, [site])


def test_containers_are_no_sites(llama: LanguageModel) -> None:
    assert "model.layers" not in llama.sites()
    assert "model.layers.0.mlp.down_proj" in llama.sites()


def test_a_model_without_layers_needs_a_named_site(llama: LanguageModel) -> None:
    bare = LanguageModel(nn.Sequential(nn.Embedding(5, 3)), llama.tokenizer, "bare")
    with pytest.raises(ModelError, match=r"Found none recognised in bare. Name a site in source.sites"):
        bare.default_site()


def test_windows_longer_than_the_model_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"at most 32 tokens, .* Found 33 tokens. Set source.context to at most 32"):
        llama.capture(torch.ones(1, 33, dtype=torch.long), ["model.layers.1"])


def test_ids_outside_the_vocabulary_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"ids below 300.* Found token id 300"):
        llama.logits(torch.full((1, 4), 300))


class Zero:
    """Replaces everything by zeros; remembers what it saw."""

    seen: Tensor

    def encode(self, x: Tensor) -> Tensor:
        self.seen = x
        return x

    def decode(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


class Same(Zero):
    def decode(self, z: Tensor) -> Tensor:
        return z


class Waiting(Zero):
    """Stays in the middle of a spliced pass until told to go on."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()

    def decode(self, z: Tensor) -> Tensor:
        self.inside.set()
        self.go_on.wait(20)
        return torch.zeros_like(z)


def test_a_capture_never_sees_what_another_thread_splices(llama: LanguageModel) -> None:
    site = DEFAULT["llama"]
    untouched = llama.capture(IDS, [site])[site]
    waiting = Waiting()
    captured: list[Tensor] = []
    splicing = threading.Thread(target=llama.logits, args=(IDS, (site, waiting)))
    capturing = threading.Thread(target=lambda: captured.append(llama.capture(IDS, [site])[site]))
    splicing.start()
    assert waiting.inside.wait(20)
    capturing.start()
    capturing.join(0.3)
    waiting.go_on.set()
    splicing.join(20)
    capturing.join(20)
    assert torch.equal(captured[0], untouched)


@pytest.mark.parametrize("kind", [kind for kind in DEFAULT if kind != "bert"])
def test_a_splice_replaces_the_output_on_the_way(make_model: Make, kind: str) -> None:
    model = make_model(kind)
    site, plain = DEFAULT[kind], model.logits(IDS)
    same = Same()
    assert torch.equal(model.logits(IDS, (site, same)), plain)
    assert torch.equal(same.seen, model.capture(IDS, [site])[site].flatten(0, 1))
    zeroed = model.logits(IDS, (site, Zero()))
    assert not torch.allclose(zeroed, plain)
    with Calls(model) as calls:
        model.logits(IDS, (site, Zero()))
    part = model.model.get_submodule(site)
    handle = part.register_forward_hook(lambda *arguments: torch.zeros_like(arguments[2]))
    assert torch.equal(model.logits(IDS), zeroed)
    handle.remove()
    assert "lm_head" in calls.ended or "embed_out" in calls.ended
    assert torch.equal(model.logits(IDS), plain)


def test_a_splice_can_leave_tokens_alone(llama: LanguageModel) -> None:
    plain, site = llama.logits(IDS), "model.layers.1.mlp"
    where = torch.zeros_like(IDS, dtype=torch.bool)
    assert torch.equal(llama.logits(IDS, (site, Zero()), where), plain)
    where[:, 5] = True
    spliced = llama.logits(IDS, (site, Zero()), where)
    assert torch.allclose(spliced[:, :5], plain[:, :5], atol=1e-6)
    assert not torch.allclose(spliced[:, 5], plain[:, 5], atol=1e-6)


def test_a_splice_keeps_the_rest_of_a_tuple(llama: LanguageModel) -> None:
    site = "model.layers.1.self_attn"
    assert torch.equal(llama.logits(IDS, (site, Same())), llama.logits(IDS))
    assert not torch.equal(llama.logits(IDS, (site, Zero())), llama.logits(IDS))


def test_a_splice_at_a_site_that_does_not_run_is_refused(llama: LanguageModel) -> None:
    llama.model.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"a site that runs in a forward pass. Found 'unused'"):
        llama.logits(IDS, ("unused", Zero()))


def test_an_encoder_has_no_logits(make_model: Make) -> None:
    with pytest.raises(ModelError, match=r"a model with next-token logits. Found tiny bert, an encoder without them"):
        make_model("bert").logits(IDS)


@pytest.mark.parametrize("kind", DEFAULT)
def test_only_models_with_a_head_are_causal(make_model: Make, kind: str) -> None:
    assert make_model(kind).is_causal == (kind != "bert")


def test_special_ids_cover_added_markers(llama: LanguageModel) -> None:
    assert llama.special_ids == {llama.tokenizer.eos_token_id}
