"""Names of sites, calls of modules, layouts of tokens, and the trial on two windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.source import architectures
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from kyomei.errors import ModelError
from kyomei.source.hooks import Layout
from kyomei.source.model import LanguageModel
from kyomei.source.sites import Site, in_layers, require_sites
from kyomei.source.trial import try_sites

Make = Callable[[str], LanguageModel]
CONTEXT = 8
IDS = torch.randint(5, 290, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def tiny(kind: str) -> LanguageModel:
    return LanguageModel(architectures.build(kind), None, f"tiny {kind}")


class Shift:
    """Adds the same to every row."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z + 1


def test_a_site_is_a_path_and_a_call() -> None:
    assert Site.parse("a.b") == Site("a.b", 0) == Site.parse("a.b#0")
    assert Site.parse("a.b#12") == Site("a.b", 12)
    for wrong in ("a#", "a#-1", "a#x", "a#1#2", "a#²"):
        with pytest.raises(ModelError, match="PATH#CALL"):
            Site.parse(wrong)


@pytest.mark.parametrize("path", [f"model.layers.1.block_sparse_moe.experts.{rest}" for rest in ("2", "2.w1", "act_fn")])
def test_one_expert_is_refused_with_the_reason_and_the_block_named(path: str) -> None:
    expected = r"each sees the tokens routed to it only. Take the whole block: model.layers.1.block_sparse_moe\."
    with pytest.raises(ModelError, match=expected):
        require_sites([path], [path], "a mixture")


def test_layers_are_the_outermost_and_pictures_have_none() -> None:
    paths = [f"encoder.block.{i}.layer.1.DenseReluDense" for i in range(3)]
    assert in_layers(paths, ["layer.1.DenseReluDense"]) == dict(enumerate(paths))
    assert in_layers([f"vision_tower.layers.{i}.mlp" for i in range(9)] + ["text.layers.0.mlp"], ["mlp"]) == {
        0: "text.layers.0.mlp"
    }


@pytest.mark.parametrize("call", [0, 1, 2])
def test_capture_takes_the_named_call_of_a_shared_layer(call: int) -> None:
    model = tiny("albert")
    path = "encoder.albert_layer_groups.0.albert_layers.0"
    with torch.no_grad():
        states = model.model(input_ids=IDS, output_hidden_states=True).hidden_states
    names = [f"{path}#{call}", f"{path}.ffn_output#{call}"]
    assert torch.equal(model.capture(IDS, names)[names[0]], states[call + 1])
    assert model.default_site() == f"{path}.ffn_output#1"
    with pytest.raises(
        ModelError, match=rf"'{path}#3', where the module runs 3 times in a pass. Name one from {path}#0 to {path}#2"
    ):
        model.capture(IDS, [f"{path}#3"])


