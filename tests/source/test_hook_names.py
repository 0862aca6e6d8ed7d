"""TransformerLens' names mean what they mean there: places obey its closed forms, and are its values where it is installed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.source import architectures
from torch import Tensor
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.errors import ModelError
from kyomei.source.hook_names import hub_id, place_of
from kyomei.source.model import LanguageModel
from kyomei.source.trial import try_sites

IDS = torch.randint(5, 290, (3, 11), generator=torch.Generator().manual_seed(0))
SEQUENTIAL = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "stablelm", "smollm3", "mixtral"),
    *("gpt2", "gpt_neo", "opt", "bloom"),
)
PARALLEL = ("gptj", "gpt_neox", "phi")
HAS_Z = {
    "llama": "self_attn.o_proj",
    "qwen3": "self_attn.o_proj",
    "gpt_neo": "attn.attention.out_proj",
    "gptj": "attn.out_proj",
}


def tiny(kind: str) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architectures.build(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms that begin as nothing would hide a place that lacks them
            if weight.ndim == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return LanguageModel(model, None, f"tiny {kind}")


def taken(model: LanguageModel, *names: str) -> list[Tensor]:
    """Values at some places of layer 1, or of another where the name has its number."""
    full = [name if name.startswith("blocks") else f"blocks.1.{name}" for name in names]
    return list(model.capture(IDS, full).values())


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*SEQUENTIAL, *PARALLEL])
def test_what_a_layer_adds_leads_from_what_enters_it_to_what_leaves_it(kind: str) -> None:
    model = tiny(kind)
    pre, attention, mlp, post = taken(model, "hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    before, after = taken(model, "blocks.0.hook_resid_post", "blocks.2.hook_resid_pre")
    close(before, pre)
    close(after, post)
    close(pre + attention + mlp, post)
    assert all(float(part.norm(dim=-1).min()) > 1e-3 for part in (attention, mlp)), "each has a part in it"
    if kind in SEQUENTIAL:
        mid, entering = taken(model, "hook_resid_mid", "hook_mlp_in")
        close(pre + attention, mid)
        assert torch.equal(mid, entering)


@pytest.mark.parametrize("kind", [kind for kind in (*SEQUENTIAL, *PARALLEL) if kind != "mixtral"])
def test_neurons_are_what_the_last_matrix_of_the_mlp_reads(kind: str) -> None:
    model = tiny(kind)
    (neurons,) = taken(model, "mlp.hook_post")
    place = place_of(model.model, "blocks.1.mlp.hook_post")
    last = model.model.get_submodule(place.path)
    (out,) = (model.capture(IDS, [place.path])[place.path],)
    close(last(neurons), out)
    if kind not in ("gemma2", "gemma3_text"):  # a norm stands behind it there
        close(out, *taken(model, "hook_mlp_out"))
    assert neurons.shape[-1] == (last.nx if kind == "gpt2" else last.in_features)


@pytest.mark.parametrize("kind", HAS_Z)
def test_heads_are_what_the_output_matrix_of_attention_reads(kind: str) -> None:
    model = tiny(kind)
    place = place_of(model.model, "blocks.1.attn.hook_z")
    assert place.path.endswith(HAS_Z[kind])
    close(model.model.get_submodule(place.path)(*taken(model, "attn.hook_z")), *taken(model, "hook_attn_out"))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "opt", "phi"])
def test_heads_whose_values_have_a_bias_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match="values have a bias that TransformerLens folds"):
        taken(tiny(kind), "attn.hook_z")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("llama", "blocks.1.ln1.hook_normalized", "before the norm's own weights, or with them folded"),
        ("llama", "blocks.1.ln2.hook_scale", "before the norm's own weights"),
        ("gpt2", "ln_final.hook_normalized", "before the norm's own weights"),
        ("gptj", "blocks.1.hook_resid_mid", "attention and MLP run side by side"),
        ("gpt_neox", "blocks.1.hook_resid_mid", "attention and MLP run side by side"),
        ("mixtral", "blocks.1.mlp.hook_post", "neurons of experts of its own"),
        ("llama", "blocks.1.attn.hook_q", "no module has it as one vector a token"),
        ("llama", "blocks.3.hook_mlp_out", "blocks.N.NAME with N from 0 to 2"),
        ("llama", "hook_embed", "blocks.N.NAME with N from 0 to 2"),
        ("falcon", "blocks.1.hook_mlp_out", "'blocks.1.hook_mlp_out' in a falcon model. Use a near one: transformer.h.1.mlp"),
        ("bert", "blocks.1.hook_resid_pre", "in a bert model. Use a near one: encoder.layer.0"),
    ],
)
def test_places_that_a_model_does_not_have_are_refused_with_the_reason(kind: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tiny(kind).require_sites([name])


def test_layers_that_are_built_otherwise_are_not_mistaken() -> None:
    neox = architectures.build("gpt_neox")
    neox.config.use_parallel_residual = False
    for layer in neox.gpt_neox.layers:
        layer.use_parallel_residual = False
    model = LanguageModel(neox, None, "one after the other")
    pre, attention, mid = taken(model, "hook_resid_pre", "hook_attn_out", "hook_resid_mid")
    close(pre + attention, mid)
    opt = architectures.build("opt")
    opt.config.do_layer_norm_before = False
    with pytest.raises(ModelError, match="in a opt model"):
        place_of(opt, "blocks.1.hook_resid_mid")


def test_a_hook_name_says_its_own_side_and_what_it_is_taken_for() -> None:
    llama, gpt2 = tiny("llama"), tiny("gpt2")
    with pytest.raises(ModelError, match="which says its own"):
        llama.capture(IDS, ["blocks.1.hook_resid_pre"], "input")
    (note,) = try_sites(llama, IDS, ["blocks.1.hook_resid_pre"]).notes()
    assert note == "blocks.1.hook_resid_pre is the input of model.layers.1"
    (note,) = try_sites(gpt2, IDS, ["blocks.1.hook_resid_pre"]).notes()
    assert "less its mean over the dimensions" in note
    (note,) = try_sites(gpt2, IDS, ["blocks.1.mlp.hook_post"]).notes()
    assert "mean" not in note


def test_models_are_known_by_their_names_there() -> None:
    names = {"gpt2-small": "openai-community/gpt2", "gpt2-xl": "openai-community/gpt2-xl", "gemma-2-2b": "google/gemma-2-2b"}
    names |= {"pythia-70m-deduped": "EleutherAI/pythia-70m-deduped", "google/gemma-2-2b": "google/gemma-2-2b", "own": "own"}
    # Its repositories are not named so: the model has to be said in full.
    names |= {"llama-7b": "llama-7b", "Llama-2-7b": "Llama-2-7b", "qwen2-0.5b": "Qwen/qwen2-0.5b"}
    assert {name: hub_id(name) for name in names} == names


def test_a_run_is_asked_for_by_such_a_name(tmp_path: Path) -> None:
    names = {"blocks.2.hook_mlp_out": "model.layers.2.mlp", "blocks.1.hook_resid_post": "model.layers.1"}
    sites = [argument for name in (*names, *names.values()) for argument in ("--site", name)]
    asked = ["--tokens", "2048", "--set", "source.context=32", "--set", "source.spread=1", *sites]
    done = CliRunner().invoke(app, ["harvest", str(tmp_path / "run"), *asked])
    assert done.exit_code == 0, done.stderr
    assert "blocks.1.hook_resid_post is the output of model.layers.1" in done.stderr.replace("\n", " ")
    for name, path in names.items():
        a, b = (kyomei.open_rows(tmp_path / "run/activations/evidence" / site) for site in (name, path))
        assert a.num_rows == b.num_rows > 100
        assert torch.equal(a.read(np.arange(a.num_rows)), b.read(np.arange(b.num_rows)))