class Shared(nn.Module):
    """An embedding, one layer three times, and a head: predictions from token i."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(300, 6), nn.Linear(6, 6), nn.Linear(6, 300)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embedding(input_ids)
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        output = BaseModelOutput(last_hidden_state=x)
        output.logits = self.head(x)
        return output


@torch.no_grad()
def test_a_splice_replaces_the_named_call_and_no_other() -> None:
    inner = Shared()
    model = LanguageModel(inner, None, "shared")
    for call in range(3):
        x = inner.embedding(IDS)
        for i in range(3):
            x = torch.tanh(inner.layer(x) + (i == call))
        assert torch.equal(model.logits(IDS, (f"layer#{call}", Shift())), inner.head(x))
    assert try_sites(model, IDS, ["layer#2"]).notes() == ["layer runs 3 times in a pass: call #2 is taken, of layer#0 to #2"]


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("batch", [1, 3, CONTEXT])
def test_windows_keep_their_rows_where_a_module_puts_the_place_first(batch: int, side: Any) -> None:
    """As many windows as places look like [batch, context, dim], and would be mixed without a word."""
    model = tiny("xlnet")
    ids = torch.randint(5, 290, (batch, CONTEXT), generator=torch.Generator().manual_seed(2))
    site = "transformer.layer.1.ff"
    together = model.capture(ids, [site], side)[site]
    alone = torch.cat([model.capture(ids[i : i + 1], [site], side)[site] for i in range(batch)])
    torch.testing.assert_close(together, alone)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0] = True
    spliced, plain = model.logits(ids, (site, Shift()), where, side), model.logits(ids)
    assert not torch.allclose(spliced[0], plain[0], atol=1e-4)
    torch.testing.assert_close(spliced[1:], plain[1:])


def test_flattened_tokens_are_laid_out_and_put_back() -> None:
    flat = torch.arange(24.0).reshape(12, 2)
    layout = Layout((3, 4))
    x = layout.by_token(flat, "site")
    assert torch.equal(x[1, 2], flat[6]) and torch.equal(layout.as_given(x, flat), flat)
    for shape in ((11, 2), (3, 5, 2), (12,), (3, 2, 4, 2)):
        with pytest.raises(ModelError, match=r"one vector a token, \[3, 4, dim\], at 'site'"):
            layout.by_token(torch.zeros(shape), "site")


@pytest.mark.parametrize(
    "site", ["model.layers.1.mlp", "model.layers.1.self_attn", "model.layers.1", "model.layers.1.self_attn.o_proj"]
)
def test_an_input_is_replaced_positional_or_by_name(make_model: Make, site: str) -> None:
    model = make_model("llama")
    part = model.model.get_submodule(site)
    x = model.capture(IDS, [site], "input")[site]

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = [x + 1 if isinstance(v, Tensor) and torch.equal(v, x) else v for v in (*args, *kwargs.values())]
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    handle = part.register_forward_pre_hook(before, with_kwargs=True)
    expected = model.logits(IDS)
    handle.remove()
    assert torch.equal(model.logits(IDS, (site, Shift()), side="input"), expected)
    assert not torch.equal(expected, model.logits(IDS))


@pytest.mark.parametrize("site", ["model.encoder", "model.decoder"])
def test_an_output_with_names_is_a_site(site: str) -> None:
    model = tiny("bart")
    assert try_sites(model, IDS, [site]).unspliceable == {}
    with torch.no_grad():
        full = model.model(input_ids=IDS, decoder_input_ids=IDS, use_cache=False, output_hidden_states=True)
    name = "encoder_last_hidden_state" if site.endswith("encoder") and "decoder" not in site else None
    expected = full[name] if name else full.decoder_hidden_states[-1]
    torch.testing.assert_close(model.capture(IDS, [site])[site], expected)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_for_a_site_of_the_encoder_no_decoder_runs(kind: str) -> None:
    model = tiny(kind)
    ran: list[str] = []
    for path, part in model.model.named_modules():
        part.register_forward_hook(lambda *_, path=path: ran.append(path))
    model.capture(IDS, [model.default_site()])
    assert any("encoder" in path for path in ran) and not any("decoder" in path for path in ran)


def test_what_no_prediction_depends_on_is_found_out() -> None:
    """A router's logits: what the experts get was made of them before the router gives them away."""
    model = tiny("mixtral")
    block = model.default_site()
    site = f"{block}.gate"
    trial = try_sites(model, IDS, [site, block])
    assert trial.unspliceable == {site: "no prediction depends on it"}
    assert trial.notes() == [f"{site}: no cross-entropy will be measured, because no prediction depends on it"]


class Mixing(Shared):
    """Its layer's rows depend on the window beside."""

    def forward(self, input_ids: Tensor) -> Any:
        x = self.layer(self.embedding(input_ids).transpose(0, 1).reshape(*input_ids.shape, 6))
        return BaseModelOutput(last_hidden_state=x)


def test_rows_that_depend_on_the_window_beside_are_refused() -> None:
    model = LanguageModel(Mixing(), None, "mixing")
    with pytest.raises(ModelError, match="activations that depend on their own window alone"):
        try_sites(model, IDS, ["layer"])


def test_windows_that_a_model_fills_up_are_refused_with_the_length_that_is_right() -> None:
    model = tiny("led")
    site = "led.encoder.layers.1"
    with pytest.raises(ModelError, match=r"Found shape \[3, 24, 16\]. Set source.context to 24, "):
        model.capture(torch.full((3, 20), 7), [site])
    assert model.capture(torch.full((3, 24), 7), [site])[site].shape == (3, 24, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt_oss", "xlnet", "paligemma"])
def test_a_model_that_sees_what_follows_is_told_in_any_precision(kind: str, dtype: torch.dtype) -> None:
    model = LanguageModel(architectures.build(kind).to(dtype), None, f"tiny {kind}")
    site = model.default_site()
    trial = try_sites(model, torch.randint(5, 290, (2, 32), generator=torch.Generator().manual_seed(3)), [site])
    assert [site for site, reason in trial.unspliceable.items() if "sees the tokens" in reason] == (
        [site] if kind in ("xlnet", "paligemma") else []
    )


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet", "led"])
def test_positions_that_start_late_are_counted(kind: str) -> None:
    model = tiny(kind)
    bound = architectures.CONTEXT
    model.capture(torch.full((1, bound), 7), [model.default_site()])
    with pytest.raises(ModelError, match=rf"windows of at most {bound} tokens.* Set source.context to at most {bound}"):
        model.require_context(bound + 1)
